"""No row of the outbox stops those behind it: too large, not to be decoded, or refused by the database itself.

In each test an odd row comes first, written as another program might write it, and ordinary ones come behind.
"""

from __future__ import annotations

import threading
import tracemalloc
import uuid

import pytest
from sqlalchemy import create_engine, select, text

from legacy_poll import upkeep
from legacy_poll.errors import InvalidEvent, StorageUnavailable
from legacy_poll.schema import upgrade
from legacy_poll.storage.erasing import What, erase
from legacy_poll.tables import event, outbox, set_aside
from tests.contract.store import (
    Store,
    between,
    drivers,
    on_mysqls,
    on_postgresql,
    one_writer,
    run,
    two_writers,
)
from tests.servers import database_name
from tests.waiting import until


@pytest.fixture
def insert_waiting(store, is_sqlite, leave):
    """Inserts rows that wait for the sequencer, on SQLite too: the row that they waited behind is gone."""

    def insert_waiting(*rows):
        leave(store)
        store.insert(*rows)
        if is_sqlite:
            run(store.engine, "DELETE FROM legacy_poll_outbox WHERE channel = 'no spaces'")
        assert store.waiting() == len(rows)

    return insert_waiting


def order(number, **columns):
    return dict({"channel": "orders", "data": str(number)}, **columns)


def column(store, wanted):
    return store.database.read(lambda connection: [row[0] for row in connection.execute(select(wanted))])


# What one session may write and another may not copy.


@on_mysqls
@pytest.mark.parametrize("moment", ["0000-00-00 00:00:00", "2024-00-10 00:00:00"])
def test_a_row_with_a_time_that_new_sessions_refuse_is_set_aside(store, engine, set_global, moment):
    with engine.begin() as connection:
        connection.execute(text("SET SESSION sql_mode = ''"))
        insert = (
            "INSERT INTO legacy_poll_outbox (channel, data, created_at) VALUES ('no spaces', '0', :moment)"
        )
        connection.execute(text(insert), {"moment": moment})
        # A TIMESTAMP holds no zero in a date, and what it was given becomes the zero that it does hold.
        stored = connection.execute(text("SELECT CAST(created_at AS CHAR) FROM legacy_poll_outbox")).scalar()
        assert stored.startswith("0000-00-00")
    engine.dispose()
    store.publish(1, 2)
    set_global("sql_mode", "TRADITIONAL")
    store.drain()
    assert store.data() == [1, 2]
    ((channel, data, reason),) = store.set_aside()
    assert (channel, data) == ("no spaces", "0")
    # For what is wrong with it, and whole, with its time.
    assert "A-Z a-z 0-9" in reason
    assert run(engine, "SELECT CAST(created_at AS CHAR) FROM legacy_poll_set_aside").scalar() == stored


# Packets.

#: In JSON a backslash and a quotation mark; a client that sends it makes eight characters of the four.
ESCAPED = r"\\\""


def publish_escaped(connection, count, type_="message"):
    """Publishes ESCAPED *count* times, made by the server."""
    insert = "INSERT INTO legacy_poll_outbox (channel, type, data) VALUES ('orders', '%s', %s)"
    literal = "CONCAT('\"', REPEAT('%s', %d), '\"')" % (ESCAPED.replace("\\", "\\\\"), count)
    connection.execute(text(insert % (type_, literal)))
    return '"%s"' % (ESCAPED * count)


@on_mysqls
def test_a_row_that_is_beyond_a_packet_once_escaped_is_moved_byte_for_byte(store, engine, set_global):
    with engine.begin() as connection:
        published = publish_escaped(connection, 65_535)
    store.publish("behind")
    assert len(published) == store.settings.max_event_bytes - 2
    set_global("max_allowed_packet", 262_144)
    store.drain()
    assert [each.data == published for each in store.events()] == [True, False]
    assert store.events()[1].data == '"behind"'
    assert store.set_aside() == []


@on_mysqls
def test_rows_that_are_beyond_a_packet_together_are_moved_byte_for_byte(store, engine, set_global):
    with engine.begin() as connection:
        published = [publish_escaped(connection, 2500, "n%d" % number) for number in range(150)]
    store.publish("behind")
    set_global("max_allowed_packet", 262_144)
    store.drain()
    *events, last = store.events()
    assert [each.type for each in events] == ["n%d" % number for number in range(150)]
    assert all(each.data == data for each, data in zip(events, published))
    assert (last.data, store.set_aside()) == ('"behind"', [])


