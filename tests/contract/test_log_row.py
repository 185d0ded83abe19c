"""The one row of `legacy_poll_log`: gone, doubled or older than the events, it is told, and one command repairs it.

Nothing that committed meanwhile is lost: it waits in the outbox, on SQLite too.
"""

from __future__ import annotations

import os
import subprocess
import threading

import pytest
from sqlalchemy import create_engine, inspect, text
from sqlalchemy import event as listening
from sqlalchemy.engine import Engine
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.pool import NullPool

from legacy_poll import schema
from legacy_poll.errors import CursorUnknown, LogDamaged, SchemaError, SchemaMissing, StorageUnavailable
from tests.contract.store import one_writer, run, two_writers
from tests.servers import database_name

pytestmark = pytest.mark.own_database


@pytest.fixture
def store(make_store):
    """A store whose log is whole at the end of each test."""
    store = make_store()
    yield store
    assert schema.check(store.database) is None
    store.check()


def at_work(store):
    """New events get positions, and are read."""
    before = store.log.bounds().cursor
    store.publish("at work")
    store.drain()
    assert store.data(cursor=before) == ["at work"]


def test_events_published_while_the_log_has_no_row_wait_and_are_delivered_after_a_repair(store, engine):
    store.publish("before")
    store.drain()
    old = store.log.bounds().cursor
    run(engine, "DELETE FROM legacy_poll_log")
    store.publish("meanwhile", "and again")
    assert store.waiting() == 2
    for ask in (store.log.glance, store.log.bounds, store.read, lambda: schema.check(store.database)):
        with pytest.raises(LogDamaged, match="legacy_poll_log is empty.*run: legacy-poll repair"):
            ask()
    with pytest.raises(LogDamaged, match="run: legacy-poll repair"):
        schema.new_log(engine)
    repaired = schema.repair(engine)
    assert "is empty" in repaired.damage
    assert (repaired.head, repaired.oldest) == (1, 1)
    store.drain()
    assert store.data() == ["before", "meanwhile", "and again"]
    with pytest.raises(CursorUnknown):
        store.read(old)
    at_work(store)


def test_a_repair_after_all_tables_were_emptied_begins_a_log(store, engine):
    store.publish(1, 2, 3)
    store.drain()
    for table in ("outbox", "event", "log", "set_aside", "setting"):
        run(engine, "DELETE FROM legacy_poll_" + table)
    store.publish("kept")
    assert (schema.repair(engine).head, store.waiting()) == (0, 1)
    store.drain()
    assert store.data() == ["kept"]


def test_a_whole_log_is_not_repaired(store, engine):
    store.publish(1, 2)
    store.drain()
    before = store.log.bounds()
    repaired = schema.repair(engine)
    assert repaired.damage is None
    assert (repaired.log_id, repaired.head, repaired.oldest) == (before.log_id, 2, 1)
    assert store.log.bounds() == before


def test_a_log_with_holes_is_not_damaged(store, engine):
    store.publish(1, 2, 3)
    store.drain()
    run(engine, "DELETE FROM legacy_poll_event WHERE position IN (1, 3)")
    try:
        assert schema.repair(engine).damage is None
        at_work(store)
    finally:
        run(engine, "UPDATE legacy_poll_log SET oldest = 4")


def test_a_second_row_is_refused_by_the_database(store, engine):
    for insert in (
        "INSERT INTO legacy_poll_log (log_id, head, oldest) VALUES ('another', 0, 1)",
        "INSERT INTO legacy_poll_log (log_id, head, oldest, one_row) VALUES ('another', 0, 1, 2)",
    ):
        with pytest.raises((IntegrityError, OperationalError)):
            run(engine, insert)
    at_work(store)


def test_two_rows_of_an_older_schema_become_one_by_the_upgrade(store, engine):
    store.publish(1, 2, 3)
    store.drain()
    to_first_version(engine)
    run(engine, "INSERT INTO legacy_poll_log (log_id, head, oldest) VALUES ('from a dump', 7, 2)")
    assert schema.upgrade(engine) == "1_0001"
    bounds = store.log.bounds()
    assert (bounds.head, bounds.oldest) == (7, 1)
    assert bounds.log_id != "from a dump"
    run(engine, "UPDATE legacy_poll_log SET oldest = 8")
    at_work(store)


