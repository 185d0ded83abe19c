"""Connections of our own, and what runs on them.

The user's pool is never touched: a publisher that waits for a connection of a busy pool would make events late, and
held polls must not cost the app any. The pools here open their connections the way that the user's engine does (same
creator, same listeners), are made in the process that uses them, never before a fork, and are small.

Reads run in autocommit, so that no snapshot outlives a statement; writes run in one short READ COMMITTED transaction.
Driver exceptions do not leave this room: callers see :class:`StorageUnavailable`.

A caller may give up while its call goes on: a server that waits for a lock does not notice that we have gone, so to
close the connection would leave the session there and open another one at the next attempt. Such a call keeps its
place in the pool until the server has answered, and nothing of it is committed; the server's own limits, set to when
we give up, make that soon. So the pools bound what the server sees, and not only what we see.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any, Callable, List, Optional, Tuple, TypeVar

from sqlalchemy import create_engine
from sqlalchemy import event as listening
from sqlalchemy import pool as pools
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DisconnectionError, SQLAlchemyError

from .config import Settings
from .dialects import Purpose, check_names, dialect_of
from .errors import ConfigError, LegacyPollError, StorageUnavailable

__all__ = ["Call", "Database", "make_engine"]

Result = TypeVar("Result")
_INSTALL = {
    "postgresql": "pip install 'legacy_poll[postgres]' for psycopg, 'legacy_poll[psycopg2]' for psycopg2",
    "mysql": "pip install 'legacy_poll[mysql]' for pymysql",
    "mariadb": "pip install 'legacy_poll[mysql]' for pymysql",
}
#: ``offload(call, function, *arguments)`` calls the function where its blocking stops nobody, and returns or raises
#: what it did, or raises before it has ended.
Offload = Callable[..., Any]
#: What was given up and has not ended holds its place at least so long, seconds; twice as long after each that was cut
#: off, while nothing works.
_FIRST_PATIENCE_SECONDS = 30.0
_LAST_PATIENCE_SECONDS = 600.0
_CONNECT_WAIT_SECONDS = 10
#: Where a connection's record keeps which file it has open.
_FILE = "legacy_poll.file"


def make_engine(url: str) -> Engine:
    """An engine on *url*, which connects when it is used.

    Raises:
        ConfigError: Not a URL, or its driver is not installed.
    """
    try:
        parsed = make_url(url)
        name, _, driver = parsed.drivername.partition("+")
        check_names(name, driver or None)
        return create_engine(parsed)
    except (ArgumentError, ConfigError, ImportError) as error:
        # What cannot be parsed is not shown: it may have a password in it.
        reason = "it is not an SQLAlchemy URL" if type(error) is ArgumentError else str(error)
        if isinstance(error, ImportError):
            reason += " (to install it: %s)" % _INSTALL.get(name, "see the driver's documentation")
        raise ConfigError(
            "LEGACY_POLL_DATABASE_URL cannot be used: %s; examples: sqlite:////var/lib/app/app.db, "
            "postgresql+psycopg://user:password@host/name, mysql+pymysql://user:password@host/name" % reason
        ) from error


class Call:
    """One call under way."""

    __slots__ = ("raw", "has_begun", "has_ended", "given_up_at", "stop")

    def __init__(self) -> None:
        #: The DBAPI connection that it uses, once it has one.
        self.raw: Any = None
        self.has_begun = self.has_ended = False
        #: When its caller gave up, by the monotonic clock.
        self.given_up_at: Optional[float] = None
        #: Set by an offload that can end it from outside.
        self.stop: Callable[[], Any] = lambda: None

    def go_on(self) -> None:
        """Raises StorageUnavailable if nobody waits for the result any more."""
        if self.given_up_at is not None:
            raise StorageUnavailable("given up")


class Database:
    """Runs functions on connections of our own.

    Args:
        engine: The user's engine; only its way to connect is used.
        settings: For the number of reads at once.
        offload: How to call what blocks; by default it is simply called.
        threaded: Whether *offload* calls in threads, which then keep connections of their own.
        limit_seconds: When the callers of *offload* give up.
        wait_seconds: How long a write waits for another writer where the whole database has one lock (SQLite);
            None gives up almost at once, for those who try again.

    Raises:
        ConfigError: A database that is not supported.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        *,
        offload: Optional[Offload] = None,
        threaded: bool = False,
        limit_seconds: Optional[float] = None,
        wait_seconds: Optional[float] = None,
    ) -> None:
        self.engine = engine
        self._wait_seconds = wait_seconds
        self._limit_seconds = limit_seconds
        self._given_up: List[Call] = []
        self._patience = _FIRST_PATIENCE_SECONDS
        self.dialect = dialect_of(engine)
        self.dialect.check()
        self._settings = settings
        self._offload = offload
        self._threaded = threaded
        self._engines: Optional[Tuple[int, Engine, Engine]] = None

    def read(self, work: Callable[[Connection], Result]) -> Result:
        """``work(connection)`` in autocommit: each statement sees what is committed when it starts.

        Raises:
            StorageUnavailable: The database failed.
        """
        return self._call(work, False)

    def write(self, work: Callable[[Connection], Result]) -> Result:
        """``work(connection)`` in one transaction, committed when it returns, rolled back when it raises.

        Raises:
            StorageUnavailable: The database failed; whether a commit took place may be unknown.
        """
        return self._call(work, True)

    def scalar(self, sql: str) -> Any:
        """The one value of the SQL expression *sql*, by itself in autocommit."""
        return self.read(lambda connection: self.dialect.scalar(connection, "SELECT " + sql))

    def listen(self) -> Any:
        """A DBAPI connection of its own, listening to the sequencers' notifications; for a dialect that has them.

        Raises:
            StorageUnavailable: The database failed.
        """
        return self._offloaded(self._listen)

    def hang_up(self, connection: Any) -> None:
        """Closes a connection of :meth:`listen`, dead or alive."""
        with contextlib.suppress(Exception):  # of any driver; there is nothing left to save
            self._offloaded(lambda call: connection.close())

    def notify(self) -> None:
        """Notifies every listener.

        Raises:
            StorageUnavailable: The database failed.
        """
        self.read(self.dialect.notify)

    def close(self) -> None:
        """Closes the connections that are not in use."""
        if self._engines is not None and self._engines[0] == os.getpid():
            for engine in self._engines[1:]:
                engine.dispose()
        self._engines = None

    def _call(self, work: Callable[[Connection], Result], write: bool) -> Result:
        return self._offloaded(self._run, work, write)

    def _offloaded(self, function: Callable[..., Any], *arguments: Any) -> Any:
        call = Call()
        if self._offload is None:
            return function(call, *arguments)
        try:
            result = self._offload(call, function, call, *arguments)
        except BaseException:
            if not call.has_ended:
                self._give_up(call)
            raise
        self._patience = _FIRST_PATIENCE_SECONDS
        return result

    def _give_up(self, call: Call) -> None:
        call.given_up_at = time.monotonic()
        self._given_up = [each for each in self._given_up if not each.has_ended]
        if call.has_begun:
            self._given_up.append(call)
        since = self._given_up[0].given_up_at if self._given_up else None
        if call.raw is None and since is not None and call.given_up_at - since >= self._patience:
            # There was no connection to be had, perhaps since all wait for what will never answer (a proxy that keeps
            # connections to a server that is gone). One at a time: if it is the server that hangs, its session stays.
            self._patience = min(2 * self._patience, _LAST_PATIENCE_SECONDS)
            self._cut_off(self._given_up.pop(0))

    def _cut_off(self, call: Call) -> None:
        if call.raw is not None:
            self.dialect.cut_off(call.raw)
        call.stop()

    def _listen(self, call: Call) -> Any:
        call.has_begun = True
        try:
            checked_out = self._make_engine(write=False, pool_class=pools.NullPool).raw_connection()
            connection: Any = checked_out.dbapi_connection
            checked_out.detach()  # ours now: no pool takes it back
            try:
                call.go_on()
                self.dialect.listen(connection)
                call.go_on()
            except BaseException:
                connection.close()
                raise
            return connection
        except Exception as error:
            raise self._translated(error) from error
        finally:
            call.has_ended = True

    def _run(self, call: Call, work: Callable[[Connection], Result], write: bool) -> Result:
        call.has_begun = True
        try:
            try:
                return self._attempt(call, work, write)
            except Exception as error:
                if write or not getattr(error, "connection_invalidated", False):
                    raise
                # It was dead before: the database went away and came back meanwhile. The pool has thrown out all that
                # are as old, and a read may be done twice.
                return self._attempt(call, work, write)
        except Exception as error:
            raise self._translated(error) from error
        finally:
            call.has_ended = True

    def _attempt(self, call: Call, work: Callable[[Connection], Result], write: bool) -> Result:
        call.go_on()
        with self._engine(write).connect() as connection:
            call.raw = connection.connection.dbapi_connection
            try:
                call.go_on()
                if write:
                    return _in_transaction(connection, work, call)
                self.dialect.before_read(connection, limit=self._limit_seconds)
                return work(connection)
            except Exception as error:
                if not write and _is_strange(error):
                    connection.invalidate()
                raise
            finally:
                call.raw = None
                (self.dialect.after_write if write else self.dialect.after_read)(connection)

    def _translated(self, error: Exception, *, foreign: bool = False) -> Exception:
        """*error* as ours, if it came from SQLAlchemy, the driver, or what the application's engine calls."""
        if isinstance(error, LegacyPollError):
            return error
        # Drivers also raise what comes to hand, for a package that is missing or a server that they do not understand.
        foreign = foreign or isinstance(error, (SQLAlchemyError, OSError, UnicodeError)) or _is_strange(error)
        return self.dialect.translate(error) if foreign else error

    def _engine(self, write: bool) -> Engine:
        pid = os.getpid()
        if self._engines is None or self._engines[0] != pid:
            # Connections of the process that forked us are left alone: closing them here would end its sessions.
            self._engines = (pid, self._make_engine(write=False), self._make_engine(write=True))
        return self._engines[2] if write else self._engines[1]

    def _set_up(self, raw: Any, write: bool) -> None:
        try:
            self.dialect.on_connect(raw, Purpose(write, self._wait_seconds, self._limit_seconds))
        except Exception as error:
            raise self._translated(error, foreign=True) from error

    def _remember_file(self, raw: Any, record: Any) -> None:
        record.info[_FILE] = self.dialect.identity()

    def _check_file(self, raw: Any, record: Any, proxy: Any) -> None:
        now = self.dialect.identity()
        if now is not None and now != record.info.get(_FILE):
            raise DisconnectionError("the database file was replaced")

    def _make_engine(self, *, write: bool, pool_class: Any = None) -> Engine:
        theirs = self.engine.pool
        # We end our transactions ourselves, and reads have none: to have the pool roll back once more would cost a
        # round trip on MySQL, and a traceback in the log when the server has just gone.
        options: Any = {"dialect": self.engine.dialect, "_dispatch": theirs.dispatch, "reset_on_return": None}
        # A read that meets a dead connection makes all of them be opened anew, and is done again. A write would be a
        # POST that is refused, or a second outage in the log, after the database came back.
        ping = write and self.dialect.pre_ping
        pool: pools.Pool
        if pool_class is not None:
            pool = pool_class(theirs._creator, **options)
        elif self._threaded:
            # The offload's threads stay; each keeps its connections, and no lock is shared between threads.
            pool = pools.SingletonThreadPool(theirs._creator, pool_size=1000, pre_ping=ping, **options)
        elif self.dialect.connection_per_thread:
            pool = pools.NullPool(theirs._creator, **options)
        else:
            size = 2 if write else self._settings.catchup_reads + 1
            options.update(pre_ping=ping, timeout=_CONNECT_WAIT_SECONDS)
            pool = pools.QueuePool(theirs._creator, pool_size=size, max_overflow=0, **options)
        listening.listen(
            pool,
            "connect",
            lambda raw, record: self._set_up(raw, write),
        )
        if self.dialect.is_file:
            listening.listen(pool, "connect", self._remember_file)
            listening.listen(pool, "checkout", self._check_file)
        engine = Engine(pool, self.engine.dialect, self.engine.url)
        if write:
            listening.listen(
                engine,
                "begin",
                lambda connection: self.dialect.on_begin(connection, limit=self._limit_seconds),
            )
        return engine


def _is_strange(error: BaseException) -> bool:
    """Whether a driver raised *error*, and SQLAlchemy did not know it.

    The driver may have stopped in the middle of an answer, whose rest would be taken for the next one. To tell a fault
    of ours apart: the last of our functions that the error came through had called SQLAlchemy.
    """
    if not isinstance(error, Exception) or isinstance(error, (SQLAlchemyError, LegacyPollError)):
        return False
    strange, trace = False, error.__traceback__
    while trace is not None:
        package = trace.tb_frame.f_globals.get("__name__", "").partition(".")[0]
        strange = package == "sqlalchemy" or (strange and package != __name__.partition(".")[0])
        trace = trace.tb_next
    return strange


def _in_transaction(connection: Connection, work: Callable[[Connection], Result], call: Call) -> Result:
    transaction = connection.begin()
    try:
        result = work(connection)
        call.go_on()
        transaction.commit()
    except BaseException as error:
        ended = False
        try:
            if transaction.is_active and not _is_strange(error):
                transaction.rollback()
                ended = True
        finally:
            if not ended:
                connection.invalidate()  # nobody knows what state it is in
        raise
    return result
