"""MariaDB: a report that has the end of the log locked stops nobody's events; they are kept apart until it ends."""

from __future__ import annotations

import pytest
from flask import Flask
from sqlalchemy import event as listening
from sqlalchemy.engine import Engine

from legacy_poll import LegacyPoll, schema, upkeep
from legacy_poll.errors import CursorExpired, CursorUnknown
from legacy_poll.storage.erasing import Erased, What, erase
from legacy_poll.tables import apart
from tests.contract.store import run

pytestmark = [
    pytest.mark.parametrize("database_url", ["mariadb", "mysql"], indirect=True),
    pytest.mark.own_database,
]

LATER = "2999-01-01T00:00:00.000Z"


@pytest.fixture
def report(engine, store, begin):
    """A job of another session in the middle of INSERT ... SELECT at REPEATABLE READ; rollback() ends it."""
    run(engine, "CREATE TABLE archive LIKE legacy_poll_event")
    store.publish(1, 2, 3)
    store.drain()
    job = begin()
    job.exec_driver_sql("INSERT INTO archive SELECT * FROM legacy_poll_event")
    return job


def bring_back(store):
    total = 0
    while True:
        found = store.sequencer.bring_back(most=2)
        if not found:
            return total
        total += found


def test_events_arrive_while_the_report_is_open_and_are_where_they_belong_afterwards(store, report):
    start = store.log.cursor_at(0)
    store.publish(4)
    moved = store.move()
    assert [event.position for event in moved.events] == [4]
    assert store.log.glance().apart_from == 4
    # What follows waits for nothing.
    store.publish(5, 6, channel="users")
    store.drain()
    assert (store.positions(), store.count(apart)) == ([1, 2, 3], 3)
    for cursor in (None, start):
        assert store.data(cursor=cursor) == [1, 2, 3, 4, 5, 6]
        assert store.data(cursor=cursor, channels=["users"]) == [5, 6]
    assert store.data(cursor=store.log.cursor_at(4)) == [5, 6]
    assert bring_back(store) == 0
    report.rollback()
    assert bring_back(store) == 3
    assert (store.positions(), store.count(apart)) == ([1, 2, 3, 4, 5, 6], 0)
    assert store.log.glance().apart_from is None
    store.publish(7)
    store.drain()
    assert store.data(cursor=start) == [1, 2, 3, 4, 5, 6, 7]


def test_every_worker_puts_its_events_apart_and_their_order_is_one(store, report, make_store):
    others = [make_store(), make_store()]
    for number in range(4, 30):
        store.publish(number)
        [store, *others][number % 3].move()
    assert store.data() == list(range(1, 30))
    report.rollback()
    # Some are back, some are apart, and more come.
    assert store.sequencer.bring_back(most=5) == 5
    for number in range(30, 40):
        store.publish(number)
        [store, *others][number % 3].move()
        others[0].sequencer.bring_back(most=1)
    assert store.data() == list(range(1, 40))
    while store.count(apart):
        bring_back(others[1])
    store.check()
    assert store.data() == list(range(1, 40))


def test_answers_are_cut_counted_and_checked_over_both_tables(store, report):
    for number in range(4, 10):
        store.publish(number, channel="rare" if number % 2 else "orders")
    store.drain()
    cursors = [store.log.cursor_at(position) for position in range(10)]
    batch = store.read(cursors[1], limit=4)
    assert ([event.position for event in batch.events], batch.more) == ([2, 3, 4, 5], True)
    assert store.data(cursor=batch.cursor) == [6, 7, 8, 9]
    assert store.data(cursor=cursors[2], channels=["rare"]) == [5, 7, 9]
    there, events = store.log.read_new(2, upto=9, limit=100, max_bytes=1 << 20)
    assert there == cursors[2].check
    assert [event.position for event in events] == [3, 4, 5, 6, 7, 8, 9]
    assert [event.position for event in store.log.read_at(3, 5)] == [3, 4, 5]
    assert store.log.time_at(9) is not None
    assert store.log.cursor_since(3600).position == 0
    assert upkeep.status(store.database, store.log).events == 9
    assert schema.repair(store.engine).damage is None
    # A hole there is told like any.
    run(store.engine, "DELETE FROM legacy_poll_apart WHERE position = 6")
    with pytest.raises(CursorExpired, match="before position 7"):
        store.read(cursors[2], ["rare"])
    with pytest.raises(CursorUnknown):
        store.read(cursors[6])
    assert store.data(cursor=cursors[7]) == [8, 9]
    run(store.engine, "UPDATE legacy_poll_log SET oldest = 7")


def test_ids_that_are_apart_are_known(store, report):
    store.publish("first", id="given")
    store.drain()
    store.publish("again", id="given")
    store.drain()
    assert store.data() == [1, 2, 3, "first"]


