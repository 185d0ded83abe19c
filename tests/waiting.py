"""The one place in the tests that pauses.

A test never sleeps for a time that it guesses; it waits for a condition, and a bound turns a hang into a failure
that names what was waited for. The pause between two looks lets other greenlets run where this thread has a gevent
loop, and other threads and processes where it has none.
"""

from __future__ import annotations

import sys
import time

PAUSE_SECONDS = 0.005


def until(condition, seconds=10, what=""):
    """Waits until *condition* returns something true, and returns that.

    Args:
        condition: Called without arguments, again and again. What it raises is not caught: a condition that may
            fail at first (a server that does not listen yet) says so by returning something false.
        seconds: A bound on failure, not a duration that a test may count on.
        what: What was waited for, for the failure's text; the condition's own name by default.

    Raises:
        AssertionError: *condition* was still false after *seconds*.
    """
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() >= deadline:
            name = what or getattr(condition, "__qualname__", repr(condition))
            raise AssertionError("waited {:g} s in vain for: {}".format(seconds, name))
        _pause()


def _pause():
    # A thread without a hub has no greenlets that want to run, and gevent.sleep() would leave it a loop that nobody
    # closes. gevent's public get_hub() creates the hub that it is asked about, so the question is put one level down.
    hub_local = sys.modules.get("gevent._hub_local")
    if hub_local is not None and hub_local.get_hub_if_exists() is not None:
        import gevent

        gevent.sleep(PAUSE_SECONDS)
    else:
        time.sleep(PAUSE_SECONDS)
