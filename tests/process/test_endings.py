"""How a held poll ends before its time: the client hangs up, or the worker is told to stop.

Polls are held for ten minutes here, so that whatever ends within a test's bound was ended, and did not run out.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import struct

import gunicorn
import pytest

from tests.gunicorn import Gunicorn
from tests.process.conftest import LANES
from tests.servers import _alive
from tests.waiting import until

SETTINGS = {"PUBLIC": 1, "HOLD_SECONDS": 600, "PUBLISH_TOKEN": "publish-token"}
MANY = 1000
SECONDS = 20


class House:
    """One gunicorn on an SQLite file, and raw connections to it."""

    def __init__(self, gunicorn):
        self.gunicorn = gunicorn

    def ask(self, method, path, body=None, headers=()):
        connection = http.client.HTTPConnection("127.0.0.1", self.gunicorn.port, timeout=SECONDS)
        with contextlib.closing(connection):
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def worker(self):
        return json.loads(self.ask("GET", "/status")[2])["worker"]

    def cursor(self):
        return json.loads(self.ask("GET", "/cursor")[2])["cursor"]

    def publish(self, data):
        headers = {"Authorization": "Bearer publish-token", "Content-Type": "application/json"}
        body = json.dumps({"channel": "orders", "data": data})
        assert self.ask("POST", "/publish", body, headers)[0] == 201

    def poll(self, cursor, *, query="", behind=b""):
        """The socket of a poll that has been sent, with the bytes *behind* it."""
        connection = socket.create_connection(("127.0.0.1", self.gunicorn.port), SECONDS)
        target = "/stream?channel=orders&cursor={}{}".format(cursor, query)
        connection.sendall("GET {} HTTP/1.1\r\nHost: here\r\n\r\n".format(target).encode("ascii") + behind)
        return connection

    def until_held(self, count):
        until(lambda: self.worker()["held"] == count, SECONDS, "{} polls are held".format(count))


def read(connection):
    """Status, headers and body of the answer on *connection*."""
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return answer.status, answer.headers, answer.read()


@pytest.fixture(params=["standard", "parked"])
def lane(request):
    return LANES[request.param]


@pytest.fixture
def house(tmp_path, lane):
    made = []

    def make(**settings):
        url = "sqlite:///{}".format(tmp_path / "log.db")
        options = ["--access-logfile", "-"]
        made.append(
            Gunicorn(dict(SETTINGS, DATABASE_URL=url, **lane, **settings), workers=1, options=options)
        )
        return House(made[-1].start())

    yield make
    try:
        for gunicorn in made:
            assert "Traceback" not in gunicorn.log, gunicorn.log
    finally:
        for gunicorn in made:
            gunicorn.destroy()


def close(connection):
    connection.close()


def half_close(connection):
    connection.shutdown(socket.SHUT_WR)


def reset(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_a_client_that_hangs_up_frees_its_place_at_once(house, lane):
    house = house()
    cursor = house.cursor()
    stays = house.poll(cursor)
    for hang_up in (close, half_close, reset):
        goes = house.poll(cursor)
        house.until_held(2)
        hang_up(goes)
        house.until_held(1)
    # Behind bytes that nobody has read: the end of such a connection does not show by itself.
    # What comes with the request is in gunicorn's own buffer; what comes later is in the socket.
    next_request = b"GET /health/live HTTP/1.1\r\nHost: here\r\n\r\n"
    goes = house.poll(cursor, behind=next_request)
    house.until_held(2)
    goes.close()
    house.until_held(1)
    for hang_up in (close, half_close, reset):
        goes = house.poll(cursor)
        house.until_held(2)
        goes.sendall(next_request)
        house.worker()  # by now the worker has met the bytes, most likely; if not, they come with the end
        hang_up(goes)
        house.until_held(1)
    assert json.loads(house.ask("GET", "/status")[2])["answers"] == {"hangup": 7}
    # gunicorn 20 does not log whose connection broke; the parked lane does, and one of these was not parked.
    logged = 7 if gunicorn.version_info >= (21,) else 6 * len(lane)
    assert house.gunicorn.log.count('" 499 ') == logged
    house.publish("for who stayed")
    assert json.loads(read(stays)[2])["events"][0]["data"] == "for who stayed"


def test_a_held_connection_is_probed_so_that_a_phone_that_vanished_is_found(house):
    house = house()
    poll, idle = house.poll(house.cursor()), socket.create_connection(("127.0.0.1", house.gunicorn.port))
    house.until_held(1)
    # Their ends, as the kernel shows them: 02 is a timer for keepalive, with the time until it goes off.
    timers = [_timer(house.gunicorn.port, each.getsockname()[1]) for each in (poll, idle)]
    assert timers[0].startswith("02:") and 0 < int(timers[0][3:], 16) <= 3000, timers
    assert timers[1].startswith("00:"), timers


def _timer(local, remote):
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    ends = [":{:04X}".format(port) for port in (local, remote)]
    return next(row[5] for row in rows if [row[1][-5:], row[2][-5:]] == ends)


def test_a_client_that_sends_while_it_is_held_is_answered_in_order(house):
    house = house()
    both = house.poll(house.cursor(), behind=b"GET /health/live HTTP/1.1\r\nHost: here\r\n\r\n")
    house.until_held(1)
    house.publish(1)
    said = b""
    while b'"live"' not in said:
        more = both.recv(65536)
        assert more, said
        said += more
    assert said.index(b'"data":1') < said.index(b'{"status": "live"}')
    assert said.count(b"HTTP/1.1 200 OK") == 2


def test_a_client_that_sends_bit_by_bit_while_it_is_held_stays_held(house):
    house = house()
    poll = house.poll(house.cursor())
    house.until_held(1)
    for byte in b"GET /health/live HTTP/1.1\r\nHost: here\r\n\r\n":
        poll.sendall(bytes([byte]))
        assert house.worker()["held"] == 1
    house.publish(1)
    assert read(poll)[2].count(b'"data":1') == 1


def test_a_heartbeat_is_white_space_before_the_body(house):
    house = house()
    poll = house.poll(house.cursor(), query="&heartbeat=1000")
    answer = http.client.HTTPResponse(poll)
    answer.begin()
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.read(1) == b" "
    house.publish("behind it")
    assert json.loads(answer.read())["events"][0]["data"] == "behind it"


def test_behind_a_heartbeat_an_empty_answer_has_a_body(house):
    house = house()
    cursor = house.cursor()
    status, headers, body = read(house.poll(cursor, query="&heartbeat=1000&timeout=1500"))
    assert status == 200
    assert body.startswith(b" ")
    assert json.loads(body) == {"events": [], "cursor": cursor}


@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP"])
def test_a_worker_that_stops_answers_its_held_polls_at_once(house, number):
    house = house()
    cursor = house.cursor()
    polls = [house.poll(cursor) for _ in range(MANY)]
    house.until_held(MANY)
    (old,) = house.gunicorn.workers
    house.gunicorn.signal(getattr(signal, number))
    for poll in polls:
        status, headers, body = read(poll)
        assert (status, headers["Legacy-Poll-Cursor"], body) == (204, cursor, b"")
        assert headers["Connection"] == "close"
    until(lambda: old not in house.gunicorn.workers, SECONDS, "the old worker is gone")


def test_a_worker_that_stops_is_not_ready_any_more(house):
    house = house()
    cursor = house.cursor()
    poll = house.poll(cursor)
    house.until_held(1)
    # Two that are connected already, as a balancer's probe and a client behind it are.
    probe = http.client.HTTPConnection("127.0.0.1", house.gunicorn.port, timeout=SECONDS)
    client = http.client.HTTPConnection("127.0.0.1", house.gunicorn.port, timeout=SECONDS)
    for each in (probe, client):
        each.request("GET", "/health/ready")
        assert each.getresponse().read()
    house.gunicorn.signal(signal.SIGTERM)
    assert read(poll)[0] == 204
    probe.request("GET", "/health/ready")
    client.request("GET", "/stream?channel=orders&cursor=" + cursor)
    for each in (probe, client):
        answer = each.getresponse()
        assert answer.status == 503
        assert json.loads(answer.read())["error"]["code"] == "draining"
        assert answer.headers["Connection"] == "close"
        assert 1 <= int(answer.headers["Retry-After"]) <= 60


def test_a_new_gunicorn_on_the_same_port_takes_over_by_sigusr2(house):
    house = house()
    cursor = house.cursor()
    polls = [house.poll(cursor) for _ in range(MANY)]
    house.until_held(MANY)
    arbiter, (old,) = house.gunicorn.pid, house.gunicorn.workers
    house.gunicorn.signal(signal.SIGUSR2)
    until(lambda: house.gunicorn.logged("Booting worker") == 2, SECONDS, "the new gunicorn has a worker")
    # Both serve now; the old one goes when it is told to.
    assert _alive(old)
    house.gunicorn.signal(signal.SIGTERM)
    for poll in polls:
        status, headers, _ = read(poll)
        assert (status, headers["Legacy-Poll-Cursor"]) == (204, cursor)
        assert headers["Connection"] == "close"
    until(lambda: not house.gunicorn.running, SECONDS, "the old gunicorn is gone")
    house.publish("to the new one")
    assert json.loads(read(house.poll(cursor))[2])["events"][0]["data"] == "to the new one"
    new = _master_of(house.worker()["pid"])
    assert new != arbiter
    house.gunicorn.signal(signal.SIGTERM, new)
    until(lambda: not _alive(new), SECONDS, "the new gunicorn is gone")


def _master_of(worker):
    with open("/proc/{}/stat".format(worker)) as stat:
        return int(stat.read().rpartition(")")[2].split()[1])


def test_a_reload_loses_nothing(house):
    house = house()
    cursor, seen = house.cursor(), []
    for number in range(3):
        poll = house.poll(cursor)
        house.until_held(1)
        (old,) = house.gunicorn.workers
        house.gunicorn.signal(signal.SIGHUP)
        cursor = read(poll)[1]["Legacy-Poll-Cursor"]
        until(lambda gone=old: gone not in house.gunicorn.workers, SECONDS, "the old worker is gone")
        house.gunicorn.wait_until_ready()
        house.publish(number)
        status, headers, body = read(house.poll(cursor))
        seen += [event["data"] for event in json.loads(body)["events"]]
        cursor = headers["Legacy-Poll-Cursor"]
    assert seen == list(range(3))


@pytest.fixture
def lone(tmp_path, lane):
    """Starts one worker with options of gunicorn's."""
    made = []

    def start(*options):
        settings = dict(SETTINGS, DATABASE_URL="sqlite:///{}".format(tmp_path / "log.db"), **lane)
        made.append(Gunicorn(settings, workers=1, options=options))
        return House(made[-1].start())

    yield start
    for each in made:
        print(each.log)  # pytest shows it when the test failed
        each.destroy()


