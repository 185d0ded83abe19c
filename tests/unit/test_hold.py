"""One request's life, with every interleaving scripted: something happens inside the look, the read, or the wait.

A group's event is a `Scripted` one: its `wait` does what the test says happens meanwhile, lets that much time pass,
and returns. So each race is one test, and none of them waits.
"""

from __future__ import annotations

import json

import gevent
import pytest

from legacy_poll.catchup import CatchUp
from legacy_poll.cursors import Cursor
from legacy_poll.errors import BacklogTooLarge, CursorExpired, CursorUnknown, StorageUnavailable, Unauthorized
from legacy_poll.events import REVOKE_CHANNEL, Batch
from legacy_poll.hold import Hold, Question
from legacy_poll.hub import Hub
from legacy_poll.revocations import Revocations
from tests.unit.memory_log import Clock, MemoryLog, assert_empty, feed, positions
from tests.waiting import until


class Scripted:
    """What a group waits on. Like gevent's, but that `wait` runs the next step of the script instead of waiting."""

    def __init__(self, place):
        self.place = place
        self.is_set = False

    def set(self):
        self.is_set = True

    def wait(self, seconds):
        self.place.waits.append(seconds)
        if self.is_set:
            return True
        assert self.place.meanwhile, "an unscripted wait of {} s".format(seconds)
        step = self.place.meanwhile.pop(0)
        returned = step()
        if returned == "timeout" or not self.is_set:
            # In vain, even if the event was set a moment later.
            self.place.clock.now += seconds
            return False
        self.place.clock.now += 1
        return True


class Place:
    """A hub, a log, a hold, and what happens meanwhile."""

    def __init__(self, make_event=None, **options):
        self.clock = Clock()
        self.log = MemoryLog()
        self.waits = []
        self.meanwhile = []
        self.in_join = []
        bounds = dict({"tail_events": 100, "tail_bytes": 1 << 20, "max_bytes": 1 << 20}, **options)
        self.hub = ActingHub(self, make_event=make_event or (lambda: Scripted(self)), **bounds)
        self.catchup = CatchUp(self.log, reads=1, max_bytes=1 << 20)
        self.revocations = Revocations()
        self.hold = Hold(self.hub, self.catchup, revocations=self.revocations, clock=self.clock)

    def ask(self, cursor, names=("orders",), seconds=25.0, limit=500, now=False, subject=None, seen=0):
        question = Question(
            frozenset(names), cursor, now, limit, seconds, subject=subject, authorised_at=seen
        )
        return self.hold(question)

    def revoke(self, subject):
        """This worker meets a revocation in the log, as a publisher does."""
        event = self.log.append(REVOKE_CHANNEL, json.dumps({"subject": subject}))
        self.hold.revoke(self.revocations.note(event))
        feed(self.hub, self.log)

    def commit(self, name="orders"):
        return self.log.append(name)

    def deliver(self, name="orders"):
        """An event is committed, and this worker has it."""
        self.log.append(name)
        feed(self.hub, self.log)


class ActingHub(Hub):
    """Acts when a join has taken place, and before its caller knows."""

    def __init__(self, place, **options):
        super().__init__(**options)
        self.place = place

    def join(self, *arguments, **options):
        found = super().join(*arguments, **options)
        if self.place.in_join:
            self.place.in_join.pop(0)()
        return found


@pytest.fixture
def place():
    place = Place()
    feed(place.hub, place.log)
    yield place
    assert not place.meanwhile and not place.in_join and not place.log.during_read, (
        "the script was not played"
    )
    assert_empty(place.hub)
    assert not place.hold._by_subject


@pytest.fixture
def live():
    """With gevent's own events: for tests that do wait, in greenlets."""
    place = Place(make_event=gevent.event.Event)
    feed(place.hub, place.log)
    yield place
    assert_empty(place.hub)


# Without a wait.


def test_what_memory_has_is_answered_at_once_without_the_log(place):
    place.deliver()
    assert positions(place.ask(place.log.cursor(0))) == [1]
    assert place.waits == [] and place.log.reads == []


