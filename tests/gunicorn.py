"""A real `gunicorn -k gevent wsgi:app`, with as many workers as a test wants, that the test may treat badly.

Each has a port, a working directory and a HOME of its own and sees no LEGACY_POLL_* variable but those that it is
given. Like the database servers it dies with the process that started it, even if that was killed; see tests.servers.

    gunicorn = Gunicorn({"PUBLIC": 1, "DATABASE_URL": url}, workers=3)
    gunicorn.start()                 returns once every worker says that it is ready
    gunicorn.workers                 process ids; gunicorn.kill(pid), gunicorn.paused(pid)
    with gunicorn.only(pid):         connections made here are that worker's
    gunicorn.log                     what gunicorn and legacy_poll wrote
    gunicorn.destroy()
"""

from __future__ import annotations

import atexit
import contextlib
import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.servers import WATCHDOG, _alive, _children, _send, _state, _stopped, free_port
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 60
ANSWER_SECONDS = 30
# Connections opened at once so that each of several workers gets one, while we wait for all to be ready.
AT_ONCE = 12
# Between two rounds of them. A worker with max-requests, asked without a pause, would end before it is ready.
ROUND_SECONDS = 0.1


class Gunicorn:
    """One gunicorn: an arbiter and its workers.

    Args:
        settings: The LEGACY_POLL_* variables without their prefix; values become text.
        workers: How many.
        app: What to serve, as gunicorn is told; importable from the repository's root.
        environ: Other variables.
        options: More of gunicorn's command line.
        ready: The path that answers 200 when a worker is ready.
    """

    def __init__(
        self, settings=(), *, workers=2, app="wsgi:app", environ=(), options=(), ready="/health/ready"
    ):
        self.settings = dict(settings)
        self.port = free_port()
        self.url = "http://127.0.0.1:{}".format(self.port)
        # Short and outside pytest's tmp_path, as the servers': the watchdog knows our processes by it.
        self.directory = Path(tempfile.mkdtemp(prefix="legacy_poll-gunicorn-", dir="/tmp"))
        self.environ = dict(environ)
        self._count = workers
        self._app = app
        self._options = list(options)
        self._ready = ready
        self._child = None
        atexit.register(self._at_exit, os.getpid())
        self._watchdog = subprocess.Popen(
            ["sh", "-c", WATCHDOG, "sh", str(os.getpid()), str(self.directory)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def start(self):
        """Starts it and returns once every worker says that it is ready."""
        self.spawn()
        self.wait_until_ready()
        return self

    def spawn(self):
        """Starts it and returns at once; for one that is not expected to get ready."""
        with open(str(self.log_path), "ab") as log:
            self._child = subprocess.Popen(
                self._command(),
                cwd=str(self.directory),
                env=self._environ(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _command(self):
        # The script, as users start it: `python -m gunicorn` cannot start itself again on SIGUSR2.
        command = [sys.executable, str(Path(sys.executable).with_name("gunicorn"))]
        command += ["-c", str(ROOT / "gunicorn.conf.py"), "-k", "gevent"]
        command += ["-b", "127.0.0.1:{}".format(self.port), "-w", str(self._count)]
        return command + ["--pythonpath", str(ROOT)] + self._options + [self._app]

    def wait_until_ready(self, seconds=START_SECONDS):
        """Waits until each worker has said that it is ready."""
        ready = set()
        said = []
        next_round = time.monotonic()

        def all_ready():
            nonlocal next_round
            self.must_run()
            if time.monotonic() < next_round:
                return False
            if not all(_state(pid) == "S" for pid in self.workers):
                said.append("busy")
                return False  # busy with their start: questions would only make it longer
            next_round = time.monotonic() + ROUND_SECONDS
            with contextlib.ExitStack() as opened:
                asked = []
                for _ in range(AT_ONCE if self._count > 1 else 1):
                    connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)
                    opened.callback(connection.close)
                    with contextlib.suppress(OSError):
                        connection.request("GET", self._ready)
                        asked.append(connection)
                for connection in asked:
                    try:
                        answer = connection.getresponse()
                        if answer.status != 200:
                            said.append("{} {}".format(answer.status, answer.read().decode("utf-8")))
                            continue
                        if self._count == 1:
                            ready.update(self.workers)  # a server without keep-alive has closed it
                        elif connection.sock is not None:
                            ready.add(self.worker_of(connection.sock))
                        # Else it was closed behind the answer, as by a worker that ends: whose it was cannot be told.
                    except (OSError, http.client.HTTPException) as error:
                        said.append(repr(error))
            workers = self.workers
            return len(workers) == self._count and ready.issuperset(workers)

        try:
            until(all_ready, seconds, "each worker is ready")
        except AssertionError as error:
            asked = "{}; of {} these are ready: {}; said last: {}".format(
                error, self.workers, sorted(ready, key=str), said[-3:]
            )
            raise AssertionError("{}\n{}".format(asked, self.log[-3000:])) from None

    def must_run(self):
        """Fails with the log's end unless gunicorn runs."""
        if not self.running:
            raise AssertionError("gunicorn ended: {}".format(self.log[-3000:]))

    @property
    def parks(self):
        """Whether polls are to wait in the parked lane; that is for connections that are kept."""
        return str(self.settings.get("PARK", 1)) != "0"

    @property
    def running(self):
        return self._child is not None and self._child.poll() is None

    @property
    def exit_code(self):
        """What gunicorn ended with; None while it runs."""
        return self._child.poll()

    @property
    def pid(self):
        """The arbiter's."""
        return self._child.pid

    @property
    def workers(self):
        """Process ids of the workers that live, oldest first."""
        return sorted(pid for pid in _children(self.pid) if _alive(pid))

    @property
    def log_path(self):
        return self.directory / "log"

    @property
    def log(self):
        """Everything that was written so far, by all runs."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def logged(self, text):
        """How many lines of the log have *text*."""
        return sum(text in line for line in self.log.splitlines())

    def signal(self, number, pid=None):
        """Sends a signal to a worker, or to the arbiter."""
        _send(self.pid if pid is None else pid, number)

    def kill(self, worker):
        """kill -9 of one worker; returns when it is gone."""
        _send(worker, signal.SIGKILL)
        until(lambda: not _alive(worker), ANSWER_SECONDS, "the worker is gone")

    @contextlib.contextmanager
    def paused(self, *workers):
        """SIGSTOP of *workers*, and SIGCONT at the end."""
        try:
            for pid in workers:
                _send(pid, signal.SIGSTOP)
            until(lambda: all(map(_stopped, workers)), ANSWER_SECONDS, "the workers are stopped")
            yield
        finally:
            for pid in workers:
                _send(pid, signal.SIGCONT)

    def only(self, worker):
        """All other workers are paused, so that whoever connects meets *worker*."""
        return self.paused(*[pid for pid in self.workers if pid != worker])

    def worker_of(self, client_socket):
        """The process id of the worker that accepted our connection; None while nobody has."""
        return self.workers_of([client_socket])[0]

    def workers_of(self, client_sockets):
        """The same for many, at the cost of one."""
        accepted = _accepted()
        owners = {inode: pid for pid in self.workers for inode in _socket_inodes(pid)}
        ports = [(each.getpeername()[1], each.getsockname()[1]) for each in client_sockets]
        return [owners.get(accepted.get(pair)) for pair in ports]

    def descriptors(self, worker):
        """How many descriptors *worker* has open."""
        return len(os.listdir("/proc/{}/fd".format(worker)))

    def sockets(self, worker):
        """How many of them are sockets."""
        return len(_socket_inodes(worker))

    def resident_bytes(self, worker):
        """Memory of *worker* that is in use."""
        with open("/proc/{}/statm".format(worker)) as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def destroy(self):
        """Ends all its processes and removes its directory."""
        if self._child is not None:
            # The arbiter is stopped first, so that it starts no new workers while the old ones end.
            if self.running:
                self.signal(signal.SIGSTOP)
            everyone = [self.pid] + _children(self.pid)
            for pid in everyone:
                _send(pid, signal.SIGKILL)
            self._child.wait()
            until(lambda: not any(map(_alive, everyone)), ANSWER_SECONDS, "gunicorn's processes are gone")
        if self._watchdog.poll() is None:
            os.killpg(self._watchdog.pid, signal.SIGKILL)
            self._watchdog.wait()
        shutil.rmtree(str(self.directory), ignore_errors=True)

    def _environ(self):
        environ = {name: value for name, value in os.environ.items() if not name.startswith("LEGACY_POLL_")}
        # gunicorn 27 makes a socket below HOME, which all gunicorns of one user would share.
        # And what workers leave in the folder for temporary files goes with ours.
        environ.update(
            self.environ, HOME=str(self.directory), TMPDIR=str(self.directory), PYTHONUNBUFFERED="1"
        )
        environ.update({"LEGACY_POLL_" + name: str(value) for name, value in self.settings.items()})
        return environ

    def _at_exit(self, owner):
        if os.getpid() == owner:
            self.destroy()


class OneProcess(Gunicorn):
    """Another server, which is one process: its own only worker.

    Args:
        command: Behind the name of Python; "{port}" in it becomes the port.
    """

    def __init__(self, settings=(), *, command, **options):
        super().__init__(settings, workers=1, **options)
        self._arguments = [argument.format(port=self.port) for argument in command]
        self.environ.setdefault("PYTHONPATH", str(ROOT))

    def _command(self):
        return [sys.executable] + self._arguments

    @property
    def workers(self):
        return [self.pid] if self.running else []


def _accepted():
    """(local port, remote port) -> the inode of that end of a loopback connection, unless it waits to be accepted."""
    row = r"^ *\d+: \w+:(\w{4}) \w+:(\w{4}) (?:\S+ +){6}([1-9]\d*) "
    with open("/proc/net/tcp") as table:
        found = re.findall(row, table.read(), re.MULTILINE)
    return {(int(local, 16), int(remote, 16)): inode for local, remote, inode in found}


def _socket_inodes(pid):
    found = set()
    folder = "/proc/{}/fd".format(pid)
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                target = os.readlink(os.path.join(folder, name))
                if target.startswith("socket:["):
                    found.add(target[8:-1])
    return found
