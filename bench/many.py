"""What must not depend on how many there are: channels of others, channels of one poll, and polls with nothing to do.

One worker on SQLite. The CPU time for an event is that of its delivery and of the polls that follow.
"""

from __future__ import annotations

import contextlib
import os
import time

from bench.client import CHANNEL
from bench.contenders import LANES, OTHER_DESCRIPTORS, ours
from bench.cpus import listed, on, processors
from bench.load import Load, Processes, compiled
from bench.peers import WARM_UP, deliver
from bench.stage import descriptor_limit, median

EVENTS = 20
#: Between two events: our publisher is idle again.
SETTLE_SECONDS = 0.15
IDLE_SECONDS = 5.0
ONE = "channel=" + CHANNEL
#: '#' becomes the connection's number. Each list of 100 has one channel that all have, the last.
CHANNELS = {
    "1": ONE,
    "100, the same for all": "channels=" + ",".join(["same-%d" % each for each in range(99)] + [CHANNEL]),
    "100, 99 of them its own": "channels=" + ",".join(["own-%d-#" % each for each in range(99)] + [CHANNEL]),
}


def run(options):
    clients, servers = processors()
    print("the load on CPU %s, the worker on %s" % (listed(clients), listed(servers)))
    os.sched_setaffinity(0, clients)
    repeats = range(options.repeats)
    most = descriptor_limit() - OTHER_DESCRIPTORS
    with compiled() as program:
        print("\nparked lane, each poll on a channel of its own, an event on one of them")
        print("%7s%16s" % ("held", "µs an event"))
        for held in (100, min(10000, most)):
            row = [alone(program, servers, held) for _ in repeats]
            print("%7d%16.0f" % (held, median(row)), flush=True)

        print("\nparked lane, 1,000 polls, an event for all")
        print("%-26s%14s%14s" % ("channels of a poll", "µs a cycle", "KiB a poll"))
        found = {name: [] for name in CHANNELS}
        for _ in repeats:
            for name, query in CHANNELS.items():
                found[name].append(together(program, servers, query))
        for name, rows in found.items():
            print("%-26s%14.1f%14.2f" % (name, *map(median, zip(*rows))), flush=True)

        print("\nnothing happens\n%-10s%8s%18s" % ("lane", "held", "CPU ms a second"))
        for lane in LANES:
            for held in (0, 1000, most):
                row = [idle(program, servers, lane, held) for _ in repeats]
                print("%-10s%8d%18.1f" % (lane, held, median(row)), flush=True)


@contextlib.contextmanager
def polls(program, servers, lane, held, query=ONE):
    """A Stage of ours, its Processes, the KiB that they had, and the Load; None instead of no polls."""
    with contextlib.ExitStack() as stack:
        with on(servers):
            stage = stack.enter_context(ours(lane, query=query))
        processes = Processes(stage.roots)
        before, load = processes.kib(), None
        if held:
            load = Load(program, stage.dialect, held, stage.target, stage.ports, stage.cursor)
            stack.enter_context(load)
        yield stage, processes, before, load


def alone(program, servers, held):
    """Microseconds of CPU for an event that one of *held* polls waits for."""
    with polls(program, servers, "parked", held, "channel=own-#") as (stage, processes, _, load):
        load.ask("at-once")
        load.hold()
        spent = []
        for number in range(WARM_UP + EVENTS):
            time.sleep(SETTLE_SECONDS)
            began = processes.quiet_cpu_seconds()
            stage.publish(number, "own-7")
            load.all_have(number, 1)
            stage.published()
            spent.append(processes.quiet_cpu_seconds() - began)
        load.hold()
        check(load, WARM_UP + EVENTS, (held - 1) * (WARM_UP + EVENTS))
        return 1e6 * median(spent[WARM_UP:])


def together(program, servers, query):
    """Microseconds of CPU for one poll's cycle, and KiB of one."""
    with polls(program, servers, "parked", 1000, query) as (stage, processes, before, load):
        load.ask("wait")
        load.hold()
        spent = []
        for number in range(WARM_UP + EVENTS):
            began = processes.quiet_cpu_seconds()
            deliver(stage, load, number)
            load.hold()
            spent.append(processes.quiet_cpu_seconds() - began)
        check(load, WARM_UP + EVENTS, 0)
        return 1e6 * median(spent[WARM_UP:]) / load.count, (processes.kib() - before) / load.count


def check(load, messages, others):
    """Fails if more of *messages* were missed than the *others* that were not for a poll, or if any was wrong."""
    counts = load.counts(messages)
    if counts != [others, 0, 0]:
        raise SystemExit("missed, twice, out of order: %s, and not %d, 0, 0" % (counts, others))


def idle(program, servers, lane, held):
    """Milliseconds of CPU a second while *held* polls wait."""
    with polls(program, servers, lane, held) as (_, processes, _, load):
        if load:
            load.hold()
            processes.quiet()
        time.sleep(1)  # what belongs to the start is over
        return processes.milliseconds_a_second(IDLE_SECONDS)
