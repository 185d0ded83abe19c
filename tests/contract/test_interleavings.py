"""Whatever is interleaved with whatever: all that committed is in the log, once, in an order that keeps its promises.

Scripts of several connections, savepoints and sequencers, made up by hypothesis and shrunk when they fail. A low-water
mark is taken after every few rows, so that each script meets it (PostgreSQL; the others have none).
"""

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from legacy_poll.backlog import NO_MARK
from legacy_poll.errors import StorageUnavailable
from legacy_poll.eventlog import append
from tests.contract.store import Store, between, run, series
from tests.contract.test_publish import shop_order
from tests.waiting import until

postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)

WRITERS = 3
steps = st.tuples(
    st.sampled_from(
        ["insert"] * 4 + ["commit", "rollback", "savepoint", "release", "undo", "write", "move", "tick"]
    ),
    st.integers(min_value=0, max_value=WRITERS - 1),
)


class Script:
    """Plays steps on writers and sequencers, and keeps what must come of it."""

    def __init__(self, stores, writers, begin):
        self.stores = stores
        self.begin = begin
        self.writers = writers
        self.connections = [None] * writers
        self.savepoints = [[] for _ in range(writers)]
        self.open_rows = [[] for _ in range(writers)]
        self.committed = []
        self.number = 0
        self.clock = 0.0

    def play(self, script):
        for when, (step, which) in enumerate(script):
            getattr(self, step)(which, when)
        for which in range(self.writers):
            self.commit(which, len(script) + which)
        self.clock += 100
        for store in self.stores:
            store.drain()

    def insert(self, which, when):
        self.number += 1
        append(self._connection(which), "orders", self.number)
        self.open_rows[which].append((self.number, when))

    def write(self, which, when):
        # Something of the application's own: the transaction has an id now, but no row of ours.
        self.number += 1
        self._connection(which).execute(shop_order.insert(), {"id": self.number, "note": "x"})

    def savepoint(self, which, when):
        savepoint = self._connection(which).begin_nested()
        self.savepoints[which].append((savepoint, len(self.open_rows[which])))

    def release(self, which, when):
        if self.savepoints[which]:
            self.savepoints[which].pop()[0].commit()

    def undo(self, which, when):
        if self.savepoints[which]:
            savepoint, rows = self.savepoints[which].pop()
            savepoint.rollback()
            del self.open_rows[which][rows:]

    def commit(self, which, when):
        if self.connections[which] is not None:
            self.connections[which].commit()
            self.committed.append((when, self.open_rows[which]))
            self._end(which)

    def rollback(self, which, when):
        if self.connections[which] is not None:
            self.connections[which].rollback()
            self._end(which)

    def move(self, which, when):
        self.stores[which % len(self.stores)].move()

    def tick(self, which, when):
        # The next look is a sweep, by time.
        self.clock += 2

    def check(self, delivered):
        place = {number: position for position, number in enumerate(delivered)}
        rows = [number for _, transaction in self.committed for number, _ in transaction]
        assert sorted(delivered) == sorted(rows)
        for _, transaction in self.committed:
            places = [place[number] for number, _ in transaction]
            assert places == sorted(places), "a transaction was torn apart"
        for ended, first in self.committed:
            for _, second in self.committed:
                for number, inserted in second:
                    if ended < inserted:
                        assert all(place[other] < place[number] for other, _ in first), "against real time"

    def _connection(self, which):
        if self.connections[which] is None:
            connection = self.connections[which] = self.begin()
            if connection.engine.dialect.name == "sqlite":
                # The driver begins with the first change only, and the release of a savepoint before it is a commit.
                connection.exec_driver_sql("BEGIN")
        return self.connections[which]

    def _end(self, which):
        self.connections[which].close()
        self.connections[which] = None
        self.savepoints[which], self.open_rows[which] = [], []