@on_mysqls
def test_a_row_of_three_megabytes_is_moved_where_a_packet_has_one(make_store, engine, set_global):
    store = make_store(max_event_bytes=3 * 1024 * 1024)
    with engine.begin() as connection:
        published = publish_escaped(connection, 786_431)
    store.publish("behind")
    assert len(published) == store.settings.max_event_bytes - 2
    set_global("max_allowed_packet", 1_048_576)
    store.drain()
    assert [each.data == published for each in store.events()] == [True, False]
    assert store.events()[1].data == '"behind"'
    assert store.set_aside() == []
    store.check()


@on_mysqls
@pytest.mark.parametrize("text_now", ["{", '"fit"'])
def test_a_text_that_came_between_look_and_move_is_judged_before_it_is_moved(store, engine, text_now):
    store.publish(1, 2)
    update = "UPDATE legacy_poll_outbox SET data = :data WHERE data = '1'"
    between(store, lambda: run(engine, update, data=text_now))
    moved = store.move()
    assert (moved.busy, moved.events, store.positions()) == (True, (), [])
    store.drain()
    fit = text_now == '"fit"'
    assert store.data() == (["fit", 2] if fit else [2])
    assert [data for _, data, _ in store.set_aside()] == ([] if fit else ["{"])


@pytest.mark.parametrize("name", ["channel", "type"])
@pytest.mark.parametrize("name_now", ["no spaces", "$revoke", "x" * 5000])
def test_a_name_that_came_between_look_and_move_is_not_moved_unless_it_was_judged(
    store, engine, insert_waiting, name, name_now
):
    insert_waiting(order(1, type="changed"), order(2))
    update = "UPDATE legacy_poll_outbox SET {} = :now WHERE data = '1'".format(name)
    between(store, lambda: run(engine, update, now=name_now))
    store.move()
    store.drain()
    moved = [(each.channel, each.type, each.data) for each in store.events()]
    # As it was, or set aside as it is.
    if len(moved) == 2:
        assert moved.pop(0) == ("orders", "changed", "1")
    else:
        assert [data for _, data, _ in store.set_aside()] == ["1"]
    assert (moved, store.waiting()) == ([("orders", "message", "2")], 0)


# Bytes that are no text.


@pytest.fixture
def ascii_store(postgres, driver):
    """A store on a PostgreSQL database that takes any bytes for text."""
    name = "ascii_%s" % uuid.uuid4().hex
    make = "CREATE DATABASE {} ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    postgres.execute(make.format(name))
    # Without an encoding psycopg 3 gives bytes, which SQLAlchemy cannot connect with.
    engine = create_engine(postgres.url(name, driver), future=True, client_encoding="utf8")
    upgrade(engine)
    store = Store(engine)
    for names, values in (
        ("channel, data", r"'orders', E'\"caf\xe9\"'"),
        ("channel, data", r"E'caf\xe9', '2'"),
        ("channel, data, event_id", r"'orders', '3', E'caf\xe9'"),
        ("channel, data, type", r"'orders', '4', E'caf\xe9'"),
    ):
        insert = "INSERT INTO legacy_poll_outbox ({}) VALUES ({})".format(names, values)
        postgres.execute(insert, database=name)
    store.publish(5, 6)
    yield store
    store.check()
    store.close()
    engine.dispose()
    postgres.drop_database(name)


@drivers
def test_bytes_that_no_driver_decodes_are_set_aside_and_listed(ascii_store):
    ascii_store.drain()
    assert (ascii_store.data(), ascii_store.waiting()) == ([5, 6], 0)
    rows = upkeep.set_aside_rows(ascii_store.database)
    shown = [(row["channel"], row["data"], row["event_id"], row["type"]) for row in reversed(rows)]
    assert shown == [
        ("orders", r'"caf\351"', None, None),
        (r"caf\351", "2", None, None),
        ("orders", "3", r"caf\351", None),
        ("orders", "4", None, r"caf\351"),
    ]
    assert all("0xe9" in row["reason"] or "decode" in row["reason"] for row in rows)


