"""Hints that something was committed: in this process, on this host, anywhere.

A hint may be lost, early or false without harm: the interval poll always follows. It touches no connection of the
user's pool and never blocks.
"""

from __future__ import annotations

from .host import HostListener, HostSender, directory_of
from .local import LocalWakeup
from .notify import NotifyListener

__all__ = ["LocalWakeup", "HostListener", "HostSender", "NotifyListener", "directory_of"]
