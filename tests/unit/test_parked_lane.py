"""Interleavings inside the parked lane that no client can bring about at will: real sockets, a worker in memory."""

from __future__ import annotations

import time

import gevent
import gevent.socket

from legacy_poll.admission import Admission
from legacy_poll.catchup import CatchUp
from legacy_poll.errors import CursorUnknown
from legacy_poll.hold import Hold, Question
from legacy_poll.hub import Hub
from legacy_poll.lanes import ParkedLane
from legacy_poll.lanes.approvals import Parking, Requests, Terms
from legacy_poll.lanes.gunicorn_seam import Rendered
from legacy_poll.lanes.parked import _Block
from legacy_poll.metrics import Metrics
from legacy_poll.wire import render_error
from tests.unit.memory_log import MemoryLog
from tests.waiting import until

SECONDS = 20
HOST = "here"


class Worker:
    """What the lane asks of a worker, in place of gunicorn's: the tests over real ones are in tests/process."""

    keepalive_seconds = 60.0
    worker_connections = 100
    logs = False
    alive = True

    def __init__(self):
        self.given_back = []

    def watch(self, take, accept):
        pass

    def keep(self, number, over):
        pass

    def has_room(self, requests):
        return True

    def count(self, requests):
        pass

    def give_back(self, descriptor, first, number, peer):
        self.given_back.append(first)
        gevent.socket.socket(fileno=descriptor).close()

    def render(self, headers, answer, *, close):
        head = "HTTP/1.1 {}\r\n\r\n".format(answer.status).encode("ascii")
        return Rendered(head, answer.body, None, answer)


class House:
    def __init__(self, **options):
        self.late = 0.0
        self.log, self.worker, self.metrics = MemoryLog(), Worker(), Metrics()
        self.hub = Hub(**dict({"tail_events": 100, "tail_bytes": 1 << 20, "max_bytes": 1 << 20}, **options))
        self.hold = Hold(self.hub, CatchUp(self.log, reads=4, max_bytes=1 << 20), clock=self.clock)
        self.admission = Admission(max_held=100, max_held_per_client=0)
        self.lane = ParkedLane(
            self.worker,
            self.hold,
            self.admission,
            self.metrics,
            reauthorize_seconds=60.0,
            send_seconds=5.0,
            is_well=lambda: True,
            clock=self.clock,
        )
        self.lane.start()
        self.lane._open(0)
        self.request = "GET /stream?cursor={} HTTP/1.1\r\n\r\n".format(self.log.cursor()).encode("ascii")
        asked = Question(frozenset(["orders"]), None, False, 10, 25.0)
        parking = Parking(asked, 25.0, 204, "", 0.0, lambda error: (render_error(error), error.code))
        self.terms = Terms(parking, _Block(()), "")
        key, _ = Requests().recognise(self.request)
        self.place = self.lane._place(0, (HOST, 1))
        self.lane._approvals.add(self.place.prefix + key, self.terms, authorised=self.lane._clock())

    def clock(self):
        return time.monotonic() + self.late

    def connect(self):
        ours, theirs = gevent.socket.socketpair()
        assert self.lane.accept(theirs, 0, (HOST, 1), b"")
        return ours


def test_who_hangs_up_while_others_are_tried_one_by_one_is_not_tried():
    house = House(max_group=1)
    clients = [house.connect() for _ in range(3)]
    reads = []

    def read():
        # Together there is no room for them; while there is looked for the first alone, the second goes.
        reads.append(len(house.lane._connections))
        if len(reads) == 2:
            clients[1].close()
            until(lambda: house.lane.connections == 2, SECONDS, "the lane has seen it")

    house.log.during_read = [read] * 4
    for client in clients:
        client.sendall(house.request)
    with gevent.Timeout(SECONDS):
        assert clients[2].recv(100).startswith(b"HTTP/1.1 503")
    # One waits, one was refused, and one hung up: each once.
    assert house.metrics.counts() == {"hangup": 1, "server_full": 1}
    assert reads == [3, 3, 2]
    assert (house.hub.held, house.admission.held, house.lane.connections) == (1, 1, 2)


def test_refusals_that_cannot_be_sent_leave_no_connection_and_no_place():
    house = House()
    house.log.failure = CursorUnknown("the log was replaced")
    house.worker.render = lambda headers, answer, close: 1 / 0
    clients = [house.connect() for _ in range(3)]
    for client in clients:
        client.sendall(house.request)
    with gevent.Timeout(SECONDS):
        assert [client.recv(100) for client in clients] == [b""] * 3
    assert (house.hub.held, house.admission.held, house.lane.connections) == (0, 0, 0)


def test_who_is_tried_alone_is_not_held_longer_than_the_approval_lasts():
    house = House(max_group=2)
    approval = next(iter(house.lane._approvals._approvals.values()))
    approval.until = house.lane._clock() + 20
    clients = [house.connect() for _ in range(3)]
    # Each look takes three seconds.
    house.log.during_read = [lambda: setattr(house, "late", house.late + 3)] * 4
    for client in clients:
        client.sendall(house.request)
    with gevent.Timeout(SECONDS):
        assert clients[2].recv(100).startswith(b"HTTP/1.1 503")
    held = [each.cohort.stay.deadline for each in house.lane._connections.values() if each.cohort.stay]
    assert len(held) == 2 and all(deadline <= approval.until for deadline in held)


def test_who_hangs_up_frees_its_place_among_those_who_wait_on_the_same():
    house = House(max_group=2)
    clients = [house.connect() for _ in range(2)]
    for client in clients:
        client.sendall(house.request)
    until(lambda: house.hub.held == 2, SECONDS, "both are held")
    clients.pop().close()
    until(lambda: house.lane.connections == 1, SECONDS, "the lane has seen it")
    assert (house.hub.held, house.hub.groups) == (1, 1)
    clients.append(house.connect())
    clients[-1].sendall(house.request)
    until(lambda: house.hub.held == 2, SECONDS, "another is held in its place")
    for client in clients:
        client.close()
    until(lambda: not house.lane.connections, SECONDS, "the lane has seen it")
    assert (house.hub.held, house.hub.groups, house.admission.held) == (0, 0, 0)
