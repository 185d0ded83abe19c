"""What the application has approved: the bytes of polls that need not be parsed and authorised again for a while.

A poll's next request differs from its last by the cursor, by jQuery's time stamp ``_=``, and by headers that were
declared as varying (a proxy's request id). These are cut out at an anchored place: in the query of the request line, as
a whole parameter, or as a whole header's value; each from a closed set of characters. What is left, with the listener
and the peer's address, is the key of an approval. All else is compared byte for byte, so another cookie or token, one
more header, or the same headers in another order is another request, for the application to judge.

Guards against: two requests that look alike and are not (a path or a header that contains what a cursor looks like, a
parameter spelt twice or with escapes, a body, a second request behind the first). Whatever is not exactly of the form
below is not approved, and so nothing that is found equal to an approved one can be of another form.
"""

from __future__ import annotations

import math
import re
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from ..cursors import Cursor
from ..errors import BadCursor
from ..hold import Question

__all__ = ["Approval", "Approvals", "Parking", "Requests", "Right", "Terms"]

#: Longer requests are for the server; they are rare, and this bounds what is read at once.
MOST_BYTES = 16_384
#: Most approvals of one lane, and most bytes of their keys; the oldest is forgotten first.
MOST_APPROVALS = 20_000
MOST_KEY_BYTES = 64 * 1024 * 1024
#: Request lines that are remembered as understood, and how long they may be: anybody can send them.
_MOST_LINES = 4096
_LONGEST_LINE = 2048
#: Longest text that may be a cursor, roughly.
_LONGEST_CURSOR = 100
_CURSOR = re.compile(rb"[?&]cursor=([^& ]*)(?=[& ])")
# In a query, from its beginning on: a question mark elsewhere is a letter of some value.
_STAMP = re.compile(rb"((?:\A\?|&)_=)[0-9]{1,20}(?=[& ])")
_END = b"\r\n\r\n"
# Marks what was cut out of the headers. No header that a server takes has it.
_CUT = b"\0"


@dataclass
class Parking:
    """What the view says of a poll that may be parked.

    Attributes:
        question: Parsed and authorised.
        hold_seconds: As the question's, before it was shortened at random.
        empty_status: 204 or 200, for an empty answer.
        client: Whom the limits count it for.
        authorised: When its authorisation began, monotonic.
        refused: The answer that tells an exception, and the outcome's name.
        lane: That may have it: a process may have several, of different logs.
        good_seconds: How long the authorisation is good for by itself.
        placed: Whether it has a place of the admission, which is the lane's to give back once it has the connection.
        found: What the first look found, if there is no need to wait: a Batch or an exception.
        began: When that look began, monotonic.
    """

    question: Question
    hold_seconds: float
    empty_status: int
    client: str
    authorised: float
    refused: Callable[[Exception], Tuple[Any, str]]
    lane: Any = None
    good_seconds: float = math.inf
    placed: bool = True
    found: Any = None
    began: float = 0.0


class Terms:
    """How polls are held and answered; equal ones are kept once, so that who shares them can be served together.

    Attributes:
        question: Without what is each request's: the cursor that matters, the time, and who asks.
        hold_seconds: Longest time, before it is shortened at random.
        empty_status: For an empty answer.
        client: Whom the limits count it for; empty where they count nobody.
        block: The application's headers of its answers.
        refused: As :class:`Parking` has it.
    """

    __slots__ = ("question", "hold_seconds", "empty_status", "client", "block", "refused", "__weakref__")

    def __init__(self, parking: Parking, block: Any, client: str) -> None:
        # Approved are polls with a cursor, and the poll with "now" that these terms may come from is not one.
        self.question = replace(parking.question, now=False, subject=None, authorised_at=0)
        self.hold_seconds = parking.hold_seconds
        self.empty_status = parking.empty_status
        self.client = client
        self.block = block
        self.refused = parking.refused

    @property
    def key(self) -> Any:
        """Equal for equal terms."""
        asked = self.question
        return (
            (asked.channels, asked.limit),
            (self.hold_seconds, self.empty_status, self.client, self.block),
        )


class Right(NamedTuple):
    """Whose right to read a poll has, which may be revoked.

    Attributes:
        subject: Who asks.
        since: How many revocations this worker had noted when the authorisation began.
    """

    subject: str
    since: int

    @classmethod
    def of(cls, question: Question) -> "Optional[Right]":
        """That of *question*; None where nobody is known to ask."""
        return None if question.subject is None else cls(question.subject, question.authorised_at)


class Approval:
    """What the application said of one request.

    Attributes:
        terms: Of its polls.
        until: When it must be authorised again, monotonic.
        right: Whose it is; None where nobody is known to ask.
        seen: What the access log is told of the request; None without one.
    """

    __slots__ = ("terms", "until", "right", "seen")

    def __init__(self, terms: Terms, until: float, right: Optional[Right], seen: Any) -> None:
        self.terms = terms
        self.until = until
        self.right = right
        self.seen = seen


class _Line:
    """A request line, understood: what is left of it, and the cursor that was cut out."""

    __slots__ = ("kept", "cursor")

    def __init__(self, kept: bytes, cursor: Cursor) -> None:
        self.kept = kept
        self.cursor = cursor


