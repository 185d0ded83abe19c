"""One held request's connection: what can be known of it while it waits, and sent before it is answered.

gevent does not notice a hang-up unless something is written, so a waiting request watches its socket: an end of the
stream, also of one half, or a reset frees the place at once. A client that *sends* while it is held (a pipelined
request) is left alone, and the connection's state is looked at from time to time instead, since an end behind unread
bytes does not show. Keepalive probes find the phone that vanished without a word.

Heartbeats are white space before the JSON, through WSGI's ``write``; after the first, the status is 200 for good.

Where requests have threads of their own, the socket is looked at once a second. Where the server does not show it, or
it is TLS, the wait is only a wait.
"""

from __future__ import annotations

import socket
import ssl
import time
from typing import Any, Callable, Optional

import gevent
import gevent.event
import gevent.monkey

from ..errors import ClientGone

__all__ = ["Connection", "probe"]

_ESTABLISHED = 1  # the first byte of Linux's struct tcp_info
_LOOK_SECONDS = 1.0
_KEEPALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))


class _Unread(Exception):
    """The client sent something while it is held; ends a wait that is longer than the time between two looks."""


class Connection:
    """The connection of the request *environ*.

    Args:
        environ: WSGI's.
        heartbeat_seconds: Between two beats; 0 sends none.
        beat: Sends one; its first call starts the response. None where the server cannot.
        server: What of the server answers this request, if that is known; gevent's has its socket there.
    """

    def __init__(
        self,
        environ: Any,
        *,
        heartbeat_seconds: float = 0.0,
        beat: Optional[Callable[[], None]] = None,
        server: Any = None,
    ) -> None:
        self._socket = _raw_socket(environ, server)
        self._heartbeat_seconds = heartbeat_seconds if beat is not None else 0.0
        self._beat = beat
        self._greenlet: Any = None
        self._unread = False
        self._looks = False
        self._beat_at = 0.0
        #: Whether the server runs on gevent and shows its socket: what blocks can be given a time limit.
        self.is_green = self._socket is not None and gevent.monkey.is_module_patched("socket")
        #: Whether a heartbeat has been sent, and the status with it.
        self.beaten = False

    def wait(self, event: gevent.event.Event, seconds: float) -> None:
        """Waits for *event*, no longer than *seconds*.

        Raises:
            ClientGone: The client hung up.
        """
        deadline = time.monotonic() + seconds
        self._looks = not isinstance(event, gevent.event.Event)
        watcher = self._watch()
        try:
            while True:
                left = deadline - time.monotonic()
                if left <= 0 or self._wait(event, self._slice(left)):
                    return
                if (self._unread or self._looks) and _is_over(self._socket):
                    raise ClientGone("the client hung up")
                if self._heartbeat_seconds and time.monotonic() >= self._beat_at:
                    self._send_beat()
        finally:
            if watcher is not None:
                watcher.stop()
                watcher.close()

    def _slice(self, left: float) -> float:
        if self._heartbeat_seconds:
            left = min(left, max(0.0, self._beat_at - time.monotonic()))
        return min(left, _LOOK_SECONDS) if self._unread or self._looks else left

    def _wait(self, event: gevent.event.Event, seconds: float) -> bool:
        self._greenlet = gevent.getcurrent()
        try:
            return bool(event.wait(seconds))
        except _Unread:
            return False  # from now on it is looked at once a second: this wait was longer
        finally:
            self._greenlet = None

    def _watch(self) -> Any:
        self._beat_at = time.monotonic() + self._heartbeat_seconds
        if self._socket is None:
            return None
        try:
            probe(self._socket)
            if self._looks:
                return None
            watcher = gevent.get_hub().loop.io(self._socket.fileno(), 1)
        except (OSError, ValueError):
            raise ClientGone("the client hung up before it was held") from None
        watcher.start(self._readable, watcher)
        return watcher

    def _readable(self, watcher: Any) -> None:
        """In the event loop: there is something to read, which a waiting client does not send."""
        try:
            gone = not self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            gone = True
        watcher.stop()
        self._unread = not gone
        if self._greenlet is not None:
            self._greenlet.throw(ClientGone("the client hung up") if gone else _Unread())
        elif gone:
            self._unread = True  # between two waits: the next look finds it

    def _send_beat(self) -> None:
        assert self._beat is not None
        self.beaten = True
        self._beat()
        self._beat_at = time.monotonic() + self._heartbeat_seconds


def _raw_socket(environ: Any, server: Any) -> Any:
    """The plain TCP or UNIX socket of the request, or None."""
    found = environ.get("gunicorn.socket") or environ.get("werkzeug.socket")
    if found is None and str(environ.get("SERVER_SOFTWARE", "")).startswith("gevent/"):
        found = getattr(server, "socket", None)
    if found is None or isinstance(found, ssl.SSLSocket) or hasattr(found, "_sslobj"):
        return None
    # gevent's socket would switch greenlets in recv; the one inside does not.
    return getattr(found, "_sock", found)


def probe(connection: Any) -> None:
    """Lets the kernel ask from time to time whether the other side is still there."""
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    name, value = _KEEPALIVE[0]
    if hasattr(socket, name) and connection.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) == value:
        return  # since an earlier poll
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _is_over(connection: Any) -> bool:
    """Whether the other side has ended or reset the connection; also behind bytes that nobody read, on Linux."""
    if connection is None:
        return False
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) or _is_half_closed(connection)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _is_half_closed(connection: Any) -> bool:
    if not hasattr(socket, "TCP_INFO") or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    return bool(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _ESTABLISHED)
