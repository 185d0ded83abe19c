"""Moves by workers on other hosts: NOTIFY on PostgreSQL, sent by the sequencer's own transaction.

Never in a user's transaction: NOTIFY takes a lock at commit that all of the server's notifying transactions share.
The sequencer has one writer at a time anyway.

A LISTEN goes deaf without a sign: after a failover, through a half-open socket, behind PgBouncer in transaction mode
(which swallows it), on a replica. So this listener notifies itself, by another connection, when it has heard nothing
for a while; when that does not arrive either it says so once, and tries again from the beginning with backoff. What
is lost meanwhile is latency: the interval poll always runs.
"""

from __future__ import annotations

import logging
import random
import select
import threading
import time
from typing import Any, Callable, List, Optional

from ..database import Database

__all__ = ["NotifyListener"]

logger = logging.getLogger("legacy_poll")

_PROBE_SECONDS = 15.0
_ANSWER_SECONDS = 3.0
_FIRST_BACKOFF_SECONDS = 1.0
_LAST_BACKOFF_SECONDS = 60.0
#: What comes and goes is said so often in so many seconds, and then only when it has lasted.
_MOST_SAID = 3
_SAID_SECONDS = 600.0
_LASTING_SECONDS = 60.0


class NotifyListener:
    """Calls *wake* when another worker has moved events.

    Args:
        database: Of PostgreSQL; gives a connection of ours.
        wake: Must not block or raise.
        probe_seconds: Longest silence that is believed.
        answer_seconds: Longest wait for a notification of our own.
    """

    def __init__(
        self,
        database: Database,
        wake: Callable[[], None],
        *,
        probe_seconds: float = _PROBE_SECONDS,
        answer_seconds: float = _ANSWER_SECONDS,
    ) -> None:
        self._database = database
        self._wake = wake
        self._probe_seconds = probe_seconds
        self._answer_seconds = answer_seconds
        self._stopped = threading.Event()
        self._failures = 0
        self._told = False
        self._deaf_since: Optional[float] = None
        self._said_at: List[float] = []
        #: Whether notifications are known to arrive.
        self.hears = False

    kind = "notify"

    def start(self) -> None:
        """Listens; in a greenlet where gevent patched threading, else in a thread."""
        threading.Thread(target=self.run, name="legacy_poll notify", daemon=True).start()

    def stop(self) -> None:
        """Ends at the next silence."""
        self._stopped.set()

    def run(self) -> None:
        """Listens until stopped, whatever happens to the connection."""
        while not self._stopped.is_set():
            self._stopped.wait(self.session())

    def session(self) -> float:
        """One connection's life.

        Returns:
            Seconds to wait before the next.
        """
        connection = None
        try:
            connection = self._database.listen()
            self._hear(connection)
        except Exception as error:  # of any driver; whatever it was, hints are only hints
            self._deaf("%s: %s" % (type(error).__name__, str(error).strip().split("\n")[0]))
        finally:
            self.hears = False
            if connection is not None:
                self._database.hang_up(connection)
        bound = min(_LAST_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2**self._failures)
        self._failures = min(self._failures + 1, 10)
        return bound * (0.5 + 0.5 * random.random())

    def _hear(self, connection: Any) -> None:
        asked_at: Optional[float] = None
        heard_at = time.monotonic() - self._probe_seconds  # at first, find out whether this works at all
        while not self._stopped.is_set():
            now = time.monotonic()
            if asked_at is not None and now - asked_at > self._answer_seconds:
                self._deaf("our own did not arrive (a pooler in transaction mode, or a dead connection)")
                return
            if asked_at is None and now - heard_at >= self._probe_seconds:
                asked_at = now
                self._database.notify()
            until = (
                asked_at + self._answer_seconds if asked_at is not None else heard_at + self._probe_seconds
            )
            ready = select.select([connection.fileno()], [], [], max(0.01, until - now))[0]
            heard, news = self._database.dialect.drain_notifications(connection) if ready else (False, False)
            if heard:
                heard_at, asked_at = time.monotonic(), None
                self._failures = 0
                if self._told:
                    logger.warning("legacy_poll: notifications from the database arrive again")
                self._told, self._deaf_since, self.hears = False, None, True
            if news:
                self._wake()

    def _deaf(self, why: str) -> None:
        now = time.monotonic()
        if self._deaf_since is None:
            self._deaf_since = now
        if self._told or self._stopped.is_set():
            return
        self._said_at = [at for at in self._said_at if now - at < _SAID_SECONDS]
        if len(self._said_at) >= _MOST_SAID and now - self._deaf_since < _LASTING_SECONDS:
            return
        self._said_at.append(now)
        self._told = True
        logger.warning(
            "legacy_poll: no notifications from the database, polling every interval instead: %s%s",
            why,
            "; this comes and goes, and is said again only if it lasts"
            if len(self._said_at) >= _MOST_SAID
            else "",
        )