@pytest.fixture
def play(request, engine, tables):
    """play(script): a log of its own for each script, two sequencers; checks what came of it."""
    shop_order.create(engine)
    request.addfinalizer(lambda: shop_order.drop(engine))

    def play(script, writers=WRITERS):
        for table in ("outbox", "event", "set_aside"):
            run(engine, "DELETE FROM legacy_poll_%s" % table)
        run(engine, "DELETE FROM shop_order")
        run(engine, "UPDATE legacy_poll_log SET head = 0, oldest = 1")
        with ExitStack() as stack:
            played = Script([], writers, lambda: stack.enter_context(engine.connect()))
            played.stores = [
                Store(engine, mark_rows=2, clock=lambda: played.clock, move_rows=rows) for rows in (1000, 3)
            ]
            for store in played.stores:
                stack.callback(store.close)
            played.play(script)
            played.check(played.stores[0].data())
            played.stores[0].check()
            assert played.stores[0].waiting() == 0
            return played

    return play


BOTH_ENDS = [("insert", 0)] + [("insert", 1), ("commit", 1), ("move", 0)] * 6


def tries(count):
    return settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))


@postgresql
@tries(60)
@example(script=BOTH_ENDS + [("insert", 0), ("insert", 1), ("commit", 1), ("commit", 0), ("move", 0)])
@example(script=[("write", 0)] + BOTH_ENDS[1:] + [("insert", 0), ("insert", 0), ("commit", 0), ("move", 0)])
@example(
    script=[("savepoint", 0)] + BOTH_ENDS + [("insert", 0), ("release", 0), ("insert", 0), ("commit", 0)]
)
@example(script=BOTH_ENDS + [("savepoint", 0), ("insert", 0), ("undo", 0), ("insert", 0), ("commit", 0)])
@example(
    script=BOTH_ENDS
    + [("rollback", 0), ("insert", 1), ("insert", 2), ("commit", 2), ("move", 0), ("commit", 1)]
)
@given(script=st.lists(steps, max_size=60))
def test_any_script_of_transactions_and_moves_keeps_the_promises_on_postgresql(play, script):
    play(script)


@pytest.mark.parametrize("database_url", ["mariadb", "mysql"], indirect=True)
@tries(20)
@example(script=BOTH_ENDS + [("insert", 0), ("insert", 1), ("commit", 1), ("commit", 0), ("move", 0)])
@given(script=st.lists(steps, max_size=40))
def test_any_script_of_transactions_and_moves_keeps_the_promises_on_mysqls(play, script):
    play(script)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@tries(30)
@example(script=[("savepoint", 0), ("insert", 0), ("release", 0), ("rollback", 0)])
@given(script=st.lists(steps, max_size=40))
def test_any_script_of_one_writer_and_moves_keeps_the_promises_on_sqlite(play, script):
    play([(step, 0 if step != "move" else which) for step, which in script], writers=1)


# The low-water mark by itself.


@pytest.fixture
def marked(make_store, engine, begin):
    """A store that has a mark, and a transaction that was open all the time and has published one row."""
    store = make_store(mark_rows=10, clock=lambda: 0.0)
    long = begin()
    append(long, "long", "first")
    for _ in range(3):
        run(engine, series(engine, 10))
        store.move()
    assert store.backlog.mark > NO_MARK
    return store, long


@postgresql
def test_with_a_mark_an_open_transaction_still_delays_nobody(marked):
    store, long = marked
    store.publish("other")
    store.move()
    assert store.data(channels=["orders"]) == ["other"]
    assert store.data(channels=["long"]) == []


@postgresql
def test_with_a_mark_a_transaction_that_published_below_and_above_it_is_not_torn(marked):
    store, long = marked
    append(long, "long", "last")
    long.commit()
    store.move()
    assert store.data(channels=["long"]) == ["first", "last"]
    store.check()


@postgresql
def test_with_a_mark_a_transaction_that_published_below_it_alone_is_found(marked):
    store, long = marked
    long.commit()
    assert store.log.glance().waiting
    store.move()
    assert store.data(channels=["long"]) == ["first"]


