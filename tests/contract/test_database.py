"""Connections of our own: the user's pool is not touched, and a driver's exceptions do not leave the room."""

from __future__ import annotations

import os
import threading

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy import event as listening
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import NullPool, QueuePool

from legacy_poll import schema
from legacy_poll.config import Settings
from legacy_poll.database import Database
from legacy_poll.dialects import MySQL, PostgreSQL, SQLite
from legacy_poll.dialects.base import MOVE_SECONDS
from legacy_poll.errors import ConfigError, SchemaMissing, StorageUnavailable
from legacy_poll.eventlog import append
from legacy_poll.schema import upgrade
from tests.contract.store import Store, on_mysqls, one_writer, outwait, run, two_writers
from tests.servers import MariaDBServer
from tests.waiting import until

pytestmark = pytest.mark.own_database


def everything(store):
    """One of each thing that the storage layer does."""
    moved = store.move()
    cursor = store.read().cursor
    store.read(cursor)
    store.log.trim(store.log.glance().now)
    store.sequencer.lock_holder()
    return moved


def test_the_users_pool_is_never_used(make_store, database_url, leave):
    # SQLAlchemy 1.4 has no pool for SQLite's files, unless one asks for it.
    engine = create_engine(database_url, future=True, poolclass=QueuePool)
    store = make_store(engine)
    leave(store, 1)
    taken = []
    listening.listen(engine, "engine_connect", lambda *rest: taken.append(rest))
    everything(store)
    assert store.database.read(lambda connection: engine.pool.checkedout()) == 0
    assert store.database.write(lambda connection: engine.pool.checkedout()) == 0
    assert taken == []
    assert store.data() == [1]
    engine.dispose()


def test_a_users_pool_of_one_that_is_exhausted_stops_nothing(make_store, database_url, leave):
    options = {"poolclass": QueuePool, "pool_size": 1, "max_overflow": 0, "pool_timeout": 0.01}
    small = create_engine(database_url, future=True, **options)
    store = make_store(small)
    leave(store, 1)
    with small.connect():
        with pytest.raises(PoolTimeout):
            small.connect()
        everything(store)
        upgrade(small)
        assert store.data() == [1]
        assert small.pool.checkedout() == 1
    small.dispose()


def test_our_connections_are_opened_the_way_that_the_users_are(make_store, engine, tables):
    seen = []
    listening.listen(engine.pool, "connect", lambda *rest: seen.append(rest))
    store = make_store()
    store.log.glance()
    assert seen


@two_writers
def test_our_pool_keeps_few_connections_and_gives_them_back(store, database_server, engine):
    for _ in range(20):
        everything(store)
    reads, writes = store.database._engine(False).pool, store.database._engine(True).pool
    assert (reads.checkedout(), writes.checkedout()) == (0, 0)
    assert (reads.checkedin(), writes.checkedin()) == (1, 1)


@two_writers
def test_closing_leaves_no_connection_of_ours_on_the_server(make_store, engine):
    sql = {
        "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()",
        "mysql": "SELECT count(*) FROM information_schema.processlist WHERE db = database()",
    }[engine.dialect.name]
    store = make_store()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        store.move()
        assert connection.execute(text(sql)).scalar() > 1
        store.close()
        until(lambda: connection.execute(text(sql)).scalar() == 1, 10, "our connections are gone")
    store.move()
    assert store.data() == []


@two_writers
def test_a_read_sees_what_was_committed_before_each_of_its_statements(store, make_store):
    other = make_store()

    def twice(connection):
        query = text("SELECT count(*) FROM legacy_poll_event")
        before = connection.execute(query).scalar()
        other.publish(1)
        other.drain()
        return before, connection.execute(query).scalar()

    assert store.database.read(twice) == (0, 1)


def test_a_write_that_raises_is_rolled_back_and_what_it_raised_is_seen(store):
    class Own(Exception):
        pass

    def fail(connection):
        connection.execute(text("UPDATE legacy_poll_log SET head = 7"))
        raise Own

    with pytest.raises(Own):
        store.database.write(fail)
    assert store.log.bounds().head == 0


def test_an_isolation_level_of_the_users_engine_is_not_ours(make_store, database_url, is_sqlite, tables):
    strict = create_engine(database_url, future=True, isolation_level="SERIALIZABLE")
    store = make_store(strict)
    other = make_store()
    store.log.glance()
    other.publish(1)
    store.drain()
    assert store.data() == [1]
    strict.dispose()


