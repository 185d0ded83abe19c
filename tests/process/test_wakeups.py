"""Hints: from any process of the host by datagram, between hosts by NOTIFY. Each is cut here, and the event comes.

Where the interval is a minute, only a hint can bring an event within a test's bound; where a hint was cut, the interval
is short. Gunicorns of the tests have folders of their own for temporary files, so that two of them are two hosts, as
far as datagrams go.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.gunicorn import ROOT
from tests.process.commands import legacy_poll
from tests.process.conftest import everyone, hold_everywhere, upgrade
from tests.process.polls import Client, get, head, publish
from tests.process.test_outage import is_unavailable
from tests.servers import PgBouncer, PostgresReplica, database_name
from tests.waiting import until

MINUTE = {"POLL_INTERVAL_SECONDS": 60}
POSTGRES = ["postgresql", "postgresql+psycopg2"]
ARRIVE_AGAIN = "notifications from the database arrive again"
DEAF = "no notifications from the database, polling every interval instead"

SCRIPT = """
import sys
from flask import Flask
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from legacy_poll import LegacyPoll

engine = create_engine(sys.argv[1], future=True)
poll = LegacyPoll(Flask("worker"), engine=engine)
with Session(engine) as session:
    poll.publish(session, "orders", "from a script")
    session.commit()
