"""The end of the log in a table of its own, while another session has the end of the first one locked.

On MySQL and MariaDB a job that copies the events (``INSERT INTO archive SELECT * FROM legacy_poll_event``) at
REPEATABLE READ, InnoDB's default, locks every row *and the place behind the last one* until its transaction ends.
Nobody can insert there meanwhile, and nobody's events would arrive. So a move that has met such a lock puts its events
apart, and so do all that follow, until they are brought back. Positions go on: what is apart is always behind what is
not.

A read asks both tables in one statement, so it sees an event once also while it is brought back. Where nothing is
apart, one table is asked.
"""

from __future__ import annotations

from typing import Any, Callable, Sequence, Tuple

from sqlalchemy import bindparam, desc, func, null, select, union_all

from ..tables import apart, event

__all__ = [
    "at_position",
    "count_in",
    "first_apart",
    "last_beginning_in",
    "last_in",
    "tables_of",
    "together",
]


def tables_of(both: bool) -> Sequence[Any]:
    """Where events are."""
    return (event, apart) if both else (event,)


def together(find: Callable[[Any], Any], tables: Sequence[Any], *, limit: Any, order: bool = True) -> Any:
    """What *find* asks of each of *tables*, as one statement: in the order of positions, and no more than *limit*."""
    if len(tables) == 1:
        return find(tables[0])
    found: Any = union_all(*[find(table) for table in tables])
    return (found.order_by("position") if order else found).limit(limit)


def at_position(column: str, position: Any, both: bool) -> Any:
    """SQL for *column* of the event at *position*; NULL where there is none."""
    found = [
        select(table.c[column]).where(table.c.position == position).scalar_subquery()
        for table in tables_of(both)
    ]
    return func.coalesce(*found) if both else found[0]


def first_apart(both: bool) -> Any:
    """SQL for the first position that is apart; NULL where none is."""
    return select(func.min(apart.c.position)).scalar_subquery() if both else null()


def _in_range(table: Any) -> Tuple[Any, Any]:
    return table.c.position > bindparam("start"), table.c.position <= bindparam("upto")


def _count_in(both: bool) -> Any:
    # One statement, which sees both tables as of one moment.
    count: Any = select(func.count()).select_from(event).where(*_in_range(event)).scalar_subquery()
    if both:
        # One that somebody has copied by hand is one.
        elsewhere = select(event.c.position).where(event.c.position == apart.c.position).exists()
        query: Any = select(func.count()).select_from(apart).where(*_in_range(apart), ~elsewhere)
        count = count + query.scalar_subquery()
    return select(count)


def _last_in(both: bool) -> Any:
    lasts = [
        select(func.max(table.c.position)).where(*_in_range(table)).scalar_subquery()
        for table in tables_of(both)
    ]
    return select(func.coalesce(lasts[1], lasts[0])) if both else select(lasts[0])


def _last_beginning_in(both: bool) -> Any:
    def beginning(table: Any) -> Any:
        query: Any = select(table.c.position).where(*_in_range(table))
        for other in tables_of(both):
            before = other.alias()
            query = query.where(
                ~select(before.c.position).where(before.c.position == table.c.position - 1).exists()
            )
        return query.order_by(table.c.position.desc()).limit(1)

    if not both:
        return beginning(event)
    return union_all(*[beginning(table) for table in tables_of(both)]).order_by(desc("position")).limit(1)


_COUNT = [_count_in(False), _count_in(True)]
_LAST = [_last_in(False), _last_in(True)]
_LAST_BEGINNING = [_last_beginning_in(False), _last_beginning_in(True)]


def count_in(both: bool) -> Any:
    """The number of events after ``start`` up to ``upto``."""
    return _COUNT[both]


def last_in(both: bool) -> Any:
    """The last position after ``start`` up to ``upto``."""
    return _LAST[both]


def last_beginning_in(both: bool) -> Any:
    """The last position there that does not follow another one."""
    return _LAST_BEGINNING[both]