@two_writers
def test_a_server_that_stops_is_told_as_unavailable_and_works_again_with_the_same_store(
    store, engine, database_server
):
    store.publish(1)
    store.drain()
    cursor = store.read().cursor
    glance = store.log.glance()
    database_server.stop()
    calls = [
        store.log.glance,
        store.log.bounds,
        lambda: store.read(cursor),
        lambda: store.sequencer.move(glance),
        lambda: store.log.trim(glance.now),
        lambda: upgrade(engine),
    ]
    for call in calls:
        with pytest.raises(StorageUnavailable) as caught:
            call()
        assert not isinstance(caught.value, SchemaMissing)
    database_server.start()

    def works():
        # The pools find out about their dead connections one call at a time.
        try:
            return store.log.glance()
        except StorageUnavailable:
            return None

    assert until(works, 20, "the store works again").head == 1
    engine.dispose()
    store.publish(2)
    until(lambda: moves(store), 20, "the sequencer works again")
    assert store.data() == [1, 2]
    assert store.data(cursor=cursor) == [2]


def moves(store):
    try:
        return bool(store.move().events)
    except StorageUnavailable:
        return False


@two_writers
def test_a_server_that_is_killed_loses_nothing_that_was_committed(store, engine, database_server):
    store.publish(1)
    store.drain()
    store.publish(2)
    database_server.kill()
    with pytest.raises(StorageUnavailable):
        store.log.glance()
    database_server.start()
    engine.dispose()
    until(lambda: moves(store), 20, "the sequencer works again")
    assert store.data() == [1, 2]


@two_writers
def test_a_connection_that_the_server_ended_costs_a_read_nothing_and_a_write_one_failure_at_most(
    store, engine
):
    sql = {
        "postgresql": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
        "mysql": "SELECT id FROM information_schema.processlist WHERE db = database() AND id <> connection_id()",
    }[engine.dialect.name]
    store.publish(1)
    store.drain()
    with engine.connect() as connection:
        for row in connection.execute(text(sql)).all():
            if engine.dialect.name == "mysql":
                connection.exec_driver_sql("KILL %d" % row[0])
    store.publish(2)

    def again(call):
        try:
            return call()
        except StorageUnavailable:
            return call()

    # An application's poll must not pay for an outage that is over.
    assert store.log.glance().waiting
    again(store.move)
    assert store.data() == [1, 2]


def test_an_error_says_what_the_driver_said_in_one_line(store):
    with pytest.raises(StorageUnavailable, match="no_such_column") as caught:
        store.database.read(
            lambda connection: connection.execute(text("SELECT no_such_column FROM legacy_poll_log"))
        )
    assert "\n" not in str(caught.value)
    assert "[SQL:" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_uses_connections_of_its_own(store, is_sqlite):
    numbers = {"sqlite": "0", "postgresql": "pg_backend_pid()", "mysql": "connection_id()"}

    def session(connection):
        return connection.execute(text("SELECT " + numbers[store.engine.dialect.name])).scalar()

    store.publish(1)
    store.drain()
    ours = [store.database.read(session), store.database.write(session)]
    child = os.fork()
    if not child:
        # Nothing of pytest may run in the child, whatever happens.
        code = 1
        try:
            theirs = [store.database.read(session), store.database.write(session)]
            store.publish(2)
            store.drain()
            code = 0 if store.data() == [1, 2] and (is_sqlite or not set(ours) & set(theirs)) else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.WEXITSTATUS(status) == 0
    assert [store.database.read(session), store.database.write(session)] == ours
    assert store.data() == [1, 2]


def test_threads_may_share_a_store(store):
    store.publish(*range(20))
    store.drain()
    found, failures = [], []

    def read():
        try:
            for _ in range(10):
                found.append(store.data())
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert found == [list(range(20))] * 60


IN_MEMORY = [
    "sqlite://",
    "sqlite:///:memory:",
    "sqlite:///file::memory:?cache=shared&uri=true",
    "sqlite:///file:shop?mode=memory&cache=shared&uri=true",
]


@pytest.mark.parametrize("url", IN_MEMORY)
def test_an_sqlite_database_in_memory_is_refused_with_what_to_use(url):
    engine = create_engine(url, future=True, poolclass=NullPool)
    with pytest.raises(ConfigError, match="in memory .*; use a file, such as sqlite:////"):
        Database(engine, Settings())


