"""When the reactor calls its step, over real connections: whenever there may be something to do, and no oftener."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time

import pytest

from legacy_poll.lanes import reactor
from legacy_poll.lanes.cohorts import IDLE, Cohort
from legacy_poll.lanes.reactor import OVER, Reactor
from tests.waiting import until

SECONDS = 20


class House:
    """A reactor, and what its steps found; *most* is how much a step reads, 0 for a step that reads nothing."""

    def __init__(self):
        self.reactor = Reactor()
        self.most = 100
        self.steps = []
        self.due = []
        self._ends = []
        self.reactor.open(self._step)
        self._marks = self.connect()
        self.let_rest()

    def _step(self):
        events = self.reactor.happened(self.most) if self.most else []
        self.steps.append(events)
        self.due += self.reactor.due()
        for descriptor, _ in events:
            with open(descriptor, "rb", buffering=0, closefd=False) as connection:
                connection.read(1000)
        return len(events) == self.most

    def connect(self):
        """A client's end, and the descriptor of the other."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._ends += [ours, theirs]
        self.reactor.register(ours.fileno())
        return theirs, ours.fileno()

    def let_rest(self):
        """Until it has done all that there was; returns what it found in each of the steps for that."""
        mark, descriptor = self._marks
        mark.send(b"x")
        until(lambda: self.steps and (descriptor, 1) in self.steps[-1], SECONDS, "it has found the mark")
        last = [event for event in self.steps.pop() if event != (descriptor, 1)]
        steps = self.steps + ([last] if last else [])
        self.steps = []
        return steps

    @property
    def found(self):
        return [event for events in self.steps for event in events]

    def close(self):
        for end in self._ends:
            end.close()


@pytest.fixture
def house():
    house = House()
    yield house
    house.close()


def test_what_comes_is_found_once_and_then_it_is_quiet(house):
    client, descriptor = house.connect()
    for _ in range(3):
        house.let_rest()
        client.send(b"x")
        until(lambda: house.found, SECONDS, "it is found")
        assert house.let_rest() == [[(descriptor, 1)]]


def test_without_anything_there_is_no_step(house):
    house.connect()
    house.let_rest()
    assert house.let_rest() == []


def test_what_a_step_leaves_brings_another_at_once(house):
    client, descriptor = house.connect()
    house.let_rest()
    house.most = 0
    client.send(b"x")
    until(lambda: len(house.steps) > 2, SECONDS, "it was left twice")
    house.most = 100
    until(lambda: house.found, SECONDS, "it is found")
    house.let_rest()
    assert house.let_rest() == []


def test_more_than_a_step_takes_is_taken_by_the_next(house):
    clients = [house.connect() for _ in range(5)]
    house.let_rest()
    house.most = 2
    for client, _ in clients:
        client.send(b"x")
    until(lambda: len(house.found) == 5, SECONDS, "all are found")
    assert sorted(house.found) == sorted((descriptor, 1) for _, descriptor in clients)


def test_what_comes_within_a_breath_is_taken_together(house, monkeypatch):
    clients = [house.connect() for _ in range(20)]
    house.let_rest()
    clients[0][0].send(b"x")
    until(lambda: house.steps, SECONDS, "there was a step, and a breath begins")
    monkeypatch.setattr(reactor, "_BREATH_SECONDS", 10 * SECONDS)
    for client, _ in clients:
        client.send(b"x")
        until(house.reactor._woken.is_set, SECONDS, "it knows of the first, at least")
    house.reactor.wake()
    until(lambda: len(house.found) == 21, SECONDS, "all are found")
    assert [len(events) for events in house.steps] == [1, 20]


def test_what_is_due_does_not_wait_for_the_breath(house, monkeypatch):
    client, descriptor = house.connect()
    house.let_rest()
    client.send(b"x")
    until(lambda: house.steps, SECONDS, "there was a step, and a breath begins")
    monkeypatch.setattr(reactor, "_BREATH_SECONDS", 10 * SECONDS)
    client.send(b"x")
    until(house.reactor._woken.is_set, SECONDS, "it knows of it")
    assert len(house.steps) == 1
    # It rang once: until the step the loop is called no more.
    assert house.reactor._bell.poll(0, 1) == []
    house.reactor.wake()
    until(lambda: house.found == 2 * [(descriptor, 1)], SECONDS, "the step came")


def test_an_end_is_found(house):
    client, descriptor = house.connect()
    house.let_rest()
    client.shutdown(socket.SHUT_WR)
    until(lambda: house.found, SECONDS, "it is found")
    [(found, flags)] = house.found
    assert found == descriptor and flags & OVER


def test_what_is_not_registered_any_more_is_not_looked_at(house):
    client, descriptor = house.connect()
    house.let_rest()
    house.reactor.unregister(descriptor)
    client.send(b"x")
    assert house.let_rest() == []


def test_a_deadline_brings_a_step_and_none_is_left_behind(house):
    item = Cohort(IDLE, None, 0)
    house.reactor.set_deadline(item, time.monotonic() + 0.01)
    until(lambda: house.due, SECONDS, "it is due")
    assert house.due == [item] and house.steps
    assert not house.reactor._timer.active


def test_a_fault_of_a_step_is_logged_and_the_next_step_comes(house, caplog):
    client, descriptor = house.connect()
    house.let_rest()
    house.most = "no number"
    client.send(b"x")
    until(lambda: "a parked poll failed" in caplog.text, SECONDS, "it failed")
    house.most = 100
    until(lambda: house.found == [(descriptor, 1)], SECONDS, "it is found")


def test_the_connections_epoll_is_watched_by_the_bell_alone_and_that_by_the_loop_from_the_start(house):
    # When an epoll is added to another, the kernel walks all connections in it: a loop that did that now and then made
    # an event cost 4 ms more with ten thousand.
    started = []
    house.reactor._io = type("Watched", (), {"start": started.append, "stop": started.append})
    client, _ = house.connect()
    for _ in range(5):
        house.let_rest()
        client.send(b"x")
        until(lambda: house.found, SECONDS, "it is found")
    assert started == []
    assert watchers(house.reactor._epoll) == [house.reactor._bell.fileno()]
    assert len(watchers(house.reactor._bell)) == 1


def watchers(epoll):
    """The descriptors of the epolls that watch *epoll*."""
    found = []
    for each in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError), open("/proc/self/fdinfo/" + each) as info:
            if re.search(r"^tfd: +%d " % epoll.fileno(), info.read(), re.M):
                found.append(int(each))
    return found
