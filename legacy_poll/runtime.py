"""What one process needs to serve one log: built where it is used, after any fork, and started with the first request.

The parts are joined here and know each other only through their constructors.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import gevent
import gevent.event
import gevent.monkey
from gevent.threadpool import ThreadPool
from sqlalchemy.engine import Engine

from . import schema
from .admission import Admission
from .backlog import Backlog
from .capacity import most_held, why_none_is_held
from .catchup import CatchUp
from .config import Settings
from .cursors import Cursor
from .database import Call, Database
from .dialects import dialect_of
from .errors import CursorExpired, CursorUnknown, StorageUnavailable
from .eventlog import EventLog
from .events import REVOKE_CHANNEL, Event
from .hold import Hold
from .hub import Hub
from .lanes import GunicornSeam, ParkedLane, why_not
from .metrics import Metrics
from .publisher import Publisher
from .revocations import Revocations
from .sequencer import Sequencer
from .stopping import find_worker, is_stopping
from .wakeups import HostListener, NotifyListener, directory_of
from .wire import PollRequest

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
        seconds, patience = settings.database_timeout_seconds, settings.write_wait_seconds
        ways = _offload(engine, threads=settings.catchup_reads + 4, seconds=seconds)
        self.database = Database(engine, settings, **ways)
        # For POST /publish: a client that waits rather wants to be told later than to be refused.
        ways = _offload(engine, threads=4, seconds=seconds + patience)
        self.patient = Database(engine, settings, wait_seconds=patience, **ways)
        backlog = Backlog(self.database.dialect)
        self.log = EventLog(self.database, settings, backlog=backlog)
        make_event = _event_maker()
        self.hub = Hub(
            tail_events=settings.tail_events,
            tail_bytes=settings.tail_bytes,
            max_bytes=settings.max_response_bytes,
            max_group=settings.max_group,
            max_backlog=settings.max_backlog_events,
            make_event=make_event,
        )
        self.catchup = CatchUp(
            self.log,
            reads=settings.catchup_reads,
            max_bytes=settings.max_response_bytes,
            max_backlog=settings.max_backlog_events,
            most_waiting=settings.max_catchups,
            make_event=make_event,
        )
        self.revocations = Revocations(host_time_of=lambda time: self.publisher.host_time_of(time))
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
            faults=lambda: schema.faults(self.database),
            on_reserved=self._take_reserved,
            on_prime=self._load_revocations,
            watch=self._watch_server,
        )
        self.hold.on_other_log = self.publisher.wake_once
        self.metrics = Metrics()
        #: Queries of polls, as they came, and what they ask; the views bound it.
        self.understood: Dict[bytes, PollRequest] = {}
        #: Where polls wait that may leave their request; None where all stay in it.
        self.lane: Optional[ParkedLane] = None
        #: Which lane it is, and why it is not the one that was asked for.
        self.lane_name = "standard"
        self._starting = threading.Lock()
        self._started = False
        self._worker: Any = None
        self._why_none_is_held = ""
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
        self._fit_server(most_held(self._worker))
        if self.settings.park:
            self._park()
        self.publisher.start()
        for listener in self._listeners:
            listener.start()

    def await_revocations(self) -> None:
        """Returns when this worker knows who was revoked before it started, or its first look has failed."""
        if not self.revocations.loaded:
            self.publisher.looked.wait(self.settings.database_timeout_seconds)

    def hints(self) -> List[str]:
        """Where hints come from, beside the interval."""
        return ["process"] + [listener.kind for listener in self._listeners if listener.hears]

    def holds(self, environ: Any) -> bool:
        """Whether the server of the request *environ*, WSGI's, can let a poll wait; if not, the log says why, once."""
        if not self._why_none_is_held:
            self._hold_none(why_none_is_held(environ))
        return not self._why_none_is_held

    def _fit_server(self, most: Optional[int]) -> None:
        if most is None:
            return
        if most == 0:
            self._hold_none("this worker answers one request at a time")
        elif most < self.settings.max_held:
            self.admission.limit(most)
            logger.warning(
                "legacy_poll: held polls take threads here: at most %d at once, so that others are served too; "
                "use gunicorn -k gevent, or more --threads, for more",
                most,
            )

    def _hold_none(self, why: str) -> None:
        self._why_none_is_held = why
        if why:
            logger.warning(
                "legacy_poll: polls are not held, since %s: events come late, and polls without any are answered "
                "503; use gunicorn -k gevent",
                why,
            )

    def _park(self) -> None:
        why = why_not(self._worker)
        if not self.settings.reauthorize_seconds:
            why = "reauthorize_seconds is 0"
        if why:
            self.lane_name = "standard, since %s" % why
            logger.info("legacy_poll: polls wait in the standard lane, since %s", why)
            return
        self.lane_name = "parked"
        self.lane = ParkedLane(
            GunicornSeam(self._worker),
            self.hold,
            self.admission,
            self.metrics,
            reauthorize_seconds=self.settings.reauthorize_seconds,
            send_seconds=self.settings.send_seconds,
            is_well=lambda: self.publisher.live,
            varying_headers=self.settings.varying,
        )
        self.lane.start()
        logger.info("legacy_poll: polls wait in the parked lane")

    def drain(self) -> None:
        """Answers every held poll as at its timeout, and holds no more: the server is about to end."""
        if not self.hold.draining:
            logger.info("legacy_poll: draining %d held polls", self.admission.held)
            self.admission.close()
            self.hold.drain()
            if self.lane is not None:
                self.lane.drain()

    def _take_reserved(self, events: Sequence[Event]) -> None:
        for event in events:
            subject = self.revocations.note(event)
            if subject is not None:
                self.hold.revoke(subject)

    def _load_revocations(self) -> None:
        # What was revoked before this worker started, for as long as the log remembers it.
        channels = frozenset((REVOKE_CHANNEL,))
        found: List[Event] = []
        cursor: Optional[Cursor] = None
        more = True
        while more:
            try:
                batch = self.log.read_after(
                    cursor, channels=channels, limit=1000, max_bytes=1 << 20, past_holes=True
                )
            except (CursorExpired, CursorUnknown):
                found, cursor = [], None  # trimmed or replaced meanwhile: what is there, from its beginning
                continue
            found += batch.events
            cursor, more = batch.cursor, batch.more
        assert cursor is not None
        for subject in self.revocations.load(found, upto=cursor.position):
            self.hold.revoke(subject)

    def _watch_server(self) -> None:
        if is_stopping(self._worker):
            self.drain()

    def stop(self) -> None:
        """Stops the publisher and the listeners; every held poll looks again."""
        for listener in self._listeners:
            listener.stop()
        self.publisher.stop()
        self.hub.look_again()

    def end(self) -> None:
        """Answers every held poll, stops, waits for the tick under way, and closes what is open."""
        self.drain()
        self.stop()
        self.publisher.join(self.settings.database_timeout_seconds)
        self.database.close()
        self.patient.close()

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


