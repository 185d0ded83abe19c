"""One greenlet, one epoll descriptor and one timer for all connections of a lane, and the rhythm of its steps.

Rules. A step never blocks, and only one runs at a time. Connections are registered once and edge-triggered. While
requests flow the reactor breathes between its steps, so that what comes meanwhile is done together; what is due does
not wait for that.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Callable, List, Tuple

import gevent
import gevent.event
import gevent.monkey

from .wheel import SLOTS_A_SECOND, TimerWheel

__all__ = ["OVER", "Reactor"]

logger = logging.getLogger("legacy_poll")

#: While requests flow, the time between two looks, seconds.
_BREATH_SECONDS = 0.001
#: Pause after a fault of ours, seconds.
_FAULT_SECONDS = 0.5

_EPOLLIN, _EPOLLRDHUP, _EPOLLET, _EPOLLONESHOT = 0x001, 0x2000, 1 << 31, 1 << 30
#: Flags of a connection that has ended, in one direction or both: RDHUP, HUP, ERR.
OVER = 0x2000 | 0x010 | 0x008


class Reactor:
    """Calls a step whenever there may be something to do.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wheel = TimerWheel(clock=clock)
        self._woken = gevent.event.Event()
        self._due = gevent.event.Event()
        self._epoll: Any = None
        self._bell: Any = None
        self._io: Any = None
        self._timer: Any = None
        self._ticking = False

    @property
    def is_open(self) -> bool:
        """Whether it runs."""
        return self._epoll is not None

    def open(self, step: Callable[[], bool]) -> None:
        """Begins to call *step*, which does a little and returns whether there is more."""
        epoll = gevent.monkey.get_original("select", "epoll")
        # The loop watches the bell, which rings once and must then be set. A watcher of the connections' own epoll
        # would have to be stopped and started instead, and whenever one epoll is added to another the kernel walks
        # all that is in it: half a millisecond for ten thousand connections.
        self._epoll, self._bell = epoll(), epoll()
        self._bell.register(self._epoll.fileno(), _EPOLLIN | _EPOLLONESHOT)
        loop = gevent.get_hub().loop
        self._io = loop.io(self._bell.fileno(), 1)
        self._io.start(self._rings)
        self._timer = loop.timer(1 / SLOTS_A_SECOND, 1 / SLOTS_A_SECOND)
        gevent.spawn(self._run, step)

    def wake(self) -> None:
        """Something is due: a step comes at once."""
        self._due.set()
        self._woken.set()

    def _run(self, step: Callable[[], bool]) -> None:
        looked = 0.0
        while True:
            self._woken.wait()
            if self._clock() - looked < _BREATH_SECONDS:
                self._due.wait(_BREATH_SECONDS)
            self._woken.clear()
            self._due.clear()
            while self._stepped(step):
                gevent.sleep(0)
            looked = self._clock()
            # It rings at once if there is something left, or new.
            self._bell.modify(self._epoll.fileno(), _EPOLLIN | _EPOLLONESHOT)

    def _rings(self) -> None:
        self._bell.poll(0, 1)
        self._woken.set()

    def _stepped(self, step: Callable[[], bool]) -> bool:
        try:
            return step()
        except Exception:  # a fault of ours must not end the only loop, nor fill the log
            logger.exception("legacy_poll: a parked poll failed")
            gevent.sleep(_FAULT_SECONDS)
            return True

    # Connections.

    def register(self, descriptor: int) -> None:
        """Watches the connection *descriptor*.

        Raises:
            OSError: It has gone, or there is no room.
            ValueError: It is closed.
        """
        self._epoll.register(descriptor, _EPOLLIN | _EPOLLRDHUP | _EPOLLET)

    def unregister(self, descriptor: int) -> None:
        """Watches it no more; to be called before it is closed, since a child process may have it too."""
        self._epoll.unregister(descriptor)

    def happened(self, most: int) -> List[Tuple[int, int]]:
        """Descriptors to which something happened, and flags: *most* of them at most."""
        found: List[Tuple[int, int]] = self._epoll.poll(0, most)
        return found

    # Deadlines.

    def slot_of(self, deadline: float) -> int:
        """What has the same slot ends at the same moment."""
        return self._wheel.slot_of(deadline)

    def set_deadline(self, item: Any, deadline: float) -> None:
        """Lets :meth:`due` return *item* when *deadline* has come; it has no other."""
        self._wheel.set(item, deadline)
        self._tick()

    def discard_deadline(self, item: Any) -> None:
        """Takes the deadline of *item*, if it has one."""
        self._wheel.discard(item)

    def due(self) -> List[Any]:
        """The items whose deadline has come; they have none any more."""
        found = self._wheel.due()
        self._tick()
        return found

    def _tick(self) -> None:
        # One timer for all deadlines, and none without any.
        if bool(self._wheel) != self._ticking:
            self._ticking = not self._ticking
            if self._ticking:
                self._timer.start(self._woken.set)
            else:
                self._timer.stop()