@postgresql
def test_with_a_mark_a_transaction_that_commits_after_the_look_waits_for_the_next(marked):
    store, long = marked
    store.publish("other")
    append(long, "long", "last")
    glance = store.log.glance()
    assert not glance.sweep
    between(store, long.commit)
    store.sequencer.move(glance)
    assert store.data(channels=["long"]) == []
    store.move()
    assert store.data(channels=["long", "orders"]) == ["other", "first", "last"]


@postgresql
def test_with_a_mark_a_transaction_that_commits_between_glance_and_look_is_not_torn(marked):
    store, long = marked
    store.publish("other")
    append(long, "long", "last")
    glance = store.log.glance()
    assert not glance.sweep
    long.commit()
    store.sequencer.move(glance)
    assert store.data(channels=["long"]) == ["first", "last"]


@postgresql
def test_with_a_mark_the_rows_of_a_savepoint_keep_their_order_too(make_store, engine, begin):
    store = make_store(mark_rows=10, clock=lambda: 0.0)
    long = begin()
    savepoint = long.begin_nested()
    append(long, "long", 1)
    savepoint.commit()
    second = long.begin_nested()
    append(long, "long", 2)
    for _ in range(3):
        run(engine, series(engine, 10))
        store.move()
    assert store.backlog.mark > NO_MARK
    append(long, "long", 3)
    second.commit()
    append(long, "long", 4)
    long.commit()
    store.move()
    assert store.data(channels=["long"]) == [1, 2, 3, 4]


@postgresql
def test_an_id_given_by_hand_below_the_mark_is_found_by_the_next_sweep(make_store, engine):
    now = [0.0]
    store = make_store(mark_rows=10, clock=lambda: now[0])
    for _ in range(3):
        run(engine, series(engine, 10))
        store.move()
    assert store.backlog.mark > NO_MARK
    run(
        engine,
        "INSERT INTO legacy_poll_outbox (id, channel, data) VALUES (-5, 'orders', '1'), (3, 'orders', '2')",
    )
    now[0] += 10
    assert store.log.glance().waiting
    store.move()
    assert store.data(channels=["orders"]) == [1, 2]


@postgresql
@pytest.mark.parametrize("marked", [False, True])
def test_ids_given_by_hand_ahead_of_the_sequence_make_no_mark(make_store, engine, marked):
    """Behind such a mark the sequence's own ids would come below it: late, and found out of order."""
    run(engine, "ALTER SEQUENCE legacy_poll_outbox_id_seq RESTART WITH 1")
    now = [0.0]
    store = make_store(mark_rows=10, clock=lambda: now[0])
    for _ in range(3 if marked else 0):
        run(engine, series(engine, 10))
        store.move()
    before = store.backlog.mark
    assert (before > NO_MARK) == marked
    by_hand = "INSERT INTO legacy_poll_outbox (id, channel, data) SELECT %d + n, 'hand', '1' FROM "
    for start in (500_000, 600_000, 700_000):
        now[0] += 10
        run(engine, by_hand % start + "generate_series(1, 10) AS n")
        store.move()
    assert store.waiting() == 0
    assert store.backlog.mark <= 31
    # No sweep is due, and what comes now is found at the next look.
    for number in range(5):
        store.publish(number)
        assert store.log.glance().waiting
        store.move()
    assert store.data(channels=["orders"]) == [0, 1, 2, 3, 4]
    run(engine, "ALTER SEQUENCE legacy_poll_outbox_id_seq RESTART WITH 1000000")


@postgresql
def test_no_mark_is_taken_while_a_writer_may_be_about_to_ask_for_an_id(make_store, engine, begin):
    store = make_store(mark_rows=10, clock=lambda: 0.0)
    gate, quiet = begin(), begin()
    gate.exec_driver_sql("SELECT pg_advisory_xact_lock(4711)")

    def insert():
        # Holds the table's lock, is in the middle of a statement, and has no transaction id.
        quiet.exec_driver_sql(
            "INSERT INTO legacy_poll_outbox (channel, data) SELECT 'quiet', '1' FROM pg_advisory_xact_lock(4711)"
        )

    inserter = threading.Thread(target=insert)
    inserter.start()
    waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    until(lambda: gate.execute(waiting).scalar() == 1, what="the insert waits")
    for _ in range(4):
        run(engine, series(engine, 10))
        store.move()
    assert store.backlog.mark == NO_MARK
    gate.rollback()
    inserter.join()
    for _ in range(2):
        run(engine, series(engine, 10))
        store.move()
    assert store.backlog.mark > NO_MARK
    append(quiet, "quiet", 2)
    quiet.commit()
    store.move()
    assert store.data(channels=["quiet"]) == [1, 2]


