"""The guarantees that each database gives in its own way."""

from __future__ import annotations

import _socket
import contextlib
import socket
from typing import Any, Callable, Dict, FrozenSet, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from sqlalchemy import bindparam, delete, insert, select, text, update
from sqlalchemy.engine import Connection, Engine

from ..errors import ConfigError, SchemaMissing, StorageBusy, StorageUnavailable
from ..tables import event, log, outbox

__all__ = ["Dialect", "MOVE_SECONDS", "Purpose"]

#: The longest that a move may stand still before its database ends it, seconds: a worker that is stopped, paused or
#: cut off between lock and commit delays everybody by no more than this.
MOVE_SECONDS = 2

#: A server that is gone without a word is noticed after about 20 s; milliseconds for the last.
_DEATH = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 20000}
_DELETE_ONE = delete(outbox).where(outbox.c.id == bindparam("outbox_id"))
_INSERT_EVENTS = insert(event)
_ADVANCE = update(log).values(head=bindparam("new_head"))


class Purpose(NamedTuple):
    """What a connection of ours is for.

    Attributes:
        write: Whether it is for writes.
        wait: Longest wait of a write for others, seconds; None for those that try again.
        limit: After how many seconds nobody waits for a statement any more; None for never.
    """

    write: bool
    wait: Optional[float] = None
    limit: Optional[float] = None