def test_what_memory_has_not_comes_from_the_log_at_once():
    place = Place(tail_events=1)
    for _ in range(3):
        place.commit()
    feed(place.hub, place.log)
    batch = place.ask(place.log.cursor(0))
    assert positions(batch) == [1, 2, 3]
    assert place.log.reads == [place.log.cursor(0)]


def test_without_a_cursor_the_answer_begins_with_the_oldest(place):
    place.deliver()
    place.deliver()
    assert positions(place.ask(None)) == [1, 2]


def test_without_a_cursor_and_without_events_the_poll_waits_from_what_it_read(place):
    place.deliver("other")
    place.meanwhile.append(place.deliver)
    batch = place.ask(None)
    assert positions(batch) == [2]
    assert place.log.reads == [None]


@pytest.mark.parametrize("known", [True, False])
def test_a_short_poll_never_waits(place, known):
    place.deliver("other")
    cursor = place.log.cursor() if known else None
    assert place.ask(cursor, seconds=0) == Batch((), place.log.cursor())
    assert place.waits == []


def test_now_is_the_head_of_the_log_and_not_of_this_worker(place):
    place.commit()
    assert place.ask(None, now=True) == Batch((), place.log.cursor(1))
    assert place.waits == []


# The beginning of a hold.


def test_an_event_between_the_look_and_the_wait_is_not_lost(place):
    place.in_join.append(place.deliver)
    batch = place.ask(place.log.cursor())
    assert positions(batch) == [1]
    assert place.waits == [25.0]


def test_a_commit_inside_the_read_that_is_delivered_at_once_is_not_lost(place):
    """The read looked, and then it happened: the poll finds it in memory when it joins."""
    place.deliver("other")
    place.log.during_read.append(place.deliver)
    batch = place.ask(None)
    assert positions(batch) == [2]
    assert place.waits == []


def test_a_commit_inside_the_read_that_is_delivered_later_is_not_lost(place):
    """This worker learns of it while the poll waits already, with a cursor from before it."""
    place.deliver("other")
    place.log.during_read.append(place.commit)
    place.meanwhile.append(lambda: feed(place.hub, place.log))
    batch = place.ask(None)
    assert positions(batch) == [2]


def test_a_delivery_inside_the_read_of_what_the_read_saw_is_not_answered_twice(place):
    """Another worker was faster: the log has what memory gets while the poll reads."""
    place.deliver("other")
    place.commit()
    place.log.during_read.append(lambda: feed(place.hub, place.log))
    first = place.ask(None)
    assert positions(first) == [2]
    place.meanwhile.append(place.deliver)
    assert positions(place.ask(first.cursor)) == [3]


def test_so_much_inside_the_read_that_memory_forgot_it_is_read_again():
    place = Place(tail_events=2)
    feed(place.hub, place.log)

    def flood():
        for _ in range(5):
            place.deliver()

    place.log.during_read.append(flood)
    batch = place.ask(None)
    assert positions(batch) == [1, 2, 3, 4, 5]
    assert place.log.reads == [None, place.log.cursor(0)]


# The end of a hold.


def test_an_event_at_the_very_moment_of_the_timeout_is_in_the_answer(place):
    """`wait` has given up, and is about to say so, when the event is delivered."""

    def late():
        place.deliver()
        return "timeout"

    place.meanwhile.append(late)
    cursor = place.log.cursor()
    batch = place.ask(cursor)
    assert positions(batch) == [1]
    assert batch.cursor == place.log.cursor(1)


def test_an_event_right_after_the_end_is_the_next_polls(place):
    place.meanwhile.append(lambda: "timeout")
    batch = place.ask(place.log.cursor())
    assert batch == Batch((), place.log.cursor(0))
    place.deliver()
    assert positions(place.ask(batch.cursor)) == [1]


