"""The judge of a run: did each committed event reach each subscriber that kept asking, once, in one order?

It knows nothing of databases or HTTP, only the records of `tests.history`. The rules, by their kinds:

- lost: an event was owed to a reader and never came. A complete reader is owed all from its start on; any
  reader, what certainly lies between the first and the last event that it got.
- torn: the same, of a transaction with an unknown outcome that somebody saw: all of it for all, or nothing.
- phantom: an event that nobody published, or that was rolled back, with its transaction or its savepoint.
- early: an event was seen before its commit was sent.
- stray: an event on a channel that the reader did not ask for.
- altered: key, channel, type, data or id are not as published, or the id is not one event's for all.
- duplicate: an event came again after its reader adopted a cursor beyond it, or twice in one answer.
- disagreement: two readers, or two answers to one cursor, give different orders; or all orders together, with
  those of the transactions and of real time, contradict each other in a longer ring.
- transaction_order: rows of one transaction came out of their order.
- real_time_order: A's commit returned before B's INSERT was sent, and yet B came first.
- cursor: one went back, or the server refused one that it had given.
- unfinished: a reader or a publisher stopped before its work was done.

A reader's answers become a *chain*: what it got along the cursors that it adopted. An answer that was not
adopted, and what lay beyond a cursor that its reader went back to, is a *branch*: it must come again.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import ceil
from typing import Callable, Iterable

from tests.history import (
    ANSWERED,
    COMMITTED,
    NOW,
    ROLLED_BACK,
    Answer,
    History,
    HistoryError,
    Reader,
    Transaction,
)
from tests.history.chains import Chain
from tests.history.order import NEVER, Order, Published, canonical, show_time

LOST, TORN, PHANTOM, EARLY, STRAY, ALTERED = "lost", "torn", "phantom", "early", "stray", "altered"
DUPLICATE, DISAGREEMENT, CURSOR, UNFINISHED = "duplicate", "disagreement", "cursor", "unfinished"
TRANSACTION_ORDER, REAL_TIME_ORDER = "transaction_order", "real_time_order"

_TOLD = 5


@dataclass(frozen=True)
class Violation:
    kind: str
    message: str
    readers: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Latency:
    """From a commit's return to a reader's first answer with the event, if the reader was there by then."""

    deliveries: int
    p50_seconds: float
    p99_seconds: float
    max_seconds: float


@dataclass(frozen=True)
class Report:
    """The verdict; `due` and `missed` count deliveries, an event to a reader; `lost_events`, events."""

    violations: tuple[Violation, ...]
    events: int
    readers: int
    due: int
    missed: int
    lost_events: int
    latency: Latency | None
    statuses: dict[int, int]

    @property
    def held(self) -> bool:
        return not self.violations

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset(violation.kind for violation in self.violations)

    @property
    def lost_per_10_000(self) -> float:
        """Missed deliveries in 10,000 that were due."""
        return 10_000 * self.missed / self.due

    def __str__(self) -> str:
        lines = [
            f"{'held' if self.held else 'BROKEN'}: {self.events} events, {self.readers} readers",
            f"deliveries: {self.due} due, {self.missed} missed, {self.lost_per_10_000:.2f} in 10,000",
            f"events that a reader missed: {self.lost_events}",
            f"answers by status: {dict(sorted(self.statuses.items()))}",
        ]
        if self.latency:
            seconds = (self.latency.p50_seconds, self.latency.p99_seconds, self.latency.max_seconds)
            p50, p99, longest = (f"{1000 * found:.1f} ms" for found in seconds)
            lines.append(f"commit to answer: p50 {p50}, p99 {p99}, max {longest}")
        for kind, count in sorted(Counter(violation.kind for violation in self.violations).items()):
            told = [violation.message for violation in self.violations if violation.kind == kind]
            lines.append(f"{kind}: {count}" + ("" if count <= _TOLD else f", of which {_TOLD} are told"))
            lines.extend("  " + message for message in told[:_TOLD])
        return "\n".join(lines)


def judge(history: History, *, position_of: Callable[[str], int] | None = None) -> Report:
    """Judge *history*.

    Args:
        history: What was published and what was seen.
        position_of: Decodes a cursor; given, no answer's cursor may lie below its request's. Without it, a
            cursor is known to lie below only if the reader had it before.

    Raises:
        HistoryError: Nothing was owed to anybody, or a reader did what no client may do.
    """
    return _Judgement(history, position_of).report()


class _Judgement:
    def __init__(self, history: History, position_of: Callable[[str], int] | None) -> None:
        self._history = history
        self._position_of = position_of
        self._published = Published(history)
        self._violations: list[Violation] = []
        # What is wrong with an event is told once, with all the readers that it befell.
        self._befell: dict[tuple[str, str, int | None], set[str]] = {}
        self._ids: dict[int, str] = {}
        self._owners: dict[str, int] = {}
        self._first_seen: dict[int, float] = {}
        self._latencies: list[float] = []
        self._chains: list[Chain] = []

    def report(self) -> Report:
        for reader in self._history.readers.values():
            self._follow(reader, self._history.answers.get(reader.name, []))
        live = self._live()
        order = Order(self._published, live, (chain.path for chain in self._chains))
        self._check_order(order)
        self._check_starts()
        due, missed = self._check_losses(order, live)
        self._check_ends()
        if not due:
            raise HistoryError("nothing to judge: no event was owed to any reader")
        for (kind, message, row), readers in self._befell.items():
            self._add(kind, f"{message} {_names(readers)}", readers, [] if row is None else [row])
        lost = sum(1 for kind, _, _ in self._befell if kind in (LOST, TORN))
        statuses = Counter(answer.status for answers in self._history.answers.values() for answer in answers)
        return Report(
            tuple(self._violations),
            len(live),
            len(self._history.readers),
            due,
            missed,
            lost,
            _latency(self._latencies),
            dict(statuses),
        )

    def _add(self, kind: str, message: str, readers: Iterable[str], rows: Iterable[int] = ()) -> None:
        keys = tuple(self._published.rows[row].key for row in rows)
        self._violations.append(Violation(kind, message, tuple(sorted(readers)), keys))

    def _befalls(self, reader: Reader, kind: str, message: str, row: int | None) -> None:
        self._befell.setdefault((kind, message, row), set()).add(reader.name)

    # What a reader got

    def _follow(self, reader: Reader, answers: list[Answer]) -> None:
        """Turn the answers to *reader* into chains."""
        seen_at: dict[int, float] = {}
        chain: Chain | None = None
        for answer in answers:
            rows = self._admit(reader, answer, seen_at)
            cursor = answer.request_cursor
            if cursor is None and (chain is None or None not in chain.marks):
                self._close(chain)
                chain = Chain(reader, None, marks={None: 0})
            known = cursor == NOW or (chain is not None and cursor in chain.marks)
            if known and answer.status in (400, 410):
                told = f"{_where(answer)} was refused with {answer.status}, though the cursor was given to it"
                self._add(CURSOR, told, [reader.name])
            if cursor == NOW or answer.status == 410:
                if rows:
                    told = f"{_where(answer)} asked where the log ends, and got events"
                    self._add(CURSOR, told, [reader.name], rows)
                if answer.adopted:
                    self._close(chain)
                    chain = Chain(reader, answer, marks={answer.cursor: 0})
            elif answer.status in ANSWERED:
                if chain is None or not known:
                    raise HistoryError(f"{_where(answer)} was answered, though it never adopted that cursor")
                self._go_on(chain, answer, rows)
        self._close(chain, complete=reader.complete)
        for row, returned in seen_at.items():
            self._first_seen[row] = min(returned, self._first_seen.get(row, NEVER))
            if answers[0].sent <= self._published.settled[row] < NEVER:
                self._latencies.append(max(0.0, returned - self._published.settled[row]))

    def _admit(self, reader: Reader, answer: Answer, seen_at: dict[int, float]) -> list[int]:
        """The rows behind the events of *answer*, judged one by one; what may not exist is left out."""
        admitted = []
        published = self._published
        for seen in answer.events:
            row = published.by_key.get(seen.key)
            row = published.by_id.get(seen.id) if row is None else row
            if row is None:
                told = f"nobody published event {seen.id!r} on {seen.channel} (key {seen.key!r}), seen by"
                self._befalls(reader, PHANTOM, told, None)
                continue
            put, transaction = published.rows[row], published.transactions[row]
            tell = published.tell
            if put.undone or transaction.outcome == ROLLED_BACK:
                what = "savepoint" if put.undone else "transaction"
                self._befalls(reader, PHANTOM, f"{tell(row)}: its {what} was rolled back; seen by", row)
                continue
            if seen.channel not in reader.channels:
                self._befalls(reader, STRAY, f"{tell(row)} came on {seen.channel}, not asked for by", row)
            if transaction.commit_sent is not None and answer.returned < transaction.commit_sent:
                when = show_time(answer.returned)
                self._befalls(reader, EARLY, f"{tell(row)} was seen at {when} already, by", row)
            data = canonical(seen.data)
            one_id = self._ids.setdefault(row, seen.id if put.id is None else put.id)
            came = (seen.key, seen.channel, seen.type, data, seen.id)
            went = (put.key, put.channel, put.type, published.data[row], one_id)
            if came != went:
                self._befalls(reader, ALTERED, f"{tell(row)}: {went} came as {came} to", row)
            owner = self._owners.setdefault(seen.id, row)
            if owner != row:
                self._befalls(reader, ALTERED, f"{tell(row)} came with the id of {tell(owner)} to", row)
            seen_at.setdefault(row, answer.returned)
            admitted.append(row)
        return admitted

    def _go_on(self, chain: Chain, answer: Answer, rows: list[int]) -> None:
        """Add an answer to a cursor of *chain*."""
        cursor, names = answer.request_cursor, [chain.reader.name]
        mark = chain.marks[cursor]
        fresh: dict[int, None] = {}
        for row in rows:
            if chain.place.get(row, mark) < mark:
                told = "before that cursor, and yet in the answer to it"
                self._add(DUPLICATE, f"{self._published.tell(row)}: {told}: {_where(answer)}", names, [row])
            elif row in fresh:
                told = "twice in one answer"
                self._add(DUPLICATE, f"{self._published.tell(row)}: {told}: {_where(answer)}", names, [row])
            else:
                fresh[row] = None
        reached = chain.marks.get(answer.cursor, NEVER)
        back = answer.cursor is not None and (reached < mark or (reached == mark and bool(fresh)))
        if self._position_of and cursor is not None and answer.cursor is not None:
            back = back or self._position_of(answer.cursor) < self._position_of(cursor)
        if back:
            self._add(CURSOR, f"{_where(answer)} was answered with {answer.cursor!r}, which went back", names)
        if answer.adopted:
            chain.adopt(answer, mark, list(fresh))
        elif fresh:
            chain.branches.append((cursor, mark, list(fresh)))

    def _close(self, chain: Chain | None, *, complete: bool = False) -> None:
        """End *chain*: its branches must say what it says, and may reach beyond its end."""
        if chain is None:
            return
        chain.complete = complete
        chain.path = list(chain.rows)
        for cursor, mark, rows in sorted(chain.branches, key=lambda branch: branch[1]):
            again = chain.path[mark : mark + len(rows)]
            differ = next((pair for pair in zip(rows, again) if pair[0] != pair[1]), None)
            if differ:
                name, (one, other) = chain.reader.name, map(self._published.tell, differ)
                told = f"reader {name} asked twice with cursor {cursor!r}: it got {one}, then {other} instead"
                self._add(DISAGREEMENT, told, [name], differ)
            elif mark <= len(chain.path):
                chain.path.extend(rows[len(again) :])
        self._chains.append(chain)

    # What all of them got

    def _live(self) -> list[int]:
        """The rows that were committed: as their publisher says, or, if it cannot tell, as anybody saw."""
        transactions = self._published.transactions
        seen = {transactions[row].name for row in self._first_seen}
        return [
            number
            for number, row in enumerate(self._published.rows)
            if not row.undone
            and (transactions[number].outcome == COMMITTED or transactions[number].name in seen)
        ]

    def _check_order(self, order: Order) -> None:
        before = len(self._violations)
        for chain in self._chains:
            self._check_transactions(chain)
            self._check_real_time(chain)
        if order.one:
            return
        places = [{row: place for place, row in enumerate(chain.path)} for chain in self._chains]
        for number, chain in enumerate(self._chains):
            for other in range(number):
                pair = _turned(places[number], places[other])
                if pair:
                    names = (chain.reader.name, self._chains[other].reader.name)
                    first, second = map(self._published.tell, pair)
                    told = f"reader {names[0]} got {first} before {second}, reader {names[1]} the reverse"
                    self._add(DISAGREEMENT, told, names, pair)
                    break
        if len(self._violations) == before:
            self._add(DISAGREEMENT, "there is no one order: " + "; ".join(order.ring()), [])

    def _check_transactions(self, chain: Chain) -> None:
        latest: dict[str, int] = {}
        for row in chain.path:
            transaction = self._published.transactions[row].name
            before = latest.get(transaction, row)
            if row < before:
                self._add_order(TRANSACTION_ORDER, chain, before, row)
            latest[transaction] = row

    def _check_real_time(self, chain: Chain) -> None:
        """Sweep from the end: some later event's commit must not have returned before this one's INSERT."""
        rows, settled = self._published.rows, self._published.settled
        soonest = -1
        for row in reversed(chain.path):
            if soonest >= 0 and settled[soonest] < rows[row].insert_sent:
                self._add_order(REAL_TIME_ORDER, chain, row, soonest)
                return
            if soonest < 0 or settled[row] < settled[soonest]:
                soonest = row

    def _add_order(self, kind: str, chain: Chain, first: int, second: int) -> None:
        tell, name = self._published.tell, chain.reader.name
        self._add(kind, f"reader {name} got {tell(first)} before {tell(second)}", [name], [first, second])

    def _check_starts(self) -> None:
        """Where the log ended cannot lie before what anybody had got by then."""
        for chain in self._chains:
            if chain.start is None:
                continue
            old = next((row for row in chain.path if self._first_seen[row] < chain.start.sent), None)
            if old is not None:
                when = f"which had been seen at {show_time(self._first_seen[old])} already"
                told = f"{_where(chain.start)} got a cursor before {self._published.tell(old)}, {when}"
                self._add(CURSOR, told, [chain.reader.name], [old])

    def _check_losses(self, order: Order, live: list[int]) -> tuple[int, int]:
        """Deliveries that were due, and those that were missed."""
        due = missed = 0
        for chain in self._chains:
            owed = self._owed(chain, order, live)
            gone = owed.difference(chain.rows if chain.complete else chain.path)
            due += len(owed)
            missed += len(gone)
            for row in gone:
                kind = LOST if self._published.transactions[row].outcome == COMMITTED else TORN
                self._befalls(chain.reader, kind, f"{self._published.tell(row)} never came to", row)
        return due, missed

    def _owed(self, chain: Chain, order: Order, live: list[int]) -> set[int]:
        owed = {row for row in live if self._published.rows[row].channel in chain.reader.channels}
        if not chain.complete:
            # How far it had come is known by its last event only; what lies before that, by the order only.
            owed &= order.before(chain.path[-1]) if chain.path and order.one else set()
        if chain.start is not None:
            after = {row for row in owed if _sent(self._published.transactions[row]) > chain.start.returned}
            if chain.path and order.one:
                after |= order.after(chain.path[0])
            owed &= after
        return owed

    def _check_ends(self) -> None:
        reported: dict[str, int] = Counter()
        for transaction in self._history.transactions.values():
            reported[transaction.publisher] += len(transaction.rows)
        for publisher in self._history.publishers.values():
            if reported[publisher.name] < publisher.rows_due:
                count = f"{reported[publisher.name]} rows of {publisher.rows_due}"
                self._add(UNFINISHED, f"publisher {publisher.name} reported {count}", [])
        end = max((t.ended for t in self._history.transactions.values() if t.ended is not None), default=0.0)
        for reader in self._history.readers.values():
            if reader.complete:
                answers = self._history.answers.get(reader.name, [])
                if not answers or not _quiet(answers[-1], end):
                    last = f"its last answer is {_where(answers[-1])}" if answers else "it has no answer"
                    must = (
                        f"an empty one to a request sent after the last commit at {show_time(end)} must be it"
                    )
                    self._add(
                        UNFINISHED, f"reader {reader.name} is complete, but {last}; {must}", [reader.name]
                    )


def _quiet(answer: Answer, end: float) -> bool:
    return (
        answer.status in ANSWERED
        and not answer.events
        and answer.request_cursor != NOW
        and end <= answer.sent
    )


def _turned(one: dict[int, int], other: dict[int, int]) -> tuple[int, int] | None:
    """Two events that *one* has in this order and *other* in the opposite, with none of both between them."""
    if len(other) < len(one):
        turned = _turned(other, one)
        return (turned[1], turned[0]) if turned else None
    common = [row for row in one if row in other]
    return next(((a, b) for a, b in zip(common, common[1:]) if other[a] > other[b]), None)


def _latency(seconds: list[float]) -> Latency | None:
    if not seconds:
        return None
    ranked = sorted(seconds)
    p50, p99 = (ranked[ceil(len(ranked) * share) - 1] for share in (0.5, 0.99))
    return Latency(len(ranked), p50, p99, ranked[-1])


def _sent(transaction: Transaction) -> float:
    return -NEVER if transaction.commit_sent is None else transaction.commit_sent


def _where(answer: Answer) -> str:
    asked = f"cursor {answer.request_cursor!r} at {show_time(answer.sent)}"
    came = f"status {answer.status} and {len(answer.events)} events at {show_time(answer.returned)}"
    return f"reader {answer.reader} (request {answer.turn}, {asked}; {came})"


def _names(readers: set[str]) -> str:
    names = ", ".join(sorted(readers))
    return f"reader {names}" if len(readers) == 1 else f"{len(readers)} readers: {names}"
