"""The loop by hand: each `step` is a call, each pause a number, and the log does what the test says."""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import replace

import pytest

from legacy_poll import publisher as room
from legacy_poll.config import Settings
from legacy_poll.errors import SchemaError, SchemaMissing, StorageUnavailable
from legacy_poll.events import seconds_of
from legacy_poll.hub import Group, Hub
from legacy_poll.publisher import Publisher
from tests.unit.memory_log import TIME, Clock, MemoryLog, MemorySequencer, positions
from tests.waiting import until

ORDERS = frozenset(["orders"])


class Worker:
    """A publisher with a log, a sequencer, a hub and a clock; `run` for as long as it takes to be idle."""

    def __init__(self, log=None, jitter=0.5, **settings):
        self.log = log or MemoryLog()
        self.sequencer = MemorySequencer(self.log)
        self.settings = Settings(**settings)
        self.hub = Hub(
            tail_events=self.settings.tail_events,
            tail_bytes=self.settings.tail_bytes,
            max_bytes=self.settings.max_response_bytes,
        )
        self.clock = Clock()
        self.jitter = jitter
        self.checks = []
        self.faults = []
        self.publisher = Publisher(
            self.log,
            self.sequencer,
            self.hub,
            self.settings,
            check=self._check,
            faults=lambda: self.faults.pop(0) if self.faults else [],
            clock=self.clock,
            jitter=lambda: self.jitter,
        )

    def _check(self):
        outcome = self.checks.pop(0) if self.checks else None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def step(self):
        return self.publisher.step()

    def steps(self, count):
        """The pauses after *count* steps; the clock goes on by each."""
        pauses = []
        for _ in range(count):
            pauses.append(self.step())
            self.clock.now += pauses[-1]
        return pauses

    def settle(self):
        """Steps until there is nothing to do; returns how many it took."""
        for count in range(1, 50):
            if self.step() > 0:
                return count
        raise AssertionError("50 steps, and it goes round and round")

    def seen(self, cursor=None):
        """Positions in memory behind *cursor*, by default behind the floor."""
        found = self.hub.join(ORDERS, cursor or self.log.cursor(0), limit=10_000)
        if isinstance(found, Group):
            self.hub.leave(found, limit=1)
            return []
        return None if found is None else positions(found)


@pytest.fixture
def worker():
    return Worker()


@pytest.fixture
def told(caplog):
    """The messages of the log so far: [(level, text)]."""
    caplog.set_level(logging.INFO, logger="legacy_poll")
    return lambda: [(record.levelname, record.getMessage()) for record in caplog.records]


# What a tick does.


def test_the_first_tick_reads_the_recent_end_of_the_log():
    worker = Worker(tail_events=3)
    for _ in range(10):
        worker.log.append("orders")
    worker.settle()
    assert worker.seen(worker.log.cursor(7)) == [8, 9, 10]
    assert worker.hub.cursor == worker.log.cursor(10)


def test_the_first_tick_reads_only_what_is_retained(worker):
    for _ in range(10):
        worker.log.append("orders")
    worker.log.forget(8)
    worker.settle()
    assert worker.seen(worker.log.cursor(7)) == [8, 9, 10]


def test_what_others_put_into_the_log_is_delivered(worker):
    worker.settle()
    worker.log.append("orders")
    worker.settle()
    assert worker.seen() == [1]


def test_what_is_in_the_outbox_is_moved_and_delivered_without_being_read_again(worker, monkeypatch):
    worker.settle()
    monkeypatch.setattr(worker.log, "read_new", None)
    worker.log.outbox += ["orders", "orders"]
    worker.settle()
    assert worker.seen() == [1, 2]


def test_what_others_moved_before_us_comes_first(worker):
    worker.settle()
    worker.log.append("orders")
    worker.log.outbox.append("orders")
    worker.settle()
    assert worker.seen() == [1, 2]


def test_what_others_moved_meanwhile_is_read_with_our_own(worker):
    """The glance saw no event, then another worker moved one, then ours moved one: both are delivered, in order."""
    worker.settle()
    worker.log.outbox.append("orders")
    move = worker.sequencer.move

    def late(glance):
        moved = move(glance)
        worker.log.append("orders")
        return moved

    worker.sequencer.move = late
    worker.settle()
    worker.settle()
    assert worker.seen() == [1, 2]


def test_a_full_outbox_is_moved_without_pauses(worker):
    worker.settle()
    worker.sequencer.most = 10
    worker.log.outbox += ["orders"] * 35
    pauses = worker.steps(4)
    assert pauses == [0.0, 0.0, 0.0, 0.004]
    assert worker.seen() == list(range(1, 36))


