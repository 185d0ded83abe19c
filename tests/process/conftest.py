"""Real gunicorn, real servers, real clients; nothing here is in the tests' own process.

`serve(...)` starts a gunicorn on the test's own database; `house` is one that the tests of a module share, three
workers over each database and no hints, for those that leave the database as it is. Both end by looking into the
log: an exception that nobody expected fails the test.
"""

from __future__ import annotations

import subprocess

import pytest
from sqlalchemy import create_engine

from legacy_poll import schema
from tests.conftest import SERVERS as FIXTURES
from tests.gunicorn import Gunicorn
from tests.process.polls import Client, Request, get
from tests.servers import find_program
from tests.waiting import until

# "postgresql" is psycopg 3 where SQLAlchemy knows it.
SERVERS = ["postgresql", "postgresql+psycopg2", "mariadb", "mysql"]
DATABASES = ["sqlite"] + SERVERS

# A database and a lane: the parked one over SQLite, since no lane knows what is behind the hub.
PLACES = [(kind, "standard") for kind in DATABASES] + [("sqlite", "parked")]
each_place = pytest.mark.parametrize("database_url, lane", PLACES, indirect=["database_url"])
# Where nothing hangs on the driver, psycopg2 is left out.
DEFAULTS = [kind for kind in DATABASES if "+" not in kind]
each_default_place = pytest.mark.parametrize(
    "database_url, lane", [place for place in PLACES if place[0] in DEFAULTS], indirect=["database_url"]
)
each_lane = pytest.mark.parametrize("lane", ["standard", "parked"])
# Where no lane is asked for, they have what users have.
LANES = {"standard": {"PARK": 0}, "parked": {"PARK": 1}, "default": {"PARK": None}}

# Held for longer than any bound of these tests: nobody's time is up by chance on a machine that is busy.
SETTINGS = {"PUBLIC": 1, "PUBLISH_TOKEN": "publish-token", "HOLD_SECONDS": 600}
# Neither datagrams between the workers nor NOTIFY: what is left is the interval poll.
NO_HINTS = {"WAKEUP_DIRECTORY": "off", "NOTIFY": 0}


class Terminal:
    """The database's own client: sqlite3, psql or mariadb, one process for each statement or script.

    Args:
        url: The database.
        server: The server behind it; None for SQLite.
    """

    def __init__(self, url, server=None):
        self.url = url
        self.server = server

    def __call__(self, sql):
        """Runs *sql* and returns what the client printed."""
        if self.server is not None:
            return self.server.execute(sql, self.url)
        # sqlite3 gives up at once when another process writes, unless it is told to wait.
        command = [find_program("sqlite3"), "-batch", "-bail", "-cmd", ".timeout 10000", self.path]
        done = subprocess.run(command, input=sql, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def path(self):
        """SQLite: the file."""
        return self.url.partition(":///")[2]

    def publish(self, *data, channel="orders"):
        """Commits each of *data*, JSON texts, in one transaction."""
        row = "INSERT INTO legacy_poll_outbox (channel, data) VALUES ('{}', '{}');"
        rows = [row.format(channel, each) for each in data]
        self("\n".join(["BEGIN;"] + rows + ["COMMIT;"]))


def upgrade(url):
    """What `legacy-poll upgrade` does; not in a process of its own, whose start would take longer than the upgrade."""
    engine = create_engine(url, future=True)
    schema.upgrade(engine)
    engine.dispose()


def check_log(gunicorn):
    """Nothing went wrong that nobody foresaw."""
    assert "Traceback" not in gunicorn.log, gunicorn.log


@pytest.fixture
def terminal(database_url, database_server):
    return Terminal(database_url, database_server)


@pytest.fixture
def lane():
    """Where polls wait, for `each_place` and `each_lane`."""
    return "standard"


@pytest.fixture
def start_gunicorn(request, lane):
    """Makes gunicorns that end with the test, and before its database."""
    if "database_url" in request.fixturenames:
        request.getfixturevalue("database_url")
    made = []

    def make(settings=(), **options):
        settings = {**SETTINGS, **LANES[lane], **dict(settings)}
        given = {name: value for name, value in settings.items() if value is not None}
        made.append(Gunicorn(given, **options))
        return made[-1]

    yield make
    for gunicorn in made:
        print(gunicorn.log)  # pytest shows it when the test failed
        gunicorn.destroy()


@pytest.fixture
def serve(start_gunicorn, database_url):
    """A ready gunicorn on the test's database, tables and all; its log is read at the end."""
    served = []

    def start(settings=(), **options):
        if not database_url.startswith("sqlite"):
            upgrade(database_url)
        gunicorn = start_gunicorn(dict(settings, DATABASE_URL=database_url), **options)
        served.append(gunicorn)
        return gunicorn.start()

    yield start
    for gunicorn in served:
        check_log(gunicorn)


@pytest.fixture
def shop(start_gunicorn, database_url):
    """Starts the application of parking.py in one worker."""

    def start(lane="parked", *, hide=False, options=(), **settings):
        gunicorn = start_gunicorn(
            dict(settings, DATABASE_URL=database_url, **LANES[lane]),
            workers=1,
            app="tests.process.parking:app",
            environ={"HIDE": "1"} if hide else {},
            options=["--access-logfile", "-", *options],
        )
        gunicorn.start()
        return gunicorn

    return start


@pytest.fixture(scope="module", params=DATABASES + ["sqlite-parked"])
def house(request, tmp_path_factory):
    """A gunicorn with three workers and its database's `terminal`, shared by the tests of a module."""
    database, _, lane = request.param.partition("-")
    kind, _, driver = database.partition("+")
    server = None
    if kind == "sqlite":
        url = "sqlite:///{}".format(tmp_path_factory.mktemp("house") / "house.db")
    else:
        server = request.getfixturevalue("_" + FIXTURES[kind])
        server.resume()
        url = server.create_database(driver=database if driver else None)
        upgrade(url)
    gunicorn = Gunicorn(dict(SETTINGS, **NO_HINTS, **LANES[lane or "standard"], DATABASE_URL=url), workers=3)
    gunicorn.terminal = Terminal(url, server)
    try:
        yield gunicorn.start()
        check_log(gunicorn)
    finally:
        gunicorn.destroy()
        if server is not None:
            server.drop_database(url)


def hold_everywhere(gunicorn, each, live="/health/live", **options):
    """*each* clients held on every worker, one worker after the other; returns {worker: clients}."""
    held = {}
    for worker in gunicorn.workers:
        held[worker] = [Client(gunicorn, **options) for _ in range(each)]
        with gunicorn.only(worker):
            for client in held[worker]:
                client.ask()
            accepted = [client.request.worker_socket for client in held[worker]]
            until(
                lambda wanted=worker, sockets=accepted: set(gunicorn.workers_of(sockets)) == {wanted},
                what="the worker has accepted its clients",
            )
            # It takes requests in turn: when it answers this one, it holds the others.
            assert get(gunicorn, live).status == 200
    return held


def everyone(held):
    """All clients of hold_everywhere()."""
    return [client for clients in held.values() for client in clients]


def ask_worker(gunicorn, worker, path):
    """An open request that *worker*, and no other, has accepted."""
    with gunicorn.only(worker):
        request = Request(gunicorn, path)
        until(lambda: gunicorn.worker_of(request.worker_socket) == worker, what="the worker has accepted")
    return request
