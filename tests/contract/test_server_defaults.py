"""The promises hold whatever the server's, the database's or the engine's defaults are.

Isolation and autocommit, set for everybody by somebody else; collations and sequences that an administrator changed.
Nothing here is set by us: what is under test finds it so, on connections made afterwards.
"""

from __future__ import annotations

import re

import pytest
import sqlalchemy
from sqlalchemy import create_engine, select, text

from legacy_poll import schema, upkeep
from legacy_poll.errors import BacklogTooLarge, SchemaError
from legacy_poll.storage import erasing
from legacy_poll.tables import log
from tests.contract.store import Store, drivers, on_mysqls, on_postgresql, run
from tests.servers import database_name
from tests.waiting import until


@pytest.fixture
def make_engine(database_url):
    """Makes engines on the test's database, as an application might that has its own idea of transactions."""
    made = []

    def make_engine(driver=None, **options):
        url = sqlalchemy.engine.make_url(database_url)
        made.append(create_engine(url.set(drivername=driver) if driver else url, future=True, **options))
        return made[-1]

    yield make_engine
    for engine in made:
        engine.dispose()


# Isolation, on MariaDB and MySQL.

LEVELS = ["global", "READ UNCOMMITTED", "REPEATABLE READ", "SERIALIZABLE", "AUTOCOMMIT"]


@pytest.fixture(params=LEVELS)
def odd_store(request, make_store, make_engine, database_server, set_global):
    """A store whose connections begin in another isolation than ours, by the server's default or the engine's."""
    if request.param == "global":
        # MariaDB 11.1 and later know both names.
        name = "transaction_isolation" if database_server.name == "MySQL" else "tx_isolation"
        set_global(name, "READ-UNCOMMITTED")
        return make_store(make_engine())
    return make_store(make_engine(isolation_level=request.param))


@on_mysqls
def test_a_row_that_is_not_committed_is_not_moved_and_stops_nobody(odd_store, store, begin):
    first, second = begin(), begin()
    insert = text("INSERT INTO legacy_poll_outbox (channel, data) VALUES ('orders', :data)")
    first.execute(insert, {"data": "1"})
    store.publish(2)
    second.execute(insert, {"data": "3"})
    store.publish(4)
    moved = odd_store.move()
    assert ([each.data for each in moved.events], moved.busy) == (["2", "4"], False)
    assert odd_store.waiting() == 0
    first.rollback()
    odd_store.drain()
    assert odd_store.data() == [2, 4]
    second.commit()
    odd_store.drain()
    assert odd_store.data() == [2, 4, 3]
    odd_store.check()


@on_mysqls
def test_a_head_that_is_not_committed_is_not_seen(odd_store, store, begin):
    store.publish(1)
    store.drain()
    other = begin()
    other.execute(text("UPDATE legacy_poll_log SET head = head + 100"))
    assert (odd_store.log.glance().head, odd_store.log.bounds().head) == (1, 1)
    assert odd_store.data() == [1]
    store.publish(2)
    # Somebody else has the log, and nobody waits for it.
    assert odd_store.move().busy
    other.rollback()
    odd_store.drain()
    assert (odd_store.log.glance().head, odd_store.data()) == (2, [1, 2])


@on_mysqls
@pytest.mark.parametrize("kind", ["read", "write"])
def test_each_statement_sees_what_is_committed_when_it_starts(odd_store, store, kind):
    def look_twice(connection):
        before = connection.execute(select(log.c.head)).scalar()
        store.publish(1)
        store.drain()
        return before, connection.execute(select(log.c.head)).scalar()

    assert getattr(odd_store.database, kind)(look_twice) == (0, 1)


# Autocommit, on MariaDB and MySQL.

OPEN = (
    "SELECT count(*) FROM information_schema.innodb_trx t JOIN information_schema.processlist p"
    " ON p.id = t.trx_mysql_thread_id WHERE p.db = '{}'"
)


@pytest.fixture(
    params=[{}, {"isolation_level": "AUTOCOMMIT"}, {"connect_args": {"autocommit": None}}],
    ids=["as it is", "engine", "driver"],
)
def manual_store(request, make_store, make_engine, set_global):
    """A store on a server where a transaction begins with the first statement and stays; the driver may not know."""
    set_global("autocommit", 0)
    return make_store(make_engine(**request.param), retention_events=2)


@on_mysqls
def test_without_autocommit_on_the_server_a_store_sees_what_others_commit_later(manual_store, store):
    for number in range(3):
        assert (manual_store.log.glance().head, manual_store.data()) == (number, list(range(number)))
        store.publish(number)
        assert manual_store.log.glance().waiting
        store.drain()
    assert (manual_store.log.bounds().head, manual_store.data()) == (3, [0, 1, 2])


