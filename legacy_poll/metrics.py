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


#: Settings by which a poll may be refused.
LIMITS = ("max_held", "max_held_per_client", "max_group", "max_catchups", "max_channels")

#: What is longer is counted as this; it also bounds how many different values there can be.
_LONGEST_CUT_SECONDS = 600

Hook = Callable[[Answered], None]

_HELP = {
    "legacy_poll_answers_total": "Polls that are over, by status and outcome.",
    "legacy_poll_refused_total": "Polls refused for want of room, by the setting that refused them.",
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
        # All of them from the start: an alert on a series that is not there yet never fires.
        self._refused = dict.fromkeys(LIMITS, 0)
        self._intermediaries: Dict[int, int] = {}
        #: How many answers were cut off because their client did not take them.
        self.cuts = 0

    def answered(self, record: Answered, polls: int = 1) -> None:
        """Counts *polls* that ended alike."""
        with self._lock:
            key = (record.status, record.outcome)
            self._answers[key] = self._answers.get(key, 0) + polls
            self._add("legacy_poll_held_seconds_total", record.held_seconds * polls)
            self._add("legacy_poll_events_sent_total", record.events * polls)
            self._add("legacy_poll_body_bytes_total", record.body_bytes * polls)

    def cut(self) -> None:
        """Counts one answer that its client did not take in time; it was counted as answered before."""
        with self._lock:
            self.cuts += 1

    def refused(self, limit: str) -> None:
        """Counts one poll that was refused by the setting *limit*."""
        with self._lock:
            self._refused[limit] += 1

    def intermediary(self, cut_seconds: float) -> bool:
        """Notes what a client has found out: something between it and us ends polls after *cut_seconds*.

        Returns:
            Whether nobody has said so before.
        """
        seconds = min(_LONGEST_CUT_SECONDS, max(1, round(cut_seconds)))
        with self._lock:
            new = not self._intermediaries
            self._intermediaries[seconds] = self._intermediaries.get(seconds, 0) + 1
        return new

    def intermediaries(self) -> Dict[int, int]:
        """Seconds -> how many polls came with the word that polls are cut after so many, shortest first."""
        with self._lock:
            return dict(sorted(self._intermediaries.items()))

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
            refused = list(self._refused.items())
        lines = _head("legacy_poll_answers_total", "counter", _HELP["legacy_poll_answers_total"])
        for (status, outcome), count in answers:
            lines.append(
                'legacy_poll_answers_total{%s,status="%d",outcome="%s"} %d' % (worker, status, outcome, count)
            )
        lines += _head("legacy_poll_refused_total", "counter", _HELP["legacy_poll_refused_total"])
        lines += ['legacy_poll_refused_total{%s,limit="%s"} %d' % (worker, *each) for each in refused]
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