class Requests:
    """The form of a request that may be approved.

    Args:
        varying: Names of headers whose values may differ: request ids, traces.
    """

    def __init__(self, varying: Sequence[str] = ()) -> None:
        names = b"|".join(re.escape(name.encode("ascii")) for name in varying)
        self._varying = (
            re.compile(rb"(?i)\r\n((?:%s):) *([0-9a-z_.,;:=/+-]{1,200})(?=\r\n)" % names) if varying else None
        )
        # As they came, and without their stamps, which are each request's own.
        self._lines: Dict[bytes, _Line] = {}
        self._unstamped: Dict[bytes, _Line] = {}

    def recognise(self, data: bytes) -> Optional[Tuple[bytes, Cursor]]:
        """*data* as one whole request that may be approved: what is left of it, and its cursor; None for others."""
        # The end of the headers is the end of the bytes: nothing is missing, and nothing stands behind.
        if len(data) > MOST_BYTES or data.find(_END) != len(data) - len(_END) or _CUT in data:
            return None
        return self.glance(data)

    def glance(self, data: bytes) -> Optional[Tuple[bytes, Cursor]]:
        """As :meth:`recognise` for *data* that is only compared with what was recognised: it is less work."""
        end = data.find(b"\r\n")
        if end < 0:
            return None
        text = data[:end]
        line = self._lines.get(text)
        if line is None:
            line = self._understand(text)
            if line is None:
                return None
        if self._varying is None:
            return line.kept + data[end:], line.cursor
        if _CUT in data:
            return None
        return line.kept + self._varying.sub(rb"\r\n\1" + _CUT, data[end:]), line.cursor

    def varied(self, data: bytes) -> List[Tuple[str, str]]:
        """Names, in capitals, and values of the headers of *data* that were cut out, in order."""
        if self._varying is None:
            return []
        found = self._varying.findall(data)
        return [(name[:-1].decode("ascii").upper(), value.decode("ascii")) for name, value in found]

    def _understand(self, text: bytes) -> Optional[_Line]:
        query = text.find(b"?")
        if not text.startswith(b"GET ") or query < 0 or not text.endswith(b" HTTP/1.1"):
            return None
        if text.count(b" ") != 2 or b"#" in text or b"\n" in text:
            return None
        # A character that no such line contains marks what was cut out.
        target, stamps = _STAMP.subn(rb"\1#", text[query:], count=1)
        known = self._unstamped if stamps else self._lines
        unstamped = text[:query] + target
        line = known.get(unstamped)
        if line is not None:
            return line
        # Exactly one: a name spelt with escapes is a second cursor for the application, which then refuses both.
        found = list(_CURSOR.finditer(target))
        if len(found) != 1 or target[1 : found[0].start() + 1].endswith(b"?"):
            return None
        start, stop = found[0].span(1)
        cursor = _cursor(target[start:stop]) if stop - start <= _LONGEST_CURSOR else None
        if cursor is None:
            return None
        line = _Line(text[:query] + target[:start] + b"#" + target[stop:], cursor)
        if len(text) <= _LONGEST_LINE:
            if len(known) >= _MOST_LINES:
                known.clear()
            known[unstamped] = line
        return line


@lru_cache(maxsize=4096)
def _cursor(text: bytes) -> Optional[Cursor]:
    # All who have seen the same come with the same text, and share what it means.
    try:
        return Cursor.parse(text.decode("latin-1"))
    except BadCursor:
        return None


class Approvals:
    """What was approved, by its key; bounded in number, bytes and age.

    Args:
        reauthorize_seconds: How long an approval is good; 0 makes none.
        most: How many are kept.
        most_bytes: Of their keys.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        *,
        reauthorize_seconds: float,
        most: int = MOST_APPROVALS,
        most_bytes: int = MOST_KEY_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = reauthorize_seconds
        self._worth_seconds = min(1.0, reauthorize_seconds / 4)
        self._most = most
        self._most_bytes = most_bytes
        self._clock = clock
        self._bytes = 0
        # Oldest first: all are good for equally long, but for those that a token cuts short.
        self._approvals: "OrderedDict[bytes, Approval]" = OrderedDict()

    def __len__(self) -> int:
        return len(self._approvals)

    def add(
        self,
        key: bytes,
        terms: Terms,
        *,
        authorised: float,
        good_seconds: float = math.inf,
        right: Optional[Right] = None,
        seen: Any = None,
    ) -> None:
        """Approves *key*, which was authorised at that moment, for *good_seconds* at most."""
        if not self._seconds:
            return
        self._forget(key)
        self._approvals[key] = Approval(terms, authorised + min(self._seconds, good_seconds), right, seen)
        self._bytes += len(key)
        now = self._clock()
        while self._approvals:
            oldest, approval = next(iter(self._approvals.items()))
            fits = len(self._approvals) <= self._most and self._bytes <= self._most_bytes
            if fits and approval.until > now:
                break
            self._forget(oldest)

    def find(self, key: bytes, now: float) -> Optional[Approval]:
        """What was said of *key*, as long as it is good for a hold that is worth it."""
        approval = self._approvals.get(key)
        if approval is None or approval.until - now >= self._worth_seconds:
            return approval
        self._forget(key)
        return None

    def _forget(self, key: bytes) -> None:
        if self._approvals.pop(key, None) is not None:
            self._bytes -= len(key)
