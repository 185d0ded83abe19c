"""The load: N polls held at once over keep-alive connections, in one process of its own.

Plain sockets, so that 1,000 answers are read in a few milliseconds on a busy core, and what is measured is the server.
Commands, one JSON value a line: a number n is answered once every connection is past the log's present end and has
seen n events since; null is answered with what was seen: for each connection a list of [number of the event, when its
answer was here]. false: from now on no connection polls again behind its answer; true: all that did not do so now, and
from now on all do. Both are answered when that is done.
"""

from __future__ import annotations

import json
import re
import select
import socket
import sys
import time
from functools import lru_cache

CHANNEL = "bench"
_LENGTH = re.compile(rb"content-length: *(\d+)", re.I)


class Poll:
    """One connection that always has a poll under way."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.seen = []
        self.begun = False
        self.cursor = None
        self._buffer = b""

    def ask_again(self):
        if self.cursor is not None:
            cursor, self.cursor = self.cursor, None
            self.ask(cursor)

    def ask(self, cursor):
        # empty=200: an empty answer has its cursor in the body too.
        request = "GET /stream?channel=%s&cursor=%s&empty=200 HTTP/1.1\r\nHost: bench\r\n\r\n"
        self.socket.sendall((request % (CHANNEL, cursor)).encode("ascii"))

    def read(self):
        """Reads what is there; once an answer is whole, notes it and polls again."""
        received = self.socket.recv(1 << 20)
        if not received:
            raise SystemExit("the server closed a connection")
        self._buffer += received
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found or len(body) < int(_LENGTH.search(head).group(1)):
            return
        now = time.monotonic()
        self._buffer = b""
        if not head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 206")):
            raise SystemExit("the server answered %r" % (head + body[:500]))
        numbers, cursor = understood(body)
        self.begun = True
        self.seen.extend((number, now) for number in numbers)
        self.cursor = cursor


@lru_cache(maxsize=64)
def understood(body):
    """The events' numbers and the cursor; the same answer comes N times."""
    answer = json.loads(body)
    return [event["data"]["n"] for event in answer["events"]], answer["cursor"]


def main(port, count):
    polls = {}
    for _ in range(count):
        poll = Poll(port)
        polls[poll.socket.fileno()] = poll
        poll.ask("now")
    poller = select.epoll()
    for descriptor in list(polls) + [sys.stdin.fileno()]:
        poller.register(descriptor, select.EPOLLIN)
    wanted, asks = None, True
    while True:
        for descriptor, _ in poller.poll():
            if descriptor in polls:
                polls[descriptor].read()
                if asks:
                    polls[descriptor].ask_again()
                continue
            line = sys.stdin.readline()
            if not line:
                return
            wanted = json.loads(line)
            if isinstance(wanted, bool):
                asks, wanted = wanted, None
                for poll in polls.values() if asks else ():
                    poll.ask_again()
                print("true", flush=True)
            elif wanted is None:
                print(json.dumps([poll.seen for poll in polls.values()]), flush=True)
        if wanted is not None and all(poll.begun and len(poll.seen) >= wanted for poll in polls.values()):
            print(json.dumps(wanted), flush=True)
            wanted = None


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
