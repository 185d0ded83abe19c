"""The database goes away, or is not there yet: it costs time, and nothing else; nobody restarts gunicorn.

While it is away, what memory can answer is answered (a poll with a cursor that the worker knows is held), and what
only the database could tell is 503 with Retry-After. The log tells the operator once when it begins, and once when it
is over.
"""

from __future__ import annotations

import pytest

from tests.process.commands import legacy_poll
from tests.process.conftest import SERVERS, everyone, hold_everywhere
from tests.process.polls import Client, get, head, publish, stream
from tests.waiting import until

on_servers = pytest.mark.parametrize(
    "database_url, lane",
    [(kind, "standard") for kind in SERVERS] + [("postgresql", "parked")],
    indirect=["database_url"],
)

FOREIGN = "1-00000000-7-00000000"
WORKERS = 2
AGAIN = "the database works again"


def told(gunicorn):
    """What legacy_poll wrote about a database that is away.

    Hints may be lost without harm, and on a slow machine a lock may be held for a second.
    """
    lines = [line for line in gunicorn.log.splitlines() if line.startswith("legacy_poll: ")]
    return [line for line in lines if "notifications" not in line and "has been held for over" not in line]


def balance(lines):
    """How many workers have said that the database is away, and not yet that it works again."""
    again = sum(AGAIN in line for line in lines)
    return len(lines) - 2 * again


def is_unavailable(answer, code="storage_unavailable"):
    assert (answer.status, answer.code) == (503, code), answer
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    # Whoever asks need not be told which server does not answer.
    assert "127.0.0.1" not in answer.text
    return True


@on_servers
def test_an_outage_costs_held_polls_nothing_but_time(serve, terminal, database_server):
    gunicorn = serve(workers=WORKERS)
    # Every worker has delivered the first event itself, so it knows the cursor behind it.
    first = everyone(hold_everywhere(gunicorn, 1, cursor=head(gunicorn)))
    terminal.publish("0")
    assert [client.hear().data for client in first] == [[0]] * WORKERS
    clients = everyone(hold_everywhere(gunicorn, 4, cursor=head(gunicorn)))
    for turn, go_away in enumerate([database_server.stop, database_server.kill], start=1):
        before = len(told(gunicorn))
        go_away()
        until(
            lambda seen=before: balance(told(gunicorn)[seen:]) == WORKERS,
            what="each worker says that it is away",
        )

        assert get(gunicorn, "/health/live").status == 200
        is_unavailable(get(gunicorn, "/health/ready"))
        is_unavailable(get(gunicorn, "/cursor"))
        is_unavailable(get(gunicorn, stream()))
        is_unavailable(get(gunicorn, stream(cursor="now")))
        # Not 410: only the database could say that this cursor is not one of its own.
        is_unavailable(get(gunicorn, stream(cursor=FOREIGN)))
        is_unavailable(publish(gunicorn, {"channel": "orders", "data": "lost"}))
        # Held from memory, to its end: a cursor that the worker knows.
        assert Client(gunicorn, cursor=clients[0].cursor, timeout=100).ask().hear().status == 204

        database_server.start()
        terminal.publish(str(turn))
        assert [client.hear(seconds=20).data for client in clients] == [[turn]] * 4 * WORKERS
        gunicorn.wait_until_ready()
        # As before: on every worker, reading and writing, with no connection left over from before.
        for worker in gunicorn.workers:
            with gunicorn.only(worker):
                assert publish(gunicorn, {"channel": "elsewhere", "data": turn}).status == 201
                assert get(gunicorn, stream(timeout=0)).data == list(range(turn + 1))
        for client in clients:
            client.ask()
        lines = told(gunicorn)[before:]
        assert balance(lines) == 0, lines
        if go_away == database_server.stop:
            assert [AGAIN in line for line in lines] == [False] * WORKERS + [True] * WORKERS, lines
        # kill -9 takes the server's processes one by one: a worker may meet a dead one, and then one that still lives.
        assert len(lines) <= 4 * WORKERS, lines
    terminal.publish('"the end"')
    assert [client.hear().data for client in clients] == [["the end"]] * 4 * WORKERS


