"""An upgrade that ended at any statement, by whatever way, is finished by the next one.

On MariaDB and MySQL each statement that changes a table stays done. The process that upgrades is a real one, and it is
killed with -9; what judges it is the database afterwards.
"""

from __future__ import annotations

import itertools
import os
import re
import signal

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy import event as listening
from sqlalchemy.engine import Engine

from legacy_poll import schema
from legacy_poll.dialects.base import MOVE_SECONDS
from legacy_poll.errors import SchemaMissing
from tests.contract.store import Store, can_compare, difference_is_empty, on_mysqls, outwait, run, two_writers

pytestmark = pytest.mark.own_database

WRITES = re.compile(r"\s*(CREATE|ALTER|INSERT|UPDATE|DELETE|DROP)\b", re.IGNORECASE)
CHANGES = re.compile(r"\s*(CREATE|ALTER|DROP)\b", re.IGNORECASE)


class Upgrader:
    """A process that upgrades a database, and sends itself a signal at its *number*-th statement that writes.

    Args:
        url: The database.
        number: From 1.
        when: "before" the statement is sent, or "after" the server has answered it.
        send: The signal.
        what: Matches the statements that count.
    """

    def __init__(self, url, number, when, send, *, what=WRITES):
        self.pid = os.fork()
        if self.pid:
            return
        try:
            numbers = itertools.count(1)

            def meet(connection, cursor, statement, parameters, context, executemany):
                if what.match(statement) and next(numbers) == number:
                    os.kill(os.getpid(), send)

            listening.listen(Engine, when + "_cursor_execute", meet)
            schema.upgrade(create_engine(url, future=True))
        except BaseException:
            os._exit(1)
        os._exit(0)

    def wait(self, options=0):
        """What waitpid() says of it."""
        return os.waitpid(self.pid, options)[1]

    def is_killed(self):
        """Waits for its end; False when it had nothing left to do before its statement came."""
        status = self.wait()
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            return True
        assert os.WEXITSTATUS(status) == 0
        return False


def with_events(engine):
    """A log of the first version with three events, as that version wrote them."""
    schema.upgrade(engine, "1_0001")
    for position in (1, 2, 3):
        run(
            engine,
            "INSERT INTO legacy_poll_event (position, id, channel, type, data, published_at)"
            " VALUES (:position, :id, 'orders', 'message', :data, '2026-01-01T00:00:00.000Z')",
            **{"position": position, "id": "id-%d" % position, "data": str(position)},
        )
    run(engine, "UPDATE legacy_poll_log SET head = 3")


def is_whole(engine, data):
    """The tables are what the code takes them for, and work."""
    if can_compare(engine):
        difference_is_empty(engine)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM legacy_poll_log")).scalar() == 1
    store = Store(engine)
    try:
        assert schema.check(store.database) is None
        store.publish("new")
        store.drain()
        assert store.data() == [*data, "new"]
        store.check()
    finally:
        store.close()


@on_mysqls
@pytest.mark.parametrize("begin", [None, with_events], ids=["new", "1_0001"])
def test_an_upgrade_killed_after_each_step_is_finished_by_the_next(engine, database_url, begin):
    """Each gets one step further than the one before, so that every state there can be is gone on from."""
    if begin is not None:
        begin(engine)
    killed = 0
    while Upgrader(database_url, 1, "after", signal.SIGKILL, what=CHANGES).is_killed():
        killed += 1
        assert killed < 100
        store = Store(engine)
        with pytest.raises(SchemaMissing, match="run: legacy-poll upgrade"):
            schema.check(store.database)
        store.close()
    # All tables and their indexes were met; or three columns, two tables and their indexes.
    assert killed >= (14 if begin is None else 6)
    is_whole(engine, [] if begin is None else [1, 2, 3])


@on_mysqls
@pytest.mark.parametrize("number", [1, 6, 9, 12])
def test_an_upgrade_killed_at_a_statement_is_finished_by_the_next(engine, database_url, number):
    assert Upgrader(database_url, number, "before", signal.SIGKILL).is_killed()
    schema.upgrade(engine)
    is_whole(engine, [])


@two_writers
@pytest.mark.parametrize("number", [2, 5, 9])
def test_a_server_killed_during_an_upgrade_leaves_what_the_next_one_finishes(
    engine, database_url, database_server, number
):
    upgrader = Upgrader(database_url, number, "before", signal.SIGSTOP)
    assert os.WIFSTOPPED(upgrader.wait(os.WUNTRACED))
    database_server.kill()
    os.kill(upgrader.pid, signal.SIGCONT)
    assert os.WEXITSTATUS(upgrader.wait()) == 1
    database_server.start()
    schema.upgrade(engine)
    is_whole(engine, [])


@two_writers
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_upgrade_on_a_slow_machine_keeps_its_connection_and_its_lock(database_url, engine, when):
    """The connection was one that its server ends after two seconds without a statement. (SQLite has no server.)"""
    upgrader = Upgrader(database_url, 1, when, signal.SIGSTOP)
    assert os.WIFSTOPPED(upgrader.wait(os.WUNTRACED))
    outwait(engine, MOVE_SECONDS)
    os.kill(upgrader.pid, signal.SIGCONT)
    assert os.WEXITSTATUS(upgrader.wait()) == 0
    is_whole(engine, [])
