"""The outbox's near end, and the log's far end: append in the caller's transaction, read after a position, trim.

Rules. An append is one row in the transaction that the caller commits. A read never answers "nothing" for events that
vanished under it: the oldest retained position is read again after the events. An empty read says how far it looked,
so that a quiet channel's cursor moves on.

Interleavings guarded against: a trim between the look at ``oldest`` and the events; a log that was replaced, cut back
or restored since the cursor was given out (the id at the cursor's position is compared, in the same statement as the
bounds).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, FrozenSet, List, Optional, Tuple

from sqlalchemy import bindparam, delete, func, insert, literal_column, select, update
from sqlalchemy.engine import Connection

from .backlog import NO_MARK, Backlog
from .config import Settings
from .cursors import Cursor, check_of, short_log
from .database import Database
from .errors import BacklogTooLarge, CursorExpired, CursorUnknown, SchemaMissing, StorageBusy
from .events import (
    REVOKE_CHANNEL,
    Batch,
    Event,
    check_event_id,
    check_name,
    check_subject,
    encode_data,
    new_event_id,
)
from .tables import event, log, outbox

__all__ = ["EventLog", "Bounds", "Glance", "append", "append_revocation"]

#: Rows fetched at once, so that a page of the largest events stays small in memory.
_PAGE_ROWS = 100
_TRIM_ROWS = 500
_INSERT = insert(outbox).inline()
_HEAD_ID = select(event.c.id).where(event.c.position == log.c.head).scalar_subquery()
_ID_AT = select(event.c.id).where(event.c.position == bindparam("at")).scalar_subquery()
# In id order, so that it is found by the key from the mark on: a scan would walk over every dead row before it.
_WAITING = (
    select(literal_column("1"))
    .select_from(outbox)
    .where(outbox.c.id > bindparam("mark"))
    .order_by(outbox.c.id)
    .limit(1)
    .scalar_subquery()
)


@dataclass(frozen=True)
class Bounds:
    """What the log holds, at one moment.

    Attributes:
        log_id: Made with the schema, and anew by ``legacy-poll new-log``.
        head: The last position given; 0 in an empty log.
        oldest: The first position retained; ``head + 1`` when none is.
        head_id: Id of the event at *head*; None at 0.
    """

    log_id: str
    head: int
    oldest: int
    head_id: Optional[str]

    @property
    def cursor(self) -> Cursor:
        """Behind everything."""
        return Cursor.at(self.log_id, self.head, self.head_id)


@dataclass(frozen=True)
class Glance:
    """What a tick looks at first.

    Attributes:
        log_id: As in :class:`Bounds`.
        head: As in :class:`Bounds`.
        oldest: As in :class:`Bounds`.
        head_id: As in :class:`Bounds`; tells a restored log from the one that was there.
        now: The database's time: RFC 3339, UTC, milliseconds.
        waiting: Whether the outbox has rows, or may have.
        sweep: Whether it must be looked at from its beginning.
    """

    log_id: str
    head: int
    oldest: int
    head_id: Optional[str]
    now: str
    waiting: bool
    sweep: bool = True

    @property
    def cursor(self) -> Cursor:
        """Behind everything."""
        return Cursor.at(self.log_id, self.head, self.head_id)


def append(
    where: Any,
    channel: str,
    data: Any,
    *,
    type: str = "message",
    id: Optional[str] = None,
    max_event_bytes: int = 262_144,
) -> str:
    """Adds one event to the transaction that is open on *where*; it exists if and only if that one commits.

    Args:
        where: A Session, a scoped session or a Connection.
        channel: 1 to 200 characters of ``A-Z a-z 0-9 _ . : / @ ~ + = -``.
        data: Any JSON value.
        type: Like a channel's name.
        id: Like a channel's name, at most 100 characters; by default a new UUID. An id that the log already retains
            is not delivered again.
        max_event_bytes: Most bytes of *data* as JSON text.

    Returns:
        The event's id.

    Raises:
        InvalidEvent: A name or the data breaks its rule; nothing was added.
        EventTooLarge: *data* is too large; nothing was added.
    """
    row = {
        "event_id": check_event_id(id),
        "channel": check_name("channel", channel),
        "type": check_name("type", type),
        "data": encode_data(data, max_bytes=max_event_bytes),
    }
    where.execute(_INSERT, row)
    return row["event_id"]


def append_revocation(where: Any, subject: str) -> None:
    """Adds the revocation of *subject* to the transaction that is open on *where*.

    Raises:
        InvalidEvent: *subject* is empty or not text.
    """
    check_subject(subject)
    row = {
        "event_id": new_event_id(),
        "channel": REVOKE_CHANNEL,
        "type": "revoke",
        "data": encode_data({"subject": subject}, max_bytes=4096),
    }
    where.execute(_INSERT, row)


class EventLog:
    """Reads and trims the log of one database.

    Args:
        database: Where the tables are.
        settings: Retention.
        backlog: The low-water mark that the sequencer keeps; without one every look is at the whole outbox.
    """

    #: Rows that one batch of a trim deletes.
    trim_rows = _TRIM_ROWS

    def __init__(self, database: Database, settings: Settings, *, backlog: Optional[Backlog] = None) -> None:
        self._database = database
        self._settings = settings
        self._backlog = backlog or Backlog(database.dialect)
        now: Any = literal_column(database.dialect.now_sql)
        snapshot: Any = literal_column(database.dialect.snapshot_sql or "NULL")
        self._glance = select(log.c.log_id, log.c.head, log.c.oldest, _HEAD_ID, now, _WAITING, snapshot)

    def glance(self) -> Glance:
        """Whether there is anything to do: one cheap query.

        Raises:
            StorageUnavailable: The database failed.
        """
        backlog = self._backlog
        row = self._database.read(
            lambda connection: connection.execute(self._glance, {"mark": backlog.mark}).first()
        )
        if row is None:
            raise SchemaMissing("legacy_poll_log is empty; run: legacy-poll upgrade")
        sweep = backlog.needs_sweep(row[6])
        # With a mark, only a sweep can tell that there is nothing.
        waiting = row[5] is not None or (sweep and backlog.mark != NO_MARK)
        return Glance(row[0], row[1], row[2], row[3], row[4], waiting, sweep)

    def bounds(self) -> Bounds:
        """What the log holds now.

        Raises:
            StorageUnavailable: The database failed.
        """
        return self._database.read(lambda connection: _bounds(connection, 0)[0])

    def time_at(self, position: int) -> Optional[str]:
        """When the event at *position* entered the log; None when there is none.

        Raises:
            StorageUnavailable: The database failed.
        """
        query = select(event.c.published_at).where(event.c.position == position)
        found: Optional[str] = self._database.read(lambda connection: connection.execute(query).scalar())
        return found

    def cursor_since(self, seconds: float) -> Cursor:
        """The cursor before the events of the last *seconds*, by the database's clock.

        Raises:
            StorageUnavailable: The database failed.
        """
        glance = self.glance()

        def find(connection: Connection) -> int:
            return self._first_young(connection, _bounds(connection, 0)[0], _earlier(glance.now, seconds))

        return self.cursor_at(self._database.read(find) - 1)

    def cursor_at(self, position: int) -> Cursor:
        """The cursor behind *position*, which must be retained, or 0, or the last one trimmed.

        Raises:
            StorageUnavailable: The database failed.
        """
        bounds, id_there = self._database.read(lambda connection: _bounds(connection, position))
        return Cursor.at(bounds.log_id, position, id_there)

    def read_after(
        self,
        cursor: Optional[Cursor],
        *,
        channels: Optional[FrozenSet[str]],
        limit: int,
        max_bytes: int,
        max_backlog: int = 0,
    ) -> Batch:
        """Events on *channels* after *cursor*, oldest first.

        Args:
            cursor: Where the client is; None is before the oldest that is retained.
            channels: Names, already authorised; None is all of them.
            limit: Most events to return, at least 1.
            max_bytes: Most bytes of data to return; the first event is returned whatever its size.
            max_backlog: Most events after *cursor*, on *channels*; 0 is no limit.

        Returns:
            Batch; its cursor is where to go on, also when it is empty.

        Raises:
            BacklogTooLarge: There are more than *max_backlog*.
            CursorExpired: Events after *cursor* have been trimmed.
            CursorUnknown: *cursor* is of another log, or of an earlier life of this one.
            StorageUnavailable: The database failed; the caller may try again.
        """
        return self._database.read(
            lambda connection: self._read(connection, cursor, channels, limit, max_bytes, max_backlog)
        )

    def _read(
        self,
        connection: Connection,
        cursor: Optional[Cursor],
        channels: Optional[FrozenSet[str]],
        limit: int,
        max_bytes: int,
        max_backlog: int,
    ) -> Batch:
        bounds, id_there = _bounds(connection, cursor.position if cursor else 0)
        if cursor is None:
            start = bounds.oldest - 1
        else:
            _verify(cursor, bounds, id_there)
            start = cursor.position
        events, more = _pages(connection, start, bounds.head, channels, limit, max_bytes)
        backlog = len(events)
        if max_backlog and more and backlog <= max_backlog:
            # Only behind a cut is there anything to count, and never more of it than tells.
            last = events[-1].position
            backlog += _count(connection, last, bounds.head, channels, max_backlog + 1 - backlog)
        still = connection.execute(select(log.c.log_id, log.c.oldest)).first()
        if still is None or still[0] != bounds.log_id:
            raise CursorUnknown("the log was replaced")
        if still[1] > start + 1:
            if cursor is not None:
                raise _expired(cursor, still[1])
            return self._read(connection, None, channels, limit, max_bytes, max_backlog)
        if max_backlog and backlog > max_backlog:
            raise BacklogTooLarge.behind(cursor, max_backlog)
        if more:
            return Batch(tuple(events), bounds.cursor.after(events[-1].position, events[-1].id), True)
        return Batch(tuple(events), bounds.cursor)

    def read_new(self, position: int, *, upto: int, limit: int, max_bytes: int) -> List[Event]:
        """Everything from *position* itself to *upto*, oldest first; for a publisher that checks what it gets.

        The event at *position* is there too (unless it is 0, or was trimmed), so that the reader can see that it is
        still the one it knows.

        Raises:
            StorageUnavailable: The database failed.
        """
        return self._database.read(
            lambda connection: _pages(connection, position - 1, upto, None, limit, max_bytes)[0]
        )

    def trim(self, now: str, *, batches: int = 20) -> int:
        """Deletes what is older or more than the settings keep, in small transactions.

        ``oldest`` moves first, so that a reader finds out before events are gone. The last event stays in the table
        (below ``oldest``), so that the cursor behind it can still be checked.

        Args:
            now: The database's time, as a glance gave it.
            batches: Most batches of 500 to delete in this call; the next call goes on.

        Returns:
            How many events were deleted.

        Raises:
            StorageUnavailable: The database failed.
        """
        oldest = self._database.read(lambda connection: self._first_to_keep(connection, now))
        bounds = self.bounds()
        deleted = 0
        try:
            if oldest > bounds.oldest:
                self._database.write(lambda connection: self._advance(connection, bounds.log_id, oldest))
            for _ in range(batches):
                count = self._database.write(self._delete_some)
                deleted += count
                if count < _TRIM_ROWS:
                    break
        except StorageBusy:
            pass  # others write just now; what is left is trimmed next time
        return deleted

    def _first_to_keep(self, connection: Connection, now: str) -> int:
        bounds, _ = _bounds(connection, 0)
        first = bounds.oldest
        if self._settings.retention_events:
            first = max(first, bounds.head - self._settings.retention_events + 1)
        if self._settings.retention_seconds:
            first = max(
                first, self._first_young(connection, bounds, _earlier(now, self._settings.retention_seconds))
            )
        return first

    def _first_young(self, connection: Connection, bounds: Bounds, cutoff: str) -> int:
        # Times rise with positions but for clock steps, so halving finds the boundary with a few reads by key; a
        # step can only make the boundary less exact, never tear a hole.
        low, high = bounds.oldest, bounds.head + 1
        while low < high:
            middle = (low + high) // 2
            row = connection.execute(select(event.c.published_at).where(event.c.position == middle)).first()
            if row is not None and row[0] >= cutoff:
                high = middle
            else:
                low = middle + 1
        return low

    def _advance(self, connection: Connection, log_id: str, oldest: int) -> None:
        self._database.dialect.begin_move(connection)
        connection.execute(
            update(log)
            .where(log.c.log_id == log_id, log.c.oldest < oldest, log.c.head >= oldest - 1)
            .values(oldest=oldest)
        )

    def _delete_some(self, connection: Connection) -> int:
        self._database.dialect.begin_move(connection)
        if not self._database.dialect.try_trim_lock(connection):
            return 0
        keep = connection.execute(select(log.c.oldest)).scalar() or 0
        first = connection.execute(select(func.min(event.c.position))).scalar()
        if first is None or first >= keep - 1:
            return 0
        end = min(first + _TRIM_ROWS, keep - 1)
        result = connection.execute(delete(event).where(event.c.position >= first, event.c.position < end))
        return int(result.rowcount)


def _bounds(connection: Connection, position: int) -> Tuple[Bounds, Optional[str]]:
    """The log's bounds and the id at *position*, as of one moment."""
    row = connection.execute(_BOUNDS, {"at": position}).first()
    if row is None:
        raise SchemaMissing("legacy_poll_log is empty; run: legacy-poll upgrade")
    return Bounds(row[0], row[1], row[2], row[3]), row[4]


