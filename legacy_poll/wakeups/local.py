"""A commit in this process.

The commit event of SQLAlchemy comes *before* the database has committed (and a savepoint's, or an outer
transaction's, may come later still), so whoever is woken looks again a few milliseconds later; see the publisher.
Connections that carry an event of ours are marked on their DBAPI connection's record, so that the listener costs the
app's other transactions one dictionary look-up.
"""

from __future__ import annotations

import weakref
from typing import Any, Callable

from sqlalchemy import event as listening
from sqlalchemy.engine import Connection, Engine

from ..tables import outbox

__all__ = ["LocalWakeup"]

_MARK = "legacy_poll.published"
_ROW = outbox.insert()


class LocalWakeup:
    """Calls *wake* when a transaction that published commits.

    Args:
        wake: Must not block, raise, or use a connection.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._engines: "weakref.WeakSet[Engine]" = weakref.WeakSet()

    def watch(self, engine: Engine) -> None:
        """Listens for commits of *engine*; again is no error."""
        if engine not in self._engines:
            self._engines.add(engine)
            listening.listen(engine, "commit", self._committed)

    def published(self, where: Any) -> None:
        """Marks the transaction open on *where*, a Session, a scoped session or a Connection."""
        if isinstance(where, Connection):
            connection = where
        else:
            # Asked as the event's row was: a session may have one database for some tables and another for others.
            connection = where.connection(bind_arguments={"clause": _ROW})
        self.watch(connection.engine)
        connection.info[_MARK] = True
        if _commits_by_itself(connection):
            self._wake()  # there may be no commit to hear of

    def _committed(self, connection: Connection) -> None:
        if connection.info.pop(_MARK, None):
            self._wake()


def _commits_by_itself(connection: Connection) -> bool:
    """Whether each statement on *connection* is a transaction, as far as SQLAlchemy was told: it costs no query."""
    level = connection.get_execution_options().get("isolation_level")
    if level is None:
        dialect: Any = connection.dialect
        # Of create_engine(); SQLAlchemy 1.4 has it under the second name.
        level = getattr(dialect, "_on_connect_isolation_level", None) or getattr(
            dialect, "isolation_level", None
        )
    return level == "AUTOCOMMIT"
