"""What a reply says: whether it is the server's own, and if not, what it looks like.

The server's answers are JSON objects with our machine codes; pages of proxies, of logins and of other sites are not.
"""

from __future__ import annotations

import json
from typing import Any, Dict, Iterable, Iterator, Optional

from .question import Reply

__all__ = ["cache_signs", "code_of", "elsewhere", "has_events", "kind_of", "message_of", "said_by", "shown"]


def said_by(reply: Reply) -> Optional[Dict[str, Any]]:
    """The body, if it is a JSON object, as all of ours are; an empty one is {}."""
    if not reply.body.strip():
        return {} if reply.status == 204 else None
    try:
        said = json.loads(reply.body)
    except ValueError:
        return None
    return said if isinstance(said, dict) else None


def has_events(reply: Reply) -> bool:
    said = said_by(reply) or {}
    return bool(said.get("events"))


def _error(said: Optional[Dict[str, Any]]) -> Dict[str, Any]:
    error = (said or {}).get("error")
    return error if isinstance(error, dict) else {}


def code_of(said: Optional[Dict[str, Any]]) -> str:
    return str(_error(said).get("code", ""))


def message_of(said: Optional[Dict[str, Any]]) -> str:
    return str(_error(said).get("message") or "with JSON that is not ours")


def kind_of(reply: Reply) -> str:
    """What a body is that is not ours."""
    start = reply.body.lstrip()[:1]
    if start == b"<" or "html" in reply.header("Content-Type"):
        return "an HTML page"
    return "an empty body" if not start else "a body of %s" % (reply.header("Content-Type") or "no type")


def shown(reply: Reply) -> str:
    return "%d %s with %s" % (reply.status, reply.reason, kind_of(reply))


def elsewhere(names: Iterable[str]) -> str:
    """What to do about an answer that is not ours."""
    text = (
        "is this the prefix of the routes? A login page, another app, or a proxy without its server answers"
    )
    shown = [name for name in names if name != "gunicorn"]
    return text + (" (%s)" % ", ".join(shown) if shown else "")


def cache_signs(reply: Reply) -> Iterator[str]:
    age = reply.header("Age")
    if age.isdigit() and int(age) > 0:
        yield "Age: %s" % age
    for name in ("X-Cache", "CF-Cache-Status", "X-Cache-Status"):
        if "HIT" in reply.header(name).upper():
            yield "%s: %s" % (name, reply.header(name))
    if len(reply.header("X-Varnish").split()) > 1:
        yield "X-Varnish: %s, a hit" % reply.header("X-Varnish")
