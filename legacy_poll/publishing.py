"""The body of POST /publish."""

from __future__ import annotations

import json
from typing import Any, Dict, List

from flask import request
from werkzeug.exceptions import HTTPException

from .errors import BodyTooLarge, InvalidEvent, RequestError, UnsupportedMediaType
from .events import DEFAULT_CHANNEL, DEFAULT_TYPE
from .schemas import EventBody, load

__all__ = ["events_in_body"]

_MAX_EVENTS = 1000
_MAX_BYTES = 8 * 1024 * 1024
_EVENT_BODY = EventBody()
_EVENT_KEYS = frozenset(("channel", "data", "type", "id"))


def events_in_body() -> List[Dict[str, Any]]:
    """The events in the request's body, each with channel, data, type and id.

    Raises:
        RequestError: Not JSON, no event, or one that breaks a rule.
    """
    if request.mimetype != "application/json":
        raise UnsupportedMediaType("Content-Type is %r: application/json is needed" % request.mimetype)
    # The application's own MAX_CONTENT_LENGTH, which Werkzeug before 2.3 keeps for forms alone.
    theirs = request.max_content_length
    most = _MAX_BYTES if theirs is None else min(_MAX_BYTES, theirs)
    length = request.content_length
    if length is not None and length > most:
        raise BodyTooLarge("the body has %d bytes: at most %d are allowed" % (length, most))
    try:
        raw = request.stream.read(most + 1)
    except HTTPException:
        raise
    except Exception as error:  # the server's own, of any kind: a body in chunks that breaks off, or is none
        raise RequestError("the body cannot be read: %s" % type(error).__name__) from None
    if len(raw) > most:
        raise BodyTooLarge("the body has more than %d bytes" % most)
    if length is not None and len(raw) < length:
        raise RequestError("the body ends after %d bytes: %d were announced" % (len(raw), length))
    try:
        body = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise RequestError("the body is not JSON: %s" % error) from None
    entries = body if isinstance(body, list) else [body]
    if not entries:
        raise RequestError("the body is an empty list: at least one event is needed")
    if len(entries) > _MAX_EVENTS:
        raise BodyTooLarge("the body has %d events: at most %d are allowed" % (len(entries), _MAX_EVENTS))
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