@postgresql
@pytest.mark.parametrize(
    "hold",
    [
        "LOCK TABLE legacy_poll_outbox IN ROW EXCLUSIVE MODE",
        "DELETE FROM legacy_poll_outbox WHERE id IS NULL",
        "INSERT INTO legacy_poll_outbox (channel, data) SELECT 'quiet', '0' WHERE false",
    ],
)
def test_a_session_that_has_only_locked_the_table_prevents_no_mark(make_store, engine, begin, hold):
    store = make_store(mark_rows=10, clock=lambda: 0.0)
    quiet = begin()
    quiet.exec_driver_sql(hold)
    for _ in range(3):
        run(engine, series(engine, 10))
        store.move()
    assert store.backlog.mark > NO_MARK
    append(quiet, "quiet", 1)
    for _ in range(3):
        run(engine, series(engine, 10))
        store.move()
    append(quiet, "quiet", 2)
    quiet.commit()
    store.move()
    assert store.data(channels=["quiet"]) == [1, 2]
    store.check()


@postgresql
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_transaction_that_has_ended_costs_one_sweep(marked, begin, end):
    store, long = marked
    other = begin()
    append(other, "other", 1)
    getattr(long, end)()
    assert store.log.glance().sweep
    store.move()
    for number in range(3):
        glance = store.log.glance()
        assert not glance.sweep and not glance.waiting
        store.publish(number)
        store.move()
    # One that began before the mark was taken, and one after it: the order is kept with both.
    append(other, "other", 2)
    other.commit()
    store.move()
    assert store.data(channels=["long"]) == (["first"] if end == "commit" else [])
    assert store.data(channels=["orders", "other"]) == [0, 1, 2, 1, 2]
    store.check()


# A sequence that was set back: an older dump was restored, or somebody said so.

RESET = {
    "to the beginning": "ALTER SEQUENCE legacy_poll_outbox_id_seq RESTART WITH 1",
    "by setval": "SELECT setval('legacy_poll_outbox_id_seq', 3)",
    "to just below the mark": "SELECT setval('legacy_poll_outbox_id_seq', 8)",
    "with the table": "TRUNCATE legacy_poll_outbox RESTART IDENTITY",
    "far below zero": (
        "ALTER SEQUENCE legacy_poll_outbox_id_seq MINVALUE -1000000 START WITH -1000000 RESTART WITH -1000000"
    ),
}


@pytest.fixture
def set_back(make_store, engine):
    """A store with a mark at 11, on a clock that stands: no sweep comes but by need."""
    store = make_store(mark_rows=10, clock=lambda: 0.0)
    run(engine, "ALTER SEQUENCE legacy_poll_outbox_id_seq MINVALUE 1 START WITH 1 RESTART WITH 1")
    for _ in range(3):
        run(engine, series(engine, 10))
        store.move()
    assert store.backlog.mark == 11
    yield store
    run(engine, "ALTER SEQUENCE legacy_poll_outbox_id_seq MINVALUE 1 START WITH 1 RESTART WITH 100000")


@postgresql
@pytest.mark.parametrize("reset", RESET.values(), ids=list(RESET))
def test_ids_that_go_back_make_no_event_late(set_back, engine, reset):
    run(engine, reset)
    set_back.publish("first")
    assert set_back.log.glance().waiting
    set_back.move()
    assert set_back.data(channels=["orders"]) == ["first"]


