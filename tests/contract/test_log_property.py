"""The promise of the log, under whatever may happen to it, on each database.

Every event that was committed is delivered to a reader that follows, or the reader was told 410; nothing
younger than the retention is ever deleted; nothing is delivered twice to one reader.

Random steps, drawn from a seed: publishers, two workers, readers, clocks that jump, hands that delete rows,
backups that are put back. `log_model` says after each step whether the tables may be so and the answer is
right. A failure names its seed and its last steps; LOG_PROPERTY_SEED takes a seed, or `random`, and
LOG_PROPERTY_STEPS a number of steps.
"""

from __future__ import annotations

import json
import os
import random
import threading
from dataclasses import replace

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import IntegrityError

from legacy_poll import eventlog, publisher, schema
from legacy_poll.catchup import CatchUp
from legacy_poll.errors import CursorExpired, CursorUnknown, LogDamaged, StorageUnavailable
from legacy_poll.eventlog import EventLog, append
from legacy_poll.hold import Hold, Question, Stay
from legacy_poll.hub import Hub
from legacy_poll.publisher import Publisher
from legacy_poll.storage.ages import KnownFor, SteadyClock
from legacy_poll.storage.erasing import What, erase
from legacy_poll.tables import event, log, outbox, set_aside
from tests.contract.log_model import Memory, Model, Reader, Row, Violation, text_of
from tests.contract.store import Store

pytestmark = pytest.mark.own_database

CHANNELS = ("a", "b", "c", "d")
IDS = ["given-%d" % number for number in range(12)]
HOUR, DAY, YEAR = 3600, 86400, 365 * 86400
STEPS = int(os.environ.get("LOG_PROPERTY_STEPS", "600"))
RETENTIONS = {
    "by age": {"retention_seconds": HOUR, "retention_events": 0},
    "by count": {"retention_seconds": 0, "retention_events": 40},
    "by both": {"retention_seconds": HOUR, "retention_events": 25},
}
#: Row ids that are given by hand. Far above: every other is then below a worker's low-water mark.
BELOW, ABOVE = ((-1000, -1), (1, 40)), ((1, 100_000), (10**6, 10**6 + 20), (10**9, 10**10))
#: How long a step takes, seconds: for some steps in a row too short for a look at the whole outbox.
QUICK, SLOW = (0.0, 0.001, 0.02), (0.0, 0.3, 2.5, 30, 400)
#: How often each step is taken, in relation to the others.
WEIGHTS = {
    "publish": 24,
    "publish_with_row_ids": 6,
    "publish_unfit": 2,
    "begin": 5,
    "go_on": 10,
    "move": 12,
    "tick": 20,
    "settle": 3,
    "read": 55,
    "wait": 3,
    "delete": 1,
    "erase": 3,
    "set_times": 4,
    "trim": 3,
    "jump": 2,
    "set_sequence": 1,
    "begin_worker": 1,
    "begin_reader": 2,
    "back_up": 2,
    "restore": 1.5,
    "restore_events": 0.6,
    "lose_row": 0.3,
    "new_log": 0.2,
}


class Tables:
    """What is in the tables now."""

    def __init__(self, engine):
        with engine.connect() as connection:
            row = connection.execute(select(log.c.log_id, log.c.head, log.c.oldest)).first()
            self.log_id, self.head, self.oldest = row if row is not None else (None, None, None)
            columns = event.c.position, event.c.data, event.c.id, event.c.channel, event.c.published_at
            self.events = {
                row[0]: (_key(row[1], row[2], row[3]),) + tuple(row[2:])
                for row in connection.execute(select(*columns))
            }
            rows = connection.execute(select(outbox.c.data, outbox.c.event_id, outbox.c.channel))
            self.outbox = {_key(*row): tuple(row[1:]) for row in rows}
            self.aside = {row[0] for row in connection.execute(select(set_aside.c.data))}


def _key(data, event_id, channel):
    """By what the model knows a row: each that the test publishes has its own data."""
    return "$ " + event_id if channel == "$erase" else data