@drivers
def test_bytes_that_no_driver_decodes_can_be_tried_again_and_dropped(ascii_store):
    ascii_store.drain()
    assert upkeep.retry(ascii_store.database, None) == 4
    ascii_store.publish(7)
    ascii_store.drain()
    assert ascii_store.data() == [5, 6, 7]
    assert upkeep.drop(ascii_store.database, None) == 4
    assert upkeep.set_aside_rows(ascii_store.database) == []


# What is too large.

LARGE = {
    "sqlite": (20_000_000, "replace(hex(zeroblob(10000000)), '0', 'x')"),
    "postgresql": (150_000_000, "repeat('x', 150000000)"),
    "mysql": (20_000_000, "REPEAT('x', 20000000)"),
}


@pytest.fixture
def large(store, engine, request):
    """Publishes a row that is far too large, made by the server, and two ordinary ones behind; returns its bytes."""
    size, expression = LARGE[engine.dialect.name]
    if engine.dialect.name == "mysql":
        request.getfixturevalue("set_global")("max_allowed_packet", 64 * 1024 * 1024)
    run(engine, "INSERT INTO legacy_poll_outbox (channel, data) VALUES ('orders', %s)" % expression)
    if engine.dialect.name == "mysql":
        # As it is by default.
        request.getfixturevalue("set_global")("max_allowed_packet", 16 * 1024 * 1024)
    store.publish(1, 2)
    return size


def test_a_row_that_is_far_too_large_is_cut_within_the_database(store, large):
    # Whatever the tests before made is connected and compiled first.
    store.log.glance()
    tracemalloc.start()
    try:
        store.drain()
        assert tracemalloc.get_traced_memory()[1] < large / 4
    finally:
        tracemalloc.stop()
    assert store.data() == [1, 2]
    ((channel, data, reason),) = store.set_aside()
    assert (channel, set(data), str(large) in reason) == ("orders", {"x"}, True)
    assert 1000 <= len(data) <= 4000
    assert column(store, set_aside.c.cut_from) == [large]
    assert [row["data"] for row in upkeep.set_aside_rows(store.database)] == ["x" * 200]


def test_a_row_that_was_cut_is_not_put_back(store, large):
    store.drain()
    (row,) = upkeep.set_aside_rows(store.database)
    with pytest.raises(InvalidEvent, match=str(large)):
        upkeep.retry(store.database, [row["id"]])
    assert upkeep.retry(store.database, None) == 0
    assert (store.waiting(), store.count(set_aside)) == (0, 1)
    assert upkeep.drop(store.database, [row["id"]]) == 1


@pytest.mark.parametrize("name", ["channel", "type", "event_id"])
def test_a_name_that_is_far_too_long_is_not_copied_whole(store, name, insert_waiting):
    size = 60_000 if store.engine.dialect.name == "mysql" else 5_000_000
    insert_waiting(order(0, **{name: "x" * size}), order(1), order(2))
    tracemalloc.start()
    try:
        store.drain()
        assert tracemalloc.get_traced_memory()[1] < max(size / 2, 1_000_000)
    finally:
        tracemalloc.stop()
    assert store.data() == [1, 2]
    ((_, data, reason),) = store.set_aside()
    assert data == "0"
    assert 0 < len(reason) < 1000
    (kept,) = column(store, set_aside.c[name])
    assert (set(kept), 200 < len(kept) <= 4000) == ({"x"}, True)


@one_writer
@pytest.mark.parametrize("name", ["channel", "type", "event_id"])
def test_a_name_that_goes_on_behind_a_nul_is_not_taken_for_its_beginning(store, name, insert_waiting):
    for rest in (1, 5000):
        insert_waiting(order(0, **{name: "orders\0" + "x" * rest}), order(1), order(2))
        store.drain()
    assert store.data() == [1, 2, 1, 2]
    assert [data for _, data, _ in store.set_aside()] == ["0", "0"]
    assert "orders" not in column(store, event.c.type) + column(store, event.c.id)


# Ids.


# Behind the largest, MariaDB has no other.
@pytest.mark.own_database
@pytest.mark.parametrize("mark_rows", [1, 2000])
def test_the_smallest_and_the_largest_id_there_are_do_not_stop_the_others(make_store, leave, mark_rows):
    store = make_store(mark_rows=mark_rows)
    leave(store)
    rows = [order(1, id=-(2**63)), order(2, id=-1), order(3, id=2**62), order(4, id=2**63 - 1)]
    store.insert(*rows)
    store.drain()
    assert store.data() == [1, 2, 3, 4]
    odd = {"id": 7, "channel": "no spaces", "data": "0"}
    store.insert(odd, order(5, id=-(2**63)), order(6, id=2**63 - 1))
    store.drain()
    assert (store.data(), store.waiting()) == ([1, 2, 3, 4, 5, 6], 0)
    store.check()


