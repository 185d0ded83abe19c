"""The groups and the tail, by hand: no greenlet waits here, every step of every race is a line."""

from __future__ import annotations

import gevent.event
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from legacy_poll.cursors import Cursor
from legacy_poll.errors import BacklogTooLarge, CursorGone, ServerFull
from legacy_poll.events import Batch, Event
from legacy_poll.hub import Group, Hub, cut
from legacy_poll.wire import render
from tests.unit.memory_log import MemoryLog, assert_empty, feed, positions

MANY = 500


def channels(*names):
    return frozenset(names)


ORDERS = channels("orders")


class Waits:
    """A hub, and the polls that joined it: `leave` lets them go, and the fixture the rest."""

    def __init__(self, hub):
        self.hub = hub
        self._joined = []

    def join(self, names, cursor, *, limit=MANY, verified=False):
        """A poll that must find nothing and wait; returns its group."""
        group = self.look(names, cursor, limit=limit, verified=verified)
        assert isinstance(group, Group)
        self._joined.append(group)
        return group

    def look(self, names, cursor, *, limit=MANY, verified=False):
        return self.hub.join(names, cursor, limit=limit, verified=verified)

    def leave(self, group, *, limit=MANY):
        self._joined.remove(group)
        return self.hub.leave(group, limit=limit)

    def close(self):
        while self._joined:
            self.leave(self._joined[0])
        assert_empty(self.hub)


@pytest.fixture
def log():
    return MemoryLog()


@pytest.fixture
def make_waits():
    made = []

    def make(**options):
        bounds = dict({"tail_events": 100, "tail_bytes": 1 << 20, "max_bytes": 1 << 20}, **options)
        made.append(Waits(Hub(**bounds)))
        return made[-1]

    yield make
    for waits in made:
        waits.close()


@pytest.fixture
def waits(make_waits):
    return make_waits()


@pytest.fixture
def hub(waits):
    return waits.hub


# The look.


def test_a_poll_gets_what_is_in_memory_behind_its_cursor_on_its_channels_in_order(waits, hub, log):
    for name in ("orders", "other", "users", "orders", "other"):
        log.append(name)
    feed(hub, log)
    found = waits.look(channels("orders", "users"), log.cursor(1))
    assert positions(found) == [3, 4]
    assert found.cursor == log.cursor(5)
    assert not found.more


def test_an_answer_that_is_cut_ends_at_its_last_event(waits, hub, log):
    for _ in range(3):
        log.append("orders")
    log.append("other")
    feed(hub, log)
    found = waits.look(ORDERS, log.cursor(0), limit=2)
    assert positions(found) == [1, 2]
    assert found.cursor == log.cursor(2)
    assert found.more


def test_an_answer_that_fits_exactly_is_not_cut(waits, hub, log):
    log.append("orders")
    log.append("orders")
    feed(hub, log)
    assert not waits.look(ORDERS, log.cursor(0), limit=2).more


@pytest.mark.parametrize(
    "sizes, expected", [((10, 10, 10), 3), ((10, 11, 10), 2), ((31, 1, 1), 1), ((30, 1), 1), ((29, 1), 2)]
)
def test_an_answer_holds_as_many_bytes_as_allowed_and_at_least_one_event(log, sizes, expected):
    events = [log.append("orders", data="x" * size) for size in sizes]
    found = cut(events, log.cursor(), MANY, 30)
    assert len(found.events) == expected
    assert found.more == (expected < len(sizes))
    assert found.cursor == log.cursor(expected)


def test_bytes_are_bytes_of_utf_8_and_not_characters(log):
    events = [log.append("orders", data='"' + "\u20ac" * 8 + '"') for _ in range(2)]
    assert len(cut(events, log.cursor(), MANY, 51).events) == 1
    assert len(cut(events, log.cursor(), MANY, 52).events) == 2


@pytest.mark.parametrize("position", [0, 1, 2, 3, 4])
def test_every_cursor_from_the_floor_to_the_end_is_known(waits, hub, log, position):
    for _ in range(4):
        log.append("other")
    feed(hub, log)
    waits.join(ORDERS, log.cursor(position))


