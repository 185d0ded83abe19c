"""What one process needs to serve one log: built where it is used, after any fork, and started with the first request.

The parts are joined here and know each other only through their constructors.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import Any, Callable, List, Optional, Sequence, Tuple

import gevent
import gevent.event
import gevent.monkey
from gevent.threadpool import ThreadPool
from sqlalchemy.engine import Engine

from . import schema
from .admission import Admission
from .backlog import Backlog
from .catchup import CatchUp
from .config import Settings
from .database import Database, Offload
from .dialects import dialect_of
from .errors import CursorExpired, CursorUnknown, StorageUnavailable
from .eventlog import EventLog
from .events import REVOKE_CHANNEL, Event
from .hold import Hold
from .hub import Hub
from .metrics import Metrics
from .publisher import Publisher
from .revocations import Revocations
from .sequencer import Sequencer
from .stopping import find_worker, is_stopping
from .wakeups import HostListener, NotifyListener, directory_of

__all__ = ["Runtime"]

logger = logging.getLogger("legacy_poll")


class Runtime:
    """The objects that serve one log in this process.

    Args:
        engine: How to connect.
        settings: All of them.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.pid = os.getpid()
        self.settings = settings
        offload, threaded = _offload(
            engine, threads=settings.catchup_reads + 4, seconds=settings.database_timeout_seconds
        )
        self.database = Database(engine, settings, offload=offload, threaded=threaded)
        # For POST /publish: a client that waits rather wants to be told later than to be refused.
        patience = settings.write_wait_seconds
        offload, threaded = _offload(engine, threads=4, seconds=settings.database_timeout_seconds + patience)
        self.patient = Database(engine, settings, offload=offload, threaded=threaded, wait_seconds=patience)
        backlog = Backlog(self.database.dialect)
        self.log = EventLog(self.database, settings, backlog=backlog)
        make_event = _event_maker()
        self.hub = Hub(
            tail_events=settings.tail_events,
            tail_bytes=settings.tail_bytes,
            max_bytes=settings.max_response_bytes,
            max_group=settings.max_group,
            make_event=make_event,
        )
        self.catchup = CatchUp(
            self.log,
            reads=settings.catchup_reads,
            max_bytes=settings.max_response_bytes,
            most_waiting=settings.max_catchups,
            make_event=make_event,
        )
        self.revocations = Revocations()
        self.hold = Hold(self.hub, self.catchup, revocations=self.revocations)
        self.admission = Admission(
            max_held=settings.max_held, max_held_per_client=settings.max_held_per_client
        )
        self.publisher = Publisher(
            self.log,
            Sequencer(self.database, settings, backlog=backlog),
            self.hub,
            settings,
            check=self._prepare,
            on_reserved=self._take_reserved,
            on_prime=self._load_revocations,
            watch=self._watch_server,
        )
        self.metrics = Metrics()
        self._starting = threading.Lock()
        self._started = False
        self._worker: Any = None
        self._listeners: List[Any] = []
        if settings.wakeup_directory != "off":
            place = directory_of(engine.url, configured=settings.wakeup_directory)
            self._listeners.append(HostListener(place, self.publisher.wake))
        if settings.notify and self.database.dialect.notifies:
            self._listeners.append(NotifyListener(self.database, self.publisher.wake_once))

    def start(self) -> None:
        """Starts the publisher, and listens for hints; again is no error."""
        with self._starting:
            if self._started:
                return
            self._started = True
        self._worker = find_worker()
        self.publisher.start()
        for listener in self._listeners:
            listener.start()

    def hints(self) -> List[str]:
        """Where hints come from, beside the interval."""
        return ["process"] + [listener.kind for listener in self._listeners if listener.hears]

    def drain(self) -> None:
        """Answers every held poll as at its timeout, and holds no more: the server is about to end."""
        if not self.hold.draining:
            logger.info("legacy_poll: draining %d held polls", self.admission.held)
            self.admission.close()
            self.hold.drain()

    def _take_reserved(self, events: Sequence[Event]) -> None:
        for event in events:
            subject = self.revocations.note(event)
            if subject is not None:
                self.hold.revoke(subject)

    def _load_revocations(self) -> None:
        # What was revoked before this worker started, for as long as the log remembers it.
        channels = frozenset((REVOKE_CHANNEL,))
        cursor, more = None, True
        while more:
            try:
                batch = self.log.read_after(cursor, channels=channels, limit=1000, max_bytes=1 << 20)
            except CursorExpired:
                cursor = None  # trimmed meanwhile: what is left, from its beginning
                continue
            except CursorUnknown:
                return  # the log was replaced meanwhile: the next tick starts afresh, and comes here again
            self._take_reserved(batch.events)
            cursor, more = batch.cursor, batch.more

    def _watch_server(self) -> None:
        if is_stopping(self._worker):
            self.drain()

    def stop(self) -> None:
        """Stops the publisher and the listeners; every held poll looks again."""
        for listener in self._listeners:
            listener.stop()
        self.publisher.stop()
        self.hub.look_again()

    def _prepare(self) -> Optional[str]:
        warning = schema.check(self.database)
        dialect, most = self.database.dialect, self.settings.max_event_bytes
        if self.database.read(lambda connection: dialect.needs_prepare(connection, max_event_bytes=most)):
            # With patience: every worker of a new server comes here at the same moment.
            self.patient.write(lambda connection: dialect.prepare(connection, max_event_bytes=most))
        return warning


def _event_maker() -> Callable[[], Any]:
    """What held polls wait on here: a greenlet each of one thread, or a thread each."""
    patched = gevent.monkey.is_module_patched("threading") or gevent.monkey.is_module_patched("socket")
    return gevent.event.Event if patched else threading.Event


def _offload(engine: Engine, *, threads: int, seconds: float) -> Tuple[Optional[Offload], bool]:
    """How to call the driver so that neither its blocking nor a database that hangs stops other greenlets.

    Returns:
        None where nothing is patched: there a call stops nobody but its caller; and whether it runs in threads.
    """
    if not gevent.monkey.is_module_patched("socket"):
        return None, False
    if not dialect_of(engine).driver_blocks():

        def limited(function: Any, *arguments: Any) -> Any:
            # A BaseException: SQLAlchemy then throws the connection away, whose protocol is in an unknown state.
            with gevent.Timeout(seconds) as limit:
                try:
                    return function(*arguments)
                except gevent.Timeout as over:
                    if over is not limit:
                        raise
                    raise _too_slow(seconds) from None

        return limited, False

    pool = ThreadPool(threads)

    def threaded(function: Any, *arguments: Any) -> Any:
        try:
            result, error = pool.spawn(_outcome, function, arguments).get(timeout=seconds)
        except gevent.Timeout:
            raise _too_slow(seconds) from None
        if error is not None:
            raise error
        return result

    return threaded, True


def _outcome(function: Any, arguments: Any) -> Tuple[Any, Optional[BaseException]]:
    # What leaves a function in a thread of gevent's pool is printed as a fault of the thread.
    try:
        return function(*arguments), None
    except BaseException as error:
        return None, error


def _too_slow(seconds: float) -> StorageUnavailable:
    return StorageUnavailable("the database gave no answer within %g s" % seconds)
