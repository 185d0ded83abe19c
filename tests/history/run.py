"""One run from start to verdict: servers, readers, publishers, what is done to them, and the judge.

    outcome = run(Workload(LEGACY_POLL, url, directory, events=20_000, open_seconds=2.0), faults=True)
    outcome = run(Workload(..., outages=True), database=server)

The first stops and kills processes while they hold the log's lock. The second takes the database away, reloads and
restarts servers, and cuts each kind of hint; in it one server gets hints of every kind, one only notifications, and one
none at all.

Each server is a gunicorn of its own with one worker, so that the three sequence, serve and fail independently. A fault
waits for the run to get somewhere, never for a time: who is stopped stays so until the others have gone on without it.
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any, Callable

from sqlalchemy import create_engine, func, select
from sqlalchemy.exc import DBAPIError

from legacy_poll.cursors import Cursor
from legacy_poll.schema import upgrade
from legacy_poll.tables import event, log, outbox, set_aside
from tests.gunicorn import ROOT, Gunicorn
from tests.history import COMMITTED, UNKNOWN, History, home_made, reading
from tests.history.checker import Report, judge
from tests.history.faults import KILL, KILL_ALL, KILL_SOON, SEQUENCER, STOP, Fault
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
# In a run with outages: which hints a server gets, and that the last one's worker ends again and again by itself.
HINTS: tuple[dict[str, Any], ...] = (
    {},
    {"WAKEUP_DIRECTORY": "off"},
    {"WAKEUP_DIRECTORY": "off", "NOTIFY": 0},
)
MAX_REQUESTS = ["--max-requests", "400", "--max-requests-jitter", "100"]
LISTENERS = "FROM pg_stat_activity WHERE query = 'LISTEN legacy_poll' AND datname = current_database()"


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
        approved: Polls that the parked lane held or answered without the application, of the workers that lived to the
            end.
    """

    report: Report
    of_eager: Report
    commits: int
    open_seconds: tuple[float, ...]
    seconds: float
    faults: tuple[str, ...]
    server_log: str
    approved: int

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


def run(workload: Workload, *, faults: bool = False, database: Any = None, cluster: Any = None) -> Outcome:
    """Does *workload* and judges it.

    Args:
        workload: Without ports; its database is empty.
        faults: Whether processes are stopped and killed.
        database: In a workload with outages: the server to take away; None for SQLite, which has none.
        cluster: Instead: the Galera whose nodes are taken away.

    Raises:
        AssertionError: The run itself failed: a process ended with an error, or did not come to its end.
    """
    engine = create_engine(workload.url, future=True, pool_pre_ping=True)
    with contextlib.ExitStack() as started:
        if workload.outages:
            # Short: the path of a socket may have 107 bytes.
            hints = started.enter_context(tempfile.TemporaryDirectory(prefix="legacy_poll-", dir="/tmp"))
            workload = replace(workload, wakeup_directory=hints)
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
        return _Run(workload, engine, servers, started, database, cluster).to_the_end(faults)


def _approved(server: Gunicorn) -> int:
    with urllib.request.urlopen(server.url + "/metrics", timeout=30) as answer:
        text = answer.read().decode("ascii")
    return int(re.findall(r"^legacy_poll_approved_total{[^}]*} (\d+)$", text, re.M)[0])


def _server(workload: Workload, number: int) -> Gunicorn:
    environ = {
        "HISTORY_DIRECTORY": workload.directory,
        "PYTHONPATH": str(ROOT),
    }
    if workload.log != LEGACY_POLL:
        environ["HOME_MADE_DATABASE_URL"] = workload.url
        return Gunicorn(workers=1, app="tests.history.home_made:create_app()", environ=environ)
    settings = {"PUBLIC": 1, "DATABASE_URL": workload.url, **SETTINGS[number]}
    if not workload.park:
        settings["PARK"] = 0
    options = ["-c", CONFIGURATION]
    if workload.outages:
        settings.update({"WAKEUP_DIRECTORY": workload.wakeup_directory, **HINTS[number]})
        options += MAX_REQUESTS if number == len(SETTINGS) - 1 else []
    return Gunicorn(settings, workers=1, environ=environ, options=options)