@pytest.mark.parametrize("position", [0, 2, 4, 6])
def test_a_cursor_whose_check_fails_is_for_the_log_to_judge(waits, hub, log, position):
    """At the floor, inside the tail, at its end, and beyond it."""
    for _ in range(4):
        log.append("other")
    feed(hub, log)
    forged = Cursor(log.cursor(0).log, position, "00000000")
    assert waits.look(ORDERS, forged) is None


def test_a_cursor_of_another_log_is_for_the_log_to_judge(waits, hub, log):
    feed(hub, log)
    assert waits.look(ORDERS, MemoryLog("another").cursor(0)) is None


def test_before_it_is_primed_memory_vouches_for_nothing(waits, log):
    assert waits.look(ORDERS, log.cursor(0)) is None


# The groups.


def test_all_who_have_seen_the_same_share_one_event_however_long_ago_they_asked(waits, hub, log):
    log.append("orders")
    for _ in range(5):
        log.append("other")
    feed(hub, log)
    groups = {waits.join(ORDERS, log.cursor(position)) for position in range(1, 7)}
    log.append("other")
    feed(hub, log)
    groups.add(waits.join(ORDERS, log.cursor(7)))
    assert len(groups) == hub.groups == 1
    assert hub.held == 7
    assert isinstance(groups.pop().event, gevent.event.Event)


def test_other_channels_are_another_group(waits, hub, log):
    feed(hub, log)
    waits.join(ORDERS, log.cursor())
    waits.join(channels("orders", "users"), log.cursor())
    assert hub.groups == 2


def test_what_a_group_waits_on_can_be_chosen(make_waits, log):
    made = []

    def make_event():
        made.append(gevent.event.Event())
        return made[-1]

    waits = make_waits(make_event=make_event)
    feed(waits.hub, log)
    assert [waits.join(ORDERS, log.cursor()).event] == made


def test_an_event_reaches_the_groups_that_wait_for_it_and_no_others(waits, hub, log):
    feed(hub, log)
    both = waits.join(channels("orders", "users"), log.cursor())
    orders = waits.join(ORDERS, log.cursor())
    users = waits.join(channels("users"), log.cursor())
    log.append("orders")
    feed(hub, log)
    assert both.event.is_set() and orders.event.is_set()
    assert not users.event.is_set()
    assert hub.groups == 1
    assert positions(waits.leave(both)) == positions(waits.leave(orders)) == [1]


def test_one_delivery_to_a_thousand_polls_is_rendered_once(waits, hub, log):
    feed(hub, log)
    polls = [waits.join(ORDERS, log.cursor()) for _ in range(1000)]
    log.append("orders")
    feed(hub, log)
    batches = [waits.leave(poll) for poll in polls]
    assert len({id(batch) for batch in batches}) == 1
    assert len({id(render(batch, empty_status=204).body) for batch in batches}) == 1


def test_one_look_at_the_tail_by_a_thousand_polls_is_rendered_once(waits, hub, log):
    log.append("orders")
    feed(hub, log)
    batches = [waits.look(ORDERS, log.cursor(0)) for _ in range(1000)]
    assert len({id(render(batch, empty_status=204).body) for batch in batches}) == 1


def test_what_is_kept_of_a_look_does_not_hide_the_next_event(waits, hub, log):
    log.append("orders")
    feed(hub, log)
    assert positions(waits.look(ORDERS, log.cursor(0))) == [1]
    log.append("orders")
    feed(hub, log)
    assert positions(waits.look(ORDERS, log.cursor(0))) == [1, 2]


def test_each_poll_of_a_group_gets_as_many_as_it_asked_for(waits, hub, log):
    feed(hub, log)
    group = waits.join(ORDERS, log.cursor(), limit=1)
    assert waits.join(ORDERS, log.cursor(), limit=2) is group
    for _ in range(3):
        log.append("orders")
    feed(hub, log)
    first, second = waits.leave(group, limit=1), waits.leave(group, limit=2)
    assert (positions(first), first.cursor, first.more) == ([1], log.cursor(1), True)
    assert (positions(second), second.cursor, second.more) == ([1, 2], log.cursor(2), True)