def test_an_empty_answers_cursor_is_what_was_looked_at_and_not_more(place):
    """What is committed and has not come to this worker is behind the cursor, although the log has it."""

    def meanwhile():
        place.deliver("other")
        place.commit("orders")
        place.commit("other")

    place.meanwhile.append(meanwhile)
    batch = place.ask(place.log.cursor())
    assert batch == Batch((), place.log.cursor(1))
    feed(place.hub, place.log)
    assert positions(place.ask(batch.cursor)) == [2]


def test_a_hold_ends_at_its_time_however_often_it_has_to_look_again(place):
    def again():
        place.clock.now += 9
        place.hub.look_again()

    place.meanwhile += [again, again, again]
    place.ask(place.log.cursor())
    assert place.waits == [25.0, 15.0, 5.0]


def test_at_the_end_of_its_time_a_poll_that_must_look_again_looks_but_does_not_wait(place):
    def again():
        place.hub.look_again()
        place.clock.now += 25
        place.commit()
        feed(place.hub, place.log)

    place.meanwhile.append(again)
    assert positions(place.ask(place.log.cursor())) == [1]
    assert place.waits == [25.0]


# The end of the worker.


def test_drained_a_held_poll_is_answered_as_at_its_timeout(place):
    def drain():
        place.deliver("other")
        place.hold.drain()

    place.meanwhile.append(drain)
    cursor = place.log.cursor()
    assert place.ask(cursor).events == ()
    assert place.clock.now < 1025


def test_an_event_at_the_moment_of_the_drain_is_in_the_answer(place):
    def drain():
        place.deliver()
        place.hold.drain()

    place.meanwhile.append(drain)
    assert positions(place.ask(place.log.cursor())) == [1]


def test_drained_nobody_waits_and_what_is_there_is_answered(place):
    place.hold.drain()
    assert place.ask(place.log.cursor()) == Batch((), place.log.cursor())
    assert place.ask(None) == Batch((), place.log.cursor())
    place.deliver()
    assert positions(place.ask(place.log.cursor(0))) == [1]
    assert place.waits == []


def test_the_cursor_of_a_drained_poll_that_was_ahead_never_goes_back(place):
    place.deliver("other")
    place.commit("orders")
    cursor = place.log.cursor()
    place.meanwhile.append(place.hold.drain)
    assert place.ask(cursor) == Batch((), cursor)


# The right to read ends.


def test_a_revocation_ends_the_subjects_hold(place):
    place.meanwhile.append(lambda: place.revoke("u7"))
    with pytest.raises(Unauthorized):
        place.ask(place.log.cursor(), subject="u7")


@pytest.mark.parametrize("subject", [None, "u8"])
def test_a_revocation_leaves_the_others_alone(place, subject):
    place.meanwhile.append(lambda: place.revoke("u7"))
    assert place.ask(place.log.cursor(), subject=subject).events == ()
    assert place.clock.now == 1025


def test_a_revocation_leaves_the_others_of_the_group_where_they_are(live):
    polls = [gevent.spawn(live.ask, live.log.cursor(), subject=subject) for subject in ("u7", "u8", None)]
    until(lambda: live.hub.held == 3)
    live.revoke("u7")
    with pytest.raises(Unauthorized):
        polls[0].get(timeout=5)
    until(lambda: live.hub.held == 2)
    live.deliver()
    assert positions(polls[1].get(timeout=5)) == positions(polls[2].get(timeout=5)) == [2]
    assert not live.hold._by_subject


def test_a_revocation_between_the_look_and_the_wait_is_not_lost(place):
    place.in_join.append(lambda: place.revoke("u7"))
    with pytest.raises(Unauthorized):
        place.ask(place.log.cursor(), subject="u7")
    assert place.waits == []


def test_a_revocation_while_the_authorisation_was_under_way_counts(place):
    place.revoke("u7")
    with pytest.raises(Unauthorized):
        place.ask(place.log.cursor(), subject="u7", seen=0)


