"""The demo as a person runs it: gunicorn with two workers, and the database's own client in a terminal beside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess

from tests.gunicorn import Gunicorn
from tests.process.commands import legacy_poll
from tests.servers import find_program
from tests.waiting import until

TERMINAL_SECONDS = 60
# Less than the 25 s of a hold: a stop answers held polls and does not wait for them.
STOP_SECONDS = 20


def insert(data, type="message"):
    """The SQL that publishes *data* to the board."""
    row = "INSERT INTO legacy_poll_outbox (channel, type, data) VALUES ('orders', '{}', '{}');"
    return row.format(type, json.dumps(data).replace("'", "''"))


class Shop(Gunicorn):
    """The demo, served by two workers.

    Args:
        url: Its database; the demo's own default, demo.db where it was started, if left out.
        server: The server behind *url*; None for SQLite.
    """

    def __init__(self, url="", server=None):
        super().__init__(
            workers=2,
            app="demo.app:app",
            # An empty one counts as unset: who runs the tests may have set it for themselves.
            environ={"DEMO_DATABASE_URL": url},
            ready="/poll/health/ready",
        )
        self._server = server
        self._database_url = url or "sqlite:///{}".format(self.directory / "demo.db")

    def sql(self, text):
        """Runs *text* with the database's own client and returns what that printed."""
        if self._server is not None:
            return self._server.execute(text, self._database_url)
        # sqlite3 gives up at once when another process writes, unless it is told to wait.
        return self._run(
            [find_program("sqlite3"), "-batch", "-bail", "-cmd", ".timeout 10000", "demo.db"], text
        )

    def note(self, text):
        """Commits a kitchen notice."""
        self.sql(insert({"note": text}))

    def shell(self, command):
        """Runs *command* as somebody does who types it where the demo was started."""
        return self._run(["sh", "-c", command], "")

    def new_log(self):
        """`legacy-poll new-log --yes`, an operator's step after a restore."""
        done = legacy_poll("new-log", "--yes", DATABASE_URL=self._database_url)
        assert done.returncode == 0, done.stderr

    def stop(self):
        """SIGTERM; returns when gunicorn is gone."""
        self.signal(signal.SIGTERM)
        until(lambda: not self.running, STOP_SECONDS, "gunicorn ends")

    def check_log(self):
        """Nothing went wrong that nobody foresaw."""
        assert "Traceback" not in self.log, self.log

    def _run(self, command, text):
        environ = dict(os.environ)
        if self._server is not None:
            # Debian has psql on PATH, others keep it beside the server.
            folder = os.path.dirname(self._server.program("psql"))
            environ["PATH"] = folder + os.pathsep + environ["PATH"]
        done = subprocess.run(
            command,
            input=text,
            cwd=str(self.directory),
            env=environ,
            capture_output=True,
            text=True,
            timeout=TERMINAL_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout
