"""What a worker costs that has nothing to do, and what one that gets 100,000 events in one transaction."""

from __future__ import annotations

import time

from bench.stage import Child, Gunicorn, check_order, cpu_seconds, peak_mib, place

ROWS = 100_000
DELIVER_SECONDS = 300


def run(options):
    idle_seconds = 10 if options.quick else 60
    rows = ROWS // 10 if options.quick else ROWS
    print(
        "%-11s%22s%22s%28s%24s"
        % (
            ("database", "idle worker CPU s/min", "its database CPU s/min")
            + ("%d rows, 1 commit: s" % rows, "worker peak MiB (idle)")
        )
    )
    for kind in options.databases:
        with place(kind) as database:
            if database is None:
                continue
            with Gunicorn(database, 1) as server:
                worker, theirs = idle(database, server, idle_seconds)
                before = peak_mib(server.workers()[0])
                seconds = bulk(database, server, rows)
                after = peak_mib(server.workers()[0])
            print(
                "%-11s%22.2f%22.2f%28.1f%24s"
                % (kind, worker, theirs, seconds, "%.0f (%.0f)" % (after, before))
            )


def idle(database, server, seconds):
    """CPU seconds a minute of the one worker, and of the database server beside it."""

    def spent():
        return cpu_seconds(server.workers()[0]), database.cpu_seconds()

    time.sleep(1)
    before, begun = spent(), time.monotonic()
    time.sleep(seconds)
    minutes = (time.monotonic() - begun) / 60
    return [(now - then) / minutes for now, then in zip(spent(), before)]


def bulk(database, server, rows):
    """Seconds from when the commit of *rows* rows returned until a client has them all, 500 an answer."""
    with Child("client", server.port, 1) as client, Child(
        "publisher", database.url, "legacy_poll_outbox", 0
    ) as publisher:
        client.ask(0)
        returned = publisher.ask({"rows": rows})[0][2]
        client.ask(rows)
        [seen] = client.ask(None)
    check_order([number for number, _ in seen], list(range(rows)))
    return seen[-1][1] - returned
