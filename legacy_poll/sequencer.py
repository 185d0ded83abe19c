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

No row may stop those behind it. What is too large is neither read nor copied, but cut. A row that the database itself
refuses to give, to place or to copy (bytes that no driver can decode, an error of a type) is found by halving, once it
is certain that the database works for any other row: then it is set aside too, with the database's words as the reason.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple

from sqlalchemy import and_, bindparam, case, func, insert, literal_column, null, or_, select
from sqlalchemy.engine import Connection

from .backlog import NO_MARK, Backlog
from .config import Settings
from .cursors import Marks
from .database import Database
from .errors import EventTooLarge, InvalidEvent, LogDamaged, SchemaMissing, StorageBusy, StorageUnavailable
from .eventlog import Glance
from .events import (
    DEFAULT_TYPE,
    ERASE_CHANNEL,
    MAX_ID,
    MAX_NAME,
    REVOKE_CHANNEL,
    Event,
    check_data,
    check_event_id,
    check_name,
    positions_in,
)
from .storage.apart import tables_of
from .storage.repair import damage
from .tables import event, outbox, set_aside

__all__ = ["Sequencer", "Moved"]

#: Data fetched by one move, roughly, bytes: the number of rows of the next move follows from the size of these.
_AIM_BYTES = 8 * 1024 * 1024

#: Data of a row that is set aside is kept whole up to this, bytes; of larger ones, and of the names, the beginning is.
_COPY_BYTES = 8 * 1024 * 1024
_START_CHARACTERS = 1000
#: How often a row must fail by itself, while another would not, before it is set aside.
_REFUSALS = 3
#: Rows behind one that fails that are tried in its place.
_OTHERS = 10
#: Most bytes of data of an event on a channel of ours, whatever the limit for others is.
_OURS_BYTES = 65_536
#: Among so many of the newest events code of an older version shows.
_NEWEST_EVENTS = 1000


@dataclass(frozen=True)
class Moved:
    """What one move did.

    Attributes:
        events: Those that got a position, in order.
        set_aside: Outbox id and reason of the rows that broke a rule.
        duplicates: How many rows had an id that the log retains already.
        busy: The lock was not to be had, or somebody else moved first; nothing was done.
        blocked: Busy, since another session's locks were in the way of what a move writes.
        more: As many rows as one move takes were there: look again at once.
    """

    events: Tuple[Event, ...] = ()
    set_aside: Tuple[Tuple[int, str], ...] = ()
    duplicates: int = 0
    busy: bool = False
    more: bool = False
    blocked: bool = False


@dataclass
class _Judged:
    rows: List[int]
    odd: List[Any]
    fit: List[Event]
    fit_rows: List[int]
    unfit: List[Tuple[int, str]]
    duplicates: int


class _Busy(Exception):
    """Rolls the transaction back."""


