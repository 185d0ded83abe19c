"""One request and its answer, with the time of each piece; where answers come from, and why one did not come.

http.client does the parsing. It does not tell when bytes arrived, nor let anybody wait without reading, hence this.
"""

from __future__ import annotations

import http.client
import select
import socket
import ssl
import time
import zlib
from dataclasses import dataclass
from typing import Any, Callable, List, Optional, Tuple
from urllib.parse import urlsplit

__all__ = ["Cut", "Line", "Reply", "Target", "Unreachable", "refused"]

_TICK_SECONDS = 5.0
_SAMPLE_BYTES = 1 << 16


class Unreachable(Exception):
    """There is no connection; `certificate` says whether that is for the certificate's sake."""

    def __init__(self, message: str, *, certificate: bool = False) -> None:
        super().__init__(message)
        self.certificate = certificate


class Cut(Exception):
    """A connection ended, or stood still, before the answer was there.

    Attributes:
        seconds: From the request to the end.
    """

    def __init__(self, how: str, seconds: float) -> None:
        super().__init__(how)
        self.seconds = seconds


@dataclass(frozen=True)
class Target:
    """Where to ask.

    Attributes:
        url: Prefix of the routes, without a slash at the end.
        token: Channel token, or empty.
        insecure: Whether any certificate will do.
    """

    url: str
    token: str = ""
    insecure: bool = False

    @classmethod
    def parse(cls, url: str, *, token: str = "", insecure: bool = False) -> Target:
        """The target of a URL that a person typed.

        Raises:
            ValueError: It is not one.
        """
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port)
        except ValueError:
            good = False
        if not good or any(character <= " " for character in url):
            raise ValueError("%r: a URL that starts with http:// or https:// is needed" % url)
        if parts.query or parts.fragment:
            raise ValueError("%r: the prefix of the routes is needed, without a query" % url)
        return cls(url.rstrip("/"), token, insecure)

    @property
    def tls(self) -> bool:
        return urlsplit(self.url).scheme == "https"

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or (443 if self.tls else 80)

    @property
    def path(self) -> str:
        return urlsplit(self.url).path

    def connect(self, seconds: float, alpn: Tuple[str, ...] = ()) -> socket.socket:
        """An open connection, with TLS if the URL says so.

        Raises:
            Unreachable: Nobody is there, or not one that the certificate vouches for.
        """
        where = "%s:%d" % (self.host, self.port)
        try:
            plain = socket.create_connection((self.host, self.port), seconds)
        except (OSError, UnicodeError) as error:
            raise Unreachable("nobody answers at %s: %s" % (where, error)) from error
        if not self.tls:
            return plain
        context = ssl.create_default_context()
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if alpn:
            context.set_alpn_protocols(list(alpn))
        try:
            return context.wrap_socket(plain, server_hostname=self.host)
        except ssl.SSLCertVerificationError as error:
            plain.close()
            says = "the certificate of %s is not good: %s" % (where, error.verify_message)
            raise Unreachable(says, certificate=True) from error
        except (OSError, ValueError) as error:
            plain.close()
            raise Unreachable("no TLS with %s: %s" % (where, error)) from error


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        body: Decompressed.
        seconds: From the request to the last byte.
        pieces: Seconds and decompressed bytes of each piece of the body, as it came.
        closes: Whether the connection ended with it.
    """

    status: int
    reason: str
    version: int
    headers: Any
    body: bytes
    seconds: float
    pieces: Tuple[Tuple[float, int], ...]
    closes: bool

    def header(self, name: str) -> str:
        """Its value; empty if it is not there."""
        return ", ".join(self.headers.get_all(name) or [])

    def sample(self) -> str:
        """Status, headers and the beginning of the body as text, in which programs are recognised."""
        lines = ["%d %s" % (self.status, self.reason)]
        lines += ["%s: %s" % (name.lower(), value) for name, value in self.headers.items()]
        return "\n".join(lines + ["", self.body[:_SAMPLE_BYTES].decode("latin-1")])


class Line:
    """A connection that is kept from question to question as long as the other side keeps it.

    Args:
        target: Where to.
        answer_seconds: Longest wait for an answer that is not held.
        tick: Called with the seconds that a silent wait has lasted, from time to time.
    """

    def __init__(self, target: Target, *, answer_seconds: float, tick: Callable[[float], None]) -> None:
        self.target = target
        self._answer_seconds = answer_seconds
        self._tick = tick
        self._socket: Optional[socket.socket] = None
        #: How many connections were opened.
        self.opened = 0

    def ask(self, path: str, *, held_seconds: float = 0.0) -> Reply:
        """The answer to a GET.

        Args:
            path: Below the prefix, with its query.
            held_seconds: How long the server may hold it.

        Raises:
            Cut: There was none, or half of one.
            Unreachable: There is no connection.
        """
        patience = held_seconds + self._answer_seconds
        kept = self._socket is not None
        try:
            return self._ask(path, patience)
        except Cut as cut:
            # A connection that idled may end just then; that is nobody's fault, and told by `opened`.
            if kept and cut.seconds < min(0.5, patience):
                return self._ask(path, patience)
            raise

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _ask(self, path: str, patience: float) -> Reply:
        if self._socket is None:
            self._socket = self.target.connect(self._answer_seconds)
            self.opened += 1
        self._socket.settimeout(patience)
        started = time.monotonic()
        try:
            self._socket.sendall(self._request(path))
            self._wait(started, patience)
            reply = self._read(started)
        except (OSError, http.client.HTTPException, zlib.error) as error:
            self.close()
            seconds = time.monotonic() - started
            if isinstance(error, (socket.timeout, TimeoutError)):
                raise Cut("no byte came any more", seconds) from error
            if isinstance(error, http.client.IncompleteRead):
                raise Cut("the connection ended in the middle of an answer", seconds) from error
            if isinstance(error, (http.client.RemoteDisconnected, ConnectionError, ssl.SSLError)):
                raise Cut("the connection was closed without an answer", seconds) from error
            raise Cut("what came is not HTTP: %r" % str(error), seconds) from error
        if reply.closes:
            self.close()
        return reply

    def _request(self, path: str) -> bytes:
        host = "[%s]" % self.target.host if ":" in self.target.host else self.target.host
        if self.target.port != (443 if self.target.tls else 80):
            host += ":%d" % self.target.port
        lines = ["GET %s%s HTTP/1.1" % (self.target.path, path), "Host: " + host]
        # As a browser does: what compresses shall show it.
        lines += ["Accept: application/json", "Accept-Encoding: gzip", "User-Agent: legacy-poll doctor"]
        if self.target.token:
            lines.append("Authorization: Bearer " + self.target.token)
        return "\r\n".join(lines + ["", ""]).encode("latin-1", "replace")

    def _wait(self, started: float, patience: float) -> None:
        """Until the first byte is there."""
        assert self._socket is not None
        if isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
            return
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        while True:
            left = started + patience - time.monotonic()
            if left <= 0:
                raise socket.timeout
            if poller.poll(1000 * min(_TICK_SECONDS, left)):
                return
            self._tick(time.monotonic() - started)

    def _read(self, started: float) -> Reply:
        assert self._socket is not None
        answer = http.client.HTTPResponse(self._socket, method="GET")
        answer.begin()
        encoding = (answer.getheader("Content-Encoding") or "").strip().lower()
        # 47: gzip or zlib, whichever it is.
        unpack = zlib.decompressobj(47).decompress if encoding in ("gzip", "x-gzip", "deflate") else bytes
        pieces: List[Tuple[float, bytes]] = []
        while True:
            raw = answer.read1(_SAMPLE_BYTES)
            if not raw:
                break
            pieces.append((time.monotonic() - started, unpack(raw)))
        if answer.length:
            raise http.client.IncompleteRead(b"", answer.length)
        return Reply(
            status=answer.status,
            reason=answer.reason,
            version=answer.version,
            headers=answer.headers,
            body=b"".join(piece for _, piece in pieces),
            seconds=time.monotonic() - started,
            pieces=tuple((seconds, len(piece)) for seconds, piece in pieces if piece),
            closes=bool(answer.will_close),
        )


def refused(target: Target, seconds: float) -> str:
    """What the nearest program says to a request that each must refuse by itself: one with two Hosts.

    The standard (RFC 9112, 3.2) has it answered 400, so it goes no further than to the first that reads it, and
    every program says that in words of its own.

    Returns:
        str: The answer as text; empty if there was none.
    """
    try:
        connection = target.connect(seconds)
    except Unreachable:
        return ""
    with connection:
        said = b""
        try:
            connection.settimeout(seconds)
            request = "GET %s/health/live HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n"
            connection.sendall((request % target.path).encode("latin-1", "replace"))
            while len(said) < _SAMPLE_BYTES:
                piece = connection.recv(4096)
                if not piece:
                    break
                said += piece
        except OSError:
            pass
    return said.decode("latin-1").replace("\r\n", "\n").partition(" ")[2]
