"""Which CPUs the clients have and which the servers, so that neither takes the other's time."""

from __future__ import annotations

import contextlib
import functools
import os


@functools.lru_cache(maxsize=None)
def processors():
    """CPUs for the clients and CPUs for the servers: the same where this process may use only one."""
    every = sorted(os.sched_getaffinity(0))
    return ({every[-1]}, set(every[:-1])) if len(every) > 1 else (set(every), set(every))


def listed(numbers):
    return ", ".join(str(each) for each in sorted(numbers))


@contextlib.contextmanager
def on(cpus):
    """What is started here runs on *cpus*."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
