"""Whether the one row of ``legacy_poll_log`` fits the events, and how it is put right.

The row says where the log ends. When it is gone (all tables were emptied), doubled, or older than the events (a dump
was loaded beside it, or one table was restored without the others), positions can no longer be given: two heads would
be counted, or a position given twice. Nothing is guessed while serving; the operator is told one command, which makes
the row fit the events and gives the log another identity, since nobody can say which cursors were right.

Events that are missing *below* the head are no damage: readers are told (see eventlog), and the log goes on.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Optional

from sqlalchemy import delete, func, insert, select
from sqlalchemy.engine import Connection

from ..tables import event, log
from .apart import tables_of

__all__ = ["EMPTY", "Repaired", "damage", "misplaced", "repair"]

_ADVICE = "; run: legacy-poll repair"
#: What is said when there is no row.
EMPTY = "legacy_poll_log is empty: nothing says where the log ends" + _ADVICE
_LASTS = [select(func.max(table.c.position)).scalar_subquery() for table in tables_of(True)]
_FIRST = select(func.min(event.c.position)).scalar_subquery()


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
    last = max(each or 0 for each in rows[0][2:])
    if last > head:
        return (
            "legacy_poll_log says that the log ends at position %d, and there are events up to %d: one of the two "
            "tables was loaded or restored without the other%s" % (head, last, _ADVICE)
        )
    return misplaced(head, oldest)


def misplaced(head: int, oldest: int) -> Optional[str]:
    """What is wrong with a log that begins and ends there; None when nothing is."""
    if 1 <= oldest <= head + 1:
        return None
    return "legacy_poll_log says that a log which ends at position %d begins at %d%s" % (
        head,
        oldest,
        _ADVICE,
    )


def repair(connection: Connection, *, both: bool) -> Repaired:
    """Makes the log's row fit the events; a write transaction is open, and no other repair or upgrade runs."""
    # Locked first: what a move does meanwhile would look like damage, or be undone by the repair.
    rows = connection.execute(select(log.c.log_id, log.c.head, log.c.oldest).with_for_update()).all()
    found = damage(connection, both=both)
    if found is None:
        return Repaired(None, *rows[0])
    first, *lasts = connection.execute(select(_FIRST, *(_LASTS if both else _LASTS[:1]))).one()
    head = max([row[1] for row in rows] + [last or 0 for last in lasts])
    # What cannot be is no reason to delete anything: then all that is there is retained.
    oldest = min([row[2] for row in rows if 1 <= row[2] <= head + 1] or [first or head + 1])
    repaired = Repaired(found, str(uuid.uuid4()), head, oldest)
    connection.execute(delete(log))
    connection.execute(insert(log).values(log_id=repaired.log_id, head=repaired.head, oldest=repaired.oldest))
    return repaired
