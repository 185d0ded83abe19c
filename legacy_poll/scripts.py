"""The browser library, served beside the polls: no build, no package manager, no second server.

A URL that carries the file's digest may be kept for a year, since another file has another URL; one without is asked
for again each time, which costs a 304.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any, Optional, Tuple

from werkzeug.wrappers import Response

__all__ = ["NAMES", "digest_of", "script"]

#: What is served, by the name in the URL.
NAMES = ("legacy-poll.js", "jquery.legacy-poll.js")
_FOLDER = Path(__file__).with_name("static")
_YEAR_SECONDS = 31_536_000


@functools.lru_cache(maxsize=None)
def _file(name: str) -> Tuple[bytes, str]:
    source = (_FOLDER / name).read_bytes()
    return source, hashlib.sha256(source).hexdigest()[:16]


def digest_of(name: str) -> str:
    """What changes with the file *name*, one of :data:`NAMES`."""
    return _file(name)[1]


def script(name: str, version: Optional[str], request: Any) -> Response:
    """The file *name* as a response to *request*; *version* is the digest that its URL names, if any."""
    source, digest = _file(name)
    response = Response(source, content_type="text/javascript; charset=utf-8")
    response.set_etag(digest)
    if version == digest:
        response.headers["Cache-Control"] = "public, max-age=%d, immutable" % _YEAR_SECONDS
    else:
        response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response.make_conditional(request)