def test_an_sqlite_file_that_cannot_be_opened_is_told_as_unavailable(tmp_path):
    store = Store(create_engine("sqlite:///%s" % (tmp_path / "no" / "such" / "folder.db"), future=True))
    for call in (store.log.glance, lambda: upgrade(store.engine)):
        with pytest.raises(StorageUnavailable, match="unable to open database file"):
            call()


def test_a_file_that_is_no_database_is_told_as_unavailable(tmp_path):
    (tmp_path / "text.db").write_text("this is not a database, and it is long enough to be looked at" * 10)
    store = Store(create_engine("sqlite:///%s" % (tmp_path / "text.db"), future=True))
    with pytest.raises(StorageUnavailable, match="file is not a database"):
        store.log.glance()


@one_writer
def test_on_sqlite_a_writer_does_not_keep_readers_waiting(store, engine):
    store.publish(1)
    with engine.connect() as writer:
        append(writer, "orders", 2)
        # Readers would wait without WAL, and fail after two seconds.
        assert store.data() == [1]
        assert store.log.glance().head == 1
        writer.rollback()
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


@two_writers
def test_a_user_without_rights_is_told_what_to_grant(store, engine, database_server, make_store):
    url = engine.url
    if engine.dialect.name == "postgresql":
        run(engine, "DO $$ BEGIN CREATE ROLE nobody LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    else:
        run(engine, "CREATE USER IF NOT EXISTS nobody@'127.0.0.1'")
        run(engine, "GRANT SELECT ON %s.legacy_poll_log TO nobody@'127.0.0.1'" % url.database)
    poor = create_engine(url.set(username="nobody"), future=True)
    with pytest.raises(
        StorageUnavailable, match="grant SELECT, INSERT, UPDATE, DELETE on the legacy_poll_ tables"
    ):
        make_store(poor).log.glance()
    poor.dispose()


@two_writers
def test_a_user_with_the_rights_on_our_tables_alone_can_do_everything(store, engine, make_store, leave):
    user = "only_ours"
    names = ["outbox", "event", "log", "set_aside", "setting", "version"]
    if engine.dialect.name == "mysql":
        names.append("apart")  # the others never ask for it
    if engine.dialect.name == "postgresql":
        run(
            engine,
            "DO $$ BEGIN CREATE ROLE %s LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$" % user,
        )
        grant, grantee = "GRANT SELECT, INSERT, UPDATE, DELETE ON legacy_poll_%s TO %s", user
    else:
        grantee = "%s@'127.0.0.1'" % user
        run(engine, "CREATE USER IF NOT EXISTS %s" % grantee)
        grant = "GRANT SELECT, INSERT, UPDATE, DELETE ON " + engine.url.database + ".legacy_poll_%s TO %s"
    for name in names:
        run(engine, grant % (name, grantee))
    theirs = create_engine(engine.url.set(username=user), future=True)
    other = make_store(theirs)
    other.insert({"channel": "no spaces", "data": "0"})
    other.publish(1, 2)
    assert len(other.drain()) == 1
    assert (other.data(), len(other.set_aside())) == ([1, 2], 1)
    other.log.trim("2999-01-01T00:00:00.000Z")
    assert other.data() == []
    theirs.dispose()


@on_mysqls
def test_a_mover_that_idles_keeps_its_connection(store, engine):
    """Only within a move does it end after two seconds; a new one would make the next event late, with TLS the more."""
    used = []

    def note(connection):
        used.append(connection.execute(text("SELECT CONNECTION_ID()")).scalar())

    store.publish(1)
    store.drain()
    store.database.write(note)
    outwait(engine, MOVE_SECONDS)
    store.publish(2)
    store.drain()
    store.database.write(note)
    assert used[0] == used[1]
    assert store.data() == [1, 2]


# What drivers raise.


class Strange(Exception):
    """Of a package that we have never heard of."""


@pytest.mark.parametrize(
    "error", [RuntimeError, TypeError, KeyError, Strange], ids=lambda kind: kind.__name__
)
@pytest.mark.parametrize("kind", ["read", "write"])
def test_a_way_to_connect_that_raises_is_a_storage_error(database_url, error, kind):
    def connect():
        raise error("no luck")

    engine = create_engine(database_url, creator=connect, future=True)
    database = Database(engine, Settings())
    with pytest.raises(StorageUnavailable, match="^%s: .*no luck" % error.__name__):
        getattr(database, kind)(lambda connection: None)


@pytest.mark.parametrize(
    "kind, place", [("read", "do_execute"), ("write", "do_execute"), ("write", "do_commit")]
)
def test_a_driver_that_raises_is_a_storage_error_and_its_connection_is_not_used_again(
    store, engine, monkeypatch, kind, place
):
    """As PyMySQL does when an answer ends early: the rest of it would be taken for the next answer."""
    used = []

    def look(connection):
        used.append(connection.connection.dbapi_connection)
        return connection.execute(text("SELECT 1")).scalar()

    def breaks(*arguments, **options):
        raise Strange("in the middle of an answer")

    run_it = getattr(store.database, kind)
    assert run_it(look) == 1
    with monkeypatch.context() as patch:
        patch.setattr(engine.dialect, place, breaks)
        with pytest.raises(StorageUnavailable, match="^Strange: in the middle of an answer"):
            run_it(look)
    assert run_it(look) == 1
    assert used[-1] is not used[0]


@two_writers
@pytest.mark.parametrize("kind", ["read", "write"])
def test_a_driver_that_raises_while_it_is_set_up_is_a_storage_error(store, engine, monkeypatch, kind):
    def breaks(*arguments, **options):
        raise Strange("no such setting")

    monkeypatch.setattr(engine.dialect, "set_isolation_level", breaks)
    with pytest.raises(StorageUnavailable, match="^Strange: no such setting"):
        getattr(store.database, kind)(lambda connection: None)


@pytest.mark.parametrize("kind", ["read", "write"])
def test_a_fault_of_our_own_is_not_taken_for_the_databases(store, kind):
    def wrong(connection):
        connection.execute(text("SELECT 1"))
        return {}["nothing"]

    with pytest.raises(KeyError):
        getattr(store.database, kind)(wrong)
    assert (
        getattr(store.database, kind)(lambda connection: connection.execute(text("SELECT 1")).scalar()) == 1
    )


@two_writers
def test_a_transaction_that_gives_up_by_itself_keeps_its_connection(store, engine):
    """As a move does that somebody else was faster with; a new connection for each would cost more than the move."""

    class Busy(Exception):
        pass

    used = []

    def work(connection):
        used.append(connection.connection.dbapi_connection)
        connection.execute(text("SELECT 1"))
        raise Busy

    for _ in range(3):
        with pytest.raises(Busy):
            store.database.write(work)
    assert used[0] is used[1] is used[2]


# Versions.


@pytest.fixture(params=["5.5.68-MariaDB", "10.1.48-MariaDB-log"])
def old_mariadb(request):
    """A server that says it is older than it is, which this one can be told to."""

    class Old(MariaDBServer):
        def _serve_command(self):
            return [*super()._serve_command(), "--version=" + request.param]

    server = Old()
    yield server
    server.destroy()


def test_a_server_from_before_the_oldest_that_we_support_is_refused(old_mariadb):
    engine = create_engine(old_mariadb.create_database(), future=True, poolclass=NullPool)
    said = r"the database is MariaDB (5\.5|10\.1): MariaDB 10\.2 or later is needed"
    with pytest.raises(ConfigError, match=said):
        upgrade(engine)
    with pytest.raises(ConfigError, match=said):
        schema.check(Store(engine).database)


@pytest.mark.parametrize(
    "dialect, said, found",
    [
        ("postgresql", "100023", "PostgreSQL 10: PostgreSQL 11 or later"),
        ("postgresql", "90624", "PostgreSQL 9: PostgreSQL 11 or later"),
        ("postgresql", "110000", None),
        ("postgresql", "180006", None),
        ("mysql", "5.6.51-log", "MySQL 5.6: MySQL 5.7 or later"),
        ("mysql", "5.7.44", None),
        ("mysql", "8.0.11", None),
        ("mysql", "9.7.4-2", None),
        ("mysql", "10.2.2-MariaDB", None),
        ("mysql", "11.8.9-MariaDB-ubu2404", None),
        ("sqlite", "3.30.1", "SQLite 3.30: SQLite 3.31 or later"),
        ("sqlite", "3.31.0", None),
    ],
)
def test_a_version_is_judged_by_what_the_server_says_of_itself(dialect, said, found):
    engine = create_engine("sqlite:///x.db", future=True)
    judge = {"postgresql": PostgreSQL, "mysql": MySQL, "sqlite": SQLite}[dialect](engine)
    judge.scalar = lambda connection, sql: said
    if found is None:
        assert judge.too_old(None) is None
    else:
        assert judge.too_old(None) == "the database is %s is needed" % found