@on_mysqls
def test_without_autocommit_on_the_server_no_statement_of_a_read_leaves_a_transaction_open(
    manual_store, store, database_server, database_url
):
    question = OPEN.format(database_name(database_url))

    def none_is_open():
        # Again and again: InnoDB goes on showing what it showed until nobody has asked for 0.1 s.
        until(lambda: database_server.execute(question).strip() == "0", 10, "no transaction is open")

    def look_twice(connection):
        before = connection.execute(select(log.c.head)).scalar()
        store.publish(1)
        store.drain()
        none_is_open()
        return before, connection.execute(select(log.c.head)).scalar()

    assert manual_store.database.read(look_twice) == (0, 1)
    for read in (manual_store.log.glance, manual_store.log.bounds, manual_store.data, manual_store.move):
        read()
        none_is_open()


@on_mysqls
def test_without_autocommit_on_the_server_events_are_published_moved_and_trimmed(
    manual_store, store, make_store, make_engine
):
    publisher = make_store(make_engine())
    publisher.insert({"channel": "no spaces", "data": "0"})
    publisher.publish(1, 2, 3, 4)
    manual_store.drain()
    assert (store.data(), store.waiting(), len(store.set_aside())) == ([1, 2, 3, 4], 0, 1)
    publisher.publish(5)
    manual_store.drain()
    manual_store.log.trim(manual_store.log.glance().now)
    assert (store.data(), publisher.data(), manual_store.data()) == ([4, 5], [4, 5], [4, 5])


# Isolation, on PostgreSQL.


@pytest.fixture(params=["serializable", "repeatable read"])
def strict_engine(request, database_url, postgres, make_engine, driver):
    """An application's engine on a database whose transactions are of that kind, unless they say otherwise."""
    name = database_name(database_url)
    alter = "ALTER DATABASE {} ".format(name)
    postgres.execute(alter + "SET default_transaction_isolation = '{}'".format(request.param))
    postgres.execute("CREATE TABLE account (id int PRIMARY KEY, balance int)", database=name)
    postgres.execute("INSERT INTO account SELECT n, 0 FROM generate_series(1, 20) AS n", database=name)
    try:
        yield make_engine(driver)
    finally:
        postgres.execute(alter + "RESET default_transaction_isolation")
        # Whatever still has it open would make the DROP wait.
        sessions = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}'"
        postgres.execute(sessions.format(name))
        postgres.execute("DROP TABLE account", database=name)


def look(store):
    """Everything that a worker asks while nothing happens."""
    glance = store.log.glance()
    store.sequencer.move(glance)
    store.log.bounds()
    store.read()
    store.read(glance.cursor, ["orders"])
    store.log.cursor_since(60)
    store.waiting()
    return glance


def sessions(postgres, engine, state):
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND state = '{}'"
    return int(postgres.execute(query.format(database_name(str(engine.url)), state)))


PUBLISH = text("INSERT INTO legacy_poll_outbox (channel, data) VALUES ('orders', :data)")


@on_postgresql
@drivers
def test_looks_leave_no_predicate_lock_while_an_application_publishes(strict_engine, make_store, postgres):
    store = make_store(strict_engine)
    with strict_engine.connect() as connection:
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"))
        own = connection.execute(text("SELECT pg_backend_pid() FROM account WHERE id = 1")).scalar()
        connection.execute(PUBLISH, {"data": "1"})
        look(store)
        holders = "SELECT DISTINCT pid FROM pg_locks WHERE mode = 'SIReadLock'"
        assert postgres.execute(holders).split() == [str(own)]
        assert sessions(postgres, strict_engine, "idle in transaction") == 1
        connection.commit()
    store.drain()
    assert store.data() == [1]
    assert sessions(postgres, strict_engine, "idle in transaction") == 0


@on_postgresql
@drivers
def test_looks_make_no_application_transaction_fail(strict_engine, make_store, postgres):
    store, other = make_store(strict_engine), make_store(strict_engine)
    serializable = strict_engine.execution_options(isolation_level="SERIALIZABLE")
    for number in range(10):
        with serializable.connect() as reader, serializable.connect() as writer:
            account = {"id": number + 1}
            reader.execute(text("SELECT balance FROM account WHERE id = :id"), account).scalar()
            look(other)
            writer.execute(text("SELECT balance FROM account WHERE id = :id + 10"), account).scalar()
            writer.execute(text("UPDATE account SET balance = balance + 1 WHERE id = :id"), account)
            writer.execute(PUBLISH, {"data": str(2 * number)})
            look(store)
            writer.commit()
            # Sees the one that ended first, and not the one that it comes before.
            look(store)
            look(other)
            reader.execute(PUBLISH, {"data": str(2 * number + 1)})
            look(store)
            reader.commit()
        look(other)
    store.drain()
    assert store.data() == list(range(20))
    assert sessions(postgres, strict_engine, "idle in transaction") == 0
    assert sessions(postgres, strict_engine, "idle in transaction (aborted)") == 0
    store.check()


