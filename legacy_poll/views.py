"""Parse, authorise, hold, render; nothing else.

A refusal comes in the order of its price: the query, the server's room, then who asks; no database work before these.
"""

from __future__ import annotations

import functools
import logging
import random
import time
from typing import Any, Dict, FrozenSet, List, Optional, Protocol, Tuple

from flask import Blueprint, Response, current_app, request
from werkzeug.exceptions import HTTPException

from .answers import NotReady, common_headers, from_app, json_response, not_ready, refusal, response_of
from .config import Settings
from .cross_origin import allow
from .errors import (
    CannotHold,
    ClientGone,
    Draining,
    Forbidden,
    LegacyPollError,
    MethodNotAllowed,
    NotFound,
    RequestError,
    SchemaError,
    SchemaMissing,
    StorageUnavailable,
)
from .events import RESERVED_PREFIX
from .hold import Question
from .lanes import JITTER, Connection, Parking, QuietResponse, held_response
from .metrics import Answered
from .openapi import document
from .operators import check_operator, gauges, status
from .publishing import events_in_body
from .runtime import Runtime
from .schemas import single_values
from .scripts import NAMES as SCRIPTS
from .scripts import script
from .wire import SCRIPT_TYPE, Answer, callback_in, called, parse, render, render_error
from .wire.longpoll import CURSOR_HEADER, PollRequest, parse_channels

__all__ = ["make_blueprint"]

logger = logging.getLogger("legacy_poll")

_CUT_DIGITS = 7
#: Queries that are remembered as parsed, and how long they may be, bytes.
_MOST_UNDERSTOOD = 512
_SHORT_QUERY = 1024
#: The library takes nothing shorter for a rule of the network; it would only use up the warning.
_SHORTEST_CUT_SECONDS = 1
#: Where a request keeps the response that holds a place for it.
_HELD = "legacy_poll.held"
# Methods that are refused by us, in our error shape, rather than by the app's router.
_ALL_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


class Application(Protocol):
    """What the views ask of the application; :class:`legacy_poll.LegacyPoll` is one."""

    @property
    def runtime(self) -> Runtime: ...

    @property
    def settings(self) -> Settings: ...

    def client_of(self, request: Any) -> str: ...

    def address_of(self, request: Any) -> str: ...

    def channels_for_request(self) -> FrozenSet[str]: ...

    def allowed(self, channels: FrozenSet[str], token: Optional[str]) -> FrozenSet[str]: ...

    @property
    def names_subjects(self) -> bool: ...

    def subject_of_request(self) -> Optional[str]: ...

    def seconds_of_request(self) -> float: ...

    def check_publish_token(self, token: Optional[str]) -> None: ...

    def publish_rows(self, rows: List[Dict[str, Any]]) -> List[Dict[str, Any]]: ...


def make_blueprint(poll: Application, name: str) -> Blueprint:
    """The routes of *poll*; every answer with an error has the same JSON shape."""
    blueprint = Blueprint(name, __name__)

    def route(path: str, view: Any, method: str) -> None:
        def guarded() -> Any:
            return _guarded(poll, view, method)

        guarded.serves = (poll, path)  # type: ignore[attr-defined]
        endpoint = path.strip("/").replace("/", "_").replace(".", "_")
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
    route("/status", _status, "GET")
    route("/metrics", _metrics, "GET")
    route("/health", _ready, "GET")
    route("/health/live", _live, "GET")
    route("/health/ready", _ready, "GET")
    route("/openapi.yaml", _openapi, "GET")
    for name in SCRIPTS:
        route("/" + name, _script(name), "GET")
    blueprint.teardown_request(_give_up)
    return blueprint


def _guarded(poll: Application, view: Any, method: str) -> Any:
    response = _refused_or_answered(poll, view, method)
    if view in (_stream, _cursor):
        allow(poll.settings, request, response)
    return response


def _refused_or_answered(poll: Application, view: Any, method: str) -> Any:
    methods = [method, "HEAD"] if method == "GET" and view is not _stream else [method]
    allow = ", ".join(methods + ["OPTIONS"])
    try:
        if request.method == "OPTIONS":
            return Response(status=200, headers={"Allow": allow})
        if request.method not in methods:
            raise MethodNotAllowed("%s takes %s" % (request.path, method), allow=allow)
        return view(poll)
    except (RequestError, StorageUnavailable) as error:
        return response_of(_as_asked(poll, view, refusal(error, poll.runtime)))
    except HTTPException as error:
        # Of the app's own authorize(): its status and headers, in our shape. A redirect stays what it is.
        if error.response is not None or error.code is None or error.code < 400:
            raise
        response = from_app(error)
        answer = Answer(response.status_code, (), response.get_data())
        script = _as_asked(poll, view, answer)
        return response if script is answer else response_of(script)