def test_a_log_that_is_far_ahead_is_read_without_pauses(worker):
    worker.settle()
    for _ in range(2500):
        worker.log.append("orders")
    assert worker.steps(3) == [0.0, 0.0, 0.004]
    assert worker.seen() == list(range(1, 2501))


def test_a_row_that_is_set_aside_is_named_in_the_log(worker, told):
    worker.log.outbox.append("orders")
    worker.sequencer.set_aside = ((17, "channel is 'no way': 1 to 200 of the characters"),)
    worker.settle()
    assert any("outbox row 17 was set aside: channel is 'no way'" in text for _, text in told())


def test_the_schema_is_looked_at_once(worker):
    worker.checks += [None, AssertionError("looked at twice")]
    worker.steps(3)
    assert worker.publisher.failure is None


def test_a_warning_about_the_schema_is_told_once(worker, told):
    worker.checks.append("the tables are newer than this code")
    worker.steps(3)
    assert told() == [("WARNING", "legacy_poll: the tables are newer than this code")]


def test_live_means_that_the_log_was_read_and_that_it_works(worker):
    assert not worker.publisher.live
    worker.step()
    assert worker.publisher.live
    worker.log.failure = StorageUnavailable("gone")
    worker.step()
    assert not worker.publisher.live


# The position.


class Raises:
    """A hub whose deliveries fail as often as told."""

    def __init__(self, hub, times):
        self._hub = hub
        self.times = times
        self.delivered = []

    def __getattr__(self, name):
        return getattr(self._hub, name)

    def deliver(self, events, cursor):
        if self.times:
            self.times -= 1
            raise MemoryError("no room")
        self.delivered += [event.position for event in events]
        self._hub.deliver(events, cursor)


@pytest.mark.parametrize("moved_by_us", [True, False])
def test_the_position_moves_only_when_the_delivery_has_returned(moved_by_us):
    worker = Worker()
    worker.settle()
    hub = worker.publisher._hub = Raises(worker.hub, times=2)
    (worker.log.outbox.append if moved_by_us else worker.log.append)("orders")
    assert worker.step() > 0 and worker.step() > 0
    assert worker.hub.cursor == worker.log.cursor(0)
    worker.step()
    assert hub.delivered == [1]
    assert worker.hub.cursor == worker.log.cursor(1)


# Failure.


def test_a_failing_tick_never_ends_the_loop(worker, told):
    """Also a fault of ours: it is logged whole, once, and tried again."""
    worker.settle()
    worker.publisher._hub = Raises(worker.hub, times=3)
    worker.log.append("orders")
    assert all(0 < pause <= 2 for pause in worker.steps(3))
    levels = [level for level, text in told() if "a tick failed" in text]
    assert levels == ["ERROR"]
    worker.settle()
    assert worker.seen() == [1]


def test_the_loop_itself_survives_what_a_tick_raises(worker):
    """`run` in a thread, with no pauses: it fails a few times, goes on, and ends when it is told to."""
    worker.jitter = 0
    outcomes = [StorageUnavailable("gone"), ValueError("a fault of ours"), SchemaMissing("no tables")]
    failed = list(outcomes)
    glance = worker.log.glance

    def fails():
        if outcomes:
            raise outcomes.pop()
        return glance()

    worker.log.glance = fails
    worker.publisher._failed, backoff = (lambda error: min(backoff(error), 0.001)), worker.publisher._failed
    worker.log.append("orders")
    worker.publisher.start()
    until(lambda: worker.hub.cursor == worker.log.cursor(1))
    assert not outcomes and len(failed) == 3
    worker.publisher.stop()
    worker.publisher._thread.join(10)
    assert not worker.publisher._thread.is_alive()


@pytest.mark.parametrize("error", [StorageUnavailable("gone"), SchemaError("another line")])
def test_an_outage_is_told_once_and_its_end_once(worker, told, error):
    worker.settle()
    worker.log.failure = error
    worker.steps(20)
    worker.log.failure = None
    worker.steps(3)
    assert told() == [
        ("ERROR", "legacy_poll: {}".format(error)),
        ("WARNING", "legacy_poll: the database works again"),
    ]


def test_another_reason_is_told_again(worker, told):
    worker.log.failure = StorageUnavailable("gone")
    worker.steps(2)
    worker.log.failure = SchemaMissing("no tables")
    worker.steps(2)
    assert [text for _, text in told()] == ["legacy_poll: gone", "legacy_poll: no tables"]


