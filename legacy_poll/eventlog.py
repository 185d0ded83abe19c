"""The outbox's near end, and the log's far end: append in the caller's transaction, read after a position, trim.

Rules. An append is one row in the transaction that the caller commits. A read never answers "nothing" for events that
vanished under it: the oldest retained position is read again after the events. An empty read says how far it looked,
so that a quiet channel's cursor moves on. A read never passes a hole in silence: positions are given without gaps, so
the events of all channels between a cursor and the end of an answer are counted, and one that is missing is told to
the reader as if it had been trimmed. (An event that was erased by its command leaves a row.)

Interleavings guarded against: a trim between the look at ``oldest`` and the events; a log that was replaced, cut back
or restored since the cursor was given out (the mark at the cursor's position is compared, in the same statement as the
bounds).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, FrozenSet, List, Optional, Tuple

from sqlalchemy import bindparam, delete, func, insert, literal_column, select, text, update
from sqlalchemy.engine import Connection

from .backlog import NO_MARK, Backlog
from .config import Settings
from .cursors import Cursor, check_of, short_log
from .database import Database
from .errors import BacklogTooLarge, CursorExpired, CursorUnknown, LogDamaged, StorageBusy, StorageUnavailable
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
from .storage.ages import KnownFor, earlier
from .storage.apart import at_position, count_in, first_apart, last_beginning_in, last_in, tables_of, together
from .storage.repair import EMPTY, damage, misplaced
from .tables import event, log, outbox

__all__ = ["EventLog", "Bounds", "Glance", "Trimmed", "append", "append_revocation"]

#: Rows fetched at once, so that a page of the largest events stays small in memory.
_PAGE_ROWS = 100
_TRIM_ROWS = 500
_INSERT = insert(outbox).inline()
#: Positions that are counted together, once, for all readers that pass them within `_COUNTED_SECONDS`.
_BLOCK = 10_000
_COUNTED_SECONDS = 2.0
#: Positions among which a trim looks for the first young event at once.
_WINDOW = 100_000
# In id order, so that it is found by the key from the mark on: a scan would walk over every dead row before it.
_WAITING = (
    select(literal_column("1"))
    .select_from(outbox)
    .where(outbox.c.id >= bindparam("mark"))
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
        head_mark: Its mark.
        apart_from: The first position of those that are kept apart; None where none is.
    """

    log_id: str
    head: int
    oldest: int
    head_id: Optional[str]
    head_mark: Optional[str] = None
    apart_from: Optional[int] = None

    @property
    def cursor(self) -> Cursor:
        """Behind everything."""
        return Cursor.at(self.log_id, self.head, self.head_id, self.head_mark)


@dataclass(frozen=True)
class Glance:
    """What a tick looks at first.

    Attributes:
        log_id: As in :class:`Bounds`.
        head: As in :class:`Bounds`.
        oldest: As in :class:`Bounds`.
        head_id: As in :class:`Bounds`.
        now: The database's time: RFC 3339, UTC, milliseconds.
        waiting: Whether the outbox has rows, or may have.
        sweep: Whether it must be looked at from its beginning.
        head_mark: As in :class:`Bounds`; tells a restored log from the one that was there.
        apart_from: As in :class:`Bounds`.
    """

    log_id: str
    head: int
    oldest: int
    head_id: Optional[str]
    now: str
    waiting: bool
    sweep: bool = True
    head_mark: Optional[str] = None
    apart_from: Optional[int] = None

    @property
    def cursor(self) -> Cursor:
        """Behind everything."""
        return Cursor.at(self.log_id, self.head, self.head_id, self.head_mark)


@dataclass(frozen=True)
class Trimmed:
    """What one trim did.

    Attributes:
        deleted: How many events are gone.
        more: There is more to delete now.
    """

    deleted: int
    more: bool = False


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


