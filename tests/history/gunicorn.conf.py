"""The configuration that we ship, and a worker that can be told to fail while it holds the log's lock.

HISTORY_DIRECTORY is the run's, HISTORY_NAME this gunicorn's place in it.
"""

import os
import runpy

from tests.history.faults import strike

globals().update(runpy.run_path(os.path.join(os.path.dirname(__file__), "..", "..", "gunicorn.conf.py")))
_shipped_post_worker_init = post_worker_init  # noqa: F821


def post_worker_init(worker):
    from legacy_poll.dialects import Dialect

    insert_events = Dialect.insert_events

    def struck(self, connection, rows):
        # The lock is taken, and the outbox rows are deleted.
        if rows:
            strike(os.environ["HISTORY_DIRECTORY"], os.environ["HISTORY_NAME"])
        insert_events(self, connection, rows)

    Dialect.insert_events = struck
    _shipped_post_worker_init(worker)
