"""Lanes: how a poll waits. The standard lane works on every WSGI server, the parked one on gunicorn's gevent."""

from __future__ import annotations

from .approvals import Parking
from .connection import Connection
from .gunicorn_seam import GunicornSeam, why_not
from .parked import JITTER, ParkedLane
from .standard import HeldResponse, QuietResponse, held_response

__all__ = [
    "JITTER",
    "Connection",
    "GunicornSeam",
    "HeldResponse",
    "ParkedLane",
    "Parking",
    "QuietResponse",
    "held_response",
    "why_not",
]
