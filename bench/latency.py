"""From a commit to the client: how long until those who hold a poll have the event.

One event at a time into a quiet log, at a moment that has nothing to do with the workers' interval, and only when
every poll is held again. Three kinds of publisher: another program's INSERT, of which no worker gets a hint;
poll.publish() in a script, whose commit sends one to the workers of the host (both counted from when the commit
returned); and POST /publish, which does so too (counted from when the request was sent, so the request and its commit
are in it).
"""

from __future__ import annotations

import http.client
import json
import random
import time

from bench.client import CHANNEL
from bench.stage import TOKEN, Child, Gunicorn, check_order, median, place, quantile
from tests.waiting import until

HELD = (1, 100, 1000)
SETTLE_SECONDS = 120
#: After an event a publisher looks more often for a while (5, 10, 20, 40 ms); after this it is idle again.
QUIET_SECONDS = 0.12
INTERVAL_SECONDS = 0.05
HEADING = "%-11s%8s%10s%6s  %-16s%-16s%-22s%s" % (
    ("database", "workers", "publisher", "held")
    + ("first p50 p99", "last p50 p99", "each p50 p99 max", "(ms; medians of the runs)")
)


class Inserts:
    """Another program, which knows the table and nothing else."""

    name = "INSERT"

    def __init__(self, database, port):
        self._child = Child("publisher", database.url, "legacy_poll_outbox", 0)

    def publish(self, number):
        return self._child.ask({"rows": 1})[0][2]

    def close(self):
        self._child.__exit__()


class Commits:
    """A script with poll.publish() and a Session."""

    name = "commit"

    def __init__(self, database, port):
        self._child = Child("committer", database.url)
        self._child.hear()

    def publish(self, number):
        return self._child.ask(number)[1]

    def close(self):
        self._child.__exit__()


class Posts:
    """A client of POST /publish."""

    name = "POST"

    def __init__(self, database, port):
        self._connection = http.client.HTTPConnection("127.0.0.1", port)

    def publish(self, number):
        body = json.dumps({"channel": CHANNEL, "data": {"n": number, "text": "x" * 80}})
        headers = {"Content-Type": "application/json", "Authorization": "Bearer " + TOKEN}
        # A connection of its own, made before the clock starts: the server closes those that were idle for long.
        self._connection.close()
        self._connection.connect()
        sent = time.monotonic()
        self._connection.request("POST", "/publish", body, headers)
        answer = self._connection.getresponse()
        answer.read()
        if answer.status != 201:
            raise AssertionError("POST /publish answered %d" % answer.status)
        return sent

    def close(self):
        self._connection.close()


def run(options):
    print(HEADING)
    for kind in options.databases:
        with place(kind) as database:
            for workers in options.workers if database else ():
                with Gunicorn(database, workers) as server:
                    for held in options.held or HELD:
                        for publisher in (Inserts, Commits, Posts):
                            runs = [
                                measure(database, server, publisher, held, options)
                                for _ in range(options.repeats)
                            ]
                            figures = ["%6.1f" % median(each) for each in zip(*runs)]
                            print(
                                "%-11s%8d%10s%6d  " % (kind, workers, publisher.name, held)
                                + "%s %s   %s %s   %s %s %s" % tuple(figures),
                                flush=True,
                            )


def measure(database, server, publisher_class, held, options):
    """One run: first p50, p99; last p50, p99; each p50, p99, max; milliseconds."""
    count = max(10, min(options.events, options.events * 200 // held))
    publisher = publisher_class(database, server.port)
    with Child("client", server.port, held) as client:
        try:
            client.ask(0)
            committed = []
            for number in range(count):
                until(server.has_read_all, SETTLE_SECONDS, "every poll is held")
                time.sleep(QUIET_SECONDS + INTERVAL_SECONDS * random.random())
                committed.append(publisher.publish(number))
                client.ask(number + 1)
            polls = client.ask(None)
        finally:
            publisher.close()
    for seen in polls:
        check_order([number for number, _ in seen], list(range(count)))
    waits = [[1000 * (seen[n][1] - committed[n]) for seen in polls] for n in range(count)]
    first, last = [min(each) for each in waits], [max(each) for each in waits]
    every = [wait for each in waits for wait in each]
    return (
        quantile(first, 0.5),
        quantile(first, 0.99),
        quantile(last, 0.5),
        quantile(last, 0.99),
        quantile(every, 0.5),
        quantile(every, 0.99),
        max(every),
    )
