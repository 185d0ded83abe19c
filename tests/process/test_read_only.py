"""A server that takes no writes for a while: what is there is served, and what cannot be written is said once."""

from __future__ import annotations

import signal

import pytest
from sqlalchemy import make_url

from tests.process.conftest import everyone, hold_everywhere
from tests.process.polls import get, head, publish, stream
from tests.waiting import until

CANNOT_TRIM = "old events cannot be trimmed"
READ_ONLY = {
    "mysql": ("SET GLOBAL super_read_only = 1", "SET GLOBAL super_read_only = 0; SET GLOBAL read_only = 0"),
    "postgresql": (
        "ALTER DATABASE {0} SET default_transaction_read_only = on;"
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{0}'",
        "SET default_transaction_read_only = off; ALTER DATABASE {0} RESET default_transaction_read_only;"
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{0}'",
    ),
}
ADVICE = {
    "mysql": "this server is read-only; the URL must name the primary",
    "postgresql": "default_transaction_read_only",
}


@pytest.mark.parametrize("database_url", ["postgresql", "mysql"], indirect=True)
def test_a_server_without_writes_serves_what_is_there_and_says_once_that_it_cannot_trim(
    serve, database_url, terminal, database_server
):
    first = serve({"RETENTION_EVENTS": 0}, workers=1)
    terminal.publish(*map(str, range(10)))
    until(lambda: get(first, stream(timeout=0)).data == list(range(10)), what="the events are there")
    first.signal(signal.SIGTERM)
    until(lambda: not first.running, 30, "the first server has ended")
    parsed = make_url(database_url)
    on, off = (sql.format(parsed.database) for sql in READ_ONLY[parsed.get_backend_name()])
    database_server.execute(on)
    try:
        # There is something to trim.
        gunicorn = serve({"RETENTION_EVENTS": 5, "TRIM_INTERVAL_SECONDS": 0.05}, workers=1)
        held = everyone(hold_everywhere(gunicorn, 2, cursor=head(gunicorn)))
        until(lambda: gunicorn.logged(CANNOT_TRIM), what="it says that it cannot trim")
        for number in range(10, 13):
            answer = publish(gunicorn, {"channel": "orders", "data": number})
            assert (answer.status, answer.code) == (503, "storage_unavailable")
        assert get(gunicorn, stream(timeout=0)).data == list(range(10))
        assert get(gunicorn, "/health/ready").status == 200
        assert all(client.held for client in held)
    finally:
        database_server.execute(off)
    terminal.publish("10")
    assert [client.hear(seconds=20).data for client in held] == [[10]] * 2
    until(lambda: gunicorn.logged("old events are trimmed again"), what="it says that it trims")
    until(lambda: get(gunicorn, stream(timeout=0)).data == list(range(6, 11)), what="it has trimmed")
    assert gunicorn.logged(CANNOT_TRIM) == 1
    assert ADVICE[parsed.get_backend_name()] in gunicorn.log
