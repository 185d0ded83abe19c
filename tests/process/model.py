"""What a kept connection must answer: a small model of the wire, without lanes, parsing, approvals or time.

Requests on a connection are answered in their order, and a poll that waits keeps those behind it waiting. An answer
depends on nothing but the request and the log at the moment of the look: not on what was asked before, by whom, in how
many pieces it came, or who holds the connection. Time does not pass here: nobody's hold runs out.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Deque, List, Optional, Tuple

MOST_EVENTS = 20
NOBODYS = "secret"


@dataclass(frozen=True)
class Answer:
    """What must come.

    Attributes:
        status: None: a refusal by the server itself, or nothing; and then the end.
        who: Whose cookie the application saw.
        position: Of the cursor; None without one.
        events: Channel and data of each.
        body: Where it is not events; None is any.
        bodiless: The answer to a HEAD.
    """

    status: Optional[int]
    who: str = ""
    position: Optional[int] = None
    events: Tuple[Tuple[str, Any], ...] = ()
    body: Optional[bytes] = None
    bodiless: bool = False


@dataclass(frozen=True)
class Poll:
    """GET /stream.

    Attributes:
        position: Of its cursor.
        wrong: Status that its query or its cursor deserves.
        now: Its cursor is the word `now`.
        waits: It is held, if there is nothing for it.
        empty: Status of an answer without events.
        closes: It says `Connection: close`.
    """

    who: str
    channels: Tuple[str, ...]
    position: int
    limit: int = MOST_EVENTS
    wrong: Optional[int] = None
    now: bool = False
    waits: bool = True
    empty: int = 204
    closes: bool = False


@dataclass(frozen=True)
class Other:
    """Any other request, and its answer."""

    answer: Answer
    closes: bool = False


class Rest:
    """The body of a request that has been answered already, or is held: nothing comes of it."""


class Model:
    """One server: its log, and its connections."""

    def __init__(self) -> None:
        #: Channel and data, by position; there is nothing at 0.
        self.log: List[Tuple[str, Any]] = [("", None)]
        self.lines: List[Line] = []

    @property
    def position(self) -> int:
        return len(self.log) - 1

    @property
    def held(self) -> int:
        return sum(line.held is not None for line in self.lines)

    def connect(self) -> "Line":
        line = Line(self)
        self.lines.append(line)
        return line

    def publish(self, channel: str, data: Any) -> None:
        self.log.append((channel, data))
        for line in self.lines:
            line.look_again()

    def revoke(self, who: str) -> None:
        self.log.append(("$revoke", None))
        for line in self.lines:
            line.end(who)

    def look(self, poll: Poll) -> Optional[Answer]:
        """The answer to *poll* now; None when it waits."""
        if poll.wrong == 400:
            return Answer(400, poll.who)
        if not all(_may_read(poll.who, channel) for channel in poll.channels):
            return Answer(403, poll.who)
        if poll.wrong is not None:
            return Answer(poll.wrong, poll.who, self.position)
        if poll.now:
            return Answer(poll.empty, poll.who, self.position)
        found = [n for n in range(poll.position + 1, len(self.log)) if self.log[n][0] in poll.channels]
        if not found:
            return None if poll.waits else Answer(poll.empty, poll.who, self.position)
        taken = found[: poll.limit]
        more = len(found) > len(taken)
        events = tuple(self.log[n] for n in taken)
        return Answer(206 if more else 200, poll.who, taken[-1] if more else self.position, events)


class Line:
    """One connection to a Model.

    Attributes:
        held: The poll that waits.
        expected: Answers that must have come by now, in order.
        over: Whether the server has closed it.
    """

    def __init__(self, model: Model) -> None:
        self.held: Optional[Poll] = None
        self.expected: Deque[Answer] = deque()
        self.over = False
        self._model = model
        self._coming: Deque[Tuple[int, Any]] = deque()
        self._come = 0
        self._arrived: Deque[Any] = deque()

    def begin(self, request: Any, size: int) -> None:
        """The next *size* bytes of the client are *request*."""
        self._coming.append((size, request))

    def take(self, size: int) -> None:
        """So many bytes have been sent."""
        self._come += size
        while self._coming and self._coming[0][0] <= self._come:
            needs, request = self._coming.popleft()
            self._come -= needs
            self._arrived.append(request)
        self._go_on()

    def look_again(self) -> None:
        if self.held is not None:
            answer = self._model.look(self.held)
            if answer is not None:
                self._answer(answer)

    def end(self, who: str) -> None:
        """The right of *who* was revoked."""
        if self.held is not None and self.held.who == who:
            self._answer(Answer(401, who))

    def hang_up(self) -> None:
        """The client closed its half, or all of it: what it still asks does not count."""
        if self._coming and self._come:
            self.expected.append(Answer(None))
        self._close()

    def _answer(self, answer: Answer) -> None:
        closes = self.held is not None and self.held.closes
        self.held = None
        self.expected.append(answer)
        if closes:
            self._close()
        self._go_on()

    def _go_on(self) -> None:
        while self._arrived and self.held is None and not self.over:
            request = self._arrived.popleft()
            if isinstance(request, Poll):
                self.held = request
                self.look_again()
            elif isinstance(request, Other):
                self.expected.append(request.answer)
                if request.closes:
                    self._close()

    def _close(self) -> None:
        self.over = True
        self.held = None
        self._coming.clear()
        self._arrived.clear()


def _may_read(who: str, channel: str) -> bool:
    return channel != NOBODYS and (not channel.startswith("user:") or channel == "user:" + who)
