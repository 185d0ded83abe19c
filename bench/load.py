"""``load.c``, compiled and steered, and what the processes that it asks use meanwhile."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time

from bench.stage import exact_cpu_seconds
from tests.servers import missing

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "load.c")
#: A thread on another CPU is charged at its timer's tick at the latest: every 4 ms with 250 of them a second.
QUIET_SECONDS = 0.005
QUIET_AT_LAST_SECONDS = 30.0
#: Our publisher's look at the database in between.
NEXT_TO_NOTHING_SECONDS = 0.005


@contextlib.contextmanager
def compiled():
    """The path of the load generator, which is there as long as this is.

    Raises:
        pytest.skip.Exception, pytest.fail.Exception: Without a C compiler, see :func:`tests.servers.missing`.
    """
    compiler = shutil.which("cc") or missing("a C compiler (cc)")
    with tempfile.TemporaryDirectory(prefix="legacy_poll-load-") as folder:
        program = os.path.join(folder, "load")
        subprocess.run(
            [compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, SOURCE, "-lm"], check=True
        )
        yield program


class LoadFailed(Exception):
    """A run that came to nothing; says what the load generator met."""


class Load:
    """N polls of one contender.

    Args:
        program: Of :func:`compiled`.
        dialect: One of load.c's.
        target: What is asked for, up to where the cursor goes.
        ports: To connect to, then those behind it.
        cursor: Where an ``ours`` starts.
    """

    def __init__(self, program, dialect, count, target, ports, cursor="-"):
        command = [program, dialect, str(count), target, cursor] + [str(port) for port in ports]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.count = count

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()

    def ask(self, command):
        """The words of the answer."""
        with contextlib.suppress(BrokenPipeError):  # it has ended, and what it said of that is to be read
            self._process.stdin.write(command + "\n")
        line = self._process.stdout.readline().strip()
        if not line or line.startswith("error: "):
            raise LoadFailed(line or "the load generator ended")
        return line.split()

    def hold(self):
        """Seconds until every poll is held."""
        return float(self.ask("hold")[0])

    def all_have(self, number, count=None):
        """When the last of *count* polls (default all) had message *number*."""
        return float(self.ask("all %d %d" % (number, count or self.count))[0])

    def milliseconds(self, number, since):
        """First, p50, p99 and last of how long after the moment *since* a poll had message *number*."""
        return [float(word) for word in self.ask("times %d %.9f" % (number, since))]

    def counts(self, messages):
        """Of the first *messages*: missed, duplicated, out of order, over all polls."""
        return [int(word) for word in self.ask("counts %d" % messages)]


class Processes:
    """The processes below some, these included.

    Args:
        roots: Pids.
    """

    def __init__(self, roots):
        self._pids = list(roots)
        for pid in self._pids:
            for task in os.listdir("/proc/%d/task" % pid):
                with open("/proc/%d/task/%s/children" % (pid, task)) as children:
                    self._pids.extend(int(each) for each in children.read().split())

    def cpu_seconds(self):
        return sum(exact_cpu_seconds(pid) for pid in self._pids)

    def quiet_cpu_seconds(self):
        """What they used once they do nothing; what belongs to an answer may come behind it."""
        return self.quiet()[0]

    def quiet(self):
        """What they used once they do nothing, and the moment since when: at most a tick late, or None if they did
        next to nothing from now on."""
        deadline = time.monotonic() + QUIET_AT_LAST_SECONDS
        first = used = self.cpu_seconds()
        busy_until = None
        while time.monotonic() < deadline:
            time.sleep(QUIET_SECONDS)
            # Before the time: the kernel may add up what a thread uses only when it stops.
            runs = any(map(_runs, self._pids))
            before, used = used, self.cpu_seconds()
            if used == before and not runs:
                break
            busy_until = time.monotonic()
        return used, busy_until if used - first > NEXT_TO_NOTHING_SECONDS else None

    def milliseconds_a_second(self, seconds):
        """What they use during the next *seconds*."""
        used, begun = self.cpu_seconds(), time.monotonic()
        time.sleep(seconds)
        return 1e3 * (self.cpu_seconds() - used) / (time.monotonic() - begun)

    def kib(self):
        """Memory of their own, what several of them share counted in parts: PSS without the files that are mapped.

        How much of a library counts as ours would change with every other process that uses it.
        """
        return sum(_pss(pid) for pid in self._pids)


def _runs(pid):
    """Whether a thread of *pid* runs, or would if it were its turn."""
    for task in os.listdir("/proc/%d/task" % pid):
        with open("/proc/%d/task/%s/stat" % (pid, task)) as stat:
            if stat.read().rpartition(")")[2].split()[0] == "R":
                return True
    return False


def _pss(pid):
    with open("/proc/%d/smaps_rollup" % pid) as rollup:
        return sum(int(line.split()[1]) for line in rollup if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
