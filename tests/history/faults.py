"""Stops and kills that strike a process at one exact place, such as between taking a lock and the commit.

A signal from outside comes whenever it comes. So a process looks for an order, a file in the run's directory, at the
place in question, takes it if there is one, writes down who was struck, and sends the signal to itself there. Whoever
comes after it lives.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from random import Random

from tests.waiting import until

STOP = "stop"
KILL = "kill"
# With the parent: a gunicorn and its worker, as when the container ends.
KILL_ALL = "kill all"
# Some hundred microseconds later: while a commit is under way, so that nobody can tell what became of it.
KILL_SOON = "kill soon"
SOON_SECONDS = 0.001
# The place of the servers; those of the publishers are theirs.
SEQUENCER = "server-that-holds-the-lock"
STRIKE_SECONDS = 60


def strike(directory: str | Path, place: str) -> None:
    """Fails here, if that is ordered."""
    order = Path(directory) / ("order-" + place)
    try:
        what = order.read_text()
        order.unlink()
    except FileNotFoundError:
        return  # no order, or somebody else at the same place has just taken it
    struck = Path(directory) / ("struck-" + place)
    struck.with_suffix(".draft").write_text(str(os.getpid()))
    struck.with_suffix(".draft").rename(struck)
    if what == STOP:
        os.kill(os.getpid(), signal.SIGSTOP)
        # Another thread of the process may be given the signal, and until it gets a processor this one would run on.
        resumed = Path(directory) / ("resumed-" + place)
        ends = time.monotonic() + STRIKE_SECONDS
        while not resumed.exists() and time.monotonic() < ends:
            pass
    elif what == KILL_SOON:
        seconds = Random(os.getpid()).uniform(0, SOON_SECONDS)
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
    else:
        if what == KILL_ALL:
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


class Fault:
    """An order to fail, from the side of who gives it."""

    def __init__(self, directory: str | Path, place: str, what: str) -> None:
        self._order = Path(directory) / ("order-" + place)
        self._struck = Path(directory) / ("struck-" + place)
        self._resumed = Path(directory) / ("resumed-" + place)
        self._what = what
        self.pid = 0

    def strike(self) -> int:
        """Orders the fault and returns the id of the process that it struck, once that stands still or is gone."""
        # Not above: it needs pytest, and whoever is to be struck imports this module.
        from tests.servers import _state

        self._struck.unlink(missing_ok=True)
        self._resumed.unlink(missing_ok=True)
        draft = self._order.with_suffix(".draft")
        draft.write_text(self._what)
        draft.rename(self._order)
        what = "somebody to {} at {}".format(self._what, self._order.name)
        until(self._struck.exists, STRIKE_SECONDS, what)
        self.pid = int(self._struck.read_text())
        ended = ("T", "t") if self._what == STOP else ("", "Z", "X")
        until(lambda: _state(self.pid) in ended, STRIKE_SECONDS, what)
        return self.pid

    def resume(self) -> None:
        """Ends a stop."""
        self._resumed.touch()
        os.kill(self.pid, signal.SIGCONT)
