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
        #: Most at once for this worker.
        self.max_held = max_held
        self._max_held_per_client = max_held_per_client
        self._lock = threading.Lock()
        self._by_client: Dict[str, int] = {}
        self.held = 0
        self._closed = False

    def limit(self, max_held: int) -> None:
        """Allows no more than *max_held* at once: the server has no room for more."""
        self.max_held = min(self.max_held, max_held)

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
        self.take(client)
        return _Place(self, client).leave

    @property
    def counts_clients(self) -> bool:
        """Whether it matters whose a place is."""
        return bool(self._max_held_per_client)

    def take(self, client: str, polls: int = 1) -> None:
        """Takes *polls* places for *client*, or none; :meth:`leave` gives them back.

        Raises:
            As :meth:`enter` does.
        """
        if self._closed:
            raise Draining("this worker is about to stop; another one takes the next request")
        with self._lock:
            theirs = self._by_client.get(client, 0)
            if self._max_held_per_client and theirs + polls > self._max_held_per_client:
                raise TooManyPolls(
                    "this client holds %d polls: at most %d are allowed"
                    % (theirs, self._max_held_per_client),
                    limit="max_held_per_client",
                )
            if self.held + polls > self.max_held:
                raise ServerFull(
                    "this worker holds %d polls: at most %d are allowed" % (self.held, self.max_held),
                    limit="max_held",
                )
            self.held += polls
            if self._max_held_per_client:
                self._by_client[client] = theirs + polls

    def leave(self, client: str, polls: int = 1) -> None:
        """Gives back *polls* places of *client*."""
        with self._lock:
            self.held -= polls
            if client in self._by_client:
                self._by_client[client] -= polls
                if self._by_client[client] <= 0:
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
            self._admission.leave(self._client)
