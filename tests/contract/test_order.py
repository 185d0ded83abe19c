"""Commit order is not id order: nothing is skipped, nothing is torn apart, whatever commits when.

Two transactions that are open at once are two connections, each driven by hand. SQLite has one writer at a time, so
there the same sentences are about what a writer's own transaction did.
"""

from __future__ import annotations

import json

import pytest

from legacy_poll.eventlog import append
from tests.contract.store import one_writer, run, series, two_writers


def test_rows_of_one_transaction_stay_in_order(store):
    with store.engine.begin() as connection:
        for number in range(50):
            append(connection, "orders", number)
    store.drain()
    assert store.data() == list(range(50))


@two_writers
def test_the_later_id_may_commit_first_and_neither_is_skipped(store, begin):
    first, second = begin(), begin()
    append(first, "orders", "lower id")
    append(second, "orders", "higher id")
    second.commit()
    store.drain()
    cursor = store.read().cursor
    assert store.data() == ["higher id"]
    first.commit()
    store.drain()
    assert store.data(cursor=cursor) == ["lower id"]
    assert store.positions() == [1, 2]


@two_writers
def test_what_committed_before_another_was_inserted_comes_first(store, begin):
    bystander = begin()
    append(bystander, "orders", "bystander")
    for number in range(10):
        with begin() as connection:
            append(connection, "orders", number)
            connection.commit()
    bystander.commit()
    store.drain()
    assert [each for each in store.data() if each != "bystander"] == list(range(10))
    assert len(store.data()) == 11


def test_what_committed_before_another_was_inserted_comes_first_whoever_sequences(store, make_store):
    others = [make_store(), make_store()]
    for number in range(12):
        store.publish(number)
        if number % 3:
            others[number % 2].move()
    store.drain()
    assert store.data() == list(range(12))


@two_writers
def test_a_transaction_left_open_holds_up_nobody_elses_events(store, begin):
    left_open = begin()
    append(left_open, "orders", "late")
    for number in range(5):
        store.publish(number)
        store.drain()
        assert store.data()[-1] == number
    left_open.commit()
    store.drain()
    assert store.data() == [0, 1, 2, 3, 4, "late"]


@one_writer
def test_an_open_transaction_hides_no_event_that_was_there_before(store, begin):
    store.publish(1)
    left_open = begin()
    append(left_open, "orders", 2)
    assert store.data() == [1]
    assert store.read().cursor == store.log.bounds().cursor
    left_open.commit()
    assert store.data() == [1, 2]


@two_writers
def test_ids_that_were_rolled_back_leave_no_gap(store, begin):
    doomed, other = begin(), begin()
    append(doomed, "orders", "doomed")
    append(other, "orders", 1)
    append(doomed, "orders", "doomed too")
    append(other, "orders", 2)
    doomed.rollback()
    other.commit()
    store.drain()
    assert store.data() == [1, 2]
    assert store.positions() == [1, 2]


@one_writer
def test_a_rolled_back_writer_gives_its_positions_back(store, begin):
    doomed = begin()
    append(doomed, "orders", "doomed")
    doomed.rollback()
    store.publish(1)
    assert store.data() == [1]
    assert store.positions() == [1]


@two_writers
def test_rows_interleaved_in_two_transactions_each_keep_their_order(store, begin):
    one, other = begin(), begin()
    for number in range(6):
        append(one, "one", number)
        append(other, "other", number)
    other.commit()
    store.drain()
    one.commit()
    store.drain()
    assert store.data(channels=["one"]) == store.data(channels=["other"]) == list(range(6))


@pytest.mark.own_database
@two_writers
def test_a_transaction_that_publishes_at_both_ends_of_a_long_window_keeps_its_order(make_store, begin):
    store = make_store(move_rows=5000)
    long = begin()
    append(long, "long", "first")
    run(store.engine, series(store.engine, 10_000))
    store.move()
    append(long, "long", "last")
    store.publish("after")
    long.commit()
    # The rows of the crowd, of the open transaction and of those that came later are all there now.
    store.drain()
    assert store.data(channels=["long"]) == ["first", "last"]
    assert store.data(channels=["crowd"]) == list(range(1, 10_001))
    store.check()


@pytest.mark.own_database
@two_writers
def test_a_long_window_keeps_its_order_also_when_everything_else_was_moved_before(make_store, begin):
    store = make_store(move_rows=5000)
    long = begin()
    append(long, "long", "first")
    run(store.engine, series(store.engine, 10_000))
    store.drain()
    append(long, "long", "last")
    long.commit()
    store.publish("after")
    store.drain()
    assert store.data(channels=["long", "orders"]) == ["first", "last", "after"]
    store.check()


@two_writers
def test_a_transaction_with_lower_ids_may_commit_between_two_batches_of_a_large_one(make_store, begin):
    store = make_store(move_rows=10)
    small, large = begin(), begin()
    append(small, "small", "first")
    for number in range(35):
        append(large, "large", number)
    append(small, "small", "last")
    large.commit()
    store.move()
    small.commit()
    store.drain()
    assert store.data(channels=["large"]) == list(range(35))
    assert store.data(channels=["small"]) == ["first", "last"]
    store.check()


@two_writers
def test_what_commits_between_the_look_and_the_move_is_not_lost(store, begin, monkeypatch):
    late = begin()
    append(late, "orders", "late")
    store.publish("early")
    glance = store.log.glance()

    delete = store.dialect.delete_outbox

    def commit_late(connection, ids):
        # The rows have been read, and their move is about to delete them.
        late.commit()
        return delete(connection, ids)

    monkeypatch.setattr(store.dialect, "delete_outbox", commit_late)
    moved = store.sequencer.move(glance)
    monkeypatch.undo()
    assert [json.loads(each.data) for each in moved.events] == ["early"]
    store.drain()
    assert store.data() == ["early", "late"]


def test_a_new_process_goes_on_where_another_stopped(store, make_store):
    for number in range(6):
        store.publish(number)
        fresh = make_store()
        fresh.drain()
        fresh.close()
    assert store.data() == list(range(6))
