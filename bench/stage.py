"""Databases, servers and child processes for a measurement; all of them end with it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request

import pytest
from sqlalchemy import create_engine

from legacy_poll.schema import upgrade
from tests.servers import MariaDBServer, PostgresServer, free_port
from tests.waiting import until

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DATABASES = ("sqlite", "postgresql", "mariadb")
TOKEN = "bench"
START_SECONDS = 60
LOG_CHARACTERS = 3000  # of a server that was in a run that failed
_TICKS = os.sysconf("SC_CLK_TCK")


class _Postgres(PostgresServer):
    """With the default durability: the tests' servers do without, and every ratio would be another."""

    def _serve_command(self):
        return super()._serve_command() + ["-c", "fsync=on"]


class _MariaDB(MariaDBServer):
    def _serve_command(self):
        return super()._serve_command() + ["--innodb-flush-log-at-trx-commit=1"]


class Place:
    """One empty database with our tables, and the server behind it (None for SQLite)."""

    def __init__(self, kind, url, server):
        self.kind = kind
        self.url = url
        self.server = server

    def cpu_seconds(self):
        """Spent by the server's processes that live now."""
        return sum(map(cpu_seconds, self.server._processes())) if self.server else 0.0

    def execute(self, *statements):
        engine = create_engine(self.url, future=True)
        with engine.begin() as connection:
            found = [connection.exec_driver_sql(each) for each in statements][-1]
            rows = found.fetchall() if found.returns_rows else []
        engine.dispose()
        return rows


@contextlib.contextmanager
def place(kind):
    """A Place on the database *kind*; None, with a line that says why, where it is not installed."""
    with tempfile.TemporaryDirectory(prefix="legacy_poll-bench-") as folder:
        try:
            server = {"postgresql": _Postgres, "mariadb": _MariaDB}.get(kind, lambda: None)()
        except pytest.skip.Exception as reason:
            print("%s: skipped, %s" % (kind, reason))
            yield None
            return
        try:
            url = server.create_database() if server else "sqlite:///%s/bench.db" % folder
            engine = create_engine(url)
            upgrade(engine)
            engine.dispose()
            yield Place(kind, url, server)
        finally:
            if server:
                server.destroy()


class Child:
    """``python -m bench.<module> arguments``, and the JSON lines to and from it."""

    def __init__(self, module, *arguments):
        command = [sys.executable, "-m", "bench." + module] + [str(each) for each in arguments]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    @property
    def pid(self):
        return self._process.pid

    def say(self, value):
        self._process.stdin.write(json.dumps(value) + "\n")
        self._process.stdin.flush()

    def hear(self):
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError("%s ended" % " ".join(self._process.args[2:4]))
        return json.loads(line)

    def ask(self, value):
        self.say(value)
        return self.hear()


class Gunicorn:
    """``gunicorn -k gevent wsgi:app`` as anybody would run it, on a Place; or another *app*, which needs none.

    Args:
        ready: A path that is answered, whatever with, once a worker serves; with its status 200 for our own app.
    """

    def __init__(self, database, workers, *, settings=(), options=(), app="wsgi:app", ready="/health/ready"):
        self.port = free_port()
        self._workers = workers
        self._ready = ready
        self._any_answer = database is None
        self._log = tempfile.TemporaryFile()
        command = [sys.executable, "-m", "gunicorn", "-k", "gevent", "-w", str(workers)]
        self._process = subprocess.Popen(
            command + ["-b", "127.0.0.1:%d" % self.port, *options, app],
            cwd=ROOT,
            env=dict(
                os.environ,
                LEGACY_POLL_DATABASE_URL=database.url if database else "sqlite://",
                LEGACY_POLL_PUBLIC="1",
                LEGACY_POLL_PUBLISH_TOKEN=TOKEN,
                **{"LEGACY_POLL_" + name: str(value) for name, value in dict(settings).items()},
            ),
            stdout=self._log,
            stderr=self._log,
        )

    def __enter__(self):
        try:
            until(
                lambda: self._process.poll() is not None or self._is_ready(),
                START_SECONDS,
                "gunicorn is ready",
            )
        except BaseException:  # told to end meanwhile
            self._process.terminate()
            raise
        if self._process.poll() is not None:
            raise AssertionError("gunicorn ended:\n%s" % self.log())
        return self

    def __exit__(self, *error):
        self._process.terminate()
        self._process.wait()
        if error[0] is not None:
            sys.stderr.write(self.log()[-LOG_CHARACTERS:])
        self._log.close()

    @property
    def pid(self):
        """The arbiter's."""
        return self._process.pid

    def log(self):
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace")

    def workers(self):
        """Pids."""
        with open("/proc/%d/task/%d/children" % (self._process.pid, self._process.pid)) as children:
            return [int(each) for each in children.read().split()]

    def has_read_all(self):
        """Whether nothing that a client sent is still unread; then every poll that was sent is held."""
        return unread_bytes(self.port) == 0

    def _is_ready(self):
        try:
            with urllib.request.urlopen("http://127.0.0.1:%d%s" % (self.port, self._ready)):
                return len(self.workers()) == self._workers
        except urllib.error.HTTPError:
            return self._any_answer
        except OSError:
            return False


def unread_bytes(port):
    """In the kernel's receive queues of the connections that *port* accepted, or has yet to accept."""
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    # local address, then state 01 (established), then tx_queue:rx_queue, all in hexadecimal
    return sum(
        int(row[4].split(":")[1], 16)
        for row in rows
        if row[3] == "01" and int(row[1].rpartition(":")[2], 16) == port
    )


def cpu_seconds(pid):
    """User and system time of process *pid* so far; 0 when it is gone."""
    try:
        with open("/proc/%d/stat" % pid) as stat:
            fields = stat.read().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


def exact_cpu_seconds(pid):
    """As :func:`cpu_seconds`, to the nanosecond; of the threads that live now."""
    total = 0
    for task in os.listdir("/proc/%d/task" % pid):
        with open("/proc/%d/task/%s/schedstat" % (pid, task)) as schedstat:
            total += int(schedstat.read().split()[0])
    return total / 1e9


def resident_mib(pid, *, peak=False):
    """Memory of process *pid* that is resident now, or the most that ever was."""
    field = "VmHWM" if peak else "VmRSS"
    with open("/proc/%d/status" % pid) as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) / 1024.0


def descriptor_limit():
    """How many a process of ours may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def quantile(values, share):
    """The value below or at which *share* of *values* are."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def median(values):
    """The middle one; of an even number, the mean of the two."""
    return statistics.median(values)


def check_order(seen, published):
    """Fails unless *seen* is *published*: everything, once, in order.

    Raises:
        AssertionError: Says how many were lost, came twice, or came out of order.
    """
    if seen == published:
        return
    lost, extra = set(published) - set(seen), len(seen) - len(set(seen))
    raise AssertionError(
        "%d of %d events lost, %d twice, the order is %s"
        % (len(lost), len(published), extra, "another" if not lost and not extra else "unknown")
    )
