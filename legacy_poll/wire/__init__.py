"""Wire formats: one file each. A request becomes a :class:`PollRequest`, a Batch becomes body, status and headers.

Nothing here knows of storage, and nothing here waits.
"""

from __future__ import annotations

from .jsonp import SCRIPT_TYPE, called
from .longpoll import Answer, PollRequest, callback_in, parse, render, render_error

__all__ = ["Answer", "PollRequest", "SCRIPT_TYPE", "callback_in", "called", "parse", "render", "render_error"]