# What the database refuses, for reasons of its own.


def forbid(engine, condition):
    """As the database's administrator might: no event of which *condition* (of `{}`) holds."""
    if engine.dialect.name == "sqlite":
        trigger = "CREATE TRIGGER house_rule BEFORE INSERT ON legacy_poll_event WHEN {} BEGIN {} END"
        run(engine, trigger.format(condition.format("NEW."), "SELECT RAISE(ABORT, 'house_rule is broken');"))
    else:
        rule = "ALTER TABLE legacy_poll_event ADD CONSTRAINT house_rule CHECK (NOT ({}))"
        run(engine, rule.format(condition.format("")))


@pytest.mark.own_database
@pytest.mark.parametrize("place", [0, 77, 200])
def test_the_one_row_of_a_batch_that_the_database_refuses_is_found(store, engine, place, insert_waiting):
    forbid(engine, "{}type = 'forbidden'")
    rows = [order(number) for number in range(200)]
    rows.insert(place, order(1000, type="forbidden"))
    insert_waiting(*rows)
    store.drain()
    assert (store.data(), store.waiting()) == (list(range(200)), 0)
    ((channel, data, reason),) = store.set_aside()
    assert (channel, data) == ("orders", "1000")
    assert "house_rule" in reason


@pytest.mark.own_database
def test_several_rows_that_the_database_refuses_are_found_among_others(store, engine, insert_waiting):
    forbid(engine, "{}type = 'forbidden'")
    forbidden = (0, 1, 50, 99)
    insert_waiting(*[order(n, type="forbidden" if n in forbidden else "message") for n in range(100)])
    store.drain()
    assert store.data() == [number for number in range(100) if number not in forbidden]
    assert [data for _, data, _ in store.set_aside()] == [str(number) for number in forbidden]


@pytest.mark.own_database
@two_writers
def test_a_row_that_cannot_be_copied_either_is_set_aside_by_its_id(store, engine):
    rule = "ALTER TABLE legacy_poll_set_aside ADD CONSTRAINT house_rule CHECK (channel IS NULL OR channel <> '!')"
    run(engine, rule)
    store.insert({"channel": "!", "data": "0", "id": 7}, order(1, id=8), order(2, id=9))
    store.drain()
    assert (store.data(), store.waiting()) == ([1, 2], 0)
    ((channel, data, reason),) = store.set_aside()
    assert (channel, data, column(store, set_aside.c.outbox_id)) == (None, None, [7])
    assert "house_rule" in reason
    # There is nothing to put back, and nothing is.
    assert upkeep.retry(store.database, None) == 0
    with pytest.raises(InvalidEvent):
        upkeep.retry(store.database, column(store, set_aside.c.id))
    assert (store.waiting(), store.count(set_aside)) == (0, 1)


def refuses_all(store):
    before = store.waiting()
    for _ in range(12):
        with pytest.raises(StorageUnavailable):
            store.move()
    assert (store.count(set_aside), store.positions(), store.waiting()) == (0, [], before)


@pytest.mark.own_database
def test_nothing_is_set_aside_where_the_database_would_refuse_any_event(store, engine, insert_waiting):
    forbid(engine, "{}position > 0")
    insert_waiting(order(1, type="forbidden"), *[order(number) for number in range(2, 9)])
    refuses_all(store)
    drop = "TRIGGER house_rule" if engine.dialect.name == "sqlite" else None
    run(engine, "DROP " + drop if drop else "ALTER TABLE legacy_poll_event DROP CONSTRAINT house_rule")
    store.drain()
    assert store.data() == [1, 2, 3, 4, 5, 6, 7, 8]


@on_postgresql
def test_nothing_is_set_aside_in_a_database_that_is_read_only(make_store, store, engine, postgres):
    store.publish(1, 2)
    name = database_name(str(engine.url))
    postgres.execute("ALTER DATABASE {} SET default_transaction_read_only = on".format(name))
    try:
        refuses_all(make_store())
    finally:
        postgres.execute("ALTER DATABASE {} RESET default_transaction_read_only".format(name))
    make_store().drain()
    assert store.data() == [1, 2]