def test_nothing_is_left_of_a_group_when_all_have_left(waits, hub, log):
    feed(hub, log)
    for names in (ORDERS, channels("orders", "users"), ORDERS):
        waits.join(names, log.cursor())
    waits.close()


def test_who_leaves_a_group_that_was_reached_leaves_its_successor_alone(waits, hub, log):
    feed(hub, log)
    old = waits.join(ORDERS, log.cursor())
    log.append("orders")
    feed(hub, log)
    new = waits.join(ORDERS, log.cursor())
    assert new is not old
    waits.leave(old)
    log.append("orders")
    feed(hub, log)
    assert positions(waits.leave(new)) == [2]


def test_who_leaves_a_group_that_was_ended_leaves_its_successor_alone(waits, hub, log):
    feed(hub, log)
    old = waits.join(ORDERS, log.cursor())
    hub.look_again()
    new = waits.join(ORDERS, log.cursor())
    assert waits.leave(old) is None
    log.append("orders")
    feed(hub, log)
    assert positions(waits.leave(new)) == [1]


def test_who_leaves_a_group_that_is_empty_leaves_its_successor_alone(hub, log):
    feed(hub, log)
    old = hub.join(ORDERS, log.cursor(), limit=10)
    hub.leave(old, limit=10)
    new = hub.join(ORDERS, log.cursor(), limit=10)
    assert new is not old
    hub.leave(old, limit=10, polls=0)
    log.append("orders")
    feed(hub, log)
    assert positions(hub.leave(new, limit=10)) == [1]


def test_many_polls_join_and_leave_at_once_or_not_at_all(make_waits, log):
    hub = make_waits(tail_events=10, tail_bytes=1000, max_bytes=1000, max_group=5).hub
    feed(hub, log)
    with pytest.raises(ServerFull):
        hub.join(ORDERS, log.cursor(), limit=10, polls=6)
    assert (hub.held, hub.groups) == (0, 0)
    group = hub.join(ORDERS, log.cursor(), limit=10, polls=4)
    with pytest.raises(ServerFull):
        hub.join(ORDERS, log.cursor(), limit=10, polls=2)
    assert hub.join(ORDERS, log.cursor(), limit=10) is group
    assert hub.held == 5
    hub.leave(group, limit=10, polls=2)
    log.append("orders")
    feed(hub, log)
    assert positions(hub.leave(group, limit=10, polls=3)) == [1]
    assert (hub.held, hub.groups) == (0, 0)


def test_the_first_to_leave_does_not_take_the_event_from_the_others(waits, hub, log):
    feed(hub, log)
    first, second = waits.join(ORDERS, log.cursor()), waits.join(ORDERS, log.cursor())
    waits.leave(first)
    log.append("orders")
    feed(hub, log)
    assert second.event.is_set()
    assert positions(waits.leave(second)) == [1]


def test_a_group_may_have_a_limit(make_waits, log):
    waits = make_waits(max_group=2)
    feed(waits.hub, log)
    polls = [waits.join(ORDERS, log.cursor()) for _ in range(2)]
    with pytest.raises(ServerFull, match="2 polls wait on these channels: at most 2 may"):
        waits.look(ORDERS, log.cursor())
    waits.join(channels("users"), log.cursor())
    waits.leave(polls[0])
    waits.join(ORDERS, log.cursor())
    assert waits.hub.held == 3


# The end of a wait.


def test_an_event_at_the_moment_of_the_timeout_is_in_the_answer(waits, hub, log):
    """The wait is over, in vain; before the poll has left, the event is delivered."""
    feed(hub, log)
    poll = waits.join(ORDERS, log.cursor())
    log.append("orders")
    feed(hub, log)
    answer = waits.leave(poll)
    assert positions(answer) == [1]
    assert answer.cursor == log.cursor(1)


def test_an_event_after_the_timeout_is_behind_the_answers_cursor(waits, hub, log):
    feed(hub, log)
    poll = waits.join(ORDERS, log.cursor())
    answer = waits.leave(poll)
    log.append("orders")
    feed(hub, log)
    assert positions(waits.look(ORDERS, answer.cursor)) == [1]


