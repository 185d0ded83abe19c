"""Two sequencers on one log: nothing twice, nothing lost, nobody waits; batches with bounds; one event for one id.

A race is scripted: one sequencer has read its rows and is about to take the lock, something happens, and it goes on.
"""

from __future__ import annotations

import json
import threading

import pytest
from sqlalchemy import func, select, text

from legacy_poll.dialects.base import MOVE_SECONDS
from legacy_poll.dialects.mysql import DELETE_EACH
from legacy_poll.errors import StorageBusy, StorageUnavailable
from legacy_poll.eventlog import append
from legacy_poll.tables import event, log, outbox, set_aside
from tests.contract.store import between, one_writer, run, series, two_writers
from tests.waiting import until


@pytest.fixture
def other(make_store):
    return make_store()


def test_a_sequencer_that_comes_second_moves_nothing(store, other, leave):
    leave(store, 1, 2, 3)
    between(store, other.drain)
    assert store.move().busy
    assert store.data() == [1, 2, 3]
    assert len(store.set_aside()) == store.engine.dialect.name.count("sqlite")
    assert not store.move().busy


def test_a_sequencer_that_comes_second_does_not_touch_what_came_since(store, other, leave):
    leave(store, 1)

    def overtake():
        other.drain()
        leave(store, 2)

    between(store, overtake)
    assert store.move().busy
    store.drain()
    assert store.data() == [1, 2]


def test_a_sequencer_that_comes_second_by_some_of_its_rows_moves_nothing(store, make_store, leave):
    one_row = make_store(move_rows=1)
    store.insert({"channel": "no spaces", "data": "0"}, {"channel": "orders", "data": "1"})
    # The head stays as it was, since the one row that the other moves gets no position.
    between(store, one_row.move)
    assert store.move().busy
    assert len(store.set_aside()) == 1
    store.drain()
    assert (store.data(), len(store.set_aside())) == ([1], 1)


GIVEN = "INSERT INTO legacy_poll_outbox (id, channel, data) VALUES (7, 'orders', '%s')"


def test_an_id_that_comes_back_brings_its_own_content(store, other, leave):
    leave(store)
    run(store.engine, GIVEN % "1")

    def overtake():
        other.drain()
        leave(store)
        run(store.engine, GIVEN % "2")

    between(store, overtake)
    assert store.move().busy
    store.drain()
    assert store.data() == [1, 2]


def test_an_id_that_comes_back_after_a_broken_row_is_not_taken_for_it(store, other):
    run(store.engine, GIVEN % "{")

    def overtake():
        other.drain()
        # On SQLite the trigger takes a fit row at once, unless another waits.
        store.insert({"id": 6, "channel": "no spaces", "data": "0"})
        run(store.engine, GIVEN % "1")

    between(store, overtake)
    assert store.move().busy
    store.drain()
    assert store.data() == [1]
    assert [data for _, data, _ in store.set_aside()] == ["{", "0"]


def test_an_id_that_comes_back_after_a_duplicate_is_not_taken_for_it(store, other, leave):
    store.publish("first", id="a")
    store.drain()
    leave(store)
    run(store.engine, GIVEN.replace("(id,", "(event_id, id,").replace("(7,", "('a', 7,") % "1")
    between(store, lambda: (other.drain(), leave(store), run(store.engine, GIVEN % "2")))
    assert store.move().busy
    store.drain()
    assert store.data() == ["first", 2]


def test_an_event_id_published_again_between_look_and_move_is_delivered_once(store, other, leave):
    leave(store)
    store.publish(1, id="a")
    between(store, lambda: (other.drain(), leave(store), store.publish(2, id="a")))
    assert store.move().busy
    store.drain()
    assert store.data() == [1]


def test_a_sequencer_with_an_old_view_of_the_log_moves_nothing(store, other, leave):
    old = store.log.glance()
    store.publish(1)
    other.drain()
    leave(store, 2)
    assert store.sequencer.move(old).busy
    store.drain()
    assert store.data() == [1, 2]


def in_thread(move):
    """Starts *move* where it can be given up; the list that is returned has its result when it is done."""
    moves = []
    threading.Thread(target=lambda: moves.append(move()), daemon=True).start()
    return moves


@two_writers
def test_a_lock_that_another_transaction_holds_is_not_waited_for(store, engine, leave, monkeypatch):
    leave(store, 1)
    # The limits of the database would end the wait, and hide it.
    monkeypatch.setattr("legacy_poll.dialects.postgresql.MOVE_SECONDS", 600)
    monkeypatch.setattr("legacy_poll.dialects.mysql.MOVE_SECONDS", 600)
    with engine.connect() as holder:
        holder.begin()
        holder.execute(select(log.c.head).with_for_update())
        moves = in_thread(store.move)
        until(lambda: moves, 20, "the move gives up at once")
        assert (moves[0].busy, moves[0].events) == (True, ())
        assert store.data() == []
    store.drain()
    assert store.data() == [1]


