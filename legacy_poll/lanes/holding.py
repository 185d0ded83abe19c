"""How cohorts are held: they wait, and when their wait is over they look, in memory and then in the log, and are told.

A cohort that is HELD is counted by the hold, one for each of its connections; whoever leaves it is counted out at once.
While a greenlet reads the log for it (LOOKING) it is not, and those who hang up or lose their right just leave it: the
reader counts who is left.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Callable, Optional

import gevent

from ..errors import LegacyPollError, ServerFull, Unauthorized
from ..events import Batch
from ..hold import REVOKED, Hold, Question, Stay
from .cohorts import HELD, LOOKING, Cohort, Parked
from .reactor import Reactor
from .telling import Teller
from .waiting import Waiting

__all__ = ["Holder"]


class Holder:
    """Holds cohorts.

    Args:
        hold: Looks and waits, for one poll or many that ask the same.
        waiting: Which cohorts wait for what.
        reactor: Has their deadlines.
        teller: Tells them what came.
        guarded: Calls a function with a cohort and more; a fault ends that cohort's connections and nothing else.
        clock: Seconds, monotonic; the hold's.
    """

    def __init__(
        self,
        hold: Hold,
        waiting: Waiting,
        reactor: Reactor,
        teller: Teller,
        *,
        guarded: Callable[..., None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hold = hold
        self._waiting = waiting
        self._reactor = reactor
        self._teller = teller
        self._guarded = guarded
        self._clock = clock

    def wait(self, cohort: Cohort, stay: Stay) -> None:
        """Lets *cohort*, for all of which *stay* was entered, wait."""
        cohort.state = HELD
        self._waiting.join(cohort, stay)
        self._reactor.set_deadline(cohort, stay.deadline)

    def part(self, parked: Parked) -> Cohort:
        """Takes *parked* out of its cohort, which goes on without it; returns that of it alone, which is not held."""
        cohort = parked.cohort
        assert cohort is not None
        alone = cohort.apart(parked)
        if cohort.state is HELD:
            assert cohort.stay is not None
            self._hold.leave(cohort.stay)
            alone.state = LOOKING
            if not cohort.members:
                self._waiting.leave(cohort)
                self._reactor.discard_deadline(cohort)
        return alone

    def give_up(self, cohort: Cohort) -> None:
        """Takes all of *cohort* out of the hold, if it is held."""
        if cohort.state is HELD:
            assert cohort.stay is not None
            self._waiting.leave(cohort)
            self._hold.leave(cohort.stay, polls=len(cohort.members))
            cohort.state = LOOKING

    def end(self, cohort: Cohort) -> None:
        """The wait of *cohort* is over: of its group, or of its time."""
        assert cohort.stay is not None
        self._waiting.leave(cohort)
        found = self._hold.leave(cohort.stay, polls=len(cohort.members))
        cohort.state = LOOKING
        if found is None:
            self._look_again(cohort)
        else:
            self._teller.answer(cohort, found)

    def read(self, cohort: Cohort, question: Question, deadline: float) -> None:
        """Looks in the log for *cohort*, which has just come: memory cannot tell."""
        gevent.spawn(self._read, cohort, question, None, deadline)

    def refuse_revoked(self, parked: Parked) -> None:
        """Refuses *parked*, if it has lost the right that its poll was held by."""
        if parked.right is not None and self._hold.lost(*parked.right):
            self._guarded(self._teller.refuse, self.part(parked), Unauthorized(REVOKED))

    def _look_again(self, cohort: Cohort) -> None:
        """Looks in memory, and goes on to wait if there is nothing."""
        stay = cohort.stay
        assert stay is not None
        polls = len(cohort.members)
        found: Any = None
        try:
            found = self._hold.enter_from_memory(
                stay.question, stay.cursor, stay.deadline, stay=stay, polls=polls
            )
        except LegacyPollError as error:
            self._refused(cohort, error, self._look_again)
            return
        if isinstance(found, Stay):
            if self._hold.left(found) > 0 and cohort.slot is not None:
                cohort.state = HELD
                self._waiting.join(cohort, found)
                return
            found = self._hold.leave(found, polls=polls)
        if found is None:
            gevent.spawn(self._read, cohort, stay.question, stay, stay.deadline)
        else:
            self._teller.answer(cohort, found)

    def _refused(self, cohort: Cohort, error: Exception, again: Callable[[Cohort], None]) -> None:
        """*error* came of a look; where there is no room for all of *cohort*, there may be some for one."""
        if not isinstance(error, ServerFull) or len(cohort.members) == 1:
            self._teller.refuse(cohort, error)
            return
        had_deadline = cohort.slot is not None
        self._reactor.discard_deadline(cohort)
        for parked in list(cohort.members):
            if parked.cohort is not cohort:
                continue  # it hung up while there was looked for another
            alone = cohort.apart(parked)
            if had_deadline and alone.stay is not None:
                self._reactor.set_deadline(alone, alone.stay.deadline)
            self._guarded(again, alone)

    def _read(self, cohort: Cohort, question: Question, stay: Optional[Stay], deadline: float) -> None:
        """In a greenlet: what only the log can tell."""
        found: Any = None
        # Others may have been tried before.
        question = replace(question, hold_seconds=max(0.0, deadline - self._clock()))
        while cohort.members:
            polls = len(cohort.members)
            try:
                found = self._hold.enter(question, stay, polls=polls)
            except Exception as error:
                found = error
                break
            for parked in list(cohort.members):
                self.refuse_revoked(parked)
            if not isinstance(found, Stay):
                break
            # Those that hung up meanwhile, or lost their right, do not wait.
            left = len(cohort.members)
            if left < polls:
                self._hold.leave(found, polls=polls - left)
            if left and self._hold.left(found) > 0:
                self.wait(cohort, found)
                return
            stay, found = found, self._hold.leave(found, polls=left) if left else None
            if found is not None:
                break
        if not cohort.members:
            self._reactor.discard_deadline(cohort)
        elif isinstance(found, Batch):
            self._guarded(self._teller.answer, cohort, found)
        else:
            self._guarded(self._refused, cohort, found, lambda one: self._read(one, question, stay, deadline))