def test_the_second_outage_is_told_as_well(worker, told):
    for _ in range(2):
        worker.log.failure = StorageUnavailable("gone")
        worker.steps(2)
        worker.log.failure = None
        worker.steps(2)
    assert [level for level, _ in told()] == ["ERROR", "WARNING"] * 2


def test_tables_that_come_late_are_found(worker, told):
    worker.checks += [SchemaMissing("the tables are missing; run: legacy-poll upgrade")] * 2
    worker.steps(2)
    assert not worker.publisher.live
    worker.step()
    assert worker.publisher.live
    assert told()[0] == ("ERROR", "legacy_poll: the tables are missing; run: legacy-poll upgrade")


@pytest.mark.parametrize(
    "jitter, expected",
    [(0.0, [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]), (1.0, [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0])],
)
def test_the_backoff_doubles_between_bounds_with_jitter(jitter, expected):
    worker = Worker(jitter=jitter)
    worker.log.failure = StorageUnavailable("gone")
    assert worker.steps(7) == pytest.approx(expected)
    for _ in range(100):
        assert worker.step() <= 2.0


def test_after_an_outage_the_backoff_starts_again(worker):
    worker.log.failure = StorageUnavailable("gone")
    worker.steps(10)
    worker.log.failure = None
    worker.settle()
    worker.log.failure = StorageUnavailable("gone again")
    assert worker.step() == pytest.approx(0.075)


def test_an_outage_costs_held_polls_nothing_but_time(worker):
    worker.settle()
    poll = worker.hub.join(ORDERS, worker.log.cursor(), limit=10)
    worker.log.failure = StorageUnavailable("gone")
    worker.steps(5)
    assert not poll.event.is_set()
    worker.log.failure = None
    worker.log.append("orders")
    worker.settle()
    assert poll.event.is_set()
    assert positions(worker.hub.leave(poll, limit=10)) == [1]


# Pauses.


def test_an_idle_log_is_looked_at_every_interval():
    worker = Worker(poll_interval_seconds=0.05)
    worker.settle()
    worker.steps(10)
    assert worker.steps(3) == [0.05, 0.05, 0.05]


def test_while_events_flow_looks_come_sooner_and_then_calm_down():
    worker = Worker(poll_interval_seconds=0.05)
    worker.steps(10)
    worker.log.append("orders")
    assert worker.steps(7) == pytest.approx([0.004, 0.005, 0.01, 0.02, 0.04, 0.05, 0.05])


def test_an_interval_shorter_than_that_is_kept():
    worker = Worker(poll_interval_seconds=0.001)
    worker.settle()
    worker.log.append("orders")
    assert worker.steps(3) == [0.001, 0.001, 0.001]


@pytest.mark.parametrize(
    "interval, expected", [(60, [0, 1, 5, 20, 60, 200, 1000]), (0.05, [0, 1, 5, 20, 60, 110, 160, 210])]
)
def test_after_a_hint_it_looks_sooner_and_again_and_again(interval, expected):
    """The hint may come before its commit."""
    worker = Worker(poll_interval_seconds=interval)
    worker.steps(20)
    worker.publisher.wake()
    at, looked = worker.clock.now, []
    for _ in range(9):
        looked.append(round(1000 * (worker.clock.now - at)))
        worker.steps(1)
    assert [each for each in sorted(set(looked)) if each < 1100][: len(expected)] == expected
    assert worker.step() == interval


@pytest.mark.parametrize("missed", [0, 1, 2, 3])
def test_a_commit_that_comes_after_its_hint_is_found(worker, missed):
    worker.steps(10)
    worker.publisher.wake()
    worker.steps(1 + missed)
    worker.log.append("orders")
    worker.step()
    assert worker.seen() == [1]


def test_a_hint_ends_the_pause_under_way():
    worker = Worker(poll_interval_seconds=60)
    worker.publisher.start()
    until(lambda: worker.hub.cursor is not None)
    worker.log.append("orders")
    worker.publisher.wake()
    until(lambda: worker.hub.cursor == worker.log.cursor(1))
    worker.log.append("orders")
    worker.publisher.wake_once()
    until(lambda: worker.hub.cursor == worker.log.cursor(2))
    worker.publisher.stop()
    worker.publisher._thread.join(10)
    assert not worker.publisher._thread.is_alive()


def test_a_hint_during_the_tick_is_not_lost(worker):
    """It comes after the glance and before the pause."""
    worker.settle()
    glance = worker.log.glance

    def hinted():
        found = glance()
        worker.log.glance = glance
        worker.publisher.wake()
        worker.log.append("orders")
        return found

    worker.log.glance = hinted
    assert worker.step() == 0.0
    worker.step()
    assert worker.seen() == [1]


