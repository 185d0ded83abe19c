"""Answers to cohorts: rendered once for all who share them, written, counted and logged.

What a client does not take at once is sent aside, in a greenlet of its own, and its connection is a cohort of its own
until then (SENDING); it keeps its place that long.
"""

from __future__ import annotations

import time
from typing import Any, Callable, Dict, Optional, Tuple

import gevent
from werkzeug.datastructures import Headers

from ..admission import Admission
from ..events import Batch
from ..hold import Hold
from ..metrics import Answered, Metrics
from ..wire import Answer, render
from .approvals import Terms
from .cohorts import SENDING, Cohort, Parked
from .gunicorn_seam import GunicornSeam, Rendered
from .sending import TooSlow, send_rest, write_all
from .standard import merged

__all__ = ["Teller"]

#: A larger body is not copied behind its head.
_COPIED_BYTES = 16_384


class Teller:
    """Tells cohorts their answers. Whoever is told has its place of the admission until then.

    Args:
        seam: Renders and logs as the server does.
        hold: Knows whether connections end behind their answers.
        admission: Gets the places back.
        metrics: Told of each answer.
        send_seconds: Longest time for a client to take a piece of an answer.
        guarded: Calls a function with a cohort and more; a fault ends that cohort's connections and nothing else.
        told: Called with a cohort that was told, and whether its connections are to end.
        close: Ends a connection.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        seam: GunicornSeam,
        hold: Hold,
        admission: Admission,
        metrics: Metrics,
        *,
        send_seconds: float,
        guarded: Callable[..., None],
        told: Callable[[Cohort, bool], None],
        close: Callable[[Parked], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seam = seam
        self._hold = hold
        self._admission = admission
        self._metrics = metrics
        self._send_seconds = send_seconds
        self._guarded = guarded
        self._on_told = told
        self._close = close
        self._clock = clock
        self._rendered: Dict[Any, Tuple[Any, Rendered]] = {}

    def forget(self) -> None:
        """Keeps no rendered answer any longer: the next may have another date."""
        self._rendered.clear()

    def answer(self, cohort: Cohort, batch: Batch) -> None:
        """Tells all of *cohort* what came."""
        terms, close = cohort.terms, self._closes
        # Kept for a while in which the batch cannot be another: all who share it are sent the same.
        key = (terms.block, terms.empty_status, close, id(batch) if batch.events else str(batch.cursor))
        found = self._rendered.get(key)
        if found is None:
            answer = render(batch, empty_status=terms.empty_status)
            found = self._rendered[key] = (batch, self._render(terms, answer, close))
        self._tell(cohort, found[1], close, "events" if batch.events else "empty", len(batch.events))

    def refuse(self, cohort: Cohort, error: Exception) -> None:
        """Tells each of *cohort* why it was refused: when to come back is another for each."""
        while len(cohort.members) > 1:
            self._guarded(self.refuse, cohort.apart(next(iter(cohort.members))), error)
        answer, outcome = cohort.terms.refused(error)
        close = self._closes
        self._tell(cohort, self._render(cohort.terms, answer, close), close, outcome, 0)

    def hung_up(self, parked: Parked, cohort: Cohort) -> None:
        """Counts and logs one of *cohort* that is not there to be told."""
        self._admission.leave(cohort.terms.client)
        seconds = self._clock() - cohort.began
        self._metrics.answered(Answered(0, "hangup", seconds, 0, 0))
        self._log(parked, seconds, None)

    @property
    def _closes(self) -> bool:
        return self._hold.draining or not self._seam.alive

    def _render(self, terms: Terms, answer: Answer, close: bool) -> Rendered:
        headers = merged(Headers(list(terms.block.headers)), answer.headers)
        rendered = self._seam.render(headers, answer, close=close)
        if len(rendered.body) <= _COPIED_BYTES:
            rendered.head, rendered.body = rendered.head + rendered.body, b""
        return rendered

    def _tell(self, cohort: Cohort, rendered: Rendered, close: bool, outcome: str, events: int) -> None:
        answer = rendered.answer
        seconds = self._clock() - cohort.began
        ended = Answered(answer.status, outcome, seconds, events, len(answer.body))
        self._metrics.answered(ended, len(cohort.members))
        for parked, sent in write_all(cohort.members, rendered.head, rendered.body):
            alone = cohort.apart(parked)
            alone.state = SENDING
            if sent < 0:
                self._not_told(parked, alone, rendered)
            else:
                gevent.spawn(self._send, parked, alone, rendered, sent, close)
        self._told(cohort, rendered, close)

    def _send(self, parked: Parked, alone: Cohort, rendered: Rendered, sent: int, close: bool) -> None:
        """In a greenlet: what the client has not taken yet."""
        parts = rendered.head, rendered.body
        try:
            send_rest(parked.descriptor, parts, sent, seconds=self._send_seconds)
        except TooSlow:
            self._metrics.cut()
            self._not_told(parked, alone, rendered)
        except OSError:
            self._not_told(parked, alone, rendered)
        else:
            self._guarded(self._told, alone, rendered, close or alone.gone)

    def _not_told(self, parked: Parked, alone: Cohort, rendered: Rendered) -> None:
        self._admission.leave(alone.terms.client)
        self._log(parked, self._clock() - alone.began, rendered)
        self._close(parked)

    def _told(self, cohort: Cohort, rendered: Rendered, close: bool) -> None:
        if self._seam.logs:
            for parked in cohort.members:
                self._log(parked, self._clock() - cohort.began, rendered)
        self._admission.leave(cohort.terms.client, len(cohort.members))
        self._on_told(cohort, close)

    def _log(self, parked: Parked, seconds: float, rendered: Optional[Rendered]) -> None:
        if parked.seen is not None:
            response = rendered.response if rendered is not None else None
            self._seam.log(parked.seen, parked.target, parked.peer, response, seconds, parked.varied)