class _Run:
    def __init__(
        self,
        workload: Workload,
        engine: Any,
        servers: list[Gunicorn],
        started: contextlib.ExitStack,
        database: Any,
        cluster: Any,
    ) -> None:
        self._cluster = cluster
        self._workload = workload
        self._database = database
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
        if self._cluster is not None:
            self._take_nodes_away()
        elif self._workload.outages:
            self._take_away()
        self._workload.calm.touch()
        for number, publisher in enumerate(self._publishers):
            self._until(lambda publisher=publisher: _ended(publisher), name_of(number) + " to end")
        for server in self._servers:
            server.wait_until_ready()
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
            lambda: self._stop(SEQUENCER),
            self._kill_worker,
            lambda: self._kill_publisher(IN_TRANSACTION, KILL),
            lambda: self._stop(IN_TRANSACTION),
            self._kill_gunicorn,
            lambda: self._kill_publisher(AT_COMMIT, KILL_SOON),
            lambda: self._stop(SEQUENCER),
            lambda: self._kill_publisher(AT_COMMIT, KILL_SOON),
        ]
        self._one_after_the_other(acts)

    def _take_away(self) -> None:
        """The database, the servers, the hints."""
        acts: list[Callable[[], str]] = [
            lambda: self._reload(0),
            self._cut_datagrams,
            lambda: self._restart(1),
            lambda: self._reload(0, 1, 2),
        ]
        if self._database is not None:
            acts.insert(1, lambda: self._away(self._database.stop, "stopped"))
            acts.insert(3, self._hang)
            acts.insert(5, lambda: self._away(self._database.kill, "killed"))
        if self._workload.url.startswith("postgresql"):
            # Before an outage: after one they listen again when their backoff says so.
            acts.insert(0, self._cut_notifications)
        self._one_after_the_other(acts)

    def _take_nodes_away(self) -> None:
        """One node after the other, in each way that a node goes; the others go on meanwhile."""
        cluster = self._cluster
        ways: list[tuple[str, Callable[[Any], None]]] = [
            ("was killed", lambda node: node.kill()),
            ("was stopped (SIGSTOP)", lambda node: node.pause()),
            ("was cut off from the other nodes", cluster.cut_off),
            ("was cut off from all", lambda node: cluster.cut_off(node, whole=True)),
            ("was ended", lambda node: node.stop()),
        ]
        nodes = [cluster.nodes[number % 3] for number in range(len(ways))]
        self._one_after_the_other(
            [lambda way=way, node=node: self._without(node, *way) for way, node in zip(ways, nodes)]
        )

    def _without(self, node: Any, how: str, go: Callable[[Any], None]) -> str:
        go(node)
        begun = time.monotonic()
        self._wait_for_head(self._head() + self._workload.events // 20)
        seconds = time.monotonic() - begun
        self._cluster.join(node)
        for server in self._servers:
            server.wait_until_ready()
        return "node {} {}, and came back; the next {} events took {:.1f} s".format(
            node.number, how, self._workload.events // 20, seconds
        )

    def _one_after_the_other(self, acts: list[Callable[[], str]]) -> None:
        step = self._workload.events // (len(acts) + 3)
        for number, act in enumerate(acts):
            self._wait_for_head(step * (number + 1))
            self._faults.append(act())

    def _reload(self, *numbers: int) -> str:
        before = {number: self._servers[number].workers for number in numbers}
        for number in numbers:
            self._servers[number].signal(signal.SIGHUP)
        for number, old in before.items():
            server = self._servers[number]
            self._until(lambda s=server, o=old: not set(o) & set(s.workers), "the old workers are gone")
            server.wait_until_ready()
        return "reloaded: " + ", ".join("server-{}".format(number) for number in numbers)

    def _restart(self, number: int) -> str:
        server = self._servers[number]
        server.signal(signal.SIGTERM)
        self._until(lambda: not server.running, "gunicorn ends")
        self._wait_for_head(self._head() + self._workload.events // 200)
        server.start()
        return "server-{} was ended, and started again".format(number)

    def _away(self, go: Callable[[], None], how: str) -> str:
        answers = _LineCount(self._workload.path.glob("readers-*.jsonl"))
        go()
        self._until(lambda: answers() >= 60, "answers without a database")
        self._database.start()
        for server in self._servers:
            server.wait_until_ready()
        return "the database was {}, and started again".format(how)

    def _hang(self) -> str:
        answers = _LineCount(self._workload.path.glob("readers-*.jsonl"))
        with self._database.paused():
            self._until(lambda: answers() >= 60, "answers beside a database that hangs")
        return "the database hung for a while"

    def _cut_datagrams(self) -> str:
        sockets = list(Path(self._workload.wakeup_directory).glob("*/*"))
        assert sockets, "nobody listens for datagrams"
        for path in sockets:
            path.unlink()
        return "{} sockets for datagrams were removed".format(len(sockets))

    def _cut_notifications(self) -> str:
        def of_listeners(what: str) -> list[Any]:
            # A transaction of its own each time: within one, PostgreSQL answers from what it saw first.
            with self._engine.connect() as connection:
                return connection.exec_driver_sql("SELECT {} {}".format(what, LISTENERS)).all()

        self._until(lambda: len(of_listeners("pid")) == 2, "two servers listen")
        ended = of_listeners("pg_terminate_backend(pid)")
        assert len(ended) == 2, ended
        return "{} listeners for notifications were cut off".format(len(ended))

    def _stop(self, place: str) -> str:
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
        return "a process was stopped, {}, until others had gone on".format(place)

    def _kill_worker(self) -> str:
        number = self._strike_server(KILL)
        self._servers[number].wait_until_ready()
        return "the worker of server-{} was killed while it held the log's lock".format(number)

    def _strike_server(self, how: str) -> int:
        # Whichever is the next to hold the lock: servers that look at the same pace may leave it to the same one for
        # long, since who moved last looks again a moment before those whom it told.
        owners = {pid: number for number, server in enumerate(self._servers) for pid in server.workers}
        return owners[Fault(self._workload.path, SEQUENCER, how).strike()]

    def _kill_gunicorn(self) -> str:
        number = self._strike_server(KILL_ALL)
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
        try:
            with self._engine.connect() as connection:
                return connection.execute(select(log.c.head)).scalar()
        except DBAPIError:
            if not self._workload.outages:
                raise
            return -1

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
            sum(map(_approved, self._servers)) if ours else 0,
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
