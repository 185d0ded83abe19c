"""SQLite 3.31 and later, in a file.

SQLite lets one transaction write at a time, so the writer's own transaction gives the position: a trigger on the
outbox (in the migrations) moves each row that is plainly fit as it is inserted. What the trigger does not judge stays
in the outbox, with everything behind it, so that the order holds; the sequencer then moves it as on other databases,
inside BEGIN IMMEDIATE. WAL, so that readers and the writer do not wait for each other.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import Any, Iterator, Optional, Tuple

from sqlalchemy import text
from sqlalchemy.engine import Connection

from ..errors import ConfigError
from .base import MOVE_SECONDS, Dialect, Purpose

__all__ = ["SQLite"]


_WRITE_WAIT_SECONDS = 0.02


def _text_of(raw: bytes) -> str:
    # Bytes that are not UTF-8 must not stop the rows behind them: as surrogates they are seen, and set aside.
    return raw.decode("utf-8", "surrogateescape")


class SQLite(Dialect):
    drivers = ("pysqlite",)
    now_sql = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
    connection_per_thread = True
    is_file = True

    def size_of(self, column: str) -> str:
        return "length(CAST(%s AS BLOB))" % column

    def start_of(self, column: str, characters: int) -> str:
        # Of the bytes: as text it would end at a NUL character, and what is left might look fit.
        return "CAST(substr(CAST(%s AS BLOB), 1, %d) AS TEXT)" % (column, 4 * characters)

    def check(self) -> None:
        super().check()
        url = self.engine.url
        if not url.database or ":memory:" in url.database or "mode=memory" in str(url):
            raise ConfigError(
                "the database is %s: an SQLite database in memory belongs to one connection, and we need our own; "
                "use a file, such as sqlite:////var/lib/app/app.db" % str(url)
            )

    def version(self, connection: Connection) -> Tuple[str, Tuple[int, ...], Tuple[int, ...]]:
        found = str(self.scalar(connection, "SELECT sqlite_version()"))
        return "SQLite", tuple(int(part) for part in found.split(".")[:2]), (3, 31)

    def on_connect(self, connection: Any, purpose: Purpose) -> None:
        connection.isolation_level = None  # no BEGIN by the driver: ours is IMMEDIATE, see on_begin
        connection.text_factory = _text_of
        # By default a write that cannot begin at once is tried at a later tick: to wait would make the reads late.
        wait = _WRITE_WAIT_SECONDS if purpose.wait is None else purpose.wait
        seconds = wait if purpose.write else MOVE_SECONDS
        connection.execute("PRAGMA busy_timeout = %d" % (1000 * seconds))
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            # Remembered in the file. Refused while others use it; then things work, only slower, until the next try.
            with contextlib.suppress(sqlite3.OperationalError):
                connection.execute("PRAGMA journal_mode = WAL")

    def identity(self) -> Any:
        # A backup put in the file's place is another file, and who has the old one open would never see it. While
        # there is none, a new connection would make an empty one: then the old one is kept.
        try:
            found = os.stat(str(self.engine.url.database))
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def on_begin(self, connection: Connection, *, limit: Optional[float]) -> None:
        # A transaction that reads first and writes later fails at once when another writer came between.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    def needs_prepare(self, connection: Connection, *, max_event_bytes: int) -> bool:
        query = "SELECT value FROM legacy_poll_setting WHERE name = 'max_event_bytes'"
        return bool(self.scalar(connection, query) != max_event_bytes)

    def prepare(self, connection: Connection, *, max_event_bytes: int) -> None:
        connection.execute(
            text(
                "INSERT OR REPLACE INTO legacy_poll_setting (name, value) VALUES ('max_event_bytes', :value)"
            ),
            {"value": max_event_bytes},
        )

    def lock_log(self, connection: Connection, head: int) -> bool:
        # The transaction is IMMEDIATE: it holds the one write lock there is.
        return bool(self.scalar(connection, "SELECT head FROM legacy_poll_log") == head)

    def lock_holder(self, connection: Connection) -> Optional[str]:
        return "another connection's open write transaction (SQLite does not tell whose)"

    @contextlib.contextmanager
    def upgrade_lock(self, connection: Connection) -> Iterator[None]:
        yield  # BEGIN IMMEDIATE already keeps the others out

    def is_busy(self, error: Exception) -> bool:
        return "database is locked" in str(getattr(error, "orig", ""))

    def is_missing_table(self, error: Exception) -> bool:
        return "no such table: legacy_poll" in str(getattr(error, "orig", ""))