def _as_asked(poll: Application, view: Any, answer: Answer) -> Answer:
    """The refusal *answer* of *view*, as a script if that was asked for and may be."""
    try:
        callback = callback_in(request.args, poll.settings) if view is _stream else None
    except RequestError:
        return answer  # it is what this refuses, or nobody can be called
    return answer if callback is None else called(answer, callback)


def _started(poll: Application) -> Runtime:
    """The runtime, unless it found tables that are not for this code: what they hold may mean something else."""
    runtime = poll.runtime
    runtime.start()
    failure = runtime.publisher.failure
    # Once the log has been read, missing tables are of the moment (a restore), and the poll's own read tells.
    unread = isinstance(failure, SchemaMissing) and runtime.hub.cursor is None
    if failure is not None and (unread or isinstance(failure, SchemaError)):
        raise not_ready(failure)
    return runtime


def _stream(poll: Application) -> Response:
    runtime = _started(poll)
    asking: Any = request._get_current_object()  # type: ignore[attr-defined]
    asked = _understood(runtime, asking)
    waits = asked.hold_seconds > 0 and not asked.now
    holds = waits and runtime.holds(asking.environ)
    client = poll.client_of(asking) if holds and runtime.admission.counts_clients else ""
    release = runtime.admission.enter(client) if holds else _nothing
    began = time.monotonic()
    try:
        if poll.names_subjects:
            runtime.await_revocations()
        seen = runtime.revocations.serial
        channels = _authorised(poll, asked.channels, asked.token)
        subject = poll.subject_of_request()
        good_seconds = poll.seconds_of_request()
    except BaseException:
        release()
        raise
    # A fleet that connected together must not come back together.
    hold_seconds = asked.hold_seconds * (1 - random.random() / JITTER) if holds else 0.0
    hold_seconds = min(hold_seconds, good_seconds)
    question = Question(
        channels,
        asked.cursor,
        asked.now,
        asked.limit,
        hold_seconds,
        subject=subject,
        authorised_at=seen,
    )
    parking = None
    plain = not asked.heartbeat_seconds and asked.callback is None
    if runtime.lane is not None and plain and (holds or asked.now):
        parking = Parking(
            question,
            asked.hold_seconds,
            asked.empty_status,
            client,
            began,
            functools.partial(_refused, runtime),
            runtime.lane,
            good_seconds=good_seconds,
            placed=holds,
        )
    theirs: Any = current_app.response_class
    response = held_response(theirs)(
        lambda connection: _answer(
            runtime,
            question,
            asked.empty_status,
            connection,
            callback=asked.callback,
            waits_in_vain=waits and not holds,
            parking=parking,
        ),
        release,
        heartbeat_seconds=asked.heartbeat_seconds,
        send_seconds=runtime.settings.send_seconds,
        content_type="application/json" if asked.callback is None else SCRIPT_TYPE,
        is_last=lambda: runtime.hold.draining,
        cut=runtime.metrics.cut,
    )
    response.parking = parking
    asking.environ[_HELD] = response
    common_headers(response)
    return response


def _understood(runtime: Runtime, asking: Any) -> PollRequest:
    """What the request asks. Equal queries come from all who have seen the same: they are parsed once."""
    query = asking.query_string
    # Who has read the arguments may have put others in their place.
    own = "args" in vars(asking)
    asked = None if own else runtime.understood.get(query)
    if asked is None:
        asked = parse(asking.args, runtime.settings)
        if not own and len(query) <= _SHORT_QUERY:
            if len(runtime.understood) >= _MOST_UNDERSTOOD:
                runtime.understood.clear()
            runtime.understood[query] = asked
    if b"cut=" in query:
        _note_cut(runtime, asking.args.get("cut", ""))
    return asked


def _note_cut(runtime: Runtime, text: str) -> None:
    """Takes the browser library's word for what is between us; from other clients it may mean anything."""
    if text.isascii() and text.isdigit() and 0 < len(text) <= _CUT_DIGITS:
        seconds = int(text) / 1000
        if seconds >= _SHORTEST_CUT_SECONDS and runtime.metrics.intermediary(seconds):
            logger.warning(
                "legacy_poll: a client says that something between it and this server cuts polls after about %.0f s; "
                "`legacy-poll doctor URL` finds out what",
                seconds,
            )