@on_postgresql
@drivers
def test_looks_go_on_beside_a_prepared_transaction(strict_engine, make_store, store, postgres):
    strict = make_store(strict_engine)
    serializable = strict_engine.execution_options(isolation_level="SERIALIZABLE")
    name = database_name(str(strict_engine.url))
    with serializable.connect() as prepared, serializable.connect() as writer:
        prepared.execute(text("SELECT balance FROM account WHERE id = 1")).scalar()
        prepared.execute(PUBLISH, {"data": "1"})
        writer.execute(text("UPDATE account SET balance = 1 WHERE id = 1"))
        writer.execute(PUBLISH, {"data": "2"})
        prepared.execute(text("PREPARE TRANSACTION 'theirs'"))
        prepared.invalidate()
        try:
            writer.commit()
            for _ in range(3):
                look(strict)
            # Who looked in such a transaction would be the one that fails: what is prepared cannot any more.
            assert strict.data() == [2]
        except BaseException:
            postgres.execute("ROLLBACK PREPARED 'theirs'", database=name)
            raise
    postgres.execute("COMMIT PREPARED 'theirs'", database=name)
    strict.drain()
    assert strict.data() == [2, 1]
    assert sessions(postgres, strict_engine, "idle in transaction") == 0


# Collations, on MariaDB and MySQL.


def command_in(message):
    """The ALTER command that *message* ends with."""
    return re.search(r"ALTER (?:TABLE|SEQUENCE) [^;]*$", message).group()


@pytest.fixture
def convert(engine):
    """Has a table compare text as an administrator likes it."""

    def convert(table, collation="utf8mb4_general_ci"):
        run(engine, "ALTER TABLE %s CONVERT TO CHARACTER SET utf8mb4 COLLATE %s" % (table, collation))

    return convert


@pytest.mark.own_database
@on_mysqls
@pytest.mark.parametrize("table", ["legacy_poll_event", "legacy_poll_outbox", "legacy_poll_log"])
def test_a_table_that_compares_text_otherwise_is_named_with_the_command_that_mends_it(
    store, engine, convert, table
):
    assert schema.check(store.database) is None
    convert(table)
    warning = schema.check(store.database)
    assert table in warning
    assert "utf8mb4_general_ci" in warning
    assert command_in(warning).startswith("ALTER TABLE %s " % table)
    assert schema.faults(store.database) == [warning]
    run(engine, command_in(warning))
    assert schema.check(store.database) is None
    assert schema.faults(store.database) == []


@pytest.mark.own_database
@on_mysqls
@pytest.mark.parametrize("collation", ["utf8mb4_general_ci", "utf8mb4_unicode_ci"])
def test_a_reader_gets_no_neighbour_that_is_the_same_to_a_collation(store, convert, collation):
    convert("legacy_poll_event", collation)
    convert("legacy_poll_outbox", collation)
    names = ["Orders", "orders", "ORDERS", "orderS", "orders."]
    for number in range(50):
        store.publish(number, channel=names[number % 5])
    store.drain()
    for number, name in enumerate(names):
        wanted = list(range(number, 50, 5))
        assert store.data(channels=[name]) == wanted
        # A page at a time too, where the neighbours take up most of what the database finds.
        paged, cursor, more = [], None, True
        while more:
            batch = store.read(cursor, [name], limit=3)
            paged += [int(each.data) for each in batch.events]
            cursor, more = batch.cursor, batch.more
        assert paged == wanted
    assert store.data(channels=["oRders"]) == []


@pytest.mark.own_database
@on_mysqls
def test_an_id_is_not_taken_for_one_that_is_the_same_to_a_collation(store, convert):
    convert("legacy_poll_event")
    convert("legacy_poll_outbox")
    store.publish(1, id="abc")
    store.drain()
    store.publish(2, id="ABC")
    store.publish(3, id="Abc")
    store.publish(4, id="abc")
    store.drain()
    store.publish(5, id="ABC")
    store.drain()
    assert [(each.id, each.data) for each in store.events()] == [("abc", "1"), ("ABC", "2"), ("Abc", "3")]


# Sequences, on PostgreSQL.


