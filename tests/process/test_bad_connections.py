"""Connections that are slow, too much, or junk, before a poll, between two, and while one is held; in both lanes.

Nothing hangs, no descriptor and no place is left, and those who behave get their events all the while.
"""

from __future__ import annotations

import contextlib
import random
import re
import socket

import pytest

from tests.process.conftest import each_lane
from tests.process.kept import GONE, PATH, SECONDS, Client, metrics, say, sockets_of, understood, until_held
from tests.process.polls import head
from tests.waiting import until

MANY = 1000
MEBIBYTE = 1 << 20
KEEP = ["--keep-alive", "600"]

pytestmark = [pytest.mark.parametrize("database_url", ["sqlite"], indirect=True), each_lane]


class Crowd:
    """Clients that follow a channel over kept connections, and are asked for the same again and again."""

    def __init__(self, gunicorn, count):
        self.gunicorn = gunicorn
        self.cursor = head(gunicorn)
        self.clients = [Client(gunicorn) for _ in range(count)]

    def ask(self):
        for client in self.clients:
            client.ask(self.cursor)
        return self

    def hear(self, data):
        """All get this event, and no other."""
        answers = {client.hear() for client in self.clients}
        [(status, cursor, body)] = answers
        assert status == 200 and body.count(b'"id"') == 1 and b'"data":"%s"' % data.encode("ascii") in body
        self.cursor = cursor
        return self

    def close(self):
        for client in self.clients:
            client.close()


def until_left(gunicorn, worker, sockets):
    """Nothing is left of those who hung up."""
    until_held(gunicorn, 0)
    until(lambda: metrics(gunicorn)["parked"] == "0", SECONDS, "no connection is parked")
    until(lambda: gunicorn.sockets(worker) <= sockets, SECONDS, "all their sockets are closed")
    assert "a parked poll failed" not in gunicorn.log and "Traceback" not in gunicorn.log


