"""Connections that are kept: raw requests on them, byte by byte, and what one worker of parking.py says of its polls.

A browser's next poll comes on the connection of its last. Here is what sends exactly the bytes that a test says, and
reads exactly one answer.
"""

from __future__ import annotations

import re
import socket

from tests.process.polls import get, head, publish
from tests.waiting import until

SECONDS = 20
PATH = "/stream?channel=orders"
GONE = b""


class Client:
    """One kept connection, and what a browser sends on it; *opened* is one that is open already."""

    def __init__(
        self, gunicorn, *, who="anne", path=PATH, headers=(), source="127.0.0.1", port=None, opened=None
    ):
        self.gunicorn = gunicorn
        self.path = path
        self.headers = ["Host: here", "Cookie: who=%s; theme=dark" % who, *headers]
        self.socket = opened or socket.create_connection(
            ("127.0.0.1", port or gunicorn.port), SECONDS, source_address=(source, 0)
        )
        self.buffer = b""

    def request(self, cursor, *, more=""):
        lines = ["GET %s&cursor=%s%s HTTP/1.1" % (self.path, cursor, more), *self.headers, "", ""]
        return "\r\n".join(lines).encode("ascii")

    def send(self, data):
        self.socket.sendall(data)

    def ask(self, cursor, **options):
        self.send(self.request(cursor, **options))
        return self

    def _more(self):
        try:
            data = self.socket.recv(1 << 20)
        except ConnectionResetError:
            data = b""  # the end of a connection on which bytes were left unread
        self.buffer += data
        return data

    def raw(self, *, bodiless=False):
        """The next answer, whole; what of one there was when the connection ended.

        Args:
            bodiless: It answers a HEAD: its length is that of a body which does not come.
        """
        while b"\r\n\r\n" not in self.buffer:
            if not self._more():
                return self.buffer
        start, _, _ = self.buffer.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\ncontent-length: *(\d+)", start)
        size = len(start) + 4 + (int(length.group(1)) if length and not bodiless else 0)
        while len(self.buffer) < size:
            if not self._more():
                break
        answer, self.buffer = self.buffer[:size], self.buffer[size:]
        return answer

    def hear(self):
        """Status, cursor and body of the next answer."""
        return understood(self.raw())

    @property
    def over(self):
        """Whether the server has closed it, and said nothing before."""
        return self.raw() == GONE

    def close(self):
        self.socket.close()


def understood(answer):
    start, _, body = answer.partition(b"\r\n\r\n")
    status = int(start.split(b" ", 2)[1])
    cursor = re.search(rb"Legacy-Poll-Cursor: (\S+)", start)
    return status, cursor and cursor.group(1).decode("ascii"), body


def undated(answer):
    assert answer.count(b"\r\nDate: ") == 1, answer
    return re.sub(rb"\r\nDate: [^\r]+", b"\r\nDate: then", answer)


def worker(gunicorn):
    return get(gunicorn, "/status").json["worker"]


def metrics(gunicorn):
    client = Client(gunicorn)
    client.send(b"GET /metrics HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
    text = client.raw().decode("ascii")
    client.close()
    return dict(re.findall(r"^legacy_poll_(\w+){[^}]*} (\S+)$", text, re.M))


def until_held(gunicorn, count):
    until(lambda: worker(gunicorn)["held"] == count, SECONDS, "{} polls are held".format(count))


def asked(gunicorn):
    return len(get(gunicorn, "/asked").json)


def say(gunicorn, data, channel="orders"):
    assert publish(gunicorn, {"channel": channel, "data": data}).status == 201


def cycle(client, cursor, data=0, held=1):
    """One poll that is held and gets an event; returns its raw answer and the next cursor."""
    client.ask(cursor)
    until_held(client.gunicorn, held)
    say(client.gunicorn, data)
    answer = client.raw()
    status, cursor, _ = understood(answer)
    assert status == 200, answer
    return answer, cursor


def approved(gunicorn, **options):
    """A client whose next poll the application is not asked about, and the cursor for it."""
    client, cursor = Client(gunicorn, **options), head(gunicorn)
    for _ in range(2):
        _, cursor = cycle(client, cursor)
    return client, cursor


def unread(gunicorn, client):
    """Bytes in the server's receive queue; 0 when it has closed the connection."""
    ends = [gunicorn.port, client.socket.getsockname()[1]]
    with open("/proc/net/tcp") as table:
        found = re.search(r":{:04X} \w+:{:04X} \w\w \w+:(\w+) ".format(*ends), table.read())
    return int(found.group(1), 16) if found else 0


def open_connections(gunicorn):
    """How many connections to its port the server has open: established, or closed by the client alone."""
    port = ":{:04X}".format(gunicorn.port)
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    return sum(row[1].endswith(port) and row[3] in ("01", "08") for row in rows)


def sockets_of(gunicorn, worker):
    """How many sockets *worker* has when nobody is connected."""
    until(lambda: open_connections(gunicorn) == 0, SECONDS, "nobody is connected")
    return gunicorn.sockets(worker)