@pytest.mark.own_database
@on_postgresql
@pytest.mark.parametrize("change", ["CACHE 50", "INCREMENT -1", "INCREMENT -2 MINVALUE -1000 CACHE 7"])
def test_a_sequence_whose_ids_do_not_rise_is_named_with_the_command_that_mends_it(store, engine, change):
    store.publish(1, 2)
    store.drain()
    assert schema.check(store.database) is None
    run(engine, "ALTER SEQUENCE legacy_poll_outbox_id_seq " + change)
    with pytest.raises(SchemaError, match="legacy_poll_outbox_id_seq") as raised:
        schema.check(store.database)
    assert schema.faults(store.database) == [str(raised.value)]
    # What only deletes hangs on no order.
    assert schema.check_log(store.database) is None
    assert command_in(str(raised.value)).split()[2].endswith("legacy_poll_outbox_id_seq")
    run(engine, command_in(str(raised.value)))
    assert schema.check(store.database) is None
    store.publish(3, 4, 5)
    store.drain()
    assert store.data() == [1, 2, 3, 4, 5]


@pytest.mark.own_database
@on_postgresql
def test_a_sequence_that_was_renamed_is_named_as_it_is_called(store, engine):
    run(engine, 'ALTER SEQUENCE legacy_poll_outbox_id_seq RENAME TO "Their ids"')
    run(engine, 'ALTER SEQUENCE "Their ids" CACHE 50')
    with pytest.raises(SchemaError, match="Their ids") as raised:
        schema.check(store.database)
    run(engine, command_in(str(raised.value)))
    assert schema.check(store.database) is None
    store.publish(1, 2)
    store.drain()
    assert store.data() == [1, 2]


@pytest.mark.own_database
@pytest.mark.parametrize("database_url", ["mariadb", "mysql"], indirect=True)
def test_a_backlog_is_that_of_the_channels_asked_for_whatever_the_collation(store, engine):
    for number in range(50):
        name = ("Orders", "orders", "ORDERS", "orderS", "other")[number % 5]
        store.insert({"channel": name, "data": str(number)})
    store.drain()
    run(
        engine,
        "ALTER TABLE legacy_poll_event CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci",
    )
    start = store.log.cursor_at(0)
    assert store.read(start, ["orders"], limit=3, max_backlog=10).more
    with pytest.raises(BacklogTooLarge):
        store.read(start, ["orders"], limit=3, max_backlog=9)


# Whatever else an administrator has set, on MariaDB and MySQL.

COMMON = {
    "updates by key only": {"sql_safe_updates": 1},
    "few rows": {"sql_select_limit": 1},
    "small joins": {"sql_big_selects": 0, "max_join_size": 1},
    "transactions in a chain": {"completion_type": "CHAIN"},
    "an old row format": {"innodb_default_row_format": "compact"},
    "the oldest row format": {"innodb_default_row_format": "redundant"},
    "another engine": {"default_storage_engine": "MyISAM"},
    "another language": {"collation_server": "latin1_swedish_ci"},
    "no strict mode": {"sql_mode": ""},
    "strict modes": {"sql_mode": "TRADITIONAL,ANSI,NO_ZERO_DATE,NO_ZERO_IN_DATE,ONLY_FULL_GROUP_BY"},
    "other quotes": {"sql_mode": "NO_BACKSLASH_ESCAPES,PIPES_AS_CONCAT,PAD_CHAR_TO_FULL_LENGTH,IGNORE_SPACE"},
    "times that change by themselves": {"explicit_defaults_for_timestamp": 0},
    "another time zone": {"time_zone": "+13:00"},
    "columns without a meaning": {"innodb_strict_mode": 0},
    "null columns": {"sql_auto_is_null": 1},
}
MARIADB = {
    "Oracle's way": {"sql_mode": "ORACLE"},
    "empty is null": {"sql_mode": "EMPTY_STRING_IS_NULL"},
    "no copies of tables": {"alter_algorithm": "INSTANT"},
}
MYSQL = {
    "a log of transactions": {"enforce_gtid_consistency": "ON", "default_storage_engine": "MyISAM"},
    "a key for each table": {"sql_require_primary_key": 1},
    "keys that nobody sees": {"sql_generate_invisible_primary_key": 1},
    "another collation": {"default_collation_for_utf8mb4": "utf8mb4_general_ci"},
}
SETTINGS = [
    pytest.param(server, settings, id="{} on {}".format(name, server))
    for server, own in (("mariadb", MARIADB), ("mysql", MYSQL))
    for name, settings in {**COMMON, **own}.items()
]


