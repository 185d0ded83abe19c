"""A restored backup, or a log that was cut back, under a running server: clients are told, never left in silence.

Events A and B are published and backed up between the two; after the restore C is published, at the position that B
had. Whoever has seen B has seen what no longer happened: 410, with the head to go on from. Whoever has seen A only
goes on to C as if nothing had been. Real dumps, taken and restored with the database's own programs.
"""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.process.conftest import NO_HINTS, everyone, hold_everywhere
from tests.process.polls import Client, get, position, publish
from tests.waiting import until


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], stderr=subprocess.PIPE, timeout=60, **options)
    assert done.returncode == 0, done.stderr.decode()


class PostgresArchive:
    """pg_dump's own format, restored by pg_restore in one transaction."""

    database = "postgresql"
    # Whether the server sees the restore half done: no tables, or tables without rows.
    in_pieces = False

    def __init__(self, terminal, folder):
        server = terminal.server
        self.where = ["-h", "127.0.0.1", "-p", str(server.port), "-U", "postgres", "-d"]
        self.where.append(terminal.url.rpartition("/")[2])
        self.dump, self.restore = server.program("pg_dump"), server.program("pg_restore")
        self.path = folder / "dump"

    def take(self):
        run(self.dump, "-Fc", "-f", self.path, *self.where)

    def put_back(self):
        run(self.restore, "--clean", "--if-exists", "--single-transaction", *self.where, self.path)


class PostgresArchivePiecemeal(PostgresArchive):
    """The same without a transaction around it, as it is by default."""

    in_pieces = True

    def put_back(self):
        run(self.restore, "--clean", "--if-exists", *self.where, self.path)


class PostgresScript(PostgresArchive):
    """A script for psql, with a second driver."""

    database = "postgresql+psycopg2"

    def __init__(self, terminal, folder):
        super().__init__(terminal, folder)
        self.psql = terminal.server.client(terminal.url)

    def take(self):
        run(self.dump, "--clean", "--if-exists", "-f", self.path, *self.where)

    def put_back(self):
        run(*self.psql, "-1", "-f", self.path, stdout=subprocess.DEVNULL)


class MariaDBScript:
    """mariadb-dump, and the script into the client, table by table."""

    database = "mariadb"
    in_pieces = True

    def __init__(self, terminal, folder):
        client = terminal.server.client(terminal.url)
        self.client = client
        self.dump = [terminal.server.program(terminal.server.dump), "--no-defaults", "--single-transaction"]
        self.dump += [part for part in client[1:] if part.startswith(("--protocol", "--default-character"))]
        self.dump += client[client.index("-h") :]
        self.path = folder / "dump.sql"

    def take(self):
        with open(str(self.path), "wb") as script:
            run(*self.dump, stdout=script)

    def put_back(self):
        with open(str(self.path), "rb") as script:
            run(*self.client, stdin=script)


class MySQLScript(MariaDBScript):
    """The same with mysqldump."""

    database = "mysql"


class SQLiteBackup:
    """sqlite3's .backup and .restore, which take the file's locks."""

    database = "sqlite"
    in_pieces = False

    def __init__(self, terminal, folder):
        self.terminal = terminal
        self.copy = folder / "copy.db"

    def take(self):
        self.terminal(".backup {}".format(self.copy))

    def put_back(self):
        self.terminal(".restore {}".format(self.copy))


class SQLiteFile(SQLiteBackup):
    """The file put in place of the other, and what belonged to the other removed, as people do."""

    def put_back(self):
        for suffix in ("-wal", "-shm"):
            if os.path.exists(self.terminal.path + suffix):
                os.unlink(self.terminal.path + suffix)
        shutil.copy(str(self.copy), self.terminal.path + ".new")
        os.replace(self.terminal.path + ".new", self.terminal.path)


BACKUPS = [
    PostgresArchive,
    PostgresArchivePiecemeal,
    PostgresScript,
    MariaDBScript,
    MySQLScript,
    SQLiteBackup,
    SQLiteFile,
]


def is_told(client, in_pieces=False):
    """The answer is 410, and the client can go on from the cursor in it.

    While a restore goes on in pieces, who looks at that moment may be told to come back.
    """
    answer = client.hear()
    while in_pieces and answer.status == 503:
        assert int(answer.headers["Retry-After"]) >= 1
        answer = client.ask().hear()
    assert (answer.status, answer.code) == (410, "cursor_unknown"), answer
    assert answer.json["cursor"] == answer.cursor
    client.cursor = answer.cursor
    return True


