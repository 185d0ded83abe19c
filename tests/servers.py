"""Real database servers that the tests start, own and may treat badly.

Each server has a data directory, a socket and a port of its own and listens on 127.0.0.1 only, so nothing here meets
a server that the machine runs for other purposes. All do the same tricks:

    start()     makes the data directory if need be; returns once the server answers
    stop()      an orderly end: sessions are cut, data is written
    kill()      kill -9 of every process; start() then recovers what was committed
    restart()   stop() and start(): same port, same data
    pause()     SIGSTOP of every process, until resume(): the machine that hangs, the network that swallows
    paused()    the same as a context manager
    destroy()   the end; also at exit

Rules: a server dies with the process that started it, even if that was killed (a watchdog sees to it), and takes its
data directory with it. As root the servers run as their own unprivileged user, since both refuse root. What the
machine lacks is a skip with a reason on a laptop and a failure where CI is set: see missing().
"""

from __future__ import annotations

import atexit
import contextlib
import glob
import itertools
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile

import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from tests.waiting import until

START_SECONDS = 60
STOP_SECONDS = 30

# Ends the server and removes its directory when the process that started it is gone, however it went. Not
# PR_SET_PDEATHSIG: that fires when the *thread* that started the server ends, and leaves alone the children of a
# postmaster, which a paused test leaves stopped for ever. A process is ours if it works inside the directory.
WATCHDOG = r"""
tail --pid="$1" -f /dev/null
for entry in /proc/[0-9]*; do
    case "$(readlink "$entry/cwd")/" in "$2"/*) kill -9 "${entry#/proc/}" ;; esac
done
rm -rf "$2"
"""


def missing(what):
    """Ends the test that needs *what*, which this machine does not have.

    Raises:
        pytest.skip.Exception: On a laptop.
        pytest.fail.Exception: Where CI is set, because there a skip would be a hole that nobody sees.
    """
    reason = "not installed: {} (as root on Debian `make test` installs it)".format(what)
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def find_program(*names, folders=()):
    """The path of the first of *names* that is on PATH or in one of *folders* (patterns; the newest version wins)."""
    for name in names:
        found = shutil.which(name)
        for folder in folders:
            versions = sorted(glob.glob(os.path.join(folder, name)), key=_by_number)
            found = found or (versions[-1] if versions else None)
        if found:
            return found
    return missing(" or ".join(names))


def _by_number(path):
    return [int(part) if part.isdigit() else 0 for part in path.split(os.sep)]


_given = set()


