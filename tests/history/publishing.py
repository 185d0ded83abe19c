"""One publisher: a process that commits rows in every way that a user may, and writes down what it did.

    python -m tests.history.publishing WORKLOAD NUMBER LIFE

NUMBER counts the publishers from 0, LIFE the processes of one publisher: the next one goes on where a killed one was.

Rules. What is drawn for a transaction depends on its number only. An error of the database is not caught, unless the
run takes the database away: no publisher's transaction may fail because events are moved at the same time. What the run
does at a given place, such as staying open after half of the rows, is a pause of this process; the tests themselves
have none.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from dataclasses import dataclass, replace
from typing import Any, Callable

from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from tests.history import (
    COMMITTED,
    ROLLED_BACK,
    UNKNOWN,
    Journal,
    Publisher,
    Row,
    Transaction,
    read_journal,
)
from tests.history.faults import strike
from tests.history.workload import CHANNELS, DELAY_SECONDS, LEGACY_POLL, LONG_SHARE, PUBLISHERS, Workload

now = time.monotonic

# How long a writer waits for its turn on SQLite; one of them is stopped while it holds the lock.
SQLITE_WAIT_SECONDS = 60
# Of MySQL.
LOCK_WAIT, DEADLOCK = 1205, 1213
AWAY_SECONDS = 0.05
"""Between two tries of a publisher whose database is away."""

# Places where a publisher may be told to fail, whichever comes first.
IN_TRANSACTION, AT_COMMIT = "publisher-in-transaction", "publisher-at-commit"
# Of the rows that are inserted as plain text, how many are not JSON.
UNFIT_SHARE = 0.03
# Ways to insert: poll.publish on a connection and on a session, append, plain text, and plain text by itself.
PUBLISH, SESSION, APPEND, TEXT, SINGLE = "publish", "session", "append", "text", "single"

OUTBOX = "INSERT INTO legacy_poll_outbox (channel, data) VALUES (:channel, :data)"
OUTBOX_TYPE = "INSERT INTO legacy_poll_outbox (channel, data, type) VALUES (:channel, :data, :type)"
UNFIT = "not JSON"
"""What a row holds that is to be set aside: it is not on its way to anybody."""

HOME_MADE = "INSERT INTO home_made_event (channel, data, type) VALUES (:channel, :data, :type)"


def name_of(number: int) -> str:
    return "publisher-{}".format(number)


def journal_of(workload: Workload, number: int, life: int) -> Any:
    return workload.path / "{}.{}.jsonl".format(name_of(number), life)


@dataclass(frozen=True)
class Part:
    """Rows inserted one after the other, in a savepoint or not, and a pause after them."""

    rows: int
    savepoint: bool = False
    undone: bool = False
    pause_seconds: float = 0.0


@dataclass(frozen=True)
class Plan:
    """One transaction to be."""

    way: str
    parts: tuple[Part, ...]
    rolled_back: bool = False

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)


def make_plan(workload: Workload, number: int, index: int) -> Plan:
    draw = workload.random("plan", number, index)
    ours = workload.log == LEGACY_POLL
    ways = (PUBLISH, SESSION, APPEND, TEXT, SINGLE) if ours else (TEXT, SESSION, SINGLE)
    if number == 0:
        return _both_ends(workload, draw, PUBLISH if ours else TEXT)
    way = draw.choices(ways, [1] * (len(ways) - 1) + [0.5])[0]
    if way == SINGLE:
        return Plan(way, (Part(1),))
    most = draw.choices((1, 5, 20), (50, 35, 15))[0]
    left = draw.randint(1, most)
    parts = []
    while left:
        rows = draw.randint(1, left)
        left -= rows
        savepoint = draw.random() < 0.1
        parts.append(Part(rows, savepoint, savepoint and draw.random() < 0.5))
    seconds = draw.uniform(0, DELAY_SECONDS)
    if draw.random() < LONG_SHARE:
        seconds = draw.uniform(0, workload.longest_open_seconds)
    early = draw.choice((0.0, 0.5)) if len(parts) > 1 else 0.0
    parts[0] = replace(parts[0], pause_seconds=early * seconds)
    parts[-1] = replace(parts[-1], pause_seconds=parts[-1].pause_seconds + (1 - early) * seconds)
    return Plan(way, tuple(parts), draw.random() < 0.05)


def _both_ends(workload: Workload, draw: Any, way: str) -> Plan:
    seconds = draw.uniform(0.25, 1) * workload.longest_open_seconds
    parts = (Part(draw.randint(1, 5), pause_seconds=seconds), Part(draw.randint(1, 5)))
    return Plan(way, parts, draw.random() < 0.05)


class Writer:
    """Carries out the plans of one publisher."""

    def __init__(self, workload: Workload, number: int, journal: Journal) -> None:
        self._workload = workload
        self._ours = workload.log == LEGACY_POLL
        self._name = name_of(number)
        self._number = number
        self._journal = journal
        options: dict[str, Any] = {"future": True}
        if workload.sqlite:
            options["connect_args"] = {"timeout": SQLITE_WAIT_SECONDS}
        self._engine = create_engine(workload.url, **options)
        self._single = create_engine(workload.url, isolation_level="AUTOCOMMIT", **options)
        if workload.sqlite:
            _begin_as_sqlalchemy_says(self._engine)
        for engine in (self._engine, self._single):
            event.listen(engine, "connect", _wait_briefly)
        self._publish, self._append = self._functions()
        self._committing = False

    def _functions(self) -> tuple[Callable[..., str], Callable[..., str]]:
        if not self._ours:
            return _not_there, _not_there
        from flask import Flask

        from legacy_poll import LegacyPoll
        from legacy_poll.eventlog import append

        app = Flask(self._name)
        app.config["LEGACY_POLL_WAKEUP_DIRECTORY"] = self._workload.wakeup_directory
        return LegacyPoll(app, engine=self._engine, public=True).publish, append

    def carry_out(self, plan: Plan, index: int) -> int:
        """Does transaction number *index*; returns how many events are known to be committed by it."""
        rows: list[Row] = []
        try:
            return self._carry_out(plan, index, rows)
        except DBAPIError as error:
            if not self._workload.outages and not self._gives_way(error):
                raise
        if not self._committing:
            # Whatever became of its connection, nobody has asked for these to be committed.
            rows = [replace(row, undone=True) for row in rows]
            name = "{}/{}".format(self._name, index)
            self._journal.write(Transaction(name, self._name, ROLLED_BACK, tuple(rows)))
        time.sleep(AWAY_SECONDS)
        return 0

    def _gives_way(self, error: DBAPIError) -> bool:
        """Whether MySQL has ended the transaction, or made it wait for too long, for another publisher's sake.

        There a transaction at REPEATABLE READ that rolls back to a savepoint has the end of its table locked until it
        ends; two of them lock out each other, on any table. MariaDB does no such thing.
        """
        if self._engine.dialect.name != "mysql" or self._engine.dialect.is_mariadb:
            return False
        return bool(error.orig and error.orig.args and error.orig.args[0] in (LOCK_WAIT, DEADLOCK))

    def _carry_out(self, plan: Plan, index: int, rows: list[Row]) -> int:
        self._committing = plan.way == SINGLE
        draw = self._workload.random("rows", self._number, index)
        name = "{}/{}".format(self._name, index)
        if plan.way == SINGLE:
            return self._insert_alone(name, draw)
        with contextlib.ExitStack() as opened:
            where: Any
            if plan.way == SESSION:
                where = opened.enter_context(Session(self._engine))
            else:
                where = opened.enter_context(self._engine.connect())
            for part in plan.parts:
                savepoint = where.begin_nested() if part.savepoint else None
                for _ in range(part.rows):
                    key = "{}/{}".format(name, len(rows))
                    unfit = plan.way == TEXT and not part.savepoint and draw.random() < UNFIT_SHARE
                    rows.append(self._insert(where, plan.way, key, draw, unfit=unfit and self._ours))
                    strike(self._workload.directory, IN_TRANSACTION)
                if savepoint is not None:
                    savepoint.rollback() if part.undone else savepoint.commit()
                if part.undone:
                    rows[-part.rows :] = [replace(row, undone=True) for row in rows[-part.rows :]]
                time.sleep(part.pause_seconds)
            if plan.rolled_back:
                where.rollback()
                self._journal.write(Transaction(name, self._name, ROLLED_BACK, tuple(rows)))
                return 0
            sent = now()
            self._journal.write(Transaction(name, self._name, UNKNOWN, tuple(rows), sent))
            self._committing = True
            strike(self._workload.directory, AT_COMMIT)
            where.commit()
            self._journal.write(Transaction(name, self._name, COMMITTED, tuple(rows), sent, now()))
            return _events(rows)

    def _insert(self, where: Any, way: str, key: str, draw: Any, *, unfit: bool) -> Row:
        channel, data, type_ = _contents(key, draw)
        sent, event_id = now(), None
        if unfit:
            return self._insert_text(where, Row(key, channel, UNFIT, sent, type=type_, undone=True))
        if way in (PUBLISH, SESSION) and self._ours:
            event_id = self._publish(where, channel, data, type=type_)
        elif way == APPEND:
            event_id = self._append(where, channel, data, type=type_)
        else:
            return self._insert_text(where, Row(key, channel, data, sent, type=type_))
        return Row(key, channel, data, sent, now(), type_, event_id)

    def _insert_text(self, where: Any, row: Row) -> Row:
        data = UNFIT if row.undone else json.dumps(row.data, ensure_ascii=False)
        values = {"channel": row.channel, "data": data, "type": row.type}
        if not self._ours:
            where.execute(text(HOME_MADE), values)
        elif row.type == "message":
            del values["type"]
            where.execute(text(OUTBOX), values)
        else:
            where.execute(text(OUTBOX_TYPE), values)
        return replace(row, insert_returned=now())

    def _insert_alone(self, name: str, draw: Any) -> int:
        """A plain INSERT that commits by itself."""
        key = name + "/0"
        channel, data, type_ = _contents(key, draw)
        with self._single.connect() as connection:
            sent = now()
            row = Row(key, channel, data, sent, type=type_)
            self._journal.write(Transaction(name, self._name, UNKNOWN, (row,), sent))
            row = self._insert_text(connection, row)
            returned = row.insert_returned
            self._journal.write(Transaction(name, self._name, COMMITTED, (row,), sent, returned))
        return 1


def _events(rows: Any) -> int:
    return sum(not row.undone for row in rows)


def _not_there(*arguments: Any, **options: Any) -> str:
    raise AssertionError("a home-made log is written with plain INSERTs")


def _contents(key: str, draw: Any) -> tuple[str, Any, str]:
    channel = draw.choices(list(CHANNELS), list(CHANNELS.values()))[0]
    data: Any = {"key": key, "number": draw.randrange(10**6), "price": draw.randrange(10**5) / 100}
    if draw.random() < 0.05:
        data["text"] = 'grün, 漢字, \N{PARTY POPPER} & "quotes" \\ <b>' * draw.randint(1, 60)
    return channel, data, draw.choice(("message", "message", "order.created"))


def _wait_briefly(connection: Any, record: Any) -> None:
    """On MySQL, where publishers lock out each other: 50 s, its default, would be most of a run."""
    if "mariadb" not in getattr(connection, "get_server_info", lambda: "mariadb")().lower():
        with contextlib.closing(connection.cursor()) as cursor:
            cursor.execute("SET SESSION innodb_lock_wait_timeout = 2")


def _begin_as_sqlalchemy_says(engine: Any) -> None:
    """Transactions on SQLite begin with BEGIN, as SQLAlchemy's documentation tells those to do it who use savepoints:

    by itself Python's driver begins one at the first INSERT only, and a savepoint before that commits at its release.
    """

    @event.listens_for(engine, "connect")
    def connected(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begun(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def earlier_lives(workload: Workload, number: int, life: int) -> tuple[int, int]:
    """Where to go on: the number of the next transaction, and how many events are committed."""
    outcomes: dict[str, Transaction] = {}
    for one in range(life):
        for record in read_journal(journal_of(workload, number, one)):
            if isinstance(record, Transaction):
                outcomes[record.name] = record
    committed = sum(_events(each.rows) for each in outcomes.values() if each.outcome == COMMITTED)
    last = max((int(name.rpartition("/")[2]) for name in outcomes), default=-1)
    # One number is left out. The transaction that the kill hit may not be written down, and if it should be in the
    # log all the same, it must not pass for the one that would take its number now.
    return last + (2 if life else 1), committed


def main(workload: Workload, number: int, life: int) -> None:
    index, committed = earlier_lives(workload, number, life)
    journal = Journal(journal_of(workload, number, life))
    share = workload.share(number)
    journal.write(Publisher(name_of(number), share))
    writer = Writer(workload, number, journal)
    rate = workload.events_per_second / (PUBLISHERS - 1)
    started = due = now()
    while committed < share or not workload.calm.exists():
        if now() - started > workload.limit_seconds:
            raise SystemExit("{} gave up after {} events".format(name_of(number), committed))
        if workload.outages:
            due = max(
                due, now() - 1 / rate
            )  # what an outage took is not made up for, or the run would soon be over
        plan = make_plan(workload, number, index)
        # In proportion to the rows, with some chance in it, and from when it was due: after a long transaction a
        # publisher is behind, and hurries.
        due += plan.rows / rate * workload.random("pace", number, index).uniform(0.5, 1.5)
        committed += writer.carry_out(plan, index)
        index += 1
        time.sleep(max(0.0, due - now()))


if __name__ == "__main__":
    main(Workload.from_text(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
