"""A log in memory that keeps the promises of `legacy_poll.eventlog.EventLog`, and acts inside calls when told to.

`during_read` holds functions; each `read_after` takes the first one and calls it when it has looked and has not
returned yet. That is where a race is scripted: what such a function commits, trims or delivers happened "meanwhile".
"""

from __future__ import annotations

from legacy_poll.cursors import Cursor, check_of, short_log
from legacy_poll.errors import BacklogTooLarge, CursorExpired, CursorUnknown
from legacy_poll.eventlog import Bounds, Glance, Trimmed
from legacy_poll.events import Batch, Event
from legacy_poll.hub import cut
from legacy_poll.sequencer import Moved

TIME = "2026-01-02T03:04:05.678Z"


class MemoryLog:
    """Events have positions from 1; what is in `outbox` has none yet."""

    trim_rows = 500

    def __init__(self, log_id="log"):
        self.log_id = log_id
        self.events = []
        self.outbox = []
        self.oldest = 1
        self.reads = []
        self.during_read = []
        self.failure = None
        self.trims = 0
        self.trimmed = 0
        self.trimmed_by = []
        self.beginnings = 0

    @property
    def head(self):
        return self.events[-1].position if self.events else 0

    def append(self, channel, data="1", id=None, type="message"):
        """One event with the next position; returns it."""
        event = Event(self.head + 1, id or "id-{}".format(self.head + 1), channel, type, data, TIME, None)
        self.events.append(event)
        return event

    def cursor(self, position=None):
        """The cursor behind *position*, by default behind everything."""
        position = self.head if position is None else position
        return Cursor.at(self.log_id, position, self._id_at(position), self._mark_at(position))

    def erase(self, positions):
        """What `legacy-poll erase` leaves of the events there; nobody is told yet."""
        for number, event in enumerate(self.events):
            if event.position in positions:
                new_id = "new-{}".format(event.position)
                self.events[number] = Event(
                    event.position, new_id, "$erased", "erased", "null", event.time, event.check
                )

    def forget(self, oldest):
        """A trim: nothing before *oldest* can be read any more."""
        self.oldest = oldest

    def cut_back(self, position):
        """A restored backup: what came after *position* never was."""
        self.events = [event for event in self.events if event.position <= position]

    def replace(self, log_id="another log"):
        """Another log, empty."""
        self.log_id, self.events, self.oldest = log_id, [], 1

    def _id_at(self, position):
        found = [event.id for event in self.events if event.position == position]
        return found[0] if found else None

    def _mark_at(self, position):
        found = [event.mark for event in self.events if event.position == position]
        return found[0] if found else None

    # What the flow rooms call.

    def glance(self):
        self._fail()
        return Glance(
            self.log_id,
            self.head,
            self.oldest,
            self._id_at(self.head),
            TIME,
            bool(self.outbox),
            head_mark=self._mark_at(self.head),
        )

    def bounds(self):
        self._fail()
        return Bounds(self.log_id, self.head, self.oldest, self._id_at(self.head), self._mark_at(self.head))

    def cursor_at(self, position):
        self._fail()
        return self.cursor(position)

    def read_after(self, cursor, *, channels, limit, max_bytes, max_backlog=0):
        self.reads.append(cursor)
        self._fail()
        batch = self._read(cursor, channels, limit, max_bytes, max_backlog)
        if self.during_read:
            self.during_read.pop(0)()
        return batch

    def _read(self, cursor, channels, limit, max_bytes, max_backlog):
        if cursor is not None:
            if cursor.log != short_log(self.log_id) or cursor.position > self.head:
                raise CursorUnknown("cursor %s is not of this log" % cursor)
            if cursor.position + 1 < self.oldest:
                raise CursorExpired("cursor %s is too old" % cursor)
            if cursor.check != check_of(self._id_at(cursor.position), self._mark_at(cursor.position)):
                raise CursorUnknown("cursor %s is of an earlier life" % cursor)
        start = self.oldest - 1 if cursor is None else cursor.position
        found = [each for each in self.events if each.position > start and each.channel in channels]
        if max_backlog and len(found) > max_backlog:
            raise BacklogTooLarge.behind(cursor, max_backlog)
        return cut(found, self.cursor(), limit, max_bytes) if found else Batch((), self.cursor())

    def read_new(self, position, *, upto, limit, max_bytes):
        self._fail()
        events = [each for each in self.events if position < each.position <= upto]
        there = self._id_at(position) if position >= self.oldest - 1 else None
        kept = [each for each in events if each.position >= self.oldest - 1]
        return None if there is None else check_of(there, self._mark_at(position)), kept[:limit]

    def read_at(self, first, last):
        self._fail()
        return [each for each in self.events if first <= each.position <= last]

    def begin_anew(self):
        self.beginnings += 1

    def trim(self, now, *, batches=20):
        self._fail()
        self.trims += 1
        self.trimmed_by.append(now)
        return Trimmed(self.trimmed, more=self.trimmed >= self.trim_rows)

    def _fail(self):
        if self.failure is not None:
            raise self.failure


class MemorySequencer:
    """Moves the rows of a MemoryLog's outbox, when nobody else has the lock."""

    def __init__(self, log):
        self._log = log
        self.most = 500
        self.busy = False
        self.set_aside = ()
        self.holder = "pid 4711"
        self.asked = 0
        self.brought = 0
        self.apart = []

    def move(self, glance):
        if self.busy:
            return Moved(busy=True)
        rows, self._log.outbox = self._log.outbox[: self.most], self._log.outbox[self.most :]
        moved = tuple(self._log.append(channel) for channel in rows)
        return Moved(moved, self.set_aside, more=bool(self._log.outbox))

    def bring_back(self):
        self.brought += 1
        return self.apart and self.apart.pop(0)

    def lock_holder(self):
        self.asked += 1
        if isinstance(self.holder, Exception):
            raise self.holder
        return self.holder


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def positions(batch):
    """Where the events of *batch* stand: [1, 2, 3]."""
    return [event.position for event in batch.events]


def feed(hub, log, upto=None):
    """Delivers to *hub* what it lacks of *log*, as a publisher does; primes it first if need be."""
    if hub.cursor is None:
        hub.prime(log.cursor(0))
    upto = log.head if upto is None else upto
    events = [each for each in log.events if hub.cursor.position < each.position <= upto]
    hub.deliver(events, log.cursor(max(upto, hub.cursor.position)))


def assert_empty(hub):
    """Nothing is left of the groups once all have left: no poll, no group, no channel."""
    assert hub.held == 0
    assert hub.groups == 0
    assert not hub._groups_on, "channels without polls: {}".format(sorted(hub._groups_on))
