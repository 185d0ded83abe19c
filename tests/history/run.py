"""One run from start to verdict: servers, readers, publishers, what is done to them, and the judge.

    outcome = run(Workload(LEGACY_POLL, url, directory, events=20_000, open_seconds=2.0), faults=True)

Each server is a gunicorn of its own with one worker, so that the three sequence, serve and fail independently. A fault
waits for the run to get somewhere, never for a time: who is stopped stays so until the others have gone on without it.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any, Callable

from sqlalchemy import create_engine, func, select

from legacy_poll.cursors import Cursor
from legacy_poll.schema import upgrade
from legacy_poll.tables import event, log, outbox, set_aside
from tests.gunicorn import ROOT, Gunicorn
from tests.history import COMMITTED, UNKNOWN, History, home_made, reading
from tests.history.checker import Report, judge
from tests.history.faults import KILL, KILL_ALL, KILL_SOON, STOP, Fault
from tests.history.publishing import AT_COMMIT, IN_TRANSACTION, UNFIT, name_of
from tests.history.workload import LEGACY_POLL, PUBLISHERS, READERS, Workload
from tests.waiting import until

CONFIGURATION = str(Path(__file__).with_name("gunicorn.conf.py"))
READING_PROCESSES = 2
LOOK_SECONDS = 0.1
DRAIN_SECONDS = 60

# Limits that operators turn: small ones, so that answers are cut, reads go to the log, and a move takes few rows.
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"MAX_EVENTS": 40, "TAIL_EVENTS": 200, "MAX_RESPONSE_BYTES": 20_000},
    {"MOVE_ROWS": 7, "TAIL_BYTES": 60_000},
)


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        report: Of all readers.
        of_eager: Of those alone that read all channels and ask again at once.
        commits: Transactions that committed events.
        open_seconds: How long each of these was open, from its first INSERT to its commit's return; in order.
        seconds: From the first INSERT to the last commit.
        faults: What was done to whom.
        server_log: What the servers wrote.
    """

    report: Report
    of_eager: Report
    commits: int
    open_seconds: tuple[float, ...]
    seconds: float
    faults: tuple[str, ...]
    server_log: str

    def open_ms(self, share: float) -> float:
        """The time, milliseconds, for which at least *share* of the transactions were open at most."""
        return 1000 * self.open_seconds[ceil(share * len(self.open_seconds)) - 1]

    def __str__(self) -> str:
        opened = "transactions: {} in {:.0f} s, open for {:.0f} ms (p50), {:.0f} ms (p99)".format(
            self.commits, self.seconds, self.open_ms(0.5), self.open_ms(0.99)
        )
        eager = str(self.of_eager).splitlines()
        told = [
            "eager readers of all channels: " + each
            for each in eager
            if each.startswith(("deliveries", "commit"))
        ]
        return "\n".join([str(self.report), *told, opened, *self.faults])


def run(workload: Workload, *, faults: bool = False) -> Outcome:
    """Does *workload* and judges it.

    Args:
        workload: Without ports; its database is empty.
        faults: Whether processes are stopped and killed.

    Raises:
        AssertionError: The run itself failed: a process ended with an error, or did not come to its end.
    """
    engine = create_engine(workload.url, future=True)
    with contextlib.ExitStack() as started:
        started.callback(engine.dispose)
        upgrade(engine) if workload.log == LEGACY_POLL else home_made.metadata.create_all(engine)
        servers = [_server(workload, number) for number in range(len(SETTINGS))]
        for server in servers:
            started.callback(server.destroy)
            started.callback(_keep_log, server, workload)
            server.spawn()
        for server in servers:
            server.wait_until_ready()
        workload = replace(workload, ports=tuple(server.port for server in servers))
        return _Run(workload, engine, servers, started).to_the_end(faults)


def _server(workload: Workload, number: int) -> Gunicorn:
    environ = {
        "HISTORY_DIRECTORY": workload.directory,
        "HISTORY_NAME": "server-{}".format(number),
        "PYTHONPATH": str(ROOT),
    }
    if workload.log != LEGACY_POLL:
        environ["HOME_MADE_DATABASE_URL"] = workload.url
        return Gunicorn(workers=1, app="tests.history.home_made:create_app()", environ=environ)
    settings = {"PUBLIC": 1, "DATABASE_URL": workload.url, **SETTINGS[number]}
    return Gunicorn(settings, workers=1, environ=environ, options=["-c", CONFIGURATION])


