"""Where the parked lane meets gunicorn's gevent worker: how a connection is taken out of its request, and given back.

``worker.is_already_handled(body)`` is called when the application has returned and all middleware has unwound, is made
to be overridden, and may raise StopIteration, which ends the connection's greenlet. So our late body is looked at
there; its socket is detached, and gunicorn closes an empty shell. A connection goes back as a new one does: through the
pool of its own listener into ``worker.handle``, with a socket that first gives the bytes that were read already.

What the client is sent is put together by gunicorn's own Response, and what is logged goes through gunicorn's own log,
so that both are what the standard lane's are, in whatever version.
"""

from __future__ import annotations

import gc
import os
import sys
from datetime import timedelta
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import gevent
import gevent.event
import gevent.monkey
import gevent.server
import gevent.socket
from gevent.queue import Queue

from ..wire import Answer
from .approvals import MOST_BYTES
from .standard import Joined, LateBody, status_line

__all__ = ["Asked", "GunicornSeam", "Rendered", "ReturnedSocket", "why_not"]

#: Requests that are begun before the first of them is done: what each needs meanwhile is memory that stays ours.
_AT_ONCE = 20
#: Own ends of connections whose listener is remembered.
_MOST_PLACES = 1000
#: Headers of requests that are not plain polls: they have a body, want an interim answer, or another protocol.
_NOT_PLAIN = frozenset(("CONTENT-LENGTH", "TRANSFER-ENCODING", "EXPECT", "UPGRADE"))


def why_not(worker: Any) -> str:
    """Why connections of *worker*, gunicorn's or None, cannot be parked; empty when they can."""
    module = sys.modules.get("gunicorn.workers.ggevent")
    kind = getattr(module, "GeventWorker", None)
    if worker is None or kind is None or not isinstance(worker, kind):
        return "this is not a worker of gunicorn -k gevent"
    if worker.server_class is not None:
        return "this kind of gunicorn's gevent workers has a server of its own"
    if type(worker).handle is not kind.handle or type(worker).handle_request is not kind.handle_request:
        return "the worker class handles requests in its own way"
    cfg = worker.cfg
    if cfg.is_ssl:
        return "gunicorn speaks TLS itself"
    if getattr(cfg, "proxy_protocol", False) not in (False, "off"):
        return "gunicorn expects the PROXY protocol"
    if getattr(cfg, "protocol", "http") != "http":
        return "gunicorn speaks the uwsgi protocol"
    if getattr(cfg, "http2_cleartext", "off") != "off":
        return "gunicorn speaks HTTP/2"
    if not cfg.keepalive:
        return "gunicorn's keepalive is 0"
    try:
        gevent.monkey.get_original("select", "epoll")
    except AttributeError:
        return "this system has no epoll"
    return ""


class ReturnedSocket(gevent.socket.socket):
    """A connection's socket that first gives bytes that were read before, and remembers what it gave."""

    # A copy of it (dup) has nothing to give.
    first: bytes = b""
    heard: Optional[bytes] = None

    def give(self, first: bytes) -> "ReturnedSocket":
        self.first = first
        self.heard = b""
        return self

    def recv(self, size: int, *flags: Any) -> bytes:
        if flags:
            return bytes(super().recv(size, *flags))
        if self.first:
            data, self.first = self.first[:size], self.first[size:]
        else:
            data = super().recv(size)
        if self.heard is not None:
            # More than may be approved is not worth remembering.
            self.heard = self.heard + data if len(self.heard) + len(data) <= MOST_BYTES else None
        return data


class _Listener:
    """A listener whose name is known also once it is closed.

    gunicorn asks for the name when it begins with a connection. A worker that stops has closed its listeners, and a
    poll may still come on a connection that was kept.
    """

    def __init__(self, listener: Any) -> None:
        self._listener = listener
        self._name = listener.getsockname()

    def getsockname(self) -> Any:
        return self._name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listener, name)


class Asked:
    """A request under way whose connection can be taken.

    Attributes:
        socket: gevent's.
        number: The listener's.
        peer: The other end's address.
        heard: The bytes of the request, if they are known.
        response: gunicorn's.
    """

    __slots__ = ("socket", "number", "peer", "heard", "response")

    def __init__(self, socket: Any, number: int, peer: Any, heard: Optional[bytes], response: Any) -> None:
        self.socket = socket
        self.number = number
        self.peer = peer
        self.heard = heard
        self.response = response


class Rendered:
    """An answer as it is sent: what stands before the body, the body, and gunicorn's response for the log."""

    __slots__ = ("head", "body", "response", "answer")

    def __init__(self, head: bytes, body: bytes, response: Any, answer: Answer) -> None:
        self.head = head
        self.body = body
        self.response = response
        self.answer = answer


class _PlainRequest:
    """What gunicorn's Response asks of the request that it answers."""

    method = "GET"
    version = (1, 1)

    def __init__(self, headers: Any = ()) -> None:
        self.headers = headers

    def should_close(self) -> bool:
        return False


