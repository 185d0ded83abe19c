"""One worker's publisher loop without its HTTP: sequences, reads and delivers to a hub, in a process like a worker.

Built by the Runtime that gunicorn's workers use, on a standard library patched as theirs is. Any line on standard
input is answered with what was delivered since the last: a list of [when, numbers of the events].
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402

from gevent.fileobject import FileObject  # noqa: E402
from sqlalchemy import create_engine  # noqa: E402

from legacy_poll.config import Settings  # noqa: E402
from legacy_poll.runtime import Runtime  # noqa: E402
from tests.waiting import until  # noqa: E402


def main(url):
    runtime = Runtime(create_engine(url), Settings())
    deliver, delivered = runtime.hub.deliver, []

    def noted(events, cursor):
        deliver(events, cursor)
        delivered.append((time.monotonic(), events))

    runtime.hub.deliver = noted
    runtime.start()
    until(lambda: runtime.publisher.live, 60, "the publisher has the log")
    for _ in FileObject(sys.stdin):
        taken = delivered[:]
        del delivered[: len(taken)]
        print(
            json.dumps([(when, [json.loads(each.data)["n"] for each in events]) for when, events in taken]),
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1])
