"""One request's life: join, read, wait, read, leave.

Knows no HTTP and no Flask; returns a :class:`Batch`. A hold that times out is an empty batch, not an error. Joins the
group before it waits, and leaves it in ``finally``, so that a killed request frees its place.

The call is all of it, for a request that waits where it is. The parked lane takes the same steps one by one, and waits
in between without a greenlet.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, FrozenSet, Optional, Union

from .catchup import CatchUp
from .cursors import Cursor
from .errors import CursorUnknown, Unauthorized
from .events import Batch
from .hub import Group, Hub
from .revocations import Revocations

__all__ = ["REVOKED", "Hold", "Question", "Stay"]

REVOKED = "the right to read was revoked"


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


class Stay:
    """One poll's wait.

    Attributes:
        question: What it asked.
        cursor: Where it stands.
        deadline: When its time is up, on the hold's clock.
        group: What it waits in.
        asked: The cursor that it came with: what its client has seen, and no more.
    """

    __slots__ = ("question", "cursor", "deadline", "group", "asked")

    def __init__(
        self, question: Question, cursor: Cursor, deadline: float, group: Group, asked: Optional[Cursor]
    ) -> None:
        self.question = question
        self.cursor = cursor
        self.deadline = deadline
        self.group = group
        self.asked = asked


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
        #: Called when a right was revoked: for those who hold polls whose questions do not say who asks.
        self.on_revoked: Callable[[], None] = _nothing
        #: Called when the log is not the one that memory has: somebody should look, and not only at the next interval.
        self.on_other_log: Callable[[], None] = _nothing

    def drain(self) -> None:
        """Answers everybody as at their timeout, now and from now on: this process is about to end."""
        self.draining = True
        self._hub.look_again()

    def revoke(self, subject: str) -> None:
        """Lets the polls of *subject* find out that they may not read any more."""
        with self._lock:
            groups = list(self._by_subject.get(subject, ()))
        self._hub.end(groups)
        self.on_revoked()

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
        found = self.enter(question)
        while isinstance(found, Stay):
            left = self.left(found)
            try:
                if left > 0:
                    if wait is None:
                        found.group.event.wait(left)
                    else:
                        wait(found.group.event, left)
            finally:
                answer = self.leave(found)
            if answer is not None:
                return answer
            found = self.enter(question, found)
        return found

    def enter(self, question: Question, stay: Optional[Stay] = None, *, polls: int = 1) -> Union[Batch, Stay]:
        """Looks, in memory and where needed in the log, until there is an answer or something to wait for.

        Args:
            question: What is asked.
            stay: Where this poll waited before, if it did and was told to look again.
            polls: How many ask the same.

        Returns:
            A Batch, or a Stay: for :meth:`left` seconds its ``group.event`` may be waited for, and whatever comes, it
            is left by :meth:`leave`.

        Raises:
            As the call does.
        """
        if question.now:
            return Batch((), self._catchup.head())
        first = stay is None  # how far behind it may be is asked of the cursor that it came with
        cursor = question.cursor if stay is None else stay.cursor
        asked = question.cursor if stay is None else stay.asked
        deadline = self._clock() + question.hold_seconds if stay is None else stay.deadline
        verified = cut_back = False  # in a hub that started afresh, a poll does so too
        while True:
            self.check(question.subject, question.authorised_at)
            if cursor is not None:
                found = self._join(
                    question,
                    cursor,
                    deadline,
                    asked,
                    verified=verified,
                    cut_back=cut_back,
                    first=first,
                    polls=polls,
                )
                if found is not None:
                    return found
            known = self._hub.cursor
            try:
                batch = self._catchup.read_after(
                    cursor, channels=question.channels, limit=question.limit, first=first
                )
            except CursorUnknown:
                if asked is None or cursor == asked:
                    raise
                # It was moved on while it waited, over events that are not in the log any more and that its client
                # has not seen: the log may still have all that follows what the client has.
                cursor, verified, cut_back = asked, False, False
                self.on_other_log()
                continue
            first = False
            if self.is_revoked(question):
                continue  # while it was read
            if batch.events or self._clock() >= deadline:
                return batch
            cursor, verified = batch.cursor, True
            # Positions are never taken back, so a log that ends before what this worker knew is another one.
            cut_back = known is not None and known.log == cursor.log and cursor.position < known.position
            if cut_back or (known is not None and known.position == cursor.position and known != cursor):
                self.on_other_log()

    def enter_from_memory(
        self,
        question: Question,
        cursor: Cursor,
        deadline: float,
        *,
        stay: Optional[Stay] = None,
        polls: int = 1,
    ) -> Union[Batch, Stay, None]:
        """As :meth:`enter` from *cursor* on, without ever blocking; None when only :meth:`enter` can tell."""
        if self.is_revoked(question):
            return None
        return self._join(
            question,
            cursor,
            deadline,
            cursor if stay is None else stay.asked,
            verified=False,
            cut_back=False,
            first=stay is None,
            polls=polls,
        )

    def left(self, stay: Stay) -> float:
        """How many seconds *stay* may last from now on."""
        if self.draining or self.is_revoked(stay.question):
            return 0.0
        return stay.deadline - self._clock()

    def leave(self, stay: Stay, *, polls: int = 1) -> Optional[Batch]:
        """Ends *stay*, whatever its reason, once for each poll.

        Returns:
            The answer; None when the poll is to :meth:`enter` again.
        """
        question = stay.question
        self._enlist(question.subject, stay.group, -polls)
        answer = self._hub.leave(stay.group, limit=question.limit, polls=polls)
        if answer is not None and not self.is_revoked(question):
            return answer
        return Batch((), stay.cursor) if self.draining else None

    def _join(
        self,
        question: Question,
        cursor: Cursor,
        deadline: float,
        asked: Optional[Cursor],
        *,
        verified: bool,
        cut_back: bool,
        first: bool,
        polls: int,
    ) -> Union[Batch, Stay, None]:
        found = self._hub.join(
            question.channels,
            cursor,
            limit=question.limit,
            verified=verified,
            cut_back=cut_back,
            first=first,
            polls=polls,
        )
        if not isinstance(found, Group):
            return found
        # First made known, then looked again by left(): a revocation that came since the last look finds this poll, or
        # this poll finds it.
        self._enlist(question.subject, found, polls)
        return Stay(question, cursor, deadline, found, asked)

    def is_revoked(self, question: Question) -> bool:
        """Whether the right to read was revoked since *question* was authorised."""
        return question.subject is not None and self.lost(question.subject, question.authorised_at)

    def lost(self, subject: str, since: int) -> bool:
        """Whether the right of *subject* was revoked after this worker had noted *since* revocations."""
        return self._revocations.happened(subject, since=since)

    def check(self, subject: Optional[str], since: int) -> None:
        """Raises Unauthorized if *subject*, where one is known, has :meth:`lost` its right."""
        if subject is not None and self.lost(subject, since):
            raise Unauthorized(REVOKED)

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


def _nothing() -> None:
    pass