TABLES = ("legacy_poll_outbox", "legacy_poll_set_aside", "legacy_poll_log")


@pytest.fixture
def teller(engine, database_server):
    """An engine of a user who may do anything but add an event."""
    name = database_name(str(engine.url))
    role = "teller"
    if engine.dialect.name == "postgresql":
        database_server.execute("CREATE ROLE {} LOGIN".format(role))
        undo = "DROP OWNED BY {0}; DROP ROLE {0}".format(role)
    else:
        database_server.execute("CREATE USER {}".format(role))
        undo = "DROP USER {}".format(role)
    try:
        for table in TABLES:
            grant = "GRANT SELECT, INSERT, UPDATE, DELETE ON {} TO {}".format(table, role)
            database_server.execute(grant, database=name)
        database_server.execute("GRANT SELECT ON legacy_poll_event TO {}".format(role), database=name)
        engine = create_engine(engine.url.set(username=role), future=True)
        yield engine
        engine.dispose()
    finally:
        database_server.execute(undo, database=name)


@two_writers
def test_nothing_is_set_aside_where_the_user_may_add_no_event(make_store, store, teller):
    store.publish(1, 2)
    theirs = make_store(teller)
    refuses_all(theirs)
    theirs.close()
    store.drain()
    assert store.data() == [1, 2]


@pytest.mark.parametrize("times", [1, 2])
def test_a_row_is_not_set_aside_for_a_connection_that_ended(store, insert_waiting, monkeypatch, times):
    insert_waiting(order(1))
    insert = store.dialect.insert_events
    ends = iter([True] * times)

    def end(connection, rows, **options):
        if rows and next(ends, False):
            raise StorageUnavailable("server closed the connection unexpectedly")
        return insert(connection, rows, **options)

    monkeypatch.setattr(store.dialect, "insert_events", end)
    while store.waiting():
        try:
            store.move()
        except StorageUnavailable:
            pass  # it may have ended when it was tried whether another row would be taken
    assert (store.data(), store.set_aside(), next(ends, False)) == ([1], [], False)


# Rows that are put back.


@pytest.mark.parametrize("work", [upkeep.retry, upkeep.drop])
def test_a_number_that_no_row_has_changes_nothing_and_is_named(store, work):
    store.insert(*[{"channel": "no spaces", "data": str(number)} for number in range(3)])
    store.drain()
    ids = [row["id"] for row in upkeep.set_aside_rows(store.database)]
    with pytest.raises(InvalidEvent, match="row is 99999: there is none of this number"):
        work(store.database, [ids[0], 99999, ids[1]])
    assert (store.count(set_aside), store.count(outbox)) == (3, 0)
    assert work(store.database, ids[:2]) == 2
    with pytest.raises(InvalidEvent, match="row is {}: ".format(ids[0])):
        work(store.database, ids[:1])


WAITS = {
    "postgresql": "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted",
    # Not innodb_trx, which shows what it showed until nobody has asked for 0.1 s.
    "mysql": "SELECT count(*) FROM information_schema.processlist"
    " WHERE info LIKE '%legacy_poll_set_aside%FOR UPDATE' AND command = 'Query' AND id <> CONNECTION_ID()",
}


@two_writers
def test_two_that_put_all_rows_back_at_once_put_each_back_once(store, make_store, engine, second_engine):
    store.insert(*[{"channel": "no spaces", "data": str(number)} for number in range(5)])
    store.drain()
    assert store.count(set_aside) == 5
    stores = [make_store(), make_store(second_engine)]
    counts = []

    def put_back(mine):
        counts.append(upkeep.retry(mine.database, None))

    threads = [threading.Thread(target=put_back, args=(mine,), daemon=True) for mine in stores]
    with engine.begin() as holder, second_engine.connect() as watcher:
        holder.execute(select(set_aside.c.id).with_for_update())
        for thread in threads:
            thread.start()

        def both_wait():
            waiting = watcher.execute(text(WAITS[engine.dialect.name])).scalar()
            watcher.rollback()
            return waiting == 2

        until(both_wait, 10, "both wait for the rows")
    for thread in threads:
        thread.join()
    assert sorted(counts) == [0, 5]
    assert (store.count(outbox), store.count(set_aside)) == (5, 0)
    store.drain()
    assert sorted(data for _, data, _ in store.set_aside()) == ["0", "1", "2", "3", "4"]


