"""Parse, authorise, hold, render; nothing else.

A refusal comes in the order of its price: the query, the server's room, then who asks; no database work before these.
"""

from __future__ import annotations

import json
import logging
import random
from typing import Any, Dict, FrozenSet, List, Optional, Protocol

from flask import Blueprint, Response, current_app, request
from werkzeug.exceptions import HTTPException

from .catchup import CatchUp
from .errors import (
    BodyTooLarge,
    CursorGone,
    Forbidden,
    InvalidEvent,
    LegacyPollError,
    MethodNotAllowed,
    NotFound,
    RequestError,
    SchemaError,
    SchemaMissing,
    StorageUnavailable,
    TooManyPolls,
    Unauthorized,
    UnsupportedMediaType,
)
from .events import DEFAULT_CHANNEL, DEFAULT_TYPE, RESERVED_PREFIX
from .hold import Hold, Question
from .lanes import held_response
from .runtime import Runtime
from .schemas import EventBody, load, single_values
from .wire import Answer, parse, render, render_error
from .wire.longpoll import CURSOR_HEADER, parse_channels

__all__ = ["make_blueprint"]

logger = logging.getLogger("legacy_poll")

#: The window in which clients are asked to come back, seconds.
_RETRY_SECONDS = (1, 5)
_MAX_BODY_EVENTS = 1000
_MAX_BODY_BYTES = 8 * 1024 * 1024
_EVENT_BODY = EventBody()
_EVENT_KEYS = frozenset(("channel", "data", "type", "id"))
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
#: Where a request keeps the response that holds a place for it.
_HELD = "legacy_poll.held"
# Methods that are refused by us, in our error shape, rather than by the app's router.
_ALL_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


class Application(Protocol):
    """What the views ask of the application; :class:`legacy_poll.LegacyPoll` is one."""

    @property
    def runtime(self) -> Runtime: ...

    def client_of(self, request: Any) -> str: ...

    def channels_for_request(self) -> FrozenSet[str]: ...

    def allowed(self, channels: FrozenSet[str], token: Optional[str]) -> FrozenSet[str]: ...

    def check_publish_token(self, token: Optional[str]) -> None: ...

    def publish_rows(self, rows: List[Dict[str, Any]]) -> List[Dict[str, Any]]: ...


def make_blueprint(poll: Application, name: str) -> Blueprint:
    """The routes of *poll*; every answer with an error has the same JSON shape."""
    blueprint = Blueprint(name, __name__)

    def route(path: str, view: Any, method: str) -> None:
        def guarded() -> Any:
            return _guarded(poll, view, method)

        endpoint = path.strip("/").replace("/", "_")
        blueprint.add_url_rule(
            path,
            endpoint,
            guarded,
            methods=_ALL_METHODS,
            provide_automatic_options=False,
            strict_slashes=False,
        )

    route("/stream", _stream, "GET")
    route("/cursor", _cursor, "GET")
    route("/publish", _publish, "POST")
    route("/health", _ready, "GET")
    route("/health/live", _live, "GET")
    route("/health/ready", _ready, "GET")
    blueprint.teardown_request(_give_up)
    return blueprint


def _guarded(poll: Application, view: Any, method: str) -> Any:
    methods = [method, "HEAD"] if method == "GET" and view is not _stream else [method]
    allow = ", ".join(methods + ["OPTIONS"])
    try:
        if request.method == "OPTIONS":
            return Response(status=200, headers={"Allow": allow})
        if request.method not in methods:
            raise MethodNotAllowed("%s takes %s" % (request.path, method), allow=allow)
        return view(poll)
    except (RequestError, StorageUnavailable) as error:
        return _response(_refusal(error, poll.runtime.catchup if isinstance(error, CursorGone) else None))
    except HTTPException as error:
        # Of the app's own authorize(): its status and headers, in our shape. A redirect stays what it is.
        if error.response is not None or error.code is None or error.code < 400:
            raise
        return _from_app(error)


def _started(poll: Application) -> Runtime:
    """The runtime, unless it found tables that are not for this code: what they hold may mean something else."""
    runtime = poll.runtime
    runtime.start()
    failure = runtime.publisher.failure
    if isinstance(failure, (SchemaError, SchemaMissing)):
        raise _not_ready(failure)
    return runtime


def _stream(poll: Application) -> Response:
    runtime = _started(poll)
    asked = parse(request.args, runtime.settings)
    waits = asked.hold_seconds > 0 and not asked.now
    release = runtime.admission.enter(poll.client_of(request)) if waits else _nothing
    try:
        channels = _authorised(poll, asked.channels, asked.token)
    except BaseException:
        release()
        raise
    question = Question(channels, asked.cursor, asked.now, asked.limit, asked.hold_seconds)
    hold, catchup, empty = runtime.hold, runtime.catchup, asked.empty_status
    theirs: Any = current_app.response_class
    response = held_response(theirs)(lambda: _answer(hold, catchup, question, empty), release)
    request.environ[_HELD] = response
    _common_headers(response)
    return response


def _give_up(error: Optional[BaseException]) -> None:
    # An after_request function failed, or put another response in its place: nobody else will give the place back.
    response = request.environ.get(_HELD)
    if response is not None and not response.taken:
        response.release()


def _answer(hold: Hold, catchup: CatchUp, question: Question, empty_status: int) -> Answer:
    """Runs outside every Flask context; always returns an answer."""
    try:
        return render(hold(question), empty_status=empty_status)
    except LegacyPollError as error:
        return _refusal(error, catchup)
    except Exception:  # told to the client as an error of ours, and whole to the log
        logger.exception("legacy_poll: a hold failed")
        return render_error(LegacyPollError("internal error"))