@pytest.mark.parametrize(
    "database_url, backup",
    [pytest.param(each.database, each, id=each.__name__) for each in BACKUPS],
    indirect=["database_url"],
)
def test_a_restored_backup_is_told_to_clients_and_never_skipped(serve, terminal, tmp_path, backup):
    gunicorn = serve()
    backup = backup(terminal, tmp_path)
    terminal.publish('"A"')
    behind_a = Client(gunicorn)
    assert behind_a.hear_until(1) == ["A"]
    backup.take()
    terminal.publish('"B"')
    behind_b = Client(gunicorn)
    assert behind_b.hear_until(2) == ["A", "B"]
    held = everyone(hold_everywhere(gunicorn, 2, cursor=behind_b.cursor))

    backup.put_back()
    terminal.publish('"C"')

    assert all(is_told(client, backup.in_pieces) for client in held)
    assert is_told(behind_b.ask())
    # The position of C is the one that B had: only the check can tell.
    assert Client(gunicorn, cursor=behind_a.cursor).hear_until(1) == ["C"]
    assert behind_a.hear_until(2) == ["A", "C"]
    assert position(behind_a.cursor) == 2
    # Everybody goes on, on every worker.
    clients = everyone(hold_everywhere(gunicorn, 2, cursor=behind_a.cursor))
    terminal.publish('"D"')
    assert [client.hear().data for client in clients] == [["D"]] * len(clients)
    assert Client(gunicorn).hear_until(3) == ["A", "C", "D"]


CUT_BACK = """
BEGIN;
DELETE FROM legacy_poll_event WHERE position > {head};
UPDATE legacy_poll_log SET head = {head};
COMMIT;
"""


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql", "mariadb", "mysql"], indirect=True)
def test_a_log_cut_back_by_hand_is_told_to_clients_and_never_skipped(serve, terminal):
    gunicorn = serve()
    terminal.publish('"A"')
    behind_a = Client(gunicorn)
    assert behind_a.hear_until(1) == ["A"]
    terminal.publish('"B"', '"B2"')
    behind_b = Client(gunicorn)
    assert behind_b.hear_until(3) == ["A", "B", "B2"]
    held = everyone(hold_everywhere(gunicorn, 2, cursor=behind_b.cursor))
    terminal(CUT_BACK.format(head=1))
    # Before anything new is there: what they have seen does not exist any more.
    assert all(is_told(client) for client in held)
    assert {client.cursor for client in held} == {behind_a.cursor}
    for client in held:
        client.ask()
    terminal.publish('"C"', '"C2"')
    assert [client.hear_until(2) for client in held] == [["C", "C2"]] * len(held)
    # The log has grown over their position again.
    assert is_told(behind_b.ask())
    assert behind_a.hear_until(3) == ["A", "C", "C2"]


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_a_worker_that_never_saw_what_was_undone_tells_those_who_did(serve, terminal):
    # Half a minute between two looks, and no hints: a worker knows only what it did itself, which is nothing at first.
    gunicorn = serve(dict(NO_HINTS, POLL_INTERVAL_SECONDS=30), workers=2)
    slow, quick = gunicorn.workers
    with gunicorn.only(quick):
        assert publish(gunicorn, {"channel": "orders", "data": "B"}).status == 201
        behind_b = Client(gunicorn)
        assert behind_b.hear_until(1) == ["B"]
    with gunicorn.only(slow):
        # Held ahead of its worker, on the log's word; then that word is taken back.
        behind_b.ask()
        assert get(gunicorn, "/health/live").status == 200
        assert behind_b.held
        terminal(CUT_BACK.format(head=0))
        assert publish(gunicorn, {"channel": "elsewhere", "data": "C"}).status == 201
        assert is_told(behind_b)


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_a_log_with_a_hole_goes_on_behind_it(serve, terminal):
    gunicorn = serve()
    terminal.publish('"A"', '"B"')
    behind_b = Client(gunicorn)
    assert behind_b.hear_until(2) == ["A", "B"]
    held = everyone(hold_everywhere(gunicorn, 2, cursor=behind_b.cursor))
    terminal("DELETE FROM legacy_poll_event WHERE position = 2;")
    assert all(is_told(client) for client in held)
    for client in held:
        client.ask()
    terminal.publish('"C"')
    assert [client.hear_until(1) for client in held] == [["C"]] * len(held)
    assert Client(gunicorn).hear_until(2) == ["A", "C"]
    # It was said, and not at every look.
    until(lambda: gunicorn.logged("events are missing from it") >= len(gunicorn.workers))
    assert gunicorn.logged("events are missing from it") <= 4 * len(gunicorn.workers)