class Dialect:
    """One database's way; made for one engine."""

    #: SQLAlchemy's names of the drivers that this was written for.
    drivers: Tuple[str, ...] = ()
    #: SQL for the time now: RFC 3339, UTC, milliseconds, 24 characters.
    now_sql = ""
    #: Whether there is a server that may have ended a connection: one for writing is then tried before use.
    pre_ping = False
    #: Whether every thread needs connections of its own, and they cost nothing to open.
    connection_per_thread = False

    #: Whether the database is a file, which somebody may replace while connections are open.
    is_file = False

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def check(self) -> None:
        """Raises ConfigError if this engine cannot be used at all."""
        self.check_driver(self.engine.dialect.driver)

    @classmethod
    def check_driver(cls, driver: str) -> None:
        """Raises ConfigError if *driver*, by SQLAlchemy's name, is not one of ours."""
        if driver not in cls.drivers:
            raise ConfigError(
                "the database's driver is %s: %s is needed" % (driver, " or ".join(cls.drivers))
            )

    def version(self, connection: Connection) -> Tuple[str, Tuple[int, ...], Tuple[int, ...]]:
        """The server's product, its version, and the oldest version that this code works with."""
        raise NotImplementedError

    def too_old(self, connection: Connection) -> Optional[str]:
        """Why this server's version cannot be worked with; None when it can."""
        product, found, oldest = self.version(connection)
        if found >= oldest:
            return None
        versions = (".".join(map(str, each)) for each in (found, oldest))
        return "the database is %s %s: %s %s or later is needed" % tuple(
            word for version in versions for word in (product, version)
        )

    def driver_blocks(self) -> bool:
        """Whether the driver's calls stop every greenlet of a process that gevent patched."""
        return True

    def on_connect(self, connection: Any, purpose: Purpose) -> None:
        """Sets up a new DBAPI connection of ours: autocommit for reads, READ COMMITTED for writes."""
        self._set_isolation(connection, write=purpose.write)
        if purpose.limit is not None:
            self._notice_death(connection)

    def _set_isolation(self, connection: Any, *, write: bool) -> None:
        level: Any = "READ COMMITTED" if write else "AUTOCOMMIT"
        self.engine.dialect.set_isolation_level(connection, level)

    def _notice_death(self, connection: Any) -> None:
        """Has the system end *connection* when its other end is gone: its place is taken until then."""

        def set_options(shared: Any) -> None:
            shared.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _DEATH.items():
                if hasattr(socket, name):
                    shared.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

        self._on_socket(connection, set_options)

    def descriptor(self, connection: Any) -> Optional[int]:
        """The file descriptor of the socket of a DBAPI *connection*; None when it cannot be told."""
        return None

    def cut_off(self, connection: Any) -> None:
        """Ends whoever waits for an answer on a DBAPI *connection*, from outside."""
        self._on_socket(connection, lambda shared: shared.shutdown(socket.SHUT_RDWR))

    def _on_socket(self, connection: Any, work: Callable[[Any], None]) -> None:
        descriptor = self.descriptor(connection)
        if descriptor is None or descriptor < 0:
            return
        with contextlib.suppress(OSError):  # closed meanwhile, or not TCP
            # gevent's own class would make the socket one that never blocks, under a driver in C that knows nothing
            # of it.
            shared = _socket.socket(fileno=descriptor)
            try:
                work(shared)
            finally:
                shared.detach()

    def size_of(self, column: str) -> str:
        """SQL for the bytes of a text *column*, cheap for large values."""
        return "octet_length(%s)" % column

    def start_of(self, column: str, characters: int) -> str:
        """SQL for the beginning of a text *column*: at least so many characters of it, if it has them."""
        return "substr(%s, 1, %d)" % (column, characters)

    def escaped(self, column: Any) -> Any:
        """The text *column* with what a driver may be unable to decode escaped."""
        return column

    def before_read(self, connection: Connection, *, limit: Optional[float]) -> None:
        """Called before a read, with its connection; *limit* as in :class:`Purpose`."""

    def after_read(self, connection: Connection) -> None:
        """Called when a read has ended, either way, with the same connection."""

    def disorder(self, connection: Connection) -> Optional[str]:
        """Why the ids of the outbox do not rise with time, and what to do about it; None when they do."""
        return None

    def inexact(self, connection: Connection) -> Optional[str]:
        """Which of our tables do not compare text byte by byte, and what to do about it; None when all do."""
        return None

    def hidden(self, connection: Connection, *, by_policy: bool) -> Optional[str]:
        """Which of our tables hide rows from this user, and what to do about it; None when none does.

        Args:
            connection: Reads.
            by_policy: Those that hide what their policies say; else those that have no policy, and hide everything.
        """
        return None

    def stand_beside(self, connection: Connection, table: str) -> None:
        """Lets tables that this transaction makes be where *table* is, whatever the user's own place is."""

    def identity(self) -> Any:
        """What the URL means at this moment: a connection opened when it was something else must be opened anew."""
        return None

    def on_begin(self, connection: Connection, *, limit: Optional[float]) -> None:
        """Called when a write transaction begins, which is to be opened where the driver does not do so by itself."""

    def prepare(self, connection: Connection, *, max_event_bytes: int) -> None:
        """Brings what the database itself must know of the settings up to date; a write transaction is open."""

    def needs_prepare(self, connection: Connection, *, max_event_bytes: int) -> bool:
        """Whether :meth:`prepare` has something to change."""
        return False

    def begin_move(self, connection: Connection) -> None:
        """Makes the open transaction durable at commit, and short-lived if this process stops in the middle of it."""

    def lock_log(self, connection: Connection, head: int) -> bool:
        """Locks the log's one row until the transaction ends, without waiting.

        Returns:
            False when another transaction holds the lock, or when the head is not *head* any more. After True, no
            position is given and no row moved by anybody else before this transaction ends.
        """
        query = select(log.c.head).where(log.c.head == head).with_for_update(skip_locked=True)
        return connection.execute(query).first() is not None

    def advance(self, connection: Connection, head: int) -> None:
        """Lets the log end at *head*; the lock is taken."""
        connection.execute(_ADVANCE, {"new_head": head})

    #: SQL for where the log's row is in its table, which :meth:`note_place` takes; NULL where looks find it at once.
    place_sql = "NULL"
    #: A condition by which a look at the log does not walk over dead versions of its row; its parameter is `near`. What
    #: finds no row by it must look without it.
    near_sql = ""
    #: The parameter; None while there is nothing to be saved.
    near: Optional[str] = None

    def note_place(self, place: Any) -> None:
        """Remembers where the log's row was found."""

    def after_write(self, connection: Connection) -> None:
        """Called when a write transaction has ended, either way, with the same connection."""

    #: SQL for the statement's snapshot, as text, which :meth:`has_ended` reads; empty where there is none.
    snapshot_sql = ""

    def last_id_sql(self, connection: Connection) -> str:
        """SQL for the last id that the outbox's sequence gave out, and which life of it that is, as ``id/life``.

        Empty where it cannot be seen.
        """
        return ""

    def open_writers(self, connection: Connection) -> Dict[str, Optional[int]]:
        """The transactions that may own ids of the outbox, and have not ended.

        Returns:
            Name -> transaction id, or None for one that has none yet. Whoever was given an id before this call and
            has not ended by its end is in it.
        """
        return {}

    def has_ended(self, snapshot: str, transactions: FrozenSet[int]) -> bool:
        """Whether any of *transactions*, all begun before *snapshot*, has ended for it: its rows are to be seen."""
        return True

    #: Whether moves notify listeners in other processes.
    notifies = False

    def listen(self, connection: Any) -> None:
        """Makes the DBAPI *connection* hear the sequencers' notifications."""

    def notify(self, connection: Connection) -> None:
        """Notifies the listeners."""

    def drain_notifications(self, connection: Any) -> Tuple[bool, bool]:
        """Takes in what has arrived on a listening DBAPI connection, without waiting.

        Returns:
            Whether there was a notification, and whether any came from elsewhere than this worker's moves.
        """
        return False, False

    def delete_outbox(self, connection: Connection, ids: Sequence[int]) -> int:
        """Deletes the rows *ids* by key, waiting for no other transaction's rows; returns how many there were."""
        if not ids:
            return 0
        result = connection.execute(_DELETE_ONE, [{"outbox_id": each} for each in ids])
        return int(result.rowcount)

    def insert_events(
        self,
        connection: Connection,
        rows: List[Dict[str, Any]],
        *,
        outbox_ids: Sequence[int],
        apart: bool = False,
    ) -> bool:
        """Appends *rows* to the log.

        Args:
            connection: A move is open.
            rows: Columns of the event table, all of them.
            outbox_ids: Of the row that each was made from, which is still there.
            apart: To the table for those that are kept apart, where there is one.

        Returns:
            False when a row of the outbox is not the one that was judged any more.
        """
        if rows:
            connection.execute(_INSERT_EVENTS, rows)
        return True

    def check_constraints(self, connection: Connection) -> None:
        """Has the database check now what it would check at the commit."""

    #: Whether other sessions may have the end of the event table locked; see storage.apart.
    keeps_apart = False

    def bring_back(self, connection: Connection, *, most: int) -> int:
        """Moves events that are apart to where they belong, without waiting; returns how many.

        Raises:
            StorageBusy: The end of the table is still locked, or somebody else does it.
        """
        return 0

    def lock_events(self, connection: Connection, first: int, last: int) -> None:
        """Locks the events from *first* to *last*, which are about to be deleted, without waiting."""

    #: SQL for the channel of an event that is compared byte by byte, where the column's collation may be another.
    exact_channel_sql = ""

    def lock_holder(self, connection: Connection) -> Optional[str]:
        """Who holds the log's lock, in words for the operator; None when it cannot be told."""
        return None

    def try_trim_lock(self, connection: Connection) -> bool:
        """Whether this transaction, and no other, may trim now; does not wait."""
        return True

    @contextlib.contextmanager
    def upgrade_lock(self, connection: Connection) -> Iterator[None]:
        """Keeps all others out of an upgrade; waits for them."""
        yield

    #: Whether an upgrade that could not be done leaves nothing behind. Elsewhere each of its steps stays done.
    upgrade_is_whole = True

    def is_missing_table(self, error: Exception) -> bool:
        """Whether *error*, a SQLAlchemy error, says that a table does not exist."""
        return False

    def is_busy(self, error: Exception) -> bool:
        """Whether *error* says that a lock was not to be had in time."""
        return False

    def advice(self, error: Exception) -> str:
        """What the operator can do about *error*, when we know."""
        return ""

    def translate(self, error: Exception) -> StorageUnavailable:
        """*error*, from SQLAlchemy or the driver, as ours."""
        if self.is_missing_table(error):
            return SchemaMissing("the tables of legacy_poll are missing; run: legacy-poll upgrade")
        cause = getattr(error, "orig", None) or error
        first = (str(cause).strip().splitlines() or [""])[0]
        if isinstance(cause, UnicodeError):
            first = "a text that cannot be decoded: %s" % first
        message = "%s: %s" % (type(cause).__name__, first)
        advice = self.advice(error)
        family = StorageBusy if self.is_busy(error) else StorageUnavailable
        return family(message + (" (%s)" % advice if advice else ""))

    def scalar(self, connection: Connection, sql: str, **parameters: Any) -> Any:
        """The one value of *sql*."""
        return connection.execute(text(sql), parameters).scalar()


def code_of(error: Exception) -> Any:
    """The database's own code in *error*: SQLSTATE text, MySQL's number, or None."""
    original = getattr(error, "orig", None)
    arguments = getattr(original, "args", ())
    # The number first: PyMySQL 1.2 has a SQLSTATE beside it, which says less.
    if arguments and isinstance(arguments[0], int):
        return arguments[0]
    return getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
