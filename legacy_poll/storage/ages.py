"""How old events are, for a trim, when clocks may be wrong.

A trim cannot be undone, so it believes a clock only where believing it deletes *less*. Two rules:

* The present is the earliest of the database's clock, this host's clock, and what the database's clock said at the
  first look plus the time that has passed here since. A clock that jumps ahead is not followed; one that jumps back
  makes events stay longer.
* An event that this worker has known of for as long as the retention is old, whatever its time says. So events that
  were published while a clock was a year ahead do not keep everything behind them for a year.

What is left: a process that starts while both clocks are a day ahead believes them.
"""

from __future__ import annotations

import time
from collections import deque
from datetime import datetime, timedelta, timezone
from typing import Callable, Deque, Optional, Tuple

__all__ = ["KnownFor", "SteadyClock", "earlier"]

_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"
#: By how much the clocks may differ before it is said, seconds.
_TOLERANCE_SECONDS = 60.0
#: How many moments are remembered within one retention.
_SAMPLES = 64


def elapsed_clock() -> float:
    """Seconds that have passed, those in which the machine slept included."""
    # Linux leaves a suspended machine's time out of the monotonic clock.
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)


def earlier(now: str, seconds: float) -> str:
    """The RFC 3339 time *seconds* before *now*, 24 characters; empty, before all times, if there is no such year."""
    try:
        return _text(_moment(now) - timedelta(seconds=seconds))
    except OverflowError:
        return ""


class SteadyClock:
    """The present, as far as it may be believed.

    Args:
        clock: Seconds that have passed.
        wall: This host's time, seconds since 1970.
    """

    def __init__(
        self, *, clock: Callable[[], float] = elapsed_clock, wall: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._wall = wall
        self._first: Optional[Tuple[datetime, float]] = None
        #: By how many seconds the database's clock was ahead of what was believed, the last time; 0 if it was not.
        self.ahead_seconds = 0.0

    def __call__(self, database_now: str) -> str:
        """The earliest present of all.

        Args:
            database_now: The database's time: RFC 3339, UTC, milliseconds.
        """
        said, passed = _moment(database_now), self._clock()
        here = datetime.fromtimestamp(self._wall(), timezone.utc).replace(tzinfo=None)
        believed = min(said, here + timedelta(seconds=1))
        if self._first is None:
            self._first = believed, passed
        moment, then = self._first
        # A thousandth more than has passed here: clocks that run a little faster are right as well.
        believed = min(believed, moment + timedelta(seconds=(passed - then) * 1.001 + 1))
        ahead = (said - believed).total_seconds()
        self.ahead_seconds = ahead if ahead > _TOLERANCE_SECONDS else 0.0
        return _text(believed)


class KnownFor:
    """Since when this worker has known that the log reached a position: no event up to there is younger.

    Args:
        clock: Seconds that have passed.
    """

    def __init__(self, *, clock: Callable[[], float] = elapsed_clock) -> None:
        self._clock = clock
        self._log_id = ""
        self._seen: Deque[Tuple[float, int, str]] = deque()

    def see(self, log_id: str, head: int, check: str, seconds: float) -> Optional[Tuple[int, str]]:
        """Notes the log's head.

        Args:
            log_id: Of the log; another one begins anew, and so does a head that went back.
            head: The last position given.
            check: Of the event there: a restored log may have grown past it again meanwhile.
            seconds: How old is old.

        Returns:
            The last position that has been known for *seconds*, and the check that it had; None when none has.
        """
        now = self._clock()
        if log_id != self._log_id or (self._seen and head < self._seen[-1][1]):
            self._log_id = log_id
            self._seen.clear()
        if not self._seen or now - self._seen[-1][0] >= seconds / _SAMPLES:
            self._seen.append((now, head, check))
        while len(self._seen) > 1 and now - self._seen[1][0] > seconds:
            self._seen.popleft()
        since, position, known = self._seen[0]
        return (position, known) if now - since > seconds else None

    def forget(self) -> None:
        """Begins anew: the log is not the one that it was."""
        self._seen.clear()


def _moment(text: str) -> datetime:
    return datetime.strptime(text, _FORMAT)


def _text(moment: datetime) -> str:
    # By hand: strftime writes the year 876 with three digits, and texts are compared.
    return "%04d-%02d-%02dT%02d:%02d:%02d.%03dZ" % (
        moment.year,
        moment.month,
        moment.day,
        moment.hour,
        moment.minute,
        moment.second,
        moment.microsecond // 1000,
    )