@pytest.mark.parametrize("asks", ["the sequencer", "the publish route"])
def test_an_id_is_known_also_when_its_event_is_brought_back_between_the_questions(
    store, report, make_store, engine, asks
):
    """Two statements, one for each table: the event moves from the one to the other in between."""
    store.publish("first", id="given")
    store.drain()
    other = make_store()
    report.rollback()
    asked, brought = [], []

    def bring(connection, cursor, statement, *rest):
        if "legacy_poll_event.id IN (" in statement or "legacy_poll_apart.id IN (" in statement:
            asked.append(statement)
            if len(asked) == 1:
                brought.append(bring_back(other))

    row = {"id": "given", "channel": "orders", "data": "again", "type": "message"}
    if asks == "the sequencer":
        store.publish("again", id="given")
    glance = store.log.glance()
    app = Flask(__name__)
    poll = LegacyPoll(app, engine=engine, public=True)
    listening.listen(Engine, "after_cursor_execute", bring)
    try:
        if asks == "the sequencer":
            assert store.sequencer.move(glance).duplicates == 1
        else:
            with app.app_context():
                assert poll.publish_rows([row]) == [{"id": "given", "duplicate": True}]
    finally:
        listening.remove(Engine, "after_cursor_execute", bring)
        with app.app_context():
            poll.stop()
    assert (len(asked), brought) == (2, [1])
    store.drain()
    assert store.data() == [1, 2, 3, "first"]


def test_trims_wait_for_nothing_and_hide_nothing(make_store, report):
    store = make_store(retention_seconds=60)
    store.publish(4)
    store.drain()
    assert store.log.trim(LATER).deleted == 0
    assert store.data() == [1, 2, 3, 4]
    report.rollback()
    bring_back(store)
    assert store.log.trim(LATER).deleted == 3
    assert store.data() == []


def test_a_trim_of_events_that_are_locked_gives_way_at_once(make_store, report):
    """It would wait with the log's lock in its hand, and everybody's events with it."""
    store = make_store(retention_events=1)
    seen = []
    lock_events = store.dialect.lock_events

    def watched(connection, first, last):
        seen.append((first, last))
        lock_events(connection, first, last)
        seen.append("locked")

    store.dialect.lock_events = watched
    assert store.log.trim(LATER).deleted == 0
    assert seen == [(1, 2)]
    report.rollback()
    assert store.log.trim(LATER).deleted == 2


def test_events_that_are_apart_can_be_erased(store, report):
    store.publish("secret", channel="user:7")
    store.publish("next")
    store.drain()
    assert erase(store.database, What(channels=frozenset(["user:7"]))) == Erased(1, 0, 0)
    store.drain()
    assert store.data(channels=["orders", "user:7"]) == [1, 2, 3, "next"]
    report.rollback()
    bring_back(store)
    assert store.data(channels=["orders", "user:7"]) == [1, 2, 3, "next"]
    assert store.data(cursor=store.log.cursor_at(4), channels=["orders"]) == ["next"]


def test_a_worker_that_is_killed_while_it_brings_them_back_leaves_each_in_one_place(
    store, report, monkeypatch
):
    store.publish(4, 5)
    store.drain()
    report.rollback()

    def killed(connection, *, most):
        bring(connection, most=most)
        raise KeyboardInterrupt

    bring = store.dialect.bring_back
    monkeypatch.setattr(store.dialect, "bring_back", killed)
    with pytest.raises(KeyboardInterrupt):
        store.sequencer.bring_back()
    monkeypatch.undo()
    assert store.data() == [1, 2, 3, 4, 5]
    assert bring_back(store) == 2
    assert store.data() == [1, 2, 3, 4, 5]


def test_events_that_somebody_has_copied_by_hand_are_read_once_and_brought_back(store, report, engine):
    start = store.log.cursor_at(0)
    store.publish(4, 5, 6)
    store.drain()
    report.rollback()
    run(engine, "INSERT INTO legacy_poll_event SELECT * FROM legacy_poll_apart WHERE position < 6")
    for cursor in (None, store.log.cursor_at(2)):
        assert store.data(cursor=cursor) == [1, 2, 3, 4, 5, 6][0 if cursor is None else 2 :]
    # What is twice there is counted once: a reader of other channels is told of no hole, and of one that is.
    assert store.data(cursor=start, channels=["nobody"]) == []
    run(engine, "DELETE FROM legacy_poll_event WHERE position = 2")
    with pytest.raises(CursorExpired):
        store.read(start, ["nobody"])
    run(engine, "UPDATE legacy_poll_log SET oldest = 3")
    assert bring_back(store) == 3
    assert (store.positions(), store.count(apart)) == ([1, 3, 4, 5, 6], 0)
    assert store.data() == [3, 4, 5, 6]


def test_nothing_goes_apart_while_code_may_serve_that_knows_nothing_of_it(store, report, engine):
    """A worker of an older version would pass over it: it shows by events without a mark."""
    report.rollback()
    run(engine, "UPDATE legacy_poll_event SET mark = NULL WHERE position = 2")
    report.exec_driver_sql("INSERT INTO archive SELECT * FROM legacy_poll_event")
    store.publish(4)
    moved = store.move()
    assert (moved.busy, moved.blocked, store.count(apart)) == (True, True, 0)
    report.rollback()
    store.drain()
    assert store.data() == [1, 2, 3, 4]