def test_a_revocation_before_the_authorisation_began_does_not(place):
    place.revoke("u7")
    place.deliver()
    assert positions(place.ask(place.log.cursor(0), subject="u7", seen=1)) == [2]


def test_an_event_behind_a_revocation_is_not_for_its_subject(place):
    def both():
        place.revoke("u7")
        place.deliver()

    place.meanwhile.append(both)
    with pytest.raises(Unauthorized):
        place.ask(place.log.cursor(), subject="u7")


def test_a_revocation_inside_the_read_is_not_lost(place):
    place.deliver()
    place.log.during_read.append(lambda: place.revoke("u7"))
    with pytest.raises(Unauthorized):
        place.ask(None, subject="u7")


# Trim.


def test_a_trim_between_two_looks_is_told(place):
    """The first look found memory with the cursor; the hub starts afresh, and the log has been trimmed since."""

    def trim():
        for _ in range(5):
            place.commit()
        place.log.forget(4)
        place.hub.prime(place.log.cursor(3))

    place.meanwhile.append(trim)
    with pytest.raises(CursorExpired):
        place.ask(place.log.cursor(0))


def test_a_trim_inside_the_read_is_told(place):
    """The log itself reports what vanished under a read; nobody hides it on the way."""

    def trim():
        raise CursorExpired("trimmed under the read")

    place.log.during_read.append(trim)
    with pytest.raises(CursorExpired):
        place.ask(None)


# The hub starts afresh while polls wait.


def test_primed_while_a_poll_waits_it_looks_again_and_waits_on(place):
    def prime():
        place.hub.prime(place.log.cursor())

    place.meanwhile += [prime, place.deliver]
    assert positions(place.ask(place.log.cursor())) == [1]
    assert place.waits == [25.0, 24.0]


def test_primed_behind_its_cursor_a_poll_is_vouched_for_by_the_log(place):
    """The worker restarted its memory from further back: the cursor is ahead of it, and the log knows it."""
    for _ in range(3):
        place.deliver()
    place.meanwhile += [lambda: place.hub.prime(place.log.cursor(1)), lambda: "timeout"]
    batch = place.ask(place.log.cursor(3))
    assert batch == Batch((), place.log.cursor(3))
    assert place.log.reads == [place.log.cursor(3)]


def test_primed_after_an_event_that_was_never_delivered_the_log_has_it(place):
    def prime():
        place.commit()
        place.hub.prime(place.log.cursor())

    place.meanwhile.append(prime)
    assert positions(place.ask(place.log.cursor())) == [1]


def test_a_log_replaced_while_a_poll_waits_is_told(place):
    def replace():
        place.log.replace()
        place.hub.prime(place.log.cursor())

    place.deliver("other")
    place.meanwhile.append(replace)
    with pytest.raises(CursorUnknown):
        place.ask(place.log.cursor())


def test_a_log_cut_back_while_a_poll_waits_is_told(place):
    def cut_back():
        place.log.cut_back(1)
        place.log.append("other", id="second-life")
        place.hub.prime(place.log.cursor())

    place.deliver("other")
    place.deliver("other")
    place.meanwhile.append(cut_back)
    with pytest.raises(CursorUnknown):
        place.ask(place.log.cursor())


@pytest.mark.parametrize("back_to", [1, 2])
def test_a_poll_moved_on_over_events_that_are_gone_is_told_only_if_its_own_cursor_is_gone_too(place, back_to):
    """The poll came at 2 and stood at 3 while it waited; then the log was cut back, and went on otherwise."""
    place.deliver("other")
    place.commit("other")
    asked = place.log.cursor()
    place.commit("other")

    def cut_back():
        place.log.cut_back(back_to)
        while place.log.head < 3:
            place.log.append("orders", id="second-life-%d" % place.log.head)
        place.hub.prime(place.log.cursor())

    place.meanwhile.append(cut_back)
    if back_to == 2:
        assert positions(place.ask(asked)) == [3]
    else:
        with pytest.raises(CursorUnknown):
            place.ask(asked)


