"""Ours beside what others use: what a delivery, a whole cycle and a held poll cost, and how soon all N have an event.

A *cycle* is the delivery of one event to all N and the N polls that follow; the clients wait with these until all have
the answer, so that the two can be told apart. For the times to the client they poll again at once, as clients do.
CPU time is that of all threads of the server's processes, and of the proxy's in front; memory is their PSS above what
it was before the first poll, after the warm-up.

All contenders take turns inside each repeat. A figure is the median of the repeats, and behind it, in brackets, stands
the median of the ratios to nchan (with as many workers, nothing in front) in the same repeat.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import time

from bench import contenders
from bench.cpus import listed, on, processors
from bench.load import Load, LoadFailed, Processes, compiled
from bench.stage import descriptor_limit, median

HELD = (100, 1000, 10000)
#: The first polls of a connection go through the application in both lanes.
WARM_UP = 3
SLOW_WARM_UP = 1
EVENTS = 10
#: No more events after this, once there were some.
SECONDS = 4.0
LEAST_EVENTS = 3
IDLE_SECONDS = 2.0
#: With more polls than this, those that take seconds for a cycle run once only, and not behind proxies.
MANY = 2000
SLOW = ("standard", "view", "socketio")
#: After an event our publisher looks more often for a while; after this it is idle again.
SETTLE_SECONDS = 0.12

COLUMNS = (
    # heading, decimals, ratio to nchan
    ("µs a delivery", 1, True),
    ("µs a cycle", 1, True),
    ("KiB a poll", 2, True),
    ("ms p50", 1, False),
    ("p99", 1, True),
    ("max", 1, False),
    ("s all held", 3, True),
    ("µs CPU each", 0, True),
    ("s again", 3, True),
    ("idle ms/s", 1, False),
    ("missed", 0, False),
    ("twice", 0, False),
    ("order", 0, False),
)
WRONG = 3  # of the last columns


def run(options):
    clients, servers = processors()
    print(
        "the load on CPU %s, the servers and their proxies on %s; at most %d descriptors a process"
        % (listed(clients), listed(servers), descriptor_limit())
    )
    print("ratios to nchan in brackets; %d repeats" % options.repeats)
    os.sched_setaffinity(0, clients)
    wrong = 0
    with compiled() as program:
        for workers in options.workers:
            for held in options.held or HELD:
                wrong += table(options, program, servers, workers, held)
    if wrong:
        raise SystemExit("%d answers were missed, came twice or out of order, or runs failed" % wrong)


def table(options, program, servers, workers, held):
    """Prints one; returns how many answers (or whole runs) were not as they should be."""
    rows = [
        (name, front)
        for name in options.contenders
        for front in (options.fronts if name in contenders.LANES else ["none"])
        if workers == 1 or (front == "none" and name in ("nchan",) + contenders.LANES)
        if held <= MANY or front == "none" or name not in SLOW
    ]
    found = {row: [] for row in rows}
    reasons, failed = {}, 0
    for repeat in range(options.repeats):
        for row in rows:
            if row not in reasons and (repeat == 0 or held <= MANY or row[0] not in SLOW):
                try:
                    found[row].append(measured(program, servers, row, workers, held))
                except (contenders.Unavailable, LoadFailed) as reason:
                    failed += isinstance(reason, LoadFailed)
                    reasons[row] = str(reason)
                    found[row] = []
    print("\n%d held, %d worker%s" % (held, workers, "" if workers == 1 else "s"))
    print("%-24s" % "" + "".join("%*s" % (width(column), column[0]) for column in COLUMNS))
    nchan = found.get(("nchan", "none"))
    for row in rows:
        print("%-24s%s" % (label(row, held), reasons.get(row) or line(found[row], nchan)), flush=True)
    return failed + sum(sum(each[-WRONG:]) for runs in found.values() for each in runs)


def label(row, held):
    name, front = row
    text = name if front == "none" else "%s + %s" % (name, front)
    return text if room(front) >= held else "%s, %d" % (text, room(front))


def room(front):
    """How many polls the descriptors are enough for: a proxy has two for each, everybody else one."""
    return (descriptor_limit() - contenders.OTHER_DESCRIPTORS) // (1 if front == "none" else 2)


def width(column):
    return 17 if column[2] else 11


def line(runs, nchan):
    cells = []
    for number, column in enumerate(COLUMNS):
        _, decimals, has_ratio = column
        text = "%.*f" % (decimals, median([each[number] for each in runs]))
        if has_ratio and nchan and nchan is not runs:
            ratios = [ours[number] / theirs[number] for ours, theirs in zip(runs, nchan) if theirs[number]]
            text += " (%.2f)" % median(ratios) if ratios else ""
        cells.append("%*s" % (width(column), text))
    return "".join(cells)


def measured(program, servers, row, workers, held):
    """One run of one contender: a value for each of COLUMNS."""
    name, front = row
    held = min(held, room(front))
    with contextlib.ExitStack() as stack:
        with on(servers):
            stage = stack.enter_context(contenders.contender(name, front, workers, held))
        processes = Processes(stage.roots)
        before = processes.kib()
        load = stack.enter_context(
            Load(program, stage.dialect, held, stage.target, stage.ports, stage.cursor)
        )
        return figures(stage, processes, before, load, SLOW_WARM_UP if name in SLOW else WARM_UP)


def figures(stage, processes, before, load, warm_up):
    load.ask("wait")
    began = processes.cpu_seconds()
    first, used = hold(processes, load)
    begin = 1e6 * (used - began) / load.count
    numbers = itertools.count()
    for number in itertools.islice(numbers, warm_up):
        deliver(stage, load, number)
        load.hold()
    processes.quiet_cpu_seconds()
    kib = (processes.kib() - before) / load.count
    deliveries, cycles, agains = [], [], []
    for number in some(numbers):
        began = processes.quiet_cpu_seconds()
        deliver(stage, load, number)
        deliveries.append(processes.quiet_cpu_seconds() - began)
        seconds, used = hold(processes, load)
        agains.append(seconds)
        cycles.append(used - began)
    time.sleep(SETTLE_SECONDS)
    idle = processes.milliseconds_a_second(IDLE_SECONDS)
    load.ask("at-once")
    waits = []
    for number in some(numbers):
        load.hold()
        time.sleep(SETTLE_SECONDS * (1 + random.random()))
        waits.append(load.milliseconds(number, deliver(stage, load, number)))
    load.hold()
    _, p50, p99, most = zip(*waits)
    return (
        [1e6 * median(deliveries) / load.count, 1e6 * median(cycles) / load.count, kib]
        + [median(p50), median(p99), max(most), first, begin, median(agains), idle]
        + load.counts(next(numbers))
    )


def hold(processes, load):
    """Seconds until all polls are held, and the CPU time used then.

    A server that has read a request need not have held it yet: that is when it has nothing more to do.
    """
    begun = time.monotonic()
    seconds = load.hold()
    used, busy_until = processes.quiet()
    return max(seconds, busy_until - begun) if busy_until else seconds, used


def some(numbers):
    """The next of *numbers*, as many as there is time for."""
    begun = time.monotonic()
    for each in range(EVENTS):
        if each < LEAST_EVENTS or time.monotonic() - begun < SECONDS:
            yield next(numbers)


def deliver(stage, load, number):
    """Publishes, and returns when that began once all have it."""
    stage.publish(number)
    load.all_have(number)
    return stage.published()
