"""Shared reads. A `Gate` is a read that has begun, and ends when the test says so."""

from __future__ import annotations

import threading

import gevent
import gevent.event
import pytest

from legacy_poll.catchup import CatchUp, SingleFlight
from legacy_poll.errors import CursorExpired, ServerFull, StorageUnavailable
from tests.unit.memory_log import MemoryLog, positions
from tests.waiting import until


class Gate:
    """A function that counts its calls, and returns each call's number once that call may end.

    Args:
        make_event: gevent's for greenlets, threading's for threads.
    """

    def __init__(self, make_event=gevent.event.Event):
        self._make_event = make_event
        self.calls = []
        self.running = 0
        self.most = 0

    def __call__(self):
        ending = self._make_event()
        self.calls.append(ending)
        number = len(self.calls)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            assert ending.wait(10), "nobody let call {} end".format(number)
        finally:
            self.running -= 1
        return number

    def end(self, number):
        until(lambda: len(self.calls) >= number)
        self.calls[number - 1].set()


# More than any test takes: a greenlet that waited for a place of threading's would stop all of them.
PLACES = 2000


@pytest.fixture
def flights():
    flights = SingleFlight(PLACES)
    yield flights
    assert not flights._boarding and not flights._flying
    assert all(flights._places.acquire(blocking=False) for _ in range(PLACES)), "a place was not given back"


@pytest.fixture
def gate():
    return Gate()


def call(flights, gate, key="key"):
    greenlet = gevent.spawn(flights.call, key, gate)
    gevent.sleep(0)  # lets it begin, until it waits
    return greenlet


def test_one_call_is_one_execution(flights, gate):
    caller = call(flights, gate)
    gate.end(1)
    assert caller.get(timeout=5) == 1


def test_a_read_that_began_before_i_asked_is_not_shared_with_me(flights, gate):
    first = call(flights, gate)
    second = call(flights, gate)
    gate.end(1)
    assert first.get(timeout=5) == 1
    gate.end(2)
    assert second.get(timeout=5) == 2


def test_a_thousand_equal_reads_are_two_executions(flights, gate):
    first = call(flights, gate)
    others = [call(flights, gate) for _ in range(999)]
    assert len(gate.calls) == 1
    gate.end(1)
    gate.end(2)
    assert first.get(timeout=5) == 1
    assert {other.get(timeout=5) for other in others} == {2}
    assert len(gate.calls) == 2


def test_those_who_come_while_the_second_runs_share_the_third(flights, gate):
    first, second = call(flights, gate), call(flights, gate)
    gate.end(1)
    until(lambda: len(gate.calls) == 2)
    third, fourth = call(flights, gate), call(flights, gate)
    gate.end(2)
    gate.end(3)
    assert [each.get(timeout=5) for each in (first, second, third, fourth)] == [1, 2, 3, 3]


def test_equal_reads_do_not_run_beside_each_other(flights, gate):
    callers = [call(flights, gate) for _ in range(5)]
    gate.end(1)
    gate.end(2)
    gevent.joinall(callers, timeout=5)
    assert gate.most == 1


def test_other_keys_do_not_wait_for_each_other(flights, gate):
    first = call(flights, gate, "one")
    second = call(flights, gate, "two")
    gate.end(2)
    assert second.get(timeout=5) == 2
    gate.end(1)
    assert first.get(timeout=5) == 1


def test_an_error_is_everybodys(flights, gate):
    def fail():
        gate()
        raise StorageUnavailable("gone")

    first = call(flights, fail)
    others = [call(flights, fail) for _ in range(3)]
    gate.end(1)
    gate.end(2)
    for caller in [first] + others:
        with pytest.raises(StorageUnavailable):
            caller.get(timeout=5)
    assert len(gate.calls) == 2


def test_after_an_error_the_next_call_is_a_new_one(flights, gate):
    def fail():
        raise StorageUnavailable("gone")

    with pytest.raises(StorageUnavailable):
        flights.call("key", fail)
    caller = call(flights, gate)
    gate.end(1)
    assert caller.get(timeout=5) == 1


@pytest.mark.parametrize("how", [gevent.GreenletExit, gevent.Timeout(1)])
def test_a_leader_that_is_killed_while_it_reads_does_not_take_the_others_along(flights, gate, how):
    first = call(flights, gate)
    leader = call(flights, gate)
    followers = [call(flights, gate) for _ in range(3)]
    gate.end(1)
    until(lambda: len(gate.calls) == 2)
    leader.kill(how, timeout=5)
    assert leader.dead
    # The first of them to notice reads at once, the others together after it.
    gate.end(3)
    gate.end(4)
    assert sorted(follower.get(timeout=5) for follower in followers) == [3, 4, 4]
    assert first.get(timeout=5) == 1


