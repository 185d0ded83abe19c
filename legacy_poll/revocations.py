"""Who lost the right to read, and when: told by rows of the log, so every worker knows as surely as of an event.

A revocation ends the subject's held polls, outdates its channel tokens that were made before, and is noticed by an
authorisation that is under way: each poll remembers how many revocations this worker had seen when it began.
"""

from __future__ import annotations

import json
import threading
from datetime import datetime, timezone
from typing import Dict, Optional

from .events import REVOKE_CHANNEL, Event

__all__ = ["Revocations"]


class Revocations:
    """What this worker knows of revocations."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_subject: Dict[str, int] = {}
        self._times: Dict[str, float] = {}
        #: How many have been noted.
        self.serial = 0

    def note(self, event: Event) -> Optional[str]:
        """Takes in *event*, of the reserved channel.

        Returns:
            Whose right was revoked; None for an event that says something else.
        """
        subject = json.loads(event.data).get("subject") if event.channel == REVOKE_CHANNEL else None
        if not isinstance(subject, str):
            return None
        moment = datetime.strptime(event.time, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
        with self._lock:
            self.serial += 1
            self._by_subject[subject] = self.serial
            self._times[subject] = max(moment.timestamp(), self._times.get(subject, 0.0))
        return subject

    def happened(self, subject: Optional[str], *, since: int) -> bool:
        """Whether *subject* was revoked after this worker had noted *since* revocations."""
        return subject is not None and self._by_subject.get(subject, 0) > since

    def outdates(self, subject: Optional[str], issued: float) -> bool:
        """Whether a token made for *subject* at *issued*, seconds since 1970, is one from before a revocation."""
        return subject is not None and issued <= self._times.get(subject, float("-inf"))