class GunicornSeam:
    """The worker of this process, as the parked lane needs it.

    Args:
        worker: gunicorn's; :func:`why_not` is empty for it.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._pools: Optional[List[Any]] = None
        self._accept: Callable[[Any, int, Any, bytes], bool] = _never
        self._places: Dict[Any, Optional[int]] = {}
        self._listeners = [_Listener(each) for each in worker.sockets]
        self._returned: Dict[int, Queue] = {}
        #: Longest time that a connection may wait for its next request.
        self.keepalive_seconds = float(worker.cfg.keepalive)
        #: Most connections that gunicorn has at once.
        self.worker_connections = int(worker.cfg.worker_connections)
        #: Whether requests are logged.
        self.logs = _logs(worker)

    @property
    def alive(self) -> bool:
        return bool(self._worker.alive)

    def watch(self, take: Callable[[LateBody], bool], accept: Callable[[Any, int, Any, bytes], bool]) -> None:
        """Asks *take* about each late body, and *accept* about each new connection and what it has sent already.

        Where they return True, the connection is theirs. *accept* is asked once the first was taken.
        """
        self._accept = accept
        before = self._worker.is_already_handled

        def is_already_handled(body: Any) -> Any:
            if type(body) is LateBody and body.parking is not None and take(body):
                # By now the poll is in all books: what the application does here may take a while, or fail.
                body.close_response()
                raise StopIteration
            return before(body)

        self._worker.is_already_handled = is_already_handled

    def asked(self, body: LateBody) -> Optional[Asked]:
        """The request that *body* answers, if its connection can be taken."""
        response: Any = getattr(body.start_response, "__self__", None)
        if type(response) is not sys.modules["gunicorn.http.wsgi"].Response:
            return None  # some middleware stands between
        request, connection = response.req, response.sock
        if response.status is not None or response.must_close or request.should_close():
            return None
        if request.method != "GET" or tuple(request.version) != (1, 1):
            return None
        if any(name.upper() in _NOT_PLAIN for name, _ in request.headers):
            return None
        if request.unreader.buf.getvalue():
            return None  # the client has sent more already: gunicorn read it, and answers in order
        if type(connection) is ReturnedSocket:
            if connection.first:
                return None
        elif type(connection) is not gevent.socket.socket:
            return None
        try:
            peer = connection.getpeername()
            number = self._number(connection)
        except OSError:
            return None  # it has gone; the standard lane finds out
        if number is None:
            return None
        return Asked(connection, number, peer, getattr(connection, "heard", None), response)

    def _number(self, connection: Any) -> Optional[int]:
        """Of the listener that accepted *connection*; None unless there is exactly one that can have."""
        here = connection.getsockname()
        if here not in self._places:
            found = [n for n, each in enumerate(self._worker.sockets) if _accepts(each, connection, here)]
            if len(self._places) >= _MOST_PLACES:
                self._places.clear()
            self._places[here] = found[0] if len(found) == 1 else None
        return self._places[here]

    def pool(self, number: int) -> Any:
        """The pool of the listener *number*; None if it cannot be found."""
        if self._pools is None:
            # The worker keeps them in a local variable; each StreamServer has its listener, and its pool.
            servers = [each for each in gc.get_objects() if type(each) is gevent.server.StreamServer]
            self._pools = []
            for listener in self._worker.sockets:
                # gevent keeps the socket inside ours; the descriptor is the same.
                theirs = [each for each in servers if _descriptor(each) == listener.fileno()]
                self._pools.append(theirs[0].pool if len(theirs) == 1 else None)
                if len(theirs) == 1:
                    self._watch_server(theirs[0], len(self._pools) - 1)
        return self._pools[number]

    def _watch_server(self, server: Any, number: int) -> None:
        server.set_handle(partial(self._worker.handle, self._listeners[number]))
        before = server.do_handle

        def do_handle(connection: Any, peer: Any) -> Any:
            if type(connection) is not gevent.socket.socket or not self._worker.alive:
                return before(connection, peer)
            # What the client has sent already is read here: it is remembered, so that its request may be approved.
            try:
                first = os.read(connection.fileno(), MOST_BYTES)
            except BlockingIOError:
                first = b""
            except OSError:
                return before(connection, peer)  # gunicorn finds out
            else:
                if not first:
                    return before(connection, peer)
            if self._accept(connection, number, peer, first):
                return None
            # With the others that wait for their turn. Whoever accepts slowly lets the kernel's queue overflow, and
            # then clients wait for seconds before they try again.
            return self.give_back(connection.detach(), first, number, peer)

        server.do_handle = do_handle

    def give_back(self, descriptor: int, first: bytes, number: int, peer: Any) -> None:
        """gunicorn's again, as a new connection on which *first* comes first; returns at once.

        Args:
            descriptor: gunicorn's from now on.
            first: Bytes that were read already.
            number: Of the listener that it came by.
            peer: Its other end's address.
        """
        connection = ReturnedSocket(fileno=descriptor).give(first)
        queue = self._returned.get(number)
        if queue is None:
            # One for each listener: where a pool is full its connections wait their turn, as new ones do.
            queue = self._returned[number] = Queue()
            gevent.spawn(self._return, number, queue)
        queue.put((connection, peer))

    def _return(self, number: int, queue: Queue) -> None:
        pool, listener = self.pool(number), self._listeners[number]
        while True:
            for _ in range(_AT_ONCE):
                connection, peer = queue.get()
                pool.spawn(self._worker.handle, listener, connection, peer)
            gevent.sleep(0)

    def keep(self, number: int, over: gevent.event.Event) -> None:
        """Lets the worker wait for *over* when it stops, as for a request under way."""
        gevent.spawn(self.pool(number).spawn, over.wait)

    def render(self, headers: List[Tuple[str, str]], answer: Answer, *, close: bool) -> Rendered:
        """*answer* with *headers*, as gunicorn would send it."""
        module = sys.modules["gunicorn.http.wsgi"]
        sent = Joined()
        response = module.Response(_PlainRequest(), sent, self._worker.cfg)
        if close:
            response.force_close()
        response.start_response(status_line(answer.status), headers)
        response.send_headers()
        response.sent = len(answer.body)
        return Rendered(bytes(sent), answer.body, response, answer)

    def seen(self, environ: Any, asked: Asked) -> Any:
        """What :meth:`log` needs of a request; None where nothing is logged."""
        if not self.logs:
            return None
        kept = {name: value for name, value in environ.items() if isinstance(value, str)}
        return kept, list(asked.response.req.headers)

    def log(
        self,
        seen: Any,
        target: Optional[str],
        peer: Any,
        response: Any,
        seconds: float,
        varied: Sequence[Tuple[str, str]] = (),
    ) -> None:
        """One line of the access log.

        Args:
            seen: Of :meth:`seen`.
            target: Of the request, if it is not the one that was seen.
            peer: Who asked.
            response: gunicorn's; None for a client that hung up.
            seconds: That it took.
            varied: Headers of the request that are not as in the one that was seen.
        """
        environ, headers = seen
        if target is not None:
            environ = dict(environ, RAW_URI=target, QUERY_STRING=target.partition("?")[2])
            if isinstance(peer, tuple):
                environ["REMOTE_PORT"] = str(peer[1])
            if varied:
                headers = _with(headers, varied)
                for name, _ in varied:
                    values = [value for each, value in headers if each.upper() == name]
                    environ["HTTP_" + name.replace("-", "_")] = ",".join(values)
        if response is None:
            response = _Gone()
        self._worker.log.access(response, _PlainRequest(headers), environ, timedelta(seconds=seconds))

    def has_room(self, requests: int) -> bool:
        """Whether so many requests need not be seen by gunicorn: it must see the worker's last."""
        return bool(self._worker.alive) and bool(self._worker.nr + requests < self._worker.max_requests)

    def count(self, requests: int) -> None:
        """Counts requests that gunicorn does not see."""
        self._worker.nr += requests