def test_a_log_replaced_before_the_worker_knows_serves_those_who_come_from_it(place):
    """Their cursor is of the new log, memory still of the old: they wait, and look again when the worker knows."""
    place.deliver("other")
    place.log.replace()

    def found_out():
        place.hub.prime(place.log.cursor(0))

    place.meanwhile += [found_out, place.deliver]
    assert positions(place.ask(place.log.cursor(0))) == [1]


def test_a_log_replaced_before_the_worker_knows_is_told_to_those_who_need_the_log(place):
    place.deliver("other")
    old = place.log.cursor()
    ahead = Cursor(old.log, 9, old.check)
    place.log.replace()
    with pytest.raises(CursorUnknown):
        place.ask(ahead)


# A worker that is behind.


@pytest.fixture
def ahead(place):
    """This worker has 1 of 3 events; the client comes from another, with all 3."""
    place.deliver("other")
    place.commit("orders")
    place.commit("other")
    return place.log.cursor(3)


def test_a_cursor_ahead_of_the_worker_is_verified_with_the_log_and_held(place, ahead):
    place.meanwhile.append(lambda: "timeout")
    batch = place.ask(ahead)
    assert place.log.reads == [ahead]
    assert batch == Batch((), ahead)


def test_who_is_ahead_is_answered_only_by_events_behind_its_cursor(place, ahead):
    def catch_up():
        feed(place.hub, place.log)
        assert not place.hub.cursor.position < 3
        place.deliver("orders")

    place.meanwhile.append(catch_up)
    batch = place.ask(ahead)
    assert positions(batch) == [4]


def test_the_worker_catching_up_alone_does_not_end_the_hold_of_who_is_ahead(place, ahead):
    place.meanwhile.append(lambda: feed(place.hub, place.log))
    batch = place.ask(ahead)
    assert batch == Batch((), ahead)
    assert place.clock.now == 1000.0 + 25


def test_a_cursor_beyond_the_log_is_told_and_not_held(place, ahead):
    with pytest.raises(CursorUnknown):
        place.ask(Cursor(ahead.log, 4, ahead.check))
    assert place.waits == []


def test_a_cursor_ahead_whose_check_fails_is_told_and_not_held(place, ahead):
    with pytest.raises(CursorUnknown):
        place.ask(Cursor(ahead.log, 2, ahead.check))
    assert place.waits == []


def test_before_the_worker_has_read_anything_polls_are_served_from_the_log_and_held():
    place = Place()
    place.commit("other")

    def first_tick():
        place.hub.prime(place.log.cursor(0))
        feed(place.hub, place.log)

    place.meanwhile += [first_tick, place.deliver]
    assert positions(place.ask(place.log.cursor())) == [2]
    assert_empty(place.hub)


# Failure, and the end of the request.


def test_a_database_that_fails_is_told_and_nothing_stays_behind(place):
    place.log.failure = StorageUnavailable("gone")
    with pytest.raises(StorageUnavailable):
        place.ask(None)


def test_a_database_that_is_away_costs_a_poll_that_memory_can_serve_nothing(place):
    place.deliver()
    place.log.failure = StorageUnavailable("gone")
    assert positions(place.ask(place.log.cursor(0))) == [1]


@pytest.mark.parametrize("how", [gevent.GreenletExit, gevent.Timeout(1)])
def test_a_request_that_is_killed_while_it_waits_leaves_its_group(live, how):
    greenlet = gevent.spawn(live.ask, live.log.cursor())
    until(lambda: live.hub.held == 1)
    greenlet.kill(how, timeout=5)
    assert greenlet.dead
    assert_empty(live.hub)


def test_a_timeout_of_the_application_leaves_the_group(live):
    """`with gevent.Timeout(...)` around the iteration, as a server may do it."""

    def ask():
        with gevent.Timeout(0.01):
            live.ask(live.log.cursor())

    with pytest.raises(gevent.Timeout):
        gevent.spawn(ask).get(timeout=5)
    assert_empty(live.hub)


