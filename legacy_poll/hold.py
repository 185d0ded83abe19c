"""One request's life: join, read, wait, read, leave.

Knows no HTTP and no Flask; returns a :class:`Batch`. A hold that times out is an empty batch, not an error. Joins the
group before it waits, and leaves it in ``finally``, so that a killed request frees its place.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Callable, FrozenSet, Optional

from .catchup import CatchUp
from .cursors import Cursor
from .events import Batch
from .hub import Hub

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
    """

    channels: FrozenSet[str]
    cursor: Optional[Cursor]
    now: bool
    limit: int
    hold_seconds: float


class Hold:
    """Answers questions from one hub and one log.

    Args:
        hub: Recent events, and groups to wait in.
        catchup: Everything else.
        clock: Seconds, monotonic.
    """

    def __init__(self, hub: Hub, catchup: CatchUp, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._hub = hub
        self._catchup = catchup
        self._clock = clock
        #: Whether nobody is held any more.
        self.draining = False

    def drain(self) -> None:
        """Answers everybody as at their timeout, now and from now on: this process is about to end."""
        self.draining = True
        self._hub.look_again()

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
        """
        if question.now:
            return Batch((), self._catchup.head())
        deadline = self._clock() + question.hold_seconds
        cursor = question.cursor
        verified = False
        while True:
            found = None
            if cursor is not None:
                found = self._hub.join(question.channels, cursor, limit=question.limit, verified=verified)
            if isinstance(found, Batch):
                return found
            if found is None:
                batch = self._catchup.read_after(cursor, channels=question.channels, limit=question.limit)
                if batch.events or self._clock() >= deadline:
                    return batch
                cursor, verified = batch.cursor, True
                continue
            try:
                left = deadline - self._clock()
                if left > 0 and not self.draining:
                    if wait is None:
                        found.event.wait(left)
                    else:
                        wait(found.event, left)
            finally:
                answer = self._hub.leave(found, limit=question.limit)
            if answer is not None:
                return answer
            if self.draining:
                assert cursor is not None
                return Batch((), cursor)
            verified = False  # the hub started afresh: so does this poll
