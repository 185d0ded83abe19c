"""What an event is, and what may stand in one.

The rules for names and data are here and nowhere else, because three writers must agree on them: ``publish()``, the
publish route, and the sequencer, which meets rows that any program wrote. ``data`` is JSON *text* from the moment it
is published: no later room decodes it.
"""

from __future__ import annotations

import json
import math
import re
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Dict, FrozenSet, Iterable, List, Optional, Tuple

from .cursors import MAX_POSITION, Cursor, check_of
from .errors import EventTooLarge, InvalidEvent

__all__ = ["Event", "Batch", "check_name", "check_data", "encode_data", "new_event_id", "NAME_RULE"]

DEFAULT_CHANNEL = "default"
DEFAULT_TYPE = "message"
MAX_NAME = 200
MAX_ID = 100
#: Deeper data is refused: recursive parsers, ours and the oldest browsers', must never be at risk.
MAX_DEPTH = 200

NAME_CHARACTERS = "A-Za-z0-9_.:/@~+=-"
NAME_RULE = "1 to %d of the characters A-Z a-z 0-9 _ . : / @ ~ + = -"
RESERVED_PREFIX = "$"
#: Its events have data {"subject": "..."}, and perhaps "at": the revoking server's time, seconds since 1970.
REVOKE_CHANNEL = "$revoke"
#: Its events have data {"positions": [[first, last], ...]}: where events were erased.
ERASE_CHANNEL = "$erase"
#: Where an erased event stands from then on; its data are null.
ERASED_CHANNEL = "$erased"

_NAME = re.compile("[%s]+" % NAME_CHARACTERS)
# A string that never ends counts as one too: tried again from every quote in it, it would cost minutes.
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
_BRACKETS = re.compile(r"[\[{\]}]")


@dataclass(frozen=True)
class Event:
    """One entry of the log.

    Attributes:
        position: Where it stands in the log; 1 is the first.
        id: The publisher's id, at most 100 characters; a client's key for deduplication.
        channel: Where it was published.
        type: What kind of thing happened.
        data: JSON text.
        time: When it entered the log: RFC 3339, UTC, milliseconds.
        mark: Of the move that put it there; None when that was before there were marks.
    """

    __slots__ = ("position", "id", "channel", "type", "data", "time", "mark")

    position: int
    id: str
    channel: str
    type: str
    data: str
    time: str
    mark: Optional[str]

    @property
    def check(self) -> str:
        """What a cursor behind this event is checked by."""
        return check_of(self.id, self.mark)

    @property
    def size(self) -> int:
        """Bytes of *data*, as UTF-8."""
        return len(self.data) if self.data.isascii() else len(self.data.encode("utf-8", "surrogatepass"))


@dataclass(frozen=True)
class Batch:
    """What one poll gets.

    Attributes:
        events: In order; empty when a hold ended without any.
        cursor: Where to go on, also when *events* is empty.
        more: The batch was cut at a limit; the next poll will not wait.
        rendered: Bytes made of this batch, by wire format: all who share it are sent the same.
    """

    events: Tuple[Event, ...]
    cursor: Cursor
    more: bool = False
    rendered: Dict[str, bytes] = field(default_factory=dict, compare=False, repr=False)


def said(event: Event) -> Any:
    """What the data of *event* say; None where they are no JSON, as a row that was changed by hand may have it."""
    try:
        return json.loads(event.data)
    except (ValueError, RecursionError):
        return None


def seconds_of(time: str) -> float:
    """An event's *time* as seconds since 1970.

    Raises:
        ValueError: It is no such time, as a row that was changed by hand may have it.
    """
    moment = datetime.strptime(time, "%Y-%m-%dT%H:%M:%S.%fZ")
    return moment.replace(tzinfo=timezone.utc).timestamp()


def new_event_id() -> str:
    """A random UUID, as text."""
    return str(uuid.uuid4())


def check_name(field: str, value: Any, *, longest: int = MAX_NAME) -> str:
    """*value* if it may name a channel or a type (or, with *longest* = 100, be an id).

    Raises:
        InvalidEvent: It breaks the rule; the message has both.
    """
    if not isinstance(value, str) or not 0 < len(value) <= longest or _NAME.fullmatch(value) is None:
        if isinstance(value, str) and value.startswith(RESERVED_PREFIX):
            raise InvalidEvent(field, value, "names that start with $ are reserved")
        raise InvalidEvent(field, value, NAME_RULE % longest)
    return value


