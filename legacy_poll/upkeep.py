"""What an operator looks at and does to the tables: status, rows that were set aside."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Dict, List, Optional, Sequence

from sqlalchemy import delete, func, insert, select

from . import schema
from .database import Database
from .eventlog import EventLog
from .tables import outbox, set_aside

__all__ = ["Status", "status", "set_aside_rows", "retry", "drop"]

_COPY = ("event_id", "channel", "type", "data")


@dataclass(frozen=True)
class Status:
    """The tables at one moment.

    Attributes:
        version: Of the schema.
        log_id: The log's identity.
        head: Last position given.
        oldest: First position retained.
        events: How many are retained.
        waiting: Outbox rows that are committed and not sequenced.
        set_aside: Rows that broke a rule.
        now: The database's time: RFC 3339, UTC.
        oldest_time: When the oldest retained event entered the log; None when none is.
    """

    version: str
    log_id: str
    head: int
    oldest: int
    events: int
    waiting: int
    set_aside: int
    now: str
    oldest_time: Optional[str]

    def as_dict(self) -> Dict[str, Any]:
        """For JSON."""
        return asdict(self)


def status(database: Database, log: EventLog) -> Status:
    """How the tables are.

    Raises:
        SchemaMissing: There are none.
        StorageUnavailable: The database failed.
    """
    schema.check(database)
    glance = log.glance()

    def count(table: Any) -> int:
        return int(
            database.read(
                lambda connection: connection.execute(select(func.count()).select_from(table)).scalar()
            )
            or 0
        )

    return Status(
        version=schema.version(database),
        log_id=glance.log_id,
        head=glance.head,
        oldest=glance.oldest,
        events=glance.head - glance.oldest + 1,
        waiting=count(outbox),
        set_aside=count(set_aside),
        now=glance.now,
        oldest_time=log.time_at(glance.oldest),
    )


def set_aside_rows(database: Database, *, limit: int = 100) -> List[Dict[str, Any]]:
    """The rows that were set aside, the last first, with their reasons; data cut at 200 characters.

    Raises:
        StorageUnavailable: The database failed.
    """
    query = select(
        set_aside.c.id,
        set_aside.c.outbox_id,
        set_aside.c.event_id,
        set_aside.c.channel,
        set_aside.c.type,
        func.substr(set_aside.c.data, 1, 200),
        set_aside.c.reason,
        set_aside.c.set_aside_at,
    )
    names = ("id", "outbox_id", "event_id", "channel", "type", "data", "reason", "set_aside_at")
    rows = database.read(
        lambda connection: connection.execute(query.order_by(set_aside.c.id.desc()).limit(limit)).all()
    )
    return [
        dict(zip(names, row[:-1] + (None if row[-1] is None else str(row[-1]),))) for row in map(tuple, rows)
    ]


def retry(database: Database, ids: Optional[Sequence[int]]) -> int:
    """Puts rows back into the outbox, to be judged again: after a limit was raised, say.

    Args:
        database: Where.
        ids: Of set-aside rows; None is all of them.

    Returns:
        How many there were.

    Raises:
        StorageUnavailable: The database failed; nothing was changed.
    """

    def work(connection: Any) -> int:
        chosen = _chosen(connection, ids)
        for each in chosen:
            back = select(*[set_aside.c[name] for name in _COPY]).where(set_aside.c.id == each)
            connection.execute(insert(outbox).from_select(list(_COPY), back))
            connection.execute(delete(set_aside).where(set_aside.c.id == each))
        return len(chosen)

    return database.write(work)


def drop(database: Database, ids: Optional[Sequence[int]]) -> int:
    """Deletes set-aside rows; *ids* and errors as for :func:`retry`."""

    def work(connection: Any) -> int:
        chosen = _chosen(connection, ids)
        for each in chosen:
            connection.execute(delete(set_aside).where(set_aside.c.id == each))
        return len(chosen)

    return database.write(work)


def _chosen(connection: Any, ids: Optional[Sequence[int]]) -> List[int]:
    query = select(set_aside.c.id).order_by(set_aside.c.id)
    if ids is not None:
        query = query.where(set_aside.c.id.in_(list(ids)))
    return [row[0] for row in connection.execute(query)]
