"""Wire formats: one file each. A request becomes a :class:`PollRequest`, a Batch becomes body, status and headers.

Nothing here knows of storage, and nothing here waits.
"""

from __future__ import annotations

from .longpoll import Answer, PollRequest, parse, render, render_error

__all__ = ["Answer", "PollRequest", "parse", "render", "render_error"]