@two_writers
def test_the_holder_of_the_lock_is_named(store, engine):
    with engine.connect() as holder:
        holder.execute(select(log.c.head).with_for_update())
        number = {"postgresql": "pg_backend_pid()", "mysql": "connection_id()"}[engine.dialect.name]
        assert str(holder.execute(text("SELECT " + number)).scalar()) in store.sequencer.lock_holder()
    if engine.dialect.name == "postgresql":
        # InnoDB goes on showing what it showed until nobody has asked for 0.1 s.
        assert store.sequencer.lock_holder() is None


@one_writer
def test_on_sqlite_another_open_transaction_makes_a_move_busy(store, engine, leave):
    leave(store, 1)
    with engine.connect() as holder:
        append(holder, "orders", 2)
        assert store.move().busy
        assert store.sequencer.lock_holder()
        assert store.data() == []
        holder.commit()
    store.drain()
    assert store.data() == [1, 2]


def test_a_row_that_was_taken_back_between_look_and_move_is_not_delivered(store, leave):
    leave(store, 1, 2)
    between(store, lambda: run(store.engine, "DELETE FROM legacy_poll_outbox WHERE data = '1'"))
    assert store.move().busy
    store.drain()
    assert store.data() == [2]


def test_a_move_that_fails_in_the_middle_leaves_everything_as_it_was(store, leave, monkeypatch):
    leave(store, 1, 2)
    insert = store.dialect.insert_events

    def fail(connection, rows, **options):
        insert(connection, rows, **options)
        connection.execute(text("SELECT no_such_column FROM legacy_poll_log"))

    monkeypatch.setattr(store.dialect, "insert_events", fail)
    # Not for these rows alone.
    monkeypatch.setattr(store.sequencer, "_works_for_another", lambda glance: False)
    before = store.waiting()
    with pytest.raises(StorageUnavailable, match="no_such_column"):
        store.move()
    assert (store.waiting(), store.positions(), store.set_aside()) == (before, [], [])
    monkeypatch.undo()
    store.drain()
    assert store.data() == [1, 2]


def test_many_sequencers_at_once_move_everything_once_and_in_order(store, make_store, is_sqlite):
    stores = [make_store(move_rows=7) for _ in range(3)]
    done = threading.Event()
    failures = []

    def sequence(mine):
        try:
            while not done.is_set():
                mine.move()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=sequence, args=(mine,)) for mine in stores]
    for thread in threads:
        thread.start()
    try:
        for number in range(100):
            if is_sqlite and number % 10 == 0:
                store.insert({"channel": "no spaces", "data": "0"})
            store.publish(number)
        until(lambda: failures or not store.log.glance().waiting, 30, "everything is moved")
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert store.data() == list(range(100))


# One id, one event.


def test_an_id_twice_in_one_batch_is_one_event_and_the_first_wins(store, leave):
    leave(store)
    store.insert(*[{"channel": "orders", "data": str(number), "event_id": "a"} for number in (1, 2, 3)])
    store.publish(4)
    moves = store.drain()
    assert store.data() == [1, 4]
    assert sum(moved.duplicates for moved in moves) == 2
    assert store.positions() == [1, 2]


def test_an_id_that_the_log_retains_is_not_delivered_again(store):
    store.publish(1, id="a")
    store.drain()
    store.publish(2, id="a")
    store.publish(3, id="b")
    store.drain()
    store.publish(4, id="b")
    store.drain()
    assert store.data() == [1, 3]
    assert (store.positions(), store.waiting(), store.set_aside()) == ([1, 2], 0, [])


def test_an_id_is_remembered_beyond_many_others(make_store):
    store = make_store(move_rows=2000)
    store.publish(0, id="row-7")
    store.drain()
    store.insert(*[{"channel": "orders", "data": str(n), "event_id": "row-%d" % n} for n in range(1, 1201)])
    store.drain()
    assert store.data(limit=8) == [0, 1, 2, 3, 4, 5, 6, 8]
    assert store.log.bounds().head == 1200
    store.check()


def test_an_id_is_forgotten_when_its_event_is_trimmed(make_store):
    store = make_store(retention_events=1)
    store.publish(1, id="a")
    store.publish(2, 3)
    store.drain()
    store.log.trim(store.log.glance().now)
    store.publish(4, id="a")
    store.drain()
    assert store.data() == [3, 4]
    store.check()


def test_ids_and_channels_that_differ_in_case_are_different(store):
    store.publish(1, id="a", channel="orders")
    store.publish(2, id="A", channel="Orders")
    store.drain()
    store.publish(3, id="A", channel="orders")
    store.drain()
    assert store.data() == [1, 2]
    assert store.data(channels=["orders"]) == [1]
    assert store.data(channels=["Orders"]) == [2]
    assert store.data(channels=["ORDERS"]) == []


def test_ids_and_channels_that_differ_in_what_a_collation_may_overlook_are_different(store):
    names = ["a", "a.", "a-", "a_", "A", "a=", "aa"]
    for number, name in enumerate(names):
        store.publish(number, id=name, channel=name)
    store.drain()
    assert [store.data(channels=[name]) for name in names] == [[number] for number in range(len(names))]


# Batches have bounds.


