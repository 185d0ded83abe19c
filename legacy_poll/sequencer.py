"""Committed rows get positions; the only room that knows that ids commit out of order.

Auto-increment ids are handed out before commit: a reader that has seen 10 can later see 9 appear, and a cursor at 10
would skip it for ever. So a row's place in the log is given here, after its commit, under a lock on one row. Whoever
gets the lock moves what it sees; whoever does not goes on reading. There is nobody to elect, and nobody to fail over.

A move is one transaction: outbox rows deleted, events inserted, head advanced, or none of it. The rows are read and
judged *before* the lock is taken, so that nothing is computed between lock and commit: every move that gives positions
changes ``head``, so if it is still the one that was read before the rows, no row has been moved since. The ids alone
would not tell: they may be given, and come back.

Interleavings guarded against: two workers that read the same rows (the second finds another head, or fewer rows to
delete, and gives up); the same where the first gave no position, all its rows being unfit, and a given id came back
since (rows that get no position are compared again under the lock); a crash at any point (all or nothing); a worker
that stops in the middle (the database ends its transaction); a transaction that stays open (its rows are not seen, and
nobody waits for them).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Set, Tuple

from sqlalchemy import bindparam, case, insert, literal_column, null, select, update
from sqlalchemy.engine import Connection

from .backlog import NO_MARK, Backlog
from .config import Settings
from .database import Database
from .errors import EventTooLarge, InvalidEvent, StorageBusy, StorageUnavailable
from .eventlog import Glance
from .events import DEFAULT_TYPE, MAX_ID, REVOKE_CHANNEL, Event, check_data, check_event_id, check_name
from .tables import event, log, outbox, set_aside

__all__ = ["Sequencer", "Moved"]

#: Data fetched by one move, roughly, bytes: the number of rows of the next move follows from the size of these.
_AIM_BYTES = 8 * 1024 * 1024

_COPY = ("event_id", "channel", "type", "data", "created_at")
_SET_ASIDE = insert(set_aside).from_select(
    ["outbox_id", "reason"] + list(_COPY),
    select(
        outbox.c.id,
        bindparam("why", type_=set_aside.c.reason.type).label("reason"),
        *[outbox.c[name] for name in _COPY],
    ).where(outbox.c.id == bindparam("outbox_id")),
)
_ADVANCE = update(log).values(head=bindparam("new_head"))


@dataclass(frozen=True)
class Moved:
    """What one move did.

    Attributes:
        events: Those that got a position, in order.
        set_aside: Outbox id and reason of the rows that broke a rule.
        duplicates: How many rows had an id that the log retains already.
        busy: The lock was not to be had, or somebody else moved first; nothing was done.
        more: As many rows as one move takes were there: look again at once.
    """

    events: Tuple[Event, ...] = ()
    set_aside: Tuple[Tuple[int, str], ...] = ()
    duplicates: int = 0
    busy: bool = False
    more: bool = False


@dataclass
class _Judged:
    rows: List[int]
    odd: List[Any]
    fit: List[Event]
    unfit: List[Tuple[int, str]]
    duplicates: int


class _Busy(Exception):
    """Rolls the transaction back."""


class Sequencer:
    """Moves committed outbox rows into the log.

    Args:
        database: Where the tables are.
        settings: ``move_rows`` and ``max_event_bytes``.
        backlog: The low-water mark, shared with the event log that glances.
    """

    def __init__(self, database: Database, settings: Settings, *, backlog: Optional[Backlog] = None) -> None:
        self._database = database
        self._backlog = backlog or Backlog(database.dialect)
        self._dialect = database.dialect
        self._most = settings.move_rows
        self._rows = settings.move_rows
        self._max_bytes = settings.max_event_bytes
        size: Any = literal_column(self._dialect.size_sql)
        # What is too large is set aside by the database itself, without coming here.
        data = case((size <= self._max_bytes, outbox.c.data), else_=null())
        rows = select(outbox.c.id, outbox.c.event_id, outbox.c.channel, outbox.c.type, data, size).order_by(
            outbox.c.id
        )
        snapshot: Any = literal_column(self._dialect.snapshot_sql or "NULL")
        self._look = (
            rows.add_columns(snapshot).where(outbox.c.id > bindparam("mark")).limit(bindparam("rows"))
        )
        self._look_again = rows.where(outbox.c.id.in_(bindparam("ids", expanding=True)))

    def move(self, glance: Glance) -> Moved:
        """Moves what is committed, at most ``move_rows`` rows.

        Args:
            glance: What the log looked like before; its head must still be the head.

        Returns:
            Moved; positions start at ``glance.head + 1``.

        Raises:
            StorageUnavailable: The database failed; the move happened as a whole or not at all.
        """
        rows, swept = self._database.read(lambda connection: self._read(connection, glance))
        more = len(rows) >= self._rows
        if not rows:
            if swept:
                self._backlog.after_sweep(complete=True)
            return Moved()
        fetched = sum(row[5] or 0 for row in rows if row[4] is not None)
        self._rows = max(1, min(self._most, len(rows) * _AIM_BYTES // max(1, fetched)))
        judged = self._database.read(lambda connection: self._judge(connection, rows, glance))
        try:
            self._database.write(lambda connection: self._commit(connection, judged, glance.head))
        except (_Busy, StorageBusy):
            return Moved(busy=True)
        except StorageUnavailable:
            # Perhaps there was more to do than the time that a move may take allows: less then.
            self._rows = max(1, len(rows) // 2)
            raise
        if swept:
            self._backlog.after_sweep(complete=not more)
        last_id = rows[-1][0]
        if self._backlog.has_moved(len(rows), last_id=last_id):
            self._database.read(lambda connection: self._backlog.choose(connection, last_id))
        return Moved(tuple(judged.fit), tuple(judged.unfit), judged.duplicates, more=more)

    def lock_holder(self) -> Optional[str]:
        """Who holds the log's lock, for the operator; None when nobody does, or it cannot be told."""
        return self._database.read(self._dialect.lock_holder)

    def _read(self, connection: Connection, glance: Glance) -> Tuple[List[Any], bool]:
        """Rows, and whether the whole outbox was looked at."""
        backlog = self._backlog
        if not glance.sweep:
            rows = connection.execute(self._look, {"rows": self._rows, "mark": backlog.mark}).all()
            if not rows or not backlog.needs_sweep(rows[0][-1]):
                return [row[:-1] for row in rows], False
        backlog.before_sweep(connection)
        rows = connection.execute(self._look, {"rows": self._rows, "mark": NO_MARK}).all()
        return [row[:-1] for row in rows], True

    def _judge(self, connection: Connection, rows: List[Any], glance: Glance) -> _Judged:
        given = sorted({row[1] for row in rows if _is_id(row[1])})
        known: Set[str] = set()
        for start in range(0, len(given), 500):
            query = select(event.c.id).where(event.c.id.in_(given[start : start + 500]))
            known.update(found[0] for found in connection.execute(query))
        judged = _Judged([], [], [], [], 0)
        for row in rows:
            judged.rows.append(row[0])
            try:
                entry = self._event(row, glance.head + 1 + len(judged.fit), glance.now)
            except InvalidEvent as error:
                judged.odd.append(row)
                judged.unfit.append((row[0], str(error)))
                continue
            if entry.id in known:
                judged.odd.append(row)
                judged.duplicates += 1
                continue
            known.add(entry.id)
            judged.fit.append(entry)
        return judged

    def _event(self, row: Any, position: int, now: str) -> Event:
        _, event_id, channel, type_, data, size = row
        if data is None and size is not None:
            raise EventTooLarge(size, self._max_bytes)
        return Event(
            position,
            check_event_id(event_id),
            channel if _is_revocation(channel, data) else check_name("channel", channel),
            check_name("type", DEFAULT_TYPE if type_ is None else type_),
            check_data(data, max_bytes=self._max_bytes),
            now,
        )

    def _commit(self, connection: Connection, judged: _Judged, head: int) -> None:
        entries: List[Dict[str, Any]] = [
            {
                "position": entry.position,
                "id": entry.id,
                "channel": entry.channel,
                "type": entry.type,
                "data": entry.data,
                "published_at": entry.time,
            }
            for entry in judged.fit
        ]
        self._dialect.begin_move(connection)
        if not self._dialect.lock_log(connection, head):
            raise _Busy
        if judged.odd:
            # Whoever moved only such rows left the head as it was, and a given id may have come back since.
            ids = [row[0] for row in judged.odd]
            if connection.execute(self._look_again, {"ids": ids}).all() != judged.odd:
                raise _Busy
        for outbox_id, reason in judged.unfit:
            connection.execute(_SET_ASIDE, {"outbox_id": outbox_id, "why": reason})
        if self._dialect.delete_outbox(connection, judged.rows) != len(judged.rows):
            raise _Busy
        self._dialect.insert_events(connection, entries)
        if entries:
            connection.execute(_ADVANCE, {"new_head": head + len(entries)})


def _is_revocation(channel: Any, data: Any) -> bool:
    if channel != REVOKE_CHANNEL:
        return False
    try:
        says = json.loads(data)
    except (TypeError, ValueError, RecursionError):
        return False
    return isinstance(says, dict) and isinstance(says.get("subject"), str)


def _is_id(value: Any) -> bool:
    """Whether the log may hold *value* as an id; if not it is not asked for, since it may not even be text."""
    try:
        return value is not None and bool(check_name("id", value, longest=MAX_ID))
    except InvalidEvent:
        return False
