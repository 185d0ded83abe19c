"""Lanes: how a poll's request waits. The standard lane works on every WSGI server."""

from __future__ import annotations

from .connection import Connection
from .standard import HeldResponse, QuietResponse, held_response

__all__ = ["Connection", "HeldResponse", "QuietResponse", "held_response"]