@pytest.mark.own_database
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_rule_of_somebodys_that_what_is_tried_breaks_too_stops_only_what_it_refuses(store, engine):
    run(engine, "ALTER TABLE legacy_poll_event ADD CONSTRAINT theirs CHECK (channel IN ('orders', 'users'))")
    store.insert(
        {"channel": "other", "data": "1"},
        {"channel": "orders", "data": "2"},
        {"channel": "users", "data": "3"},
    )
    while store.waiting():
        store.move()
    assert store.data() == [2, 3]
    assert [row[:2] for row in store.set_aside()] == [("other", "1")]


@pytest.mark.own_database
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_rule_that_is_checked_at_the_commit_and_refuses_everything_sets_nothing_aside(store, engine):
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'never'; END $$;"
            "CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON legacy_poll_event DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
    store.insert(*[{"channel": "orders", "data": str(number)} for number in range(3)])
    for _ in range(6):
        with pytest.raises(StorageUnavailable, match="never"):
            store.move()
    assert (store.waiting(), store.set_aside()) == (3, [])
    run(engine, "DROP TRIGGER refuse ON legacy_poll_event")
    store.drain()
    assert store.data() == [0, 1, 2]


@pytest.mark.own_database
@pytest.mark.parametrize("database_url", ["postgresql", "mariadb", "mysql"], indirect=True)
def test_a_table_that_can_not_be_read_any_more_sets_nothing_aside(store, engine):
    """A column renamed: no row can be read, so it is no row's fault; all wait, whole, until it is put right."""
    run(engine, "ALTER TABLE legacy_poll_outbox RENAME COLUMN type TO kind")
    for number in (1, 2):
        run(engine, "INSERT INTO legacy_poll_outbox (channel, data) VALUES ('orders', '%d')" % number)
    for _ in range(8):
        with pytest.raises(StorageUnavailable):
            store.move()
    assert (store.waiting(), store.set_aside()) == (2, [])
    run(engine, "ALTER TABLE legacy_poll_outbox RENAME COLUMN kind TO type")
    while store.waiting():
        store.move()
    assert store.data() == [1, 2]


@pytest.mark.own_database
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_row_whose_copy_fails_now_and_then_keeps_its_data(store, engine, monkeypatch):
    run(engine, "ALTER TABLE legacy_poll_event ADD CONSTRAINT theirs CHECK (type <> 'forbidden')")
    store.insert(
        {"channel": "orders", "type": "forbidden", "data": '"kept"'}, {"channel": "orders", "data": "2"}
    )
    write, failures = store.database.write, []

    def unreliable(work):
        def once(connection):
            result = work(connection)
            copied = connection.execute(select(set_aside.c.reason)).scalars().all()
            if any(reason.startswith("the database refuses it") for reason in copied) and len(failures) < 2:
                failures.append(True)
                raise StorageUnavailable("the connection has ended")
            return result

        return write(once)

    monkeypatch.setattr(store.database, "write", unreliable)
    for _ in range(20):
        if store.waiting():
            store.move()
    assert len(failures) == 2
    assert [row[:2] for row in store.set_aside()] == [("orders", '"kept"')]
    assert store.data() == [2]


def test_events_of_reserved_channels_may_be_longer_than_the_limit_for_others(make_store):
    store = make_store(max_event_bytes=10)
    store.publish(*range(1, 101))
    store.drain()
    erase(store.database, What(positions=tuple((number, number) for number in range(1, 101, 2))))
    store.insert(
        {"channel": "$revoke", "data": '{"subject": "somebody with a long name"}'},
        {"channel": "orders", "data": '"far too long"'},
        {"channel": "$revoke", "data": '{"subject": "%s"}' % ("x" * 70_000)},
        {"channel": "orders", "data": "1"},
    )
    store.drain()
    assert [each.channel for each in store.events(channels=["$erase", "$revoke"])] == ["$erase", "$revoke"]
    assert [row[0] for row in store.set_aside()] == ["orders", "$revoke"]
    assert store.data(channels=["orders"])[-1] == 1