class Worker(Store):
    """One process: it moves, reads, trims, and has a memory of its own."""

    def __init__(self, engine, world, **settings):
        super().__init__(engine, mark_rows=5, clock=world.clock, **settings)
        self.log = EventLog(
            self.database,
            self.settings,
            backlog=self.backlog,
            clock=world.clock,
            known_for=KnownFor(clock=world.clock),
        )
        glance = self.log.glance
        self.log.glance = lambda: replace(glance(), now=world.database_now())
        self.steady = SteadyClock(clock=world.clock, wall=world.clock)
        most = self.settings.max_response_bytes
        self.hub = Hub(
            tail_events=self.settings.tail_events,
            tail_bytes=self.settings.tail_bytes,
            max_bytes=most,
            make_event=threading.Event,
        )
        catchup = CatchUp(self.log, reads=1, max_bytes=most, make_event=threading.Event)
        self.hold = Hold(self.hub, catchup, clock=world.clock)
        self.publisher = Publisher(
            self.log,
            self.sequencer,
            self.hub,
            self.settings,
            check=lambda: None,
            clock=world.clock,
            wall=world.clock,
            steady=self.steady,
            jitter=world.random.random,
        )
        self.memory = Memory(world.model.life)


class Follower(Reader):
    """A reader with its cursor, and the poll that it holds."""

    def __init__(self, name, channels, way):
        super().__init__(name, channels)
        #: "log" reads the database; "worker" polls any worker; "held" does so and waits there.
        self.way = way
        self.cursor = None
        self.stay = self.worker = self.question = None


