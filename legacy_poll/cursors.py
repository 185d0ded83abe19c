"""Position <-> token: the only reader and writer of a cursor's text.

``1-<log>-<position>-<check>``: the format's version, the log's id in short, the position in decimal, and a check of
the event at that position. The check tells a client apart whose events were undone by a restored backup or a failover:
same log, same position, another history. It is the event's *mark*, a random number of the move that gave the position;
the event's id would not do, since a publisher may give the same id again after the restore (docs/decisions/0010).
Events that were moved before there were marks are checked by their id. Unsigned on purpose: a forged cursor shows
nobody anything that they may not read, and key rotation must not expire every client.

Guards against: a cursor that is *nearly* right. Whatever is not exactly what was given out is refused here, and what
cannot be verified is told to the client by the log, never guessed at.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from secrets import randbits
from typing import Optional

from .errors import BadCursor

__all__ = ["Cursor", "Marks", "check_of", "short_log"]

VERSION = "1"
_DIGITS = 8
#: What fits the position's column in every database.
MAX_POSITION = 2**63 - 1
_TEXT = re.compile(r"%s-([0-9a-f]{%d})-(0|[1-9][0-9]{0,18})-([0-9a-f]{%d})" % (VERSION, _DIGITS, _DIGITS))


@lru_cache(maxsize=1024)
def _digest(text: str) -> str:
    # Of the same few all the time: every look at the log makes the cursor of its end.
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]


def short_log(log_id: str) -> str:
    """The form of *log_id* that a cursor carries."""
    return _digest(log_id)


class Marks:
    """The marks of the events of one move: 8 hexadecimal digits each, random, and another for each position."""

    def __init__(self) -> None:
        self._first = randbits(4 * _DIGITS)

    def at(self, position: int) -> str:
        """The mark of the event at *position*."""
        return "%0*x" % (_DIGITS, (self._first + position) % 16**_DIGITS)


def check_of(event_id: Optional[str], mark: Optional[str] = None) -> str:
    """The check of a position.

    Args:
        event_id: Id of the event there; None at the start of the log, and where there is no event.
        mark: Of the event there; None for one that was moved before there were marks.
    """
    if mark is not None:
        return mark
    return _digest("" if event_id is None else "event " + event_id)


@dataclass(frozen=True)
class Cursor:
    """A place in one log: everything up to *position* has been seen.

    Attributes:
        log: The log's id in short.
        position: 0 is before the first event.
        check: Of the event at *position*.
    """

    __slots__ = ("log", "position", "check")

    log: str
    position: int
    check: str

    @classmethod
    def at(cls, log_id: str, position: int, event_id: Optional[str], mark: Optional[str] = None) -> "Cursor":
        """The cursor behind the event *event_id*, with *mark*, at *position* of the log *log_id*."""
        check = check_of(event_id, mark) if position else check_of(None)
        return cls(short_log(log_id), position, check)

    def after(self, position: int, event_id: str, mark: Optional[str] = None) -> "Cursor":
        """The cursor of the same log behind the event *event_id*, with *mark*, at *position*."""
        return Cursor(self.log, position, check_of(event_id, mark))

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """The cursor that :meth:`__str__` wrote as *text*.

        Raises:
            BadCursor: No version of this code gives out such a text.
        """
        match = _TEXT.fullmatch(text)
        if match is None or int(match.group(2)) > MAX_POSITION:
            raise BadCursor(text)
        return cls(match.group(1), int(match.group(2)), match.group(3))

    def __str__(self) -> str:
        return "-".join((VERSION, self.log, str(self.position), self.check))
