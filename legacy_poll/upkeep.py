"""What an operator looks at and does to the tables: status, rows that were set aside."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Callable, Dict, List, Optional, Sequence

from sqlalchemy import delete, func, insert, select

from . import schema
from .database import Database
from .errors import InvalidEvent, StorageUnavailable
from .eventlog import EventLog
from .storage.apart import tables_of
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
    found = schema.version(database)
    if not found:
        schema.check(database)  # says what to do
    glance = log.glance()

    tables = tables_of(database.dialect.keeps_apart)

    def count(table: Any, *where: Any) -> int:
        query = select(func.count()).select_from(table).where(*where)
        return int(database.read(lambda connection: connection.execute(query).scalar()) or 0)

    return Status(
        version=found,
        log_id=glance.log_id,
        head=glance.head,
        oldest=glance.oldest,
        # Those that are there: it may be fewer than the positions say.
        events=sum(count(table, table.c.position >= glance.oldest) for table in tables),
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
    names = ("id", "outbox_id", "event_id", "channel", "type", "data", "reason", "set_aside_at")

    def fetch(shown: Callable[[Any], Any]) -> List[Any]:
        query = select(
            set_aside.c.id,
            set_aside.c.outbox_id,
            *[shown(set_aside.c[name]) for name in ("event_id", "channel", "type")],
            shown(func.substr(set_aside.c.data, 1, 200)),
            shown(set_aside.c.reason),
            set_aside.c.set_aside_at,
        )
        query = query.order_by(set_aside.c.id.desc()).limit(limit)
        return database.read(lambda connection: list(connection.execute(query)))

    try:
        rows = fetch(lambda text: text)
    except StorageUnavailable:
        # Perhaps one was set aside since no driver can decode it.
        rows = fetch(database.dialect.escaped)
    return [
        dict(zip(names, row[:-1] + (None if row[-1] is None else str(row[-1]),))) for row in map(tuple, rows)
    ]


def retry(database: Database, ids: Optional[Sequence[int]]) -> int:
    """Puts rows back into the outbox, to be judged again: after a limit was raised, say.

    Args:
        database: Where.
        ids: Of set-aside rows; None is all of them whose data is here.

    Returns:
        How many there were.

    Raises:
        InvalidEvent: One of *ids* is not there, or was too large to be kept whole; nothing was changed.
        StorageUnavailable: The database failed; nothing was changed.
    """

    def work(connection: Any) -> int:
        chosen = _chosen(connection, ids, whole=True)
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


def _chosen(connection: Any, ids: Optional[Sequence[int]], *, whole: bool = False) -> List[int]:
    # Locked, or a second command at the same moment would put the same rows back once more.
    query = select(set_aside.c.id, set_aside.c.cut_from).order_by(set_aside.c.id).with_for_update()
    if ids is not None:
        query = query.where(set_aside.c.id.in_(list(ids)))
    rows = connection.execute(query).all()
    there = {row[0] for row in rows}
    for each in ids or ():
        if each not in there:
            raise InvalidEvent("row", each, "there is none of this number among the rows that were set aside")
    for row in rows:
        if whole and ids is not None and row[1] is not None:
            raise InvalidEvent(
                "row",
                row[0],
                "its data (%d bytes) was too large to be kept; it cannot be put back" % row[1]
                if row[1]
                else "only its number and the reason were kept; it cannot be put back",
            )
    return [row[0] for row in rows if not (whole and row[1] is not None)]
