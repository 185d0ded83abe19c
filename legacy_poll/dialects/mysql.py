"""MariaDB 10.6 and MySQL 8 and later by SKIP LOCKED; older ones by a named lock beside the row's.

A named lock belongs to the session and is global to the server, so it only saves the waiting: the row's lock is what
protects the log. Rows are deleted one by one by key: a range or an IN list may lock rows of open transactions, and
then everybody stands behind them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import zlib
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from sqlalchemy import text
from sqlalchemy.engine import Connection, Engine

from ..errors import StorageBusy
from .base import MOVE_SECONDS, Dialect, Purpose, code_of

__all__ = ["MySQL"]

_NO_SUCH_TABLE = 1146
_UPGRADE_WAIT_SECONDS = 60
# Wait timeout, deadlock, NOWAIT.
_LOCK_ERRORS = (1205, 1213, 3572)
# Who waits for a lock is no holder, but another worker in the same queue. The holder may have any default database.
_HOLDER = text(
    "SELECT t.trx_mysql_thread_id, p.user, p.host, t.trx_state, TIMESTAMPDIFF(SECOND, t.trx_started, NOW())"
    " FROM information_schema.innodb_trx t JOIN information_schema.processlist p ON p.id = t.trx_mysql_thread_id"
    " WHERE t.trx_rows_locked > 0 AND t.trx_state <> 'LOCK WAIT' AND p.id <> CONNECTION_ID()"
    " ORDER BY t.trx_started LIMIT 3"
)
# What refuses to copy a time that somebody could insert with another sql_mode; and what takes '' for NULL.
_UNWANTED_MODES = ("NO_ZERO_DATE", "NO_ZERO_IN_DATE", "TRADITIONAL", "EMPTY_STRING_IS_NULL")
# For all servers that we know of: what a statement of ours is refused for, and what cuts its result or changes its
# meaning. Not by DEFAULT, which is whatever the server's administrator has set.
_OURS = (
    "sql_safe_updates = 0, sql_select_limit = 18446744073709551615, sql_big_selects = 1, sql_auto_is_null = 0,"
    " completion_type = 'NO_CHAIN'"
)
_IDLE_CONNECTION = "wait_timeout"
#: Between two moves, seconds.
_MOVER_IDLE_SECONDS = 3600
#: Where a connection's record keeps that it must not idle.
_HURRIED = "legacy_poll.hurried"
#: While an upgrade computes between two statements, on a machine of any speed, seconds.
_UPGRADE_IDLE_SECONDS = 600
#: An upgrade's longest wait for one table: meanwhile everybody else's statements on that table stand behind it.
_TABLE_WAIT_SECONDS = 1
_INEXACT = text(
    "SELECT DISTINCT table_name, collation_name FROM information_schema.columns WHERE table_schema = DATABASE()"
    " AND table_name IN ('legacy_poll_outbox', 'legacy_poll_event', 'legacy_poll_apart', 'legacy_poll_log')"
    " AND collation_name IS NOT NULL AND collation_name NOT IN ('utf8mb4_bin', 'utf8mb4_nopad_bin', 'utf8mb4_0900_bin')"
    " ORDER BY table_name LIMIT 1"
)
#: Characters of JSON that one statement carries: far below the least max_allowed_packet in use.
_PORTION = 10_000
# Each id is looked up in the primary key, by itself: joined in this order and by this index whatever the statistics
# say. So only the rows named are locked, as by one statement for each, at a twentieth of the cost.
DELETE_EACH = text(
    "DELETE o FROM JSON_TABLE(:ids, '$[*]' COLUMNS (id BIGINT PATH '$')) AS ids"
    " STRAIGHT_JOIN legacy_poll_outbox AS o FORCE INDEX (PRIMARY) ON o.id = ids.id"
)
# The data goes from table to table within the server: what travelled to the client and back might be larger than
# max_allowed_packet, and then no row behind it would ever move. The checksum says that it is what was judged. A
# consistent read under READ COMMITTED: no row of the outbox is locked.
INSERT_EACH = text(
    "INSERT INTO legacy_poll_event (position, id, channel, type, data, published_at, mark)"
    " SELECT ids.position, ids.event_id, ids.channel, ids.type, o.data, :published_at, ids.mark"
    " FROM JSON_TABLE(:rows, '$[*]' COLUMNS (outbox_id BIGINT PATH '$[0]', position BIGINT PATH '$[1]',"
    " event_id VARCHAR(100) PATH '$[2]', channel VARCHAR(200) PATH '$[3]', type VARCHAR(200) PATH '$[4]',"
    " mark VARCHAR(8) PATH '$[5]', crc BIGINT PATH '$[6]')) AS ids"
    " STRAIGHT_JOIN legacy_poll_outbox AS o FORCE INDEX (PRIMARY) ON o.id = ids.outbox_id"
    " WHERE CRC32(CONVERT(o.data USING utf8mb4)) = ids.crc"
)
_INSERT_ONE = text(
    "INSERT INTO legacy_poll_event (position, id, channel, type, data, published_at, mark)"
    " SELECT :position, :id, :channel, :type, o.data, :published_at, :mark"
    " FROM legacy_poll_outbox AS o WHERE o.id = :outbox_id AND CRC32(CONVERT(o.data USING utf8mb4)) = :crc"
)
_INSERT_EACH_APART = text(INSERT_EACH.text.replace("INTO legacy_poll_event ", "INTO legacy_poll_apart "))
_INSERT_ONE_APART = text(_INSERT_ONE.text.replace("INTO legacy_poll_event ", "INTO legacy_poll_apart "))
# Who has the place behind the last event locked has the event locked as well; and one worker does this at a time.
_LOCK_LAST = text("SELECT position FROM legacy_poll_event ORDER BY position DESC LIMIT 1 FOR UPDATE NOWAIT")
_LOCK_EVENTS = text(
    "SELECT position FROM legacy_poll_event WHERE position BETWEEN :first AND :last FOR UPDATE NOWAIT"
)
# An erasure of one of them waits, or makes this wait for the next time.
_LOCK_APART = text("SELECT position FROM legacy_poll_apart ORDER BY position LIMIT :most FOR UPDATE NOWAIT")
# Somebody has copied them by hand, and left them here.
_COPIED = text(
    "DELETE a FROM legacy_poll_apart AS a STRAIGHT_JOIN legacy_poll_event AS e"
    " ON e.position = a.position AND e.id = a.id"
    " WHERE a.position <= :last"
)
_BRING = text(
    "INSERT INTO legacy_poll_event (position, id, channel, type, data, published_at, mark)"
    " SELECT position, id, channel, type, data, published_at, mark FROM legacy_poll_apart WHERE position <= :last"
)
_BROUGHT = text("DELETE FROM legacy_poll_apart WHERE position <= :last")


class MySQL(Dialect):
    drivers = ("pymysql", "mysqldb", "mysqlconnector")
    now_sql = "CONCAT(LEFT(DATE_FORMAT(UTC_TIMESTAMP(3), '%Y-%m-%dT%H:%i:%s.%f'), 23), 'Z')"
    pre_ping = True
    exact_channel_sql = "CAST(channel AS BINARY)"
    keeps_apart = True
    upgrade_is_whole = False

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._named: Optional[bool] = None
        self._hurries = False

    def driver_blocks(self) -> bool:
        return self.engine.dialect.driver not in ("pymysql", "mysqlconnector")

    def on_connect(self, connection: Any, purpose: Purpose) -> None:
        super().on_connect(connection, purpose._replace(write=True))
        cursor = connection.cursor()
        try:
            # By name, whatever the server's defaults are. In SQL, since PyMySQL takes the server's default for what is
            # on, and then sends nothing.
            cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
            if not purpose.write:
                self._set_isolation(connection, write=False)
            cursor.execute("SET SESSION autocommit = %d, %s" % (not purpose.write, _OURS))
            cursor.execute("SELECT @@sql_mode, @@version")
            said, version = cursor.fetchone()
            modes = [mode for mode in said.split(",") if mode not in _UNWANTED_MODES]
            cursor.execute("SET SESSION sql_mode = '%s'" % ",".join(modes))
            # On another node of Galera a look may come before what this worker has read or moved: the log would seem to
            # have been cut back. With 1 the node catches up first.
            cursor.execute("SHOW VARIABLES LIKE 'wsrep_on'")
            found = cursor.fetchone()
            if found is not None and found[1] == "ON":
                cursor.execute("SET SESSION wsrep_sync_wait = @@wsrep_sync_wait | 1")
            # A table that somebody backs up, rebuilds or alters; the server's own limit is a day.
            waits = "SET SESSION lock_wait_timeout = %d" % math.ceil(purpose.wait or MOVE_SECONDS)
            if purpose.limit is not None:
                # The server does not notice that we have gone.
                setting, factor = _statement_limit(version)
                waits += ", SESSION %s = %d" % (setting, math.ceil(purpose.limit) * factor)
            cursor.execute(waits)
        finally:
            cursor.close()
        # Whatever the application's connections speak: what ours cannot say would arrive as question marks.
        for name in ("set_character_set", "set_charset"):
            if hasattr(connection, name):
                getattr(connection, name)("utf8mb4")
                break
        if not purpose.write:
            return
        cursor = connection.cursor()
        try:
            # A worker that stands still inside its transaction loses it, and the lock, after this. MySQL can only limit
            # idle connections: for those that move again and again see begin_move.
            idle = _idle_setting(version)
            self._hurries = idle == _IDLE_CONNECTION and purpose.wait is None
            seconds = _MOVER_IDLE_SECONDS if self._hurries else MOVE_SECONDS
            cursor.execute(
                "SET SESSION %s = %d, SESSION innodb_lock_wait_timeout = %d" % (idle, seconds, MOVE_SECONDS)
            )
        finally:
            cursor.close()

    def descriptor(self, connection: Any) -> Optional[int]:
        # PyMySQL keeps it to itself.
        owner = getattr(connection, "_sock", connection)
        return int(owner.fileno()) if hasattr(owner, "fileno") else None

    def version(self, connection: Connection) -> Tuple[str, Tuple[int, ...], Tuple[int, ...]]:
        said = str(self.scalar(connection, "SELECT VERSION()"))
        found = tuple(int(part) for part in re.findall(r"\d+", said)[:2])
        return ("MariaDB", found, (10, 2)) if "mariadb" in said.lower() else ("MySQL", found, (5, 7))

    def _needs_named_lock(self, connection: Connection) -> bool:
        if self._named is None:
            product, found, _ = self.version(connection)
            self._named = found < ((10, 6) if product == "MariaDB" else (8, 0))
        return self._named

    def lock_log(self, connection: Connection, head: int) -> bool:
        if not self._needs_named_lock(connection):
            return super().lock_log(connection, head)
        if not self._get_lock(connection, "move", 0):
            return False
        query = text("SELECT head FROM legacy_poll_log WHERE head = :head FOR UPDATE")
        return connection.execute(query, {"head": head}).first() is not None

    def begin_move(self, connection: Connection) -> None:
        if self._hurries:
            connection.execute(text("SET SESSION %s = %d" % (_IDLE_CONNECTION, MOVE_SECONDS)))
            connection.info[_HURRIED] = True

    def after_write(self, connection: Connection) -> None:
        if connection.invalidated:
            return
        if connection.info.pop(_HURRIED, False):
            # To open it anew would make late what comes first after two seconds.
            try:
                with contextlib.closing(connection.connection.cursor()) as cursor:
                    cursor.execute("SET SESSION %s = %d" % (_IDLE_CONNECTION, _MOVER_IDLE_SECONDS))
            except Exception:  # the transaction has ended, and its end is what counts
                connection.invalidate()
                return
        if self._named:
            self._release_lock(connection, "move")

    def delete_outbox(self, connection: Connection, ids: Sequence[int]) -> int:
        if self._needs_named_lock(connection):  # and has no JSON_TABLE either
            return super().delete_outbox(connection, ids)
        return int(connection.execute(DELETE_EACH, {"ids": json.dumps(list(ids))}).rowcount)

    def insert_events(
        self,
        connection: Connection,
        rows: List[Dict[str, Any]],
        *,
        outbox_ids: Sequence[int],
        apart: bool = False,
    ) -> bool:
        inserted = 0
        one, each = (_INSERT_ONE_APART, _INSERT_EACH_APART) if apart else (_INSERT_ONE, INSERT_EACH)
        if self._needs_named_lock(connection):
            for row, outbox_id in zip(rows, outbox_ids):
                inserted += connection.execute(
                    one, {**row, "outbox_id": outbox_id, "crc": _crc(row["data"])}
                ).rowcount
            return inserted == len(rows)
        for given in _portions(rows, outbox_ids):
            inserted += connection.execute(
                each,
                {
                    "rows": "[%s]" % ",".join(given),
                    "published_at": rows[0]["published_at"],
                },
            ).rowcount
        return inserted == len(rows)

    def bring_back(self, connection: Connection, *, most: int) -> int:
        if not self._needs_named_lock(connection):  # which has no NOWAIT either
            connection.execute(_LOCK_LAST)
        lock = _LOCK_APART if not self._named else text(_LOCK_APART.text.replace(" NOWAIT", ""))
        positions = connection.execute(lock, {"most": most}).scalars().all()
        if not positions:
            return 0
        last = {"last": max(positions)}
        copied = int(connection.execute(_COPIED, last).rowcount)
        connection.execute(_BRING, last)
        return copied + int(connection.execute(_BROUGHT, last).rowcount)

    def lock_events(self, connection: Connection, first: int, last: int) -> None:
        # To wait here would keep the log's lock meanwhile, and with it everybody's events.
        if not self._needs_named_lock(connection):
            connection.execute(_LOCK_EVENTS, {"first": first, "last": last})

    def inexact(self, connection: Connection) -> Optional[str]:
        row = connection.execute(_INEXACT).first()
        if row is None:
            return None
        return (
            "the table %s compares text by %s, and two channels that differ may be one to it; run: ALTER TABLE %s "
            "CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_bin" % (row[0], row[1], row[0])
        )

    def lock_holder(self, connection: Connection) -> Optional[str]:
        rows = connection.execute(_HOLDER).all()
        # Which of them it is cannot be asked of every version.
        return (
            "; or ".join("server connection %s, user %s at %s, %s, for %d s" % tuple(row) for row in rows)
            or None
        )

    def try_trim_lock(self, connection: Connection) -> bool:
        # Trimming is rare and short, and twice at once is only wasted work: no named lock that outlives a transaction.
        return super().lock_log(connection, self.scalar(connection, "SELECT head FROM legacy_poll_log"))

    @contextlib.contextmanager
    def upgrade_lock(self, connection: Connection) -> Iterator[None]:
        # First of all: the connection was made for moves, and would end, with the lock, while Python imports alembic.
        idle = _idle_setting(str(self.scalar(connection, "SELECT @@version")))
        connection.execute(
            text(
                "SET SESSION %s = %d, SESSION lock_wait_timeout = %d"
                % (idle, _UPGRADE_IDLE_SECONDS, _TABLE_WAIT_SECONDS)
            )
        )
        # MariaDB from 10.3 to 11.4: how a server may be told to refuse an index.
        if connection.execute(text("SHOW VARIABLES LIKE 'alter_algorithm'")).first() is not None:
            connection.execute(text("SET SESSION alter_algorithm = 'DEFAULT'"))
        if not self._get_lock(connection, "upgrade", _UPGRADE_WAIT_SECONDS):
            raise StorageBusy("another upgrade has been under way for %d seconds" % _UPGRADE_WAIT_SECONDS)
        try:
            yield
            # Before the lock is free: whoever has it next must find what was done, the version's row included.
            connection.connection.commit()
        finally:
            self._release_lock(connection, "upgrade")

    def _get_lock(self, connection: Connection, name: str, seconds: int) -> bool:
        name = self._lock_name(connection, name)
        return self.scalar(connection, "SELECT GET_LOCK(:name, :seconds)", name=name, seconds=seconds) == 1

    def _release_lock(self, connection: Connection, name: str) -> None:
        self.scalar(connection, "SELECT RELEASE_LOCK(:name)", name=self._lock_name(connection, name))

    def _lock_name(self, connection: Connection, name: str) -> str:
        # At most 64 characters, and a database's name alone may have as many. Digested here: MySQL 9.6 has no SHA1().
        database = str(self.scalar(connection, "SELECT DATABASE()"))
        return "legacy_poll.%s.%s" % (name, hashlib.sha1(database.encode("utf-8")).hexdigest()[:16])

    def is_busy(self, error: Exception) -> bool:
        return code_of(error) in _LOCK_ERRORS

    def is_missing_table(self, error: Exception) -> bool:
        return code_of(error) == _NO_SUCH_TABLE

    def advice(self, error: Exception) -> str:
        if code_of(error) == 1665:
            return "set binlog_format to ROW or MIXED: STATEMENT refuses writes under READ COMMITTED"
        if code_of(error) == 1290:
            return "this server is read-only; the URL must name the primary"
        cause = getattr(error, "orig", None) or error
        if isinstance(cause, RuntimeError) and "cryptography" in str(cause):
            return "run: pip install 'PyMySQL[rsa]'"
        if code_of(error) in (1142, 1044):
            return "grant SELECT, INSERT, UPDATE, DELETE on the legacy_poll_ tables to this user"
        return ""


def _idle_setting(version: str) -> str:
    """What limits an idle transaction; MySQL can only limit idle connections."""
    return "idle_transaction_timeout" if "mariadb" in version.lower() else _IDLE_CONNECTION


def _statement_limit(version: str) -> Tuple[str, int]:
    """What limits a statement (MySQL: one that only reads), and its units in a second."""
    return ("max_statement_time", 1) if "mariadb" in version.lower() else ("max_execution_time", 1000)


def _crc(text: str) -> int:
    """What CRC32() makes of the same text."""
    return zlib.crc32(text.encode("utf-8")) & 0xFFFFFFFF


def _portions(rows: List[Dict[str, Any]], outbox_ids: Sequence[int]) -> Iterator[List[str]]:
    """All that is known of *rows* but their data, as JSON, some at a time."""
    portion: List[str] = []
    size = 0
    for row, outbox_id in zip(rows, outbox_ids):
        names = (row["id"], row["channel"], row["type"], row["mark"])
        portion.append(json.dumps([outbox_id, row["position"], *names, _crc(row["data"])]))
        size += len(portion[-1])
        if size >= _PORTION:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion
