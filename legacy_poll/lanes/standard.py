"""The standard lane: a Flask response whose body, status and headers come when the hold has ended.

WSGI allows ``start_response`` to be called as late as the first iteration over the body. So the view returns at once,
Flask pops its contexts and the app's session goes back to its pool, and only then does the server iterate and the
wait begin: nothing of the app is held.

What follows from it: ``after_request`` functions see status 200 where the answer may become 204, 206, 410 or 503
(the headers they set are kept), and whoever reads the body there gets an error that says so, never a wait.
"""

from __future__ import annotations

import errno
import functools
import logging
from typing import Any, Callable, Iterable, Iterator, List, NoReturn, Optional, Tuple, Type

import gevent
from flask import Response, current_app, has_request_context, session
from werkzeug.datastructures import Headers
from werkzeug.http import HTTP_STATUS_CODES

from ..errors import ClientGone
from ..wire import Answer
from .connection import Connection

__all__ = ["HeldResponse", "Joined", "LateBody", "QuietResponse", "held_response", "merged", "status_line"]

logger = logging.getLogger("legacy_poll")

PIECE_BYTES = 65_536
#: Longest body that is sent in one piece with its head.
_JOINED_BYTES = 16_384
_NOT_YET = (
    "the body of a held poll is not known yet: it comes when the hold has ended, after all after_request functions. "
    "Leave responses with the attribute is_held alone (ETags, compression, signing); see docs/lanes.md"
)


class QuietResponse(Response):
    """A response that leaves the application's session cookie alone.

    Flask writes the cookie of a permanent session with every response, which for a page that polls means all the
    time, and each poll's bytes would differ from the last one's. A session that was changed is still written.
    """

    def set_cookie(self, key: str, *args: Any, **kwargs: Any) -> None:
        if (
            has_request_context()
            and key == current_app.config["SESSION_COOKIE_NAME"]
            and not session.modified
        ):
            return
        super().set_cookie(key, *args, **kwargs)


class HeldResponse(QuietResponse):
    """What the view returns for a poll.

    Args:
        wait: Called once with the :class:`Connection`, outside every context; blocks until the answer is there.
        release: Called when the response is over or was given up, whether *wait* was called or not; maybe twice.
        heartbeat_seconds: Between two bytes of white space while held; 0 sends none.
        send_seconds: Longest time for the client to take 64 KiB of the answer, or what there is.
        content_type: Of an answer that begins with a heartbeat.
        is_last: Whether the connection is to be closed behind the answer; asked when the answer is there.
        cut: Called when the client did not take the answer in time.
    """

    is_held = True
    automatically_set_content_length = False
    implicit_sequence_conversion = False

    def __init__(
        self,
        wait: Callable[[Connection], Answer],
        release: Callable[[], None],
        *,
        heartbeat_seconds: float = 0.0,
        send_seconds: float = 60.0,
        content_type: str = "application/json",
        is_last: Callable[[], bool] = lambda: False,
        cut: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(status=200, content_type=content_type)
        self.beaten_type = content_type
        self.wait = wait
        self.release = release
        self.heartbeat_seconds = heartbeat_seconds
        self.send_seconds = send_seconds
        self.is_last = is_last
        self.cut = cut
        #: Whether the server has it, and will close it.
        self.taken = False
        #: What the parked lane needs to know of this poll, if it may have it: see approvals.Parking.
        self.parking: Any = None

    def __call__(self, environ: Any, start_response: Any) -> "LateBody":
        self.taken = True
        return LateBody(self, environ, start_response)

    def get_data(self, as_text: bool = False) -> NoReturn:
        raise RuntimeError(_NOT_YET)

    def set_data(self, value: Any) -> None:
        if value != b"" or hasattr(self, "release"):
            raise RuntimeError(_NOT_YET)

    data = property(get_data, set_data)

    def iter_encoded(self) -> NoReturn:
        raise RuntimeError(_NOT_YET)

    def make_sequence(self) -> None:
        raise RuntimeError(_NOT_YET)

    def calculate_content_length(self) -> Optional[int]:
        return None

    def add_etag(self, overwrite: bool = False, weak: bool = False) -> None:
        raise RuntimeError(_NOT_YET)

    def make_conditional(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(_NOT_YET)


@functools.lru_cache(maxsize=None)
def held_response(base: Type[Any]) -> Type[HeldResponse]:
    """The HeldResponse of an application whose ``response_class`` is *base*.

    Flask turns a response of another class into one of the application's, and then nothing would wait.
    """
    if issubclass(HeldResponse, base):
        return HeldResponse
    return type("Held" + base.__name__, (HeldResponse, base), {})


class Joined(bytearray):
    """In place of a socket: what is sent to it, one behind the other."""

    def sendall(self, data: bytes) -> None:
        self += data


class LateBody:
    """The WSGI iterable: waits at its first ``next``, unless the parked lane took the connection before."""

    def __init__(self, response: HeldResponse, environ: Any, start_response: Any) -> None:
        self._response = response
        self._environ = environ
        self._start_response = start_response
        self.parking = response.parking
        self._write: Any = None
        self._started = False
        self._closed = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._started or self._closed:
            self._response.release()  # test clients may never close
            raise StopIteration
        self._started = True
        connection = Connection(
            self._environ,
            heartbeat_seconds=self._response.heartbeat_seconds,
            beat=self._beat,
            server=self._server,
        )
        try:
            answer = self._response.wait(connection)
        except ClientGone as gone:
            # What servers take for the end of a connection, and do not log as a fault. The status is only for their
            # access log, and is the one that nginx has for it.
            self._response.release()
            if self._write is None:
                self._start_response("499 CLIENT CLOSED REQUEST", [])
            raise ConnectionResetError(errno.ECONNRESET, str(gone)) from None
        if self._response.is_last():
            self._close_behind()
        if self._write is None:
            self._write = self._start_response(status_line(answer.status), self._headers(answer.headers))
        if not answer.body:
            self._response.release()
            raise StopIteration
        if connection.is_green and self._write is not None:
            self._send(answer.body)
            raise StopIteration
        return answer.body

    @property
    def environ(self) -> Any:
        return self._environ

    @property
    def start_response(self) -> Any:
        return self._start_response

    @property
    def headers(self) -> Headers:
        """The application's."""
        return self._response.headers

    def part(self) -> None:
        """Parts from the place that it holds, which somebody else gives back; closes nothing yet."""
        self._closed = True

    def close_response(self) -> None:
        """Runs the application's functions of ``call_on_close``, which may wait; one that fails is logged."""
        try:
            self._response.close()
        except Exception:
            logger.exception("legacy_poll: what runs when a response is closed failed")

    def close(self) -> None:
        """Gives the place back; the server calls it whatever happened."""
        if not self._closed:
            self._closed = True
            try:
                self._response.release()
            finally:
                self._response.close()

    def _beat(self) -> None:
        if self._write is None:
            self._write = self._start_response(
                "200 OK", self._headers((("Content-Type", self._response.beaten_type),))
            )
        self._write(b" ")

    def _send(self, body: bytes) -> None:
        server: Any = self._server
        if len(body) <= _JOINED_BYTES and hasattr(server, "sock"):
            # gunicorn sends the head by itself: a second call of the system, and a second packet for the client.
            connection, joined = server.sock, Joined()
            server.sock = joined
            try:
                self._write(body)
            finally:
                server.sock = connection
            self._limited(connection.sendall, bytes(joined))
            return
        # The server would send it for as long as the client takes it, a byte a minute. Piece by piece, so that a slow
        # network has as much time as a large answer needs.
        for start in range(0, len(body), PIECE_BYTES):
            self._limited(self._write, body[start : start + PIECE_BYTES])

    def _limited(self, send: Callable[[bytes], Any], data: bytes) -> None:
        with gevent.Timeout(self._response.send_seconds) as limit:
            try:
                send(data)
            except gevent.Timeout as over:
                if over is not limit:
                    raise
                self._response.cut()
                raise ConnectionResetError(errno.ECONNRESET, "the client did not take the answer") from None

    def _close_behind(self) -> None:
        # A WSGI application may not say so itself, and gunicorn decided before the wait began.
        force_close = getattr(self._server, "force_close", None)
        if force_close is not None:
            force_close()
        elif hasattr(self._server, "close_connection"):
            self._server.close_connection = True  # gevent's and the standard library's

    @property
    def _server(self) -> Any:
        # Of gunicorn and gevent, unless some middleware stands between.
        return getattr(self._start_response, "__self__", None)

    def _headers(self, late: Iterable[Tuple[str, str]]) -> List[Tuple[str, str]]:
        return merged(self._response.headers, late)


def merged(headers: Headers, late: Iterable[Tuple[str, str]]) -> List[Tuple[str, str]]:
    """The application's *headers* of a poll's answer, with those that came with the answer."""
    late = list(late)
    # A 204 has no type; the others bring theirs.
    replaced = {"content-type", "content-length"}
    replaced.update([name.lower() for name, _ in late])
    return [each for each in headers.to_wsgi_list() if each[0].lower() not in replaced] + late


def status_line(status: int) -> str:
    """*status* as WSGI has it."""
    return "%d %s" % (status, HTTP_STATUS_CODES.get(status, "Unknown").upper())