def test_events_of_an_older_schema_keep_the_cursors_behind_them(store, engine):
    """They have no mark: their id is what is checked."""
    to_first_version(engine)
    insert = (
        "INSERT INTO legacy_poll_event (position, id, channel, type, data, published_at)"
        " VALUES (1, 'old-one', 'orders', 'message', '1', '2026-01-01T00:00:00.000Z')"
    )
    run(engine, insert)
    run(engine, "UPDATE legacy_poll_log SET head = 1")
    schema.upgrade(engine)
    cursor = store.log.cursor_at(1)
    assert cursor.check == "%s" % store.events()[0].check
    store.publish(2)
    store.drain()
    assert store.data(cursor=cursor) == [2]


def test_events_that_are_beyond_the_head_are_told_before_a_position_is_given_twice(store, engine):
    store.publish(*range(1, 6))
    store.drain()
    old = store.log.bounds().cursor
    run(engine, "UPDATE legacy_poll_log SET head = 2")
    store.publish("meanwhile")
    with pytest.raises(LogDamaged, match="ends at position 2, and there are events up to 5"):
        schema.check(store.database)
    with pytest.raises(LogDamaged, match="run: legacy-poll repair"):
        store.move()
    assert store.waiting() == 1
    repaired = schema.repair(engine)
    assert (repaired.head, repaired.oldest) == (5, 1)
    store.drain()
    assert store.data() == [1, 2, 3, 4, 5, "meanwhile"]
    with pytest.raises(CursorUnknown):
        store.read(old)


@pytest.mark.parametrize(
    "head, oldest",
    [(3, 0), (3, 5), (3, 900), (-1, 1), (2, 1), (0, 1), (2**62, 1), (2**63 - 1, 2), (3, 2**63 - 1)],
)
def test_bounds_that_cannot_be_are_told_and_repaired(store, engine, head, oldest):
    store.publish(1, 2, 3)
    store.drain()
    run(engine, "UPDATE legacy_poll_log SET head = :head, oldest = :oldest", head=head, oldest=oldest)
    with pytest.raises(LogDamaged, match="run: legacy-poll repair"):
        schema.check(store.database)
    # Who publishes meanwhile is not refused, and nothing of it is lost.
    store.publish("meanwhile")
    assert store.waiting() == 1
    # Another identity would say that all is well now.
    with pytest.raises(LogDamaged, match="run: legacy-poll repair"):
        schema.new_log(engine)
    assert schema.repair(engine).head == 3
    run(engine, "UPDATE legacy_poll_log SET oldest = 1")
    store.drain()
    assert store.data() == [1, 2, 3, "meanwhile"]
    at_work(store)


@one_writer
@pytest.mark.parametrize("head, oldest", [("abc", 1), (3, "abc"), ("", ""), (b"3", 1), (3.5, 1)])
def test_bounds_that_are_no_numbers_are_told_and_repaired(store, engine, head, oldest):
    """SQLite keeps what it is given; the trigger had put what came at position 1."""
    store.publish(1, 2, 3)
    run(engine, "UPDATE legacy_poll_log SET head = :head, oldest = :oldest", head=head, oldest=oldest)
    store.publish("meanwhile")
    for ask in (
        store.log.glance,
        store.log.bounds,
        lambda: schema.check(store.database),
        lambda: schema.new_log(engine),
    ):
        with pytest.raises(LogDamaged, match="run: legacy-poll repair"):
            ask()
    assert (schema.repair(engine).head, store.waiting()) == (3, 1)
    store.drain()
    assert store.data() == [1, 2, 3, "meanwhile"]
    at_work(store)


@pytest.mark.parametrize("wrong", [0, -5])
@pytest.mark.parametrize("oldest", [0, 900])
def test_a_position_that_cannot_be_is_not_where_a_repaired_log_begins(store, engine, wrong, oldest):
    store.publish(1, 2, 3)
    store.drain()
    run(engine, "UPDATE legacy_poll_event SET position = :wrong WHERE position = 1", wrong=wrong)
    run(engine, "UPDATE legacy_poll_log SET oldest = :oldest", oldest=oldest)
    repaired = schema.repair(engine)
    assert (repaired.oldest, repaired.head) == (2, 3)
    assert schema.repair(engine).damage is None
    store.log.trim(store.log.glance().now)
    assert store.data() == [2, 3]
    run(engine, "DELETE FROM legacy_poll_event WHERE position < 1")
    at_work(store)


