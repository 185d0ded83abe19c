"""The parked lane of one worker with several listeners: TCP twice, IPv6, every address, a UNIX socket.

What is parked, approved and given back stays with its listener: the application sees the same server and client on a
connection before and after, and each listener's approvals are its own.
"""

from __future__ import annotations

import signal
import socket

import pytest

from tests.process.kept import SECONDS, Client, asked, cycle, metrics, say, until_held
from tests.process.polls import head
from tests.servers import free_port, missing
from tests.waiting import until

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def connected(family, address):
    opened = socket.socket(family)
    opened.settimeout(SECONDS)
    opened.connect(address)
    return opened


@pytest.fixture
def listening(shop, tmp_path_factory):
    """A worker with five listeners, and what connects to each; the last is met in two ways."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        missing("IPv6 on the loopback interface")
    path = str(tmp_path_factory.mktemp("s") / "s")
    second, sixth, every = free_port(), free_port(), free_port()
    binds = ["unix:" + path, "127.0.0.1:%d" % second, "[::1]:%d" % sixth, "[::]:%d" % every]
    options = [each for bind in binds for each in ("-b", bind)] + ["--keep-alive", "600"]
    gunicorn = shop("parked", options=options)
    return gunicorn, {
        "TCP": lambda: connected(socket.AF_INET, ("127.0.0.1", gunicorn.port)),
        "UNIX": lambda: connected(socket.AF_UNIX, path),
        "TCP on another port": lambda: connected(socket.AF_INET, ("127.0.0.1", second)),
        "IPv6": lambda: connected(socket.AF_INET6, ("::1", sixth)),
        "IPv6 on every address": lambda: connected(socket.AF_INET6, ("::1", every)),
        "IPv4 on every address": lambda: connected(socket.AF_INET, ("127.0.0.1", every)),
    }


def where(client):
    """What the application says of the connection of *client*."""
    client.send(b"GET /where HTTP/1.1\r\nHost: here\r\n\r\n")
    status, _, body = client.hear()
    assert status == 200
    return body


def test_what_is_parked_stays_with_its_listener(listening):
    gunicorn, ways = listening
    clients, seen = {}, {}
    for name, way in ways.items():
        client = clients[name] = Client(gunicorn, opened=way())
        seen[name] = where(client)
        before, cursor = asked(gunicorn), head(gunicorn)
        for turn in range(4):
            _, cursor = cycle(client, cursor, turn)
        # The same bytes as on all others; asked about twice on each, and then never.
        assert asked(gunicorn) == before + 2, name
        # Given back, and parked again.
        for _ in range(2):
            assert where(client) == seen[name], name
            _, cursor = cycle(client, cursor)
        assert metrics(gunicorn)["parked"] == str(len(clients))
    assert len(set(seen.values())) == len(seen), seen
    assert int(metrics(gunicorn)["approvals"]) == len(ways)

    # All at once: held, answered, given back at the same moment.
    cursor = head(gunicorn)
    for client in clients.values():
        client.ask(cursor)
    until_held(gunicorn, len(clients))
    say(gunicorn, "to all")
    answers = {client.raw() for client in clients.values()}
    assert len({answer.partition(b"\r\n\r\n")[2] for answer in answers}) == 1
    for client in clients.values():
        client.send(b"GET /where HTTP/1.1\r\nHost: here\r\n\r\n")
    assert {name: client.hear()[2] for name, client in clients.items()} == seen


def test_a_worker_that_ends_waits_for_what_every_listener_has_parked(listening):
    gunicorn, ways = listening
    clients = []
    for way in ways.values():
        client, cursor = Client(gunicorn, opened=way()), head(gunicorn)
        cycle(client, cursor)
        clients.append(client)
    cursor = head(gunicorn)
    for client in clients:
        client.ask(cursor)
    until_held(gunicorn, len(clients))
    gunicorn.signal(signal.SIGTERM)
    for client in clients:
        answer = client.raw()
        assert answer.startswith(b"HTTP/1.1 204") and b"Connection: close" in answer
        assert client.over
    until(lambda: not gunicorn.running, SECONDS, "it is gone")
    assert "Traceback" not in gunicorn.log
