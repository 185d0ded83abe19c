"""The long-polling JSON format: ``GET /stream?channel=...&cursor=...&timeout=...``."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, FrozenSet, List, Optional, Tuple

from ..config import Settings
from ..cursors import Cursor
from ..errors import BadParameter, InvalidEvent, LegacyPollError, RequestError
from ..events import NAME_RULE, RESERVED_PREFIX, Batch, Event, check_name
from ..schemas import StreamQuery, load, single_values

__all__ = ["Answer", "PollRequest", "callback_in", "parse", "parse_channels", "render", "render_error"]

CURSOR_HEADER = "Legacy-Poll-Cursor"
_SINGLE = ["cursor", "timeout", "limit", "heartbeat", "empty", "callback", "token"]
_QUERY = StreamQuery()
_FUNCTION = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*(\.[A-Za-z_$][A-Za-z0-9_$]*)*", re.ASCII)
_LONGEST_FUNCTION = 100


@dataclass(frozen=True)
class PollRequest:
    """A poll as asked for, within the settings' bounds.

    Attributes:
        channels: Asked for; None when the request names none.
        cursor: Where to go on; None when it is missing.
        now: ``cursor=now``.
        limit: Most events.
        hold_seconds: Longest wait.
        heartbeat_seconds: Between two bytes of white space while held; 0 is none.
        empty_status: 204 or 200, for an empty answer.
        token: The channel token in the query, if any.
        callback: The function to call with the answer, for JSONP; None for plain JSON.
    """

    channels: Optional[FrozenSet[str]]
    cursor: Optional[Cursor]
    now: bool
    limit: int
    hold_seconds: float
    heartbeat_seconds: float
    empty_status: int
    token: Optional[str]
    callback: Optional[str]


@dataclass(frozen=True)
class Answer:
    """Status, headers and body, ready to be sent."""

    status: int
    headers: Tuple[Tuple[str, str], ...]
    body: bytes


def parse(arguments: Any, settings: Settings) -> PollRequest:
    """The poll that the query *arguments*, a werkzeug MultiDict, asks for.

    Raises:
        BadParameter: A parameter breaks its rule.
        BadCursor: A cursor that nobody gave out.
        Forbidden: A channel of ours.
    """
    single = single_values(arguments, _SINGLE)
    single.pop("callback", None)  # has a rule of its own
    query = load(_QUERY, single)
    text = query.get("cursor") or None
    now = text == "now" or (text is None and settings.start == "now")
    longest = settings.hold_seconds
    return PollRequest(
        channels=parse_channels(arguments, settings),
        cursor=None if text is None or now else Cursor.parse(text),
        now=now,
        limit=min(query.get("limit", settings.max_events), settings.max_events),
        hold_seconds=min(query["timeout"] / 1000.0, longest) if "timeout" in query else longest,
        heartbeat_seconds=query.get("heartbeat", 0) / 1000.0,
        empty_status=int(query.get("empty", 204)),
        token=query.get("token"),
        callback=callback_in(arguments, settings),
    )


def callback_in(arguments: Any, settings: Settings) -> Optional[str]:
    """The function that the query *arguments* wants called, or None.

    Raises:
        BadParameter: It is no name of a function, or JSONP is switched off.
    """
    name = single_values(arguments, ["callback"]).get("callback")
    if name is None:
        return None
    if not settings.jsonp:
        raise BadParameter("callback", name, "JSONP is switched off on this server")
    if len(name) > _LONGEST_FUNCTION or _FUNCTION.fullmatch(name) is None:
        rule = (
            "the name of a function is needed, such as app.on_answer, of at most %d characters"
            % _LONGEST_FUNCTION
        )
        raise BadParameter("callback", name, rule)
    return name


def parse_channels(arguments: Any, settings: Settings) -> Optional[FrozenSet[str]]:
    """The channels that the query names, in either spelling; None when it names none."""
    names: List[str] = list(arguments.getlist("channel"))
    for joined in arguments.getlist("channels"):
        names.extend(joined.split(","))
    if not names:
        return None
    # Named twice it is one: whoever repeats a name asks for no more, and the server bounds the query's length.
    found = frozenset(names)
    if len(found) > settings.max_channels:
        rule = "at most %d in one poll" % settings.max_channels
        raise BadParameter("channel", "%d channels" % len(found), rule, limit="max_channels")
    for name in sorted(found):
        if name.startswith(RESERVED_PREFIX):
            continue  # may be a name of ours: the view says 403
        try:
            check_name("channel", name)
        except InvalidEvent:
            raise BadParameter("channel", name, NAME_RULE % 200) from None
    return found


def render(batch: Batch, *, empty_status: int) -> Answer:
    """The answer with *batch*; its body is made once for all who share the batch."""
    cursor = str(batch.cursor)
    headers = ((CURSOR_HEADER, cursor),)
    if not batch.events and empty_status == 204:
        return Answer(204, headers, b"")
    body = batch.rendered.get("longpoll")
    if body is None:
        body = batch.rendered["longpoll"] = _body(batch, cursor)
    return Answer(206 if batch.more else 200, headers + _json_headers(body), body)


def render_error(
    error: LegacyPollError, *, cursor: Optional[Cursor] = None, retry_after: Optional[int] = None
) -> Answer:
    """The answer that tells *error*.

    Args:
        error: One with a status and a code.
        cursor: Where to go on, for 410.
        retry_after: Seconds, for 429 and 503.
    """
    says: Any = {"error": {"code": getattr(error, "code", "internal_error"), "message": str(error)}}
    headers = list(error.headers.items()) if isinstance(error, RequestError) else []
    if cursor is not None:
        says["cursor"] = str(cursor)
        headers.append((CURSOR_HEADER, str(cursor)))
    if retry_after is not None:
        headers.append(("Retry-After", str(retry_after)))
    body = json.dumps(says).encode("utf-8")
    return Answer(getattr(error, "status", 500), tuple(headers) + _json_headers(body), body)


def _json_headers(body: bytes) -> Tuple[Tuple[str, str], ...]:
    return (("Content-Type", "application/json"), ("Content-Length", str(len(body))))


def _body(batch: Batch, cursor: str) -> bytes:
    events = ",".join([_event(event) for event in batch.events])
    more = ',"more":true' if batch.more else ""
    return ('{"events":[%s],"cursor":"%s"%s}' % (events, cursor, more)).encode("utf-8")


def _event(event: Event) -> str:
    # Ids, channels and types are of characters that JSON does not escape, and the data is JSON text already.
    return '{"id":"%s","channel":"%s","type":"%s","data":%s,"time":"%s"}' % (
        event.id,
        event.channel,
        event.type,
        event.data,
        event.time,
    )
