"""The same answers as a script that calls a function, for pages of other sites in browsers without CORS.

Switched off by default: whoever can make a user's browser load such a script is given what that user may read, since
cookies come along. Status and headers are lost on the way, so the status is 200, as behind a heartbeat, and the body
tells. The comment in front keeps the first bytes from being the requester's.
"""

from __future__ import annotations

from .longpoll import Answer

__all__ = ["SCRIPT_TYPE", "called"]

SCRIPT_TYPE = "application/javascript; charset=utf-8"
# JSON lets these two stand in a string; to a script of before 2019 they end the line, and the string with it.
_LINE_ENDS = (("\u2028".encode("utf-8"), b"\\u2028"), ("\u2029".encode("utf-8"), b"\\u2029"))


def called(answer: Answer, callback: str) -> Answer:
    """*answer*, which has a body, as a script that gives it to *callback*."""
    says = answer.body
    for raw, escaped in _LINE_ENDS:
        says = says.replace(raw, escaped)
    body = b"/**/" + callback.encode("ascii") + b"(" + says + b");"
    kept = [each for each in answer.headers if each[0] not in ("Content-Type", "Content-Length")]
    ours = [("Content-Type", SCRIPT_TYPE), ("Content-Length", str(len(body)))]
    return Answer(200, tuple(kept + ours), body)
