"""Who may be held: counted before anything else is done for a request, so that a refusal costs less than a hold."""

from __future__ import annotations

import threading
from typing import Callable, Dict

from .errors import Draining, ServerFull, TooManyPolls

__all__ = ["Admission"]


class Admission:
    """Counts held polls, in total and by client.

    Args:
        max_held: Most at once for this worker.
        max_held_per_client: Most at once for one client; 0 is no limit.
    """

    def __init__(self, *, max_held: int, max_held_per_client: int) -> None:
        self._max_held = max_held
        self._max_held_per_client = max_held_per_client
        self._lock = threading.Lock()
        self._by_client: Dict[str, int] = {}
        self.held = 0
        #: How many were refused for want of room.
        self.refused = 0
        self._closed = False

    def close(self) -> None:
        """Lets nobody in any more."""
        self._closed = True

    def enter(self, client: str) -> Callable[[], None]:
        """Takes a place for *client*.

        Returns:
            What gives the place back; calling it again does nothing.

        Raises:
            Draining: This worker is about to end.
            ServerFull: The worker holds as many as it may.
            TooManyPolls: This client does.
        """
        if self._closed:
            raise Draining("this worker is about to stop; another one takes the next request")
        with self._lock:
            theirs = self._by_client.get(client, 0)
            if self._max_held_per_client and theirs >= self._max_held_per_client:
                self.refused += 1
                raise TooManyPolls(
                    "this client holds %d polls: at most %d are allowed" % (theirs, self._max_held_per_client)
                )
            if self.held >= self._max_held:
                self.refused += 1
                raise ServerFull(
                    "this worker holds %d polls: at most %d are allowed" % (self.held, self._max_held)
                )
            self.held += 1
            if self._max_held_per_client:
                self._by_client[client] = theirs + 1
        return _Place(self, client).leave

    def _leave(self, client: str) -> None:
        with self._lock:
            self.held -= 1
            if client in self._by_client:
                self._by_client[client] -= 1
                if not self._by_client[client]:
                    del self._by_client[client]


class _Place:
    __slots__ = ("_admission", "_client", "_left")

    def __init__(self, admission: Admission, client: str) -> None:
        self._admission = admission
        self._client = client
        self._left = False

    def leave(self) -> None:
        if not self._left:
            self._left = True
            self._admission._leave(self._client)
