"""One request's life: join, read, wait, read, leave.

Knows no HTTP and no Flask; returns a :class:`Batch`. A hold that times out is an empty batch, not an error. Joins the
group before it waits, and leaves it in ``finally``, so that a killed request frees its place.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, FrozenSet, Optional

from .catchup import CatchUp
from .cursors import Cursor
from .errors import Unauthorized
from .events import Batch
from .hub import Group, Hub
from .revocations import Revocations

__all__ = ["Hold", "Question"]


Wait = Callable[[Any, float], None]


@dataclass(frozen=True)
class Question:
    """What a poll asks, once it has been parsed and authorised.

    Attributes:
        channels: At least one.
        cursor: Where to go on; None is the oldest retained event.
        now: Answer at once with the present cursor; *cursor* does not matter.
        limit: Most events.
        hold_seconds: Longest wait; 0 does not wait.
        subject: Who asks, if that is known: whose right may be revoked.
        authorised_at: How many revocations this worker had noted when the authorisation began.
    """

    channels: FrozenSet[str]
    cursor: Optional[Cursor]
    now: bool
    limit: int
    hold_seconds: float
    subject: Optional[str] = None
    authorised_at: int = 0


class Hold:
    """Answers questions from one hub and one log.

    Args:
        hub: Recent events, and groups to wait in.
        catchup: Everything else.
        revocations: Whose right to read ended.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        hub: Hub,
        catchup: CatchUp,
        *,
        revocations: Optional[Revocations] = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._revocations = revocations or Revocations()
        self._lock = threading.Lock()
        self._by_subject: Dict[str, Dict[Group, int]] = {}
        self._hub = hub
        self._catchup = catchup
        self._clock = clock
        #: Whether nobody is held any more.
        self.draining = False

    def drain(self) -> None:
        """Answers everybody as at their timeout, now and from now on: this process is about to end."""
        self.draining = True
        self._hub.look_again()

    def revoke(self, subject: str) -> None:
        """Lets the polls of *subject* find out that they may not read any more."""
        with self._lock:
            groups = list(self._by_subject.get(subject, ()))
        self._hub.end(groups)

    def __call__(self, question: Question, wait: Optional[Wait] = None) -> Batch:
        """Waits for events, as long as the question says.

        Args:
            question: What is asked.
            wait: Waits for an event, for so many seconds at most; by default the event's own ``wait``. What it raises
                ends the hold.

        Returns:
            Batch; never with a cursor below the question's.

        Raises:
            CursorExpired: Events after the cursor have been trimmed.
            CursorUnknown: The cursor is of another log, or of an earlier life of this one.
            StorageUnavailable: Only the database could tell, and it failed.
            Unauthorized: The right to read was revoked since the authorisation began.
        """
        if question.now:
            return Batch((), self._catchup.head())
        deadline = self._clock() + question.hold_seconds
        cursor = question.cursor
        verified = False
        while True:
            if self._is_revoked(question):
                raise Unauthorized("the right to read was revoked")
            found = None
            if cursor is not None:
                found = self._hub.join(question.channels, cursor, limit=question.limit, verified=verified)
            if isinstance(found, Batch):
                return found
            if found is None:
                batch = self._catchup.read_after(cursor, channels=question.channels, limit=question.limit)
                if self._is_revoked(question):
                    continue  # while it was read
                if batch.events or self._clock() >= deadline:
                    return batch
                cursor, verified = batch.cursor, True
                continue
            try:
                # First made known, then looked again: a revocation that came since the last look finds this poll, or
                # this poll finds it.
                self._enlist(question.subject, found, 1)
                left = deadline - self._clock()
                if left > 0 and not self.draining and not self._is_revoked(question):
                    if wait is None:
                        found.event.wait(left)
                    else:
                        wait(found.event, left)
            finally:
                self._enlist(question.subject, found, -1)
                answer = self._hub.leave(found, limit=question.limit)
            if answer is not None and not self._is_revoked(question):
                return answer
            if self.draining:
                assert cursor is not None
                return Batch((), cursor)
            verified = False  # the hub started afresh: so does this poll

    def _is_revoked(self, question: Question) -> bool:
        return self._revocations.happened(question.subject, since=question.authorised_at)

    def _enlist(self, subject: Optional[str], group: Group, polls: int) -> None:
        if subject is None:
            return
        with self._lock:
            groups = self._by_subject.setdefault(subject, {})
            groups[group] = groups.get(group, 0) + polls
            if not groups[group]:
                del groups[group]
                if not groups:
                    del self._by_subject[subject]
