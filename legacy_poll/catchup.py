"""Reads of the log for polls that the hub cannot serve, shared and few at a time.

After a deploy, thousands of clients return with a handful of different cursors: identical reads become one. A read is
shared only by those who asked before it started, so that nobody is given a state older than the moment they asked.
"""

from __future__ import annotations

import threading
from typing import Any, Callable, Dict, FrozenSet, Hashable, Optional, TypeVar

import gevent.event

from .cursors import Cursor
from .errors import ServerFull
from .eventlog import EventLog
from .events import Batch

__all__ = ["CatchUp", "SingleFlight"]

Result = TypeVar("Result")


class _Flight:
    __slots__ = ("done", "result", "error", "departed")

    def __init__(self, done: Any) -> None:
        self.done = done
        self.result: Any = None
        self.error: Optional[BaseException] = None
        self.departed = False


class SingleFlight:
    """Calls with equal keys share one execution that starts after all of them asked.

    Args:
        at_once: Most executions at a time.
        most_waiting: Most different calls that wait for their turn; one more raises ServerFull.
        make_event: Makes what callers wait on; as for the hub.
    """

    def __init__(
        self, at_once: int, *, most_waiting: int = 1000, make_event: Callable[[], Any] = gevent.event.Event
    ) -> None:
        self._most_waiting = most_waiting
        self._make_event = make_event
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(at_once)
        self._boarding: Dict[Hashable, _Flight] = {}
        self._flying: Dict[Hashable, _Flight] = {}

    def call(self, key: Hashable, function: Callable[[], Result]) -> Result:
        """``function()``, or what an equal call that starts from now on returns or raises."""
        while True:
            with self._lock:
                flight = self._boarding.get(key)
                leads = flight is None
                if flight is None:
                    if len(self._boarding) >= self._most_waiting:
                        raise ServerFull(
                            "%d reads of old events wait already" % self._most_waiting, limit="max_catchups"
                        )
                    flight = self._boarding[key] = _Flight(self._make_event())
                before = self._flying.get(key)
            if leads:
                self._lead(key, flight, before, function)
            else:
                flight.done.wait()
            if flight.error is not None and not isinstance(flight.error, Exception) and not leads:
                continue  # who led it was killed; that is not our end
            if flight.error is not None:
                raise flight.error
            return flight.result

    def _lead(
        self, key: Hashable, flight: _Flight, before: Optional[_Flight], function: Callable[[], Result]
    ) -> None:
        try:
            if before is not None:
                before.done.wait()
            with self._places:
                with self._lock:
                    del self._boarding[key]
                    self._flying[key] = flight
                    flight.departed = True
                flight.result = function()
        except BaseException as error:
            flight.error = error
            raise
        finally:
            with self._lock:
                if not flight.departed:
                    del self._boarding[key]
                elif self._flying.get(key) is flight:
                    del self._flying[key]
            flight.done.set()


class CatchUp:
    """Shared reads of one log.

    Args:
        log: What to read.
        reads: Most reads at once.
        most_waiting: Most different reads that wait for their turn.
        max_bytes: Most bytes of data in one answer.
        max_backlog: Most events behind a poll's cursor; 0 is no limit.
        make_event: Makes what callers wait on; as for the hub.
    """

    def __init__(
        self,
        log: EventLog,
        *,
        reads: int,
        max_bytes: int,
        max_backlog: int = 0,
        most_waiting: int = 1000,
        make_event: Callable[[], Any] = gevent.event.Event,
    ) -> None:
        self._log = log
        self._max_bytes = max_bytes
        self._max_backlog = max_backlog
        #: How many reads there have been.
        self.reads = 0
        self._flights = SingleFlight(reads, most_waiting=most_waiting, make_event=make_event)

    def read_after(
        self, cursor: Optional[Cursor], *, channels: FrozenSet[str], limit: int, first: bool = True
    ) -> Batch:
        """As :meth:`EventLog.read_after`; *first* as for :meth:`Hub.join`."""
        max_backlog = self._max_backlog if first else 0
        return self._flights.call(
            (cursor, channels, limit, max_backlog),
            lambda: self._read(cursor, channels, limit, max_backlog),
        )

    def _read(
        self, cursor: Optional[Cursor], channels: FrozenSet[str], limit: int, max_backlog: int
    ) -> Batch:
        self.reads += 1
        return self._log.read_after(
            cursor,
            channels=channels,
            limit=limit,
            max_bytes=self._max_bytes,
            max_backlog=max_backlog,
        )

    def head(self) -> Cursor:
        """The cursor behind everything, not older than anything that was answered anywhere before this call.

        Raises:
            StorageUnavailable: The database failed.
        """
        return self._flights.call("head", lambda: self._log.bounds().cursor)
