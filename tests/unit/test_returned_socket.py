"""A connection that goes back to gunicorn: what was read of it before comes first."""

from __future__ import annotations

import gevent.socket

from legacy_poll.lanes.gunicorn_seam import ReturnedSocket


def test_a_copy_of_it_reads_what_comes_next():
    # Libraries for websockets take a copy of the request's socket, once the request has been read.
    ours, theirs = gevent.socket.socketpair()
    returned = ReturnedSocket(fileno=theirs.detach()).give(b"read before")
    assert returned.recv(100) == b"read before" and returned.heard == b"read before"
    copy = returned.dup()
    ours.sendall(b"what comes next")
    assert copy.recv(100) == b"what comes next"
    for each in (ours, returned, copy):
        each.close()
