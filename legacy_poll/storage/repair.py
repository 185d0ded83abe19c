"""Whether the one row of ``legacy_poll_log`` fits the events, and how it is put right.

The row says where the log ends. When it is gone (all tables were emptied), doubled, or older than the events (a dump
was loaded beside it, or one table was restored without the others), positions can no longer be given: two heads would
be counted, or a position given twice. Nothing is guessed while serving; the operator is told one command, which makes
the row fit the events and gives the log another identity, since nobody can say which cursors were right.

Events that are missing *below* the head are no damage: readers are told (see eventlog), and the log goes on.
"""

from __future__ import annotations

import contextlib
import uuid
from dataclasses import dataclass
from typing import Any, Optional

from sqlalchemy import Index, delete, func, insert, inspect, select, update
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from ..errors import LogDamaged, shown
from ..tables import log
from .apart import tables_of

__all__ = ["EMPTY", "Repaired", "damage", "misplaced", "rename", "repair"]

_ADVICE = "; run: legacy-poll repair"
#: What is said when there is no row.
EMPTY = "legacy_poll_log is empty: nothing says where the log ends" + _ADVICE
#: A head from which no program of anybody's has counted.
_LAST_HEAD = 2**62
_LASTS = [select(func.max(table.c.position)).scalar_subquery() for table in tables_of(True)]
_FIRSTS = [
    select(func.min(table.c.position)).where(table.c.position >= 1).scalar_subquery()
    for table in tables_of(True)
]


@dataclass(frozen=True)
class Repaired:
    """What a repair did.

    Attributes:
        damage: What was wrong; None when nothing was, and nothing was changed.
        log_id: The log's identity now.
        head: The last position given.
        oldest: The first position retained.
    """

    damage: Optional[str]
    log_id: str
    head: int
    oldest: int


def damage(connection: Connection, *, both: bool) -> Optional[str]:
    """What is wrong with the log's row, and the command that repairs it; None when nothing is.

    Args:
        connection: Reads.
        both: Events may be apart.
    """
    lasts = _LASTS if both else _LASTS[:1]
    # The bounds and the last position by one statement: between two, another worker's move would look like damage.
    rows = connection.execute(select(log.c.head, log.c.oldest, *lasts)).all()
    if not rows:
        return EMPTY
    if len(rows) > 1:
        return "legacy_poll_log has %d rows, and a log has one%s" % (len(rows), _ADVICE)
    head, oldest = rows[0][:2]
    found = misplaced(head, oldest)
    if found is not None:
        return found
    last = max(each or 0 for each in rows[0][2:])
    if last > head:
        return (
            "legacy_poll_log says that the log ends at position %d, and there are events up to %d: one of the two "
            "tables was loaded or restored without the other%s" % (head, last, _ADVICE)
        )
    return None


def misplaced(head: Any, oldest: Any) -> Optional[str]:
    """What is wrong with a log that begins and ends there; None when nothing is."""
    if _is_place(head, oldest):
        return None
    return "legacy_poll_log says that a log which ends at position %s begins at %s%s" % (
        shown(head),
        shown(oldest),
        _ADVICE,
    )


def _is_place(head: Any, oldest: Any) -> bool:
    # SQLite keeps what it is given, also a text.
    return isinstance(head, int) and isinstance(oldest, int) and 1 <= oldest <= head + 1 <= _LAST_HEAD


def rename(connection: Connection) -> None:
    """Gives the log another identity, if it has its one row; else a repair does so."""
    ids = connection.execute(select(log.c.log_id)).scalars().all()
    if len(ids) == 1:
        connection.execute(update(log).values(log_id=str(uuid.uuid4())))


def repair(connection: Connection, *, both: bool) -> Repaired:
    """Makes the log's row fit the events; a write transaction is open, and no other repair or upgrade runs."""
    # Locked first: what a move does meanwhile would look like damage, or be undone by the repair.
    rows = connection.execute(select(log.c.log_id, log.c.head, log.c.oldest).with_for_update()).all()
    found = damage(connection, both=both)
    if found is None:
        return Repaired(None, *rows[0])
    tables = 2 if both else 1
    ends = connection.execute(select(*_FIRSTS[:tables], *_LASTS[:tables])).one()
    firsts = [each for each in ends[:tables] if each is not None]
    last = max(each or 0 for each in ends[tables:])
    if last >= _LAST_HEAD:
        raise LogDamaged(
            "legacy_poll_event has an event at position %d, behind which there is hardly a place for another; move or "
            "delete it by hand, and run: legacy-poll repair" % last
        )
    heads = [row[1] for row in rows if isinstance(row[1], int) and row[1] < _LAST_HEAD]
    head = max(heads + [last])
    # What cannot be is no reason to delete anything: then all that is there is retained.
    oldest = min([row[2] for row in rows if _is_place(head, row[2])] or firsts or [head + 1])
    repaired = Repaired(found, str(uuid.uuid4()), head, oldest)
    connection.execute(delete(log))
    connection.execute(insert(log).values(log_id=repaired.log_id, head=repaired.head, oldest=repaired.oldest))
    # How two rows came about: somebody has dropped it.
    there = {each["name"] for each in inspect(connection).get_indexes(log.name)}
    for index in log.indexes:
        if index.name not in there:
            _make(connection, index)
    return repaired


def _make(connection: Connection, index: Index) -> None:
    # Whoever may write rows need not have the right to make an index; the rows are right all the same.
    within = (
        connection.begin_nested() if connection.dialect.name == "postgresql" else contextlib.nullcontext()
    )
    with contextlib.suppress(DBAPIError), within:
        index.create(connection)
