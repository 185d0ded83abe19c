"""One request's life: join, read, wait, read, leave.

Knows no HTTP and no Flask; returns a :class:`Batch`. A hold that times out is an empty batch, not an error. Joins the
group before it waits, and leaves it in ``finally``, so that a killed request frees its place.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Callable, FrozenSet, Optional

from .catchup import CatchUp
from .cursors import Cursor
from .events import Batch
from .hub import Hub

__all__ = ["Hold", "Question"]


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

    def __call__(self, question: Question) -> Batch:
        """Waits for events, as long as the question says.

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
                if left > 0:
                    found.event.wait(left)
            finally:
                answer = self._hub.leave(found, limit=question.limit)
            if answer is not None:
                return answer
            verified = False  # the hub started afresh: so does this poll
