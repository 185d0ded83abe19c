"""Whether the server process that we live in is about to end.

gunicorn's workers stop by a flag: ``alive`` turns false on SIGTERM, on a reload and after ``max_requests``, and the
worker then waits for its requests under way. It tells nobody; but the worker's own signal handler is a method of it,
which is how it is found here, whatever the application's configuration. Elsewhere nothing is found, and held polls end
at their time.
"""

from __future__ import annotations

import signal
from typing import Any

__all__ = ["find_worker", "is_stopping"]


def find_worker() -> Any:
    """gunicorn's worker object of this process, or None."""
    try:
        handler = signal.getsignal(signal.SIGTERM)
    except ValueError:
        return None
    worker = getattr(handler, "__self__", None)
    return worker if hasattr(worker, "alive") and hasattr(worker, "cfg") else None


def is_stopping(worker: Any) -> bool:
    """Whether *worker*, from :func:`find_worker`, has been told to end."""
    return worker is not None and not worker.alive