def append_revocation(where: Any, subject: str, *, at: Optional[float] = None) -> None:
    """Adds the revocation of *subject* to the transaction that is open on *where*.

    Args:
        where: As for :func:`append`.
        subject: Whose right ends.
        at: The time on this host, whose clock also says when tokens are made; seconds since 1970.

    Raises:
        InvalidEvent: *subject* is empty or not text.
    """
    check_subject(subject)
    row = {
        "event_id": new_event_id(),
        "channel": REVOKE_CHANNEL,
        "type": "revoke",
        "data": encode_data(
            {"subject": subject} if at is None else {"subject": subject, "at": round(at, 3)}, max_bytes=4096
        ),
    }
    where.execute(_INSERT, row)


class EventLog:
    """Reads and trims the log of one database.

    Args:
        database: Where the tables are.
        settings: Retention.
        backlog: The low-water mark that the sequencer keeps; without one every look is at the whole outbox.
        clock: Seconds, monotonic.
    """

    #: Rows that one batch of a trim deletes.
    trim_rows = _TRIM_ROWS

    def __init__(
        self,
        database: Database,
        settings: Settings,
        *,
        backlog: Optional[Backlog] = None,
        clock: Callable[[], float] = time.monotonic,
        known_for: Optional[KnownFor] = None,
    ) -> None:
        self._database = database
        self._settings = settings
        self._backlog = backlog or Backlog(database.dialect)
        self._clock = clock
        self._known_for = known_for or KnownFor()
        self._glances: Dict[str, Tuple[Any, Any]] = {}
        self._keeps_apart = database.dialect.keeps_apart
        at: Any = bindparam("at")
        apart_from = first_apart(self._keeps_apart)
        self._head = [at_position(name, log.c.head, self._keeps_apart) for name in ("id", "mark")]
        self._bounds_at = select(
            log.c.log_id,
            log.c.head,
            log.c.oldest,
            *self._head,
            apart_from,
            *[at_position(name, at, self._keeps_apart) for name in ("id", "mark")],
        )
        near_sql = database.dialect.near_sql
        self._bounds_near = self._bounds_at.where(text(near_sql)) if near_sql else self._bounds_at
        still = select(log.c.log_id, log.c.oldest)
        self._still = still, still.where(text(near_sql)) if near_sql else still
        # Blocks of the log `_counted_log` that had no hole, and when that was seen.
        self._counted: Dict[int, float] = {}
        self._counted_log = ""

    def glance(self) -> Glance:
        """Whether there is anything to do: one cheap query.

        Raises:
            StorageUnavailable: The database failed.
        """
        backlog = self._backlog
        queries = self._glance_with(backlog.moment_sql)
        try:
            row = self._database.read(
                lambda connection: self._find_log(connection, *queries, {"mark": backlog.mark})
            )
        except StorageUnavailable:
            backlog.reset()  # perhaps it is the sequence that is missing, or may not be seen any more
            raise
        if row is None:
            raise LogDamaged(EMPTY)
        self._database.dialect.note_place(row[9])
        _check_place(row[1], row[2])
        marked = backlog.mark != NO_MARK
        sweep = backlog.needs_sweep(row[6])
        # With a mark, only a sweep can tell that there is nothing.
        waiting = row[5] is not None or (sweep and marked)
        return Glance(row[0], row[1], row[2], row[3], row[4], waiting, sweep, row[7], row[8])

    def begin_anew(self) -> None:
        """Forgets what was known of the log and the outbox: they are not those that were there."""
        self._backlog.reset()
        self._known_for.forget()
        self._counted.clear()

    def _glance_with(self, moment_sql: str) -> Tuple[Any, Any]:
        """The query, and the same that looks near where the log's row was."""
        found = self._glances.get(moment_sql)
        if found is None:
            dialect = self._database.dialect
            now: Any = literal_column(dialect.now_sql)
            moment: Any = literal_column(moment_sql)
            place: Any = literal_column(dialect.place_sql)
            query = select(
                log.c.log_id,
                log.c.head,
                log.c.oldest,
                self._head[0],
                now,
                _WAITING,
                moment,
                self._head[1],
                first_apart(self._keeps_apart),
                place,
            )
            near = query.where(text(dialect.near_sql)) if dialect.near_sql else query
            found = self._glances[moment_sql] = query, near
        return found

    def _find_log(self, connection: Connection, query: Any, near: Any, parameters: Dict[str, Any]) -> Any:
        """The row that *query* makes of the log's one row; *near* is the same for where that row was."""
        place = self._database.dialect.near
        if place is not None:
            row = connection.execute(near, dict(parameters, near=place)).first()
            if row is not None:
                return row
        return connection.execute(query, parameters).first()

    def bounds(self) -> Bounds:
        """What the log holds now.

        Raises:
            StorageUnavailable: The database failed.
        """
        return self._database.read(lambda connection: self._bounds(connection, 0)[0])

    def time_at(self, position: int) -> Optional[str]:
        """When the event at *position* entered the log; None when there is none.

        Raises:
            StorageUnavailable: The database failed.
        """
        query = select(at_position("published_at", position, self._keeps_apart))
        found: Optional[str] = self._database.read(lambda connection: connection.execute(query).scalar())
        return found

    def cursor_since(self, seconds: float) -> Cursor:
        """The cursor before the events of the last *seconds*, by the database's clock.

        Raises:
            StorageUnavailable: The database failed.
        """
        glance = self.glance()
        cutoff = earlier(glance.now, seconds)
        young = together(
            lambda table: (
                select(table.c.position)
                .where(table.c.position >= glance.oldest, table.c.published_at >= cutoff)
                .order_by(table.c.position)
                .limit(1)
            ),
            tables_of(glance.apart_from is not None),
            limit=1,
        )
        first = self._database.read(lambda connection: connection.execute(young).scalar())
        return self.cursor_at(glance.head if first is None else first - 1)

    def cursor_at(self, position: int) -> Cursor:
        """The cursor behind *position*, which must be retained, or 0, or the last one trimmed.

        Raises:
            StorageUnavailable: The database failed.
        """
        bounds, there = self._database.read(lambda connection: self._bounds(connection, position))
        return Cursor.at(bounds.log_id, position, *there)

    def read_after(
        self,
        cursor: Optional[Cursor],
        *,
        channels: Optional[FrozenSet[str]],
        limit: int,
        max_bytes: int,
        max_backlog: int = 0,
        past_holes: bool = False,
    ) -> Batch:
        """Events on *channels* after *cursor*, oldest first.

        Args:
            cursor: Where the client is; None is before the oldest that is retained.
            channels: Names, already authorised; None is all of them.
            limit: Most events to return, at least 1.
            max_bytes: Most bytes of data to return; the first event is returned whatever its size.
            max_backlog: Most events after *cursor*, on *channels*; 0 is no limit.
            past_holes: What is missing does not matter: for who wants what there is.

        Returns:
            Batch; its cursor is where to go on, also when it is empty.

        Raises:
            BacklogTooLarge: There are more than *max_backlog*.
            CursorExpired: Events after *cursor* have been trimmed, or are missing from the log.
            CursorUnknown: *cursor* is of another log, or of an earlier life of this one.
            StorageUnavailable: The database failed; the caller may try again.
        """
        return self._database.read(
            lambda connection: self._read(
                connection, cursor, channels, limit, max_bytes, max_backlog, past_holes=past_holes
            )
        )

    def _read(
        self,
        connection: Connection,
        cursor: Optional[Cursor],
        channels: Optional[FrozenSet[str]],
        limit: int,
        max_bytes: int,
        max_backlog: int,
        *,
        past_holes: bool = False,
    ) -> Batch:
        bounds, there = self._bounds(connection, cursor.position if cursor else 0)
        if cursor is not None:
            _verify(cursor, bounds, there)
            start = cursor.position
        else:
            start = bounds.oldest - 1
        apart = bounds.apart_from is not None
        events, more = _pages(connection, start, bounds.head, channels, limit, max_bytes, apart=apart)
        backlog = len(events)
        if max_backlog and more and backlog <= max_backlog:
            # Only behind a cut is there anything to count, and never more of it than tells.
            last = events[-1].position
            most = max_backlog + 1 - backlog
            backlog += self._count(connection, last, bounds.head, channels, most, apart=apart)
        still = self._find_log(connection, *self._still, {})
        if still is None or still[0] != bounds.log_id:
            raise CursorUnknown("the log was replaced")
        if still[1] > start + 1:
            if cursor is not None:
                raise _expired(cursor, still[1])
            return self._read(
                connection, None, channels, limit, max_bytes, max_backlog, past_holes=past_holes
            )
        if max_backlog and backlog > max_backlog:
            raise BacklogTooLarge.behind(cursor, max_backlog)
        end = events[-1].position if more else bounds.head
        # Who has no cursor has seen nothing, and is given what there is.
        if cursor is not None and not past_holes and len(events) < end - start:
            hole = self._hole(connection, bounds.log_id, start, end, apart=apart)
            if hole is not None:
                raise CursorExpired(
                    "cursor %s is too old: some of the events before position %d are missing from the log"
                    % (cursor, hole),
                    oldest=hole,
                )
        if more:
            newest = events[-1]
            return Batch(tuple(events), bounds.cursor.after(newest.position, newest.id, newest.mark), True)
        return Batch(tuple(events), bounds.cursor)

    def _count(
        self,
        connection: Connection,
        start: int,
        upto: int,
        channels: Optional[FrozenSet[str]],
        most: int,
        *,
        apart: bool,
    ) -> int:
        """How many events there are after *start* up to *upto*, but no more than *most*: from the index alone."""
        exact = self._database.dialect.exact_channel_sql

        def found_in(table: Any) -> Any:
            query: Any = select(literal_column("1").label("one")).where(
                table.c.position > start, table.c.position <= upto
            )
            if channels is not None:
                names = sorted(channels)
                query = query.where(table.c.channel.in_(names))
                if exact:
                    column: Any = literal_column(exact)
                    query = query.where(column.in_(names))
            return query.limit(most)

        query = together(found_in, tables_of(apart), limit=most, order=False)
        found = connection.execute(select(func.count()).select_from(query.subquery())).scalar()
        return int(found or 0)

    def _hole(
        self, connection: Connection, log_id: str, start: int, end: int, *, apart: bool
    ) -> Optional[int]:
        """Where events are missing after *start* up to *end*: the position behind the last that is; None if none is."""
        now = self._clock()
        if self._counted_log != log_id or len(self._counted) > 1000:
            self._counted.clear()
            self._counted_log = log_id
        place = start
        while place < end:
            # Many readers with different cursors pass the same positions; those of whole blocks are counted for all
            # of them, once in two seconds.
            block, offset = divmod(place, _BLOCK)
            upto = min(end, (block + 1) * _BLOCK)
            is_block = offset == 0 and upto - place == _BLOCK
            if not (is_block and now - self._counted.get(block, -_COUNTED_SECONDS) < _COUNTED_SECONDS):
                found = connection.execute(count_in(apart), {"start": place, "upto": upto}).scalar()
                if found != upto - place:
                    return self._behind_hole(connection, start, end, apart=apart)
                if is_block:
                    self._counted[block] = now
            place = upto
        return None

    def _behind_hole(self, connection: Connection, start: int, end: int, *, apart: bool) -> int:
        where = {"start": start, "upto": end}
        last = connection.execute(last_in(apart), where).scalar()
        if last is None or last < end:
            return end + 1
        first: Optional[int] = connection.execute(last_beginning_in(apart), where).scalar()
        return first if first is not None else end + 1

    def _bounds(
        self, connection: Connection, position: int
    ) -> Tuple[Bounds, Tuple[Optional[str], Optional[str]]]:
        """The log's bounds, and the id and the mark at *position*, as of one moment."""
        row = self._find_log(connection, self._bounds_at, self._bounds_near, {"at": position})
        if row is None:
            raise LogDamaged(EMPTY)
        _check_place(row[1], row[2])
        return Bounds(*row[:6]), (row[6], row[7])

    def read_new(
        self, position: int, *, upto: int, limit: int, max_bytes: int
    ) -> Tuple[Optional[str], List[Event]]:
        """What a publisher that is at *position* has not seen, and what it may compare with what it has seen.

        Args:
            position: Of the last event that it has.
            upto: The last position that it wants.
            limit: Most events.
            max_bytes: Most bytes of data; the first event is returned whatever its size.

        Returns:
            The check of the event at *position*, None where there is none; and the events behind it, oldest first,
            which may have gaps.

        Raises:
            StorageUnavailable: The database failed.
        """

        def read(connection: Connection) -> Tuple[Optional[str], List[Event]]:
            events, _ = _pages(connection, position, upto, None, limit, max_bytes, apart=self._keeps_apart)
            # After the events: what was there when they were read is told from what came since.
            there = self._bounds(connection, position)[1]
            return None if there[0] is None else check_of(*there), events

        return self._database.read(read)

    def read_at(self, first: int, last: int) -> List[Event]:
        """The events from *first* to *last* that are there.

        Raises:
            StorageUnavailable: The database failed.
        """
        return self._database.read(
            lambda connection: _pages(
                connection,
                first - 1,
                last,
                None,
                last - first + 1,
                (last - first + 1) << 40,
                apart=self._keeps_apart,
            )[0]
        )

    def trim(self, now: str, *, batches: int = 20) -> Trimmed:
        """Deletes what is older or more than the settings keep, in small transactions.

        Only a beginning of the log goes, in which each event is old by its own time, or has been known to this worker
        for as long as events are kept. ``oldest`` moves first, so that a reader finds out before events are gone. The
        last event stays in the table (below ``oldest``), so that the cursor behind it can still be checked.

        Args:
            now: The present, as far as it may be believed: see ``storage.ages``.
            batches: Most batches of 500 to delete in this call; the next call goes on.

        Raises:
            StorageUnavailable: The database failed.
        """
        bounds = self.bounds()
        if bounds.apart_from is not None:
            # Whoever has the end of the table locked has more of it locked, and what is apart is the youngest.
            return Trimmed(0)
        if self._database.read(lambda connection: damage(connection, both=self._keeps_apart)) is not None:
            return Trimmed(0)  # where it begins cannot be relied on, until it is repaired
        oldest, looked_at_all = self._database.read(
            lambda connection: self._first_to_keep(connection, bounds, now)
        )
        deleted, more = 0, not looked_at_all
        try:
            if oldest > bounds.oldest:
                self._database.write(lambda connection: self._advance(connection, bounds.log_id, oldest))
            for _ in range(batches):
                count = self._database.write(self._delete_some)
                deleted += count
                if count < _TRIM_ROWS:
                    break
            else:
                more = True
        except StorageBusy:
            more = False  # others write just now; what is left is trimmed next time
        return Trimmed(deleted, more)

    def _first_to_keep(self, connection: Connection, bounds: Bounds, now: str) -> Tuple[int, bool]:
        """The first position to keep, and whether it was looked for everywhere."""
        first, everywhere = bounds.oldest, True
        if self._settings.retention_events:
            first = max(first, self._first_of_most(connection, bounds))
        seconds = self._settings.retention_seconds
        if seconds:
            known = self._known_for.see(bounds.log_id, bounds.head, bounds.cursor.check, seconds)
            if known is not None and known[0] >= first:
                there = self._bounds(connection, known[0])[1]
                if there[0] is not None and check_of(*there) == known[1]:
                    first = known[0] + 1
                elif there[0] is not None:
                    self._known_for.forget()
            cutoff = earlier(now, seconds)
            upto = min(bounds.head, first + _WINDOW)
            young = connection.execute(
                select(event.c.position)
                .where(event.c.position >= first, event.c.position <= upto, event.c.published_at >= cutoff)
                .order_by(event.c.position)
                .limit(1)
            ).scalar()
            if young is None and upto < bounds.head:
                # At once past positions where nothing is: there may be more of them than windows in a year.
                following = (
                    select(event.c.position)
                    .where(event.c.position > upto, event.c.position <= bounds.head)
                    .order_by(event.c.position)
                    .limit(1)
                )
                young = connection.execute(following).scalar()
                return (bounds.head + 1, True) if young is None else (young, False)
            first = upto + 1 if young is None else young
        return first, everywhere

    def _first_of_most(self, connection: Connection, bounds: Bounds) -> int:
        """The first position of as many events as the settings keep."""
        most = self._settings.retention_events
        if bounds.head - bounds.oldest + 1 <= most + most // 100:
            return bounds.oldest  # not longer than that, or by so little that it can wait
        # With holes it is shorter than its positions say: count what is there.
        found: Optional[int] = connection.execute(
            select(event.c.position)
            .where(event.c.position >= bounds.oldest, event.c.position <= bounds.head)
            .order_by(event.c.position.desc())
            .limit(1)
            .offset(most - 1)
        ).scalar()
        return bounds.oldest if found is None else found

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
        # The positions that are there, not so many from the first on: there may be holes.
        rows = connection.execute(
            select(event.c.position)
            .where(event.c.position < keep - 1)
            .order_by(event.c.position)
            .limit(_TRIM_ROWS)
        ).all()
        if not rows:
            return 0
        self._database.dialect.lock_events(connection, rows[0][0], rows[-1][0])
        result = connection.execute(
            delete(event).where(event.c.position >= rows[0][0], event.c.position <= rows[-1][0])
        )
        return int(result.rowcount)


