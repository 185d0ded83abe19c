"""Rows of the log that somebody deleted, or that a partial restore lacks: told to readers, survived by trims.

Positions are given without gaps, so what is missing between a cursor and an answer can be counted. A reader behind a
hole is told 410; one that has passed it, or comes without a cursor, goes on.
"""

from __future__ import annotations

import json

import pytest

from legacy_poll.cursors import check_of
from legacy_poll.errors import CursorExpired, CursorUnknown
from tests.contract.store import run, series
from tests.contract.test_trim import NOW, YESTERDAY, set_times


@pytest.fixture
def filled(make_store):
    """Fills a store with the numbers from 1 on; on the channel `rare` every tenth of them."""

    def fill(count, **settings):
        store = make_store(**settings)
        rows = [
            {"channel": "orders" if number % 10 else "rare", "data": str(number)}
            for number in range(1, count + 1)
        ]
        store.insert(*rows)
        store.drain()
        return store

    return fill


def delete(store, first, last=None):
    run(
        store.engine,
        "DELETE FROM legacy_poll_event WHERE position BETWEEN :first AND :last",
        first=first,
        last=first if last is None else last,
    )


def numbers(batch):
    return [json.loads(event.data) for event in batch.events]


@pytest.mark.parametrize("channels", [None, ["orders"], ["rare"], ["orders", "rare"], ["nobody's"]])
def test_a_reader_behind_a_hole_is_told_whatever_it_reads(filled, channels):
    store = filled(40)
    cursors = [store.log.cursor_at(position) for position in range(41)]
    delete(store, 17)
    for position in (0, 1, 15, 16):
        with pytest.raises(CursorExpired, match="before position 18 are missing from the log") as told:
            store.read(cursors[position], channels)
        assert told.value.facts["oldest"] == 18
    wanted = [n for n in range(19, 41) if channels is None or ("orders" if n % 10 else "rare") in channels]
    assert numbers(store.read(cursors[18], channels)) == wanted
    assert store.read(cursors[40], channels).cursor == cursors[40]


def test_a_cursor_at_the_event_that_is_missing_is_unknown(filled):
    store = filled(20)
    cursor = store.log.cursor_at(7)
    delete(store, 7)
    with pytest.raises(CursorUnknown):
        store.read(cursor)


def test_an_answer_that_ends_before_the_hole_is_given_and_the_next_is_not(filled):
    store = filled(40)
    start = store.log.cursor_at(0)
    delete(store, 17)
    batch = store.read(start, limit=10)
    assert (numbers(batch), batch.more) == (list(range(1, 11)), True)
    batch = store.read(batch.cursor, limit=6)
    assert (numbers(batch), batch.more) == (list(range(11, 17)), True)
    with pytest.raises(CursorExpired):
        store.read(batch.cursor, limit=10)


@pytest.mark.parametrize("first, last", [(1, 1), (1, 5), (20, 20), (15, 20)])
def test_holes_at_either_end_are_told_too(filled, first, last):
    store = filled(20)
    start = store.log.cursor_at(0)
    delete(store, first, last)
    with pytest.raises(CursorExpired, match="before position %d are missing" % (last + 1)):
        store.read(start, ["rare", "nobody's"])


def test_a_reader_without_a_cursor_is_given_what_there_is(filled):
    store = filled(20)
    delete(store, 4, 6)
    assert store.data() == [1, 2, 3] + list(range(7, 21))
    assert store.read(store.read().cursor).events == ()


def test_only_the_event_table_came_back_from_the_backup(filled):
    """Events up to 5, and a log that says 10: what was between is told, to whoever has not had it."""
    store = filled(10)
    cursors = [store.log.cursor_at(position) for position in range(11)]
    delete(store, 6, 10)
    store.publish(11)
    store.drain()
    assert store.positions() == [1, 2, 3, 4, 5, 11]
    for position in (0, 2, 5):
        with pytest.raises(CursorExpired, match="before position 11 are missing"):
            store.read(cursors[position])
    for position in (6, 10):
        with pytest.raises(CursorUnknown):
            store.read(cursors[position])
    assert numbers(store.read(store.log.cursor_at(10))) == [11]


def test_blocks_of_a_long_log_are_counted_once_for_many_readers_and_not_for_long(
    make_store, engine, monkeypatch
):
    monkeypatch.setattr("legacy_poll.eventlog._BLOCK", 100)
    now = [1000.0]
    store = make_store()
    run(engine, series(engine, 1000))
    store.drain()
    store.log._clock = lambda: now[0]
    starts = [store.log.cursor_at(position) for position in (3, 130, 270)]
    for start in starts:
        assert store.read(start, ["quiet"]).events == ()
    assert sorted(store.log._counted) == list(range(1, 10))
    # Within the time that a count is good for, the block at the reader's own place is looked at all the same.
    delete(store, 135)
    with pytest.raises(CursorExpired):
        store.read(starts[1], ["quiet"])
    delete(store, 555)
    now[0] += 2.0
    with pytest.raises(CursorExpired, match="before position 556"):
        store.read(starts[2], ["quiet"])