class World:
    """All that there is, and the steps that change it."""

    def __init__(self, engine, retention, seed):
        self.random = random.Random(seed)
        self.engine = engine
        self.is_sqlite = engine.dialect.name == "sqlite"
        self.is_postgresql = engine.dialect.name == "postgresql"
        #: The true time, seconds since 1970: what the workers' hosts say, and in passing too.
        self.now = 1_800_000_000.0
        #: By how much the database's clock is wrong, seconds.
        self.ahead = 0.0
        self.numbers = 0
        self.opened = []
        self.snapshots = []
        self.told = []
        self.settings = dict(
            retention,
            tail_events=self.random.choice((3, 10, 30, 100)),
            move_rows=self.random.choice((2, 7, 500)),
            max_response_bytes=1024,
            trim_interval_seconds=20,
        )
        self.row_ids = self.random.choice((BELOW, BELOW + ABOVE))
        self.model = Model(Tables(engine), retention["retention_seconds"], retention["retention_events"])
        self.workers = [Worker(engine, self, **self.settings) for _ in range(2)]
        self.readers = []
        for way in ("log", "log", "log", "worker", "worker", "held"):
            self._add_reader(way)

    def clock(self):
        return self.now

    def database_now(self):
        return text_of(self.now + self.ahead)

    def close(self):
        for connection, _ in self.opened:
            connection.close()
        for worker in self.workers:
            worker.close()
        if Tables(self.engine).log_id is None:
            schema.repair(self.engine)

    def run(self, steps):
        names, weights = list(WEIGHTS), list(WEIGHTS.values())
        pace = QUICK
        for _ in range(steps):
            self.model.step += 1
            if self.random.random() < 0.15:
                pace = self.random.choice((QUICK, SLOW))
            self.now += self.random.choice(pace)
            name = self.random.choices(names, weights)[0]
            self.tell(name)
            getattr(self, name)()
        self.model.step += 1
        self.end()

    def tell(self, *what):
        self.told.append("%d: %s" % (self.model.step, " ".join(str(each) for each in what)))

    def look(self):
        """Lets the model compare itself with the tables."""
        tables = Tables(self.engine)
        if self.is_sqlite:
            # The trigger takes the time from a clock that cannot be turned.
            with self.engine.begin() as connection:
                for position in set(tables.events) - self.model.life.present:
                    key, event_id, channel, _ = tables.events[position]
                    tables.events[position] = key, event_id, channel, self.database_now()
                    connection.execute(
                        event.update()
                        .where(event.c.position == position)
                        .values(published_at=self.database_now())
                    )
        self.model.look(tables, self.now, self.database_now())
        return tables

    # Publishing.

    def _rows(self, group=None):
        """Rows as an INSERT gives them, and as the model knows them."""
        made = []
        for number in range(self.random.randint(1, 4)):
            self.numbers += 1
            event_id = self.random.choice(IDS) if self.random.random() < 0.2 else None
            trimmed = self.model.life.entries.get(self.model.life.oldest - 1)
            if trimmed is not None and not trimmed.channel.startswith("$") and self.random.random() < 0.03:
                event_id = trimmed.id  # its row is still there
            key = json.dumps("%d%s" % (self.numbers, "." * self.random.choice((0, 0, 3, 300))))
            row = Row(
                key,
                event_id,
                self.random.choice(CHANNELS),
                group=group,
                number=1000 * self.model.step + number,
            )
            made.append(row)
        return made

    def _insert(self, connection, rows, ids=None):
        for number, row in enumerate(rows):
            values = {"channel": row.channel, "data": row.key, "event_id": row.event_id}
            if ids is not None:
                values["id"] = ids[number]
            if ids is None and row.fit and self.random.random() < 0.5:
                row.event_id = append(connection, row.channel, json.loads(row.key), id=row.event_id)
            else:
                connection.execute(outbox.insert().inline(), values)

    def _publish(self, rows, ids=None):
        self.tell("  rows", [(row.key[:6], row.event_id, row.channel) for row in rows], ids or "")
        try:
            with self.engine.begin() as connection:
                self._insert(connection, rows, ids)
        except IntegrityError:
            self.tell("  clash")  # ids that others have
        else:
            self.model.commit(rows)
        self.look()

    def publish(self):
        self.numbers += 1
        self._publish(self._rows(group=self.numbers))

    def publish_with_row_ids(self):
        self._leave_none_open()
        rows, draw = self._rows(), self.random.randint
        self._publish(rows, [draw(*self.random.choice(self.row_ids)) for _ in rows])

    def publish_unfit(self):
        """On SQLite, what is behind it waits for the sequencer."""
        self.numbers += 1
        self._publish([Row(json.dumps(str(self.numbers)), None, "no spaces", fit=False)])

    def begin(self):
        """A transaction that stays open; on SQLite nobody else could write."""
        if self.is_sqlite or len(self.opened) >= 2:
            return
        connection = self.engine.connect()
        connection.begin()
        self.opened.append((connection, []))
        self.go_on()

    def go_on(self):
        if not self.opened:
            return
        connection, rows = chosen = self.random.choice(self.opened)
        if self.random.random() < 0.5:
            new = self._rows(group=-id(chosen) - self.numbers if not rows else rows[0].group)
            try:
                self._insert(connection, new)
            except IntegrityError:
                self._finish(chosen, commit=False)
            else:
                rows.extend(new)
        else:
            self._finish(chosen, commit=self.random.random() < 0.8)

    def _finish(self, chosen, commit):
        self.opened.remove(chosen)
        connection, rows = chosen
        if commit:
            connection.commit()
            self.model.commit(rows)
        connection.close()
        self.tell("  committed" if commit else "  rolled back", [row.key[:6] for row in rows])
        self.look()

    def _leave_none_open(self):
        for each in list(self.opened):
            self._finish(each, commit=self.random.random() < 0.7)

    def set_sequence(self):
        """As a restored dump does; rows that follow have ids that were used."""
        if not self.is_postgresql:
            return
        self._leave_none_open()
        number = self.random.choice((1, 5, 1000, 10**6))
        self.tell("  sequence", number)
        with self.engine.begin() as connection:
            connection.execute(text("ALTER SEQUENCE legacy_poll_outbox_id_seq RESTART WITH %d" % number))

    # Workers.

    def move(self):
        self.random.choice(self.workers).move()
        self.look()

    def tick(self, worker=None):
        worker = worker or self.random.choice(self.workers)
        self.tell("  worker", self.workers.index(worker))
        found, more = worker.publisher.tick()
        worker.memory.life = self.model.life
        tables = self.look()
        if not (found or more or tables.outbox) and worker.hub.cursor.position == self.model.life.head:
            worker.memory.settled = self.model.step
        for reader in self.readers:
            if reader.worker is worker and reader.stay is not None and reader.stay.group.event.is_set():
                self._leave(reader)
        return found or more

    def settle(self, worker=None):
        worker = worker or self.random.choice(self.workers)
        self.now += 2  # a look from the beginning of the outbox is due
        for _ in range(1000):
            if worker.memory.settled == self.model.step:
                return
            self.tick(worker)
            self.now += 0.3
        raise Violation("a worker ticks 1000 times, and there is still something")

    def begin_worker(self):
        """The old one is gone; whoever it held asks another."""
        number = self.random.randrange(2)
        self.workers[number].close()
        for reader in self.readers:
            if reader.worker is self.workers[number]:
                reader.stay = reader.worker = None
        self.workers[number] = Worker(self.engine, self, **self.settings)
        self.tick(self.workers[number])

    # Readers.

    def _add_reader(self, way):
        channels = None
        if way != "log" or self.random.random() < 0.6:
            channels = frozenset(self.random.sample(CHANNELS, self.random.randint(1, 4)))
        self.numbers += 1
        reader = Follower("reader %d (%s, %s)" % (self.numbers, way, sorted(channels or "*")), channels, way)
        self.readers.append(reader)
        if self.random.random() < 0.5:
            self._stand_at_head(reader)

    def _stand_at_head(self, reader):
        bounds = self.workers[0].log.bounds()
        reader.cursor = bounds.cursor
        assert bounds.head == self.model.life.head
        reader.stand(self.model.life, bounds.head)

    def begin_reader(self):
        gone = self.random.choice(self.readers)
        if gone.stay is not None:
            gone.worker.hold.leave(gone.stay)
        self.readers.remove(gone)
        self._add_reader(gone.way)

    def read(self, reader=None, limit=None, worker=None):
        reader = reader or self.random.choice(self.readers)
        limit = limit or self.random.choice((1, 2, 3, 10, 100))
        self.tell("  ", reader.name, "at", reader.place, "limit", limit)
        if reader.stay is not None:
            self._leave(reader)
        elif reader.way == "log":
            most = self.random.choice((1, 50, 500, 10_000))
            source = self.random.choice(self.workers).log
            self._take(
                reader,
                lambda: source.read_after(
                    reader.cursor, channels=reader.channels, limit=limit, max_bytes=most
                ),
            )
        else:
            reader.worker = worker or self.random.choice(self.workers)
            self.tell("  worker", self.workers.index(reader.worker))
            hold_seconds = 0.0 if reader.way == "worker" or reader.cursor is None else 1e9
            reader.question = Question(reader.channels, reader.cursor, False, limit, hold_seconds)
            self._take(reader, lambda: reader.worker.hold.enter(reader.question), reader.worker.memory)

    def _leave(self, reader):
        """Takes what came to a poll that waits; it may be told to look again."""
        stay, reader.stay = reader.stay, None
        answer = reader.worker.hold.leave(stay)
        if answer is None:
            self._take(reader, lambda: reader.worker.hold.enter(reader.question, stay), reader.worker.memory)
        else:
            self._take(reader, lambda: answer, reader.worker.memory)
        if reader.stay is None:
            reader.waits_since = None

    def _take(self, reader, ask, memory=None):
        try:
            answer = ask()
        except (CursorExpired, CursorUnknown) as error:
            self.tell("  410", error)
            bounds = self.workers[0].log.bounds()
            self.model.refused(reader, bounds.head)
            reader.cursor = bounds.cursor
            return
        if isinstance(answer, Stay):
            if reader.way == "held":
                reader.stay, reader.waits_since = answer, self.model.life
                return
            answer = reader.worker.hold.leave(answer)
            assert answer is not None
        events = [(each.position, each.data, each.id, each.channel) for each in answer.events]
        self.tell("  given", [each[0] for each in events], "upto", answer.cursor.position)
        self.model.answered(reader, answer.cursor.position, events, memory)
        reader.cursor = answer.cursor

    def wait(self):
        self.now += self.random.choice((1, 10, 100, 1000, HOUR))

    # What happens to the tables.

    def delete(self):
        """By hand, of what is retained; not what tells workers of an erased event."""
        life = self.model.life
        there = [each for each in sorted(life.present) if each >= life.oldest]
        if not there:
            return
        first = self.random.choice(there)
        last = first + self.random.choice((0, 0, 0, 2, 5))
        gone = [each for each in there if first <= each <= last]
        if any(life.entries[each].channel == "$erase" for each in gone):
            return
        self._delete(gone)

    def _delete(self, positions):
        self.tell("  delete", positions)
        with self.engine.begin() as connection:
            connection.execute(event.delete().where(event.c.position.in_(positions)))
        self.model.delete(positions)
        self.now += 2  # for so long a count of a block of the log is good
        self.look()

    def erase(self):
        if self.random.random() < 0.5:
            # What all workers have in mind, and some readers have not had.
            self.publish()
            for worker in self.workers:
                self.settle(worker)
            self.model.step += 1
        life = self.model.life
        ids, channels, first, last = frozenset(), frozenset(), 1, 0
        kind = self.random.choice(("ids", "positions", "positions", "channel"))
        if kind == "ids":
            ids = frozenset(self.random.sample(IDS, 2))
        elif kind == "positions" and life.head:
            first = self.random.randint(
                max(1, life.oldest - 2, life.head - self.random.choice((2, 99))), life.head
            )
            last = first + self.random.choice((0, 0, 3))
        elif self.random.random() < 0.3:
            channels = frozenset([self.random.choice(CHANNELS)])
        what = What(ids, ((first, last),) if first <= last else (), channels)
        found = self.model.erase(ids, first, last, channels)
        self.tell("  erase", what, found)
        for _ in range(100):
            try:
                erased = erase(self.workers[0].database, what)
                break
            except StorageUnavailable as error:
                self.tell("  again:", error)  # a sequence that was set back gives an id that a row has
        if erased.events != len(found):
            raise Violation("%d events were erased, and not %s" % (erased.events, found))
        self.look()
        if self.random.random() < 0.5:
            worker = self.random.choice(self.workers)
            self.settle(worker)
            for reader in [each for each in self.readers if each.way == "worker"]:
                self.read(reader, worker=worker)

    def set_times(self):
        for _ in range(self.random.randint(1, 5)):
            there = sorted(self.model.life.present)
            if not there:
                return
            position = self.random.choice(there)
            off = self.random.choice((-3 * YEAR, -DAY, -2 * HOUR, -60, 60, DAY, 5 * YEAR))
            time = text_of(self.now + off)
            self.tell("  time of", position, time)
            with self.engine.begin() as connection:
                connection.execute(
                    event.update().where(event.c.position == position).values(published_at=time)
                )
            self.model.life.times[position] = time

    def jump(self):
        """The database's clock goes wrong, or right again."""
        self.ahead = self.random.choice((0, 0, -HOUR, HOUR, 5 * HOUR, -DAY, DAY, -8 * YEAR, 8 * YEAR))
        self.tell("  the database's clock is ahead by", self.ahead)

    def trim(self):
        """By a worker that has just looked; another may move what it has not seen yet."""
        worker = self.random.choice(self.workers)
        self.tick(worker)
        if self.random.random() < 0.3:
            self.publish()
            self.move()
        worker.log.trim(worker.steady(self.database_now()))
        self.look()

    def back_up(self):
        with self.engine.connect() as connection:
            rows = {
                table: [dict(row._mapping) for row in connection.execute(select(table))]
                for table in (outbox, set_aside, event, log)
            }
        self.snapshots = self.snapshots[-2:] + [(rows, self.model.snapshot())]

    def _put_back(self, rows, tables):
        with self.engine.begin() as connection:
            for table in tables:
                connection.execute(table.delete())
            # The outbox first: without a log, SQLite's trigger lets its rows be.
            for table in tables:
                if rows[table]:
                    connection.execute(insert(table), rows[table])
        self.now += 2

    def restore(self):
        if not self.snapshots:
            return
        self._leave_none_open()
        rows, known = self.random.choice(self.snapshots)
        self._put_back(rows, (outbox, set_aside, event, log))
        self.model.restore(known)
        self.look()
        if self.random.random() < 0.3:
            self.new_log()

    def restore_events(self):
        if not self.snapshots:
            return
        self._leave_none_open()
        if self.random.random() < 0.3:
            self.restore()  # perhaps to a log that is shorter
        rows, known = self.random.choice(self.snapshots)
        self._put_back(rows, (event,))
        beyond = self.model.restore_events(known)
        self.look()
        if beyond:
            self.tell("  there are events beyond the head")
            self._meet_damage()

    def lose_row(self):
        self._leave_none_open()
        with self.engine.begin() as connection:
            connection.execute(log.delete())
        for _ in range(self.random.randint(0, 2)):
            self._publish(self._rows())
        reader = self.workers[0].log
        with pytest.raises(LogDamaged):
            reader.read_after(None, channels=None, limit=1, max_bytes=1)
        self._meet_damage()

    def _meet_damage(self):
        """Publishes and moves until the product says so; then does what it advises."""
        self._publish(self._rows())
        self.now += 2
        for _ in range(200):
            worker = self.random.choice(self.workers)
            try:
                if self.random.random() < 0.5:
                    worker.move()
                else:
                    worker.publisher.tick()
                    worker.memory.life = self.model.life
            except LogDamaged as error:
                self.tell("  ", error)
                break
            finally:
                self.look()
            if not self.model.outbox:
                self._publish(self._rows())
            self.now += 0.5
        else:
            raise Violation("the log is damaged, and nobody says so")
        self.look()
        schema.repair(self.engine)
        self.model.begin_log(Tables(self.engine))
        self.look()

    def new_log(self):
        schema.new_log(self.engine)
        self.model.begin_log(Tables(self.engine))
        self.look()

    # The end.

    def end(self):
        """Nothing more happens: everything comes to everybody."""
        self._leave_none_open()
        for worker in self.workers * 2:
            self.settle(worker)
            self.model.step += 1
        if self.model.outbox:
            raise Violation("%s wait for ever" % list(self.model.outbox))
        for reader in self.readers:
            for _ in range(1000):
                if reader.place == self.model.life.head and reader.life_id == self.model.life.log_id:
                    break
                self.read(reader, limit=10)
            else:
                raise Violation("%s never comes to the end" % reader.name)


