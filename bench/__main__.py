"""``python -m bench [latency] [throughput] [costs] [drain] [lanes] [peers] [many]``: prints tables.

Ends with 1 if an event was lost, came twice or out of order.
"""

from __future__ import annotations

import argparse
import importlib
import os
import resource
import signal
import sys

MEASUREMENTS = ("latency", "throughput", "costs", "drain", "lanes", "peers", "many")
CONTENDERS = ("nchan", "parked", "standard", "view", "socketio", "golongpoll")
FRONTS = ("none", "nginx", "haproxy")
DATABASES = ("sqlite", "postgresql", "mariadb")


def main():
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measures legacy_poll on database servers of its own. All of it takes eighty minutes.",
        epilog='Example: make bench ARGS="latency --databases postgresql --held 1 100 --quick"',
    )
    parser.add_argument(
        "what", nargs="*", metavar="what", help="of %s; default all" % ", ".join(MEASUREMENTS)
    )
    parser.add_argument("--databases", nargs="+", choices=DATABASES, default=DATABASES)
    parser.add_argument(
        "--held", nargs="+", type=int, help="polls held at once; default 1 100 1000, for peers 100 1000 10000"
    )
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2], help="for latency and peers")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each; the table has their medians")
    parser.add_argument("--events", type=int, default=60, help="in a latency run; fewer at over 200 held")
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=CONTENDERS,
        default=CONTENDERS,
        metavar="NAME",
        help="for peers, of %s; default all" % ", ".join(CONTENDERS),
    )
    parser.add_argument(
        "--fronts", nargs="+", choices=FRONTS, default=FRONTS, help="proxies before ours, for peers"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of a throughput run")
    parser.add_argument("--quick", action="store_true", help="one short run of each: does it work at all?")
    options = parser.parse_args()
    unknown = sorted(set(options.what) - set(MEASUREMENTS))
    if unknown:
        parser.error("%s: one of %s is needed" % (unknown[0], ", ".join(MEASUREMENTS)))
    if options.quick:
        options.repeats, options.events, options.seconds = 1, 20, 2.0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers and children end with us
    # A held poll is a descriptor in the worker, and one in the client.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for name in options.what or MEASUREMENTS:
        print("\n%s (%d CPUs, load average %.1f)" % (name, os.cpu_count(), os.getloadavg()[0]))
        importlib.import_module("bench." + name).run(options)


if __name__ == "__main__":
    main()
