"""Every exception that is raised on purpose.

Three families, by who must act: :class:`ConfigError` (the deployer, at start), :class:`StorageUnavailable` (the
operator; it is logged and tried again) and :class:`RequestError` (the client). Status, machine code and headers live
on the class, so that no other room decides how a failure looks on the wire. Each says the value found and the rule
that it broke, and keeps both as attributes.
"""

from __future__ import annotations

from typing import Any, Dict

__all__ = [
    "LegacyPollError",
    "ConfigError",
    "SchemaError",
    "StorageUnavailable",
    "StorageBusy",
    "SchemaMissing",
    "LogDamaged",
    "RequestError",
    "BadParameter",
    "BadCursor",
    "InvalidEvent",
    "EventTooLarge",
    "CursorGone",
    "CursorExpired",
    "CursorUnknown",
    "BacklogTooLarge",
    "Unauthorized",
    "Forbidden",
    "NotFound",
    "MethodNotAllowed",
    "UnsupportedMediaType",
    "BodyTooLarge",
    "TooManyPolls",
    "ServerFull",
    "CannotHold",
    "ClientGone",
    "Draining",
    "shown",
]

_SHOWN_CHARACTERS = 80


def shown(value: Any) -> str:
    """*value* as an error message may show it: quoted, control characters escaped, cut at 80 characters."""
    text = repr(value)
    if len(text) > _SHOWN_CHARACTERS:
        text = text[:_SHOWN_CHARACTERS] + "... (%d characters)" % len(str(value))
    return text


class LegacyPollError(Exception):
    """The base of all of them."""


class ConfigError(LegacyPollError):
    """The deployer must change something before this can start."""


class SchemaError(ConfigError):
    """The tables are missing, or of a version that this code does not work with."""


class StorageUnavailable(LegacyPollError):
    """The database failed or does not answer; the same call may work later."""

    status = 503
    code = "storage_unavailable"


class StorageBusy(StorageUnavailable):
    """Another transaction has what this one needs, and does not give it up in time."""

    code = "storage_busy"


class SchemaMissing(StorageUnavailable):
    """The tables are not there (yet); the same call works once they are."""

    code = "schema_missing"


class LogDamaged(SchemaMissing):
    """The tables are there, and what is in them is no log: somebody emptied, loaded or restored some of them."""


class RequestError(LegacyPollError):
    """The client asked for something that it cannot have."""

    status = 400
    code = "bad_request"
    #: True when the client may ask the same again later; the edge adds a jittered Retry-After.
    again_later = False
    #: The setting that this was refused by, as the metrics count it; empty when it was not for want of room.
    limit = ""

    def __init__(self, message: str, *, limit: str = "", **facts: Any) -> None:
        super().__init__(message)
        self.limit = limit
        self.facts = facts

    @property
    def headers(self) -> Dict[str, str]:
        """Headers that the status asks for."""
        return {}


class BadParameter(RequestError):
    """A query parameter that breaks its rule."""

    code = "bad_parameter"

    def __init__(self, field: str, value: Any, rule: str, *, limit: str = "") -> None:
        message = "%s is %s: %s" % (field, shown(value), rule)
        super().__init__(message, limit=limit, field=field, value=value, rule=rule)


class BadCursor(RequestError):
    """A cursor that this version never gave out."""

    code = "bad_cursor"

    def __init__(self, value: Any) -> None:
        rule = "a cursor is used exactly as an answer gave it"
        super().__init__("cursor is %s: %s" % (shown(value), rule), field="cursor", value=value, rule=rule)


class InvalidEvent(RequestError, ValueError):
    """An event that breaks a rule: its channel, type, id or data."""

    code = "invalid_event"

    def __init__(self, field: str, value: Any, rule: str) -> None:
        super().__init__("%s is %s: %s" % (field, shown(value), rule), field=field, value=value, rule=rule)
        self.field = field
        self.rule = rule


class EventTooLarge(InvalidEvent):
    """An event's data is larger than the setting allows; sizes in bytes of JSON text."""

    status = 413
    code = "event_too_large"

    def __init__(self, size: int, most: int) -> None:
        RequestError.__init__(
            self, "data has %d bytes: at most %d are allowed" % (size, most), size=size, most=most
        )
        self.field = "data"
        self.rule = "at most %d bytes" % most


class CursorGone(RequestError):
    """Nothing can be given from this cursor on; the client reloads its state and goes on from the head."""

    status = 410


class CursorExpired(CursorGone):
    """Events after the cursor have been trimmed."""

    code = "cursor_expired"


class CursorUnknown(CursorGone):
    """The cursor belongs to another log, or to an earlier life of this one."""

    code = "cursor_unknown"


class BacklogTooLarge(CursorGone):
    """More events than the setting allows lie between the cursor and the head."""

    code = "backlog_too_large"

    @classmethod
    def behind(cls, cursor: Any, most: int) -> "BacklogTooLarge":
        """More than *most* events are behind *cursor*; None is the beginning of what is retained."""
        where = "the oldest event that is kept" if cursor is None else "cursor %s" % cursor
        return cls(
            "%s is too far behind: more than %d events follow on these channels" % (where, most), most=most
        )


class Unauthorized(RequestError):
    """No credentials, or none that hold."""

    status = 401
    code = "unauthorized"

    @property
    def headers(self) -> Dict[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class Forbidden(RequestError):
    """Known, but may not read or write this."""

    status = 403
    code = "forbidden"


class NotFound(RequestError):
    """No such resource, or one that is switched off."""

    status = 404
    code = "not_found"


class MethodNotAllowed(RequestError):
    """The resource exists and does not take this method."""

    status = 405
    code = "method_not_allowed"

    @property
    def headers(self) -> Dict[str, str]:
        return {"Allow": self.facts["allow"]}


class UnsupportedMediaType(RequestError):
    """A body of another type than ``application/json``."""

    status = 415
    code = "unsupported_media_type"


class BodyTooLarge(RequestError):
    """A request body beyond the limit."""

    status = 413
    code = "body_too_large"


class TooManyPolls(RequestError):
    """This client holds as many polls as it may."""

    status = 429
    code = "too_many_polls"
    again_later = True


class ServerFull(RequestError):
    """This worker holds as many polls as it may."""

    status = 503
    code = "server_full"
    again_later = True


class CannotHold(RequestError):
    """The server has no way to let a poll wait without keeping everybody else out; there is nothing to read now."""

    status = 503
    code = "cannot_hold"
    again_later = True


class ClientGone(LegacyPollError):
    """The client of a held poll hung up; there is nobody to answer."""


class Draining(RequestError):
    """This worker is about to stop; another one takes the next request."""

    status = 503
    code = "draining"
    again_later = True
