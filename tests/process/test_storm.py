"""A thousand clients return after a deploy with ten different old cursors: they share a handful of reads.

Ten thousand is the bench's. The cursors are behind what a worker keeps in memory, so each answer is the log's.
"""

from __future__ import annotations

import pytest

from tests.process.conftest import each_lane
from tests.process.kept import metrics
from tests.process.polls import Client, connect, get, publish, stream
from tests.waiting import until

CLIENTS = 1000
CURSORS = 10
EVENTS = 200
TAIL = 20
SECONDS = 60
HANDFUL = 4 * CURSORS

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def old_cursors(gunicorn):
    """Ten of them, none of which the worker's memory knows, and what each has not seen."""
    found, cursor = [], None
    for _ in range(CURSORS):
        cursor = get(gunicorn, stream(cursor=cursor, limit=10, timeout=0)).cursor
        found.append(cursor)
    return found


@each_lane
def test_ten_old_cursors_of_a_thousand_clients_are_a_handful_of_reads(serve, lane):
    options = {"workers": 1, "app": "tests.process.counting:app", "options": ["--keep-alive", "600"]}
    before = serve({"TAIL_EVENTS": TAIL}, **options)
    rows = [{"channel": "orders", "data": number} for number in range(EVENTS)]
    assert publish(before, rows).status == 201
    cursors = old_cursors(before)
    before.destroy()

    gunicorn = serve({"TAIL_EVENTS": TAIL, "MAX_HELD": 2 * CLIENTS}, **options)
    [worker] = gunicorn.workers
    until(lambda: metrics(gunicorn)["position"] == str(EVENTS), SECONDS, "it has read its tail")
    assert metrics(gunicorn)["catchup_reads_total"] == "0"
    looks = old_events_read(gunicorn)
    clients = [Client(gunicorn, cursor=cursors[number % CURSORS]) for number in range(CLIENTS)]
    with gunicorn.paused(worker):
        # All of them have asked before the first is answered, as after a deploy.
        connections = [connect(gunicorn) for _ in clients]
        for client, connection in zip(clients, connections):
            client.ask(connection)
    for number, client in enumerate(clients):
        assert client.hear().status == 200
        assert client.seen == list(range(10 * (number % CURSORS) + 10, EVENTS))
    # One for each cursor; more where some came while a read was under way, which they may not share.
    reads = int(metrics(gunicorn)["catchup_reads_total"])
    assert CURSORS <= reads <= HANDFUL, reads
    # What is counted is what the database was asked: a page of events for each read, and another to see the end.
    assert reads <= old_events_read(gunicorn) - looks <= 2 * reads
    # They go on where they are, from memory: nobody asks the log again.
    for client, connection in zip(clients, connections):
        client.ask(connection)
    until(lambda: metrics(gunicorn)["held"] == str(CLIENTS), SECONDS, "all are held")
    assert int(metrics(gunicorn)["catchup_reads_total"]) == reads
    assert publish(gunicorn, {"channel": "orders", "data": "after"}).status == 201
    assert {tuple(client.hear().data) for client in clients} == {("after",)}
    assert int(metrics(gunicorn)["catchup_reads_total"]) == reads


def old_events_read(gunicorn):
    """How often the table of events was asked for those on a channel."""
    return sum("channel IN" in statement for statement in get(gunicorn, "/statements").json)
