"""The standard lane: a Flask response whose body, status and headers come when the hold has ended.

WSGI allows ``start_response`` to be called as late as the first iteration over the body. So the view returns at once,
Flask pops its contexts and the app's session goes back to its pool, and only then does the server iterate and the
wait begin: nothing of the app is held.

What follows from it: ``after_request`` functions see status 200 where the answer may become 204, 206, 410 or 503
(the headers they set are kept), and whoever reads the body there gets an error that says so, never a wait.
"""

from __future__ import annotations

import functools
from typing import Any, Callable, Iterator, List, NoReturn, Optional, Tuple, Type

from flask import Response
from werkzeug.http import HTTP_STATUS_CODES

from ..wire import Answer

__all__ = ["HeldResponse", "held_response"]

_NOT_YET = (
    "the body of a held poll is not known yet: it comes when the hold has ended, after all after_request functions. "
    "Leave responses with the attribute is_held alone (ETags, compression, signing); see docs/lanes.md"
)


class HeldResponse(Response):
    """What the view returns for a poll.

    Args:
        wait: Called once, outside every context; blocks until the answer is there.
        release: Called when the response is over or was given up, whether *wait* was called or not; maybe twice.
    """

    is_held = True
    automatically_set_content_length = False
    implicit_sequence_conversion = False

    def __init__(self, wait: Callable[[], Answer], release: Callable[[], None]) -> None:
        super().__init__(status=200, content_type="application/json")
        self.wait = wait
        self.release = release
        #: Whether the server has it, and will close it.
        self.taken = False

    def __call__(self, environ: Any, start_response: Any) -> "_LateBody":
        self.taken = True
        return _LateBody(self, start_response)

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


class _LateBody:
    """The WSGI iterable: waits at its first ``next``."""

    def __init__(self, response: HeldResponse, start_response: Any) -> None:
        self._response = response
        self._start_response = start_response
        self._started = False
        self._closed = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._started or self._closed:
            self._response.release()  # test clients may never close
            raise StopIteration
        self._started = True
        answer = self._response.wait()
        status = "%d %s" % (answer.status, HTTP_STATUS_CODES.get(answer.status, "Unknown").upper())
        self._start_response(status, self._headers(answer))
        if not answer.body:
            self._response.release()
            raise StopIteration
        return answer.body

    def close(self) -> None:
        """Gives the place back; the server calls it whatever happened."""
        if not self._closed:
            self._closed = True
            try:
                self._response.release()
            finally:
                self._response.close()

    def _headers(self, answer: Answer) -> List[Tuple[str, str]]:
        headers = self._response.headers
        headers.remove("Content-Type")  # a 204 has none; the others bring theirs
        headers.remove("Content-Length")
        for name, value in answer.headers:
            headers[name] = value
        return [(name, value) for name, value in headers.to_wsgi_list()]