def test_a_move_takes_no_more_rows_than_the_setting_and_says_that_there_are_more(make_store, leave):
    store = make_store(move_rows=3)
    leave(store, *range(7))
    moves = store.drain()
    assert all(len(moved.events) <= 3 for moved in moves)
    assert [moved.more for moved in moves] == [True] * (len(moves) - 1) + [False]
    assert store.data() == list(range(7))
    store.check()


@pytest.mark.own_database
def test_a_hundred_thousand_rows_of_one_transaction_move_in_bounded_batches(make_store, leave):
    store = make_store(move_rows=1000)
    leave(store)
    run(store.engine, series(store.engine, 100_000))
    store.publish("behind")
    moves = store.drain()
    assert max(len(moved.events) for moved in moves) <= 1000
    assert len(moves) >= 100
    published = [each.data for moved in moves for each in moved.events]
    assert published == [str(number) for number in range(1, 100_001)] + ['"behind"']
    assert store.log.bounds().head == 100_001
    query = select(event.c.data).order_by(event.c.position)
    logged = store.database.read(lambda connection: [row[0] for row in connection.execute(query)])
    assert logged == published
    store.check()


def test_large_rows_make_the_next_batches_small_and_small_rows_large_again(make_store, leave, monkeypatch):
    monkeypatch.setattr("legacy_poll.sequencer._AIM_BYTES", 100_000)
    store = make_store(move_rows=20)
    leave(store)
    store.insert(*[{"channel": "orders", "data": '"%s"' % ("x" * 10_000)} for _ in range(60)])
    store.insert(*[{"channel": "orders", "data": str(number)} for number in range(40)])
    sizes = [[each.size for each in moved.events] for moved in store.drain()]
    assert len(sizes[0]) <= 20
    large = [batch for batch in sizes[1:] if batch[-1] > 1000]
    assert [sum(batch) for batch in large if sum(batch) > 110_000] == []
    assert max(map(len, sizes[-3:])) == 20
    assert store.log.bounds().head == 100
    store.check()


def test_data_that_is_too_large_is_never_fetched(store, monkeypatch):
    store.insert({"channel": "orders", "data": '"%s"' % ("x" * 1_000_000)})
    seen = []
    event_of = store.sequencer._event

    def look(row, *rest):
        seen.append(row)
        return event_of(row, *rest)

    monkeypatch.setattr(store.sequencer, "_event", look)
    store.drain()
    assert [row[4] for row in seen] == [None]
    assert len(store.set_aside()[0][1]) == 1_000_002


def test_an_empty_outbox_gives_an_empty_move(store):
    moved = store.move()
    assert (moved.events, moved.set_aside, moved.duplicates, moved.busy, moved.more) == (
        (),
        (),
        0,
        False,
        False,
    )


def test_what_a_move_says_is_what_the_log_has(store, leave):
    leave(store, 1, 2)
    moved = store.move()
    assert moved.events == store.events()
    assert (store.count(outbox), store.count(set_aside)) == (0, len(moved.set_aside))


@two_writers
def test_a_row_that_somebody_else_holds_delays_the_move_no_longer_than_its_limit(store, engine):
    store.publish(1)
    with engine.connect() as holder:
        holder.execute(select(outbox.c.id).with_for_update())
        moves = in_thread(store.move)
        until(lambda: moves, MOVE_SECONDS + 20, "the database ends the wait")
        assert moves[0].busy
        assert store.data() == []
    store.drain()
    assert store.data() == [1]


@one_writer
def test_a_write_that_may_wait_says_that_it_was_busy(store, engine):
    with engine.connect() as holder:
        append(holder, "orders", 1)
        with pytest.raises(StorageBusy, match="database is locked"):
            store.database.write(lambda connection: None)


def test_a_batch_that_the_database_ends_is_smaller_the_next_time(store, leave, monkeypatch):
    leave(store, *range(100))
    insert = store.dialect.insert_events

    def slow(connection, rows, **options):
        # As if there were too much to do for the time that a move may take.
        if len(rows) > 30:
            raise StorageUnavailable("terminated")
        return insert(connection, rows, **options)

    monkeypatch.setattr(store.dialect, "insert_events", slow)
    failures = 0
    while store.waiting():
        try:
            store.move()
        except StorageUnavailable:
            failures += 1
            assert failures < 50, "no batch is ever small enough"
    assert store.data() == list(range(100))


@pytest.mark.parametrize("database_url", ["mariadb", "mysql"], indirect=True)
@pytest.mark.parametrize("rows", [1, 500, 5000])
def test_a_move_looks_each_of_its_rows_up_by_key(store, engine, rows):
    # Any other plan may lock rows of transactions that are open, and then everybody stands behind them.
    run(engine, series(engine, rows))
    with engine.connect() as connection:
        first = connection.execute(select(func.min(outbox.c.id))).scalar()
        ids = json.dumps(list(range(first, first + 500)))
        plan = connection.execute(text("EXPLAIN FORMAT=TRADITIONAL " + DELETE_EACH.text), {"ids": ids})
        plan = plan.mappings().all()
    looked_up = [(row["type"], row["key"]) for row in plan if row["table"] == "o"]
    assert looked_up == [("eq_ref", "PRIMARY")], plan