@postgresql
@pytest.mark.parametrize("reset", RESET.values(), ids=list(RESET))
def test_ids_that_go_back_past_the_mark_tear_no_transaction(set_back, engine, begin, reset):
    """One that begins below the old mark and ends above it."""
    run(engine, reset)
    torn = begin()
    for number in range(60):
        append(torn, "torn", number)
        if number % 20 == 0:
            run(engine, series(engine, 10))
            set_back.move()
    torn.commit()
    set_back.drain()
    assert set_back.data(channels=["torn"]) == list(range(60))


@postgresql
def test_ids_that_went_back_cross_the_old_mark_in_the_order_of_the_commits(set_back, engine):
    run(engine, RESET["to the beginning"])
    for number in range(120):
        set_back.publish(number)
        if number % 3 == 0:
            set_back.move()
    set_back.drain()
    assert set_back.data(channels=["orders"]) == list(range(120))
    # And there is a mark again, of these ids.
    assert NO_MARK < set_back.backlog.mark <= 121


@postgresql
def test_ids_that_go_back_while_a_mark_is_about_to_be_taken_are_noticed(make_store, engine, begin):
    store = make_store(mark_rows=10, clock=lambda: 0.0)
    run(engine, series(engine, 10))
    store.move()
    run(engine, RESET["to the beginning"])
    torn = begin()
    append(torn, "torn", 1)
    run(engine, series(engine, 30))
    for _ in range(4):
        store.move()
        run(engine, series(engine, 10))
    append(torn, "torn", 2)
    torn.commit()
    store.drain()
    assert store.data(channels=["torn"]) == [1, 2]


@postgresql
def test_a_candidate_is_forgotten_when_the_next_one_is_none(make_store, engine):
    """The sequence goes back just before a candidate is chosen: the one before had become the mark, far above."""
    run(engine, "ALTER SEQUENCE legacy_poll_outbox_id_seq MINVALUE 1 START WITH 1 RESTART WITH 1")
    store = make_store(mark_rows=10, clock=lambda: 0.0)
    for _ in range(2):
        run(engine, series(engine, 10))
    store.database.read(lambda connection: store.backlog.choose(connection, 20))
    assert store.backlog._candidate is not None
    run(engine, "SELECT setval('legacy_poll_outbox_id_seq', 5)")
    store.database.read(lambda connection: store.backlog.choose(connection, 20))
    assert store.backlog._candidate is None
    store.drain()
    run(engine, "INSERT INTO legacy_poll_outbox (channel, data) VALUES ('orders', '1')")
    assert store.log.glance().waiting
    store.drain()
    assert store.data(channels=["orders"]) == [1]
    run(engine, "ALTER SEQUENCE legacy_poll_outbox_id_seq RESTART WITH 100000")


@postgresql
def test_a_user_who_may_not_see_the_sequence_has_no_mark_and_every_event(make_store, engine, database_url):
    run(engine, "DROP ROLE IF EXISTS poll_server")
    run(engine, "CREATE ROLE poll_server LOGIN")
    try:
        for table in ("outbox", "event", "log", "set_aside", "setting", "version"):
            run(engine, "GRANT SELECT, INSERT, UPDATE, DELETE ON legacy_poll_%s TO poll_server" % table)
        theirs = create_engine(make_url(database_url).set(username="poll_server"), future=True)
        store = make_store(theirs, mark_rows=10, clock=lambda: 0.0)
        for _ in range(4):
            run(engine, series(engine, 10))
            store.move()
        assert (store.backlog.mark, len(store.events())) == (NO_MARK, 40)
        store.close()
        theirs.dispose()
    finally:
        run(engine, "DROP OWNED BY poll_server")
        run(engine, "DROP ROLE poll_server")


@postgresql
def test_mark_is_forgotten_with_the_log(set_back):
    set_back.log.begin_anew()
    assert set_back.backlog.mark == NO_MARK
    assert set_back.log.glance().sweep