def test_an_empty_answers_cursor_is_what_was_looked_at(waits, hub, log):
    feed(hub, log)
    poll = waits.join(ORDERS, log.cursor())
    log.append("other")
    feed(hub, log)
    log.append("orders")  # committed, and not delivered yet
    assert waits.leave(poll) == Batch((), log.cursor(1))


def test_a_quiet_channels_cursor_moves_although_memory_has_forgotten_where_it_was(make_waits, log):
    """Else every hold on a quiet channel of a busy log would end in a read of the log."""
    waits = make_waits(tail_events=3)
    log.append("orders")
    feed(waits.hub, log)
    poll = waits.join(ORDERS, log.cursor())
    for _ in range(10):
        log.append("other")
        feed(waits.hub, log)
    assert waits.leave(poll) == Batch((), log.cursor(11))


# A worker that is behind.


def behind(hub, log):
    """A log of 5 of which the worker has 2; the client comes from another worker, with 4."""
    for name in ("orders", "other", "orders", "orders", "other"):
        log.append(name)
    feed(hub, log, upto=2)
    return log.cursor(4)


def test_a_cursor_ahead_of_the_worker_waits_only_when_the_log_vouched_for_it(waits, hub, log):
    ahead = behind(hub, log)
    assert waits.look(ORDERS, ahead) is None
    waits.join(ORDERS, ahead, verified=True)


def test_who_is_ahead_is_not_answered_by_what_it_has_seen(waits, hub, log):
    poll = waits.join(ORDERS, behind(hub, log), verified=True)
    feed(hub, log)
    assert not poll.event.is_set()
    log.append("orders")
    feed(hub, log)
    assert poll.event.is_set()
    answer = waits.leave(poll)
    assert positions(answer) == [6]
    assert answer.cursor == log.cursor(6)


def test_one_delivery_may_bring_what_it_has_seen_and_what_it_has_not(waits, hub, log):
    poll = waits.join(ORDERS, behind(hub, log), verified=True)
    log.append("orders")
    feed(hub, log)
    assert positions(waits.leave(poll)) == [6]


@pytest.mark.parametrize("upto", [2, 3])
def test_the_cursor_of_who_is_ahead_never_goes_back(waits, hub, log, upto):
    ahead = behind(hub, log)
    poll = waits.join(ORDERS, ahead, verified=True)
    feed(hub, log, upto=upto)
    assert waits.leave(poll) == Batch((), ahead)


def test_the_cursor_of_who_was_ahead_moves_once_the_worker_has_passed_it(waits, hub, log):
    poll = waits.join(ORDERS, behind(hub, log), verified=True)
    feed(hub, log)
    assert waits.leave(poll) == Batch((), log.cursor(5))


def test_who_is_ahead_and_who_is_not_are_groups_of_their_own(waits, hub, log):
    ahead = behind(hub, log)
    far = waits.join(ORDERS, ahead, verified=True)
    near = waits.join(ORDERS, log.cursor(2))
    assert hub.groups == 2
    feed(hub, log, upto=3)
    assert near.event.is_set() and not far.event.is_set()


def test_who_was_ahead_in_an_earlier_life_of_the_log_must_look_again(waits, hub, log):
    """The log was cut back while this worker was behind and grew again: the event at the cursor is another now."""
    poll = waits.join(ORDERS, behind(hub, log), verified=True)
    log.cut_back(3)
    for number in range(3):
        log.append("orders", id="second-life-{}".format(number))
    feed(hub, log)
    assert poll.event.is_set()
    assert waits.leave(poll) is None


def test_who_is_ahead_of_what_memory_can_tell_must_look_again(make_waits, log):
    """So much came at once that the event at the cursor was forgotten as it was delivered."""
    waits = make_waits(tail_events=2)
    poll = waits.join(ORDERS, behind(waits.hub, log), verified=True)
    for _ in range(5):
        log.append("orders")
    feed(waits.hub, log)
    assert poll.event.is_set()
    assert waits.leave(poll) is None


def test_before_it_is_primed_polls_that_the_log_vouched_for_may_wait_and_then_look_again(waits, hub, log):
    log.append("orders")
    poll = waits.join(ORDERS, log.cursor(), verified=True)
    hub.prime(log.cursor(0))
    assert poll.event.is_set()
    assert waits.leave(poll) is None


