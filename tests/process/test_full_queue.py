"""The server's queue of notifications is full, since somebody's listener sleeps in a transaction: hints may be late.

All databases of a server share the queue, and a transaction that notifies fails at its commit while it is full. On a
PostgreSQL whose queue can be made small, which they can be from 17 on.
"""

from __future__ import annotations

import contextlib
import re

import psycopg2
import pytest
from sqlalchemy import create_engine, make_url

from legacy_poll.dialects import postgresql
from legacy_poll.schema import upgrade
from tests.contract.store import Store
from tests.process.conftest import everyone, hold_everywhere
from tests.process.polls import head, publish
from tests.waiting import until

pytestmark = pytest.mark.parametrize("database_url", ["postgresql18"], indirect=True)
FULL = "the server takes no notifications"


@contextlib.contextmanager
def full_queue(url):
    """Somebody listens in a transaction of hours, and another application notifies."""
    parsed = make_url(url)
    options = {"host": parsed.host, "port": parsed.port, "user": parsed.username, "dbname": "postgres"}
    sleeper, talker = psycopg2.connect(**options), psycopg2.connect(**options)
    talker.autocommit = True
    try:
        with sleeper.cursor() as cursor:
            cursor.execute("LISTEN another_application")
            sleeper.commit()
            cursor.execute("SELECT 1")
        with talker.cursor() as cursor:
            # To ask makes the server forget what everybody has read.
            cursor.execute("SELECT pg_notification_queue_usage()")
        with talker.cursor() as cursor, pytest.raises(psycopg2.errors.ProgramLimitExceeded):
            for number in range(1000):
                cursor.execute("SELECT pg_notify('another_application', %s)", ("x" * 7000 + str(number),))
        yield
    finally:
        sleeper.close()
        talker.close()


@pytest.mark.parametrize("notify", [0, 1])
def test_events_arrive_while_the_queue_is_full_and_the_log_says_how_to_find_out_why(
    serve, database_url, terminal, notify
):
    gunicorn = serve({"NOTIFY": notify}, workers=2)
    clients = everyone(hold_everywhere(gunicorn, 2, cursor=head(gunicorn)))
    with full_queue(database_url):
        for number in range(20):
            if number % 2:
                assert publish(gunicorn, {"channel": "orders", "data": number}).status == 201
            else:
                terminal.publish(str(number))
        for client in clients:
            assert client.hear_until(20) == list(range(20))
        assert 1 <= gunicorn.logged(FULL) <= 2
        assert "too many notifications in the NOTIFY queue" in gunicorn.log
        found = terminal(re.search("run: (SELECT .*)\\)", gunicorn.log).group(1))
        assert found.split("\t")[-1].strip() == "SELECT 1"
    assert terminal("SELECT count(*) FROM legacy_poll_set_aside").strip() == "0"


def test_notifications_are_sent_again_when_the_queue_has_room(database_url, monkeypatch):
    engine = create_engine(database_url, future=True)
    upgrade(engine)
    store = Store(engine)
    listener = Store(engine)
    connection = listener.database.listen()
    try:
        with full_queue(database_url):
            store.publish(1)
            assert store.move().busy
            assert [each.data for each in store.move().events] == ["1"]
            # While it is full, to ask changes nothing.
            monkeypatch.setattr(store.dialect, "_silent_until", 0.0)
            store.publish(2)
            assert [each.data for each in store.move().events] == ["2"]
            assert store.dialect._silent_until > postgresql.time.monotonic()
        assert listener.dialect.drain_notifications(connection) == (False, False)
        # The server itself does not notice that the sleeper has gone, until somebody asks.
        monkeypatch.setattr(store.dialect, "_silent_until", 0.0)
        store.publish(3)
        assert [each.data for each in store.move().events] == ["3"]
        until(
            lambda: listener.dialect.drain_notifications(connection) == (True, True),
            what="the listener hears of it",
        )
    finally:
        listener.database.hang_up(connection)
        store.close()
        listener.close()
        engine.dispose()