def _worker_number():
    """Which of how many processes of pytest-xdist this is."""
    name = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    return int(name[2:]), max(1, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


def free_port():
    """A port on 127.0.0.1 that nobody listens on.

    Taken from below the range that the kernel gives to outgoing connections (32768 on Linux), so that the port is
    still free when a stopped server comes back to it.
    """
    # Each of the processes that run tests side by side takes every so-many-th one, and none twice: what was found free
    # is listened on only a moment later, and another might have found it free meanwhile.
    number, count = _worker_number()
    for _ in range(100):
        port = 15000 + random.SystemRandom().randrange(15000 // count) * count + number
        if port in _given:
            continue
        _given.add(port)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port between 15000 and 30000")


class Server:
    """What the servers share; a subclass says how its own is made, run and asked."""

    name = ""
    #: The database that is always there.
    own = ""
    # Unprivileged users to run as when we are root, best first.
    users = ()
    # Asks for an orderly stop that does not wait for the sessions' own good time.
    stop_signal = signal.SIGTERM

    def __init__(self):
        self.port = free_port()
        self.directory = None
        self._user = next((user for user in self.users if _exists(user)), None) if os.geteuid() == 0 else None
        self._child = None
        self._paused = []
        self._numbers = itertools.count(1)

    @property
    def data_directory(self):
        return os.path.join(self.directory, "data")

    @property
    def log_path(self):
        """The server's own log, all runs of it."""
        return os.path.join(self.directory, "log")

    @property
    def pid(self):
        return self._child.pid

    @property
    def running(self):
        return self._child is not None and self._child.poll() is None

    def start(self):
        """Starts the server, unless it runs, and returns once it answers."""
        if self.running:
            return
        if self.directory is None:
            self._make_directory()
        with open(self.log_path, "ab") as log:
            self._child = subprocess.Popen(
                self._as_user(self._serve_command()),
                cwd=self.directory,
                env=self._environ(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-c in the terminal is for the tests, which stop the server in their own order.
                start_new_session=True,
            )
        until(lambda: not self.running or self.answers(), START_SECONDS, "{} answers".format(self.name))
        if not self.running:
            raise AssertionError("{} did not start: {}".format(self.name, self._end_of_log()))

    def stop(self):
        self.resume()
        if self.running:
            self._child.send_signal(self.stop_signal)
            self._wait_for_end()

    def kill(self):
        processes = self._processes()
        if self.running:
            # The first process is stopped while the others die, so that it does not begin to tidy up after them.
            self._child.send_signal(signal.SIGSTOP)
            processes = self._processes()
        for pid in processes:
            _send(pid, signal.SIGKILL)
        self._paused = []
        self._wait_for_end()
        gone = "every process of {} is gone".format(self.name)
        until(lambda: not any(map(_alive, processes)), STOP_SECONDS, gone)

    def restart(self):
        self.stop()
        self.start()

    def pause(self):
        if not self.running:
            raise AssertionError("{} does not run".format(self.name))
        # The first process first: a stopped postmaster makes no new children while we list them.
        _send(self.pid, signal.SIGSTOP)
        self._paused = self._processes()
        for pid in self._paused:
            _send(pid, signal.SIGSTOP)
        until(lambda: all(map(_stopped, self._paused)), STOP_SECONDS, "{} is paused".format(self.name))

    def resume(self):
        for pid in reversed(self._paused):
            _send(pid, signal.SIGCONT)
        self._paused = []

    @contextlib.contextmanager
    def paused(self):
        self.pause()
        try:
            yield self
        finally:
            self.resume()

    def destroy(self):
        """Ends the server and removes its data."""
        if self.directory is not None:
            if self.running:
                self.kill()
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory = None

    def create_database(self, driver=None):
        """Makes an empty database.

        Args:
            driver: A SQLAlchemy dialect and driver of this server; the class's `driver` by default.

        Returns:
            str: Its URL for create_engine().
        """
        self.start()
        name = "test_{}".format(next(self._numbers))
        self._administer("CREATE DATABASE {}".format(name))
        return self.url(name, driver)

    def _administer(self, *statements):
        """Runs *statements* outside of any test's database; not by the client, whose start would take longer."""
        engine = create_engine(
            self.url(self.own), poolclass=NullPool, isolation_level="AUTOCOMMIT", future=True
        )
        with engine.connect() as connection:
            found = [connection.exec_driver_sql(each) for each in statements]
            return found[-1].scalars().all() if found[-1].returns_rows else []

    def execute(self, statements, database=None):
        """Runs SQL text with the server's own client, as somebody who has never heard of us would.

        Returns:
            str: What the client printed: a line for each row, columns set apart by tabs, no headings.
        """
        done = subprocess.run(
            self.client(database),
            input=statements,
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
        )
        if done.returncode:
            raise AssertionError("{} refused {!r}: {}".format(self.name, statements, done.stderr.strip()))
        return done.stdout

    def answers(self):
        asked = subprocess.run(
            self.client(),
            input="SELECT 1",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        return asked.returncode == 0

    def _make_directory(self):
        # Short, since the path of a Unix socket may have 107 bytes; and outside pytest's tmp_path, which only the
        # user who runs the tests may enter.
        parent = "/tmp" if os.access("/tmp", os.W_OK) else tempfile.gettempdir()
        self.directory = tempfile.mkdtemp(prefix="legacy_poll-", dir=parent)
        atexit.register(self._at_exit, os.getpid())
        subprocess.Popen(
            ["sh", "-c", WATCHDOG, "sh", str(os.getpid()), self.directory],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if self._user:
            entry = pwd.getpwnam(self._user)
            os.chown(self.directory, entry.pw_uid, entry.pw_gid)
        with open(self.log_path, "ab") as log:
            made = subprocess.call(
                self._as_user(self._make_command()),
                cwd=self.directory,
                env=self._environ(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if made:
            raise AssertionError("no data directory for {}: {}".format(self.name, self._end_of_log()))

    def _at_exit(self, owner):
        # A forked child that ends in an orderly way runs its parent's exit functions too.
        if os.getpid() == owner:
            self.destroy()

    def _environ(self):
        # A mariadbd that starts removes the temporary tables of others from the folder for temporary files.
        return dict(os.environ, TMPDIR=self.directory)

    def _as_user(self, command):
        if not self._user:
            return command
        return ["setpriv", "--reuid", self._user, "--regid", self._user, "--init-groups", "--"] + command

    def _processes(self):
        """The server's first process and all below it."""
        if self._child is None:
            return []
        found = [self._child.pid]
        for pid in found:
            found.extend(_children(pid))
        return found

    def _wait_for_end(self):
        if self._child is not None:
            until(lambda: not self.running, STOP_SECONDS, "{} ends".format(self.name))

    def read_log(self):
        """All that the server has written to its log."""
        with open(self.log_path, errors="replace") as log:
            return log.read()

    def _end_of_log(self):
        return self.read_log()[-2000:]


class PostgresServer(Server):
    """A PostgreSQL; its superuser is `postgres`, without a password."""

    name = "PostgreSQL"
    own = "postgres"
    users = ("postgres", "nobody")
    # "Fast": ends sessions instead of waiting for them.
    stop_signal = signal.SIGINT

    def __init__(self):
        # Debian keeps the server's programs off PATH, and what is there may be a link or a wrapper.
        initdb = find_program("initdb", folders=["/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin"])
        self._binaries = os.path.dirname(os.path.realpath(initdb))
        super().__init__()

    @property
    def driver(self):
        """psycopg 3 where SQLAlchemy knows it, which is from 2.0 on."""
        import sqlalchemy

        return "postgresql+psycopg2" if sqlalchemy.__version__.startswith("1.") else "postgresql+psycopg"

    def program(self, name):
        """The path of one of this PostgreSQL's programs: pg_dump, pg_restore, pgbench."""
        return find_program(os.path.join(self._binaries, name))

    def url(self, database, driver=None):
        return "{}://postgres@127.0.0.1:{}/{}".format(driver or self.driver, self.port, database)

    def client(self, database=None):
        """The argv of a psql on *database* (a name or a URL) that reads SQL from its standard input."""
        command = [self.program("psql"), "-X", "-q", "-A", "-t", "-F", "\t", "-v", "ON_ERROR_STOP=1"]
        command += ["-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres"]
        return command + ["-d", database_name(database) if database else "postgres"]

    def drop_database(self, database):
        name = database_name(database)
        sessions = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}'"
        self._administer(sessions.format(name), "DROP DATABASE IF EXISTS {}".format(name))

    def _make_command(self):
        options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        return [self.program("initdb"), "-D", self.data_directory] + options

    def _serve_command(self):
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.directory,
            "max_connections": 200,
            # For two-phase commit, which is off by default.
            "max_prepared_transactions": 10,
            "shared_buffers": "64MB",
            # Speed: kill -9 of the processes loses nothing without it, only a power cut would.
            "fsync": "off",
        }
        command = [self.program("postgres"), "-D", self.data_directory]
        for key, value in settings.items():
            command += ["-c", "{}={}".format(key, value)]
        return command


class NewerPostgresServer(PostgresServer):
    """A PostgreSQL 18 or later, whose queue of notifications is soon full.

    Debian's own is in its unstable release only: see MySQLServer. It finds its files by where its programs are, so the
    programs that run them stand in a tree of the same shape.
    """

    name = "PostgreSQL 18"

    def __init__(self):
        self._root = unstable() or "/"
        folders = glob.glob(os.path.join(self._root, "usr/lib/postgresql/*/bin"))
        newer = [each for each in folders if int(each.split(os.sep)[-2]) >= 18]
        self._theirs = max(newer) if newer else missing("PostgreSQL 18")
        Server.__init__(self)

    def program(self, name):
        if self._root == "/":
            return os.path.join(self._theirs, name)
        folder = os.path.join(self.directory, os.path.relpath(self._theirs, self._root))
        if not os.path.exists(folder):
            os.makedirs(folder)
            for inside in (os.path.join(os.path.dirname(self._theirs), "lib"), "usr/share/postgresql"):
                theirs = os.path.join(self._root, inside)
                ours = os.path.join(self.directory, os.path.relpath(theirs, self._root))
                os.makedirs(os.path.dirname(ours), exist_ok=True)
                os.symlink(theirs, ours)
        wrapper = os.path.join(folder, name)
        if not os.path.exists(wrapper):
            write_wrapper(wrapper, self._root, os.path.join(self._theirs, name), "--argv0", wrapper)
        if name == "initdb":
            self.program("postgres")  # which it starts
        return wrapper

    def _serve_command(self):
        return super()._serve_command() + ["-c", "max_notify_queue_pages=64"]


class PostgresReplica(PostgresServer):
    """A streaming replica of *primary*, made when it is first started; it may be read, and nothing else."""

    name = "a replica of PostgreSQL"

    def __init__(self, primary):
        super().__init__()
        self._primary = primary

    def _make_command(self):
        where = ["-h", "127.0.0.1", "-p", str(self._primary.port), "-U", "postgres"]
        options = ["--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync"]
        return [self.program("pg_basebackup"), "-D", self.data_directory] + where + options


class PgBouncer(Server):
    """A pooler in front of *postgres*, with few connections to it.

    Args:
        postgres: A running PostgresServer.
        pool_mode: `transaction`: every transaction may meet another connection; or `session`.
    """

    name = "PgBouncer"
    users = ("postgres", "nobody")

    def __init__(self, postgres, pool_mode="transaction"):
        self._daemon = find_program("pgbouncer", folders=["/usr/sbin"])
        super().__init__()
        self._postgres = postgres
        self._pool_mode = pool_mode

    def url(self, database, driver=None):
        """The URL of *database*, a name or another URL, through the pooler."""
        name = database_name(database)
        return "{}://postgres@127.0.0.1:{}/{}".format(driver or self._postgres.driver, self.port, name)

    def client(self, database=None):
        command = self._postgres.client(database)
        command[command.index("-p") + 1] = str(self.port)
        return command

    def _make_command(self):
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": self._pool_mode,
            "default_pool_size": 10,
            "max_client_conn": 200,
        }
        lines = ["[databases]", "* = host=127.0.0.1 port={} user=postgres".format(self._postgres.port)]
        lines += ["[pgbouncer]"] + ["{} = {}".format(*each) for each in settings.items()]
        write = 'printf "%s\\n" "$@" > "$0"'
        return ["sh", "-c", write, os.path.join(self.directory, "pgbouncer.ini")] + lines

    def _serve_command(self):
        return [self._daemon, os.path.join(self.directory, "pgbouncer.ini")]


class MariaDBServer(Server):
    """A MariaDB; its `root` comes over TCP without a password."""

    name = "MariaDB"
    own = "mysql"
    dump = "mariadb-dump"
    users = ("mysql", "nobody")
    driver = "mysql+pymysql"

    def __init__(self):
        self._daemon = find_program("mariadbd", folders=["/usr/sbin", "/usr/libexec"])
        self._installer = find_program("mariadb-install-db")
        self._client = find_program("mariadb")
        super().__init__()

    def program(self, name):
        """The path of one of MariaDB's programs: mariadb-dump, mariadb-admin."""
        return find_program(name)

    def url(self, database, driver=None):
        url = "{}://root@127.0.0.1:{}/{}?charset=utf8mb4"
        return url.format(driver or self.driver, self.port, database)

    def client(self, database=None):
        """The argv of a mariadb client on *database* (a name or a URL) that reads SQL from its standard input."""
        command = [self._client, "--no-defaults", "--batch", "--skip-column-names"]
        command += ["--default-character-set=utf8mb4", "--protocol=tcp"]
        command += ["-h", "127.0.0.1", "-P", str(self.port), "-u", "root"]
        return command + ([database_name(database)] if database else [])

    def drop_database(self, database):
        name = database_name(database)
        sessions = "SELECT id FROM information_schema.processlist WHERE db = '{}'".format(name)
        # A session that holds a metadata lock would make the DROP wait for it. It may end by itself first.
        for session in self._administer(sessions):
            with contextlib.suppress(DBAPIError):
                self._administer("KILL {}".format(session))
        self._administer("DROP DATABASE IF EXISTS {}".format(name))

    def _make_command(self):
        options = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        return [self._installer, "--no-defaults", "--datadir=" + self.data_directory] + options

    def _settings(self):
        return {
            "datadir": self.data_directory,
            "socket": os.path.join(self.directory, "socket"),
            "pid-file": os.path.join(self.directory, "pid"),
            "bind-address": "127.0.0.1",
            "port": self.port,
            "max-connections": 200,
            "character-set-server": "utf8mb4",
            "performance-schema": "off",
            "innodb-buffer-pool-size": "64M",
            "innodb-log-file-size": "48M",
            # Speed: the log is written at each commit, so kill -9 loses nothing, and synced once a second.
            "innodb-flush-log-at-trx-commit": 2,
        }

    def _serve_command(self):
        command = [self._daemon, "--no-defaults", "--skip-name-resolve", "--skip-log-bin"]
        return command + ["--{}={}".format(key, value) for key, value in self._settings().items()]


class MySQLServer(MariaDBServer):
    """A MySQL; its `root` comes over TCP without a password.

    Debian's own is in its unstable release only: tests/newer.sh brings it, in a root of its own, with its own libc. Its
    programs run outside of that root, by its loader. Otherwise what is on the path, if it is not MariaDB's.
    """

    name = "MySQL"
    dump = "mysqldump"

    def __init__(self):
        self._root = unstable("usr/sbin/mysqld")
        if self._root is None:
            self._daemon = self._find_own()
        Server.__init__(self)

    def _find_own(self):
        # A `mysqld` of MariaDB's packages is a link.
        for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) + ["/usr/sbin", "/usr/libexec"]:
            program = os.path.join(folder, "mysqld")
            if os.access(program, os.X_OK) and b"MariaDB" not in subprocess.check_output(
                [program, "--version"]
            ):
                return program
        return missing("MySQL's mysqld")

    def program(self, name):
        """The path of one of MySQL's programs: mysql, mysqldump."""
        if self._root is None:
            return self._daemon if name == "mysqld" else find_program(name)
        wrapper = os.path.join(self.directory, name)
        if not os.path.exists(wrapper):
            folder = os.path.join(self._root, "usr/sbin" if name == "mysqld" else "usr/bin")
            write_wrapper(wrapper, self._root, os.path.join(folder, name))
        return wrapper

    def client(self, database=None):
        command = ["--no-defaults", "--batch", "--skip-column-names"]
        command += ["--default-character-set=utf8mb4", "--protocol=tcp"]
        command += ["-h", "127.0.0.1", "-P", str(self.port), "-u", "root"]
        return [self.program("mysql"), *command] + ([database_name(database)] if database else [])

    def _command(self):
        command = [self.program("mysqld"), "--no-defaults"]
        if self._root is None:
            return command
        share = os.path.join(self._root, "usr/share/mysql")
        command += ["--lc-messages-dir=" + share, "--character-sets-dir=" + os.path.join(share, "charsets")]
        return command + ["--plugin-dir=" + os.path.join(self._root, "usr/lib/mysql/plugin")]

    def _make_command(self):
        # Without names, who comes over TCP is nobody's localhost.
        with open(os.path.join(self.directory, "init.sql"), "w") as script:
            script.write(
                "CREATE USER IF NOT EXISTS 'root'@'127.0.0.1';\n"
                "GRANT ALL PRIVILEGES ON *.* TO 'root'@'127.0.0.1' WITH GRANT OPTION;\n"
            )
        return self._command() + ["--initialize-insecure", "--datadir=" + self.data_directory]

    def _serve_command(self):
        settings = self._settings()
        settings["innodb-redo-log-capacity"] = settings.pop("innodb-log-file-size")
        settings["mysqlx"] = "off"
        settings["secure-file-priv"] = ""
        settings["init-file"] = os.path.join(self.directory, "init.sql")
        command = self._command() + ["--skip-name-resolve", "--skip-log-bin"]
        return command + ["--{}={}".format(key, value) for key, value in settings.items()]


def unstable(program=""):
    """The root that tests/newer.sh makes, if *program* is in it; else None."""
    root = os.environ.get("LEGACY_POLL_UNSTABLE", "/var/cache/legacy_poll/unstable")
    return root if os.access(os.path.join(root, program), os.X_OK) else None


def write_wrapper(path, root, program, *options):
    """Writes a script that runs *program* of *root* outside of it, by its own loader and libraries."""
    command = [os.path.join(root, "lib64/ld-linux-x86-64.so.2")]
    command += ["--library-path", os.path.join(root, "usr/lib/x86_64-linux-gnu"), *options, program]
    with open(path, "w") as script:
        script.write('#!/bin/sh\nexec {} "$@"\n'.format(" ".join(command)))
    os.chmod(path, 0o755)


def database_name(database):
    """The database's name in a URL of ours; a name is its own."""
    return database.rpartition("/")[2].partition("?")[0]


def _exists(user):
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def _send(pid, number):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _children(pid):
    found = []
    # A process's children are listed for each of its threads.
    for path in glob.glob("/proc/{}/task/*/children".format(pid)):
        with contextlib.suppress(OSError), open(path) as children:
            found.extend(int(child) for child in children.read().split())
    return found


def _state(pid):
    """The kernel's letter for the process's state: R, S, T (stopped), Z (dead, but not yet collected); "" if gone."""
    try:
        with open("/proc/{}/stat".format(pid)) as stat:
            return stat.read().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _alive(pid):
    return _state(pid) not in ("", "Z", "X")


def _stopped(pid):
    return _state(pid) in ("T", "t") or not _alive(pid)