def test_before_it_is_primed_a_wait_ends_with_its_own_cursor(waits, log):
    log.append("orders")
    poll = waits.join(ORDERS, log.cursor(), verified=True)
    assert waits.leave(poll) == Batch((), log.cursor())


def test_below_the_floor_nobody_waits_whoever_vouched_for_it(make_waits, log):
    waits = make_waits(tail_events=1)
    for _ in range(3):
        log.append("orders")
    feed(waits.hub, log)
    assert waits.look(ORDERS, log.cursor(1), verified=True) is None


# Starting afresh.


@pytest.mark.parametrize("how", ["prime", "look_again"])
def test_when_the_hub_starts_afresh_everybody_looks_again(waits, hub, log, how):
    log.append("other")
    feed(hub, log)
    polls = [waits.join(ORDERS, log.cursor()), waits.join(channels("users"), log.cursor())]
    if how == "prime":
        hub.prime(log.cursor())
    else:
        hub.look_again()
    assert all(poll.event.is_set() for poll in polls)
    assert [waits.leave(poll) for poll in polls] == [None, None]
    assert hub.groups == 0


def test_a_reached_group_keeps_its_answer_when_the_hub_starts_afresh(waits, hub, log):
    feed(hub, log)
    poll = waits.join(ORDERS, log.cursor())
    log.append("orders")
    feed(hub, log)
    hub.prime(log.cursor())
    assert positions(waits.leave(poll)) == [1]


def test_primed_anew_it_remembers_nothing_of_before(waits, hub, log):
    log.append("orders")
    feed(hub, log)
    waits.look(ORDERS, log.cursor(0))
    log.replace()
    log.append("orders", id="another")
    hub.prime(log.cursor(0))
    assert hub.remembered == 0
    assert waits.look(ORDERS, MemoryLog().cursor(0)) is None
    feed(hub, log)
    assert [event.id for event in waits.look(ORDERS, log.cursor(0)).events] == ["another"]


# The tail.


def test_the_tail_is_bounded_by_count(make_waits, log):
    waits = make_waits(tail_events=3)
    for _ in range(5):
        log.append("orders")
    feed(waits.hub, log)
    assert waits.hub.remembered == 3
    assert positions(waits.look(ORDERS, log.cursor(2))) == [3, 4, 5]
    assert waits.look(ORDERS, log.cursor(1)) is None


def test_the_tail_is_bounded_by_bytes(make_waits, log):
    waits = make_waits(tail_bytes=10_000)
    for _ in range(20):
        log.append("orders", data="x" * 1000)
        feed(waits.hub, log)
    remembered = waits.hub.remembered
    assert 5 <= remembered <= 10
    assert positions(waits.look(ORDERS, log.cursor(20 - remembered))) == list(range(21 - remembered, 21))
    assert waits.look(ORDERS, log.cursor(19 - remembered)) is None


def test_an_event_larger_than_the_tail_is_delivered_and_then_not_remembered(make_waits, log):
    waits = make_waits(tail_bytes=10_000)
    feed(waits.hub, log)
    poll = waits.join(ORDERS, log.cursor())
    log.append("orders", data="x" * 20_000)
    feed(waits.hub, log)
    assert positions(waits.leave(poll)) == [1]
    assert waits.hub.remembered == 0
    assert waits.look(ORDERS, log.cursor(0)) is None
    waits.join(ORDERS, log.cursor(1))


def test_what_is_forgotten_is_forgotten_on_its_channel_too(make_waits, log):
    waits = make_waits(tail_events=2)
    for number in range(100):
        log.append("channel-{}".format(number))
        feed(waits.hub, log)
    assert len(waits.hub._by_channel) == 2


def test_what_is_kept_of_looks_is_bounded(make_waits, log):
    waits = make_waits(tail_events=5000)
    for _ in range(3000):
        log.append("orders")
    feed(waits.hub, log)
    for position in range(3000):
        waits.look(ORDERS, log.cursor(0), limit=1 + position)
    assert len(waits.hub._memo) <= 1000


# Everything at once, against a model that is too simple to be wrong.

