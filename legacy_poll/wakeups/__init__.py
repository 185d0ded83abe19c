"""Hints that something was committed: from this process; from this host and from the database later.

A hint may be lost, early or false without harm: the interval poll always follows. It touches no connection of the
user's pool and never blocks.
"""

from __future__ import annotations

from .local import LocalWakeup

__all__ = ["LocalWakeup"]
