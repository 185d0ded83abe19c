"""What a log loses: the run of the history tests, without faults, over our log and over a home-made one.

    python -m tests.history
    python -m tests.history --database postgresql --log home-made --events 10000 --open-seconds 2

Starts the database servers itself. An option may be given several times; the defaults are all that there are. Prints
a line for each run as it ends: how many of 10,000 committed events never came to a reader of all channels that asked
all the time, and how long the others took from the return of their commit.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import tempfile

from tests.history.run import Outcome, run
from tests.history.workload import DELAY_SECONDS, HOME_MADE, LEGACY_POLL, Workload
from tests.servers import MariaDBServer, MySQLServer, PostgresServer

SERVERS = {"postgresql": PostgresServer, "mariadb": MariaDBServer, "mysql": MySQLServer}


def cells(workload: Workload, database: str, outcome: Outcome) -> dict[str, str]:
    """A line of the table, by column."""
    eager = outcome.of_eager
    return {
        "log": workload.log,
        "database": database,
        "commits wait up to": "{:g} ms".format(1000 * workload.open_seconds),
        "open, p50": "{:.0f} ms".format(outcome.open_ms(0.5)),
        "open, p99": "{:.0f} ms".format(outcome.open_ms(0.99)),
        "commits/s": "{:.0f}".format(outcome.commits / outcome.seconds),
        "events": str(eager.events),
        "lost of 10,000": "{:.0f}".format(eager.lost_per_10_000),
        "commit to answer, p50": "{:.0f} ms".format(1000 * eager.latency.p50_seconds),
        "p99": "{:.0f} ms".format(1000 * eager.latency.p99_seconds),
    }


def show(row: dict[str, str], *, first: bool) -> None:
    if first:
        print("| {} |".format(" | ".join(row)))
        print("| {} |".format(" | ".join("---" if name in ("log", "database") else "---:" for name in row)))
    print("| {} |".format(" | ".join(row.values())), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.history", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--database", action="append", choices=["sqlite", *SERVERS])
    parser.add_argument("--log", action="append", choices=[HOME_MADE, LEGACY_POLL])
    parser.add_argument("--open-seconds", action="append", type=float)
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", action="store_true", help="stop and kill processes too; legacy-poll only")
    parser.add_argument("--verbose", action="store_true", help="print each run's whole report")
    options = parser.parse_args()
    databases = options.database or ["postgresql", "mariadb"]
    delays = options.open_seconds or [DELAY_SECONDS, 2.0]
    logs = options.log or [HOME_MADE, LEGACY_POLL]
    # On SQLite writers come one after the other: there even the home-made log loses nothing.
    runs = [each for each in itertools.product(databases, logs, delays) if each[:2] != ("sqlite", HOME_MADE)]
    broken = False
    with contextlib.ExitStack() as opened:
        servers = {name: SERVERS[name]() for name in dict.fromkeys(databases) if name in SERVERS}
        for server in servers.values():
            opened.callback(server.destroy)
        for number, (database, log, open_seconds) in enumerate(runs):
            directory = opened.enter_context(tempfile.TemporaryDirectory(prefix="legacy_poll-history-"))
            url = "sqlite:///{}/log.db".format(directory)
            if database in servers:
                url = servers[database].create_database()
            workload = Workload(log, url, directory, options.events, open_seconds, seed=options.seed)
            outcome = run(workload, faults=options.faults and log == LEGACY_POLL)
            show(cells(workload, database, outcome), first=number == 0)
            if options.verbose:
                print(outcome, flush=True)
            broken = broken or (log == LEGACY_POLL and not outcome.report.held)
    return int(broken)


if __name__ == "__main__":
    raise SystemExit(main())
