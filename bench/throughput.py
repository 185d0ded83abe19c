"""Events a second through the sequencer, beside bare INSERTs, as a ratio in the same run.

Two publishers at full speed, in turns into (a) a table of the outbox's shape that has nothing to do with us and (b)
the outbox, with one worker's publisher loop that sequences, reads and delivers. ABAB, so that what else the machine
does falls on both. (b) counts what was delivered to the hub, within the time that the publishers ran; "added" is the
time from when a commit returned until its events were in the hub, under this load.
"""

from __future__ import annotations

import itertools

from bench.stage import Child, check_order, median, place, quantile
from tests.waiting import until

PUBLISHERS = 2
BARE = "bench_bare"
DRAIN_SECONDS = 120
#: Every publisher counts from a number of its own: the log of one run is still there in the next.
ROOM = 10_000_000
FIRST = itertools.count(0, ROOM)
SHAPE = {
    "sqlite": "CREATE TABLE {} (id INTEGER PRIMARY KEY AUTOINCREMENT, event_id TEXT, channel TEXT, type TEXT,"
    " data TEXT, created_at TEXT DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')))",
    "postgresql": "CREATE TABLE {} (LIKE legacy_poll_outbox INCLUDING ALL)",
    "mariadb": "CREATE TABLE {} LIKE legacy_poll_outbox",
}
HEADING = "%-11s%6s%12s%12s%8s%16s%14s%14s" % (
    ("database", "rows", "bare/s", "through/s", "ratio", "(lowest, most)", "added p50 ms", "added p99 ms")
)


def run(options):
    print(HEADING)
    for kind in options.databases:
        with place(kind) as database:
            if database is None:
                continue
            database.execute(SHAPE[kind].format(BARE))
            for rows in (1, 10):
                runs = [pair(database, rows, options.seconds) for _ in range(options.repeats)]
                bare, through, p50, p99 = [median(each) for each in zip(*runs)]
                ratios = [each[1] / each[0] for each in runs]
                print(
                    "%-11s%6d%12.0f%12.0f%8.2f%16s%14.1f%14.1f"
                    % (kind, rows, bare, through, median(ratios), spread(ratios), p50, p99),
                    flush=True,
                )


def spread(ratios):
    return "(%.2f, %.2f)" % (min(ratios), max(ratios))


def pair(database, rows, seconds):
    """One A and one B: bare rows a second, delivered rows a second, added p50 and p99 in milliseconds."""
    _, commits, elapsed = publish(database, BARE, rows, seconds)
    bare = len(commits) * rows / elapsed
    with Child("reader", database.url) as reader:
        reader.ask(None)
        end, commits, elapsed = publish(database, "legacy_poll_outbox", rows, seconds)
        sent = {first + each for first, _, _ in commits for each in range(rows)}
        delivered = []  # [when, number], of this run

        def all_there():
            batches = reader.ask(None)
            delivered.extend([when, n] for when, numbers in batches for n in numbers if n in sent)
            return len(delivered) >= len(sent)

        until(all_there, DRAIN_SECONDS, "all is delivered")
    # A publisher's numbers rise, so a stable sort by publisher leaves its events in the order they came in.
    check_order(sorted((n for _, n in delivered), key=lambda n: n // ROOM), sorted(sent))
    when = {n: moment for moment, n in delivered}
    added = [1000 * (when[first] - returned) for first, _, returned in commits]
    through = sum(1 for moment, _ in delivered if moment <= end) / elapsed
    return bare, through, quantile(added, 0.5), quantile(added, 0.99)


def publish(database, table, rows, seconds):
    """When the last transaction ended; all as [first number, before its commit, after it]; how long they took."""
    children = [Child("publisher", database.url, table, next(FIRST)) for _ in range(PUBLISHERS)]
    try:
        for child in children:
            child.ask({"rows": 0})
        for child in children:
            child.say({"rows": rows, "seconds": seconds})
        commits = [each for child in children for each in child.hear()]
    finally:
        for child in children:
            child.__exit__()
    begin, end = min(each[1] for each in commits), max(each[2] for each in commits)
    return end, commits, end - begin