@on_servers
def test_a_server_that_starts_first_waits_for_its_database_and_then_for_its_tables(
    start_gunicorn, database_url, database_server, terminal
):
    database_server.stop()
    gunicorn = start_gunicorn({"DATABASE_URL": database_url}, workers=2, ready="/health/live").start()
    is_unavailable(get(gunicorn, "/health/ready"))
    is_unavailable(get(gunicorn, stream()))

    database_server.start()
    until(lambda: get(gunicorn, "/health/ready").code == "schema_missing", what="it notices its database")
    is_unavailable(get(gunicorn, stream()), "schema_missing")
    is_unavailable(get(gunicorn, "/cursor"), "schema_missing")
    is_unavailable(publish(gunicorn, {"data": 1}), "schema_missing")
    until(lambda: gunicorn.logged("run: legacy-poll upgrade") == 2, what="each worker says what to do")

    assert legacy_poll("upgrade", DATABASE_URL=database_url).returncode == 0
    until(lambda: gunicorn.logged(AGAIN) == 2, what="each worker says that it works")
    assert get(gunicorn, "/health/ready").status == 200
    client = Client(gunicorn).ask()
    terminal.publish("1")
    assert client.hear_until(1) == [1]
    assert gunicorn.logged("Traceback") == 0


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_a_newer_schema_of_the_same_line_is_served_with_a_warning(
    serve, start_gunicorn, terminal, database_url
):
    assert legacy_poll("upgrade", DATABASE_URL=database_url).returncode == 0
    terminal("UPDATE legacy_poll_version SET version_num = '1_9999';")
    gunicorn = serve(workers=2)
    client = Client(gunicorn).ask()
    terminal.publish("1")
    assert client.hear_until(1) == [1]
    until(lambda: gunicorn.logged("at version 1_9999, newer than this code's") == 2)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_schema_of_another_line_is_refused_and_never_answered_with_silence(
    start_gunicorn, terminal, database_url
):
    assert legacy_poll("upgrade", DATABASE_URL=database_url).returncode == 0
    terminal("UPDATE legacy_poll_version SET version_num = '2_0001';")
    gunicorn = start_gunicorn({"DATABASE_URL": database_url}, workers=1, ready="/health/live").start()
    until(lambda: gunicorn.logged("at version 2_0001 and this code works with line 1 only") == 1)
    is_unavailable(get(gunicorn, "/health/ready"), "schema_mismatch")
    is_unavailable(get(gunicorn, stream(timeout=100)), "schema_mismatch")
    is_unavailable(get(gunicorn, "/cursor"), "schema_mismatch")
    is_unavailable(publish(gunicorn, {"data": 1}), "schema_mismatch")
    assert terminal("SELECT count(*) FROM legacy_poll_outbox;").strip() == "0"
    # And when it is put right, nobody restarts anything.
    terminal("UPDATE legacy_poll_version SET version_num = '1_0002';")
    gunicorn.wait_until_ready()
    until(lambda: get(gunicorn, "/health/ready").status == 200)
    assert publish(gunicorn, {"channel": "orders", "data": 1}).status == 201
    assert Client(gunicorn).hear_until(1) == [1]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_sqlite_schema_of_another_line_ends_the_start(start_gunicorn, terminal, database_url):
    assert legacy_poll("upgrade", DATABASE_URL=database_url).returncode == 0
    terminal("UPDATE legacy_poll_version SET version_num = '2_0001';")
    gunicorn = start_gunicorn({"DATABASE_URL": database_url}, workers=1)
    gunicorn.spawn()
    until(lambda: not gunicorn.running, 30, "gunicorn ends")
    assert gunicorn.exit_code != 0
    assert gunicorn.logged("at version 2_0001 and this code works with line 1 only")