def test_two_requests_that_come_first_start_one_loop(worker, monkeypatch):
    """In threads: the second asks for the start while the first is about to make the thread."""
    made = []
    real = threading.Thread

    class Slow(real):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(self)
            if len(made) == 1:
                second = real(target=worker.publisher.start, daemon=True)
                second.start()
                second.join(0.1)  # enough to get past a check without a lock; with one it waits for us

    monkeypatch.setattr(room.threading, "Thread", Slow)
    worker.publisher.start()
    worker.publisher.start()
    worker.publisher.stop()
    for thread in made:
        thread.join(10)
    assert len(made) == 1


# The lock.


def test_a_lock_held_for_over_a_second_is_named_in_the_log_once(worker, told):
    worker.settle()
    worker.log.outbox.append("orders")
    worker.sequencer.busy = True
    worker.steps(2)
    worker.clock.now += 0.8
    worker.steps(1)
    assert told() == []
    worker.clock.now += 0.3
    worker.steps(3)
    worker.clock.now += 60
    worker.steps(3)
    [(level, text)] = told()
    assert level == "WARNING"
    assert "held for over a second" in text and text.endswith("held by: pid 4711")
    assert worker.sequencer.asked == 1


@pytest.mark.parametrize(
    "holder, says",
    [(None, "nobody that this user may see"), (StorageUnavailable("no such view"), "unknown (no such view)")],
)
def test_a_lock_whose_holder_cannot_be_told_is_named_all_the_same(worker, told, holder, says):
    worker.settle()
    worker.log.outbox.append("orders")
    worker.sequencer.busy, worker.sequencer.holder = True, holder
    worker.steps(1)
    worker.clock.now += 1
    worker.steps(1)
    assert told()[0][1].endswith(says)


def test_others_that_move_all_the_time_are_no_held_lock(worker, told):
    worker.settle()
    worker.log.outbox.append("orders")
    worker.sequencer.busy = True
    for _ in range(10):
        worker.clock.now += 0.9
        worker.log.append("orders")
        worker.steps(1)
    assert told() == []


def test_the_next_held_lock_is_named_again(worker, told):
    worker.settle()
    for _ in range(2):
        worker.log.outbox.append("orders")
        worker.sequencer.busy = True
        worker.steps(1)
        worker.clock.now += 1.1
        worker.steps(1)
        worker.sequencer.busy = False
        worker.settle()
    assert len(told()) == 2


# The log is not what it was.


def test_a_log_that_was_replaced_is_read_afresh(worker, told):
    worker.log.append("orders")
    worker.settle()
    poll = worker.hub.join(ORDERS, worker.log.cursor(), limit=10)
    worker.log.replace()
    worker.log.append("orders", id="another")
    worker.log.append("orders", id="and another")
    worker.settle()
    assert poll.event.is_set()
    assert worker.hub.leave(poll, limit=10) is None
    assert worker.seen(worker.log.cursor(0)) == [1, 2]
    assert [level for level, _ in told()] == ["WARNING"]


def test_a_log_with_a_new_identity_and_the_same_events_is_read_afresh(worker):
    """`legacy-poll new-log`, after a restore: only the log's id tells."""
    worker.log.append("orders")
    worker.settle()
    poll = worker.hub.join(ORDERS, worker.log.cursor(), limit=10)
    worker.log.log_id = "another log"
    worker.settle()
    assert worker.hub.leave(poll, limit=10) is None
    assert worker.hub.cursor == worker.log.cursor(1)


@pytest.mark.parametrize("grown", [0, 1, 2, 3])
def test_a_log_that_was_cut_back_is_read_afresh(worker, told, grown):
    """And has since grown to less than it was, to what it was, or beyond."""
    for _ in range(3):
        worker.log.append("orders")
    worker.settle()
    poll = worker.hub.join(ORDERS, worker.log.cursor(), limit=10)
    worker.log.cut_back(1)
    for number in range(grown):
        worker.log.append("orders", id="second-life-{}".format(number))
    worker.settle()
    assert worker.hub.leave(poll, limit=10) is None
    assert worker.hub.cursor == worker.log.cursor(1 + grown)
    assert worker.seen() == list(range(1, 2 + grown))
    assert len(told()) == 1


def test_a_poll_ahead_of_its_worker_looks_again_when_the_log_is_cut_back(
    worker,
):
    worker.log.append("orders")
    worker.settle()
    worker.log.append("orders")
    worker.log.append("orders")
    # Other workers have delivered them, and the log has said that they are there.
    poll = worker.hub.join(ORDERS, worker.log.cursor(), limit=10, verified=True)
    other = worker.hub.join(ORDERS, worker.log.cursor(), limit=10, verified=True)
    assert isinstance(poll, Group) and other is poll
    worker.log.cut_back(1)
    worker.step()
    assert poll.event.is_set()
    assert worker.hub.leave(poll, limit=10, polls=2) is None


