"""Answers on their way to descriptors: whole where the client's buffer takes them, piece by piece where it does not."""

from __future__ import annotations

import os
from typing import Any, Iterable, List, Tuple

import gevent
import gevent.socket

from .standard import PIECE_BYTES

__all__ = ["TooSlow", "send_rest", "write_all"]


class TooSlow(Exception):
    """The client did not take a piece of its answer in time."""


def write_all(members: Iterable[Any], head: bytes, body: bytes) -> List[Tuple[Any, int]]:
    """Writes *head* and *body* to the descriptor of each of *members*; never waits.

    Returns:
        Those that did not take all of it, and how many bytes they took; -1 when the connection is over.
    """
    size = len(head) + len(body)
    write, writev, both = os.write, os.writev, (head, body)
    rest: List[Tuple[Any, int]] = []
    for parked in members:
        try:
            sent = writev(parked.descriptor, both) if body else write(parked.descriptor, head)
        except BlockingIOError:
            sent = 0
        except OSError:
            sent = -1
        if sent != size:
            rest.append((parked, sent))
    return rest


def send_rest(descriptor: int, parts: Tuple[bytes, bytes], sent: int, *, seconds: float) -> None:
    """Sends what is behind the first *sent* bytes of *parts*; waits, in a greenlet.

    Args:
        descriptor: Stays the caller's.
        parts: Head and body.
        sent: How much is out already.
        seconds: Longest time for a piece.

    Raises:
        TooSlow: The client did not take a piece in time.
        OSError: The connection is over.
    """
    connection = gevent.socket.socket(fileno=descriptor)
    try:
        for part in parts:
            for start in range(sent, len(part), PIECE_BYTES):
                with gevent.Timeout(seconds, TooSlow):
                    connection.sendall(memoryview(part)[start : start + PIECE_BYTES])
            sent = max(0, sent - len(part))
    finally:
        connection.detach()
