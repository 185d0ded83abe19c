"""Pages of other origins: which may read the answers, and with the user's cookies.

A browser hides an answer from a page of another origin unless the answer names that origin. With credentials the name
must be exact, so ``*`` lets everybody read, but nobody as the user who is logged in.
"""

from __future__ import annotations

from typing import Any

from .config import Settings

__all__ = ["allow"]

# What a page may read beside the body, and what a preflight is told; seconds that a browser may remember it.
_EXPOSED = "Legacy-Poll-Cursor, Retry-After, Date"
_HEADERS = "Authorization"
_REMEMBER_SECONDS = 600


def allow(settings: Settings, request: Any, response: Any) -> None:
    """Lets the page that sent *request* read *response*, if its origin is one of those in the settings."""
    if not settings.origins:
        return
    headers = response.headers
    if settings.origins == ("*",):
        headers["Access-Control-Allow-Origin"] = "*"
    else:
        # Also on answers to others: a cache must not give them to this one.
        response.vary.add("Origin")
        origin = request.headers.get("Origin")
        if origin not in settings.origins:
            return
        headers["Access-Control-Allow-Origin"] = origin
        headers["Access-Control-Allow-Credentials"] = "true"
    headers["Access-Control-Expose-Headers"] = _EXPOSED
    if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
        headers["Access-Control-Allow-Methods"] = "GET"
        headers["Access-Control-Allow-Headers"] = _HEADERS
        headers["Access-Control-Max-Age"] = str(_REMEMBER_SECONDS)