@pytest.mark.parametrize("version", ["2_0001", "1_0003"])
@pytest.mark.parametrize("gone", ["apart", "setting", "log"])
def test_tables_of_a_newer_package_are_left_to_it(make_store, engine, version, gone):
    """It had made what this code knows, and given the log another identity, before it looked."""
    store = make_store()
    before = store.log.bounds()
    run(engine, "UPDATE legacy_poll_version SET version_num = '%s'" % version)
    run(engine, "DROP TABLE legacy_poll_" + gone)
    with pytest.raises(SchemaError, match=version):
        schema.repair(engine)
    assert not inspect(engine).has_table("legacy_poll_" + gone)
    run(engine, "UPDATE legacy_poll_version SET version_num = '%s'" % schema.REVISION)
    if gone != "log":
        with engine.connect() as connection:
            assert connection.execute(text("SELECT log_id FROM legacy_poll_log")).scalar() == before.log_id
    assert schema.repair(engine).damage is not None
    engine.dispose()
    at_work(store)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("gone", ["log", "version"])
def test_a_repair_makes_missing_tables_where_the_others_are(store, engine, database_url, gone):
    """An administrator has a place of his own, and it comes first."""
    store.publish(1, 2)
    store.drain()
    run(engine, "CREATE SCHEMA adm")
    run(engine, "DROP TABLE legacy_poll_" + gone)
    theirs = create_engine(
        database_url, future=True, connect_args={"options": "-c search_path=adm,public"}, poolclass=NullPool
    )
    assert schema.repair(theirs).damage is not None
    assert schema.repair(theirs).damage is None
    assert schema.check(store.database) is None
    run(engine, "DROP SCHEMA adm")
    assert store.data() == [1, 2]
    at_work(store)


def test_an_event_behind_which_there_is_no_place_is_named(store, engine):
    store.publish(1, 2, 3)
    store.drain()
    run(engine, "UPDATE legacy_poll_event SET position = %d WHERE position = 2" % (2**63 - 1))
    with pytest.raises(LogDamaged, match="events up to 9223372036854775807.*run: legacy-poll repair"):
        schema.check(store.database)
    with pytest.raises(LogDamaged, match="an event at position 9223372036854775807.* by hand"):
        schema.repair(engine)
    run(engine, "UPDATE legacy_poll_event SET position = 2 WHERE position > 3")
    at_work(store)


def test_a_repair_of_two_rows_makes_the_rule_again_that_forbids_them(store, engine):
    store.publish(1, 2, 3)
    store.drain()
    on = " ON legacy_poll_log" if engine.dialect.name == "mysql" else ""
    run(engine, "DROP INDEX legacy_poll_log_one_row" + on)
    second = "INSERT INTO legacy_poll_log (log_id, head, oldest) VALUES ('another', 0, 1)"
    run(engine, second)
    assert "2 rows" in schema.faults(store.database)[0]
    assert "2 rows" in schema.repair(engine).damage
    with pytest.raises((IntegrityError, OperationalError)):
        run(engine, second)
    at_work(store)


def test_a_log_that_is_to_be_repaired_is_not_trimmed_by_servers_either(make_store, engine):
    """Where it begins is not to be relied on, and what is deleted is gone."""
    store = make_store(retention_events=5)
    store.publish(*range(20))
    store.drain()
    run(engine, "UPDATE legacy_poll_log SET head = 12, oldest = 9")
    assert store.log.trim("2999-01-01T00:00:00.000Z").deleted == 0
    assert len(store.positions()) == 20
    schema.repair(engine)
    store.log.trim(store.log.glance().now)
    assert len(store.data()) == 5


def test_repairs_at_once_are_one(store, engine, second_engine):
    run(engine, "DELETE FROM legacy_poll_log")
    first, second = schema.repair(engine), schema.repair(second_engine)
    assert (second.damage, second.log_id) == (None, first.log_id)


def test_a_repair_of_no_tables_says_what_to_run(engine, store):
    run(engine, "UPDATE legacy_poll_version SET version_num = '1_0001'")
    try:
        with pytest.raises(SchemaMissing, match="run: legacy-poll upgrade"):
            schema.repair(engine)
    finally:
        run(engine, "UPDATE legacy_poll_version SET version_num = '%s'" % schema.REVISION)


@one_writer
def test_a_dump_of_another_log_loaded_beside_the_row_keeps_what_is_published(store, engine):
    """SQLite: the row of the dump is refused, its events are there; the trigger gives no position twice."""
    for position in (1, 2, 3):
        run(
            engine,
            "INSERT INTO legacy_poll_event (position, id, channel, type, data, published_at) VALUES"
            " (:position, 'dumped-' || :position, 'orders', 'message', '1', '2026-01-01T00:00:00.000Z')",
            position=position,
        )
    store.publish("mine")
    assert store.waiting() == 1
    with pytest.raises(LogDamaged):
        store.move()
    schema.repair(engine)
    store.drain()
    assert store.data() == [1, 1, 1, "mine"]