def _offload(engine: Engine, *, threads: int, seconds: float) -> Dict[str, Any]:
    """How to call the driver so that neither its blocking nor a database that hangs stops other greenlets.

    Returns:
        Arguments of Database. None where nothing is patched: there a call stops nobody but its caller.
    """
    if not gevent.monkey.is_module_patched("socket"):
        return {}
    pool = ThreadPool(threads) if dialect_of(engine).driver_blocks() else None

    def begin(function: Any, arguments: Any) -> Any:
        return (gevent if pool is None else pool).spawn(_outcome, function, arguments)

    def offload(call: Call, function: Any, *arguments: Any) -> Any:
        with gevent.Timeout(seconds) as limit:
            try:
                # Of threads there may be none: then the wait begins here.
                running = begin(function, arguments)
                if pool is None:
                    # A BaseException: SQLAlchemy then throws the connection away.
                    call.stop = lambda: running.kill(block=False)
                result, error = running.get()
            except gevent.Timeout as over:
                if over is not limit:
                    raise
                raise StorageUnavailable("the database gave no answer within %g s" % seconds) from None
        if error is not None:
            raise error
        return result

    return {"offload": offload, "threaded": pool is not None, "limit_seconds": seconds}


def _outcome(function: Any, arguments: Any) -> Tuple[Any, Optional[BaseException]]:
    # What leaves a function in a thread of gevent's pool is printed as a fault of the thread.
    try:
        return function(*arguments), None
    except BaseException as error:
        return None, error