def check_channels(values: Iterable[Any]) -> FrozenSet[str]:
    """The set of *values*, each checked as a channel name.

    Raises:
        InvalidEvent: One breaks the rule, or *values* is one name: its letters would be taken for channels.
    """
    if isinstance(values, (str, bytes)):
        raise InvalidEvent("channels", values, "an iterable of names is needed")
    return frozenset(check_name("channel", value) for value in values)


def encode_data(data: Any, *, max_bytes: int) -> str:
    """*data* as the JSON text that travels from here to the client unchanged.

    ASCII only: what is not is escaped, so that a connection with an old character set carries it as well as any.

    Raises:
        InvalidEvent: Not a JSON value (NaN and the infinities included), or nested more than 200 deep.
        EventTooLarge: More than *max_bytes* bytes.
    """
    try:
        text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    except RecursionError:
        raise InvalidEvent("data", type(data).__name__, "at most %d levels of nesting" % MAX_DEPTH) from None
    except TypeError as error:
        raise InvalidEvent("data", type(data).__name__, "a JSON value is needed: %s" % error) from None
    except ValueError as error:
        raise InvalidEvent("data", type(data).__name__, "a JSON value is needed: %s" % error) from None
    _check_size(len(text), max_bytes)
    _check_depth(text)
    return text


def check_data(text: Any, *, max_bytes: int) -> str:
    """*text* if it is JSON text that may travel as it is; for rows that other programs wrote.

    Raises:
        InvalidEvent: Not JSON, a number beyond a double's range, or nested more than 200 deep.
        EventTooLarge: More than *max_bytes* bytes of UTF-8.
    """
    if not isinstance(text, str):
        raise InvalidEvent("data", text, "JSON text is needed")
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise InvalidEvent("data", text, "text that can be encoded as UTF-8 is needed") from None
    _check_size(size, max_bytes)
    _check_depth(text)
    try:
        json.loads(text, parse_int=_any_integer, parse_float=_finite, parse_constant=_no_constant)
    except RecursionError:
        raise InvalidEvent("data", text, "at most %d levels of nesting" % MAX_DEPTH) from None
    except ValueError as error:
        raise InvalidEvent("data", text, "JSON text is needed: %s" % error) from None
    return text


def check_subject(value: Any) -> str:
    """*value* if it may say who a token is for, or whose right is revoked: both must be the same text to meet.

    Raises:
        InvalidEvent: It is empty, not text, or cannot be encoded.
    """
    if not isinstance(value, str) or not value:
        raise InvalidEvent("subject", value, "text is needed")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidEvent("subject", value, "text that can be encoded as UTF-8 is needed") from None
    return value


def check_event_id(value: Optional[str]) -> str:
    """*value* if it may be an event's id; a new one for None.

    Raises:
        InvalidEvent: It breaks the rule.
    """
    return new_event_id() if value is None else check_name("id", value, longest=MAX_ID)


def positions_in(says: Any) -> Optional[List[Tuple[int, int]]]:
    """The first and last positions that *says*, the data of an event on :data:`ERASE_CHANNEL`, names; None if none."""
    ranges = says.get("positions") if isinstance(says, dict) else None
    if not isinstance(ranges, list) or not ranges:
        return None
    found = []
    for each in ranges:
        if not isinstance(each, list) or len(each) != 2 or not all(type(number) is int for number in each):
            return None
        if not 0 < each[0] <= each[1] <= MAX_POSITION:
            return None
        found.append((each[0], each[1]))
    return found


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise EventTooLarge(size, max_bytes)


def _check_depth(text: str) -> None:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for bracket in _BRACKETS.findall(_STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            raise InvalidEvent("data", text, "at most %d levels of nesting" % MAX_DEPTH)


def _any_integer(digits: str) -> int:
    return 0  # only the grammar matters here, and converting thousands of digits costs


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError("%s is beyond the range of a double" % shown_number(digits))
    return number


def shown_number(digits: str) -> str:
    """*digits*, cut so that a message stays readable."""
    return digits if len(digits) <= 40 else digits[:40] + "..."


def _no_constant(name: str) -> Any:
    raise ValueError("%s is not JSON" % name)
