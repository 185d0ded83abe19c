"""After a thousand polls were held and answered, nothing of them is left: seen from outside, in /proc."""

from __future__ import annotations

import pytest

from tests.process.conftest import each_lane
from tests.process.kept import open_connections
from tests.process.polls import Client, get, head, stream
from tests.waiting import until

THOUSAND = 1000
SEVERAL_MIB = 8 << 20
#: The first must not be at its timeout when the last one comes, however busy the machine is.
HELD_MS = 60_000


def all_are_held(gunicorn, clients):
    """Whether each of *clients* is held; fails when one was answered, since then they never will be."""
    early = [client for client in clients if not client.held]
    assert not early, "%d were answered at once, the first of them: %r" % (len(early), early[0].hear())
    return get(gunicorn, "/status").json["worker"]["held"] == len(clients)


def hold_a_thousand(gunicorn, worker, **parameters):
    """A thousand clients that have asked, and how many sockets *worker* had before, when nobody was connected."""
    until(lambda: open_connections(gunicorn) == 0, 30, "nobody is connected")
    before = gunicorn.sockets(worker)
    start = head(gunicorn)
    clients = [Client(gunicorn, cursor=start, **parameters).ask() for _ in range(THOUSAND)]
    return before, clients


@each_lane
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_thousand_polls_leave_neither_places_nor_descriptors_nor_memory(serve, terminal):
    gunicorn = serve({"MAX_HELD": THOUSAND}, workers=1)
    [worker] = gunicorn.workers
    sockets, descriptors, memory = [], [], []
    for turn in range(3):
        # All of them are let in: nobody of the turn before still has a place.
        before, clients = hold_a_thousand(gunicorn, worker, timeout=HELD_MS)
        until(lambda those=clients: all_are_held(gunicorn, those), 30, "all are held")
        full = get(gunicorn, stream(timeout=1000))
        assert (full.status, full.code) == (503, "server_full") and int(full.headers["Retry-After"]) >= 1
        terminal.publish(str(turn))
        assert [client.hear().data for client in clients] == [[turn]] * THOUSAND
        until(
            lambda was=before: gunicorn.sockets(worker) <= was,
            seconds=30,
            what="all their sockets are closed",
        )
        sockets.append(gunicorn.sockets(worker))
        descriptors.append(gunicorn.descriptors(worker))
        memory.append(gunicorn.resident_bytes(worker))

    # Those that end empty, at their timeout, leave nothing either.
    before, clients = hold_a_thousand(gunicorn, worker, timeout=500, empty=200)
    answers = [client.hear() for client in clients]
    assert [(answer.status, answer.data) for answer in answers] == [(200, [])] * THOUSAND
    until(lambda: gunicorn.sockets(worker) <= before, seconds=30, what="all their sockets are closed")
    before, clients = hold_a_thousand(gunicorn, worker, timeout=HELD_MS)
    until(lambda those=clients: all_are_held(gunicorn, those), 30, "all are held")
    assert get(gunicorn, stream(timeout=1000)).status == 503
    terminal.publish('"the end"')
    assert [client.hear().data for client in clients] == [["the end"]] * THOUSAND

    assert len(set(sockets)) == 1, sockets
    # Threads open the file when they are first needed; there are a handful of them.
    assert descriptors[-1] - descriptors[0] <= 30, descriptors
    assert memory[-1] - memory[0] <= SEVERAL_MIB, memory
