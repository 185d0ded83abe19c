"""How long it takes to end: 1,000 polls are held, and gunicorn is told to stop, or its worker to make room for another.

"answered" is from the signal until the last of them has its answer, "gone" until the worker has ended.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time

from bench.stage import Gunicorn, median, place
from tests.waiting import until

HELD = 1_000
SECONDS = 60
POLL = b"GET /stream?channel=bench&cursor=%s HTTP/1.1\r\nHost: bench\r\n\r\n"
HEADING = "%-11s%9s%12s%18s%12s"


def run(options):
    print(HEADING % ("database", "signal", "held", "answered (ms)", "gone (ms)"))
    for kind in options.databases:
        with place(kind) as database:
            if database is None:
                continue
            for number in (signal.SIGTERM, signal.SIGHUP):
                runs = [once(database, number) for _ in range(1 if options.quick else options.repeats)]
                answered, gone = [1000 * median(each) for each in zip(*runs)]
                print("%-11s%9s%12d%18.0f%12.0f" % (kind, number.name, HELD, answered, gone), flush=True)


def once(database, number):
    """Seconds until all are answered, and until the worker is gone."""
    with Gunicorn(database, 1) as server:
        [worker] = server.workers()
        polls = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(HELD)]
        polls[0].sendall(POLL % b"now")
        cursor = polls[0].recv(4096).partition(b"Legacy-Poll-Cursor: ")[2].partition(b"\r\n")[0]
        for poll in polls:
            poll.sendall(POLL % cursor)
        until(server.has_read_all, SECONDS, "every poll is held")
        begun = time.monotonic()
        os.kill(server.pid, number)
        answered = all_answered(polls) - begun
        until(lambda: not os.path.exists("/proc/%d" % worker), SECONDS, "the worker is gone")
        gone = time.monotonic() - begun
        for poll in polls:
            poll.close()
        return answered, gone


def all_answered(polls):
    """When the last of *polls* had an answer with its cursor."""
    poller = select.epoll()
    waiting = {poll.fileno(): poll for poll in polls}
    for descriptor in waiting:
        poller.register(descriptor, select.EPOLLIN)
    deadline = time.monotonic() + SECONDS
    while waiting and time.monotonic() < deadline:
        for descriptor, _ in poller.poll(1):
            answer = waiting.pop(descriptor).recv(4096)
            poller.unregister(descriptor)
            if not answer.startswith(b"HTTP/1.1 204") or b"Legacy-Poll-Cursor: " not in answer:
                raise SystemExit("answered %r" % answer[:500])
    if waiting:
        raise SystemExit("%d polls had no answer within %d s" % (len(waiting), SECONDS))
    return time.monotonic()