def test_a_request_on_a_kept_connection_is_answered_by_a_worker_that_no_longer_listens(lone):
    # So that the connections, which idle, are still there when the test comes to them.
    house = lone("--keep-alive", str(SECONDS))
    gunicorn, cursor = house.gunicorn, house.cursor()
    (old,) = gunicorn.workers
    expected = {"/stream?channel=orders&cursor={}".format(cursor): 503, "/cursor": 200, "/not-here": 404}
    polled = [house.poll(cursor, query="&timeout=1") for _ in expected]
    assert [read(each)[0] for each in polled] == [204] * len(expected)
    fresh = [socket.create_connection(("127.0.0.1", gunicorn.port), SECONDS) for _ in expected]
    house.cursor()  # connections are accepted in their order
    listener = _listeners(gunicorn.port)
    assert listener & _sockets(old)
    gunicorn.signal(signal.SIGHUP)
    until(lambda: not listener & _sockets(old), SECONDS, "the old worker listens no more")
    for connections in (polled, fresh):
        for connection, (target, status) in zip(connections, expected.items()):
            connection.sendall("GET {} HTTP/1.1\r\nHost: here\r\n\r\n".format(target).encode("ascii"))
            answer = read(connection)
            assert (answer[0], answer[1]["Connection"]) == (status, "close")
    until(lambda: old not in gunicorn.workers, SECONDS, "the old worker is gone")
    assert "Socket error" not in gunicorn.log


def _sockets(pid):
    """The inodes of the sockets that the process *pid* has open."""
    found = set()
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc/{}/fd".format(pid)):
            with contextlib.suppress(OSError):
                found.add(os.readlink("/proc/{}/fd/{}".format(pid, name)))
    return {each[len("socket:[") : -1] for each in found if each.startswith("socket:[")}


def _listeners(port):
    """The inodes of the sockets that listen on *port*."""
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table][1:]
    return {row[9] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port}


def test_max_requests_ends_a_worker_without_holding_anybody_up(lone):
    house = lone("--max-requests", str(MANY))
    gunicorn, cursor = house.gunicorn, house.cursor()
    (old,) = gunicorn.workers
    polls = [house.poll(cursor) for _ in range(MANY)]
    for poll in polls:
        status, headers, _ = read(poll)
        assert status in (204, 503)
        assert status == 503 or headers["Legacy-Poll-Cursor"] == cursor
    until(lambda: old not in gunicorn.workers, SECONDS, "the old worker is gone")
    gunicorn.wait_until_ready()
    house.publish("to the next worker")
    assert json.loads(read(house.poll(cursor))[2])["events"][0]["data"] == "to the next worker"