NAMES = ["a", "b", "c"]
WORKERS = st.integers(0, 1)
POLLS = st.integers(0, 4)


class Poll:
    """One client. What it has got so far is right when each answer fills the gap between its two cursors."""

    def __init__(self, names, limit):
        self.names = names
        self.limit = limit
        self.cursor = None
        self.group = None
        self.worker = None
        self.verified = False


class Hopping(RuleBasedStateMachine):
    """Two workers that follow one log at their own pace, five polls that hop between them.

    Each poll goes through the steps of `legacy_poll.hold` by hand, so that anything may come between any two.
    """

    @initialize(
        wants=st.lists(
            st.tuples(st.sets(st.sampled_from(NAMES), min_size=1), st.integers(1, 3)), min_size=5, max_size=5
        ),
        tail=st.integers(1, 6),
    )
    def start(self, wants, tail):
        self.log = MemoryLog()
        self.workers = [Hub(tail_events=tail, tail_bytes=1 << 20, max_bytes=3) for _ in range(2)]
        self.polls = [Poll(frozenset(names), limit) for names, limit in wants]

    @rule(name=st.sampled_from(NAMES), size=st.sampled_from([1, 1, 1, 2, 4]))
    def commit(self, name, size):
        self.log.append(name, data="1" * size)

    @rule(worker=WORKERS, count=st.integers(1, 4))
    def tick(self, worker, count):
        hub = self.workers[worker]
        if hub.cursor is None:
            hub.prime(self.log.cursor(max(0, self.log.head - count)))
        feed(hub, self.log, upto=min(self.log.head, hub.cursor.position + count))

    @rule(worker=WORKERS, back=st.integers(0, 3))
    def restart(self, worker, back):
        self.workers[worker].prime(self.log.cursor(max(0, self.log.head - back)))

    @rule(worker=WORKERS)
    def look_again(self, worker):
        self.workers[worker].look_again()

    @rule(poll=POLLS, worker=WORKERS)
    def look(self, poll, worker):
        """A new request, or the next look of one that is under way."""
        poll = self.polls[poll]
        if poll.group is not None:
            return
        if not poll.verified:
            poll.worker = self.workers[worker]
        found = None
        if poll.cursor is not None:
            found = poll.worker.join(poll.names, poll.cursor, limit=poll.limit, verified=poll.verified)
        if isinstance(found, Batch):
            self._answer(poll, found)
        elif found is None:
            self._read(poll)
        else:
            poll.group = found

    def _read(self, poll):
        batch = self.log.read_after(poll.cursor, channels=poll.names, limit=poll.limit, max_bytes=3)
        self._answer(poll, batch)
        # With nothing found, the request goes on to wait, at the same worker.
        poll.verified = not batch.events

    @rule(poll=POLLS)
    def end(self, poll):
        """The wait ends, for whatever reason."""
        poll = self.polls[poll]
        if poll.group is None:
            return
        batch = poll.worker.leave(poll.group, limit=poll.limit)
        poll.group, poll.verified = None, False
        if batch is not None:
            self._answer(poll, batch)

    def _answer(self, poll, batch):
        before = 0 if poll.cursor is None else poll.cursor.position
        after = batch.cursor.position
        assert before <= after
        assert batch.cursor == self.log.cursor(after)
        theirs = [each for each in self.log.events if each.channel in poll.names]
        assert positions(batch) == [each.position for each in theirs if before < each.position <= after]
        assert len(batch.events) <= poll.limit
        assert len(batch.events) <= 1 or sum(len(each.data) for each in batch.events) <= 3
        poll.cursor, poll.verified = batch.cursor, False

    @invariant()
    def nobody_sleeps_through_an_event(self):
        for poll in self.polls:
            if poll.group is None or poll.worker.cursor is None:
                continue
            delivered = range(poll.cursor.position + 1, poll.worker.cursor.position + 1)
            missed = [at for at in delivered if self.log.events[at - 1].channel in poll.names]
            assert not missed or poll.group.event.is_set(), missed

    @invariant()
    def as_many_are_held_as_wait(self):
        for hub in self.workers:
            assert hub.held == sum(poll.group is not None and poll.worker is hub for poll in self.polls)

    def teardown(self):
        for number in range(len(self.polls)):
            self.end(number)
        for hub in self.workers:
            assert_empty(hub)
        # Whoever goes on asking gets all of it.
        for poll in self.polls:
            while poll.cursor is None or poll.cursor.position < self.log.head:
                self._read(poll)


