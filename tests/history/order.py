"""All rows of a history, numbered, and what is known of the one order that the log must have."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import deque
from typing import Iterable, Sequence

from tests.history import COMMITTED, History, Row, Transaction

canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
NEVER = float("inf")


class Published:
    """The rows of the history, by number: transaction by transaction, and in each as published.

    `settled` has the moment from which on whatever is inserted comes after the row.
    """

    def __init__(self, history: History) -> None:
        self.rows: list[Row] = []
        self.transactions: list[Transaction] = []
        for transaction in history.transactions.values():
            self.rows.extend(transaction.rows)
            self.transactions.extend([transaction] * len(transaction.rows))
        self.by_key: dict[str | None, int] = {row.key: number for number, row in enumerate(self.rows)}
        self.by_id = {row.id: number for number, row in enumerate(self.rows) if row.id is not None}
        self.data = [canonical(row.data) for row in self.rows]
        self.settled = [
            NEVER if t.outcome != COMMITTED or t.commit_returned is None else t.commit_returned
            for t in self.transactions
        ]

    def tell(self, number: int) -> str:
        row, put = self.rows[number], self.transactions[number]
        sent, commit, returned = map(show_time, (row.insert_sent, put.commit_sent, put.commit_returned))
        times = f"INSERT sent {sent}, commit sent {commit}, returned {returned}"
        return f"{row.key!r} on {row.channel} ({put.outcome} in {put.name} of {put.publisher}: {times})"


def show_time(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.6f}"


class Order:
    """All that is known of the one order, as a graph: an edge from an event to one that must come later.

    Edges: neighbours in a path, neighbours in a transaction, and real time. That would be quadratic, so it
    goes by nodes for the moments at which commits returned: an event, its moment, the next moment, and so on to
    an event whose INSERT was sent after that.
    """

    def __init__(self, published: Published, live: Sequence[int], paths: Iterable[list[int]]) -> None:
        self._published = published
        moments = sorted({published.settled[row] for row in live} - {NEVER})
        self._first_moment = len(published.rows)
        edges: set[tuple[int, int]] = set()
        for path in paths:
            edges.update(zip(path, path[1:]))
        self._told = frozenset(edges)
        before: int | None = None
        for row in sorted(live):
            if before is not None and published.transactions[before] is published.transactions[row]:
                edges.add((before, row))
            before = row
            if published.settled[row] != NEVER:
                edges.add((row, self._first_moment + bisect_left(moments, published.settled[row])))
            earlier = bisect_left(moments, published.rows[row].insert_sent)
            if earlier:
                edges.add((self._first_moment + earlier - 1, row))
        edges.update((self._first_moment + i, self._first_moment + i + 1) for i in range(len(moments) - 1))
        size = self._first_moment + len(moments)
        self._later: list[list[int]] = [[] for _ in range(size)]
        self._earlier: list[list[int]] = [[] for _ in range(size)]
        for one, other in edges:
            self._later[one].append(other)
            self._earlier[other].append(one)
        self._stuck = self._sort(size)

    def _sort(self, size: int) -> set[int]:
        """The nodes that a topological sort (Kahn's) never reaches: none, if there is one order."""
        waits = [len(earlier) for earlier in self._earlier]
        ready = [node for node in range(size) if not waits[node]]
        stuck = set(range(size))
        while ready:
            node = ready.pop()
            stuck.discard(node)
            for later in self._later[node]:
                waits[later] -= 1
                if not waits[later]:
                    ready.append(later)
        return stuck

    @property
    def one(self) -> bool:
        return not self._stuck

    def after(self, row: int) -> set[int]:
        return self._reach(row, self._later)

    def before(self, row: int) -> set[int]:
        return self._reach(row, self._earlier)

    @staticmethod
    def _reach(row: int, edges: list[list[int]]) -> set[int]:
        reached, ahead = {row}, [row]
        while ahead:
            for node in edges[ahead.pop()]:
                if node not in reached:
                    reached.add(node)
                    ahead.append(node)
        return reached

    def ring(self) -> list[str]:
        """A short ring of events, each of which must come before the next: why there is no one order."""
        node, walked = min(self._stuck), set()
        while node not in walked:
            walked.add(node)
            node = next(earlier for earlier in self._earlier[node] if earlier in self._stuck)
        came_from: dict[int, int] = {}
        ahead = deque([node])
        while node not in came_from:
            one = ahead.popleft()
            for other in self._later[one]:
                if other not in came_from:
                    came_from[other] = one
                    ahead.append(other)
        ring = [node]
        while came_from[ring[-1]] != node:
            ring.append(came_from[ring[-1]])
        rows = [number for number in reversed(ring) if number < self._first_moment]
        return [self._reason(one, other) for one, other in zip(rows, rows[1:] + rows[:1])]

    def _reason(self, one: int, other: int) -> str:
        tell, transactions = self._published.tell, self._published.transactions
        if (one, other) in self._told:
            why = "a reader got them so"
        elif transactions[one] is transactions[other]:
            why = "they were published so"
        else:
            why = "the one's commit returned before the other's INSERT was sent"
        return f"{tell(one)} before {tell(other)}: {why}"
