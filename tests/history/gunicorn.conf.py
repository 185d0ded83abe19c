"""The configuration that we ship, and a worker that can be told to fail while it holds the log's lock.

HISTORY_DIRECTORY is the run's.
"""

import functools
import os
import runpy

from tests.history.faults import SEQUENCER, strike

globals().update(runpy.run_path(os.path.join(os.path.dirname(__file__), "..", "..", "gunicorn.conf.py")))
_shipped_post_worker_init = post_worker_init  # noqa: F821


def _struck(insert_events):
    @functools.wraps(insert_events)
    def wrapper(self, connection, rows, **options):
        # The lock is taken.
        if rows:
            strike(os.environ["HISTORY_DIRECTORY"], SEQUENCER)
        return insert_events(self, connection, rows, **options)

    return wrapper


def post_worker_init(worker):
    from legacy_poll.dialects import Dialect

    for dialect in [Dialect] + Dialect.__subclasses__():
        if "insert_events" in vars(dialect):
            dialect.insert_events = _struck(dialect.insert_events)
    _shipped_post_worker_init(worker)
