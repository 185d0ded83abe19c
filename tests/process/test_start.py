"""What ends gunicorn's start, and what the operator reads then; and that the tests' own gunicorn dies with them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.gunicorn import ROOT
from tests.process.polls import get, stream
from tests.servers import _alive
from tests.waiting import until

# Settings -> what the log says about them. A value of None takes the setting away.
REFUSED = {
    "an unknown variable": (
        {"HOLD_SECOND": 5},
        ["LEGACY_POLL_HOLD_SECOND is not a setting", "did you mean LEGACY_POLL_HOLD_SECONDS?"],
    ),
    "a value that is no number": (
        {"HOLD_SECONDS": "soon"},
        ["LEGACY_POLL_HOLD_SECONDS", "'soon'", "a number"],
    ),
    "a value out of bounds": ({"MAX_EVENTS": 0}, ["LEGACY_POLL_MAX_EVENTS", "1 to 10000"]),
    "a value that is neither yes nor no": (
        {"PUBLIC": "perhaps"},
        ["LEGACY_POLL_PUBLIC", "'perhaps'", "1 or 0"],
    ),
    "nobody who may read": ({"PUBLIC": 0}, ["LEGACY_POLL_SECRET_KEY", "LEGACY_POLL_PUBLIC=1"]),
    "a key that is too short": (
        {"PUBLIC": 0, "SECRET_KEY": "short"},
        ["secret_key has 5 characters", "at least 16"],
    ),
    "a URL that is none": ({"DATABASE_URL": "orders.db"}, ["LEGACY_POLL_DATABASE_URL cannot be used"]),
    "a database in memory": ({"DATABASE_URL": "sqlite://"}, ["in memory", "use a file"]),
    "a database that we do not know": (
        {"DATABASE_URL": "oracle://db/x"},
        ["the database is oracle: PostgreSQL, MySQL, MariaDB or SQLite is needed"],
    ),
    "a database that we do not know, with its driver": (
        {"DATABASE_URL": "mssql+pyodbc://db/x"},
        ["the database is mssql: PostgreSQL, MySQL, MariaDB or SQLite is needed"],
    ),
    "an asynchronous driver": (
        {"DATABASE_URL": "postgresql+asyncpg://db/x"},
        ["the database's driver is asyncpg: psycopg or psycopg2 is needed"],
    ),
    "a driver that we do not know": (
        {"DATABASE_URL": "postgresql+pg8000://db/x"},
        ["the database's driver is pg8000: psycopg or psycopg2 is needed"],
    ),
    "a driver that we do not know, of MySQL": (
        {"DATABASE_URL": "mysql+aiomysql://db/x"},
        ["the database's driver is aiomysql: pymysql or"],
    ),
    "an asynchronous driver of SQLite": (
        {"DATABASE_URL": "sqlite+aiosqlite:///x.db"},
        ["the database's driver is aiosqlite: pysqlite is needed"],
    ),
    "a driver that is not installed": (
        {"DATABASE_URL": "mysql://db/x"},
        ["No module named 'MySQLdb'", "pip install 'legacy_poll[mysql]'"],
    ),
    "a name that others use": (
        {"DATABASE_URL": "postgres://db/x"},
        ["SQLAlchemy's name for it is postgresql, not postgres"],
    ),
}


def test_a_server_that_cannot_work_as_it_was_told_does_not_start_and_says_why(start_gunicorn):
    # All at once: each is alone with its own settings, port and folder.
    spawned = {}
    for what, (settings, _) in REFUSED.items():
        spawned[what] = start_gunicorn(settings, workers=1)
        spawned[what].spawn()
    for what, gunicorn in spawned.items():
        until(lambda ended=gunicorn: not ended.running, 60, "gunicorn with {} ends".format(what))
        assert gunicorn.exit_code != 0, what
        for words in REFUSED[what][1]:
            assert words in gunicorn.log, what + "\n" + gunicorn.log


def test_the_bare_server_needs_no_database_setting_and_makes_its_own_file(start_gunicorn):
    gunicorn = start_gunicorn({"PUBLIC": 0, "SECRET_KEY": "a key of some length"}, workers=3).start()
    assert get(gunicorn, stream()).status == 401
    assert (gunicorn.directory / "legacy_poll.db").exists()
    assert "Traceback" not in gunicorn.log


STARTER = """
import sys
from tests.gunicorn import Gunicorn
gunicorn = Gunicorn({"PUBLIC": 1}, workers=1).start()
print(gunicorn.directory, gunicorn.pid, *gunicorn.workers, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_gunicorn_of_the_tests_dies_with_the_process_that_started_it(number):
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER],
        cwd=str(ROOT),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    directory, *processes = starter.stdout.readline().split()
    assert len(processes) == 2 and all(_alive(int(pid)) for pid in processes)
    starter.send_signal(number)
    starter.communicate()
    until(lambda: not any(_alive(int(pid)) for pid in processes), 30, "its gunicorn is gone")
    until(lambda: not os.path.exists(directory), 30, "its folder is gone")
