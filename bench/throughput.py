"""Events a second through the sequencer, beside bare INSERTs, as a ratio in the same run.

Two publishers at full speed, in turns into (a) a table of the outbox's shape that has nothing to do with us and (b)
the outbox, with one worker's publisher loop that sequences, reads and delivers. ABAB, so that what else the machine
does falls on both. (b) counts what was delivered to the hub, within the time that the publishers ran; "added" is the
time from when a commit returned until its events were in the hub, under this load.
"""

from __future__ import annotations

import itertools

from bench.stage import Child, check_order, cpu_seconds, median, place, quantile
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
HEADING = "%-11s%6s%10s%11s%7s%14s%20s%22s" % (
    ("database", "rows", "bare/s", "through/s", "ratio", "(least, most)")
    + ("added p50 p99 (ms)", "CPU us/row bare, ours")
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
                bare, through, p50, p99, bare_cpu, cpu = [median(each) for each in zip(*runs)]
                ratios = [each[1] / each[0] for each in runs]
                print(
                    "%-11s%6d%10.0f%11.0f%7.2f%14s"
                    % (kind, rows, bare, through, median(ratios), spread(ratios))
                    + "%12.1f%8.1f%14.0f%8.0f" % (p50, p99, bare_cpu, cpu),
                    flush=True,
                )


def spread(ratios):
    return "(%.2f, %.2f)" % (min(ratios), max(ratios))


def pair(database, rows, seconds):
    """One A and one B.

    Returns:
        Bare rows a second, delivered rows a second, added p50 and p99 in milliseconds, and the CPU time that a row
        costs in microseconds, bare and ours: of publishers, server and publisher loop together.
    """
    bare = Run(database, BARE, rows, seconds)
    with Child("reader", database.url) as reader:
        reader.ask(None)
        spent = cpu_seconds(reader.pid)
        ours = Run(database, "legacy_poll_outbox", rows, seconds)
        sent = {first + each for first, _, _ in ours.commits for each in range(rows)}
        delivered = []  # [when, number], of this run

        def all_there():
            batches = reader.ask(None)
            delivered.extend([when, n] for when, numbers in batches for n in numbers if n in sent)
            return len(delivered) >= len(sent)

        until(all_there, DRAIN_SECONDS, "all is delivered")
        spent = cpu_seconds(reader.pid) - spent
    # A publisher's numbers rise, so a stable sort by publisher leaves its events in the order they came in.
    check_order(sorted((n for _, n in delivered), key=lambda n: n // ROOM), sorted(sent))
    when = {n: moment for moment, n in delivered}
    added = [1000 * (when[first] - returned) for first, _, returned in ours.commits]
    through = sum(1 for moment, _ in delivered if moment <= ours.end) / ours.elapsed
    return (
        bare.inserted / bare.elapsed,
        through,
        quantile(added, 0.5),
        quantile(added, 0.99),
        1e6 * bare.cpu_seconds / bare.inserted,
        1e6 * (ours.cpu_seconds + spent) / ours.inserted,
    )


class Run:
    """The publishers at full speed into *table*, for a while.

    Attributes:
        commits: Every transaction's [first number, before its commit, after it].
        inserted: Rows.
        end: When the last commit returned.
        elapsed: Seconds from the first commit to the last.
        cpu_seconds: Of the publishers and the database server.
    """

    def __init__(self, database, table, rows, seconds):
        children = [Child("publisher", database.url, table, next(FIRST)) for _ in range(PUBLISHERS)]
        try:
            for child in children:
                child.ask({"rows": 0})  # connected, and as ready as it gets

            def spent():
                return database.cpu_seconds() + sum(cpu_seconds(child.pid) for child in children)

            before = spent()
            for child in children:
                child.say({"rows": rows, "seconds": seconds})
            self.commits = [each for child in children for each in child.hear()]
            self.cpu_seconds = spent() - before
        finally:
            for child in children:
                child.__exit__()
        self.inserted = rows * len(self.commits)
        self.end = max(each[2] for each in self.commits)
        self.elapsed = self.end - min(each[1] for each in self.commits)