def seed_of(retention):
    given = os.environ.get("LOG_PROPERTY_SEED", "")
    if given == "random":
        return random.SystemRandom().randrange(10**9)
    return int(given) if given else 1 + list(RETENTIONS).index(retention)


@pytest.mark.parametrize("retention", list(RETENTIONS))
def test_reader_that_follows_is_given_every_event_once_or_is_told_that_some_are_gone(
    engine, tables, retention, monkeypatch
):
    seed = seed_of(retention)
    draw = random.Random(seed)
    # So that a log of some dozens of events has pages, blocks, batches and windows.
    for module, name, values in (
        (eventlog, "_PAGE_ROWS", (2, 3, 100)),
        (eventlog, "_TRIM_ROWS", (2, 5, 500)),
        (eventlog, "_BLOCK", (4, 10, 10_000)),
        (eventlog, "_WINDOW", (3, 10, 100_000)),
        (publisher, "_READ_EVENTS", (2, 5, 1000)),
    ):
        monkeypatch.setattr(module, name, draw.choice(values))
    world = World(engine, RETENTIONS[retention], seed)
    try:
        world.run(STEPS)
    except Exception as error:
        last = "\n".join(world.told[-60:])
        raise Violation(
            "LOG_PROPERTY_SEED=%d, step %d of %d: %s: %s\nthe last steps:\n%s"
            % (seed, world.model.step, STEPS, type(error).__name__, error, last)
        ) from error
    finally:
        world.close()