_BOUNDS = select(log.c.log_id, log.c.head, log.c.oldest, _HEAD_ID, _ID_AT)


def _verify(cursor: Cursor, bounds: Bounds, id_there: Optional[str]) -> None:
    if cursor.log != short_log(bounds.log_id):
        raise CursorUnknown("cursor %s is of another log than %s" % (cursor, short_log(bounds.log_id)))
    if cursor.position > bounds.head:
        raise CursorUnknown("cursor %s is beyond the end of the log, position %d" % (cursor, bounds.head))
    if cursor.position + 1 < bounds.oldest:
        raise _expired(cursor, bounds.oldest)
    if cursor.check != check_of(id_there):
        raise CursorUnknown(
            "cursor %s is of an earlier life of this log: it has another event there" % cursor
        )


def _expired(cursor: Cursor, oldest: int) -> CursorExpired:
    return CursorExpired(
        "cursor %s is too old: events before position %d have been trimmed" % (cursor, oldest), oldest=oldest
    )


def _pages(
    connection: Connection,
    start: int,
    upto: int,
    channels: Optional[FrozenSet[str]],
    limit: int,
    max_bytes: int,
) -> Tuple[List[Event], bool]:
    """Events after *start* up to *upto* within the limits, and whether there are more."""
    query = select(
        event.c.position, event.c.id, event.c.channel, event.c.type, event.c.data, event.c.published_at
    ).where(event.c.position > bindparam("start"), event.c.position <= bindparam("upto"))
    if channels is not None:
        query = query.where(event.c.channel.in_(sorted(channels)))
    query = query.order_by(event.c.position).limit(bindparam("rows"))
    events: List[Event] = []
    total = 0
    while start < upto:
        rows = min(_PAGE_ROWS, limit + 1 - len(events))
        page = connection.execute(query, {"start": start, "upto": upto, "rows": rows}).all()
        for row in page:
            found = Event(row[0], row[1], row[2], row[3], row[4], row[5])
            total += found.size
            if events and (len(events) >= limit or total > max_bytes):
                return events, True
            events.append(found)
        if len(page) < rows:
            break
        start = page[-1][0]
    return events, False


def _count(
    connection: Connection, start: int, upto: int, channels: Optional[FrozenSet[str]], most: int
) -> int:
    """How many events there are after *start* up to *upto*, but no more than *most*: from the index alone."""
    query: Any = select(literal_column("1").label("one")).where(
        event.c.position > start, event.c.position <= upto
    )
    if channels is not None:
        query = query.where(event.c.channel.in_(sorted(channels)))
    found = connection.execute(select(func.count()).select_from(query.limit(most).subquery())).scalar()
    return int(found or 0)


def _earlier(now: str, seconds: float) -> str:
    """The RFC 3339 time *seconds* before *now*."""
    from datetime import datetime, timedelta

    try:
        moment = datetime.strptime(now, "%Y-%m-%dT%H:%M:%S.%fZ") - timedelta(seconds=seconds)
    except OverflowError:
        return ""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + "%03dZ" % (moment.microsecond // 1000)
