"""What a client may get wrong below HTTP's surface: lengths that lie, bodies in chunks, answers that nobody read."""

from __future__ import annotations

import http.client
import json
import socket
import struct

import pytest

from tests.process.conftest import DEFAULTS
from tests.process.polls import Client, connect, get, head, stream
from tests.waiting import until

MOST = 8 << 20
SECONDS = 60
HEAD = (
    "POST /publish HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer publish-token\r\n"
    "Content-Type: application/json\r\n"
)
GOOD = b'{"channel": "orders", "data": 1}'

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
each_database = pytest.mark.parametrize("database_url", DEFAULTS, indirect=True)


class Raw:
    """A connection on which anything may be sent."""

    def __init__(self, gunicorn):
        self.socket = socket.create_connection(("127.0.0.1", gunicorn.port), SECONDS)

    def send(self, headers, body=b"", *, end=False):
        self.socket.sendall((HEAD + headers + "\r\n").encode("ascii") + body)
        if end:
            self.socket.shutdown(socket.SHUT_WR)
        return self

    def status(self):
        """Of the answer; None when the connection ended without one."""
        try:
            answer = http.client.HTTPResponse(self.socket)
            answer.begin()
            answer.read()
            return answer.status
        except (http.client.HTTPException, OSError):
            return None

    def close(self):
        self.socket.close()


@pytest.fixture
def gunicorn(serve):
    return serve(workers=1)


@pytest.fixture
def raw(gunicorn):
    made = []

    def make():
        made.append(Raw(gunicorn))
        return made[-1]

    yield make
    for each in made:
        each.close()


def chunks(*parts):
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)


def published(gunicorn):
    """What is in the log, after a worker has said that it is well."""
    assert get(gunicorn, "/health/ready").status == 200
    return get(gunicorn, stream("orders", timeout=0)).data


@on_sqlite
def test_a_body_may_come_in_chunks(gunicorn, raw):
    body = chunks(GOOD[:5], GOOD[5:]) + b"0\r\n\r\n"
    assert raw().send("Transfer-Encoding: chunked\r\n", body).status() == 201
    assert published(gunicorn) == [1]


# The headers, the body behind them, and what may be said; None is the end of the connection.
LIES = {
    "more was promised": ("Content-Length: 1000\r\n", GOOD, (400, None)),
    "less was promised": ("Content-Length: 5\r\n", GOOD, (400,)),
    "nothing was promised": ("", GOOD, (400,)),
    "no number": ("Content-Length: many\r\n", GOOD, (400, None)),
    "a negative number": ("Content-Length: -5\r\n", GOOD, (400, None)),
    "two numbers": ("Content-Length: 5\r\nContent-Length: 32\r\n", GOOD, (400, None)),
    "half of the chunks": ("Transfer-Encoding: chunked\r\n", chunks(GOOD[:5]), (400, None)),
    "no chunks": ("Transfer-Encoding: chunked\r\n", GOOD, (400, None)),
    "a chunk of no size": ("Transfer-Encoding: chunked\r\n", b"x\r\n" + GOOD, (400, None)),
    "not UTF-8": ("Content-Length: 13\r\n", b'{"data": "\xff"}', (400,)),
    "not JSON": ("Content-Length: 6\r\n", b"orders", (400,)),
}


@on_sqlite
def test_a_body_that_is_not_what_its_headers_say_is_refused_and_publishes_nothing(gunicorn, raw):
    for name, (headers, body, expected) in LIES.items():
        assert raw().send(headers, body, end=True).status() in expected, name
        assert published(gunicorn) == [], name


@on_sqlite
def test_a_body_that_is_too_large_is_refused_whether_it_says_so_or_not(gunicorn, raw):
    # Before it has come: nobody waits for the rest.
    assert raw().send("Content-Length: {}\r\n".format(MOST + 1)).status() == 413
    # In chunks it does not say.
    body = chunks(*[b" " * (1 << 20)] * 8, GOOD) + b"0\r\n\r\n"
    assert raw().send("Transfer-Encoding: chunked\r\n", body).status() == 413
    large = b'{"channel": "orders", "data": "%s"}' % (b"x" * 300_000)
    assert raw().send("Content-Length: {}\r\n".format(len(large)), large).status() == 413
    assert published(gunicorn) == []


@on_sqlite
def test_a_request_line_above_gunicorns_limit_never_reaches_us(gunicorn):
    """A name 10,000 times is one name, but the server reads 8,190 bytes of a request line."""
    path = stream(["orders"] * 10_000, timeout=0)
    connection = connect(gunicorn)
    connection.request("GET", path)
    answer = connection.getresponse()
    assert answer.status in (400, 414)  # by the version
    assert answer.getheader("Content-Type").startswith("text/html")
    connection.close()
    path = stream(["orders"] * 500, timeout=0)
    assert len(path) < 8190
    assert get(gunicorn, path).status == 204
    assert get(gunicorn, "/status").json["worker"]["held"] == 0


@on_sqlite
def test_what_a_held_client_sends_is_answered_behind_its_poll_whatever_it_is(gunicorn):
    """Bytes that are no request end the connection, but not before the poll has its answer."""
    client = socket.create_connection(("127.0.0.1", gunicorn.port), SECONDS)
    poll = "GET {} HTTP/1.1\r\nHost: here\r\n\r\n".format(stream(cursor=head(gunicorn)))
    client.sendall(poll.encode("ascii") + b"\x00\xff no request at all\r\n\r\n" + b"x" * 100_000)
    until(lambda: get(gunicorn, "/status").json["worker"]["held"] == 1, what="it is held")
    raw = Raw(gunicorn).send("Content-Length: {}\r\n".format(len(GOOD)), GOOD)
    assert raw.status() == 201
    raw.close()
    said = b""
    try:
        while True:
            more = client.recv(65536)
            said += more
            if not more:
                break
    except ConnectionResetError:
        pass  # the end of a connection on which bytes were left unread
    client.close()
    assert said.startswith(b"HTTP/1.1 200 OK") and b'"data":1' in said
    assert said.count(b"HTTP/1.1 200") == 1
    until(lambda: get(gunicorn, "/status").json["worker"]["held"] == 0, what="its place is free")


@each_database
def test_a_post_whose_answer_was_lost_is_sent_again_and_delivered_once(serve):
    """Cut after the request was written and before its answer was read, by either kind of end."""
    gunicorn = serve()
    client = Client(gunicorn, cursor=head(gunicorn))
    ids = ["order-{}".format(number) for number in range(12)]
    for number, event_id in enumerate(ids):
        body = json.dumps({"id": event_id, "channel": "orders", "data": number}).encode("ascii")
        lost = Raw(gunicorn).send("Content-Length: {}\r\n".format(len(body)), body)
        if number % 2:
            lost.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        lost.close()
        again = Raw(gunicorn).send("Content-Length: {}\r\n".format(len(body)), body)
        assert again.status() in (200, 201)
        again.close()
    assert client.hear_until(len(ids)) == list(range(len(ids)))
    assert client.ids == ids
    # Nothing comes behind them: each was delivered once, and the client would say if not.
    for each in gunicorn.workers:
        with gunicorn.only(each):
            assert get(gunicorn, stream(cursor=client.cursor, timeout=0)).status == 204