"""


def run_script(url, gunicorn):
    """What a Celery task or a script of the same host does."""
    environ = dict(os.environ, PYTHONPATH=str(ROOT), TMPDIR=str(gunicorn.directory))
    subprocess.run([sys.executable, "-c", SCRIPT, url], env=environ, check=True, timeout=60)


def hears(gunicorn):
    """Whether the worker that answers is known to hear notifications."""
    return "notify" in get(gunicorn, "/status").json["worker"]["hints"]


def until_hears(*gunicorns):
    for gunicorn in gunicorns:
        for worker in gunicorn.workers:
            with gunicorn.only(worker):
                until(lambda one=gunicorn: hears(one), what="the worker hears notifications")


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql", "mariadb", "mysql"], indirect=True)
def test_a_script_of_the_same_host_wakes_every_worker(serve, database_url, monkeypatch):
    gunicorn = serve(dict(MINUTE, NOTIFY=0), workers=2)
    clients = everyone(hold_everywhere(gunicorn, 2, cursor=head(gunicorn)))
    run_script(database_url, gunicorn)
    assert [client.hear().data for client in clients] == [["from a script"]] * 4
    # And so does the command.
    clients = everyone(hold_everywhere(gunicorn, 2, cursor=clients[0].cursor))
    monkeypatch.setenv("TMPDIR", str(gunicorn.directory))
    done = legacy_poll("publish", "orders", '"from a command"', DATABASE_URL=database_url)
    assert done.returncode == 0, done.stderr
    assert [client.hear().data for client in clients] == [["from a command"]] * 4


@pytest.mark.parametrize("database_url", ["sqlite", "mariadb", "mysql"], indirect=True)
def test_without_their_datagrams_the_interval_brings_it(serve, database_url):
    gunicorn = serve(workers=2)
    clients = everyone(hold_everywhere(gunicorn, 2, cursor=head(gunicorn)))
    sockets = list(gunicorn.directory.glob("legacy_poll-*/*"))
    assert len(sockets) == 2
    for path in sockets:
        path.unlink()
    run_script(database_url, gunicorn)
    assert [client.hear().data for client in clients] == [["from a script"]] * 4
    # A folder that nobody may write to is said once by each worker, and costs no more than that.
    unwritable = serve({"WAKEUP_DIRECTORY": "/proc"}, workers=2)
    assert unwritable.logged("no hints from other processes") == 2
    assert Client(unwritable).hear_until(1) == ["from a script"]


@pytest.mark.parametrize("database_url", POSTGRES, indirect=True)
def test_workers_of_other_hosts_are_notified_and_without_it_the_interval_brings_it(
    serve, start_gunicorn, database_url, terminal
):
    one, other = serve(MINUTE, workers=2), serve(MINUTE, workers=2)
    by_interval = serve({"NOTIFY": 0}, workers=1)
    until_hears(one, other)
    clients = everyone(hold_everywhere(other, 2, cursor=head(other)))
    third = Client(by_interval, cursor=head(by_interval)).ask()
    assert publish(one, {"channel": "orders", "data": 1}).status == 201
    assert [client.hear().data for client in clients + [third]] == [[1]] * 5


@pytest.mark.parametrize("database_url", POSTGRES, indirect=True)
def test_a_listener_whose_session_was_ended_says_so_once_and_listens_again(serve, database_url, terminal):
    gunicorn = serve({"DATABASE_TIMEOUT_SECONDS": 30}, workers=1)
    until_hears(gunicorn)
    client = Client(gunicorn, cursor=head(gunicorn)).ask()
    for turn in (1, 2):
        ended = terminal(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'LISTEN legacy_poll'"
            " AND datname = current_database();"
        )
        assert ended.split() == ["t"]
        until(lambda n=turn: gunicorn.logged(DEAF) == n, what="it says so")
        terminal.publish(str(turn))
        assert client.hear().data == [turn]
        client.ask()
        until(lambda n=turn: gunicorn.logged(ARRIVE_AGAIN) == n, what="it listens again")
        until_hears(gunicorn)


@pytest.mark.parametrize("database_url", POSTGRES, indirect=True)
def test_behind_a_pooler_in_transaction_mode_it_is_deaf_says_so_once_and_loses_nothing(
    start_gunicorn, database_url, database_server, terminal
):
    bouncer = PgBouncer(database_server)
    bouncer.start()
    try:
        url = bouncer.url(database_url, database_url.partition(":")[0])
        upgrade(url)
        gunicorn = start_gunicorn({"DATABASE_URL": url}, workers=2).start()
        until(lambda: gunicorn.logged(DEAF) == 2, what="each worker says that it is deaf")
        assert gunicorn.logged("a pooler in transaction mode") == 2
        clients = everyone(hold_everywhere(gunicorn, 3, cursor=head(gunicorn)))
        for number in range(20):
            terminal.publish(str(number)) if number % 2 else publish(
                gunicorn, {"channel": "orders", "data": number}
            )
        for client in clients:
            assert client.hear_until(20) == list(range(20))
        # Sessions of the database are shared by transactions of all workers, and none was spoilt by another.
        bouncer.restart()
        until(lambda: get(gunicorn, "/health/ready").status == 200)
        terminal.publish("20")
        for client in clients:
            assert client.hear_until(21)[-1] == 20
        assert (gunicorn.logged(DEAF), gunicorn.logged("Traceback")) == (2, 0)
    finally:
        bouncer.destroy()


@pytest.mark.parametrize("database_url", POSTGRES, indirect=True)
def test_a_replica_is_refused_with_what_to_do(start_gunicorn, serve, database_url, database_server, terminal):
    primary = serve(workers=1)
    terminal.publish("1")
    assert Client(primary).hear_until(1) == [1]
    replica = PostgresReplica(database_server)
    replica.start()
    try:
        url = replica.url(database_name(database_url), database_url.partition(":")[0])
        gunicorn = start_gunicorn({"DATABASE_URL": url}, workers=1, ready="/health/live").start()
        until(lambda: gunicorn.logged(DEAF) == 1, what="it says that it is deaf")
        # What is there can be read; what is to be moved cannot, and publishing is refused.
        assert Client(gunicorn).hear_until(1) == [1]
        refused = publish(gunicorn, {"channel": "orders", "data": "lost"})
        is_unavailable(refused)
        assert gunicorn.logged("Traceback") == 0
        terminal.publish("2")
        assert Client(gunicorn).hear_until(2) == [1, 2]
    finally:
        replica.destroy()