def test_a_leader_that_is_killed_before_it_reads_does_not_take_the_others_along(flights, gate):
    first = call(flights, gate)
    leader = call(flights, gate)
    followers = [call(flights, gate) for _ in range(3)]
    leader.kill(timeout=5)
    gate.end(1)
    gate.end(2)
    assert {follower.get(timeout=5) for follower in followers} == {2}
    assert first.get(timeout=5) == 1


def test_a_follower_that_is_killed_disturbs_nobody(flights, gate):
    first = call(flights, gate)
    followers = [call(flights, gate) for _ in range(3)]
    followers[1].kill(timeout=5)
    gate.end(1)
    gate.end(2)
    assert first.get(timeout=5) == 1
    assert followers[0].get(timeout=5) == followers[2].get(timeout=5) == 2


def test_a_killed_read_frees_its_place(gate):
    flights = SingleFlight(1)
    for key in range(3):
        caller = call(flights, gate, key)
        caller.kill(timeout=5)
        assert flights._places.acquire(blocking=False)
        flights._places.release()


def test_no_more_run_at_once_than_there_are_places():
    """In threads, since the places are threading's: gevent's where it patched them, and then greenlets wait too."""
    flights, gate = SingleFlight(3, make_event=threading.Event), Gate(threading.Event)
    got = []
    threads = [
        threading.Thread(target=lambda key=key: got.append(flights.call(key, gate)), daemon=True)
        for key in range(10)
    ]
    for thread in threads:
        thread.start()
    until(lambda: len(flights._boarding) + len(gate.calls) == 10)
    for number in range(1, 11):
        assert gate.running <= 3
        gate.end(number)
    for thread in threads:
        thread.join(10)
    assert sorted(got) == list(range(1, 11))
    assert gate.most == 3
    assert not flights._boarding and not flights._flying


def test_so_many_wait_for_their_turn_and_the_next_is_refused():
    """Different reads: equal ones wait together, and are one."""
    flights, gate = SingleFlight(5, most_waiting=1), Gate()
    first, second = call(flights, gate), call(flights, gate)
    with pytest.raises(ServerFull, match="1 reads of old events wait already"):
        flights.call("another", gate)
    third = call(flights, gate)
    gate.end(1)
    gate.end(2)
    assert [each.get(timeout=5) for each in (first, second, third)] == [1, 2, 2]
    assert flights.call("another", lambda: 7) == 7


def test_threads_share_reads_as_greenlets_do():
    flights, gate = SingleFlight(1, make_event=threading.Event), Gate(threading.Event)
    got = []
    threads = [
        threading.Thread(target=lambda: got.append(flights.call("key", gate)), daemon=True) for _ in range(20)
    ]
    threads[0].start()
    until(lambda: len(gate.calls) == 1)
    for thread in threads[1:]:
        thread.start()
    until(lambda: sum(thread.is_alive() for thread in threads) == 20 and flights._boarding)
    gate.end(1)
    # A thread that was slow to ask shares the third; a fourth can only be if somebody asked for it anew.

    def all_end():
        for ending in list(gate.calls):
            ending.set()
        return not any(thread.is_alive() for thread in threads)

    until(all_end)
    assert len(got) == 20 and got.count(1) == 1
    assert len(gate.calls) <= 4


# Of a log.


@pytest.fixture
def log():
    return MemoryLog()


@pytest.fixture
def catchup(log):
    return CatchUp(log, reads=2, max_bytes=30)


ORDERS = frozenset(["orders"])


def test_a_read_is_the_logs(catchup, log):
    for _ in range(4):
        log.append("orders", data="x" * 10)
    assert positions(catchup.read_after(None, channels=ORDERS, limit=2)) == [1, 2]
    assert positions(catchup.read_after(log.cursor(2), channels=ORDERS, limit=9)) == [3, 4]
    assert positions(catchup.read_after(None, channels=ORDERS, limit=9)) == [1, 2, 3]


def test_the_logs_refusal_is_the_callers(catchup, log):
    log.append("orders")
    log.append("orders")
    log.forget(3)
    with pytest.raises(CursorExpired):
        catchup.read_after(log.cursor(0), channels=ORDERS, limit=1)


@pytest.mark.parametrize(
    "other",
    [
        lambda log: {"cursor": log.cursor(1), "channels": ORDERS, "limit": 9},
        lambda log: {"cursor": None, "channels": frozenset(["orders", "users"]), "limit": 9},
        lambda log: {"cursor": None, "channels": ORDERS, "limit": 1},
    ],
)
def test_reads_that_differ_are_not_shared(catchup, log, other):
    log.append("orders")
    log.append("users")
    asked = other(log)
    found = []
    log.during_read.append(lambda: found.append(catchup.read_after(asked.pop("cursor"), **asked)))
    catchup.read_after(None, channels=ORDERS, limit=9)
    assert len(found) == 1
    assert len(log.reads) == 2


def test_the_head_is_not_older_than_the_question(catchup, log):
    log.append("orders")
    assert catchup.head() == log.cursor(1)
    log.append("orders")
    assert catchup.head() == log.cursor(2)