@two_writers
def test_a_data_only_dump_of_the_older_schema_is_told_apart_and_repaired(
    store, engine, database_server, tmp_path
):
    store.publish(1, 2, 3)
    store.drain()
    to_first_version(engine)
    dump = tmp_path / "data.sql"
    with open(str(dump), "wb") as file:
        subprocess.run(data_only(database_server, engine), stdout=file, check=True, timeout=60)
    schema.upgrade(engine)
    # Tables that an upgrade made, and the data of another database: its own row, then the dump's.
    run(engine, "DELETE FROM legacy_poll_event")
    run(engine, "UPDATE legacy_poll_log SET log_id = 'made by the upgrade', head = 0, oldest = 1")
    with open(str(dump), "rb") as file:
        command = database_server.client(engine.url.database)
        if engine.dialect.name == "mysql":
            command = command + ["--force"]
        subprocess.run(command, stdin=file, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM legacy_poll_event")).scalar() == 3
    with pytest.raises(LogDamaged, match="ends at position 0, and there are events up to 3"):
        schema.check(store.database)
    schema.repair(engine)
    at_work(store)


def data_only(server, engine):
    if engine.dialect.name == "mysql":
        place = ["--protocol=tcp", "-h", "127.0.0.1", "-P", str(server.port), "-u", "root"]
        program = [
            server.program(server.dump),
            "--no-defaults",
            "--no-create-info",
            "--complete-insert",
        ]
        return program + place + [engine.url.database, "legacy_poll_log", "legacy_poll_event"]
    place = ["-h", "127.0.0.1", "-p", str(server.port), "-U", "postgres"]
    tables = ["-t", "legacy_poll_log", "-t", "legacy_poll_event"]
    return (
        [server.program("pg_dump"), "--data-only", "--inserts"]
        + place
        + tables
        + [database_name(engine.url.database)]
    )


def to_first_version(engine):
    """The tables as version 1_0001 made them, with what is in them."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", os.fspath(schema.migrations()))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "1_0001")
    columns = {each["name"] for each in inspect(engine).get_columns("legacy_poll_log")}
    assert columns == {"log_id", "head", "oldest"}


@pytest.mark.parametrize("first", [False, True])
def test_a_version_that_was_emptied_with_all_tables_is_told_and_repaired(store, engine, first):
    store.publish(1, 2)
    store.drain()
    if first:
        to_first_version(engine)
    for table in ("outbox", "event", "log", "set_aside", "setting", "version"):
        run(engine, "DELETE FROM legacy_poll_" + table)
    for ask in (lambda: schema.check(store.database), lambda: schema.upgrade(engine)):
        with pytest.raises(LogDamaged, match="legacy_poll_version is empty.*run: legacy-poll repair"):
            ask()
    if first:
        with pytest.raises(SchemaMissing, match="at version 1_0001 .*run: legacy-poll upgrade"):
            schema.repair(engine)
        assert schema.upgrade(engine) == "1_0001"
    assert schema.repair(engine).damage is not None
    assert schema.version(store.database) == schema.REVISION
    at_work(store)


TABLES = ("log", "apart", "set_aside", "setting", "version")


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("gone", TABLES + (("version", "log"), TABLES), ids=str)
def test_tables_that_are_gone_are_told_and_made_anew(store, engine, gone, first):
    """A backup of the tables that somebody chose, without those whose use he did not see."""
    store.publish(1, 2)
    store.drain()
    old = store.log.bounds()
    if first:
        to_first_version(engine)
    gone = {gone} if isinstance(gone, str) else set(gone)
    there = {name for name in gone if not (first and name == "apart")}
    for name in there:
        run(engine, "DROP TABLE legacy_poll_" + name)
    if there:
        with pytest.raises(LogDamaged, match="legacy_poll_.* missing.*run: legacy-poll repair"):
            schema.upgrade(engine)
    if "version" in there:
        for ask in (lambda: schema.check(store.database), lambda: schema.new_log(engine)):
            with pytest.raises(LogDamaged, match="legacy_poll_version is .*missing.*run: legacy-poll repair"):
                ask()
    if first:
        with pytest.raises(SchemaMissing, match="at version 1_0001 .*run: legacy-poll upgrade"):
            schema.repair(engine)
        assert schema.upgrade(engine) == "1_0001"
    repaired = schema.repair(engine)
    # A connection of SQLite that has met a missing table may go on without it until it is opened anew.
    engine.dispose()
    assert first or "missing" in repaired.damage or "empty" in repaired.damage
    assert schema.repair(engine).damage is None
    assert schema.upgrade(engine) == schema.REVISION
    # Whoever restored this is not asked for `new-log` as well.
    assert (store.log.bounds().log_id == old.log_id) == (not there)
    assert store.data() == [1, 2]
    at_work(store)


@pytest.mark.parametrize(
    "gone", ["event", "outbox", ("version", "event"), ("log", "outbox", "version")], ids=str
)
def test_missing_tables_that_no_repair_can_make_are_named_whatever_is_asked(make_store, engine, gone):
    """`upgrade` had said that there is nothing to do, and every other command to run `upgrade`."""
    store = make_store()
    gone = (gone,) if isinstance(gone, str) else gone
    for name in gone:
        run(engine, "DROP TABLE legacy_poll_" + name)
    named = "not .*legacy_poll_{}.*: restore what is missing, or drop the rest".format(gone[-1 % len(gone)])
    named = named if gone[-1] != "version" else named.replace("version", "outbox")
    for ask in (schema.upgrade, schema.repair):
        with pytest.raises(LogDamaged, match=named):
            ask(engine)
    for table in ("outbox", "event", "apart", "log", "set_aside", "setting", "version"):
        run(engine, "DROP TABLE IF EXISTS legacy_poll_" + table)
    assert schema.upgrade(engine) is None
    at_work(store)


@two_writers
def test_a_repair_waits_for_a_move_that_is_under_way(store, make_store, engine, begin):
    """It had read the bounds before, and written back a head below what the move committed."""
    store.publish(1, 2, 3)
    store.drain()
    run(engine, "UPDATE legacy_poll_log SET oldest = 900")
    mover = begin()
    mover.execute(text("SELECT head FROM legacy_poll_log FOR UPDATE"))
    done = []
    repairing = threading.Thread(target=lambda: done.append(schema.repair(engine)))
    repairing.start()
    mover.execute(
        text(
            "INSERT INTO legacy_poll_event (position, id, channel, type, data, published_at)"
            " VALUES (4, 'by-a-move', 'orders', 'message', '4', '2026-01-01T00:00:00.000Z')"
        )
    )
    mover.execute(text("UPDATE legacy_poll_log SET head = 4"))
    mover.commit()
    repairing.join(60)
    assert (done[0].head, done[0].oldest) == (4, 1)
    assert store.data() == [1, 2, 3, 4]


def test_a_beginning_that_cannot_be_is_no_reason_to_delete_anything(make_store, engine):
    store = make_store(retention_seconds=3600)
    store.publish(*range(50))
    store.drain()
    run(engine, "UPDATE legacy_poll_log SET oldest = 52")
    for ask in (store.log.glance, store.log.bounds, lambda: store.log.trim("2999-01-01T00:00:00.000Z")):
        with pytest.raises(LogDamaged, match="ends at position 50 begins at 52.*run: legacy-poll repair"):
            ask()
    assert schema.repair(engine).oldest == 1
    assert store.log.trim(store.log.glance().now).deleted == 0
    assert store.data() == list(range(50))


@pytest.mark.parametrize("done", range(1, 7))
def test_an_upgrade_that_ended_half_way_is_finished_by_the_next(store, engine, monkeypatch, done):
    """Where every statement commits by itself: killed behind each of them."""
    store.publish(1, 2)
    store.drain()
    to_first_version(engine)
    count = [0]

    def stop(connection, cursor, statement, *rest):
        if statement.lstrip().upper().startswith(("ALTER", "CREATE", "DROP")):
            count[0] += 1
            if count[0] > done:
                raise KeyboardInterrupt

    listening.listen(Engine, "before_cursor_execute", stop)
    try:
        with pytest.raises((KeyboardInterrupt, StorageUnavailable)):
            schema.upgrade(engine)
    finally:
        listening.remove(Engine, "before_cursor_execute", stop)
    assert schema.upgrade(engine) == "1_0001"
    assert store.data() == [1, 2]
    at_work(store)


@one_writer
def test_numbers_of_rows_that_were_set_aside_do_not_come_back_after_a_downgrade(store, engine):
    for _ in range(2):
        store.insert({"channel": "no spaces", "data": "1"})
        store.drain()
        to_first_version(engine)
        schema.upgrade(engine)
        run(engine, "DELETE FROM legacy_poll_set_aside")
    store.insert({"channel": "no spaces", "data": "1"})
    store.drain()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT id FROM legacy_poll_set_aside")).scalar() == 3
