"""A caller that gives up leaves a call behind: it keeps its place until the server has answered, and commits nothing.

On real servers, with a lock on one of our tables as what is waited for. The offload here calls in threads of its own;
that of a worker is tried in tests/process/test_sessions.py.
"""

from __future__ import annotations

import contextlib
import threading

import pytest
from sqlalchemy import create_engine, text

from legacy_poll import database as databases
from legacy_poll.config import Settings
from legacy_poll.database import Database
from legacy_poll.errors import StorageUnavailable
from tests.contract.store import drivers, on_postgresql, two_writers
from tests.servers import PgBouncer
from tests.waiting import until

pytestmark = pytest.mark.own_database

SECONDS = 0.5
READS = 2  # one for the publisher, one to catch up


class Threads:
    """An offload: whoever has waited for SECONDS goes; `left` are the calls that have not ended."""

    def __init__(self):
        self.left = []

    def __call__(self, call, function, *arguments):
        results = []

        def run():
            try:
                results.append((function(*arguments), None))
            except BaseException as error:
                results.append((None, error))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(SECONDS)
        if not results:
            self.left.append(thread)
            raise StorageUnavailable("too slow")
        result, error = results[0]
        if error is not None:
            raise error
        return result

    @property
    def under_way(self):
        return sum(thread.is_alive() for thread in self.left)


@pytest.fixture
def threads():
    return Threads()


@pytest.fixture
def make(engine, tables, threads):
    made = []

    def make(**options):
        options = {"offload": threads, "limit_seconds": 600, **options}
        made.append(Database(engine, Settings(catchup_reads=READS - 1), **options))
        return made[-1]

    yield make
    for database in made:
        database.close()


@pytest.fixture
def locked(engine):
    """Locks the log's and the outbox's table against everybody, for as long as the block."""

    @contextlib.contextmanager
    def locked():
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            if engine.dialect.name == "postgresql":
                connection.exec_driver_sql("BEGIN")
                connection.exec_driver_sql(
                    "LOCK TABLE legacy_poll_log, legacy_poll_outbox IN ACCESS EXCLUSIVE MODE"
                )
            else:
                connection.exec_driver_sql("LOCK TABLES legacy_poll_log WRITE, legacy_poll_outbox WRITE")
            try:
                yield connection
            finally:
                connection.exec_driver_sql(
                    "COMMIT" if engine.dialect.name == "postgresql" else "UNLOCK TABLES"
                )

    return locked


@pytest.fixture
def sessions(engine):
    """How many sessions the server has for us: all but the one that locks and the one that asks."""
    count = {
        "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()",
        "mysql": "SELECT count(*) FROM information_schema.processlist WHERE db = database()",
    }[engine.dialect.name]
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield lambda: connection.execute(text(count)).scalar() - 2


def look(connection):
    return connection.execute(text("SELECT head FROM legacy_poll_log")).scalar()


def add(connection):
    connection.execute(text("INSERT INTO legacy_poll_outbox (channel, data) VALUES ('a', '1')"))


def give_up(database, kind, work):
    with pytest.raises(StorageUnavailable):
        getattr(database, kind)(work)


@two_writers
@pytest.mark.parametrize("kind, work, most", [("read", look, READS), ("write", add, 2)])
def test_attempts_while_an_old_one_waits_open_no_more_sessions_than_there_are_places(
    make, locked, sessions, threads, kind, work, most
):
    database = make(wait_seconds=600)
    with locked():
        for _ in range(most + 3):
            give_up(database, kind, work)
        assert sessions() == most
    until(lambda: threads.under_way == 0, what="all of them have ended")
    assert getattr(database, kind)(look) == 0
    assert sessions() == most


@two_writers
def test_nothing_is_committed_after_its_caller_has_given_up(make, locked, threads):
    database = make(wait_seconds=600)
    with locked():
        give_up(database, "write", add)
    until(lambda: threads.under_way == 0, what="the call has ended")
    assert database.scalar("count(*) FROM legacy_poll_outbox") == 0


@two_writers
@pytest.mark.parametrize("kind, work", [("read", look), ("write", add)])
def test_a_server_ends_by_itself_what_it_was_given_up_for(make, locked, threads, kind, work):
    database = make(limit_seconds=1)
    with locked():
        give_up(database, kind, work)
        until(lambda: threads.under_way == 0, what="the server has ended it")
    assert database.scalar("count(*) FROM legacy_poll_outbox") == 0


@two_writers
def test_a_server_that_never_answers_on_old_connections_is_reached_by_new_ones(
    make, locked, sessions, threads, monkeypatch
):
    """As a proxy does that keeps connections to a server that has gone."""
    monkeypatch.setattr(databases, "_FIRST_PATIENCE_SECONDS", SECONDS * 2)
    database = make(wait_seconds=600)
    with locked():
        for _ in range(READS):
            give_up(database, "read", look)
        assert threads.under_way == READS
        # All places are taken by what will never end. The oldest is cut off, so another one gets its place.
        ended = []
        until(
            lambda: give_up(database, "read", look) or ended.append(1) or not threads.left[0].is_alive(),
            what="the oldest was cut off",
        )
        # The next one is not, for twice as long: it may be the server that hangs, and then its session stays.
        assert threads.left[1].is_alive()
    until(lambda: threads.under_way == 0, what="all of them have ended")
    assert database.read(look) == 0


@on_postgresql
@drivers
def test_behind_a_pooler_a_limit_ends_with_its_transaction(
    database_url, database_server, tables, driver, locked, threads
):
    bouncer = PgBouncer(database_server)
    bouncer.start()
    engine = create_engine(bouncer.url(database_url, driver), future=True)
    database = Database(engine, Settings(), offload=threads, limit_seconds=1)
    try:
        assert database.read(look) == database.write(look) == 0
        with locked():
            for kind, work in [("read", look), ("write", add)]:
                give_up(database, kind, work)
            until(lambda: threads.under_way == 0, what="the server has ended them")
        assert database.scalar("count(*) FROM legacy_poll_outbox") == 0
        # The same sessions of the server, for somebody else.
        with engine.connect() as connection:
            assert connection.execute(text("SHOW statement_timeout")).scalar() == "0"
    finally:
        database.close()
        engine.dispose()
        bouncer.destroy()