def _give_up(error: Optional[BaseException]) -> None:
    # An after_request function failed, or put another response in its place: nobody else will give the place back.
    response = request.environ.get(_HELD)
    if response is not None and not response.taken:
        response.release()


def _answer(
    runtime: Runtime,
    question: Question,
    empty_status: int,
    connection: Connection,
    *,
    callback: Optional[str],
    waits_in_vain: bool,
    parking: Optional[Parking] = None,
) -> Answer:
    """Runs outside every Flask context; returns an answer whatever happens, unless there is nobody to take it."""
    began = time.monotonic()
    events = 0
    try:
        if parking is not None and parking.found is not None:
            began = parking.began
            if isinstance(parking.found, Exception):
                raise parking.found
            batch = parking.found
        else:
            batch = runtime.hold(question, connection.wait)
        events = len(batch.events)
        if waits_in_vain and not events:
            # Not an empty answer: its client would ask again at once, and so without an end.
            raise CannotHold("this server cannot hold a poll, and there is nothing yet; ask again later")
        outcome = "events" if events else "empty"
        # Behind a heartbeat, and in a script, the status is 200 for good, and a body there must be.
        has_body = connection.beaten or callback is not None
        answer = render(batch, empty_status=200 if has_body else empty_status)
    except (ClientGone, OSError):
        runtime.metrics.answered(Answered(0, "hangup", time.monotonic() - began, 0, 0))
        raise
    except Exception as error:
        answer, outcome = _refused(runtime, error)
    if callback is not None:
        answer = called(answer, callback)
    status = 200 if connection.beaten else answer.status
    runtime.metrics.answered(Answered(status, outcome, time.monotonic() - began, events, len(answer.body)))
    return answer


def _refused(runtime: Runtime, error: Exception) -> Tuple[Answer, str]:
    """The answer that tells what ended a hold, and the outcome's name."""
    if isinstance(error, LegacyPollError):
        return refusal(error, runtime), getattr(error, "code", "error")
    # Told to the client as an error of ours, and whole to the log.
    logger.error("legacy_poll: a hold failed", exc_info=error)
    return render_error(LegacyPollError("internal error")), "internal_error"


def _cursor(poll: Application) -> Response:
    runtime = _started(poll)
    token = single_values(request.args, ["token"]).get("token")
    _authorised(poll, parse_channels(request.args, runtime.settings), token)
    cursor = str(runtime.catchup.head())
    return json_response({"cursor": cursor}, headers={CURSOR_HEADER: cursor})


def _publish(poll: Application) -> Response:
    runtime = poll.runtime
    if not runtime.settings.publish_token:
        raise NotFound("publishing over HTTP is switched off; LEGACY_POLL_PUBLISH_TOKEN switches it on")
    poll.check_publish_token(_bearer())
    _started(poll)
    rows = events_in_body()
    published = poll.publish_rows(rows)
    return json_response(
        {"events": published}, status=200 if all(each["duplicate"] for each in published) else 201
    )


def _status(poll: Application) -> Response:
    runtime = _for_operator(poll)
    return json_response(status(runtime))


def _metrics(poll: Application) -> Response:
    runtime = _for_operator(poll)
    text = runtime.metrics.render(gauges(runtime))
    response = QuietResponse(text, content_type="text/plain; version=0.0.4; charset=utf-8")
    common_headers(response)
    return response


def _for_operator(poll: Application) -> Runtime:
    runtime = poll.runtime
    client = poll.address_of(request)
    check_operator(runtime.settings, client=client, headers=request.headers, token=_bearer())
    runtime.start()
    return runtime


def _live(poll: Application) -> Response:
    return json_response({"status": "live"})


def _script(name: str) -> Any:
    def view(poll: Application) -> Any:
        return script(name, request.args.get("v"), request)

    return view


def _openapi(poll: Application) -> Response:
    response = QuietResponse(document(), content_type="application/yaml")
    common_headers(response)
    return response


def _ready(poll: Application) -> Response:
    runtime = poll.runtime
    runtime.start()
    publisher = runtime.publisher
    if runtime.hold.draining:
        raise Draining("this worker is about to stop")
    if publisher.failure is not None:
        raise not_ready(publisher.failure)
    if not publisher.live:
        raise NotReady("starting: the log has not been read yet", "starting")
    return json_response({"status": "ready"})


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


def _nothing() -> None:
    pass