def _with(headers: List[Tuple[str, str]], others: Sequence[Tuple[str, str]]) -> List[Tuple[str, str]]:
    """*headers*, with *others* in the place of those of their names, in order."""
    left = list(others)
    return [
        (name, left.pop(0)[1]) if left and left[0][0] == name.upper() else (name, value)
        for name, value in headers
    ]


class _Gone:
    """The response to a client that hung up; the status is the one that nginx has for it."""

    status = "499 CLIENT CLOSED REQUEST"
    headers: Tuple[Any, ...] = ()
    sent = 0


def _accepts(listener: Any, connection: Any, here: Any) -> bool:
    """Whether *listener* can have accepted *connection*, whose own end is *here*."""
    theirs = listener.getsockname()
    if not isinstance(here, tuple) or not isinstance(theirs, tuple):
        return bool(theirs == here)
    return theirs[1] == here[1] and theirs[0] in (here[0], "0.0.0.0", "::")


def _never(connection: Any, number: int, peer: Any, first: bytes) -> bool:
    return False


def _descriptor(server: Any) -> Optional[int]:
    listening = getattr(server, "socket", None)
    return None if listening is None else int(listening.fileno())


def _logs(worker: Any) -> bool:
    """Whether anything becomes of ``log.access``; nothing is kept for it otherwise."""
    kind = sys.modules["gunicorn.glogging"].Logger
    if type(worker.log).access is not kind.access:
        return True  # a logger of the user's, or statsd's
    cfg = worker.cfg
    names = ("accesslog", "logconfig", "logconfig_dict", "logconfig_json", "syslog")
    return any(getattr(cfg, name, None) for name in names)