def test_a_poll_ahead_of_its_worker_is_held_while_the_worker_gets_there(worker):
    worker.log.append("orders")
    worker.settle()
    worker.log.append("orders")
    poll = worker.hub.join(ORDERS, worker.log.cursor(), limit=10, verified=True)
    worker.steps(5)
    assert not poll.event.is_set()
    worker.log.append("orders")
    worker.settle()
    assert positions(worker.hub.leave(poll, limit=10)) == [3]


def test_events_that_were_trimmed_while_it_was_stopped_are_not_missed_in_silence(worker, told):
    worker.log.append("orders")
    worker.settle()
    poll = worker.hub.join(ORDERS, worker.log.cursor(), limit=10)
    for _ in range(10):
        worker.log.append("orders")
    worker.log.forget(8)
    worker.settle()
    assert worker.hub.leave(poll, limit=10) is None
    assert worker.seen(worker.log.cursor(7)) == [8, 9, 10, 11]
    assert worker.seen(worker.log.cursor(6)) is None
    assert len(told()) == 1


def test_a_trim_between_the_glance_and_the_read_is_no_gap(worker):
    """The worker looks for the first time, and what it wanted to begin with goes while it looks."""
    for _ in range(5):
        worker.log.append("orders")
    cursor_at = worker.log.cursor_at

    def trims(position):
        found = cursor_at(position)
        worker.log.forget(4)
        worker.log.cursor_at = cursor_at
        return found

    worker.log.cursor_at = trims
    worker.settle()
    worker.settle()
    assert worker.hub.cursor == worker.log.cursor(5)
    assert worker.seen(worker.log.cursor(3)) == [4, 5]


def test_a_gap_is_never_delivered(worker):
    for _ in range(5):
        worker.log.append("orders")
    worker.settle()
    poll = worker.hub.join(ORDERS, worker.log.cursor(), limit=10)
    for _ in range(3):
        worker.log.append("orders")
    del worker.log.events[5]
    worker.step()
    assert worker.hub.leave(poll, limit=10) is None


def test_a_hole_that_stays_does_not_keep_the_loop_busy(worker, told):
    """Somebody deleted rows by hand. Memory starts behind them, and what follows is delivered."""
    for _ in range(5):
        worker.log.append("orders")
    del worker.log.events[2]
    assert worker.settle() < 5
    assert worker.hub.cursor == worker.log.cursor(5)
    worker.log.outbox.append("orders")
    worker.settle()
    assert worker.seen(worker.log.cursor(5)) == [6]
    assert len(told()) <= 2


# Trim.


def test_the_trim_comes_at_its_interval(worker):
    worker.settle()
    interval = worker.settings.trim_interval_seconds
    worker.clock.now += interval
    worker.steps(2)
    assert worker.log.trims == 1
    worker.clock.now += interval * 0.8
    worker.steps(2)
    assert worker.log.trims == 1
    worker.clock.now += interval * 0.3
    worker.steps(2)
    assert worker.log.trims == 2


def test_a_full_batch_is_followed_by_the_next_but_ticks_come_between(worker):
    worker.settle()
    worker.log.trimmed = worker.log.trim_rows
    worker.clock.now += 60
    worker.steps(1)
    assert worker.log.trims == 1
    worker.steps(1)
    assert worker.log.trims == 2


def test_a_trim_that_fails_costs_neither_this_delivery_nor_the_next_tick(worker):
    worker.settle()
    worker.log.append("orders")
    worker.clock.now += 60

    def fails(now, *, batches):
        raise StorageUnavailable("may not delete")

    worker.log.trim = fails
    worker.step()
    assert worker.seen() == [1]
    worker.step()
    assert worker.publisher.failure is None


# Holes, and what was erased.


def test_a_hole_among_recent_events_costs_one_start_and_not_one_at_every_event(worker, told):
    """Light traffic behind it: once for each event all that is in memory had been read again, and every poll too."""
    for _ in range(30):
        worker.log.append("orders")
    worker.settle()
    poll = worker.hub.join(ORDERS, worker.log.cursor(), limit=10)
    del worker.log.events[11]
    fresh = Worker(worker.log)
    fresh.settle()
    assert len(told()) == 1
    assert fresh.hub.cursor == fresh.log.cursor(30)
    starts = []
    prime = fresh.hub.prime
    fresh.hub.prime = lambda cursor: starts.append(cursor) or prime(cursor)
    for number in range(31, 60):
        fresh.log.append("orders")
        waits = fresh.hub.join(ORDERS, fresh.log.cursor(number - 1), limit=10)
        fresh.settle()
        assert [each.position for each in fresh.hub.leave(waits, limit=10).events] == [number]
    assert (starts, len(told())) == ([], 1)
    # The first worker had them all in memory, and goes on.
    worker.settle()
    assert worker.hub.leave(poll, limit=100).events[0].position == 31
    assert len(told()) == 1


