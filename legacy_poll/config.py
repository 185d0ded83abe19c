"""``Settings``: frozen, read once, checked once.

One place, whether the values come from the environment (the server by itself), from ``app.config`` (inside an app)
or from keyword arguments (tests). A ``LEGACY_POLL_*`` key that does not exist is an error at start, so that a typo
cannot pass for a setting.
"""

from __future__ import annotations

import difflib
import functools
import math
import os
import re
from dataclasses import dataclass, field, fields
from typing import Any, Dict, Mapping, Tuple

from .errors import ConfigError, shown

__all__ = ["Settings", "PREFIX"]

PREFIX = "LEGACY_POLL_"
# Scheme, host and port: lower case, no path, as the header Origin has it.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]+)?")
_HEADER = re.compile(r"[A-Za-z0-9-]{1,100}")
# An equal poll of another user, client, site or format must not pass for the same.
_NEVER_VARY = frozenset(
    "accept accept-encoding accept-language authorization connection content-length content-type cookie expect "
    "forwarded host origin proxy-authorization range referer te trailer transfer-encoding upgrade user-agent x-api-key "
    "x-csrf-token x-forwarded-for x-forwarded-host x-forwarded-prefix x-forwarded-proto x-real-ip".split()
)
_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off", "")


def _default_max_held() -> int:
    """Half of the descriptors that this process may open, 100 to 10,000: the other half is the app's."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except (ImportError, ValueError, OSError):
        return 1000
    return 10_000 if limit < 0 else min(10_000, max(100, limit // 2))


def _setting(
    default: Any, help: str, *, least: float = 0, most: float = math.inf, secret: bool = False
) -> Any:
    meta = {"help": help, "least": least, "most": most, "secret": secret}
    if callable(default):
        return field(default_factory=default, metadata=meta, repr=not secret)
    return field(default=default, metadata=meta, repr=not secret)


@dataclass(frozen=True)
class Settings:
    """All settings, with units. Each has the variable ``LEGACY_POLL_<NAME>``."""

    database_url: str = _setting(
        "sqlite:///legacy_poll.db",
        "SQLAlchemy URL of the log's database; used by the server by itself.",
        secret=True,
    )
    public: bool = _setting(False, "1: any channel may be read without a token; the server by itself only.")
    secret_key: str = _setting("", "Signs channel tokens; at least 16 characters.", secret=True)
    publish_token: str = _setting(
        "", "Bearer token of POST /publish; empty: the route answers 404.", secret=True
    )

    # A proxy's usual idle limit is 30 or 60 s; an answer every 25 s stays below both.
    hold_seconds: float = _setting(25.0, "Longest time that a poll is held, seconds.", most=3600)
    # 20 cheap queries a second for a worker, whatever the number of clients; hints make it faster than this.
    poll_interval_seconds: float = _setting(
        0.05, "Time between two looks at an idle database, seconds.", least=0.001, most=60
    )
    # 500 events of 2 KiB fill the byte limit; more would only make the first screen later.
    max_events: int = _setting(
        500, "Most events in one answer; the rest follows with 206.", least=1, most=10_000
    )
    max_response_bytes: int = _setting(1_048_576, "Most bytes of event data in one answer.", least=1024)
    # A row in a table, not a file: large things belong behind a URL in the event.
    max_event_bytes: int = _setting(
        262_144, "Most bytes of one event's data, as JSON text.", least=1, most=16_777_216
    )
    max_channels: int = _setting(100, "Most channels in one poll.", least=1, most=10_000)
    retention_seconds: float = _setting(
        86_400.0, "Events older than this are trimmed, seconds; 0 keeps them."
    )
    retention_events: int = _setting(1_000_000, "Most events kept; older ones are trimmed; 0 keeps them.")
    trim_interval_seconds: float = _setting(
        10.0, "Time between two looks for what to trim, seconds.", least=0.05
    )
    max_held: int = _setting(
        _default_max_held,
        "Most polls held at once by one worker; default half of its descriptor limit, 100 to 10,000.",
        least=0,
    )
    max_held_per_client: int = _setting(0, "Most polls held at once for one client address; 0: no limit.")
    # Whoever is so far behind is better served by its state as it is now than by everything that led there.
    max_backlog_events: int = _setting(
        0, "Most events behind a poll's cursor, on its channels; more is answered 410; 0: no limit."
    )
    # A missing cursor starts with everything that is retained; "now" suits pages that render their own state first.
    start: str = _setting("oldest", "Where a poll without a cursor starts: oldest or now.")
    tail_events: int = _setting(10_000, "Recent events kept in the worker's memory.", least=1)
    tail_bytes: int = _setting(
        16_777_216, "Bytes of recent events' data kept in the worker's memory.", least=1024
    )
    # Reads behind the tail are rare and shared; more at once would only take the database from the app.
    catchup_reads: int = _setting(4, "Reads of old events at once, for one worker.", least=1, most=64)
    move_rows: int = _setting(
        500, "Most rows that the sequencer moves in one transaction.", least=1, most=10_000
    )
    # Longer than any healthy query of ours; a database that hangs must not hold up more than its own callers.
    database_timeout_seconds: float = _setting(
        5.0, "Longest wait for one answer of the database, seconds.", least=0.1, most=300
    )
    wakeup_directory: str = _setting(
        "", "Folder for hints between processes of this host; default in the temporary files; off: none."
    )
    notify: bool = _setting(True, "PostgreSQL: 0 switches off LISTEN, for a pooler in transaction mode.")
    trusted_proxies: int = _setting(
        0,
        "How many proxies of ours stand in front: that many entries of X-Forwarded-For are believed.",
        most=10,
    )
    admin_token: str = _setting(
        "", "Bearer token for /status and /metrics from elsewhere than loopback.", secret=True
    )
    max_group: int = _setting(0, "Most polls that wait on one set of channels; 0: no limit.")
    max_catchups: int = _setting(
        1000, "Most different reads of old events that wait for their turn.", least=1
    )
    # A client that does not take an answer in this time has gone, or is not worth a place.
    send_seconds: float = _setting(
        30.0, "Longest time for a client to take 64 KiB of an answer, seconds.", least=0.1
    )
    write_wait_seconds: float = _setting(5.0, "SQLite: how long a write waits for another writer.", most=60)

    park: bool = _setting(
        True,
        "0: waiting polls stay in their request on gunicorn's gevent worker, too: docs/lanes.md.",
    )
    # Logout, a changed cookie and poll.revoke() do not wait for this; only what nobody tells us of does.
    reauthorize_seconds: float = _setting(
        60.0,
        "While parked: longest time that equal polls are held without the application being asked; 0: always.",
        most=3600,
    )

    varying_headers: str = _setting(
        "",
        "While parked: headers that differ from request to request, with commas: X-Request-Id,traceparent.",
    )

    jsonp: bool = _setting(False, "1: answers as scripts, for pages of other sites in browsers without CORS.")
    cors_origins: str = _setting(
        "", "Origins whose pages may read the answers, with commas: https://shop.example; or *."
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            object.__setattr__(self, each.name, _checked(each, getattr(self, each.name)))
        if self.start not in ("oldest", "now"):
            raise ConfigError("start is %s: oldest or now is needed" % shown(self.start))
        if self.secret_key and len(self.secret_key) < 16:
            raise ConfigError("secret_key has %d characters: at least 16 are needed" % len(self.secret_key))
        for origin in self.origins:
            if _ORIGIN.fullmatch(origin) is None and self.origins != ("*",):
                raise ConfigError(
                    "%sCORS_ORIGINS has %s: origins as browsers send them, such as https://shop.example:8443, or * "
                    "alone are needed" % (PREFIX, shown(origin))
                )

        for name in self.varying:
            if _HEADER.fullmatch(name) is None or name.lower() in _NEVER_VARY:
                raise ConfigError(
                    "%sVARYING_HEADERS has %s: names of request-id and trace headers are needed, never of one that "
                    "says who asks or what" % (PREFIX, shown(name))
                )

    @property
    def varying(self) -> Tuple[str, ...]:
        """The names of :attr:`varying_headers`."""
        return _split(self.varying_headers)

    @property
    def origins(self) -> Tuple[str, ...]:
        """The origins of :attr:`cors_origins`."""
        return _split(self.cors_origins)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> "Settings":
        """The settings in the environment's ``LEGACY_POLL_*`` variables; defaults for the others.

        Raises:
            ConfigError: An unknown variable, or a value that breaks its rule.
        """
        return cls.from_mapping(environ)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], **overrides: Any) -> "Settings":
        """The settings among the ``LEGACY_POLL_*`` keys of *mapping*, such as ``app.config``.

        Raises:
            ConfigError: An unknown key, or a value that breaks its rule.
        """
        known = {PREFIX + each.name.upper(): each.name for each in fields(cls)}
        values: Dict[str, Any] = {}
        for key in mapping:
            if not isinstance(key, str) or not key.startswith(PREFIX):
                continue
            if key not in known:
                # Without the prefix, which would make every two of them alike.
                close = difflib.get_close_matches(key[len(PREFIX) :].lower(), known.values(), n=1)
                hint = "; did you mean %s%s?" % (PREFIX, close[0].upper()) if close else ""
                raise ConfigError("%s is not a setting of legacy_poll%s" % (key, hint))
            values[known[key]] = mapping[key]
        values.update(overrides)
        return cls(**values)

    @classmethod
    def described(cls) -> Dict[str, str]:
        """Variable -> one line of help, for ``--help`` and the docs."""
        return {PREFIX + each.name.upper(): each.metadata["help"] for each in fields(cls)}


@functools.lru_cache(maxsize=16)
def _split(text: str) -> Tuple[str, ...]:
    return tuple(each.strip() for each in text.split(",") if each.strip())


def _checked(setting: Any, value: Any) -> Any:
    """*value* as the setting's type, within its bounds."""
    name = PREFIX + setting.name.upper()
    kind = setting.type
    if kind == "str":
        if not isinstance(value, str):
            raise ConfigError("%s is %s: text is needed" % (name, type(value).__name__))
        return value
    if kind == "bool":
        return _as_bool(name, value)
    try:
        number = _as_int(value) if kind == "int" else float(value)
    except (TypeError, ValueError):
        needed = "a whole number" if kind == "int" else "a number"
        raise ConfigError("%s is %s: %s is needed" % (name, shown(value), needed)) from None
    least, most = setting.metadata["least"], setting.metadata["most"]
    if not least <= number <= most or math.isinf(number):
        bounds = (
            "at least %s" % _plain(least) if math.isinf(most) else "%s to %s" % (_plain(least), _plain(most))
        )
        raise ConfigError("%s is %s: %s is needed" % (name, shown(value), bounds))
    return number


def _plain(number: float) -> str:
    return "%d" % number if number == int(number) else "%g" % number


def _as_int(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError(value)
    return int(value)


def _as_bool(name: str, value: Any) -> bool:
    text = str(value).strip().lower()
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ConfigError("%s is %s: 1 or 0 is needed" % (name, shown(value)))
