"""PostgreSQL 11 and later, through psycopg2 or psycopg 3; PgBouncer in transaction mode included.

So: nothing per session that matters (SET LOCAL only), no prepared statements.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
import uuid
from typing import Any, Dict, FrozenSet, Iterator, List, Optional, Sequence, Tuple

from sqlalchemy import Text, bindparam, cast, func, select, text, update
from sqlalchemy.engine import Connection, Engine

from ..errors import StorageBusy, StorageUnavailable
from ..tables import log, metadata
from .base import MOVE_SECONDS, Dialect, Purpose, code_of

__all__ = ["PostgreSQL"]

logger = logging.getLogger("legacy_poll")

# hashtext keeps the key apart from an application's own advisory locks, and the schema from another's tables.
_KEY = "hashtext('legacy_poll.' || current_schema()), hashtext(%r)"
#: Longest wait of an upgrade for one table; PostgreSQL's deadlock_timeout is 1 s.
_TABLE_WAIT_MS = 500
_UNDEFINED_TABLE = "42P01"
# Not available, deadlock.
_LOCK_ERRORS = ("55P03", "40P01")
_LIMITS = (
    # Durable here, and where the database says that it must be, at what it says.
    "SELECT set_config('synchronous_commit', replace(current_setting('synchronous_commit'), 'off', 'local'), true),"
    " set_config('statement_timeout', :ms, true), set_config('lock_timeout', :lock_ms, true),"
    " set_config('idle_in_transaction_session_timeout', :ms, true)"
)
_SILENT_LIMITS = text(_LIMITS)
# Sent if and when the transaction commits; costs no round trip here.
_NOTIFYING_LIMITS = text(_LIMITS + ", pg_notify('legacy_poll', :sender)")
#: Without notifications after the server's queue of them was found full, seconds.
_SILENCE_SECONDS = 30.0
_FULL = "54000"
# Arrays: a parameter for each value, or a statement for each row, costs the driver and the server twice as much.
_DELETE = text("DELETE FROM legacy_poll_outbox WHERE id = ANY(CAST(:ids AS bigint[]))")
_INSERT_EVENTS = text(
    "INSERT INTO legacy_poll_event (position, id, channel, type, data, published_at, mark)"
    " SELECT * FROM unnest(CAST(:position AS bigint[]), CAST(:id AS text[]), CAST(:channel AS text[]),"
    " CAST(:type AS text[]), CAST(:data AS text[]), CAST(:published_at AS text[]), CAST(:mark AS text[]))"
)
_HOLDER = text(
    "SELECT a.pid, a.application_name, a.client_addr, a.state, extract(epoch FROM clock_timestamp() - a.xact_start)"
    " FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid"
    " WHERE l.relation = CAST('legacy_poll_log' AS regclass) AND l.granted AND a.pid <> pg_backend_pid()"
    " AND l.mode IN ('RowShareLock', 'RowExclusiveLock') ORDER BY a.xact_start LIMIT 1"
)

# RowExclusiveLock is what an INSERT takes before it asks for an id, and keeps to the end.
_WRITERS = text(
    "SELECT l.virtualtransaction, CAST(CAST(t.transactionid AS text) AS bigint), l.pid"
    " FROM pg_locks l LEFT JOIN pg_locks t"
    " ON t.virtualtransaction = l.virtualtransaction AND t.locktype = 'transactionid' AND t.granted"
    " AND t.mode = 'ExclusiveLock'"
    " WHERE l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' AND l.granted"
    " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND l.relation = CAST('legacy_poll_outbox' AS regclass) AND l.pid IS DISTINCT FROM pg_backend_pid()"
)
# Who waits for its client between two statements; of other users' sessions only pg_read_all_stats may see it.
_IDLE = text(
    "SELECT pid FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()"
)
_HIDDEN = text(
    "SELECT c.relname FROM unnest(CAST(:names AS text[])) AS name JOIN pg_class c ON c.oid = to_regclass(name)"
    " WHERE row_security_active(c.oid) AND CAST(:by_policy AS boolean) ="
    " EXISTS (SELECT 1 FROM pg_policy p WHERE p.polrelid = c.oid) ORDER BY c.relname"
)
# Name, whether this user may look at it, and how it counts. No row when somebody has taken it from the column.
_SEQUENCE = text(
    "SELECT s.name, has_sequence_privilege(s.name, 'SELECT'), q.seqcache, q.seqincrement"
    " FROM (SELECT pg_get_serial_sequence('legacy_poll_outbox', 'id') AS name) AS s"
    " JOIN pg_sequence q ON q.seqrelid = CAST(s.name AS regclass)"
)
_XID = 0xFFFFFFFF


def _is_before(xid: int, other: int) -> bool:
    """Whether *xid* was given before *other*; 32 bits wide, they go round."""
    return xid != other and ((other - xid) & _XID) < 0x80000000


def _pid_of(connection: Any) -> int:
    """The server process that a DBAPI *connection* was told it has; a pooler makes one up."""
    return int(
        connection.pgconn.backend_pid if hasattr(connection, "pgconn") else connection.get_backend_pid()
    )


# With > and not >=: offsets begin at 1, so both mean the same. But of a table with one row, as ANALYZE says, the
# planner takes >= for all of it, and walks over it.
_NEAR = "legacy_poll_log.ctid > CAST(:near AS tid)"
#: Blocks of the log's table that are walked over without a thought.
_MANY_BLOCKS = 4
_LOCK_NEAR = select(log.c.head).where(log.c.head == bindparam("at"), text(_NEAR))
_ADVANCE_NEAR = update(log).values(head=bindparam("to")).where(text(_NEAR))


class PostgreSQL(Dialect):
    drivers = ("psycopg", "psycopg2")
    now_sql = "to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')"
    pre_ping = True

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        # What a worker moved itself it need not be told.
        self._sender = uuid.uuid4().hex
        # While the server takes no notifications: when to ask again, by the monotonic clock.
        self._silent_until: Optional[float] = None
        # Whether a pooler hands our sessions on to others.
        self._is_pooled = False

    def version(self, connection: Connection) -> Tuple[str, Tuple[int, ...], Tuple[int, ...]]:
        number = int(self.scalar(connection, "SELECT current_setting('server_version_num')"))
        return "PostgreSQL", (number // 10000,), (11,)

    def driver_blocks(self) -> bool:
        driver = self.engine.dialect.driver
        if driver == "psycopg2":
            from psycopg2 import extensions

            return extensions.get_wait_callback() is None
        if driver == "psycopg":
            # Chosen when psycopg is imported: the C wait does not switch greenlets, the Python ones do.
            from psycopg import waiting

            return "_psycopg" in str(getattr(waiting.wait, "__module__", "")) or "wait_c" in repr(
                waiting.wait
            )
        return True

    def on_connect(self, connection: Any, purpose: Purpose) -> None:
        super().on_connect(connection, purpose)
        if hasattr(connection, "prepare_threshold"):
            connection.prepare_threshold = None
        pid, isolation = self._session(connection)
        self._is_pooled = pid != _pid_of(connection)
        if not purpose.write and (isolation != "read committed" or self._is_pooled):
            # Each statement by itself would take the default, and a serializable look makes the application's
            # transactions fail. Not by SET, which a pooler would hand on to others: in a transaction that names its
            # level, and its limit.
            self._set_isolation(connection, write=True)
        if not self._is_pooled:
            # Compiling costs more than any look of ours; statistics that are old make the server think otherwise.
            settings = "SET jit = off"
            if purpose.limit is not None:
                # The server does not notice that we have gone.
                settings += "; SET statement_timeout = %d" % math.ceil(purpose.limit * 1000)
            self._set(connection, settings)
        # Whatever the application's connections speak: a row that ours cannot say would stop all behind it.
        if hasattr(connection, "set_client_encoding"):
            if connection.encoding not in ("UTF8", "UNICODE"):
                connection.set_client_encoding("UTF8")
        elif hasattr(connection, "info") and connection.info.encoding != "utf-8":
            connection.execute("SET client_encoding TO 'UTF8'")
            connection.commit()

    def descriptor(self, connection: Any) -> Optional[int]:
        return int(connection.fileno())

    def escaped(self, column: Any) -> Any:
        # Byte by byte: an SQL_ASCII database takes any, and other encodings have what UTF-8 has not.
        raw = func.convert_to(column, cast(func.getdatabaseencoding(), Text))
        return func.replace(func.encode(raw, "escape"), "\\\\", "\\")

    def _session(self, connection: Any) -> Tuple[int, str]:
        """The process that serves a new connection, and its default isolation."""
        cursor = connection.cursor()
        try:
            cursor.execute("SELECT pg_backend_pid(), current_setting('default_transaction_isolation')")
            pid, isolation = cursor.fetchone()
            return int(pid), str(isolation)
        finally:
            cursor.close()
            if not connection.autocommit:
                connection.rollback()

    def _set(self, connection: Any, statement: str) -> None:
        cursor = connection.cursor()
        try:
            cursor.execute(statement)
        finally:
            cursor.close()
        if not connection.autocommit:
            connection.commit()

    def before_read(self, connection: Connection, *, limit: Optional[float]) -> None:
        self._limit_transaction(connection, limit)

    def on_begin(self, connection: Connection, *, limit: Optional[float]) -> None:
        self._limit_transaction(connection, limit)

    def _limit_transaction(self, connection: Connection, limit: Optional[float]) -> None:
        if limit is None or not self._is_pooled:
            return  # its session has it
        self.scalar(
            connection,
            "SELECT set_config('statement_timeout', :ms, true), set_config('jit', 'off', true)",
            ms=str(math.ceil(limit * 1000)),
        )

    def after_read(self, connection: Connection) -> None:
        if connection.invalidated:
            return
        raw: Any = connection.connection.dbapi_connection
        if raw is not None and not raw.autocommit:
            raw.commit()

    def begin_move(self, connection: Connection) -> None:
        # A wait for a lock ends before the statement does, so that the two can be told apart.
        limits = {"ms": str(MOVE_SECONDS * 1000), "lock_ms": str(MOVE_SECONDS * 500)}
        if self._may_notify(connection):
            connection.execute(_NOTIFYING_LIMITS, dict(limits, sender=self._sender))
        else:
            connection.execute(_SILENT_LIMITS, limits)

    def _may_notify(self, connection: Connection) -> bool:
        if self._silent_until is None:
            return True
        if time.monotonic() < self._silent_until:
            return False
        # To ask is also what makes the server see that whoever was in the way has gone.
        if self.scalar(connection, "SELECT pg_notification_queue_usage()") < 0.5:
            self._silent_until = None
            return True
        self._silent_until = time.monotonic() + _SILENCE_SECONDS
        return False

    def translate(self, error: Exception) -> StorageUnavailable:
        translated = super().translate(error)
        if code_of(error) != _FULL or "NOTIFY" not in str(translated):
            return translated
        # A hint may cost latency, and never an event: what failed at its commit is done again without.
        if self._silent_until is None:
            logger.warning(
                "legacy_poll: the server takes no notifications, so events that another host has moved come by the "
                "interval: %s",
                translated,
            )
        self._silent_until = time.monotonic() + _SILENCE_SECONDS
        return StorageBusy(str(translated))

    # The log has one row, and each move makes a new version of it. While a transaction is open anywhere on the server
    # for long, the old ones stay, and whoever looks for the row walks over all of them. New ones go behind them.
    place_sql = "CAST(legacy_poll_log.ctid AS text)"
    near_sql = _NEAR

    def note_place(self, place: Any) -> None:
        block = int(place[1:].partition(",")[0])
        self.near = "(%d,0)" % block if block >= _MANY_BLOCKS else None

    def lock_log(self, connection: Connection, head: int) -> bool:
        if self.near is None:
            return super().lock_log(connection, head)
        query = _LOCK_NEAR.with_for_update(skip_locked=True)
        return connection.execute(query, {"at": head, "near": self.near}).first() is not None

    def advance(self, connection: Connection, head: int) -> None:
        # Locked by this transaction, so it is where it was found.
        if (
            self.near is None
            or not connection.execute(_ADVANCE_NEAR, {"to": head, "near": self.near}).rowcount
        ):
            super().advance(connection, head)

    # The older name works on every version; ids are 64 bits wide there, and 32 in pg_locks.
    snapshot_sql = "CAST(txid_current_snapshot() AS text)"

    def last_id_sql(self, connection: Connection) -> str:
        row = connection.execute(_SEQUENCE).first()
        if row is None or not row[1]:
            return ""
        # Its file is another one after RESTART and TRUNCATE, also when the value has passed where it was.
        return "(SELECT last_value || '/' || coalesce(pg_relation_filenode('%s'), 0) FROM %s)" % (
            row[0].replace("'", "''"),
            row[0],
        )

    def disorder(self, connection: Connection) -> Optional[str]:
        row = connection.execute(_SEQUENCE).first()
        if row is None or (row[2] == 1 and row[3] > 0):
            return None
        return (
            "the sequence %s has CACHE %d and INCREMENT %d, so ids do not rise in the order of the inserts, which the "
            "order of events hangs on; run: ALTER SEQUENCE %s INCREMENT 1 CACHE 1"
            % (row[0], row[2], row[3], row[0])
        )

    def hidden(self, connection: Connection, *, by_policy: bool) -> Optional[str]:
        names = [table.name for table in metadata.sorted_tables] + ["legacy_poll_version"]
        asked = {"names": names, "by_policy": by_policy}
        found = list(connection.execute(_HIDDEN, asked).scalars())
        if not found:
            return None
        return (
            "row level security %s of %s from this user, and what is hidden is never delivered; run: ALTER TABLE %s "
            "DISABLE ROW LEVEL SECURITY, or give the user BYPASSRLS"
            % ("may hide rows" if by_policy else "hides every row", " and ".join(found), found[0])
        )

    def open_writers(self, connection: Connection) -> Dict[str, Optional[int]]:
        found: Dict[str, Optional[int]] = {}
        # First: who was between two statements then, and has no transaction id after that, had inserted nothing, and
        # its next id comes after those that were given out before this call. (It may have locked the table, or have
        # changed no row, and may stay like that for hours.)
        idle = set(connection.execute(_IDLE).scalars())
        for name, xid, pid in connection.execute(_WRITERS):
            if xid is None and pid in idle:
                continue
            known = found.get(name)
            # A savepoint has an id of its own, younger than its transaction's.
            if known is None or (xid is not None and _is_before(xid, known)):
                found[name] = xid
        return found

    def has_ended(self, snapshot: str, transactions: FrozenSet[int]) -> bool:
        _, end, running = snapshot.split(":")
        open_then = {int(each) & _XID for each in running.split(",") if each}
        return any(each not in open_then and _is_before(each, int(end) & _XID) for each in transactions)

    def stand_beside(self, connection: Connection, table: str) -> None:
        place = self.scalar(
            connection,
            "SELECT quote_ident(n.nspname) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " WHERE c.oid = to_regclass(:name)",
            name=table,
        )
        if place is not None:
            self.scalar(connection, "SELECT set_config('search_path', :place, true)", place=place)

    notifies = True

    def listen(self, connection: Any) -> None:
        self.engine.dialect.set_isolation_level(connection, "AUTOCOMMIT")
        cursor = connection.cursor()
        try:
            # The one session of ours that waits by itself for long.
            cursor.execute(
                "SELECT set_config(name, '0', false) FROM pg_settings"
                " WHERE name = 'idle_session_timeout' AND setting <> '0'"
            )
            cursor.execute("LISTEN legacy_poll")
        finally:
            cursor.close()

    def notify(self, connection: Connection) -> None:
        if not self._may_notify(connection):
            raise StorageBusy("the server's queue of notifications is full")
        connection.execute(text("SELECT pg_notify('legacy_poll', '')"))

    def drain_notifications(self, connection: Any) -> Tuple[bool, bool]:
        if hasattr(connection, "pgconn"):
            # psycopg 3; its own notifies() loses those that come while another query runs.
            connection.pgconn.consume_input()
            senders = [
                each.extra.decode("ascii", "replace") for each in iter(connection.pgconn.notifies, None)
            ]
        else:
            connection.poll()
            senders = [each.payload for each in connection.notifies]
            del connection.notifies[:]
        return bool(senders), any(each != self._sender for each in senders)

    def delete_outbox(self, connection: Connection, ids: Sequence[int]) -> int:
        # One statement: PostgreSQL has no gap locks, and nobody else locks committed outbox rows.
        if not ids:
            return 0
        return int(connection.execute(_DELETE, {"ids": list(ids)}).rowcount)

    def insert_events(
        self,
        connection: Connection,
        rows: List[Dict[str, Any]],
        *,
        outbox_ids: Sequence[int],
        apart: bool = False,
    ) -> bool:
        if rows:
            connection.execute(_INSERT_EVENTS, {name: [row[name] for row in rows] for name in rows[0]})
        return True

    def check_constraints(self, connection: Connection) -> None:
        connection.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))

    def lock_holder(self, connection: Connection) -> Optional[str]:
        row = connection.execute(_HOLDER).first()
        if row is None:
            return None
        return "server process %s, application %r, client %s, %s, for %.1f s" % (
            row[0],
            row[1] or "",
            row[2] or "local",
            row[3],
            row[4] or 0,
        )

    def try_trim_lock(self, connection: Connection) -> bool:
        return bool(self.scalar(connection, "SELECT pg_try_advisory_xact_lock(%s)" % (_KEY % "trim")))

    @contextlib.contextmanager
    def upgrade_lock(self, connection: Connection) -> Iterator[None]:
        connection.execute(text("SELECT pg_advisory_xact_lock(%s)" % (_KEY % "upgrade")))
        # Who waits for a table keeps everybody else from it, so not for long; and shorter than the server's
        # deadlock_timeout, so that between a sequencer and an upgrade it is the upgrade that gives way.
        connection.execute(text("SET LOCAL lock_timeout = '%dms'" % _TABLE_WAIT_MS))
        yield

    def is_busy(self, error: Exception) -> bool:
        return code_of(error) in _LOCK_ERRORS

    def is_missing_table(self, error: Exception) -> bool:
        return code_of(error) == _UNDEFINED_TABLE

    def advice(self, error: Exception) -> str:
        if code_of(error) == "25006":
            return (
                "is this a replica? The URL must name the primary; or default_transaction_read_only is on for this "
                "user or database"
            )
        if code_of(error) == _FULL and "NOTIFY" in str(error):
            return (
                "a session that listens sleeps in a transaction, and must end; run: SELECT pid, datname, xact_start, "
                "query FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' ORDER BY xact_start"
            )
        cause = getattr(error, "orig", None) or error
        if isinstance(cause, TypeError) and "bytes" in str(cause):
            # psycopg 3 then gives bytes for text, which SQLAlchemy does not take, before we can choose another.
            return "is client_encoding SQL_ASCII? the URL may say another: ...?client_encoding=utf8"
        if code_of(error) == "42501":
            return "grant SELECT, INSERT, UPDATE, DELETE on the legacy_poll_ tables to this user"
        return ""
