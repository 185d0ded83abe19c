"""Clients that ask and do not read: real sockets with small buffers, and an answer larger than all of them."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import threading
import time

import pytest

from tests.process import kept
from tests.process.conftest import each_lane
from tests.process.polls import Client, get, head, publish
from tests.waiting import until

# Linux lets a send buffer grow to 4 MiB, and more where somebody said so.
MEGABYTE = 1 << 20
EVENTS = 100
EVENT_BYTES = 250_000
ANSWER = EVENTS * EVENT_BYTES
MANY = 12

pytestmark = [pytest.mark.parametrize("database_url", ["sqlite"], indirect=True), each_lane]


@pytest.fixture
def fill(serve):
    """One worker whose log is one large answer."""

    def start(**settings):
        gunicorn = serve(dict(settings, MAX_RESPONSE_BYTES=4 * ANSWER, TAIL_BYTES=4 * ANSWER), workers=1)
        for start in range(0, EVENTS, 20):
            rows = [{"channel": "large", "data": "x" * EVENT_BYTES} for _ in range(start, start + 20)]
            assert publish(gunicorn, rows).status == 201
        # A worker hears of what was committed through it a moment later than the one who published.
        until(lambda: metric(gunicorn, "position") == EVENTS, 30, "the worker has them all")
        return gunicorn

    return start


@contextlib.contextmanager
def slow_readers(gunicorn, count, query=""):
    """Sockets of *count* clients that have asked, and read nothing."""
    with contextlib.ExitStack() as opened:
        made = []
        for _ in range(count):
            client = opened.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", gunicorn.port))
            target = "/stream?channel=large&cursor={}{}".format(gunicorn.start_cursor, query)
            client.sendall("GET {} HTTP/1.1\r\nHost: here\r\n\r\n".format(target).encode("ascii"))
            made.append(client)
        yield made


def metric(gunicorn, name):
    [value] = re.findall(r"^legacy_poll_%s{[^}]*} (\S+)$" % name, metrics(gunicorn), re.M)
    return float(value)


def metrics(gunicorn):
    connection = http.client.HTTPConnection("127.0.0.1", gunicorn.port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode("utf-8")


def answered(gunicorn, outcome):
    found = re.findall(
        r'^legacy_poll_answers_total{[^}]*outcome="%s"} (\d+)$' % outcome, metrics(gunicorn), re.M
    )
    return sum(map(int, found))


def first_cursor(gunicorn):
    """Before all events, of the log that is there."""
    text = head(gunicorn)
    return "-".join(["1", text.split("-")[1], "0", "e3b0c442"])


def test_clients_that_do_not_read_delay_nobody_and_share_one_answer(fill):
    gunicorn = fill(SEND_SECONDS=600)
    gunicorn.start_cursor = first_cursor(gunicorn)
    [worker] = gunicorn.workers
    with slow_readers(gunicorn, 1):
        # The first of them made the answer.
        until(lambda: answered(gunicorn, "events") == 1, 30, "it is being sent")
        before = gunicorn.resident_bytes(worker)
        with slow_readers(gunicorn, MANY):
            until(lambda: answered(gunicorn, "events") == MANY + 1, 30, "all are being sent")
            # They have their places still, so none of the answers is out.
            assert metric(gunicorn, "held") == MANY + 1
            client = Client(gunicorn, cursor=head(gunicorn)).ask()
            until(lambda: metric(gunicorn, "held") == MANY + 2, 30, "another is held")
            assert publish(gunicorn, [{"channel": "orders", "data": 1}]).status == 201
            assert client.hear().data == [1]
            assert get(gunicorn, "/health/ready").status == 200
            grown = gunicorn.resident_bytes(worker) - before
            assert grown < ANSWER * MANY / 4, "{} MiB more for {} clients".format(grown // MEGABYTE, MANY)
            assert metric(gunicorn, "cut_total") == 0
    until(lambda: metric(gunicorn, "held") == 0, 30, "they have hung up")
    assert metric(gunicorn, "cut_total") == 0


def test_a_client_that_does_not_read_is_cut_off_and_counted_apart(fill):
    gunicorn = fill(SEND_SECONDS=2)
    gunicorn.start_cursor = first_cursor(gunicorn)
    with slow_readers(gunicorn, 2) as clients:
        until(lambda: metric(gunicorn, "cut_total") == 2, 30, "they are cut off")
        until(lambda: metric(gunicorn, "held") == 0, 30, "their places are free")
        for client in clients:
            client.settimeout(30)
            got = 0
            with contextlib.suppress(ConnectionResetError):
                while True:
                    more = len(client.recv(MEGABYTE))
                    got += more
                    if not more:
                        break
            assert got < ANSWER
    assert answered(gunicorn, "hangup") == 0
    # Who reads gets all of it, however long that takes: the bound is for a piece.
    assert len(Client(gunicorn, channel="large", cursor=gunicorn.start_cursor).hear_until(EVENTS)) == EVENTS
    assert metric(gunicorn, "cut_total") == 2


def test_a_slow_network_has_as_much_time_as_a_large_answer_needs(fill):
    gunicorn = fill(SEND_SECONDS=2)
    target = "/stream?channel=large&cursor=" + first_cursor(gunicorn)
    network, pieces = threading.Event(), 100
    with contextlib.closing(socket.create_connection(("127.0.0.1", gunicorn.port), 30)) as client:
        client.sendall("GET {} HTTP/1.1\r\nHost: here\r\n\r\n".format(target).encode("ascii"))
        got, began = 0, time.monotonic()
        while got < ANSWER:
            network.wait(0.04)
            for _ in range(4):
                more = len(client.recv(ANSWER // pieces // 4)) if got < ANSWER else 1
                assert more, "cut off after {} bytes".format(got)
                got += more
        assert time.monotonic() - began > 3, "read so fast that this shows nothing"
    assert metric(gunicorn, "cut_total") == 0


def test_a_slow_reader_delays_none_of_two_hundred_and_gets_all_of_its_answer(serve):
    # One event that no socket's buffers take: its answer is sent for as long as its client likes.
    settings = {"SEND_SECONDS": 600, "MAX_EVENT_BYTES": 8 * MEGABYTE}
    gunicorn = serve(settings, workers=1, options=["--keep-alive", "600"])
    large = "/stream?channel=large"
    slow, fast = [kept.Client(gunicorn, path=large) for _ in range(4)], None
    quick = [kept.Client(gunicorn) for _ in range(200)]
    cursor = head(gunicorn)
    # Twice, so that in the parked lane the second is held as a request that was approved, and answered from there.
    for size in (10, MEGABYTE):
        text = " ".join("%06d" % number for number in range(size))
        for client in slow + quick:
            client.ask(cursor)
        kept.until_held(gunicorn, len(slow + quick))
        kept.say(gunicorn, text, "large")
        fast = slow[3].raw()
        if size == 10:
            assert {kept.undated(client.raw()) for client in slow[:3]} == {kept.undated(fast)}
        for turn in range(3):
            kept.say(gunicorn, turn)
            answers = {kept.undated(client.raw()) for client in quick}
            [(status, cursor, body)] = map(kept.understood, answers)
            assert status == 200 and b'"data":%d,' % turn in body
            if turn < 2:
                for client in quick:
                    client.ask(cursor)
                kept.until_held(gunicorn, len(quick) + (3 if size > 10 else 0))
    assert metric(gunicorn, "held") == 3
    # Whole, and the same, however late; and their connections go on.
    _, cursor, body = kept.understood(fast)
    assert json.loads(body)["events"][0]["data"] == text and len(text) > 7_000_000
    for client in slow[:3]:
        assert kept.undated(client.raw()) == kept.undated(fast)
    for client in slow:
        client.ask(cursor)
    kept.until_held(gunicorn, len(slow))
    kept.say(gunicorn, "after", "large")
    for status, _, body in [kept.understood(client.raw()) for client in slow]:
        assert status == 200 and b'"data":"after"' in body
    assert metric(gunicorn, "cut_total") == 0