# Trims.


def test_a_hole_does_not_make_living_events_old(filled):
    """One row of a thousand deleted, a person's data say: halving over positions took it for old, and half went."""
    store = filled(1000, retention_seconds=3600)
    delete(store, 501)
    assert store.log.trim(store.log.glance().now).deleted == 0
    assert store.log.bounds().oldest == 1
    assert len(store.positions()) == 999


@pytest.mark.parametrize("time", [YESTERDAY, "1970-01-01T00:00:00.000Z", "not a time"])
def test_one_event_with_a_wrong_time_does_not_take_those_before_it_along(filled, time):
    store = filled(100, retention_seconds=3600)
    set_times(store, dict.fromkeys(range(1, 101), NOW))
    set_times(store, {50: time, 51: time, 75: time})
    store.log.trim(NOW)
    assert store.data() == list(range(1, 101))


def test_a_trim_takes_old_events_past_holes_of_any_size(filled):
    store = filled(1000, retention_seconds=3600)
    set_times(store, dict.fromkeys(range(1, 901), YESTERDAY))
    set_times(store, dict.fromkeys(range(901, 1001), NOW))
    delete(store, 1, 20)
    delete(store, 30, 700)
    delete(store, 890, 910)
    store.log.trim(NOW)
    assert store.data() == list(range(911, 1001))
    assert store.log.bounds().oldest == 911


@pytest.mark.parametrize("last", [10**7, 10**11, 2**61])
@pytest.mark.parametrize("age", ["old", "young"])
def test_a_trim_is_past_a_gap_at_once_however_wide_it_is(filled, last, age):
    """By windows of positions it had taken an hour, with a transaction and a line on the terminal for each."""
    store = filled(100, retention_seconds=3600)
    set_times(store, dict.fromkeys(range(1, 101), YESTERDAY))
    run(store.engine, "UPDATE legacy_poll_event SET position = :last WHERE position = 100", last=last)
    run(store.engine, "UPDATE legacy_poll_log SET head = :last", last=last)
    set_times(store, {last: YESTERDAY if age == "old" else NOW})
    rounds = 1
    while store.log.trim(NOW).more:
        rounds += 1
    assert rounds <= 3
    assert store.positions() == [last]
    assert store.data() == ([100] if age == "young" else [])
    assert store.log.bounds().oldest == last + (age == "old")


def test_a_trim_goes_on_behind_holes_until_everything_is_deleted(filled):
    """Batches of a sparse log have few positions in many: fewer than a full batch was taken for the end."""
    store = filled(3000, retention_seconds=3600)
    set_times(store, dict.fromkeys(range(1, 3001), YESTERDAY))
    run(store.engine, "DELETE FROM legacy_poll_event WHERE position % 2 = 0 AND position < 2900")
    there = len(store.positions())
    trimmed = store.log.trim(NOW, batches=1)
    assert (trimmed.deleted, trimmed.more) == (500, True)
    assert store.log.trim(NOW, batches=20).deleted == there - 500 - 1
    assert (store.log.trim(NOW).more, store.positions()) == (False, [3000])


def test_as_many_events_as_the_setting_keeps_are_kept_and_not_as_many_positions(filled):
    store = filled(100, retention_events=20)
    delete(store, 70, 95)
    store.log.trim(NOW)
    assert len(store.data()) == 20
    assert store.data() == list(range(55, 70)) + list(range(96, 101))


def test_events_since_a_time_are_found_behind_a_hole_and_a_wrong_time(filled):
    store = filled(30)
    set_times(store, dict.fromkeys(range(1, 31), YESTERDAY))
    delete(store, 16)
    now = store.log.glance().now
    set_times(store, dict.fromkeys(range(21, 31), now))
    assert store.log.cursor_since(3600).position == 20
    set_times(store, {25: YESTERDAY})
    assert store.log.cursor_since(3600).position == 20
    # The whole of it, and no year without its zero.
    for seconds in (4e10, 400_000 * 86_400.0, 1e18):
        assert store.log.cursor_since(seconds).position == 0


def test_two_events_that_are_large_together_are_no_hole(make_store):
    store = make_store(max_event_bytes=6_000_000)
    for number in (1, 2):
        store.insert({"channel": "orders", "data": '"%s"' % (str(number) * 4_500_000)})
    while store.waiting():
        store.move()
    there, events = store.log.read_new(1, upto=2, limit=1000, max_bytes=8 * 1024 * 1024)
    assert there == store.log.cursor_at(1).check != check_of(None)
    assert [event.position for event in events] == [2]
