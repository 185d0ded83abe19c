"""What is older or more than the settings keep goes, oldest first, and the log stays whole."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from sqlalchemy import event as listening
from sqlalchemy.engine import Engine

from legacy_poll.errors import CursorExpired
from legacy_poll.events import seconds_of
from legacy_poll.storage.ages import KnownFor, SteadyClock
from legacy_poll.tables import log
from tests.contract.store import run
from tests.unit.memory_log import Clock

LONG_AGO, YESTERDAY, NOW = "2020-01-01T00:00:00.000Z", "2024-05-01T12:00:00.000Z", "2024-05-02T12:00:00.000Z"


def filled(store, count, times=()):
    """Publishes 1 to *count*; *times* says when the first of them were published."""
    store.insert(*[{"channel": "orders", "data": str(number)} for number in range(1, count + 1)])
    store.drain()
    set_times(store, dict(enumerate(times, 1)))
    return store


def set_times(store, times):
    for position, time in times.items():
        run(
            store.engine,
            "UPDATE legacy_poll_event SET published_at = :time WHERE position = :position",
            time=time,
            position=position,
        )


def test_more_events_than_the_setting_keeps_are_trimmed(make_store):
    store = filled(make_store(retention_events=3), 10)
    assert store.log.trim(NOW).deleted == 6
    assert store.data() == [8, 9, 10]
    assert store.log.bounds().oldest == 8
    store.check()


def test_exactly_as_many_events_as_the_setting_keeps_stay(make_store):
    store = filled(make_store(retention_events=10), 10)
    assert store.log.trim(NOW).deleted == 0
    assert store.data() == list(range(1, 11))


def test_events_older_than_the_setting_are_trimmed(make_store):
    store = filled(make_store(retention_seconds=86400 + 1), 6, [LONG_AGO] * 3 + [YESTERDAY] * 3)
    store.log.trim(NOW)
    assert store.data() == [4, 5, 6]
    store.check()


@pytest.mark.parametrize("old", range(8))
def test_the_boundary_between_old_and_young_is_found_wherever_it_is(make_store, old):
    store = filled(make_store(retention_seconds=3600), 7, [LONG_AGO] * old + [NOW] * (7 - old))
    store.log.trim(NOW)
    assert store.data() == list(range(old + 1, 8))
    store.check()


def test_an_event_is_kept_to_the_millisecond(make_store):
    store = filled(
        make_store(retention_seconds=1), 2, ["2024-05-02T11:59:58.999Z", "2024-05-02T11:59:59.000Z"]
    )
    store.log.trim(NOW)
    assert store.data() == [2]


def test_zero_keeps_everything(make_store):
    store = filled(make_store(retention_seconds=0, retention_events=0), 5, [LONG_AGO] * 5)
    assert store.log.trim(NOW).deleted == 0
    assert store.data() == [1, 2, 3, 4, 5]


def test_the_databases_own_times_are_old_after_the_retention_and_not_before(make_store):
    store = filled(make_store(retention_seconds=60), 3)
    store.log.trim(store.log.glance().now)
    assert store.data() == [1, 2, 3]
    store.log.trim("2999-01-01T00:00:00.000Z")
    assert store.data() == []


def test_the_row_below_the_oldest_stays_so_that_the_cursor_behind_it_can_be_checked(make_store):
    store = filled(make_store(retention_events=3), 10)
    store.log.trim(NOW)
    assert store.positions() == [7, 8, 9, 10]
    assert store.data(cursor=store.log.cursor_at(7)) == [8, 9, 10]


def test_the_cursor_at_the_head_of_a_log_without_events_still_works(make_store):
    store = filled(make_store(retention_seconds=60), 10)
    head, before = store.log.cursor_at(10), store.log.cursor_at(9)
    store.log.trim("2999-01-01T00:00:00.000Z")
    bounds = store.log.bounds()
    assert (bounds.head, bounds.oldest, store.positions()) == (10, 11, [10])
    assert store.read(head).cursor == store.read().cursor == head
    with pytest.raises(CursorExpired):
        store.read(before)
    store.publish(11)
    store.drain()
    assert store.data(cursor=head) == store.data() == [11]


def test_positions_go_on_after_everything_was_trimmed(make_store):
    store = make_store(retention_seconds=60)
    for number in (1, 2, 3):
        store.publish(number)
        store.drain()
        store.log.trim("2999-01-01T00:00:00.000Z")
        assert store.data() == []
    assert (store.log.bounds().head, store.positions()) == (3, [3])


def test_an_empty_log_has_nothing_to_trim(make_store):
    store = make_store(retention_events=1, retention_seconds=1)
    assert store.log.trim("2999-01-01T00:00:00.000Z").deleted == 0
    store.check()


def test_a_trim_goes_in_small_batches_and_the_next_call_goes_on(make_store):
    store = filled(make_store(retention_events=100), 1400)
    assert store.log.trim_rows == 500
    assert store.log.trim(NOW, batches=1).deleted == 500
    # What is to go is out of sight at once, before it is gone.
    assert (len(store.events()), len(store.positions())) == (100, 900)
    assert store.log.trim(NOW, batches=1).deleted == 500
    assert store.log.trim(NOW, batches=1).deleted == 299
    assert store.log.trim(NOW, batches=1).deleted == 0
    assert store.positions() == list(range(1300, 1401))


def test_the_oldest_moves_before_any_row_is_gone(make_store):
    store, other = filled(make_store(retention_events=2), 5), make_store()
    seen = []

    @listening.listens_for(Engine, "before_cursor_execute")
    def look(connection, cursor, statement, *rest):
        if statement.startswith("DELETE FROM legacy_poll_event"):
            seen.append((other.log.bounds().oldest, other.positions()))

    try:
        store.log.trim(NOW)
    finally:
        listening.remove(Engine, "before_cursor_execute", look)
    assert seen == [(4, [1, 2, 3, 4, 5])]


def test_a_trim_that_fails_between_its_steps_leaves_a_whole_log(make_store, monkeypatch):
    store = filled(make_store(retention_events=2), 5)

    def fail(connection):
        raise KeyboardInterrupt

    monkeypatch.setattr(store.log, "_delete_some", fail)
    with pytest.raises(KeyboardInterrupt):
        store.log.trim(NOW)
    monkeypatch.undo()
    assert (store.log.bounds().oldest, store.data()) == (4, [4, 5])
    store.log.trim(NOW)
    assert store.positions() == [3, 4, 5]


CLOCKS = {
    "back and on again": [1, 2, 3, 1, 2, 3, 4, 5, 6],
    "back for one event": [1, 5, 0, 5, 5, 6, 6, 6, 6],
    "far ahead for some": [1, 9, 9, 9, 2, 3, 4, 5, 6],
    "backwards all the time": [9, 8, 7, 6, 5, 4, 3, 2, 1],
}


@pytest.mark.parametrize("minutes", CLOCKS.values(), ids=list(CLOCKS))
@pytest.mark.parametrize("now", [3, 5, 9])
def test_a_clock_that_steps_tears_no_hole(make_store, minutes, now):
    store = filled(
        make_store(retention_seconds=60), 9, ["2024-05-02T12:0%d:00.000Z" % each for each in minutes]
    )
    store.log.trim("2024-05-02T12:0%d:30.000Z" % now)
    store.check()
    assert store.data() == list(range(store.log.bounds().oldest, 10))
    store.publish(10)
    store.drain()
    assert store.data()[-1] == 10


def test_a_clock_set_back_does_not_bring_the_oldest_back(make_store):
    store = filled(make_store(retention_seconds=60), 5, [YESTERDAY] * 3 + [NOW] * 2)
    store.log.trim(NOW)
    assert store.log.trim(LONG_AGO).deleted == 0
    assert store.data() == [4, 5]


def test_two_trims_at_once_leave_a_whole_log(make_store):
    store, other = filled(make_store(retention_events=3), 10), make_store(retention_events=5)
    keep = store.database.write

    def write(work):
        store.database.write = keep
        other.log.trim(NOW)
        return keep(work)

    store.database.write = write
    store.log.trim(NOW)
    assert (store.log.bounds().oldest, store.data()) == (8, [8, 9, 10])
    assert other.log.trim(NOW).deleted == 0
    store.check()


def test_events_that_come_during_a_trim_stay(make_store):
    store, other = filled(make_store(retention_seconds=60), 3, [LONG_AGO] * 3), make_store()
    keep = store.database.write

    def write(work):
        store.database.write = keep
        other.publish(4)
        other.drain()
        return keep(work)

    store.database.write = write
    store.log.trim(NOW)
    assert (store.data(), store.log.bounds().oldest) == ([4], 4)
    store.check()


def test_a_trim_that_finds_the_log_locked_gives_up_and_is_done_later(make_store, engine):
    store = filled(make_store(retention_events=2), 5)
    with engine.connect() as holder:
        holder.execute(log.update().values(oldest=log.c.oldest))
        assert store.log.trim(NOW).deleted == 0
    assert (store.log.bounds().oldest, store.data()) == (1, [1, 2, 3, 4, 5])
    assert store.log.trim(NOW).deleted == 2
    assert store.data() == [4, 5]


@pytest.mark.parametrize("seconds", [4e10, 6.4e10, 1e15])
def test_a_retention_of_millennia_keeps_everything(make_store, seconds):
    """The year 759 has four digits too, where texts are compared."""
    store = filled(make_store(retention_seconds=seconds), 5, [LONG_AGO] * 5)
    assert store.log.trim(NOW).deleted == 0
    assert store.data() == [1, 2, 3, 4, 5]


def test_a_look_while_the_databases_clock_is_a_day_ahead_trims_nothing(make_store):
    store = filled(make_store(retention_seconds=3600), 5)
    passed, wall = Clock(), [seconds_of(store.log.glance().now)]
    steady = SteadyClock(clock=passed, wall=lambda: wall[0])
    ahead = moved(store.log.glance().now, days=1)
    assert store.log.trim(steady(ahead)).deleted == 0
    assert steady.ahead_seconds > 80_000
    assert store.data() == [1, 2, 3, 4, 5]
    # And when the host's clock jumps with it, as on one machine.
    wall[0] += 86_400
    assert store.log.trim(steady(ahead)).deleted == 0
    assert store.log.bounds().oldest == 1
    # An hour passes, here and there.
    passed.now += 3700
    assert store.log.trim(steady(moved(ahead, seconds=3700))).deleted == 4
    assert store.data() == []


def test_events_from_the_future_are_old_once_a_worker_has_known_them_for_as_long(make_store):
    store = make_store(retention_seconds=3600)
    passed = Clock()
    store.log._known_for = KnownFor(clock=passed)
    filled(store, 10, ["2924-05-02T12:00:00.000Z"] * 5)
    now = store.log.glance().now
    assert store.log.trim(now).deleted == 0
    passed.now += 3500
    later = moved(now, seconds=3500)
    store.publish(11)
    store.drain()
    assert store.log.trim(later).deleted == 0
    passed.now += 200
    assert store.log.trim(now).deleted == 9
    assert store.data() == [11]


def test_ages_known_of_a_log_are_forgotten_when_it_is_another(make_store):
    store = make_store(retention_seconds=3600)
    passed = Clock()
    store.log._known_for = KnownFor(clock=passed)
    filled(store, 10)
    now = store.log.glance().now
    store.log.trim(now)
    # Restored from a backup: fewer events, then others at the same positions.
    run(store.engine, "DELETE FROM legacy_poll_event WHERE position > 3")
    run(store.engine, "UPDATE legacy_poll_log SET head = 3")
    store.log.begin_anew()
    store.publish(*range(20))
    store.drain()
    passed.now += 3700
    assert store.log.trim(now).deleted == 0
    assert len(store.data()) == 23


def moved(time, **by):
    moment = datetime.strptime(time, "%Y-%m-%dT%H:%M:%S.%fZ") + timedelta(**by)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + "%03dZ" % (moment.microsecond // 1000)


def test_nothing_is_trimmed_by_what_was_known_of_the_log_before_it_was_restored(make_store):
    """Nobody has told this worker, and the log has grown past what it knew by its next trim."""
    passed = Clock()
    store, other = make_store(retention_seconds=3600), make_store()
    store.log._known_for = KnownFor(clock=passed)
    filled(store, 10)
    now = store.log.glance().now
    store.log.trim(now)
    run(store.engine, "DELETE FROM legacy_poll_event WHERE position > 8")
    run(store.engine, "UPDATE legacy_poll_log SET head = 8")
    other.publish(*range(20))
    other.drain()
    passed.now += 3700
    for _ in range(2):
        assert store.log.trim(now).deleted == 0
    assert len(store.data()) == 28


def test_known_position_whose_event_is_gone_trims_nothing(make_store):
    passed = Clock()
    store = make_store(retention_seconds=3600)
    store.log._known_for = KnownFor(clock=passed)
    filled(store, 10)
    now = store.log.glance().now
    store.log.trim(now)
    run(store.engine, "DELETE FROM legacy_poll_event WHERE position = 10")
    store.publish(11)
    store.drain()
    passed.now += 3700
    assert store.log.trim(now).deleted == 0
    assert store.data() == list(range(1, 10)) + [11]