def starts_of(hub):
    """Where *hub* starts afresh, from now on."""
    starts, prime = [], hub.prime

    def primes(cursor):
        starts.append(cursor)
        prime(cursor)

    hub.prime = primes
    return starts


def test_several_holes_are_passed_at_once_and_each_is_said(worker, told):
    for _ in range(20):
        worker.log.append("orders")
    for position in (3, 4, 9, 19):
        worker.log.events = [each for each in worker.log.events if each.position != position]
    worker.settle()
    assert worker.hub.cursor == worker.log.cursor(20)
    assert worker.seen(worker.log.cursor(19)) == [20]
    assert [line.split("missing")[0] for _, line in told()] == [
        "legacy_poll: the events from position %d to %d are " % each for each in ((3, 4), (9, 9), (19, 19))
    ]


def test_many_holes_cost_one_start_and_a_few_lines(worker, told):
    """Every other row deleted: each had been a start of its own, with a read of all revocations, and a line."""
    for _ in range(200):
        worker.log.append("orders")
    worker.log.events = [each for each in worker.log.events if each.position % 2 == 0]
    starts = starts_of(worker.hub)
    assert worker.settle() < 6
    assert [each.position for each in starts] == [0, 199]
    assert worker.seen(worker.log.cursor(199)) == [200]
    lines = [line for _, line in told()]
    assert len(lines) == 6
    assert "from position 9 to 9 are missing" in lines[4]
    assert lines[5] == "legacy_poll: so are events in 95 more places, up to position 199"
    # Said once, also when it starts afresh for another reason.
    worker.hub.prime(worker.log.cursor(0))
    worker.settle()
    assert len(told()) == 6
    # What is missing behind is news.
    worker.log.append("orders")
    gone = worker.log.append("orders")
    worker.log.append("orders")
    worker.log.events.remove(gone)
    worker.settle()
    assert "from position 202 to 202 are missing" in told()[-1][1]
    assert worker.seen(worker.log.cursor(202)) == [203]


def test_a_hole_in_a_log_that_was_cut_back_is_said_though_it_is_before_one_that_was(worker, told):
    for hole in (25, 13):
        while worker.log.head < 30:
            worker.log.append("orders")
        worker.log.events = [each for each in worker.log.events if each.position != hole]
        worker.settle()
        assert "position {0} to {0} are missing".format(hole) in told()[-1][1]
        worker.log.cut_back(10)
        worker.settle()


def test_holes_of_another_log_are_said_again(worker, told):
    for log_id in ("log", "another log"):
        worker.log.replace(log_id)
        for _ in range(5):
            worker.log.append("orders")
        del worker.log.events[2]
        worker.settle()
        assert worker.hub.cursor == worker.log.cursor(5)
    assert sum("position 3 to 3 are missing" in line for _, line in told()) == 2


def test_a_hole_at_the_end_is_passed_too(worker, told):
    for _ in range(3):
        worker.log.append("orders")
    worker.settle()
    worker.log.append("orders")
    worker.log.append("orders")
    last = worker.log.events.pop()
    worker.settle()
    assert worker.seen(worker.log.cursor(3)) == [4]
    worker.log.events.append(last)
    worker.settle()
    assert worker.seen(worker.log.cursor(3)) == [4, 5]


def test_an_event_at_the_workers_own_place_that_is_gone_makes_it_start_once(worker, told):
    for _ in range(3):
        worker.log.append("orders")
    worker.settle()
    worker.log.append("orders")
    del worker.log.events[2]
    worker.settle()
    worker.log.append("orders")
    worker.settle()
    assert worker.hub.cursor == worker.log.cursor(5)
    assert worker.seen(worker.log.cursor(4)) == [5]
    assert len(told()) == 2


def test_two_events_that_are_large_together_are_read_one_by_one(worker, told):
    def one(position, *, upto, limit, max_bytes):
        there, events = read_new(position, upto=upto, limit=limit, max_bytes=max_bytes)
        return there, events[:1]  # as the limit on bytes does

    read_new, worker.log.read_new = worker.log.read_new, one
    for _ in range(4):
        worker.log.append("orders")
    worker.settle()
    assert worker.seen() == [1, 2, 3, 4]
    assert told() == []


