"""One loop per worker: look, sequence, read, deliver, trim, and look again.

Rules. A tick does one step and says how long to pause; :meth:`Publisher.run` only repeats it. A tick's cost does not
depend on the number of clients. The position moves when ``hub.deliver`` has returned, and not before. Whatever the
database does, the loop goes on: it backs off with jitter, says so once, and says once that it is over.

Interleavings guarded against: the log replaced or cut back under a running worker (its id, or the mark of the event
at our position, is another: the hub starts afresh, and everybody who waits looks again); events that are not there any
more when this worker comes to read them, since it was stopped for long or somebody deleted rows (memory starts behind
them, once for all such places in what was read); a hint that comes before its commit.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from bisect import bisect_left
from typing import Callable, List, Optional, Sequence, Tuple

from .config import Settings
from .cursors import Cursor, check_of
from .errors import LegacyPollError, SchemaError, StorageUnavailable
from .eventlog import EventLog, Glance
from .events import ERASE_CHANNEL, RESERVED_PREFIX, Event, positions_in, said, seconds_of
from .hub import Hub
from .sequencer import Moved, Sequencer
from .storage.ages import SteadyClock

__all__ = ["Publisher"]

logger = logging.getLogger("legacy_poll")

#: After a hint: it may come before its commit, so look several times. Seconds between the looks, unless the interval is
#: shorter. The last ones are for commits that take long (a slow disk) where the interval is long too.
_AFTER_HINT = (0.0, 0.001, 0.004, 0.015, 0.04, 0.14, 0.8)
#: While events flow, look this often, seconds; doubled at every look without any, up to the interval.
_BUSY_SECONDS = 0.005
#: After a find, while nothing says that there is more, seconds: what commits meanwhile is moved at once and not one by
#: one. Beside publishers at full speed this saves a third of the worker's and the database's time.
_BREATH_SECONDS = 0.004
#: Longest time between two calls of what the process wants watched, seconds.
_WATCH_SECONDS = 0.25
_READ_EVENTS = 1000
_READ_BYTES = 8 * 1024 * 1024
_FIRST_BACKOFF_SECONDS = 0.1
_LAST_BACKOFF_SECONDS = 2.0
#: A lock on the log held for longer than this is named in the log, seconds.
_LOCK_PATIENCE_SECONDS = 1.0
#: How often it is tried to bring back what is apart, seconds; half as long on average with two workers.
_BRING_BACK_SECONDS = 2.0
#: After a trim that failed, the next one comes so soon, seconds, or at its interval.
_TRIM_AGAIN_SECONDS = 10.0
#: Most places of missing events that are named in the log, for one read.
_HOLES_NAMED = 5
#: Positions that are looked at again at once, after an erasure.
_ERASED_AT_ONCE = 1000
_BLOCKED_ADVICE = (
    " (a job that copies legacy_poll_event must do so at READ COMMITTED, or it locks the end of the table)"
)


class Publisher:
    """Feeds a hub from a log.

    Args:
        log: The event log.
        sequencer: For the same database.
        hub: Who is told.
        settings: Intervals.
        check: Looks at the schema once; raises or returns a warning.
        faults: Looks at the tables from time to time; says what is wrong with them.
        on_reserved: Called with the events of reserved channels, before they are delivered.
        on_prime: Called when the hub is about to start afresh; when it fails, so does the tick, and the next calls it
            again.
        watch: Called before every tick, also while the database fails; what it does must be quick.
        clock: Seconds, monotonic.
        wall: This host's time, seconds since 1970.
        steady: What may be believed of the database's time; by default a SteadyClock.
        jitter: A number from 0 to 1.
    """

    def __init__(
        self,
        log: EventLog,
        sequencer: Sequencer,
        hub: Hub,
        settings: Settings,
        *,
        check: Callable[[], Optional[str]],
        faults: Callable[[], List[str]] = lambda: [],
        on_reserved: Callable[[List[Event]], None] = lambda events: None,
        on_prime: Callable[[], None] = lambda: None,
        watch: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        steady: Optional[Callable[[str], str]] = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._log = log
        self._sequencer = sequencer
        self._hub = hub
        self._settings = settings
        self._check = check
        self._faults = faults
        self._on_reserved = on_reserved
        self._on_prime = on_prime
        self._watch = watch
        self._clock = clock
        self._wall = wall
        self._steady = SteadyClock(wall=wall) if steady is None else steady
        self._jitter = jitter
        self._stopped = threading.Event()
        self._woken = threading.Event()
        self._looks: List[float] = []
        self._quiet_seconds = settings.poll_interval_seconds
        self._checked = False
        self._failures = 0
        self._starting = threading.Lock()
        self._thread: Optional[threading.Thread] = None
        # The last place of missing events that was said, of this log.
        self._hole: Tuple[str, int] = ("", 0)
        self._said = ""
        self._clock_said = self._apart_said = False
        self._bring_failure = ""
        self._trim_failures = 0
        self._bring_at = clock()
        self._erased: List[Tuple[int, int]] = []
        # The database's time at the last look, and this host's before and after it.
        self._times: Optional[Tuple[str, float, float]] = None
        self._trim_at = clock() + settings.trim_interval_seconds * jitter()
        self._busy_since: Optional[float] = None
        self._busy_head = -1
        self._busy_named = False
        #: Since the start: looks, events moved, rows set aside, outages.
        self.ticks = self.moved = self.set_aside = self.outages = 0
        #: Set once there has been a tick, whatever became of it.
        self.looked = threading.Event()
        #: Why the last tick failed; None when it did not.
        self.failure: Optional[LegacyPollError] = None

    @property
    def live(self) -> bool:
        """Whether the last tick worked, and the hub has a position."""
        return self.failure is None and self._hub.cursor is not None

    def start(self) -> None:
        """Starts the loop: a greenlet where gevent patched threading, else a thread of its own."""
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self.run, name="legacy_poll publisher", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Ends the loop after the tick under way."""
        self._stopped.set()
        self._woken.set()

    def join(self, seconds: float) -> None:
        """Waits for the loop's end after :meth:`stop`, no longer than *seconds*."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(seconds)

    def wake(self) -> None:
        """A hint: something may have been committed, or is about to be."""
        self._looks = list(_AFTER_HINT)
        self._woken.set()

    def wake_once(self) -> None:
        """A hint that comes after the commit: there is something to read now."""
        self._woken.set()

    def run(self) -> None:
        """Ticks until stopped."""
        while not self._stopped.is_set():
            left = self.step()
            self.looked.set()
            while left > 0 and not self._woken.wait(min(left, _WATCH_SECONDS)):
                self._watch()
                left -= _WATCH_SECONDS
            self._woken.clear()
            self._watch()

    def step(self) -> float:
        """One tick, whatever becomes of it.

        Returns:
            Seconds to pause before the next, if no hint comes.
        """
        try:
            found = self.tick()
        except SchemaError as error:
            return self._failed(error)
        except StorageUnavailable as error:
            return self._failed(error)
        except Exception as error:  # a fault of ours must not end the only loop; it is logged whole
            fault = StorageUnavailable("internal error: %s: %s" % (type(error).__name__, error))
            if str(self.failure) != str(fault):
                logger.exception("legacy_poll: a tick failed")
            return self._failed(fault)
        if self.failure is not None:
            logger.warning("legacy_poll: the database works again")
            self.failure = None
        self._failures = 0
        return self._pause(*found)

    def tick(self) -> Tuple[bool, bool]:
        """Looks once, and does what there is to do.

        Returns:
            Whether there was anything, and whether there is more of it.

        Raises:
            StorageUnavailable: The database failed; nothing was lost, the next tick goes on from the same place.
            SchemaError: The tables are not for this code.
        """
        if not self._checked:
            warning = self._check()
            if warning:
                logger.warning("legacy_poll: %s", warning)
            self._said = warning or ""
            self._checked = True
        self.ticks += 1
        before = self._wall()
        glance = self._log.glance()
        self._times = (glance.now, before, self._wall())
        if self._is_other_log(glance):
            self._prime(glance)
        moved = Moved()
        if glance.waiting:
            moved = self._move(glance)
        else:
            self._busy_since = None
        found = self._deliver(glance, moved)
        if not moved.events:
            self._hub.end_beyond(glance.head)
        if self._erased:
            self._forget_erased()
        if glance.apart_from is None:
            self._apart_said = False
            self._bring_failure = ""
        elif self._clock() >= self._bring_at:
            self._bring_back()
        if self._clock() >= self._trim_at:
            self._trim(glance)
        found = found or moved.more
        return found, moved.more or (found and self._is_behind(glance))

    def _is_other_log(self, glance: Glance) -> bool:
        ours, theirs = self._hub.cursor, glance.cursor
        if ours is None or ours.log != theirs.log or ours.position > theirs.position:
            return True
        return ours.position == theirs.position and ours.check != theirs.check

    def _is_behind(self, glance: Glance) -> bool:
        ours = self._hub.cursor
        return ours is not None and ours.position < glance.head

    def _prime(self, glance: Glance) -> None:
        start = max(glance.oldest - 1, glance.head - self._settings.tail_events, 0)
        cursor = self._log.cursor_at(start)
        if self._hub.cursor is not None:
            logger.warning(
                "legacy_poll: the log is not the one that was there, or events are missing from it; "
                "every client's cursor is checked again (was %s, now %s)",
                self._hub.cursor,
                glance.cursor,
            )
            self._log.begin_anew()
            self._hole = ("", 0)
        self._on_prime()
        self._hub.prime(cursor)

    def host_time_of(self, database_time: str) -> float:
        """What this host's clock said, or would have said, at a time of the database's clock.

        Args:
            database_time: RFC 3339, UTC, milliseconds.

        Returns:
            Seconds since 1970, as exact as the last look at the database was quick.
        """
        moment = seconds_of(database_time)
        if self._times is None:
            return moment
        now, before, after = self._times
        return moment + (before + after) / 2 - seconds_of(now)

    def _move(self, glance: Glance) -> Moved:
        moved = self._sequencer.move(glance)
        self.moved += len(moved.events)
        self.set_aside += len(moved.set_aside)
        for outbox_id, reason in moved.set_aside:
            logger.warning("legacy_poll: outbox row %s was set aside: %s", outbox_id, reason)
        if not moved.busy:
            self._busy_since = None
        elif self._busy_since is None or self._busy_head != glance.head:
            self._busy_since, self._busy_head, self._busy_named = self._clock(), glance.head, False
        elif self._clock() - self._busy_since >= _LOCK_PATIENCE_SECONDS and not self._busy_named:
            self._busy_named = True
            logger.warning(
                "legacy_poll: %s for over a second, and committed events wait for it; held by: %s%s",
                "a lock on rows that a move writes has been held"
                if moved.blocked
                else "the lock on legacy_poll_log has been held",
                self._lock_holder(),
                _BLOCKED_ADVICE if moved.blocked else "",
            )
        return moved

    def _lock_holder(self) -> str:
        try:
            return self._sequencer.lock_holder() or "nobody that this user may see"
        except StorageUnavailable as error:
            return "unknown (%s)" % error

    def _deliver(self, glance: Glance, moved: Moved) -> bool:
        ours = self._hub.cursor
        assert ours is not None
        if moved.events and ours.position == glance.head:
            # What this worker moved itself it need not read.
            self._deliver_events(ours, list(moved.events))
            return True
        head = moved.events[-1].position if moved.events else glance.head
        if head <= ours.position:
            return bool(moved.events)
        there, events = self._log.read_new(
            ours.position, upto=head, limit=_READ_EVENTS, max_bytes=_READ_BYTES
        )
        if ours.check != (check_of(None) if there is None else there):
            self._prime(glance)
            return True
        following = [
            event for number, event in enumerate(events, ours.position + 1) if event.position == number
        ]
        if following:
            self._deliver_events(ours, following)
        else:
            self._pass_holes(glance, _holes(ours.position, events) or [(ours.position + 1, head)])
        return True

    def _pass_holes(self, glance: Glance, holes: Sequence[Tuple[int, int]]) -> None:
        """Starts behind the last of *holes*: first and last positions where nothing is any more."""
        last = holes[-1][1]
        log_id, said_to = self._hole
        new = [hole for hole in holes if log_id != glance.log_id or hole[1] > said_to]
        for hole in new[:_HOLES_NAMED]:
            logger.warning(
                "legacy_poll: the events from position %d to %d are missing from the log: deleted by hand, or trimmed "
                "before this worker had read them; clients that have not seen them are told (410 cursor_expired)",
                *hole,
            )
        if len(new) > _HOLES_NAMED:
            logger.warning(
                "legacy_poll: so are events in %d more places, up to position %d",
                len(new) - _HOLES_NAMED,
                last,
            )
        if new:
            self._hole = (glance.log_id, last)
        self._on_prime()
        self._hub.prime(self._log.cursor_at(last))

    def _deliver_events(self, ours: Cursor, events: List[Event]) -> None:
        reserved = [event for event in events if event.channel.startswith(RESERVED_PREFIX)]
        if reserved:
            self._on_reserved(reserved)
        last = events[-1]
        self._hub.deliver(events, ours.after(last.position, last.id, last.mark))
        for event in reserved:
            if event.channel == ERASE_CHANNEL:
                self._erased += positions_in(said(event)) or []

    def _forget_erased(self) -> None:
        # What the log says is there now, whatever the event says: so nobody can make memory forget what was not erased.
        # Erased ones lie scattered, so the log is read in parts and not for each of them.
        erased = _positions(self._erased, *self._hub.span)
        begin = 0
        while begin < len(erased):
            end = bisect_left(erased, erased[begin] + _ERASED_AT_ONCE, begin)
            part, begin = erased[begin:end], end
            there = {event.position: event for event in self._log.read_at(part[0], part[-1])}
            self._hub.replace([there[position] for position in part if position in there])
            gone = [position for position in part if position not in there]
            if gone:
                # Trimmed before this look, or deleted. So only the log can tell those who are before it.
                self._hub.forget(gone[-1])
        self._erased.clear()

    def _bring_back(self) -> None:
        # Set first: what fails must not fail every tick.
        self._bring_at = self._clock() + _BRING_BACK_SECONDS * (0.75 + 0.5 * self._jitter())
        if not self._apart_said:
            self._apart_said = True
            logger.warning(
                "legacy_poll: another session has the end of legacy_poll_event locked; events go to legacy_poll_apart "
                "meanwhile, and arrive as ever; locked by: %s%s",
                self._lock_holder(),
                _BLOCKED_ADVICE,
            )
        try:
            if self._sequencer.bring_back():
                self._bring_at = self._clock()
            self._bring_failure = ""
        except StorageUnavailable as error:
            # Events arrive from where they are.
            if self._bring_failure != str(error):
                self._bring_failure = str(error)
                logger.warning("legacy_poll: events stay in legacy_poll_apart: %s", error)

    def _trim(self, glance: Glance) -> None:
        # The interval, spread over the workers. Set first: a trim that fails must not fail every tick.
        interval = self._settings.trim_interval_seconds
        self._trim_at = self._clock() + interval * (0.75 + 0.5 * self._jitter())
        self._look_at_tables()
        now = self._steady(glance.now)
        ahead = getattr(self._steady, "ahead_seconds", 0.0)
        if ahead and not self._clock_said:
            logger.warning(
                "legacy_poll: the database's clock is %d s ahead of this host's, or has jumped by as much: events are "
                "trimmed by the earlier time; when the clocks are right, restart the workers",
                ahead,
            )
        self._clock_said = bool(ahead)
        try:
            more = self._log.trim(now, batches=1).more
        except StorageUnavailable as error:
            # Events arrive: no outage, unless the next look says so. Said when it happens again.
            self._trim_failures += 1
            self._trim_at = min(self._trim_at, self._clock() + _TRIM_AGAIN_SECONDS)
            if self._trim_failures == 2:
                logger.warning("legacy_poll: old events cannot be trimmed: %s", error)
            return
        if self._trim_failures > 1:
            logger.warning("legacy_poll: old events are trimmed again")
        self._trim_failures = 0
        if more:
            self._trim_at = self._clock()  # there is more, but other ticks come between

    def _look_at_tables(self) -> None:
        """Says, once, what somebody has done to the tables since the start, while events go on as long as they can."""
        faults = self._faults()
        for fault in faults:
            if fault not in self._said:
                logger.warning("legacy_poll: %s", fault)
        self._said = "; ".join(faults)

    def _pause(self, found: bool, more: bool) -> float:
        interval = self._settings.poll_interval_seconds
        if found:
            self._looks = []  # what was hinted at is there; what else may come is looked for soon enough
            self._quiet_seconds = min(_BUSY_SECONDS, interval)
            return 0.0 if more else min(_BREATH_SECONDS, interval)
        if self._looks:
            return min(self._looks.pop(0), interval)
        pause = self._quiet_seconds
        self._quiet_seconds = min(self._quiet_seconds * 2, interval)
        return pause

    def _failed(self, error: LegacyPollError) -> float:
        # Once for each kind: an outage shows as a cut connection, a refused one, then a database that starts.
        if self.failure is None:
            self.outages += 1
        if type(self.failure) is not type(error):
            logger.error("legacy_poll: %s", error)
        self.failure = error
        self._looks = []
        bound = min(_LAST_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2**self._failures)
        self._failures = min(self._failures + 1, 10)
        return bound * (0.5 + 0.5 * self._jitter())


def _holes(position: int, events: Sequence[Event]) -> List[Tuple[int, int]]:
    """The first and last positions that are missing behind *position*, up to the last of *events*."""
    holes = []
    for event in events:
        if event.position > position + 1:
            holes.append((position + 1, event.position - 1))
        position = event.position
    return holes


def _positions(ranges: Sequence[Tuple[int, int]], first: int, last: int) -> List[int]:
    """Those from *first* to *last* that are in one of *ranges*, in order."""
    found: List[int] = []
    behind = first
    for low, high in sorted(ranges):
        found.extend(range(max(low, behind), min(high, last) + 1))
        behind = max(behind, high + 1)
    return found
