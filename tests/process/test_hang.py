"""A database that hangs: its processes are stopped, so that nothing is refused and nothing answers.

It must not stop the worker's other greenlets, whatever the driver: a driver that blocks is called in threads.
"""

from __future__ import annotations

import pytest

from tests.process.conftest import SERVERS, everyone, hold_everywhere
from tests.process.polls import Client, Request, get, head, publish, stream
from tests.process.test_outage import is_unavailable
from tests.waiting import until

pytestmark = pytest.mark.parametrize("database_url", SERVERS, indirect=True)


def primed(gunicorn, terminal):
    """A cursor that every worker has in memory."""
    clients = everyone(hold_everywhere(gunicorn, 1, cursor=head(gunicorn)))
    terminal.publish("0")
    assert [client.hear().data for client in clients] == [[0]] * len(clients)
    return clients[0].cursor


def test_who_waits_for_a_database_that_hangs_keeps_nobody_else_waiting(serve, terminal, database_server):
    # Longer than any bound here: whoever is answered meanwhile was not waiting for the database.
    gunicorn = serve({"DATABASE_TIMEOUT_SECONDS": 300}, workers=2)
    cursor = primed(gunicorn, terminal)
    held = everyone(hold_everywhere(gunicorn, 3, cursor=cursor))
    with database_server.paused():
        waiting = [Request(gunicorn, path) for path in ["/cursor", stream(cursor="now"), stream()] * 6]
        for worker in gunicorn.workers:
            with gunicorn.only(worker):
                # More than once: the ticks of the publisher, which hang as well, came in between.
                for _ in range(3):
                    assert get(gunicorn, "/health/live").status == 200
                    client = Client(gunicorn, cursor=cursor, timeout=100, empty=200).ask()
                    assert (client.hear().data, client.cursor) == ([], cursor)
        assert not any(request.answered for request in waiting)
        assert all(client.held for client in held)
    assert [request.answer().status for request in waiting] == [200, 204, 200] * 6
    terminal.publish("1")
    assert [client.hear().data for client in held] == [[1]] * 6


def test_a_database_that_hangs_is_given_up_at_its_time_and_taken_again(serve, terminal, database_server):
    gunicorn = serve({"DATABASE_TIMEOUT_SECONDS": 1, "WRITE_WAIT_SECONDS": 0}, workers=2)
    cursor = primed(gunicorn, terminal)
    held = everyone(hold_everywhere(gunicorn, 3, cursor=cursor))
    for turn in (1, 2):
        with database_server.paused():
            for worker in gunicorn.workers:
                with gunicorn.only(worker):
                    until(lambda: get(gunicorn, "/health/ready").status == 503, what="each worker says so")
            # Also a server that runs may be too slow for a second, and workers have said so before.
            until(
                lambda n=turn: gunicorn.logged("gave no answer within 1 s") >= 2 * n, what="so does the log"
            )
            # More than there are connections and threads.
            waiting = [Request(gunicorn, path) for path in ["/cursor", stream(cursor="now"), stream()] * 8]
            for request in waiting:
                is_unavailable(request.answer())
            is_unavailable(get(gunicorn, "/health/ready"))
            is_unavailable(publish(gunicorn, {"channel": "elsewhere", "data": "perhaps"}))
            # From memory, as documented.
            assert Client(gunicorn, cursor=held[0].cursor, timeout=100).ask().hear().status == 204
            assert all(client.held for client in held)
        terminal.publish(str(turn))
        assert [client.hear().data for client in held] == [[turn]] * 6
        gunicorn.wait_until_ready()
        for worker in gunicorn.workers:
            with gunicorn.only(worker):
                assert publish(gunicorn, {"channel": "elsewhere", "data": turn}).status == 201
                assert get(gunicorn, stream(timeout=0)).data == list(range(turn + 1))
        for client in held:
            client.ask()
