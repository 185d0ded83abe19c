"""Somebody else's program that INSERTs: the driver's own cursor and SQL text, nothing of ours.

Commands, one JSON value a line: {"rows": r} is one transaction of r rows; {"rows": r, "seconds": s} is as many
transactions as s seconds allow. The answer is a list of [first number, before its commit, when the commit returned].
Numbers go on from FIRST.
"""

from __future__ import annotations

import json
import sys
import time

from sqlalchemy import create_engine

from bench.client import CHANNEL

_TEXT = "x" * 80


class Publisher:
    """Inserts into one table over one connection."""

    def __init__(self, url, table, first):
        engine = create_engine(url)
        self._raw = engine.raw_connection()
        mark = "%s"
        self._begin = None
        if engine.dialect.name == "sqlite":
            mark, self._begin = "?", "BEGIN IMMEDIATE"
            self._raw.driver_connection.isolation_level = None
            self._raw.cursor().execute("PRAGMA busy_timeout = 60000")
        self._cursor = self._raw.cursor()
        self._sql = "INSERT INTO %s (channel, data) VALUES (%s, %s)" % (table, mark, mark)
        self._number = first

    def transaction(self, rows):
        first = self._number
        if self._begin:
            self._cursor.execute(self._begin)
        for _ in range(rows):
            self._cursor.execute(self._sql, (CHANNEL, '{"n": %d, "text": "%s"}' % (self._number, _TEXT)))
            self._number += 1
        before = time.monotonic()
        self._raw.commit()
        return first, before, time.monotonic()

    def many(self, rows):
        """One transaction of many rows, sent the driver's fastest way."""
        first = self._number
        if self._begin:
            self._cursor.execute(self._begin)
        data = ['{"n": %d, "text": "%s"}' % (first + each, _TEXT) for each in range(rows)]
        self._cursor.executemany(self._sql, [(CHANNEL, each) for each in data])
        self._number += rows
        before = time.monotonic()
        self._raw.commit()
        return first, before, time.monotonic()


def main(url, table, first):
    publisher = Publisher(url, table, first)
    for line in sys.stdin:
        command = json.loads(line)
        rows = command["rows"]
        end = time.monotonic() + command.get("seconds", 0)
        done = [publisher.many(rows) if rows > 100 else publisher.transaction(rows)]
        while time.monotonic() < end:
            done.append(publisher.transaction(rows))
        print(json.dumps(done), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