def test_the_others_of_a_killed_requests_group_are_answered(live):
    polls = [gevent.spawn(live.ask, live.log.cursor()) for _ in range(3)]
    until(lambda: live.hub.held == 3)
    polls[1].kill(timeout=5)
    live.deliver()
    assert positions(polls[0].get(timeout=5)) == positions(polls[2].get(timeout=5)) == [1]


def test_a_hold_with_gevents_own_event_ends_at_its_time(live):
    live.hold = Hold(live.hub, live.catchup)
    assert gevent.spawn(live.ask, live.log.cursor(), seconds=0.001).get(timeout=5) == Batch(
        (), live.log.cursor()
    )


def test_who_waited_is_not_refused_for_what_came_meanwhile():
    """Primed while it waits, the worker sends it to look again: by then there is more than a poll may bring along."""
    place = Place(max_backlog=1)
    place.catchup._max_backlog = 1
    start = place.log.cursor()

    def many():
        for _ in range(3):
            place.log.append("orders")
        place.hub.prime(place.log.cursor())

    place.meanwhile.append(many)
    assert positions(place.ask(start)) == [1, 2, 3]
    with pytest.raises(BacklogTooLarge):
        place.ask(start)
    assert_empty(place.hub)


# A log that was cut back under a worker that has not noticed yet.


def test_a_poll_of_a_log_that_was_cut_back_waits_and_reads_once(place):
    """Until the publisher looked, such polls had read the log again and again, without a pause."""
    for _ in range(5):
        place.commit()
    # Its memory begins behind what is left.
    place.hub.prime(place.log.cursor(4))
    feed(place.hub, place.log)
    place.log.cut_back(2)
    told = []
    place.hold.on_other_log = lambda: told.append(len(place.log.reads))

    def notice():
        place.hub.prime(place.log.cursor())
        place.deliver()

    place.meanwhile = [notice]
    batch = place.ask(place.log.cursor(2))
    assert positions(batch) == [3]
    assert (len(place.log.reads), told) == (1, [1])


def test_a_poll_of_a_log_that_was_cut_back_is_answered_at_its_time(place):
    for _ in range(5):
        place.commit()
    place.hub.prime(place.log.cursor(4))
    feed(place.hub, place.log)
    place.log.cut_back(2)
    place.meanwhile = [lambda: "timeout"]
    batch = place.ask(place.log.cursor(2))
    assert batch == Batch((), place.log.cursor(2))
    assert len(place.log.reads) == 1


def test_an_event_after_the_cut_that_the_worker_takes_for_its_own_ends_the_wait(place):
    """The log has grown past the worker's place before it looked: the poll looks again, and finds it in the log."""
    for _ in range(5):
        place.commit()
    place.hub.prime(place.log.cursor(4))
    feed(place.hub, place.log)
    place.log.cut_back(2)

    def grow():
        for number in range(6):
            place.log.append("orders", id="second-life-%d" % number)
        place.hub.deliver(place.log.events[5:], place.log.cursor())

    place.meanwhile = [grow]
    batch = place.ask(place.log.cursor(2))
    assert positions(batch) == [3, 4, 5, 6, 7, 8]


def test_a_log_that_is_another_at_the_workers_own_place_is_told(place):
    place.commit()
    feed(place.hub, place.log)
    place.log.cut_back(0)
    place.log.append("orders", id="another")
    told = []
    place.hold.on_other_log = lambda: told.append(True)
    place.meanwhile = [lambda: "timeout"]
    assert place.ask(place.log.cursor()) == Batch((), place.log.cursor())
    assert told == [True]


def test_a_log_that_goes_on_tells_nobody(place):
    told = []
    place.hold.on_other_log = lambda: told.append(True)
    place.meanwhile = [lambda: place.deliver()]
    behind = place.log.cursor()
    place.commit()  # this worker is behind
    place.ask(behind)
    place.meanwhile = [lambda: "timeout"]
    place.ask(place.log.cursor())
    assert told == []
