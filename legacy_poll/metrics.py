"""What happened, as numbers: hooks that take one frozen record, and Prometheus' text format.

Counters are of this worker process; a scrape meets one worker, and the label ``worker`` says which.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Callable, Dict, List, Mapping, Tuple

__all__ = ["Answered", "Metrics", "Hook"]


@dataclass(frozen=True)
class Answered:
    """One poll that is over.

    Attributes:
        status: Of the answer; 0 when the client hung up, 200 for all that were answered behind a heartbeat.
        outcome: ``events``, ``empty``, ``hangup``, or an error's machine code.
        held_seconds: From the end of the view to the answer.
        events: In the answer.
        body_bytes: Of the answer.
    """

    status: int
    outcome: str
    held_seconds: float
    events: int
    body_bytes: int


Hook = Callable[[Answered], None]

_HELP = {
    "legacy_poll_answers_total": "Polls that are over, by status and outcome.",
    "legacy_poll_held_seconds_total": "Seconds that polls were held.",
    "legacy_poll_events_sent_total": "Events in answers.",
    "legacy_poll_body_bytes_total": "Bytes of answers' bodies.",
}


class Metrics:
    """Counts what the hooks are told."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: Dict[Tuple[int, str], int] = {}
        self._sums: Dict[str, float] = {}

    def answered(self, record: Answered) -> None:
        """Counts one poll."""
        with self._lock:
            key = (record.status, record.outcome)
            self._answers[key] = self._answers.get(key, 0) + 1
            self._add("legacy_poll_held_seconds_total", record.held_seconds)
            self._add("legacy_poll_events_sent_total", record.events)
            self._add("legacy_poll_body_bytes_total", record.body_bytes)

    def counts(self) -> Dict[str, int]:
        """How many polls ended how."""
        with self._lock:
            totals: Dict[str, int] = {}
            for (_, outcome), count in self._answers.items():
                totals[outcome] = totals.get(outcome, 0) + count
            return totals

    def render(self, gauges: Mapping[str, Tuple[str, float]]) -> str:
        """Everything in Prometheus' text format.

        Args:
            gauges: Name -> help and value, as of now.
        """
        worker = 'worker="%d"' % os.getpid()
        with self._lock:
            answers = sorted(self._answers.items())
            sums = sorted(self._sums.items())
        lines = _head("legacy_poll_answers_total", "counter", _HELP["legacy_poll_answers_total"])
        for (status, outcome), count in answers:
            lines.append(
                'legacy_poll_answers_total{%s,status="%d",outcome="%s"} %d' % (worker, status, outcome, count)
            )
        for name, value in sums:
            lines += _head(name, "counter", _HELP[name]) + ["%s{%s} %g" % (name, worker, value)]
        for name, (help, value) in gauges.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += _head(name, kind, help) + ["%s{%s} %.17g" % (name, worker, value)]
        return "\n".join(lines) + "\n"

    def _add(self, name: str, value: float) -> None:
        self._sums[name] = self._sums.get(name, 0) + value


def _head(name: str, kind: str, help: str) -> List[str]:
    return ["# HELP %s %s" % (name, help), "# TYPE %s %s" % (name, kind)]
