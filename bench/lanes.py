"""Both lanes beside each other: what a delivery, a whole cycle and a held poll cost one worker on SQLite.

A cycle is the delivery of one event to all N and the N polls that follow. The client waits with these until all have
the answer, so that the two can be told apart. Taken in turns, medians of the repeats.
"""

from __future__ import annotations

from bench.stage import Child, Gunicorn, check_order, exact_cpu_seconds, median, place, quantile, resident_mib
from tests.waiting import until

LANES = {"standard": {"PARK": 0}, "parked": {}}
HELD = (1, 100, 1000)
SETTLE_SECONDS = 120
#: The first polls of a connection go through the application in both lanes.
WARM_UP = 3
# Nothing ends during a run but by its event, and the standard lane must not lose connections to the keep-alive time.
SETTINGS = {"HOLD_SECONDS": 600, "MAX_HELD": 20000, "REAUTHORIZE_SECONDS": 3600}
OPTIONS = ["--keep-alive", "120"]
HEADING = "%7s %-9s%18s%15s%17s%22s%22s"


def run(options):
    print(
        HEADING
        % (
            ("held", "lane", "µs a delivery", "µs a cycle", "KiB a held poll")
            + ("ms to the last: p50", "worst")
        )
    )
    with place("sqlite") as database:
        for held in options.held or HELD:
            found = {lane: [] for lane in LANES}
            for _ in range(options.repeats):
                for lane, settings in LANES.items():
                    found[lane].append(measured(database, held, settings, 20 if held <= 1000 else 6))
            for lane, rows in found.items():
                columns = [median(column) for column in zip(*rows)]
                print(
                    "%7d %-9s%18.1f%15.1f%17.2f%22.0f%22.0f" % (held, lane, *columns),
                    flush=True,
                )


def measured(database, held, settings, events):
    """Microseconds of the worker's CPU for a delivery and for a cycle, KiB of a held poll, milliseconds to the last."""
    with Gunicorn(database, 1, settings={**SETTINGS, **settings}, options=OPTIONS) as server:
        [worker] = server.workers()
        before = resident_mib(worker)
        with Child("client", server.port, held) as client:
            client.ask(0)
            with Child("publisher", database.url, "legacy_poll_outbox", 0) as publisher:

                def cycle(number):
                    began = exact_cpu_seconds(worker)
                    [[_, _, committed]] = publisher.ask({"rows": 1})
                    client.ask(number + 1)
                    delivered = exact_cpu_seconds(worker)
                    client.ask(True)
                    until(server.has_read_all, SETTLE_SECONDS, "every poll is read")
                    client.ask(False)
                    return delivered - began, exact_cpu_seconds(worker) - began, committed

                client.ask(False)
                client.ask(True)
                until(server.has_read_all, SETTLE_SECONDS, "every poll is held")
                client.ask(False)
                for number in range(WARM_UP):
                    cycle(number)
                kib = 1024 * (resident_mib(worker) - before) / held
                spent = [cycle(number) for number in range(WARM_UP, WARM_UP + events)]
            seen = client.ask(None)
    for each in seen:
        check_order([number for number, _ in each], list(range(WARM_UP + events)))
    last = [
        max(each[WARM_UP + n][1] for each in seen) - committed for n, (_, _, committed) in enumerate(spent)
    ]
    return (
        1e6 * median([delivery for delivery, _, _ in spent]) / held,
        1e6 * median([whole for _, whole, _ in spent]) / held,
        kib,
        1e3 * quantile(last, 0.5),
        1e3 * max(last),
    )
