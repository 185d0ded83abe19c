"""What one process needs to serve one log: built where it is used, after any fork, and started with the first request.

The parts are joined here and know each other only through their constructors.
"""

from __future__ import annotations

import os
from typing import Any, Optional

import gevent.monkey
from sqlalchemy.engine import Engine

from . import schema
from .admission import Admission
from .catchup import CatchUp
from .config import Settings
from .database import Database, Offload
from .dialects import dialect_of
from .eventlog import EventLog
from .hold import Hold
from .hub import Hub
from .publisher import Publisher
from .sequencer import Sequencer

__all__ = ["Runtime"]


class Runtime:
    """The objects that serve one log in this process.

    Args:
        engine: How to connect.
        settings: All of them.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.pid = os.getpid()
        self.settings = settings
        offload = _offload(engine, threads=settings.catchup_reads + 3)
        self.database = Database(engine, settings, offload=offload)
        # For POST /publish: a client that waits rather wants to be told later than to be refused.
        self.patient = Database(engine, settings, offload=offload, wait_seconds=settings.write_wait_seconds)
        self.log = EventLog(self.database, settings)
        self.hub = Hub(
            tail_events=settings.tail_events,
            tail_bytes=settings.tail_bytes,
            max_bytes=settings.max_response_bytes,
        )
        self.catchup = CatchUp(self.log, reads=settings.catchup_reads, max_bytes=settings.max_response_bytes)
        self.hold = Hold(self.hub, self.catchup)
        self.admission = Admission(
            max_held=settings.max_held, max_held_per_client=settings.max_held_per_client
        )
        self.publisher = Publisher(
            self.log, Sequencer(self.database, settings), self.hub, settings, check=self._prepare
        )

    def start(self) -> None:
        """Starts the publisher; again is no error."""
        self.publisher.start()

    def stop(self) -> None:
        """Stops the publisher and closes idle connections."""
        self.publisher.stop()
        self.hub.look_again()

    def _prepare(self) -> Optional[str]:
        warning = schema.check(self.database)
        dialect, most = self.database.dialect, self.settings.max_event_bytes
        if self.database.read(lambda connection: dialect.needs_prepare(connection, max_event_bytes=most)):
            self.database.write(lambda connection: dialect.prepare(connection, max_event_bytes=most))
        return warning


def _offload(engine: Engine, *, threads: int) -> Optional[Offload]:
    """How to call a driver that would stop every greenlet; None where it would stop nobody but its caller."""
    if not gevent.monkey.is_module_patched("socket") or not dialect_of(engine).driver_blocks():
        return None
    from gevent.threadpool import ThreadPool

    pool = ThreadPool(threads)

    def call(function: Any, *arguments: Any) -> Any:
        return pool.apply(function, arguments)

    return call
