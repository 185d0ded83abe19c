"""How many polls the server that we live in can hold, and still serve others.

A held poll costs a greenlet under gevent, a thread under gunicorn's gthread or Flask's own server, and everything
under a server that answers one request at a time. There one held poll would keep the whole application from everybody
else for as long as it is held, and gunicorn's sync is what it starts when nobody says otherwise. So nothing is held
there: what is there is answered, and who would have to wait is told to come back.
"""

from __future__ import annotations

import sys
from typing import Any, Optional

import gevent.monkey

__all__ = ["most_held", "why_none_is_held"]

#: One thread in this many, and at least one, is left to the application.
_SPARE = 4


def most_held(worker: Any) -> Optional[int]:
    """How many polls *worker*, gunicorn's or None, can hold; None where the server sets no limit that we know."""
    if _is_a(worker, "gunicorn.workers.sync", "SyncWorker"):
        return 0
    if _is_a(worker, "gunicorn.workers.gthread", "ThreadWorker"):
        threads = int(worker.cfg.threads)
        return threads - max(1, threads // _SPARE)
    return None


def why_none_is_held(environ: Any) -> str:
    """Why the server of the request *environ*, WSGI's, can hold nothing; empty when it can, or is not known to us."""
    if gevent.monkey.is_module_patched("socket"):
        return ""
    if str(environ.get("SERVER_SOFTWARE", "")).startswith("gevent/"):
        return "gevent's server is used without gevent.monkey.patch_all()"
    ours = "gunicorn.socket" in environ or "werkzeug.socket" in environ
    if ours and not environ.get("wsgi.multithread"):
        return "this server answers one request at a time"
    return ""


def _is_a(worker: Any, module: str, name: str) -> bool:
    kind = getattr(sys.modules.get(module), name, None)  # not imported, then it is not the worker's
    return kind is not None and isinstance(worker, kind)
