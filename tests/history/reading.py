"""Readers: a process with some of the run's clients, each a greenlet with an HTTP client that treats servers badly.

    python -m tests.history.reading WORKLOAD NUMBER...

Each number is a reader, by which its habits are drawn: its channels, whether it keeps connections open, when it comes
and from where it starts. All hop between the servers at random, ask with short and long timeouts and limits, hang up
before an answer or in the middle of one, or lose one that they got, and ask again with the same cursor.

A reader ends when everything is published and each server in turn had nothing more for it for a second.
"""

from __future__ import annotations

from gevent import monkey

if __name__ == "__main__":
    monkey.patch_all()

import contextlib
import http.client
import json
import sys
import time
import urllib.parse
from dataclasses import dataclass, replace
from typing import Any

import gevent

from tests.history import ANSWERED, NO_ANSWER, NOW, Answer, Journal, Reader, Seen
from tests.history.workload import CHANNELS, READERS, Workload

now = time.monotonic

EAGER = 2
"""The first readers read all channels and ask again at once; the others take their time, as browsers do."""

ALL = 7
"""As many read all channels."""

PAUSE_SECONDS = 0.1

# Beyond a poll's own timeout, before a reader takes a server for dead: less than the time for which one is stopped.
PATIENCE_SECONDS = 1.5
FINAL_TIMEOUT_MS = 1000
OLDEST, FROM_NOW, FROM_CURSOR = "oldest", "now", "cursor"


def name_of(number: int) -> str:
    return "reader-{:02}".format(number)


@dataclass(frozen=True)
class Habits:
    """What one reader is like.

    Attributes:
        channels: What it reads.
        start: OLDEST, FROM_NOW (`cursor=now`) or FROM_CURSOR (`/cursor`).
        late_seconds: When it comes.
        keeps: Connections stay open for the next poll.
        pause_seconds: Longest time between an answer and the next poll.
        reloads: In between it starts afresh from now, as a page does.
        leaves: It goes away in the middle of the run, without a word; or at its end, if it was slow.
        steady: Its polls differ by their cursor alone, as a page's do; others are drawn anew each time.
    """

    channels: tuple[str, ...]
    start: str = OLDEST
    late_seconds: float = 0.0
    keeps: bool = True
    pause_seconds: float = PAUSE_SECONDS
    reloads: bool = False
    leaves: bool = False
    steady: bool = False


def habits_of(workload: Workload, number: int) -> Habits:
    habits = _drawn_habits(workload, number)
    # Where polls are parked, some are also approved: of those who always ask for the same.
    return replace(habits, steady=workload.park and habits.keeps and number % 2 == 0)


def _drawn_habits(workload: Workload, number: int) -> Habits:
    draw = workload.random("habits", number)
    duration = workload.events / workload.events_per_second
    keeps = number % 3 != 0
    if number < EAGER:
        return Habits(tuple(CHANNELS), keeps=keeps, pause_seconds=0.0)
    if number < ALL:
        late = duration / 2 if number == ALL - 1 else 0.0
        return Habits(tuple(CHANNELS), OLDEST, late, keeps, leaves=number == ALL - 2)
    if number == READERS - 1:
        return Habits(("rare",), keeps=keeps)
    channels = tuple(draw.sample(list(CHANNELS), draw.randint(1, 4)))
    start = {ALL: FROM_NOW, ALL + 1: FROM_CURSOR, ALL + 2: FROM_NOW}.get(number, OLDEST)
    late = draw.uniform(0, duration / 3) if start != OLDEST or number % 4 == 0 else 0.0
    return Habits(channels, start, late, keeps, reloads=number == ALL + 2)


def stays(number: int) -> bool:
    """Whether reader *number* stays to the end."""
    return number != ALL - 2


class Client:
    """HTTP to all servers, over connections that are kept or not."""

    def __init__(self, keeps: bool) -> None:
        self._keeps = keeps
        self._open: dict[int, http.client.HTTPConnection] = {}

    def get(self, port: int, path: str, seconds: float, *, hang_up: float | None = None) -> Any:
        """Status, cursor header and body of the answer; None if there was none.

        Args:
            port: The server's.
            path: With its query.
            seconds: How long to wait for an answer.
            hang_up: Hang up so many seconds after asking; 0 is in the middle of the answer, after its head.
        """
        connection = self._open.pop(port, None)
        if connection is None:
            connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.timeout = seconds
        try:
            if connection.sock is not None:
                connection.sock.settimeout(seconds)
            connection.request("GET", path)
            if hang_up:
                gevent.sleep(hang_up)
                return None
            response = connection.getresponse()
            if hang_up is not None:
                response.read(20)
                return None
            body = response.read()
            if self._keeps and not response.will_close:
                self._open[port] = connection
            return response.status, response.getheader("Legacy-Poll-Cursor"), body
        except (OSError, http.client.HTTPException):
            return None
        finally:
            if self._open.get(port) is not connection:
                connection.close()

    def close(self) -> None:
        for connection in self._open.values():
            connection.close()