def test_a_thousand_that_send_a_byte_now_and_then_delay_nobody(shop, lane):
    gunicorn = shop(lane, MAX_HELD=2 * MANY, options=KEEP)
    [worker] = gunicorn.workers
    say(gunicorn, "what publishing opens is there")
    sockets = sockets_of(gunicorn, worker)
    quick = Crowd(gunicorn, 20).ask()
    slow = Crowd(gunicorn, MANY)
    # Half of them have been held before.
    half = slow.clients[: MANY // 2]
    for client in half:
        client.ask(slow.cursor)
    until_held(gunicorn, len(half) + len(quick.clients))
    say(gunicorn, "before")
    for client in half:
        assert client.hear()[0] == 200
    quick.hear("before").ask()
    requests = [client.request(quick.cursor) for client in slow.clients]
    sent = 0
    for turn, size in enumerate([1, 3, 1, 40, 1, 1, 60, 1]):
        for client, request in zip(slow.clients, requests):
            client.send(request[sent : sent + size])
        sent += size
        say(gunicorn, "turn {}".format(turn))
        quick.hear("turn {}".format(turn)).ask()
        until_held(gunicorn, len(quick.clients))
    assert sent < min(map(len, requests))
    assert gunicorn.sockets(worker) >= sockets + MANY
    # Some of each kind come to an end of their request, and it is what they asked; the others give up.
    for client, request in list(zip(slow.clients, requests))[:: MANY // 10]:
        client.send(request[sent:])
        status, _, body = client.hear()
        assert status == 200 and b'"data":"turn 0"' in body and b'"data":"turn 7"' in body
    slow.close()
    until(
        lambda: gunicorn.sockets(worker) <= sockets + len(quick.clients), SECONDS, "their sockets are closed"
    )
    say(gunicorn, "after")
    quick.hear("after").close()
    until_left(gunicorn, worker, sockets)


def get_with(*lines, path=PATH):
    return "\r\n".join(["GET {} HTTP/1.1".format(path), "Host: here", *lines, "", ""]).encode("latin-1")


def noise(size):
    return random.Random(6).getrandbits(8 * size).to_bytes(size, "big").replace(b"\n", b"\r\n\r\n")


# What is sent, and whether the server must refuse it; else it may wait for more.
BAD = {
    "a line of a mebibyte": (get_with(path=PATH + "&x=" + "y" * MEBIBYTE), True),
    "ten thousand headers": (get_with(*["X-%d: y" % number for number in range(10_000)]), True),
    "a header of a mebibyte": (get_with("X-Large: " + "y" * MEBIBYTE), True),
    "headers without an end": (get_with(*["X-%d: y" % number for number in range(50)])[:-2], False),
    "a cursor of 5,000 digits": (
        get_with(path=PATH + "&cursor=1-00000000-{}-00000000".format("7" * 5000)),
        True,
    ),
    "noise": (noise(5000), True),
    "noise without a line": (noise(200).replace(b"\n", b"").replace(b"\r", b""), False),
    "two lengths": (get_with("Content-Length: 5", "Content-Length: 6") + b"abcdef", True),
    "another server's word": (b"\x00" * 100 + b"\r\n\r\n", True),
}
STATES = ("new", "between two polls", "held")


@pytest.mark.parametrize("name", list(BAD))
def test_what_is_bad_is_refused_and_costs_nobody_else_anything(shop, lane, name):
    gunicorn = shop(lane, options=KEEP)
    [worker] = gunicorn.workers
    data, refused = BAD[name]
    say(gunicorn, "what publishing opens is there")
    sockets = sockets_of(gunicorn, worker)
    quick = Crowd(gunicorn, 5).ask()
    bad = {state: Crowd(gunicorn, 3) for state in STATES}
    for state in STATES[1:]:
        bad[state].ask()
    until_held(gunicorn, 11)
    say(gunicorn, "first")
    quick.hear("first").ask()
    for state in STATES[1:]:
        bad[state].hear("first")
    bad["held"].ask()
    until_held(gunicorn, 8)
    rest = {client: send_some(client, data) for crowd in bad.values() for client in crowd.clients}
    say(gunicorn, "second")
    quick.hear("second").ask()
    # Whoever is held gets its answer first, whatever it has sent.
    bad["held"].hear("second")
    for state in STATES:
        for client in bad[state].clients:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                client.socket.sendall(rest[client])
            if refused:
                answer = client.raw()
                assert answer == GONE or re.match(rb"HTTP/1\.[01] 4\d\d ", answer), (state, answer)
                if b"\nConnection: close" in answer:
                    assert client.raw() == GONE
    for crowd in bad.values():
        crowd.close()
    say(gunicorn, "third")
    quick.hear("third").close()
    until_left(gunicorn, worker, sockets)


def send_some(client, data):
    """Sends as much as fits into the buffers; returns the rest."""
    client.socket.setblocking(False)
    try:
        while data:
            data = data[client.socket.send(data) :]
    except BlockingIOError:
        pass
    except (BrokenPipeError, ConnectionResetError):
        data = b""  # it was refused before it had all come
    client.socket.settimeout(SECONDS)
    return data


def test_bytes_behind_a_head_are_the_next_request(shop, lane):
    gunicorn = shop(lane, options=KEEP)
    cursor = head(gunicorn)
    for state in STATES[:2]:
        client = Client(gunicorn)
        if state != "new":
            cursor = one_event(client, cursor)
        poll = client.request(cursor)
        # The answer to a HEAD has a length and no body: what follows must not be taken for one.
        client.send(poll.replace(b"GET", b"HEAD", 1) + poll)
        assert understood(client.raw(bodiless=True))[0] == 405
        cursor = one_event(client, None)
        cursor = one_event(client, cursor)
        client.close()


def one_event(client, cursor):
    if cursor is not None:
        client.ask(cursor)
    until_held(client.gunicorn, 1)
    say(client.gunicorn, "one")
    status, cursor, body = client.hear()
    assert status == 200 and b'"data":"one"' in body
    return cursor


def test_who_sends_while_held_and_hangs_up_leaves_nothing(shop, lane):
    gunicorn = shop(lane, options=KEEP)
    [worker] = gunicorn.workers
    say(gunicorn, "what publishing opens is there")
    sockets = sockets_of(gunicorn, worker)
    stays = Crowd(gunicorn, 2).ask()
    goes = Crowd(gunicorn, 30)
    for turn in range(2):
        goes.ask()
        until_held(gunicorn, 32)
        if not turn:
            say(gunicorn, "all")
            stays.hear("all").ask()
            goes.hear("all")
    for number, client in enumerate(goes.clients):
        client.send([client.request(goes.cursor), noise(1000), b"G"][number % 3])
        if number % 2:
            client.socket.shutdown(socket.SHUT_WR)
            assert client.over
        client.close()
    until_held(gunicorn, 2)
    say(gunicorn, "two")
    stays.hear("two").close()
    until_left(gunicorn, worker, sockets)
