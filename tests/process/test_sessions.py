"""What we leave on the server while one of our tables is locked: a bounded number of sessions, and none afterwards.

The server's own list of sessions is the judge. Whoever backs up, rebuilds or alters a table holds such a lock for
minutes; meanwhile each attempt of ours is given up on our side after a second, and what it started waits on, unless it
is ended there.
"""

from __future__ import annotations

import contextlib
import json
import subprocess

import pytest
from sqlalchemy import make_url

from tests.process.conftest import everyone, hold_everywhere
from tests.process.polls import Request, get, head, stream
from tests.waiting import until

JSON = {"Content-Type": "application/json", "Authorization": "Bearer publish-token"}
WORKERS = 2
READS = 1
# As docs/databases.md promises; on PostgreSQL with the listener.
MOST = {"pymysql": READS + 5, "psycopg": READS + 5 + 1, "psycopg2": 2 * (READS + 8) + 1}
ROUNDS = 5

WHOLE = "LOCK TABLE legacy_poll_event, legacy_poll_log, legacy_poll_outbox IN {} MODE;"
LOCKS = {
    # VACUUM FULL, CLUSTER, ALTER TABLE
    "nobody else": "BEGIN; " + WHOLE.format("ACCESS EXCLUSIVE"),
    # CREATE INDEX
    "nobody else writes": "BEGIN; " + WHOLE.format("SHARE"),
    # mysqldump --lock-tables
    "tables to read": "LOCK TABLES legacy_poll_event READ, legacy_poll_log READ, legacy_poll_outbox READ;",
    "tables to write": "LOCK TABLES legacy_poll_event WRITE, legacy_poll_log WRITE, legacy_poll_outbox WRITE;",
    # mysqldump --all-databases, older backups
    "everything to read": "FLUSH TABLES WITH READ LOCK;",
    # OPTIMIZE, BACKUP STAGE: one table, of which a look needs nothing
    "one table": "LOCK TABLES legacy_poll_event WRITE;",
}
SESSIONS = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database();",
    "mysql": "SELECT count(*) FROM information_schema.processlist WHERE db = database();",
}


@contextlib.contextmanager
def locked(terminal, lock):
    """Somebody's session holds *lock* on our tables."""
    command = list(terminal.server.client(terminal.url))
    if not terminal.url.startswith("postgresql"):
        command.insert(2, "--unbuffered")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        client.stdin.write(LOCKS[lock] + "\nSELECT 'locked';\n")
        client.stdin.flush()
        assert client.stdout.readline().strip() == "locked"
        try:
            yield
        finally:
            client.stdin.close()


def post(gunicorn, number):
    body = json.dumps({"channel": "elsewhere", "data": number})
    return Request(gunicorn, "/publish", method="POST", body=body, headers=JSON)


@pytest.mark.parametrize(
    "database_url, lock",
    [
        ("postgresql", "nobody else"),
        ("postgresql+psycopg2", "nobody else writes"),
        ("mariadb", "everything to read"),
        ("mariadb", "tables to write"),
        ("mysql", "tables to read"),
        ("mysql", "one table"),
    ],
    indirect=["database_url"],
)
def test_a_locked_table_costs_the_server_few_sessions_and_clients_only_time(
    serve, terminal, database_url, lock
):
    settings = {
        "CATCHUP_READS": READS,
        "DATABASE_TIMEOUT_SECONDS": 1,
        "WRITE_WAIT_SECONDS": 1,
        "TAIL_EVENTS": 1,
    }
    gunicorn = serve(settings, workers=WORKERS)
    terminal.publish("0", "1", "2")
    until(lambda: get(gunicorn, stream(timeout=0)).data == [0, 1, 2], what="the events are there")
    held = everyone(hold_everywhere(gunicorn, 3, cursor=head(gunicorn)))
    url = make_url(database_url)
    counting = SESSIONS[url.get_backend_name()]
    counts = []
    with locked(terminal, lock):
        for turn in range(ROUNDS):
            # Other channels each time: equal reads are one.
            channels = ["orders", "a%d" % turn, "b%d" % turn, "c%d" % turn]
            asked = [Request(gunicorn, stream(channel, timeout=0)) for channel in channels]
            asked.append(Request(gunicorn, "/cursor"))
            asked += [post(gunicorn, turn) for _ in range(3)]
            statuses = {request.answer().status for request in asked}
            assert statuses <= {200, 201, 204, 206, 503}
            # Without the one that counts, and the one that locks.
            counts.append(int(terminal(counting)) - 2)
            assert get(gunicorn, "/health/live").status == 200
    terminal.publish('"after"')
    assert [client.hear(seconds=10).data for client in held] == [["after"]] * len(held)
    print("sessions", counts)
    assert max(counts) <= WORKERS * MOST[url.get_driver_name()], counts
