"""Lanes: how a poll's request waits. The standard lane works on every WSGI server."""

from __future__ import annotations

from .standard import HeldResponse, held_response

__all__ = ["HeldResponse", "held_response"]
