"""Commits of other processes on this host: a datagram to every worker that follows the same database.

Each worker binds a socket of its own in a folder named after the database; whoever publishes sends one byte to each
socket there. No daemon, no port, nothing to configure: a Celery worker or a script that uses :class:`LegacyPoll`
wakes the web workers beside it. A byte says "look", and nothing else, so a forged one costs a look at the database.

The folder is found by both sides from the database's URL (its kind, host, port and name). Where they spell it
differently, or do not share a folder for temporary files (containers), hints do not arrive and the interval poll
serves; ``LEGACY_POLL_WAKEUP_DIRECTORY`` names a folder for both.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import socket
import tempfile
import threading
import time
from typing import Callable, List, Optional

from sqlalchemy.engine import URL

__all__ = ["HostListener", "HostSender", "directory_of"]

logger = logging.getLogger("legacy_poll")

#: How long a sender trusts its list of sockets, seconds.
_LIST_SECONDS = 0.5
#: Linux allows 107 bytes for the path of a socket.
_LONGEST_PATH = 100


def directory_of(url: URL, *, configured: str = "") -> str:
    """The folder in which the workers that follow the database *url* have their sockets.

    Args:
        url: Of the database.
        configured: ``LEGACY_POLL_WAKEUP_DIRECTORY``; empty is a folder of the host's temporary files.
    """
    if url.get_backend_name() == "sqlite":
        place = os.path.realpath(url.database or "")
    else:
        place = "%s:%s/%s" % (url.host or "localhost", url.port or "", url.database or "")
    kind = url.get_backend_name().replace("mariadb", "mysql")
    name = hashlib.sha256(("%s %s" % (kind, place)).encode("utf-8")).hexdigest()[:16]
    return os.path.join(configured or tempfile.gettempdir(), "legacy_poll-" + name)


class HostListener:
    """Calls *wake* for every datagram.

    Args:
        directory: From :func:`directory_of`.
        wake: Must not block or raise.
    """

    def __init__(self, directory: str, wake: Callable[[], None]) -> None:
        self._directory = directory
        self._wake = wake
        self._socket: Optional[socket.socket] = None
        self._path = ""

    kind = "host"

    @property
    def hears(self) -> bool:
        """Whether the socket is there."""
        return self._socket is not None

    def start(self) -> bool:
        """Binds the socket and listens; a greenlet where gevent patched threading, else a thread.

        Returns:
            False, with a line in the log, where this host does not let us: the interval poll serves.
        """
        path = os.path.join(self._directory, "%d-%x" % (os.getpid(), id(self) & 0xFFFFFF))
        if len(path.encode()) > _LONGEST_PATH:
            logger.warning(
                "legacy_poll: no hints from other processes: the path %s is too long for a socket", path
            )
            return False
        try:
            _make_shared(self._directory)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            listener.bind(path)
            os.chmod(path, 0o666)  # publishers may run as another user; see the module's docstring
        except OSError as error:
            logger.warning("legacy_poll: no hints from other processes: %s: %s", self._directory, error)
            return False
        self._socket, self._path = listener, path
        threading.Thread(target=self._listen, args=(listener,), name="legacy_poll hints", daemon=True).start()
        return True

    def stop(self) -> None:
        """Removes the socket and ends the listener."""
        if self._socket is None:
            return
        with contextlib.suppress(OSError):
            os.unlink(self._path)
        with contextlib.suppress(OSError):
            # Wakes the listener, which then finds that it is over.
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._socket = None

    def _listen(self, listener: socket.socket) -> None:
        while self._socket is listener:
            try:
                listener.recv(16)
            except OSError:
                return
            if self._socket is listener:
                self._wake()


class HostSender:
    """Sends a datagram to every listener in a folder.

    Args:
        directory: From :func:`directory_of`.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._listed_at = 0.0
        self._paths: List[str] = []
        self._pid = 0
        self._socket: Optional[socket.socket] = None

    def send(self) -> int:
        """Sends; never blocks and never raises.

        Returns:
            How many listeners were reached.
        """
        reached = 0
        try:
            if self._socket is None or self._pid != os.getpid():
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.setblocking(False)
                self._pid = os.getpid()
            now = time.monotonic()
            if now - self._listed_at > _LIST_SECONDS:
                self._paths = [os.path.join(self._directory, name) for name in os.listdir(self._directory)]
                self._listed_at = now
        except OSError:
            return 0  # no folder: nobody listens
        ours = os.path.join(self._directory, "%d-" % os.getpid())
        for path in self._paths:
            if path.startswith(ours):
                continue  # this process knows
            try:
                self._socket.sendto(b"!", path)
                reached += 1
            except OSError as error:
                if error.errno == errno.ECONNREFUSED:
                    with contextlib.suppress(OSError):
                        os.unlink(path)  # of a worker that was killed
                    self._listed_at = 0.0
                # A full queue: that worker has hints enough. A missing file: that worker has just ended.
        return reached


def _make_shared(directory: str) -> None:
    try:
        os.mkdir(directory)
    except FileExistsError:
        return
    with contextlib.suppress(OSError):
        os.chmod(directory, 0o1777)
