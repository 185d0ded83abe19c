"""Events that are taken out of the log for good: a person's data, a secret that was published by mistake.

An erased event leaves its row, empty: another id, the channel ``$erased`` that nobody can read, no data. So the log has
no hole, a cursor behind it stays good (it is checked by the mark), and who is before it goes on past it. The id is
forgotten: published again, it is a new event.

What waits in the outbox and what was set aside goes as well. Workers are told by an event on ``$erase``, in the same
transaction, and look at these positions again; what a client has been sent cannot be taken back.

Interleaving guarded against: a row that moves from the outbox to the log meanwhile. The outbox is looked at first, so
it is found in one of the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, FrozenSet, List, Sequence, Tuple

from sqlalchemy import bindparam, delete, insert, or_, select, update
from sqlalchemy.engine import Connection

from ..cursors import check_of
from ..database import Database
from ..errors import InvalidEvent
from ..events import ERASE_CHANNEL, ERASED_CHANNEL, RESERVED_PREFIX, encode_data, new_event_id
from ..tables import apart, event, outbox, set_aside
from .apart import tables_of, together

__all__ = ["Erased", "What", "erase"]

#: Events that one transaction erases.
_ROWS = 500
_ERASE: List[Any] = [
    update(table)
    .where(table.c.position == bindparam("at"))
    .values(
        id=bindparam("new_id"), channel=ERASED_CHANNEL, type="erased", data="null", mark=bindparam("new_mark")
    )
    for table in (apart, event)
]


@dataclass(frozen=True)
class What:
    """What is to be erased: all that fits any of these.

    Attributes:
        ids: Of events.
        positions: First and last of ranges.
        channels: Whole ones.
    """

    ids: FrozenSet[str] = frozenset()
    positions: Tuple[Tuple[int, int], ...] = ()
    channels: FrozenSet[str] = frozenset()

    def __post_init__(self) -> None:
        for channel in self.channels:
            if channel.startswith(RESERVED_PREFIX):
                raise InvalidEvent("channel", channel, "names that start with $ are reserved")


@dataclass(frozen=True)
class Erased:
    """How much was erased.

    Attributes:
        events: Of the log, those that are about to be trimmed included.
        waiting: Rows of the outbox.
        set_aside: Rows that were set aside.
    """

    events: int = 0
    waiting: int = 0
    set_aside: int = 0


def erase(database: Database, what: What, *, progress: Callable[[int], None] = lambda events: None) -> Erased:
    """Erases *what*, some hundreds of events in a transaction; safe to run again, and after it was interrupted.

    Revocations stay: without them, tokens would be good again.

    Args:
        database: Where.
        what: Which ones.
        progress: Called with the number of events so far.

    Raises:
        StorageUnavailable: The database failed; what was erased before stays so.
    """
    waiting = database.write(lambda connection: _erase_waiting(database, connection, what))
    aside = database.write(lambda connection: _erase_set_aside(connection, what))
    events, after, both = 0, 0, database.dialect.keeps_apart
    while True:
        found = database.write(partial(_erase_some, what=what, after=after, both=both))
        if not found:
            return Erased(events, waiting, aside)
        events, after = events + sum(1 for _, erased in found if erased), found[-1][0]
        progress(events)


def _erase_waiting(database: Database, connection: Connection, what: What) -> int:
    ids = _matching(connection, outbox, what)
    return database.dialect.delete_outbox(connection, ids)


def _erase_set_aside(connection: Connection, what: What) -> int:
    ids = _matching(connection, set_aside, what)
    for each in ids:
        connection.execute(delete(set_aside).where(set_aside.c.id == each))
    return len(ids)


def _matching(connection: Connection, table: Any, what: What) -> List[int]:
    clauses = _clauses(table.c.event_id, table.c.channel, what)
    if not clauses:
        return []
    rows = connection.execute(
        select(table.c.id, table.c.event_id, table.c.channel).where(or_(*clauses)).order_by(table.c.id)
    )
    return [row[0] for row in rows if row[1] in what.ids or row[2] in what.channels]


def _clauses(event_id: Any, channel: Any, what: What) -> List[Any]:
    clauses = []
    if what.ids:
        clauses.append(event_id.in_(sorted(what.ids)))
    if what.channels:
        clauses.append(channel.in_(sorted(what.channels)))
    return clauses


def _erase_some(connection: Connection, what: What, after: int, *, both: bool) -> List[Tuple[int, bool]]:
    """Positions that fit, behind *after*, and whether the event there was erased now."""

    def found_in(table: Any) -> Any:
        clauses = _clauses(table.c.id, table.c.channel, what)
        clauses += [table.c.position.between(first, last) for first, last in what.positions]
        return (
            select(table.c.position, table.c.id, table.c.channel, table.c.mark)
            .where(table.c.position > after, or_(*clauses))
            .order_by(table.c.position)
            .limit(_ROWS)
        )

    if not (what.ids or what.channels or what.positions):
        return []
    rows = connection.execute(together(found_in, tables_of(both), limit=_ROWS)).all()
    found, chosen = [], []
    for row in rows:
        # Once more byte by byte, whatever the column's collation; and what is ours stays.
        fits = row[1] in what.ids or row[2] in what.channels
        fits = fits or any(first <= row[0] <= last for first, last in what.positions)
        fits = fits and not row[2].startswith(RESERVED_PREFIX)
        found.append((row[0], fits))
        if fits:
            chosen.append(row)
    if chosen:
        values = [
            {"at": row[0], "new_id": new_event_id(), "new_mark": check_of(row[1], row[3])} for row in chosen
        ]
        # Those apart first: one that is being brought back is then waited for, and found in the other table.
        for statement in _ERASE if both else _ERASE[1:]:
            connection.execute(statement, values)
        connection.execute(
            insert(outbox).inline(),
            {
                "event_id": new_event_id(),
                "channel": ERASE_CHANNEL,
                "type": "erase",
                "data": encode_data({"positions": _ranges([row[0] for row in chosen])}, max_bytes=1 << 16),
            },
        )
    return found


def _ranges(positions: Sequence[int]) -> List[List[int]]:
    """[3, 4, 5, 9] as [[3, 5], [9, 9]]."""
    ranges: List[List[int]] = []
    for position in positions:
        if ranges and position == ranges[-1][1] + 1:
            ranges[-1][1] = position
        else:
            ranges.append([position, position])
    return ranges
