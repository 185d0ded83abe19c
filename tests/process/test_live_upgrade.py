"""From one schema version to the next while both versions serve: tables first, then the code, and nobody waits for it.

The next version is made here: a copy of today's package with one more migration, which adds what a migration within a
line may add, and says so by its number.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from legacy_poll.schema import REVISION, VERSION_TABLE
from tests.gunicorn import ROOT
from tests.process.conftest import everyone, hold_everywhere
from tests.process.polls import Client, get, head, publish
from tests.waiting import until

NEXT = "1_0900"
MIGRATION = '''
"""A column with a default, one without, an index and a table.

Revision ID: 1_0900
"""

import sqlalchemy as sa
from alembic import op

revision = "1_0900"
down_revision = "{}"
branch_labels = None
depends_on = None


def upgrade():
    op.add_column("legacy_poll_outbox", sa.Column("trace", sa.String(80)))
    op.add_column("legacy_poll_event", sa.Column("weight", sa.Integer, server_default="7"))
    op.create_index("legacy_poll_event_type", "legacy_poll_event", ["type"])
    op.create_table("legacy_poll_cluster", sa.Column("name", sa.String(80), primary_key=True))
'''.format(REVISION)


@pytest.fixture
def next_version(tmp_path):
    """A folder with the package of the next version, as a wheel lays it out."""
    without_caches = shutil.ignore_patterns("__pycache__")
    package = tmp_path / "next" / "legacy_poll"
    shutil.copytree(str(ROOT / "legacy_poll"), str(package), ignore=without_caches)
    shutil.copytree(str(ROOT / "alembic"), str(package / "migrations"), ignore=without_caches)
    shutil.copy(str(ROOT / "wsgi.py"), str(package.parent))
    (package / "migrations" / "versions" / (NEXT + "_more.py")).write_text(MIGRATION)
    code = (package / "schema.py").read_text()
    changed = code.replace('REVISION = "{}"'.format(REVISION), 'REVISION = "{}"'.format(NEXT))
    assert changed != code
    (package / "schema.py").write_text(changed)
    return package.parent


def upgrade_to(folder, url):
    done = subprocess.run(
        [sys.executable, "-m", "legacy_poll", "upgrade"],
        cwd=str(folder),
        env=dict(os.environ, PYTHONPATH=str(folder), LEGACY_POLL_DATABASE_URL=url),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


class Follower(threading.Thread):
    """A client that goes from poll to poll until it has seen the end."""

    def __init__(self, gunicorn, cursor):
        super().__init__(daemon=True)
        self.client = Client(gunicorn, channel="busy", cursor=cursor)
        self.start()

    def run(self):
        while "end" not in self.client.seen:
            self.client.ask().hear()


class Publishing(threading.Thread):
    """Numbers into the channel `busy`, a commit each, over HTTP, until told to end; :meth:`has` counts them."""

    def __init__(self, gunicorn):
        super().__init__(daemon=True)
        self.gunicorn = gunicorn
        self.acknowledged = 0
        self._refused = None
        self._enough = threading.Event()
        self.start()

    def run(self):
        try:
            while not self._enough.is_set():
                event = {"channel": "busy", "data": self.acknowledged, "id": "number-%d" % self.acknowledged}
                answer = publish(self.gunicorn, event)
                if answer.status == 503:
                    continue  # the same id again, as the contract says
                assert answer.status in (200, 201), answer
                self.acknowledged += 1
        except BaseException as error:
            self._refused = error

    def has(self, count):
        """Whether *count* were acknowledged; fails when one was refused, since then they never will be."""
        assert self._refused is None, repr(self._refused)
        return self.acknowledged >= count

    def end(self):
        self._enough.set()
        self.join(60)
        assert not self.is_alive() and self.has(0)
        publish(self.gunicorn, {"channel": "busy", "data": "end"})
        return list(range(self.acknowledged)) + ["end"]


def test_tables_of_the_next_version_come_while_this_one_serves_and_then_both_do(
    serve, terminal, database_url, next_version
):
    today = serve(workers=2)
    start = head(today)
    quiet = everyone(hold_everywhere(today, 3, channel="quiet", cursor=start))
    publishing = Publishing(today)
    followers = [Follower(today, start) for _ in range(3)]
    until(lambda: publishing.has(21), 30, "events flow")

    upgrade_to(next_version, database_url)
    after = publishing.acknowledged
    until(lambda: publishing.has(after + 21), 30, "events flow on")
    assert NEXT in terminal("SELECT version_num FROM {};".format(VERSION_TABLE))
    assert all(client.held for client in quiet), "an upgrade ends no hold"

    # The next version beside this one, on the same tables.
    serving = serve(workers=1, options=["--pythonpath", str(next_version)])
    assert not serving.logged("newer than this code's")
    followers.append(Follower(serving, start))
    beside = Client(serving, channel="quiet", cursor=start).ask()
    until(lambda: publishing.has(after + 61), 30, "events flow on")
    expected = publishing.end()
    for follower in followers:
        follower.join(60)
        assert follower.client.seen == expected

    # From either to both.
    assert all(client.held for client in quiet + [beside])
    terminal.publish('"by INSERT"', channel="quiet")
    assert [client.hear().data for client in quiet + [beside]] == [["by INSERT"]] * 7
    for gunicorn in (serving, today):
        for client in quiet + [beside]:
            client.ask()
        assert publish(gunicorn, {"channel": "quiet", "data": "by POST"}).status == 201
        assert [client.hear().data for client in quiet + [beside]] == [["by POST"]] * 7

    # Workers of this version that start now work, and say what to do, once each.
    old = set(today.workers)
    today.signal(signal.SIGHUP)
    until(lambda: not old & set(today.workers), 30, "the workers are others")
    today.wait_until_ready()
    for worker in today.workers:
        with today.only(worker):
            for _ in range(3):
                assert get(today, "/health/ready").status == 200
            assert publish(today, {"channel": "late", "data": worker}).status == 201
    warning = "at version {}, newer than this code's {}: upgrade the package soon".format(NEXT, REVISION)
    until(lambda: today.logged(warning) == 2, what="each worker that started since says so")
    lines = [line for line in today.log.splitlines() if line.startswith("legacy_poll: ")]
    assert [line for line in lines if warning not in line and not re.search(EXPECTED, line)] == []


# While tables change, a look may meet a lock or be turned away; it comes again, and says so.
EXPECTED = "the database works again|draining|lock|timeout"
