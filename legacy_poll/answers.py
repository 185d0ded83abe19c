"""Responses: one JSON shape for every error, the same headers on everything, nobody's cookie touched."""

from __future__ import annotations

import json
import random
from typing import Any, Optional

from flask import current_app, request
from werkzeug.exceptions import HTTPException

from .errors import (
    BodyTooLarge,
    CursorGone,
    Forbidden,
    LegacyPollError,
    MethodNotAllowed,
    NotFound,
    RequestError,
    SchemaMissing,
    StorageUnavailable,
    TooManyPolls,
    Unauthorized,
    UnsupportedMediaType,
)
from .lanes import QuietResponse
from .runtime import Runtime
from .wire import Answer, render_error

__all__ = [
    "refusal",
    "response_of",
    "from_app",
    "json_response",
    "common_headers",
    "NotReady",
    "not_ready",
    "register_error_shape",
]

#: What clients are told, who need not know more; and whether it is the tables that are not as they must be.
_NOT_READY = {
    False: "the database does not answer; try again later",
    True: "the tables of the event log are not ready; the server's log says why; try again later",
}
#: Clients are asked to come back within this many seconds, and a second more for each 100 polls held.
_RETRY_SECONDS = 5
_LONGEST_RETRY_SECONDS = 60
_CODES = {
    kind.status: kind.code
    for kind in (
        Unauthorized,
        Forbidden,
        NotFound,
        MethodNotAllowed,
        BodyTooLarge,
        UnsupportedMediaType,
        TooManyPolls,
    )
}


class NotReady(StorageUnavailable):
    """What a client is told of the database's trouble: a code, and no server's name."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def not_ready(failure: LegacyPollError) -> NotReady:
    """*failure*, of the publisher, for clients."""
    code = getattr(failure, "code", "schema_mismatch")
    return NotReady("the database does not work for us; see this server's log", code)


def refusal(error: LegacyPollError, runtime: Optional[Runtime]) -> Answer:
    """The answer that tells *error*; may be called outside every Flask context.

    Args:
        error: What happened.
        runtime: For the head that a 410 carries, and for how many come back together.
    """
    limit = getattr(error, "limit", "")
    if limit and runtime is not None:
        runtime.metrics.refused(limit)
    if isinstance(error, CursorGone) and runtime is not None:
        try:
            return render_error(error, cursor=runtime.catchup.head())
        except (StorageUnavailable, RequestError) as failure:
            error = failure  # the database does not answer, or too many ask it
    if isinstance(error, StorageUnavailable) and not isinstance(error, NotReady):
        error = NotReady(_NOT_READY[isinstance(error, SchemaMissing)], error.code)
    again = isinstance(error, StorageUnavailable) or getattr(error, "again_later", False)
    return render_error(error, retry_after=_retry_after(runtime) if again else None)


def _retry_after(runtime: Optional[Runtime]) -> int:
    # Jittered over a window that grows with the crowd: who was refused together must not come back together.
    held = runtime.admission.held if runtime is not None else 0
    return random.randint(1, min(_LONGEST_RETRY_SECONDS, _RETRY_SECONDS + held // 100))


def response_of(answer: Answer) -> QuietResponse:
    """*answer* as a Flask response."""
    response = QuietResponse(answer.body, status=answer.status)
    for name, value in answer.headers:
        response.headers[name] = value
    common_headers(response)
    return response


def from_app(error: HTTPException) -> QuietResponse:
    """What the app's own ``authorize`` aborted with: its status and headers, in our shape."""
    shape = RequestError(error.description or error.name)
    shape.status = error.code or 500
    shape.code = _CODES.get(shape.status, "refused")
    response = response_of(render_error(shape))
    for name, value in error.get_headers():
        if name not in ("Content-Type", "Content-Length"):
            response.headers[name] = value
    return response


def json_response(value: Any, *, status: int = 200, headers: Any = None) -> QuietResponse:
    """*value* as JSON."""
    response = QuietResponse(
        json.dumps(value), status=status, content_type="application/json", headers=headers
    )
    common_headers(response)
    return response


def common_headers(response: QuietResponse) -> None:
    """What every answer of ours says."""
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers["X-Content-Type-Options"] = "nosniff"


def register_error_shape(app: Any) -> None:
    """Errors of *app*'s own router in our JSON shape; for the server by itself."""

    def shaped(error: HTTPException) -> Any:
        if error.response is not None or error.code is None or error.code < 400:
            return error
        current_app.logger.debug("refused: %s", error)
        shape = NotFound("%s: no such resource" % request.path) if error.code == 404 else None
        return response_of(render_error(shape)) if shape is not None else from_app(error)

    app.register_error_handler(HTTPException, shaped)
