"""A sequencing process that stops or dies where it is told to: python -m tests.contract.child URL STAGE SIGNAL.

It moves what the outbox has, sends itself SIGNAL when it has reached STAGE, and if it is there to tell, prints what
became of the move.
"""

from __future__ import annotations

import os
import signal
import sys

from sqlalchemy import create_engine
from sqlalchemy import event as listening

from legacy_poll.errors import StorageUnavailable
from tests.contract.store import Store

STAGES = ["begun", "locked", "inserted", "deleted", "committing", "committed"]
_METHODS = {
    "begun": "begin_move",
    "locked": "lock_log",
    "inserted": "insert_events",
    "deleted": "delete_outbox",
}


def after(thing, method, action):
    """Runs *action* when *method* of *thing* has returned for the first time."""
    call = getattr(thing, method)

    def called(*arguments, **options):
        setattr(thing, method, call)
        result = call(*arguments, **options)
        action()
        return result

    setattr(thing, method, called)


def main(url, stage, number):
    store = Store(create_engine(url, future=True))
    glance = store.log.glance()

    def reach():
        os.kill(os.getpid(), number)

    if stage == "committing":
        # SQLAlchemy tells just before it sends the COMMIT.
        listening.listen(store.database._engine(True), "commit", lambda connection: reach())
    elif stage == "committed":
        after(store.database, "write", reach)
    else:
        after(store.dialect, _METHODS[stage], reach)
    try:
        moved = store.sequencer.move(glance)
    except StorageUnavailable as error:
        print("failed: %s" % error)
    else:
        print("busy" if moved.busy else "moved %d" % len(moved.events))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], signal.Signals[sys.argv[3]])
