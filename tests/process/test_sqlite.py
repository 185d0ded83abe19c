"""SQLite: one file, three workers, and a user's write transaction that stays open."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest

from tests.process.conftest import everyone, hold_everywhere
from tests.process.polls import Client, get, head, publish, stream
from tests.waiting import until

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

ROW = "INSERT INTO legacy_poll_outbox (channel, data) VALUES (?, ?)"


@contextlib.contextmanager
def open_transaction(path):
    """A user's own connection with the one write lock there is; commits at the end."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=20)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        connection.execute("COMMIT")


def test_a_long_write_transaction_delays_writers_and_nobody_else(serve, terminal):
    gunicorn = serve({"WRITE_WAIT_SECONDS": 0.2}, workers=3)
    terminal.publish("1", "2")
    client = Client(gunicorn)
    assert client.hear_until(2) == [1, 2]
    clients = everyone(hold_everywhere(gunicorn, 3, cursor=client.cursor))
    with open_transaction(terminal.path) as user:
        user.execute("CREATE TABLE mine (id INTEGER)")
        user.execute(ROW, ("orders", "3"))
        # Writers are told to come back, after a wait of their own.
        refused = publish(gunicorn, {"channel": "orders", "data": "too early"})
        assert (refused.status, refused.code) == (503, "storage_unavailable"), refused
        assert int(refused.headers["Retry-After"]) >= 1
        # A worker that dies just now is replaced: a start with nothing to upgrade waits for nobody.
        victim = gunicorn.workers[0]
        gunicorn.kill(victim)
        gunicorn.wait_until_ready()
        assert victim not in gunicorn.workers and len(gunicorn.workers) == 3
        # Readers go on, on every worker, from the log and from memory; and so do held polls.
        for worker in gunicorn.workers:
            with gunicorn.only(worker):
                assert get(gunicorn, stream(timeout=0)).data == [1, 2]
                assert get(gunicorn, "/health/ready").status == 200
                assert head(gunicorn) == client.cursor
                assert Client(gunicorn, cursor=client.cursor, timeout=100).ask().hear().status == 204
        user.execute(ROW, ("orders", "4"))
    survivors = []
    for each in clients:
        with contextlib.suppress(OSError):
            assert each.hear_until(2) == [3, 4]
            survivors.append(each)
    assert len(survivors) == 6
    assert publish(gunicorn, {"channel": "orders", "data": 5}).status == 201
    assert client.hear_until(5) == [1, 2, 3, 4, 5]


UNFIT = [("orders", "{not json"), ("bad channel!", "1"), ("orders", "NaN")]


def set_aside(terminal):
    rows = terminal("SELECT channel || ' ' || data || ' ' || reason FROM legacy_poll_set_aside ORDER BY id;")
    return rows.splitlines()


def test_rows_that_break_a_rule_are_set_aside_and_stop_nobody(serve, terminal):
    gunicorn = serve(workers=3)
    clients = everyone(hold_everywhere(gunicorn, 3, cursor=head(gunicorn)))
    with open_transaction(terminal.path) as user:
        user.execute(ROW, ("orders", "1"))
        for number, row in enumerate(UNFIT, 2):
            user.execute(ROW, row)
            user.execute(ROW, ("orders", str(number)))
    assert [client.hear_until(4) for client in clients] == [[1, 2, 3, 4]] * 9
    found = set_aside(terminal)
    assert len(found) == 3
    for (channel, data), line in zip(UNFIT, found):
        assert line.startswith("{} {} ".format(channel, data))
        assert gunicorn.logged(line[len(channel) + len(data) + 2 :][:60])
    assert gunicorn.logged("was set aside") == 3
    assert terminal("SELECT count(*) FROM legacy_poll_outbox;").strip() == "0"
    # After them the trigger takes rows again, in their own transactions.
    terminal.publish("5")
    assert [client.hear_until(5) for client in clients] == [[1, 2, 3, 4, 5]] * 9


def test_rows_that_wait_behind_an_unfit_one_come_when_the_lock_is_free(serve, terminal):
    gunicorn = serve({"WRITE_WAIT_SECONDS": 0.2}, workers=3)
    terminal.publish('"before"')
    clients = everyone(hold_everywhere(gunicorn, 3, cursor=head(gunicorn)))
    # The workers must not take the rows before somebody else has the lock.
    with contextlib.ExitStack() as stopped:
        stopped.enter_context(gunicorn.paused(*gunicorn.workers))
        terminal.publish("{not json", "1", "2")
        with open_transaction(terminal.path):
            stopped.close()
            until(
                lambda: gunicorn.logged("has been held for over a second") == 3, what="each worker names it"
            )
            # What can be read is read meanwhile.
            assert get(gunicorn, stream(timeout=0)).data == ["before"]
            assert Client(gunicorn, cursor=head(gunicorn), timeout=100).ask().hear().status == 204
            assert all(client.held for client in clients)
    assert [client.hear_until(2) for client in clients] == [[1, 2]] * 9
    assert len(set_aside(terminal)) == 1