def test_events_that_were_erased_leave_the_memory(worker):
    for _ in range(5):
        worker.log.append("orders")
    worker.settle()
    worker.log.erase([3])
    assert worker.seen() == [1, 2, 3, 4, 5]
    worker.log.append("$erase", '{"positions": [[3, 3], [900, 901]]}', type="erase")
    worker.settle()
    assert worker.seen() == [1, 2, 4, 5]
    # A cursor behind it is good: the mark stays.
    assert worker.seen(worker.log.cursor(3)) == [4, 5]


def fill_and_watch(worker):
    """Lets *worker* remember 2,500 events; returns the first and last positions that it looks at from then on."""
    for _ in range(2500):
        worker.log.append("orders")
    worker.settle()
    parts, read_at = [], worker.log.read_at
    worker.log.read_at = lambda first, last: parts.append((first, last)) or read_at(first, last)
    return parts


def test_an_erasure_of_everything_is_read_in_parts(worker):
    parts = fill_and_watch(worker)
    worker.log.erase(range(3, 2501))
    worker.log.append("$erase", '{"positions": [[1, 9223372036854775807]]}', type="erase")
    worker.settle()
    span = worker.hub.span
    assert [last - first < 1000 for first, last in parts] == [True] * 3
    assert (parts[0][0], parts[-1][1]) == span
    assert worker.hub.remembered == span[1] - span[0] + 1
    assert worker.seen() == [1, 2]


def test_an_erasure_of_scattered_events_reads_the_log_in_parts_too(worker):
    """Every other one: each had been a read of its own, and the worker had stood still for half a minute."""
    parts = fill_and_watch(worker)
    replaced, replace_in = [], worker.hub.replace
    worker.hub.replace = lambda events: replaced.append(len(events)) or replace_in(events)
    worker.log.erase(range(2, 2501, 2))
    for start in range(2, 2501, 500):
        ranges = [[position, position] for position in range(start, min(start + 500, 2501), 2)]
        worker.log.append("$erase", json.dumps({"positions": ranges}), type="erase")
    worker.settle()
    assert parts == [(2, 1000), (1002, 2000), (2002, 2500)]
    assert replaced == [500, 500, 250]
    assert worker.seen() == list(range(1, 2501, 2))


@pytest.mark.parametrize("how", ["trimmed", "deleted"])
def test_an_erased_event_whose_row_is_gone_before_the_look_leaves_the_memory_too(worker, how):
    """Another worker trimmed it meanwhile. It had been served from memory for as long as memory had it."""
    for _ in range(6):
        worker.log.append("orders")
    worker.settle()
    waiting = worker.hub.join(ORDERS, worker.log.cursor(), limit=10)
    cursors = [worker.log.cursor(position) for position in range(7)]
    worker.log.append("$erase", '{"positions": [[2, 3]]}', type="erase")
    if how == "trimmed":
        worker.log.events = [each for each in worker.log.events if each.position > 4]
        worker.log.forget(6)
    else:
        worker.log.events = [each for each in worker.log.events if each.position not in (2, 3)]
    worker.settle()
    # Whoever is before it is to ask the log; the others are served as ever.
    assert [worker.hub.join(ORDERS, cursors[before], limit=10) for before in (0, 1, 2)] == [None] * 3
    assert worker.seen(cursors[3]) == [4, 5, 6]
    worker.log.append("orders")
    worker.settle()
    assert [each.position for each in worker.hub.leave(waiting, limit=10).events] == [8]


@pytest.mark.parametrize("data", ["{", "null", "[]", '"a"', "1" * 5000, "[" * 100_000, '{"positions": 7}'])
@pytest.mark.parametrize("channel", ["$erase", "$revoke"])
def test_a_row_of_ours_that_somebody_changed_stops_nothing(worker, channel, data):
    """A tick had failed at it, again and again."""
    worker.log.append("orders")
    worker.settle()
    worker.log.append(channel, data)
    worker.log.append("orders")
    worker.settle()
    assert worker.publisher.failure is None
    assert worker.seen() == [1, 3]


def test_memory_forgets_only_what_the_log_has_erased(worker):
    """Whoever may publish may say so; it makes the worker look, and nothing else."""
    for _ in range(3):
        worker.log.append("orders")
    worker.settle()
    worker.log.append("$erase", '{"positions": [[1, 3]]}', type="erase")
    worker.settle()
    assert worker.seen() == [1, 2, 3]


