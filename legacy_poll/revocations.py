"""Who lost the right to read, and when: told by rows of the log, so every worker knows as surely as of an event.

A revocation ends the subject's held polls, outdates its channel tokens that were made before, and is noticed by an
authorisation that is under way: each poll remembers how many revocations this worker had seen when it began.

A worker that starts loads what was revoked before, and whoever has a subject waits for that: an old token must not be
taken for a good one in the worker's first moments, and who has logged in again since must not be refused. So what the
log says twice (loaded, then delivered; or loaded anew) is taken in once.

A token's time is of a server's clock, an event's of the database's, and the two need not agree. So a revocation by
``poll.revoke`` says its own server's time, and the time of any other is translated to this host's clock.
"""

from __future__ import annotations

import threading
import time
from typing import Callable, Dict, Iterable, List, Optional, Tuple

from .events import REVOKE_CHANNEL, Event, said, seconds_of

__all__ = ["Revocations"]

#: The year 9999, seconds since 1970.
_LAST_TIME = 253_402_300_800


class Revocations:
    """What this worker knows of revocations.

    Args:
        host_time_of: What this host's clock said at a time of the database's: RFC 3339 to seconds since 1970;
            ValueError for a text that is no time.
        wall: This host's time, seconds since 1970.
    """

    def __init__(
        self, *, host_time_of: Callable[[str], float] = seconds_of, wall: Callable[[], float] = time.time
    ) -> None:
        self._host_time_of = host_time_of
        self._wall = wall
        self._lock = threading.Lock()
        self._by_subject: Dict[str, int] = {}
        self._times: Dict[str, float] = {}
        self._ids: Dict[str, str] = {}
        self._loaded_to = 0
        #: Whether it is known what was revoked before this worker started.
        self.loaded = False
        #: How many have been noted.
        self.serial = 0

    def load(self, events: Iterable[Event], *, upto: int) -> List[str]:
        """Takes in the revocations *events*: all that the log retains up to the position *upto*, in order.

        Returns:
            Whose right was revoked since the last load, as far as this worker had not noted it.
        """
        last: Dict[str, Event] = {}
        times: Dict[str, float] = {}
        for event in events:
            subject = _says(event)[0]
            if subject is not None:
                last[subject] = event
                times[subject] = max(self._moment_of(event), times.get(subject, 0.0))
        new = [subject for subject, event in last.items() if self._ids.get(subject) != event.id]
        for subject in new:
            self._take(subject, last[subject], times[subject])
        self._loaded_to = upto
        self.loaded = True
        return new

    def note(self, event: Event) -> Optional[str]:
        """Takes in *event*, of the reserved channel, which comes behind those before.

        Returns:
            Whose right was revoked; None for an event that says something else, or that was loaded.
        """
        subject = _says(event)[0]
        if subject is None or event.position <= self._loaded_to:
            return None
        self._take(subject, event, self._moment_of(event))
        return subject

    def _moment_of(self, event: Event) -> float:
        at = _says(event)[1]
        if at is not None:
            return at
        try:
            return self._host_time_of(event.time)
        except ValueError:
            # Somebody changed the row. Whoever has a right again gets a new token from now on.
            return self._wall()

    def _take(self, subject: str, event: Event, moment: float) -> None:
        with self._lock:
            self.serial += 1
            self._by_subject[subject] = self.serial
            self._times[subject] = max(moment, self._times.get(subject, 0.0))
            self._ids[subject] = event.id

    def happened(self, subject: Optional[str], *, since: int) -> bool:
        """Whether *subject* was revoked after this worker had noted *since* revocations."""
        return subject is not None and self._by_subject.get(subject, 0) > since

    def outdates(self, subject: Optional[str], issued: float) -> bool:
        """Whether a token made for *subject* at *issued*, seconds since 1970, is one from before a revocation."""
        return subject is not None and issued <= self._times.get(subject, float("-inf"))


def _says(event: Event) -> Tuple[Optional[str], Optional[float]]:
    """Whose right *event* revokes, and when by a server's clock, if it says so."""
    says = said(event) if event.channel == REVOKE_CHANNEL else None
    if not isinstance(says, dict) or not isinstance(says.get("subject"), str):
        return None, None
    at = says.get("at")
    if isinstance(at, bool) or not isinstance(at, (int, float)) or not 0 <= at < _LAST_TIME:
        return says["subject"], None
    return says["subject"], float(at)