def _cursor(poll: Application) -> Response:
    runtime = _started(poll)
    token = single_values(request.args, ["token"]).get("token")
    _authorised(poll, parse_channels(request.args, runtime.settings), token)
    cursor = str(runtime.catchup.head())
    return _json({"cursor": cursor}, headers={CURSOR_HEADER: cursor})


def _publish(poll: Application) -> Response:
    runtime = poll.runtime
    if not runtime.settings.publish_token:
        raise NotFound("publishing over HTTP is switched off; LEGACY_POLL_PUBLISH_TOKEN switches it on")
    poll.check_publish_token(_bearer())
    _started(poll)
    rows = _events_in_body()
    published = poll.publish_rows(rows)
    return _json({"events": published}, status=200 if all(each["duplicate"] for each in published) else 201)


def _events_in_body() -> Any:
    if request.mimetype != "application/json":
        raise UnsupportedMediaType("Content-Type is %r: application/json is needed" % request.mimetype)
    length = request.content_length
    if length is not None and length > _MAX_BODY_BYTES:
        raise BodyTooLarge("the body has %d bytes: at most %d are allowed" % (length, _MAX_BODY_BYTES))
    raw = request.stream.read(_MAX_BODY_BYTES + 1)
    if len(raw) > _MAX_BODY_BYTES:
        raise BodyTooLarge("the body has more than %d bytes" % _MAX_BODY_BYTES)
    try:
        body = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise RequestError("the body is not JSON: %s" % error) from None
    entries = body if isinstance(body, list) else [body]
    if not entries:
        raise RequestError("the body is an empty list: at least one event is needed")
    if len(entries) > _MAX_BODY_EVENTS:
        raise BodyTooLarge(
            "the body has %d events: at most %d are allowed" % (len(entries), _MAX_BODY_EVENTS)
        )
    return [_event_in_body(entry) for entry in entries]


def _event_in_body(entry: Any) -> Any:
    if not isinstance(entry, dict):
        raise RequestError("an event is %s: an object is needed" % type(entry).__name__)
    for key in entry:
        if key not in _EVENT_KEYS:
            raise InvalidEvent(key, entry[key], "an event has channel, data, type and id, and nothing else")
    values = load(_EVENT_BODY, entry)
    return {
        "channel": values.get("channel", DEFAULT_CHANNEL),
        "data": values["data"],
        "type": values.get("type", DEFAULT_TYPE),
        "id": values.get("id"),
    }


def _live(poll: Application) -> Response:
    return _json({"status": "live"})


def _ready(poll: Application) -> Response:
    runtime = poll.runtime
    runtime.start()
    publisher = runtime.publisher
    if publisher.failure is not None:
        raise _not_ready(publisher.failure)
    if not publisher.live:
        raise _NotReady("starting: the log has not been read yet", "starting")
    return _json({"status": "ready"})


class _NotReady(StorageUnavailable):
    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def _not_ready(failure: LegacyPollError) -> _NotReady:
    # Codes only: whoever asks need not be told which server does not answer.
    code = getattr(failure, "code", "schema_mismatch")
    return _NotReady("the database does not work for us; see this server's log", code)


def _authorised(poll: Application, asked: Optional[FrozenSet[str]], token: Optional[str]) -> FrozenSet[str]:
    channels = asked if asked is not None else poll.channels_for_request()
    ours = sorted(name for name in channels if name.startswith(RESERVED_PREFIX))
    if ours:
        raise Forbidden("%s: channels whose names start with $ are reserved" % ", ".join(ours), channels=ours)
    allowed = poll.allowed(channels, token or _bearer())
    refused = sorted(channels - allowed)
    if refused:
        raise Forbidden("not allowed to read: %s" % ", ".join(refused), channels=refused)
    return channels


def _bearer() -> Optional[str]:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _refusal(error: LegacyPollError, catchup: Optional[CatchUp]) -> Answer:
    if isinstance(error, CursorGone) and catchup is not None:
        try:
            return render_error(error, cursor=catchup.head())
        except StorageUnavailable as failure:
            error = failure
    if isinstance(error, StorageUnavailable) and type(error) is not _NotReady:
        error = _NotReady("the database does not answer; try again later", error.code)
    again = isinstance(error, StorageUnavailable) or getattr(error, "again_later", False)
    return render_error(error, retry_after=random.randint(*_RETRY_SECONDS) if again else None)


def _response(answer: Answer) -> Response:
    response = Response(answer.body, status=answer.status)
    for name, value in answer.headers:
        response.headers[name] = value
    _common_headers(response)
    return response


def _from_app(error: HTTPException) -> Response:
    shape = RequestError(error.description or error.name)
    shape.status = error.code or 500
    shape.code = _CODES.get(shape.status, "refused")
    response = _response(render_error(shape))
    for name, value in error.get_headers():
        if name not in ("Content-Type", "Content-Length"):
            response.headers[name] = value
    return response


def _json(value: Any, *, status: int = 200, headers: Any = None) -> Response:
    response = Response(json.dumps(value), status=status, content_type="application/json", headers=headers)
    _common_headers(response)
    return response


def _common_headers(response: Response) -> None:
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers["X-Content-Type-Options"] = "nosniff"


def _nothing() -> None:
    pass


def register_error_shape(app: Any) -> None:
    """Errors of *app*'s own router in our JSON shape; for the server by itself."""

    def shaped(error: HTTPException) -> Any:
        if error.response is not None or error.code is None or error.code < 400:
            return error
        current_app.logger.debug("refused: %s", error)
        shape = NotFound("%s: no such resource" % request.path) if error.code == 404 else None
        return _response(render_error(shape)) if shape is not None else _from_app(error)

    app.register_error_handler(HTTPException, shaped)