class _Run:
    def __init__(
        self, workload: Workload, engine: Any, servers: list[Gunicorn], started: contextlib.ExitStack
    ) -> None:
        self._workload = workload
        self._engine = engine
        self._servers = servers
        self._started = started
        self._readers: list[subprocess.Popen] = []
        self._publishers: list[subprocess.Popen] = []
        self._lives = [0] * PUBLISHERS
        self._faults: list[str] = []

    def to_the_end(self, faults: bool) -> Outcome:
        numbers = [str(number) for number in range(READERS)]
        self._readers = [
            self._start("reading", numbers[first::READING_PROCESSES]) for first in range(READING_PROCESSES)
        ]
        self._publishers = [self._publisher(number, 0) for number in range(PUBLISHERS)]
        if faults:
            self._do_harm()
        for number, publisher in enumerate(self._publishers):
            self._until(lambda publisher=publisher: _ended(publisher), name_of(number) + " to end")
        if self._workload.log == LEGACY_POLL:
            self._until(lambda: not self._count(outbox), "the outbox is empty", DRAIN_SECONDS)
        self._workload.over.touch()
        self._until(lambda: all(map(_ended, self._readers)), "the readers to end")
        return self._outcome()

    # The run's processes

    def _start(self, module: str, arguments: list[str]) -> subprocess.Popen:
        path = self._output_of(module, arguments)
        with open(path, "wb") as output:
            child = subprocess.Popen(
                [sys.executable, "-m", "tests.history." + module, self._workload.to_text()] + arguments,
                cwd=str(ROOT),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self._started.callback(_end, child)
        return child

    def _output_of(self, module: str, arguments: list[str]) -> Path:
        return self._workload.path / "{}-{}.log".format(module, "-".join(arguments))

    def _publisher(self, number: int, life: int) -> subprocess.Popen:
        self._lives[number] = life
        return self._start("publishing", [str(number), str(life)])

    def _until(self, condition: Callable[[], Any], what: str, seconds: float = 0.0) -> None:
        """Waits for *condition*, and no longer than all processes of the run live or have ended well."""
        met = _now_and_then(lambda: condition() or any(map(_failed, self._children)))
        until(met, seconds or self._workload.limit_seconds, what)
        for child in self._children:
            if _failed(child):
                said = "".join(path.read_text() for path in sorted(self._workload.path.glob("*ing-*.log")))
                raise AssertionError(
                    "{} ended with {}: {}".format(child.args[2:], child.returncode, said[-5000:])
                )

    @property
    def _children(self) -> list[subprocess.Popen]:
        return self._readers + self._publishers

    # What is done to them

    def _do_harm(self) -> None:
        """One fault after the other, at equal distances."""
        acts: list[Callable[[], str]] = [
            lambda: self._stop("server-0", "while it held the log's lock"),
            lambda: self._kill_worker(1),
            lambda: self._kill_publisher(IN_TRANSACTION, KILL),
            lambda: self._stop(IN_TRANSACTION, ""),
            lambda: self._kill_gunicorn(2),
            lambda: self._kill_publisher(AT_COMMIT, KILL_SOON),
            lambda: self._stop("server-1", "while it held the log's lock"),
            lambda: self._kill_publisher(AT_COMMIT, KILL_SOON),
        ]
        step = self._workload.events // (len(acts) + 3)
        for number, act in enumerate(acts):
            self._wait_for_head(step * (number + 1))
            self._faults.append(act())

    def _stop(self, place: str, where: str) -> str:
        fault = Fault(self._workload.path, place, STOP)
        fault.strike()
        try:
            if self._workload.sqlite:
                # It holds the one lock there is, so nobody can write; but readers must not wait for it.
                head, answers = self._head(), _LineCount(self._workload.path.glob("readers-*.jsonl"))
                self._until(lambda: answers() >= 150, "answers beside a stopped writer")
                assert self._head() == head, "somebody wrote beside a stopped writer"
            else:
                self._wait_for_head(self._head() + self._workload.events // 40)
        finally:
            fault.resume()
        return "{} was stopped {}".format(place, where).strip() + ", until others had gone on"

    def _kill_worker(self, number: int) -> str:
        Fault(self._workload.path, "server-{}".format(number), KILL).strike()
        self._servers[number].wait_until_ready()
        return "the worker of server-{} was killed while it held the log's lock".format(number)

    def _kill_gunicorn(self, number: int) -> str:
        Fault(self._workload.path, "server-{}".format(number), KILL_ALL).strike()
        server = self._servers[number]
        self._until(lambda: not server.running, "gunicorn is gone")
        self._wait_for_head(self._head() + self._workload.events // 200)
        server.start()
        return "server-{} was killed whole while it held the log's lock, and started again".format(number)

    def _kill_publisher(self, place: str, how: str) -> str:
        pid = Fault(self._workload.path, place, how).strike()
        number = next(number for number, child in enumerate(self._publishers) if child.pid == pid)
        self._publishers[number].wait()
        self._publishers[number] = self._publisher(number, self._lives[number] + 1)
        return "{} was killed, {}, and started again".format(name_of(number), place)

    # What there is to see

    def _head(self) -> int:
        with self._engine.connect() as connection:
            return connection.execute(select(log.c.head)).scalar()

    def _wait_for_head(self, head: int) -> None:
        self._until(lambda: self._head() >= head, "the log gets to position {}".format(head))

    def _count(self, table: Any) -> int:
        with self._engine.connect() as connection:
            return connection.execute(select(func.count()).select_from(table)).scalar()

    # The verdict

    def _outcome(self) -> Outcome:
        ours = self._workload.log == LEGACY_POLL
        history = History.read(sorted(self._workload.path.glob("*.jsonl")))
        left = [name for name, reader in history.readers.items() if not reader.complete]
        assert len(history.readers) == READERS, sorted(history.readers)
        assert len(left) == sum(not reading.stays(number) for number in range(READERS)), left
        position_of = _position_of if ours else int
        report = judge(history, position_of=position_of)
        if ours:
            self._audit(history, report)
        committed = [each for each in history.transactions.values() if each.outcome == COMMITTED]
        return Outcome(
            report,
            judge(_with_eager_readers(history), position_of=position_of),
            len(committed),
            tuple(sorted(each.commit_returned - each.rows[0].insert_sent for each in committed)),
            max(each.commit_returned for each in committed)
            - min(each.rows[0].insert_sent for each in committed),
            tuple(self._faults),
            "".join(server.log for server in self._servers),
        )

    def _audit(self, history: History, report: Report) -> None:
        """The tables must say what the readers say: nothing is in the log that nobody could be owed."""
        head = self._head()
        assert (self._count(event), report.events) == (head, head) or not report.held, (
            self._count(event),
            report.events,
            head,
        )
        unfit = Counter(
            each.outcome for each in history.transactions.values() for row in each.rows if row.data == UNFIT
        )
        found = self._count(set_aside)
        assert unfit[COMMITTED] <= found <= unfit[COMMITTED] + unfit[UNKNOWN], (found, unfit)


class _LineCount:
    """How many lines were added to files since now."""

    def __init__(self, paths: Any) -> None:
        self._starts = {path: path.stat().st_size for path in paths}

    def __call__(self) -> int:
        return sum(_lines_after(path, start) for path, start in self._starts.items())


def _now_and_then(condition: Callable[[], Any]) -> Callable[[], Any]:
    """*condition*, asked a few times a second only: the processor is for the run."""
    asked = [0.0]

    def ask() -> Any:
        if time.monotonic() - asked[0] < LOOK_SECONDS:
            return False
        asked[0] = time.monotonic()
        return condition()

    return ask


def _lines_after(path: Path, start: int) -> int:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read().count(b"\n")


def _position_of(cursor: str) -> int:
    return Cursor.parse(cursor).position


def _with_eager_readers(history: History) -> History:
    names = [reading.name_of(number) for number in range(reading.EAGER)]
    return History(
        history.publishers,
        history.transactions,
        {name: history.readers[name] for name in names},
        {name: history.answers[name] for name in names},
    )


def _ended(child: subprocess.Popen) -> bool:
    return child.poll() is not None


def _failed(child: subprocess.Popen) -> bool:
    return child.poll() not in (None, 0)


def _keep_log(server: Gunicorn, workload: Workload) -> None:
    with open(workload.path / "servers.log", "a") as kept:
        kept.write(server.log)


def _end(child: subprocess.Popen) -> None:
    child.kill()
    child.wait()
