"""A worker that stops: what it has accepted, and what goes back to it, is begun with a listener that is closed."""

from __future__ import annotations

from functools import partial

import gevent
import gevent.pool
import gevent.server
import gevent.socket
import pytest
from gunicorn.config import Config
from gunicorn.glogging import Logger

from legacy_poll.lanes.gunicorn_seam import GunicornSeam


class Worker:
    """What the seam needs of gunicorn's, with a server as the worker starts it."""

    max_requests = 1000
    nr = 0
    alive = True

    def __init__(self):
        self.cfg = Config()
        self.log = Logger(self.cfg)
        listener = gevent.socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        self.sockets = [listener]
        self.begun = []
        self.pool = gevent.pool.Pool(10)
        self.server = gevent.server.StreamServer(
            listener, handle=partial(self.handle, listener), spawn=self.pool
        )

    def is_already_handled(self, body):
        return False

    def handle(self, listener, client, peer):
        self.begun.append(listener.getsockname())
        client.close()


@pytest.fixture
def worker():
    worker = Worker()
    yield worker
    worker.server.close()


@pytest.fixture
def seam(worker):
    seam = GunicornSeam(worker)
    assert seam.pool(0) is worker.pool
    return seam


@pytest.mark.parametrize("alive", [True, False], ids=["given back", "as gunicorn does it"])
def test_a_connection_that_was_accepted_before_the_listener_closed_is_begun(seam, worker, alive):
    name = worker.sockets[0].getsockname()
    ours, theirs = gevent.socket.socketpair()
    theirs.sendall(b"GET / HTTP/1.1\r\n\r\n")
    worker.alive = alive
    worker.server.do_handle(ours, ("127.0.0.1", 1))
    worker.server.close()
    assert worker.begun == []
    for _ in range(5):
        gevent.sleep(0)
    assert worker.begun == [name]
    theirs.close()