@pytest.mark.own_database
@pytest.mark.parametrize("database_url, settings", SETTINGS, indirect=["database_url"])
def test_a_store_works_whatever_its_server_is_set_to(database_url, database_server, settings, set_global):
    for name, value in settings.items():
        set_global(name, value)
    # As in a database that was made then: the default of its tables.
    name = database_name(database_url)
    collation = database_server.execute("SELECT @@GLOBAL.collation_server").strip()
    database_server.execute("ALTER DATABASE {} COLLATE {}".format(name, collation))
    engine = create_engine(database_url, future=True)
    assert schema.upgrade(engine) is None
    tables = database_server.execute(
        "SET SESSION sql_big_selects = 1;"
        " SELECT DISTINCT lower(engine), lower(row_format), table_collation FROM information_schema.tables"
        " WHERE table_schema = '{}'".format(name)
    )
    assert tables.split() == ["innodb", "dynamic", "utf8mb4_bin"]
    store = Store(engine, retention_events=5)
    assert schema.check(store.database) is None
    ids = store.publish(*range(1, 9), channel="orders")
    store.insert(
        {"channel": "no spaces", "data": "0"}, {"channel": "orders", "data": '"\\u00e4 \\\\ \' \\""'}
    )
    store.publish(1, id=ids[0])
    store.drain()
    assert store.data() == [*range(1, 9), "\u00e4 \\ ' \""]
    assert len(store.set_aside()) == 1
    batch = store.read(limit=2)
    assert [each.data for each in store.read(batch.cursor, ["orders"], limit=2).events] == ["3", "4"]
    assert upkeep.retry(store.database, None) == 1
    store.drain()
    assert len(store.set_aside()) == 1
    erased = erasing.erase(store.database, erasing.What(ids=ids[7:8]))
    assert erased.events == 1
    store.log.trim(store.log.glance().now)
    assert store.data() == [5, 6, 7, None, "\u00e4 \\ ' \""]
    run(engine, "DELETE FROM legacy_poll_log WHERE log_id >= '0'")
    assert schema.repair(engine).damage is not None
    assert schema.new_log(engine)
    store.publish("last")
    store.drain()
    assert store.data()[-1] == "last"
    assert upkeep.status(store.database, store.log).waiting == 0
    store.close()
    engine.dispose()


# Durability, and what ends sessions, on PostgreSQL.


@pytest.fixture
def set_for_all(database_url, postgres):
    """Sets what sessions of this database begin with."""
    alter = "ALTER DATABASE {} ".format(database_name(database_url))
    done = []

    def set_for_all(name, value):
        done.append(name)
        postgres.execute(alter + "SET {} = '{}'".format(name, value))

    yield set_for_all
    for name in done:
        postgres.execute(alter + "RESET " + name)


@pytest.fixture
def lose_standby(postgres):
    """From then on a synchronous standby is named, and away."""

    def name_standby(how, name):
        # Local, or the change itself would wait for it.
        change = "ALTER SYSTEM {} synchronous_standby_names".format(how)
        postgres.execute(
            "SET synchronous_commit = local;\n{};\nSELECT pg_reload_conf();".format(change + name)
        )
        wanted = name.strip(" ='")
        until(
            lambda: postgres.execute("SHOW synchronous_standby_names").strip() == wanted, what="it is known"
        )

    yield lambda: name_standby("SET", " = 'away'")
    name_standby("RESET", "")


@on_postgresql
@drivers
@pytest.mark.parametrize(
    "theirs, ours",
    [
        ("off", "local"),
        ("local", "local"),
        ("remote_write", "remote_write"),
        ("on", "on"),
        ("remote_apply", "remote_apply"),
    ],
)
def test_a_move_is_as_durable_as_the_database_says_and_at_least_on_the_disk(
    make_store, make_engine, driver, set_for_all, theirs, ours
):
    set_for_all("synchronous_commit", theirs)
    store = make_store(make_engine(driver))

    def look(connection):
        store.dialect.begin_move(connection)
        return connection.execute(text("SHOW synchronous_commit")).scalar()

    assert store.database.write(look) == ours


@on_postgresql
@pytest.mark.parametrize("theirs", ["off", "local"])
def test_moves_do_not_wait_for_a_standby_that_the_application_does_not_wait_for(
    make_store, make_engine, set_for_all, lose_standby, postgres, theirs
):
    set_for_all("synchronous_commit", theirs)
    lose_standby()
    store = make_store(make_engine())
    said = len(postgres.read_log())
    for number in range(3):
        store.publish(number)
        store.drain()
    assert store.data() == [0, 1, 2]
    # What the server says of a commit that had to be told not to wait.
    assert "canceling the wait for synchronous replication" not in postgres.read_log()[said:]