class Polling:
    """One reader's life."""

    def __init__(self, workload: Workload, number: int, journal: Journal) -> None:
        self._workload = workload
        self._number = number
        self._name = name_of(number)
        self._journal = journal
        self._draw = workload.random("reader", number)
        self._habits = habits_of(workload, number)
        self._client = Client(self._habits.keeps)
        self._cursor: str | None = None
        self._turn = 0
        self._got = 0
        self._deadline = now() + workload.limit_seconds

    def run(self) -> None:
        gevent.sleep(self._habits.late_seconds)
        self._journal.write(Reader(self._name, self._habits.channels))
        with contextlib.closing(self._client):
            if self._habits.start != OLDEST:
                self._start_from_now(self._habits.start)
            stays = self._poll_until_over() and not self._habits.leaves
            if stays and self._poll_until_quiet():
                self._journal.write(Reader(self._name, self._habits.channels, complete=True))

    def _poll_until_over(self) -> bool:
        """Polls as badly as it can; returns whether it is here to stay."""
        draw = self._draw
        port = draw.choice(self._workload.ports)
        while not self._workload.over.exists():
            if now() > self._deadline or (self._habits.leaves and self._got > self._workload.events / 3):
                return False
            if draw.random() < (0.03 if self._habits.steady else 0.3):
                port = draw.choice(self._workload.ports)
            if self._habits.reloads and draw.random() < 0.01:
                self._start_from_now(draw.choice((FROM_NOW, FROM_CURSOR)))
            timeout_ms = draw.choices((0, 30, 200, 1000, 4000), (3, 20, 30, 30, 17))[0]
            limit = draw.choices((None, 50, 10, 2), (60, 20, 15, 5))[0]
            if self._habits.steady:
                timeout_ms, limit = 1000, None
            hang_up = draw.choices((None, 0.0, draw.uniform(0.001, 0.3)), (96, 2, 2))[0]
            if not self._poll(port, timeout_ms, limit, hang_up, loses=draw.random() < 0.02):
                # The server is down, stopped or full: another one may not be.
                port = draw.choice(self._workload.ports)
                gevent.sleep(draw.uniform(0.01, 0.1))
            gevent.sleep(draw.uniform(0, self._habits.pause_seconds))
        return True

    def _poll_until_quiet(self) -> bool:
        """Polls each server in turn until none has more; returns whether that came to be."""
        quiet = 0
        ports = list(self._workload.ports)
        while quiet < len(ports):
            if now() > self._deadline:
                return False
            before = self._got
            answered = self._poll(ports[quiet], FINAL_TIMEOUT_MS, None, None)
            quiet = quiet + 1 if answered and self._got == before else 0
        return True

    def _poll(
        self, port: int, timeout_ms: int, limit: int | None, hang_up: float | None, loses: bool = False
    ) -> bool:
        """One poll; returns whether it was answered, or given up by the reader itself."""
        draw = self._draw
        steady = self._habits.steady
        empty = 204 if steady else draw.choice((200, 204))
        query = [*self._channels(), ("timeout", timeout_ms), ("empty", empty)]
        if limit is not None:
            query.append(("limit", limit))
        if self._cursor is not None:
            query.append(("cursor", self._cursor))
        if not steady:
            draw.shuffle(query)
        path = "/stream?" + urllib.parse.urlencode(query)
        asked, sent = self._cursor, now()
        answer = self._client.get(port, path, timeout_ms / 1000 + PATIENCE_SECONDS, hang_up=hang_up)
        returned = now()
        if answer is None:
            self._write(asked, sent, returned, NO_ANSWER)
            return hang_up is not None
        status, cursor, body = answer
        said = _json(status, body) if body else {}
        cursor = said.get("cursor", cursor)
        adopted = cursor is not None and not loses
        events = tuple(map(_seen, said.get("events", ())))
        self._write(asked, sent, returned, status, cursor, adopted, events)
        if adopted:
            self._cursor = cursor
            self._got += len(events)
        return status in ANSWERED

    def _channels(self) -> list[tuple[str, Any]]:
        names = list(self._habits.channels)
        if self._habits.steady:
            return [("channel", name) for name in names]
        self._draw.shuffle(names)
        if self._draw.random() < 0.5:
            return [("channels", ",".join(names))]
        return [("channel", name) for name in names]

    def _start_from_now(self, how: str) -> None:
        path = "/cursor" if how == FROM_CURSOR else "/stream?cursor=now&empty=200&channel=orders"
        while now() < self._deadline:
            sent = now()
            answer = self._client.get(self._draw.choice(self._workload.ports), path, PATIENCE_SECONDS)
            returned = now()
            if answer is not None and answer[0] == 200:
                cursor = _json(200, answer[2])["cursor"]
                self._write(NOW, sent, returned, 200, cursor, True)
                self._cursor = cursor
                return
            self._write(NOW, sent, returned, NO_ANSWER if answer is None else answer[0])
            gevent.sleep(0.05)

    def _write(self, *fields: Any) -> None:
        self._journal.write(Answer(self._name, self._turn, *fields))
        self._turn += 1


def _json(status: int, body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        raise AssertionError(
            "the body of an answer {} is not JSON: {!r}".format(status, body[:500])
        ) from None


def _seen(event: Any) -> Seen:
    data = event["data"]
    key = data.get("key") if isinstance(data, dict) else None
    return Seen(event["id"], event["channel"], event["type"], key, data)


def main(workload: Workload, numbers: list[int]) -> None:
    journal = Journal(workload.path / "readers-{}.jsonl".format("-".join(map(str, numbers))))
    polling = [gevent.spawn(Polling(workload, number, journal).run) for number in numbers]
    gevent.joinall(polling, raise_error=True)


if __name__ == "__main__":
    main(Workload.from_text(sys.argv[1]), [int(number) for number in sys.argv[2:]])