def test_an_erasure_that_could_not_be_read_is_read_at_the_next_look(worker):
    for _ in range(3):
        worker.log.append("orders")
    worker.settle()
    worker.log.erase([2])
    worker.log.append("$erase", '{"positions": [[2, 2]]}', type="erase")
    read_at = worker.log.read_at

    def fails(first, last):
        worker.log.read_at = read_at
        raise StorageUnavailable("just now")

    worker.log.read_at = fails
    worker.step()
    assert worker.publisher.failure is not None
    worker.settle()
    assert worker.seen() == [1, 3]


# Clocks, and what is said of the tables while serving.


def test_a_trim_goes_by_the_time_that_may_be_believed_and_says_when_the_clock_may_not(worker, told):
    class Steady:
        ahead_seconds = 0.0

        def __call__(self, now):
            return "believed instead of " + now

    steady = worker.publisher._steady = Steady()
    for ahead in (0.0, 86_400.0, 86_400.0, 0.0, 3600.0):
        steady.ahead_seconds = ahead
        worker.clock.now += 60
        worker.step()
    assert set(worker.log.trimmed_by) == {"believed instead of " + TIME}
    assert len(worker.log.trimmed_by) == 5
    assert [line.split("clock is ")[1].split(" s")[0] for _, line in told()] == ["86400", "3600"]


def test_what_somebody_does_to_the_tables_is_said_once_and_events_go_on(worker, told):
    worker.checks = ["known at the start"]
    worker.settle()
    cache, rows = "the sequence has CACHE 50", "two rows"
    worker.faults = [["known at the start"], [cache], [cache], [cache, rows], [], [cache]]
    for number in range(1, 7):
        worker.clock.now += 60
        worker.log.append("orders")
        worker.step()
        assert worker.publisher.failure is None
        assert worker.seen()[-1] == number
    said = [line.split("legacy_poll: ")[1] for _, line in told()]
    assert said == ["known at the start", cache, rows, cache]


def test_a_time_of_the_database_is_told_by_the_hosts_clock():
    worker = Worker()
    now = [seconds_of(TIME) + 3600.0]
    worker.publisher._wall = lambda: now[0]
    assert worker.publisher.host_time_of(TIME) == seconds_of(TIME)
    worker.step()
    assert worker.publisher.host_time_of(TIME) == seconds_of(TIME) + 3600.0
    now[0] -= 7200
    worker.step()
    assert worker.publisher.host_time_of("2026-01-02T03:04:06.678Z") == seconds_of(TIME) - 3599.0


# Events that are apart.


def test_what_is_apart_is_brought_back_as_soon_as_it_can_be(worker, told):
    worker.settle()
    worker.sequencer.apart = [0, 0, 500, 200]
    glance = worker.log.glance
    worker.log.glance = lambda: replace(glance(), apart_from=1 if worker.sequencer.apart else None)
    worker.step()
    assert worker.sequencer.brought == 1
    worker.step()
    assert worker.sequencer.brought == 1
    for _ in range(2):
        worker.clock.now += 3
        worker.step()
    assert worker.sequencer.brought == 3
    worker.step()
    assert worker.sequencer.apart == []
    worker.clock.now += 3
    worker.step()
    assert worker.sequencer.brought == 4
    # Said once for each time that something goes apart, however often it is tried.
    said = [line for _, line in told() if "legacy_poll_apart" in line]
    assert len(said) == 1
    assert "locked by: pid 4711" in said[0]
    worker.sequencer.apart = [10]
    worker.clock.now += 3
    worker.steps(2)
    assert worker.sequencer.apart == []
    assert len([line for _, line in told() if "legacy_poll_apart" in line]) == 2


def test_events_that_cannot_be_brought_back_fail_no_tick_and_are_said_once(worker, told):
    worker.settle()
    glance = worker.log.glance
    worker.log.glance = lambda: replace(glance(), apart_from=1)
    tries = []

    def fails():
        tries.append(worker.clock.now)
        raise StorageUnavailable("may not insert")

    worker.sequencer.bring_back = fails
    for number in range(1, 5):
        worker.log.append("orders")
        worker.steps(3)
        assert worker.publisher.failure is None
        assert worker.seen()[-1] == number
        worker.clock.now += 3
    assert len(tries) == 4
    said = lambda: sum("stay in legacy_poll_apart: may not insert" in line for _, line in told())  # noqa: E731
    assert said() == 1
    # Mended by somebody, and there again.
    apart, worker.log.glance = worker.log.glance, glance
    worker.steps(3)
    worker.log.glance = apart
    worker.clock.now += 3
    worker.steps(3)
    assert said() == 2
