"""What the tests of the storage layer share: one process's share of it, and how to script what others do meanwhile."""

from __future__ import annotations

import contextlib
import json
import time

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, func, select, text
from sqlalchemy.pool import NullPool

from legacy_poll import schema
from legacy_poll.backlog import Backlog
from legacy_poll.config import Settings
from legacy_poll.database import Database
from legacy_poll.eventlog import EventLog, append
from legacy_poll.sequencer import Sequencer
from legacy_poll.tables import apart, event, log, metadata, outbox, set_aside
from tests.waiting import until

two_writers = pytest.mark.parametrize("database_url", ["postgresql", "mariadb", "mysql"], indirect=True)
one_writer = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
on_mysqls = pytest.mark.parametrize("database_url", ["mariadb", "mysql"], indirect=True)
#: Of PostgreSQL.
drivers = pytest.mark.parametrize(
    "driver",
    [
        pytest.param(
            "postgresql+psycopg",
            marks=pytest.mark.skipif(
                sqlalchemy.__version__.startswith("1."), reason="SQLAlchemy 1.4 does not know it"
            ),
        ),
        "postgresql+psycopg2",
    ],
)

SERIES = {
    "sqlite": "(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {0}) SELECT n FROM s) AS s",
    "postgresql": "(SELECT n FROM generate_series(1, {0}) AS n) AS s",
    # MariaDB's engine for sequences is not MySQL's.
    "mysql": "JSON_TABLE(CONCAT('[0', REPEAT(',0', {0} - 1), ']'), '$[*]' COLUMNS (n FOR ORDINALITY)) AS s",
}


def series(engine, count, channel="crowd"):
    """SQL that publishes the numbers from 1 to *count* in one transaction."""
    numbers = SERIES[engine.dialect.name].format(count)
    kind = "CHAR" if engine.dialect.name == "mysql" else "TEXT"
    return (
        "INSERT INTO legacy_poll_outbox (channel, data) SELECT '%s', CAST(n AS %s) FROM %s ORDER BY s.n"
        % (
            channel,
            kind,
            numbers,
        )
    )


ALL = 1_000_000


class Store:
    """One process's share of the storage layer, and the questions that tests ask of it."""

    def __init__(self, engine, *, mark_rows=2000, clock=time.monotonic, **settings):
        self.engine = engine
        self.settings = Settings(**settings)
        self.database = Database(engine, self.settings)
        self.dialect = self.database.dialect
        self.backlog = Backlog(self.dialect, mark_rows=mark_rows, clock=clock)
        self.log = EventLog(self.database, self.settings, backlog=self.backlog)
        self.sequencer = Sequencer(self.database, self.settings, backlog=self.backlog)

    def close(self):
        self.database.close()

    def move(self):
        """One look and one move, as a tick does them."""
        return self.sequencer.move(self.log.glance())

    def drain(self):
        """Moves until the outbox has nothing committed; returns what the moves did."""
        moves = []
        while self.waiting() and self.log.glance().waiting:
            moved = self.move()
            assert not moved.busy
            if not (moved.events or moved.set_aside or moved.duplicates):
                break
            moves.append(moved)
        return moves

    def publish(self, *data, channel="orders", **columns):
        """Each of *data* in a transaction of its own, in order; returns their ids."""
        ids = []
        for each in data:
            with self.engine.begin() as connection:
                ids.append(append(connection, channel, each, **columns))
        return ids

    def insert(self, *rows):
        """Outbox rows in one transaction, as another program would write them: no rule is checked here."""
        with self.engine.begin() as connection:
            for row in rows:
                connection.execute(outbox.insert().inline(), row)

    def events(self, cursor=None, channels=None, limit=ALL, max_bytes=1 << 40):
        return self.read(cursor, channels, limit, max_bytes).events

    def read(self, cursor=None, channels=None, limit=ALL, max_bytes=1 << 40, max_backlog=0):
        channels = None if channels is None else frozenset(channels)
        return self.log.read_after(
            cursor, channels=channels, limit=limit, max_bytes=max_bytes, max_backlog=max_backlog
        )

    def data(self, **options):
        """What has been delivered so far, decoded: [1, 2, 3]."""
        return [json.loads(each.data) for each in self.events(**options)]

    def waiting(self):
        """Committed rows in the outbox."""
        return self.count(outbox)

    def set_aside(self):
        """[(channel, data, reason)] of what has been set aside."""
        query = select(set_aside.c.channel, set_aside.c.data, set_aside.c.reason).order_by(set_aside.c.id)
        return self.database.read(lambda connection: [tuple(row) for row in connection.execute(query)])

    def count(self, table):
        return self.database.read(
            lambda connection: connection.execute(select(func.count()).select_from(table)).scalar()
        )

    def positions(self):
        """Every position in the event table, below `oldest` too."""
        query = select(event.c.position).order_by(event.c.position)
        return self.database.read(lambda connection: [row[0] for row in connection.execute(query)])

    def check(self):
        """What holds after whatever happened: positions end at the head and have no gap from `oldest` on."""
        query = select(log.c.head, log.c.oldest)
        rows = self.database.read(lambda connection: list(connection.execute(query)))
        assert len(rows) == 1
        head, oldest = rows[0]
        assert 1 <= oldest <= head + 1
        query = select(apart.c.position).order_by(apart.c.position)
        behind = self.database.read(lambda connection: [row[0] for row in connection.execute(query)])
        positions = self.positions() + behind
        assert [each for each in positions if each >= oldest] == list(range(oldest, head + 1))


def run(engine, sql, **parameters):
    """*sql* in a transaction of its own."""
    with engine.begin() as connection:
        return connection.execute(text(sql), parameters)


# What limits an idle session (MariaDB, MySQL) or an idle transaction; its number; and whether it is still there.
IDLE = {
    "postgresql": (
        "SET idle_in_transaction_session_timeout = '%ds'",
        "SELECT pg_backend_pid()",
        "SELECT count(*) FROM pg_stat_activity WHERE pid = %d",
    ),
    "mysql": (
        "SET SESSION wait_timeout = %d",
        "SELECT CONNECTION_ID()",
        "SELECT count(*) FROM information_schema.processlist WHERE id = %d",
    ),
}


def outwait(engine, seconds):
    """Returns once the server has ended a session of somebody's that may idle for *seconds*."""
    limit, ask_number, there = IDLE[engine.dialect.name]
    idle = create_engine(engine.url, poolclass=NullPool).raw_connection()
    try:
        with contextlib.closing(idle.cursor()) as cursor:
            cursor.execute(limit % seconds)
            cursor.execute(ask_number)
            number = cursor.fetchone()[0]
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as watcher:
            query = text(there % number)
            until(lambda: not watcher.execute(query).scalar(), 30, "the server has ended the idle session")
    finally:
        idle.invalidate()


def between(store, action):
    """Runs *action* once, when *store*'s next move has read and judged its rows and takes the lock."""
    write = store.database.write

    def interrupted(work):
        store.database.write = write
        action()
        return write(work)

    store.database.write = interrupted


def can_compare(engine):
    """With SQLAlchemy 1.4, alembic takes Identity() for a difference where the database has no such thing."""
    return engine.dialect.name == "postgresql" or not sqlalchemy.__version__.startswith("1.")


def difference_is_empty(engine):
    def ours(name, kind, parents):
        return kind != "table" or name.startswith("legacy_poll_") and name != schema.VERSION_TABLE

    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "include_name": ours})
        assert compare_metadata(context, metadata) == []
