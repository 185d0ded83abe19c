"""What one worker costs: with nothing to do, for each held poll, and for 100,000 events in one transaction."""

from __future__ import annotations

import time

from bench.stage import Child, Gunicorn, check_order, cpu_seconds, place, resident_mib
from tests.waiting import until

ROWS = 100_000
HELD = 1_000
SETTLE_SECONDS = 60
HEADING = "%-11s%26s%22s%17s%28s%26s"


def run(options):
    idle_seconds, rows = (10, ROWS // 10) if options.quick else (60, ROWS)
    print(
        HEADING
        % (
            ("database", "idle: worker CPU s a min", "its database's", "KiB a held poll")
            + ("%d rows, 1 commit: s" % rows, "worker MiB: start, peak")
        )
    )
    for kind in options.databases:
        with place(kind) as database:
            if database is None:
                continue
            with Gunicorn(database, 1) as server:
                [worker] = server.workers()
                started = resident_mib(worker)
                idle_worker, idle_database = idle(database, worker, idle_seconds)
                seconds = bulk(database, server, rows)
                peak = resident_mib(worker, peak=True)
            with Gunicorn(database, 1) as server:
                kib = held(server)
            print(
                "%-11s%26.2f%22.2f%17.0f%28.1f%26s"
                % (kind, idle_worker, idle_database, kib, seconds, "%.0f, %.0f" % (started, peak)),
                flush=True,
            )


def idle(database, worker, seconds):
    """CPU seconds a minute of the one worker, and of the database server beside it."""

    def spent():
        return cpu_seconds(worker), database.cpu_seconds()

    time.sleep(1)  # what belongs to the start is over
    before, begun = spent(), time.monotonic()
    time.sleep(seconds)
    minutes = (time.monotonic() - begun) / 60
    return [(now - then) / minutes for now, then in zip(spent(), before)]


def held(server):
    """KiB of the worker's memory for each of 1,000 held polls."""
    [worker] = server.workers()
    before = resident_mib(worker)
    with Child("client", server.port, HELD) as client:
        client.ask(0)
        until(server.has_read_all, SETTLE_SECONDS, "every poll is held")
        return 1024 * (resident_mib(worker) - before) / HELD


def bulk(database, server, rows):
    """Seconds from when the commit of *rows* rows returned until a client has them all, 500 an answer."""
    with Child("client", server.port, 1) as client:
        client.ask(0)
        with Child("publisher", database.url, "legacy_poll_outbox", 0) as publisher:
            [[_, _, returned]] = publisher.ask({"rows": rows})
        client.ask(rows)
        [seen] = client.ask(None)
    check_order([number for number, _ in seen], list(range(rows)))
    return seen[-1][1] - returned