class _Undo(Exception):
    """Rolls back what was tried only to see whether it works."""


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
        self._rows = self._ceiling = settings.move_rows
        # The head behind which the event table was found locked.
        self._apart_at = -1
        # The first row of the outbox that failed by itself, and how often.
        self._refused: Tuple[Optional[int], int] = (None, 0)
        self._max_bytes = settings.max_event_bytes
        self._looks: Dict[str, Any] = {}
        size: Any = literal_column(self._dialect.size_of("data"))
        # What is too large is set aside by the database itself, without coming here.
        ours = and_(outbox.c.channel.in_((REVOKE_CHANNEL, ERASE_CHANNEL)), size <= _OURS_BYTES)
        data = case((or_(size <= self._max_bytes, ours), outbox.c.data), else_=null())
        names = [self._cut(name, 4 * MAX_NAME, MAX_NAME + 1) for name in ("event_id", "channel", "type")]
        self._rows_of = select(outbox.c.id, *names, data, size).order_by(outbox.c.id)
        self._look_again = self._rows_of.where(outbox.c.id.in_(bindparam("ids", expanding=True)))
        self._first_row = select(outbox.c.id).order_by(outbox.c.id).limit(1)
        self._set_aside = insert(set_aside).from_select(
            ["outbox_id", "reason", "event_id", "channel", "type", "data", "created_at", "cut_from"],
            select(
                outbox.c.id,
                bindparam("why", type_=set_aside.c.reason.type).label("reason"),
                *[
                    self._cut(name, 4 * _START_CHARACTERS, _START_CHARACTERS)
                    for name in ("event_id", "channel", "type")
                ],
                self._cut("data", _COPY_BYTES, _START_CHARACTERS),
                outbox.c.created_at,
                case((size > _COPY_BYTES, size), else_=null()),
            ).where(outbox.c.id == bindparam("outbox_id")),
        )

    def move(self, glance: Glance) -> Moved:
        """Moves what is committed, at most ``move_rows`` rows.

        Args:
            glance: What the log looked like before; its head must still be the head.

        Returns:
            Moved; positions start at ``glance.head + 1``.

        Raises:
            LogDamaged: There is no place for the next event; see ``storage.repair``.
            StorageUnavailable: The database failed; the move happened as a whole or not at all.
        """
        while True:
            self._tried = self._rows
            try:
                return self._move(glance)
            except _Busy:
                return Moved(busy=True)
            except StorageBusy:
                if not self._dialect.keeps_apart or self._is_apart(glance) or self._is_mixed():
                    return Moved(busy=True, blocked=True)
                # Somebody has the end of the log locked: what comes goes apart, until it can be brought back.
                self._apart_at = glance.head
            except StorageUnavailable as error:
                # Perhaps it is the mark's own questions that cannot be asked any more.
                self._backlog.reset()
                if isinstance(error, SchemaMissing):
                    raise
                # Perhaps there was more to do than the time that a move may take allows: less then.
                self._rows = self._ceiling = max(1, self._tried // 2)
                if not self._works_for_another(glance):
                    raise
                # From the first row on, so that the one which stays is the one that is set aside.
                glance = replace(glance, sweep=True)
                if self._tried == 1 and self._is_refused_again():
                    refused = self._refuse(glance, error)
                    if refused is not None:
                        return refused

    def _move(self, glance: Glance) -> Moved:
        rows, swept = self._database.read(lambda connection: self._read(connection, glance))
        more = len(rows) >= self._rows
        if not rows:
            if swept:
                self._backlog.after_sweep(complete=True)
            return Moved()
        self._tried = len(rows)
        fetched = sum(row[5] or 0 for row in rows if row[4] is not None)
        fit_in = len(rows) * _AIM_BYTES // max(1, fetched)
        judged = self._database.read(lambda connection: self._judge(connection, rows, glance))
        self._database.write(lambda connection: self._commit(connection, judged, glance))
        self._refused = (None, 0)
        # After a row that failed, its neighbours are not all tried at once again.
        self._ceiling = min(self._most, 2 * self._ceiling)
        self._rows = max(1, min(self._ceiling, fit_in))
        if swept:
            self._backlog.after_sweep(complete=not more)
        last_id = rows[-1][0]
        if self._backlog.has_moved(len(rows), last_id=last_id):
            self._database.read(lambda connection: self._backlog.choose(connection, last_id))
        return Moved(tuple(judged.fit), tuple(judged.unfit), judged.duplicates, more=more)

    def _works_for_another(self, glance: Glance) -> bool:
        """Whether the database would take another event at this moment: tried, and undone. If in doubt, not."""

        def with_made_up(connection: Connection) -> None:
            # All that is done to a row, on one that breaks no rule of ours.
            made: Any = connection.execute(insert(outbox).values(channel="probe", data="null"))
            rows: Any = connection.execute(self._look_again, {"ids": [made.inserted_primary_key[0]]}).all()
            self._try_out(connection, self._judge(connection, rows, glance), glance)

        if self._can(glance, with_made_up):
            return True
        both = self._dialect.keeps_apart
        found = self._database.read(lambda connection: damage(connection, both=both))
        if found is not None:
            raise LogDamaged(found)
        # A rule of somebody's may refuse what was made up, and not what waits.
        return any(
            self._can(glance, lambda connection, judged=judged: self._try_out(connection, judged, glance))  # type: ignore[misc]
            for judged in self._others(glance)
        )

    def _try_out(self, connection: Connection, judged: _Judged, glance: Glance) -> None:
        if not judged.fit:
            raise _Busy
        connection.execute(self._set_aside, {"outbox_id": judged.fit_rows[0], "why": "probe"})
        self._put(connection, judged, glance)

    def _can(self, glance: Glance, work: Callable[[Connection], None]) -> bool:
        """Whether *work* can be done under the lock; it is undone in any case."""

        def probe(connection: Connection) -> None:
            self._dialect.begin_move(connection)
            if not self._dialect.lock_log(connection, glance.head):
                raise _Busy
            work(connection)
            self._dialect.check_constraints(connection)
            raise _Undo

        try:
            self._database.write(probe)
        except _Undo:
            return True
        except (_Busy, StorageUnavailable):
            pass
        return False

    def _others(self, glance: Glance) -> Iterator[_Judged]:
        """A few rows that wait behind the first, each judged by itself."""
        look = {"rows": _OTHERS + 1, "mark": NO_MARK}
        try:
            rows = self._database.read(
                lambda connection: connection.execute(self._look_for("NULL"), look).all()
            )
            for row in rows[1:]:
                judged = self._database.read(
                    lambda connection, row=row: self._judge(connection, [row[:-1]], glance)  # type: ignore[misc]
                )
                if judged.fit:
                    yield judged
        except StorageUnavailable:
            return

    def _is_refused_again(self) -> bool:
        """Whether the first row has failed so often that it must be its own fault.

        Once may be the end of a connection, at any moment; and in between another row may have become the first.
        """
        first = self._database.read(lambda connection: connection.execute(self._first_row).scalar())
        before, times = self._refused
        self._refused = (first, times + 1 if first == before else 1)
        return first is not None and self._refused[1] >= _REFUSALS

    def _refuse(self, glance: Glance, error: StorageUnavailable) -> Optional[Moved]:
        """Sets the row aside that the database refuses; None when it could not be copied either, this time."""
        outbox_id, times = self._refused
        assert outbox_id is not None
        reason = "the database refuses it: %s" % error
        # By reference alone only when its copy has failed as often as its move: what is not copied is gone.
        is_whole = times < 2 * _REFUSALS

        def work(connection: Connection) -> None:
            self._dialect.begin_move(connection)
            if not self._dialect.lock_log(connection, glance.head):
                raise _Busy
            if is_whole:
                connection.execute(self._set_aside, {"outbox_id": outbox_id, "why": reason})
            else:
                connection.execute(insert(set_aside).values(outbox_id=outbox_id, reason=reason, cut_from=0))
            if self._dialect.delete_outbox(connection, [outbox_id]) != 1:
                raise _Busy

        try:
            self._database.write(work)
        except (_Busy, StorageBusy):
            return Moved(busy=True)
        except StorageUnavailable:
            if is_whole:
                return None
            raise
        self._refused = (None, 0)
        return Moved(set_aside=((outbox_id, reason),), more=True)

    def _cut(self, name: str, most_bytes: int, characters: int) -> Any:
        """The column *name* of the outbox, or of a longer one the beginning."""
        size: Any = literal_column(self._dialect.size_of(name))
        start: Any = literal_column(self._dialect.start_of(name, characters))
        return case((size <= most_bytes, outbox.c[name]), else_=start).label(name)

    def _look_for(self, moment: str) -> Any:
        found = self._looks.get(moment)
        if found is None:
            column: Any = literal_column(moment)
            found = self._looks[moment] = (
                self._rows_of.add_columns(column)
                .where(outbox.c.id >= bindparam("mark"))
                .limit(bindparam("rows"))
            )
        return found

    def bring_back(self, *, most: int = 500) -> int:
        """Moves events that are apart to where they belong, if nobody has the place locked any more.

        Returns:
            How many; 0 when it must wait.

        Raises:
            StorageUnavailable: The database failed.
        """
        try:
            return self._database.write(lambda connection: self._bring_back(connection, most))
        except StorageBusy:
            return 0

    def _is_mixed(self) -> bool:
        """Whether code that knows nothing of events that are apart may serve beside this: it gives no marks."""
        newest = select(event.c.mark).order_by(event.c.position.desc()).limit(_NEWEST_EVENTS).subquery()
        unmarked = select(func.count()).select_from(newest).where(newest.c.mark.is_(None))
        return bool(self._database.read(lambda connection: connection.execute(unmarked).scalar()))

    def _bring_back(self, connection: Connection, most: int) -> int:
        self._dialect.begin_move(connection)
        return self._dialect.bring_back(connection, most=most)

    def _is_apart(self, glance: Glance) -> bool:
        """Whether the next event goes apart: as the last one did, or since its place was found locked."""
        return glance.apart_from is not None or self._apart_at == glance.head

    def lock_holder(self) -> Optional[str]:
        """Who holds the log's lock, for the operator; None when nobody does, or it cannot be told."""
        return self._database.read(self._dialect.lock_holder)

    def _read(self, connection: Connection, glance: Glance) -> Tuple[List[Any], bool]:
        """Rows, and whether the whole outbox was looked at."""
        backlog = self._backlog
        if not glance.sweep and backlog.mark != NO_MARK:
            look = self._look_for(backlog.moment_sql)
            rows = connection.execute(look, {"rows": self._rows, "mark": backlog.mark}).all()
            if not rows or not backlog.needs_sweep(rows[0][-1]):
                return [row[:-1] for row in rows], False
        backlog.before_sweep(connection)
        look = self._look_for("NULL")
        rows = connection.execute(look, {"rows": self._rows, "mark": NO_MARK}).all()
        return [row[:-1] for row in rows], True

    def _judge(self, connection: Connection, rows: List[Any], glance: Glance) -> _Judged:
        given = sorted({row[1] for row in rows if _is_id(row[1])})
        known: Set[str] = set()
        for start in range(0, len(given), 500):
            # What has been trimmed is forgotten, also where its row is still there.
            # Those apart first: an event that is brought back between the two questions is found by the second one.
            for table in reversed(tables_of(glance.apart_from is not None)):
                query = select(table.c.id).where(
                    table.c.id.in_(given[start : start + 500]), table.c.position >= glance.oldest
                )
                known.update(found[0] for found in connection.execute(query))
        judged = _Judged([], [], [], [], [], 0)
        marks = Marks()
        for row in rows:
            judged.rows.append(row[0])
            try:
                position = glance.head + 1 + len(judged.fit)
                entry = self._event(row, position, glance.now, marks.at(position))
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
            judged.fit_rows.append(row[0])
        return judged

    def _event(self, row: Any, position: int, now: str, mark: str) -> Event:
        _, event_id, channel, type_, data, size = row
        if data is None and size is not None:
            raise EventTooLarge(size, self._max_bytes)
        is_ours = _is_ours(channel, data)
        return Event(
            position,
            check_event_id(event_id),
            channel if is_ours else check_name("channel", channel),
            check_name("type", DEFAULT_TYPE if type_ is None else type_),
            check_data(data, max_bytes=max(self._max_bytes, _OURS_BYTES) if is_ours else self._max_bytes),
            now,
            mark,
        )

    def _commit(self, connection: Connection, judged: _Judged, glance: Glance) -> None:
        self._dialect.begin_move(connection)
        if not self._dialect.lock_log(connection, glance.head):
            raise _Busy
        self._put(connection, judged, glance)

    def _put(self, connection: Connection, judged: _Judged, glance: Glance) -> None:
        """Moves the rows that were judged; the lock is taken."""
        if judged.odd:
            # Whoever moved only such rows left the head as it was, and a given id may have come back since.
            ids = [row[0] for row in judged.odd]
            if connection.execute(self._look_again, {"ids": ids}).all() != judged.odd:
                raise _Busy
        for outbox_id, reason in judged.unfit:
            connection.execute(self._set_aside, {"outbox_id": outbox_id, "why": reason})
        entries = [_columns(entry) for entry in judged.fit]
        is_apart = self._is_apart(glance)
        if not self._dialect.insert_events(connection, entries, outbox_ids=judged.fit_rows, apart=is_apart):
            raise _Busy
        if self._dialect.delete_outbox(connection, judged.rows) != len(judged.rows):
            raise _Busy
        if entries:
            self._dialect.advance(connection, glance.head + len(entries))


def _columns(entry: Event) -> Dict[str, Any]:
    """*entry* as a row of the event table."""
    return {
        "position": entry.position,
        "id": entry.id,
        "channel": entry.channel,
        "type": entry.type,
        "data": entry.data,
        "published_at": entry.time,
        "mark": entry.mark,
    }


def _is_ours(channel: Any, data: Any) -> bool:
    """Whether an event of a reserved channel says what such events say."""
    if channel not in (REVOKE_CHANNEL, ERASE_CHANNEL):
        return False
    try:
        says = json.loads(data)
    except (TypeError, ValueError, RecursionError):
        return False
    if not isinstance(says, dict):
        return False
    if channel == REVOKE_CHANNEL:
        return isinstance(says.get("subject"), str)
    return positions_in(says) is not None


def _is_id(value: Any) -> bool:
    """Whether the log may hold *value* as an id; if not it is not asked for, since it may not even be text."""
    try:
        return value is not None and bool(check_name("id", value, longest=MAX_ID))
    except InvalidEvent:
        return False