@postgresql
def test_a_sequence_that_was_set_back_and_has_passed_the_mark_again_tears_no_transaction(set_back, begin):
    """All of it between two looks, in one transaction."""
    torn = begin()
    torn.exec_driver_sql(RESET["to the beginning"])
    for number in range(60):
        append(torn, "torn", number)
    torn.commit()
    set_back.drain()
    assert set_back.data(channels=["torn"]) == list(range(60))


@postgresql
@pytest.mark.parametrize(
    "change",
    [
        "REVOKE ALL ON SEQUENCE legacy_poll_outbox_id_seq FROM poll_server",
        "ALTER SEQUENCE legacy_poll_outbox_id_seq RENAME TO another",
    ],
)
@pytest.mark.parametrize("moment", ["mark", "candidate"])
def test_a_sequence_that_cannot_be_seen_any_more_costs_one_look(
    make_store, engine, database_url, change, moment
):
    run(engine, "DROP ROLE IF EXISTS poll_server")
    run(engine, "CREATE ROLE poll_server LOGIN")
    theirs = create_engine(make_url(database_url).set(username="poll_server"), future=True)
    try:
        for table in ("outbox", "event", "log", "set_aside", "setting", "version"):
            run(engine, "GRANT SELECT, INSERT, UPDATE, DELETE ON legacy_poll_%s TO poll_server" % table)
        run(engine, "GRANT SELECT ON SEQUENCE legacy_poll_outbox_id_seq TO poll_server")
        store = make_store(theirs, mark_rows=10, clock=lambda: 0.0)
        for _ in range(3 if moment == "mark" else 1):
            run(engine, series(engine, 10))
            store.move()
        assert (store.backlog.mark != NO_MARK) == (moment == "mark")
        run(engine, change)
        failures = 0
        for number in range(30):
            store.publish(number)
            try:
                store.move()
            except StorageUnavailable:
                failures += 1
        store.move()
        assert failures <= 1
        assert store.data(channels=["orders"]) == list(range(30))
        assert (store.backlog.mark == NO_MARK) == ("REVOKE" in change)
        assert store.set_aside() == []
        store.close()
    finally:
        theirs.dispose()
        if "RENAME" in change:
            run(engine, "ALTER SEQUENCE another RENAME TO legacy_poll_outbox_id_seq")
        run(engine, "DROP OWNED BY poll_server")
        run(engine, "DROP ROLE poll_server")


# Other sessions' locks.


@pytest.mark.parametrize("database_url", ["mariadb", "mysql"], indirect=True)
def test_a_report_that_locks_the_end_of_the_log_is_named_and_no_worker_of_ours(
    store, engine, begin, make_store
):
    """INSERT ... SELECT at REPEATABLE READ, from another database: whatever waits behind it is not the holder."""
    store.publish(1)
    store.drain()
    run(engine, "CREATE TABLE archive LIKE legacy_poll_event")
    try:
        report = begin()
        report.exec_driver_sql("INSERT INTO archive SELECT * FROM legacy_poll_event")
        number = report.exec_driver_sql("SELECT CONNECTION_ID()").scalar()
        store.publish(2)
        moves = []
        behind = threading.Thread(target=lambda: moves.append(make_store().move()))
        behind.start()
        # Not of its list of transactions: InnoDB goes on showing what that showed until nobody has asked for 0.1 s.
        waits = "SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_current_waits'"
        with engine.connect() as watcher:
            until(
                lambda: int(watcher.exec_driver_sql(waits).first()[1]) > 0,
                20,
                "a move waits behind the report",
            )
        named = store.sequencer.lock_holder()
        behind.join(20)
        assert [event.data for event in moves[0].events] == ["2"]
        assert named.count("server connection") == 1
        assert "server connection %d, user root" % number in named
        report.rollback()
        assert store.sequencer.bring_back() == 1
        # At READ COMMITTED it locks nothing.
        report.exec_driver_sql("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        report.commit()
        report.exec_driver_sql("INSERT INTO archive SELECT * FROM legacy_poll_event")
        store.publish(3)
        assert not store.move().busy
        assert store.data() == [1, 2, 3]
        report.rollback()
    finally:
        report.close()
        run(engine, "DROP TABLE archive")