Hopping.TestCase.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, derandomize=True
)
TestHopping = Hopping.TestCase


def test_the_model_itself_raises_for_a_cursor_that_the_log_does_not_know(log):
    """The machine above never asks with one: guards it against proving nothing."""
    with pytest.raises(CursorGone):
        log.read_after(MemoryLog("another").cursor(0), channels=ORDERS, limit=1, max_bytes=1)


# A limit to how far behind a cursor may be.


@pytest.mark.parametrize("limit", [1, MANY])
def test_memory_counts_what_is_behind_a_cursor_on_its_channels(make_waits, log, limit):
    waits = make_waits(max_backlog=2)
    for name in ("orders", "users", "orders", "users", "orders"):
        log.append(name)
    feed(waits.hub, log)
    for names, position in ((ORDERS, 0), (channels("orders", "users"), 2)):
        with pytest.raises(BacklogTooLarge, match="more than 2 events follow") as caught:
            waits.look(names, log.cursor(position), limit=limit)
        assert caught.value.facts == {"most": 2}
    assert positions(waits.look(ORDERS, log.cursor(1), limit=limit)) == [3, 5][:limit]
    assert positions(waits.look(channels("users"), log.cursor(0), limit=limit)) == [2, 4][:limit]


def test_who_waits_gets_what_comes_whatever_the_limit(make_waits, log):
    waits = make_waits(max_backlog=2)
    feed(waits.hub, log)
    group = waits.join(ORDERS, log.cursor())
    for _ in range(3):
        log.append("orders")
    feed(waits.hub, log)
    assert positions(waits.leave(group)) == [1, 2, 3]


# Events that were erased.


def tombstone(event):
    return Event(event.position, "new", "$erased", "erased", "null", event.time, event.check)


def test_an_erased_event_is_replaced_in_memory_and_its_neighbours_stay(hub, log):
    for name in ("orders", "others", "orders", "orders"):
        log.append(name, '"%s"' % name)
    feed(hub, log)
    start = log.cursor(0)
    assert positions(hub.join(ORDERS, start, limit=10)) == [1, 3, 4]
    hub.replace([tombstone(log.events[2]), tombstone(log.events[0])])
    assert positions(hub.join(ORDERS, start, limit=10)) == [4]
    assert positions(hub.join(frozenset(["others"]), start, limit=10)) == [2]
    # Cursors at and behind it are good.
    for position in range(4):
        assert positions(hub.join(ORDERS, log.cursor(position), limit=10)) == [4]


def test_events_that_are_not_in_memory_are_not_replaced(hub, log):
    for _ in range(3):
        log.append("orders")
    feed(hub, log)
    for position in (0, 4, 900):
        hub.replace([Event(position, "new", "$erased", "erased", "null", "", "00000000")])
    hub.replace([log.events[1]])
    assert positions(hub.join(ORDERS, log.cursor(0), limit=10)) == [1, 2, 3]


def test_memory_with_erased_events_is_forgotten_like_any(log):
    hub = Hub(tail_events=4, tail_bytes=1 << 20, max_bytes=1 << 20)
    for _ in range(4):
        log.append("orders", '"long data"')
    feed(hub, log)
    hub.replace([tombstone(log.events[1]), tombstone(log.events[0]), tombstone(log.events[3])])
    for _ in range(8):
        log.append("orders")
    feed(hub, log)
    assert (hub.span, hub.remembered) == ((9, 12), 4)
    assert set(hub._by_channel) == {"orders"}
    assert hub._bytes == sum(each.size for each in log.events[8:]) + 4 * 400


def test_the_span_of_memory_is_empty_before_anything_came(log):
    hub = Hub(tail_events=4, tail_bytes=1 << 20, max_bytes=1 << 20)
    assert hub.span == (1, 0)
    hub.replace([Event(1, "new", "$erased", "erased", "null", "", None)])