def _check_place(head: int, oldest: int) -> None:
    # Before anything goes by it: a trim would delete what is young, and every reader would be told again and again.
    found = misplaced(head, oldest)
    if found is not None:
        raise LogDamaged(found)


def _verify(cursor: Cursor, bounds: Bounds, there: Tuple[Optional[str], Optional[str]]) -> None:
    event_id, mark = there
    if cursor.log != short_log(bounds.log_id):
        raise CursorUnknown("cursor %s is of another log than %s" % (cursor, short_log(bounds.log_id)))
    if cursor.position > bounds.head:
        raise CursorUnknown("cursor %s is beyond the end of the log, position %d" % (cursor, bounds.head))
    if cursor.position + 1 < bounds.oldest:
        raise _expired(cursor, bounds.oldest)
    if cursor.check != check_of(event_id, mark):
        raise CursorUnknown(
            "cursor %s is of an earlier life of this log: it has another event there, or none" % cursor
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
    *,
    apart: bool,
) -> Tuple[List[Event], bool]:
    """Events after *start* up to *upto* within the limits, and whether there are more."""

    def found_in(table: Any) -> Any:
        query = select(
            table.c.position,
            table.c.id,
            table.c.channel,
            table.c.type,
            table.c.data,
            table.c.published_at,
            table.c.mark,
        ).where(table.c.position > bindparam("start"), table.c.position <= bindparam("upto"))
        if channels is not None:
            query = query.where(table.c.channel.in_(sorted(channels)))
        return query.order_by(table.c.position).limit(bindparam("rows"))

    query = together(found_in, tables_of(apart), limit=bindparam("rows"))
    events: List[Event] = []
    total = 0
    while start < upto:
        rows = min(_PAGE_ROWS, limit + 1 - len(events))
        page = connection.execute(query, {"start": start, "upto": upto, "rows": rows}).all()
        for row in page:
            if channels is not None and row[2] not in channels:
                continue  # one to the database's collation, and another channel all the same
            if events and row[0] == events[-1].position:
                continue  # in both tables: somebody has copied it by hand
            found = Event(*row)
            total += found.size
            if events and (len(events) >= limit or total > max_bytes):
                return events, True
            events.append(found)
        if len(page) < rows:
            break
        start = page[-1][0]
    return events, False
