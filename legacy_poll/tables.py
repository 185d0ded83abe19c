"""Tables and indexes: the metadata that the migrations are compared against.

A contract with other programs (see docs/tables.md): names and columns of ``legacy_poll_outbox`` may be relied on by
whatever can INSERT. The outbox has no unique key but its own id: one on ``event_id`` would make a user's transaction
wait for, or fail on, another's. Text is compared byte by byte on every database.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Identity,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import DateTime

__all__ = ["OPTIONS", "metadata", "outbox", "event", "apart", "log", "set_aside", "setting"]

metadata = MetaData()

_BIG = BigInteger().with_variant(Integer(), "sqlite")
# Beyond the 64 KiB of MySQL's TEXT: what is too long must arrive whole, so that it can be set aside, not cut.
_LONG = Text().with_variant(mysql.LONGTEXT(), "mysql").with_variant(mysql.LONGTEXT(), "mariadb")
_TIME = (
    DateTime(timezone=True)
    .with_variant(mysql.TIMESTAMP(fsp=6), "mysql")
    .with_variant(mysql.TIMESTAMP(fsp=6), "mariadb")
    .with_variant(Text(), "sqlite")
)
OPTIONS: Any = {
    # All by name, since a server's defaults may be others: an index over 200 characters needs the row format.
    "mysql_engine": "InnoDB",
    "mysql_row_format": "DYNAMIC",
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_bin",
    "mariadb_engine": "InnoDB",
    "mariadb_row_format": "DYNAMIC",
    "mariadb_charset": "utf8mb4",
    "mariadb_collate": "utf8mb4_bin",
}


class insert_time(FunctionElement):
    """The default of a column that says when its row was inserted, by the database's clock."""

    inherit_cache = True
    type = DateTime()


@compiles(insert_time, "postgresql")
def _insert_time_postgresql(element: Any, compiler: Any, **kw: Any) -> str:
    return "clock_timestamp()"


@compiles(insert_time, "mysql")
@compiles(insert_time, "mariadb")
def _insert_time_mysql(element: Any, compiler: Any, **kw: Any) -> str:
    return "CURRENT_TIMESTAMP(6)"


@compiles(insert_time, "sqlite")
def _insert_time_sqlite(element: Any, compiler: Any, **kw: Any) -> str:
    return "(strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))"


outbox = Table(
    "legacy_poll_outbox",
    metadata,
    # AUTOINCREMENT on SQLite: without it an emptied table hands its ids out again.
    Column("id", _BIG, Identity(), primary_key=True, autoincrement=True),
    Column("event_id", Text),
    Column("channel", Text),
    Column("type", Text),
    Column("data", _LONG),
    Column("created_at", _TIME, server_default=insert_time()),
    sqlite_autoincrement=True,
    **OPTIONS,
)


def _event_columns() -> Any:
    return [
        Column("position", _BIG, primary_key=True, autoincrement=False),
        Column("id", String(100), nullable=False),
        Column("channel", String(200), nullable=False),
        Column("type", String(200), nullable=False),
        Column("data", _LONG, nullable=False),
        # RFC 3339 text, UTC, milliseconds: as it stands in answers, and it sorts.
        Column("published_at", String(24), nullable=False),
        # From a random number of the move that gave the position: what a cursor is checked by, see cursors.
        Column("mark", String(8)),
    ]


event = Table(
    "legacy_poll_event",
    metadata,
    *_event_columns(),
    Index("legacy_poll_event_channel", "channel", "position"),
    Index("legacy_poll_event_id", "id"),
    **OPTIONS,
)

# The end of the log, for as long as another session has the end of legacy_poll_event locked; see storage.apart. Empty
# but for that, and where the database knows no such locks.
apart = Table(
    "legacy_poll_apart",
    metadata,
    *_event_columns(),
    Index("legacy_poll_apart_channel", "channel", "position"),
    Index("legacy_poll_apart_id", "id"),
    **OPTIONS,
)

log = Table(
    "legacy_poll_log",
    metadata,
    Column("log_id", String(36), primary_key=True),
    Column("head", BigInteger, nullable=False),
    Column("oldest", BigInteger, nullable=False),
    # One value, unique: a second row is refused. Two logs in one would count two heads.
    Column("one_row", SmallInteger, CheckConstraint("one_row = 1"), nullable=False, server_default="1"),
    Index("legacy_poll_log_one_row", "one_row", unique=True),
    **OPTIONS,
)

set_aside = Table(
    "legacy_poll_set_aside",
    metadata,
    Column("id", _BIG, Identity(), primary_key=True, autoincrement=True),
    Column("outbox_id", BigInteger),
    Column("event_id", Text),
    Column("channel", Text),
    Column("type", Text),
    Column("data", _LONG),
    Column("reason", Text, nullable=False),
    Column("created_at", _TIME),
    Column("set_aside_at", _TIME, server_default=insert_time()),
    # Bytes of the data that the row had, where they are not all here; None where they are.
    Column("cut_from", BigInteger),
    sqlite_autoincrement=True,
    **OPTIONS,
)

# What the SQLite trigger must know of the settings; empty elsewhere.
setting = Table(
    "legacy_poll_setting",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", BigInteger, nullable=False),
    **OPTIONS,
)
