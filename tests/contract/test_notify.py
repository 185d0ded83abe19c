"""A LISTEN goes deaf without a sign; the listener finds out by a probe of its own. On a real PostgreSQL, through a
connection that swallows what it should bring, as a half-open one does.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading

import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from legacy_poll.config import Settings
from legacy_poll.database import Database
from legacy_poll.wakeups import NotifyListener, notify
from tests.servers import free_port
from tests.waiting import until

pytestmark = [
    pytest.mark.own_database,
    pytest.mark.parametrize("database_url", ["postgresql"], indirect=True),
    pytest.mark.parametrize("driver", ["", "postgresql+psycopg2"], ids=["default", "psycopg2"]),
]


class Network:
    """Forwards connections to a port of this host; told to swallow, listeners hear nothing any more.

    Nothing else changes: connections stay open, and those that ask questions get their answers.
    """

    def __init__(self, port):
        self.port = free_port()
        self.swallows = False
        self.listeners = 0
        self._to = port
        self._server = socket.create_server(("127.0.0.1", self.port))
        self._ends = [self._server]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                near.close()
                continue
            self._ends += [near, far]
            state = {"listens": False}
            threading.Thread(target=self._pump, args=(near, far, state, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, state, False), daemon=True).start()

    def _pump(self, source, target, state, asks):
        try:
            for block in iter(lambda: source.recv(65536), b""):
                if asks and b"LISTEN legacy_poll" in block:
                    state["listens"] = True
                    self.listeners += 1
                # The answer to LISTEN itself still comes: it is before this that the line went dead, or after.
                if not asks and state["listens"] and self.swallows and b"legacy_poll" in block:
                    continue
                target.sendall(block)
        except OSError:
            pass
        finally:
            for each in (source, target):
                try:
                    each.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def close(self):
        for each in self._ends:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)  # closing alone wakes nobody who waits
            each.close()


@pytest.fixture
def network(database_url):
    network = Network(make_url(database_url).port)
    yield network
    network.close()


@pytest.fixture
def database(database_url, driver, network):
    url = make_url(database_url).set(port=network.port)
    engine = create_engine(url.set(drivername=driver) if driver else url, future=True)
    database = Database(engine, Settings())
    yield database
    database.close()
    engine.dispose()


@pytest.fixture
def woken():
    return []


@pytest.fixture
def listener(database, woken):
    listener = NotifyListener(database, lambda: woken.append(1), probe_seconds=0.1, answer_seconds=0.3)
    yield listener
    listener.stop()


def run(listener):
    thread = threading.Thread(target=listener.run, daemon=True)
    thread.start()
    return thread


def lines(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "legacy_poll"]


def test_a_notification_wakes_and_one_of_its_own_shows_that_it_hears(listener, database, woken, caplog):
    thread = run(listener)
    until(lambda: listener.hears)
    before = len(woken)
    database.notify()
    until(lambda: len(woken) > before)
    listener.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert not listener.hears
    assert lines(caplog) == []


def test_a_line_that_went_dead_is_found_said_once_and_listened_on_again(listener, network, caplog):
    caplog.set_level(logging.INFO, "legacy_poll")
    run(listener)
    until(lambda: listener.hears)
    network.swallows = True
    until(lambda: not listener.hears, what="it finds out")
    # It goes on trying, and has nothing new to say.
    until(lambda: network.listeners >= 3, 30, "it listens anew")
    assert [line for line in lines(caplog) if "our own did not arrive" in line] == lines(caplog)
    assert len(lines(caplog)) == 1
    network.swallows = False
    until(lambda: listener.hears, 30, "it hears again")
    assert lines(caplog)[1:] == ["legacy_poll: notifications from the database arrive again"]


def test_a_database_that_is_away_ends_nothing_and_is_said_once(listener, database_server, caplog):
    run(listener)
    until(lambda: listener.hears)
    database_server.kill()
    until(lambda: listener._failures >= 2, 30, "it tried again")
    assert len(lines(caplog)) == 1
    database_server.start()
    until(lambda: listener.hears, 30, "it hears again")
    assert len(lines(caplog)) == 2


def ended(database_server, database_url):
    """How many listening sessions an administrator, or a proxy, has ended just now."""
    sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'LISTEN legacy_poll' AND datname = '{}'"
    return database_server.execute(sql.format(make_url(database_url).database)).count("t")


def test_a_line_that_comes_and_goes_is_said_a_few_times_and_then_when_it_lasts(
    listener, network, database_server, database_url, caplog, monkeypatch
):
    monkeypatch.setattr(notify, "_FIRST_BACKOFF_SECONDS", 0.01)
    run(listener)
    for _ in range(6):
        until(lambda: listener.hears, 30, "it hears")
        until(lambda: ended(database_server, database_url), what="its session is ended")
        until(lambda: not listener.hears, 30, "it is deaf")
    until(lambda: listener.hears, 30, "it hears")
    assert len(lines(caplog)) == 6
    assert [line for line in lines(caplog) if "this comes and goes" in line] == [lines(caplog)[4]]
    # For good: this is news.
    monkeypatch.setattr(notify, "_LASTING_SECONDS", 0.5)
    network.swallows = True
    until(lambda: len(lines(caplog)) == 7, 30, "it says that it is deaf")
    assert "our own did not arrive" in lines(caplog)[6]
    network.swallows = False
    until(lambda: len(lines(caplog)) == 8, 30, "it says that it hears again")


def test_a_server_that_ends_idle_sessions_leaves_the_listener_alone(database, database_server, database_url):
    name = make_url(database_url).database
    database_server.execute("ALTER DATABASE {} SET idle_session_timeout = '300ms'".format(name))
    idle = create_engine(database_url, poolclass=NullPool).raw_connection()
    connection = database.listen()
    alive = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND state = 'idle' AND query LIKE '{}'"
    )
    try:
        with contextlib.closing(idle.cursor()) as cursor:
            cursor.execute("SHOW idle_session_timeout")
            assert cursor.fetchone()[0] == "300ms"
        idle.commit()
        until(
            lambda: database_server.execute(alive.format(name, "COMMIT")).strip() == "0",
            what="others are ended",
        )
        assert database_server.execute(alive.format(name, "LISTEN%")).strip() == "1"
        database.notify()
        until(lambda: database.dialect.drain_notifications(connection) == (True, True), what="it hears")
    finally:
        idle.invalidate()
        database.hang_up(connection)
