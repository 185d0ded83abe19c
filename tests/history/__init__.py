"""The history of a run: what its publishers did, and what its readers were told.

Publishers and readers are separate processes that get killed, so each writes a file of JSON lines as it goes,
and the checker reads them all when the run is over. Times are `time.monotonic()` seconds: one clock for every
process of one host, which no clock step moves.

The rules of writing, without which a history cannot be judged:

- Two lines about the same publisher, transaction or reader: the later replaces the earlier.
- A publisher writes a transaction before it sends the commit (before the INSERT, if that commits by itself),
  as `unknown`, and again when it knows better. So no kill leaves a committed row that nobody owns up to.
- A reader writes itself at its start with `complete` false, and again with true when it asked on until it was
  quiet after all publishing had ended. It writes an answer before it asks the next time.
- A last line without its end was cut by a kill and did not happen. Any other that cannot be read is an error.
- The log keeps everything for the length of the run: a reader without a cursor is owed every event.
- A row's `key` is unique in the run, and travels inside its data, so that a row can be followed whose id was
  given by the sequencer. A row is published once: the same id again is another test's business.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterable, Union

COMMITTED, ROLLED_BACK, UNKNOWN = "committed", "rolled_back", "unknown"

NOW = "now"
"""The request cursor of a reader that asks where the log ends, by `cursor=now` or by `/cursor`."""

ANSWERED = (200, 204, 206)
NO_ANSWER = 0
"""The status of a request whose connection ended without an answer."""


class HistoryError(ValueError):
    """The history contradicts itself or lacks what a judgement needs: the run, not the log, is at fault."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise HistoryError(message)


@dataclass(frozen=True)
class Publisher:
    """A publisher, and the least number of rows that it had to report, those rolled back included."""

    name: str
    rows_due: int


@dataclass(frozen=True)
class Row:
    """One INSERT; `undone` if its savepoint was rolled back, or if it must be set aside and reach nobody."""

    key: str
    channel: str
    data: Any
    insert_sent: float
    insert_returned: float | None = None
    type: str = "message"
    id: str | None = None
    undone: bool = False


@dataclass(frozen=True)
class Transaction:
    """A transaction with its rows in the order of their INSERTs.

    The outcome is `unknown` when the client died, or its connection ended, between `commit_sent` and an
    answer; `commit_returned` may then say when that was noticed.
    """

    name: str
    publisher: str
    outcome: str
    rows: tuple[Row, ...]
    commit_sent: float | None = None
    commit_returned: float | None = None

    def __post_init__(self) -> None:
        where = f"transaction {self.name} of {self.publisher}"
        outcome, sent, returned = self.outcome, self.commit_sent, self.commit_returned
        _require(outcome in (COMMITTED, ROLLED_BACK, UNKNOWN), f"{where}: outcome {outcome!r}")
        _require(
            outcome == ROLLED_BACK or sent is not None, f"{where} is {outcome}: when was its commit sent?"
        )
        _require(outcome != COMMITTED or returned is not None, f"{where}: when did its commit return?")
        times = [row.insert_sent for row in self.rows] + [
            time for time in (sent, returned) if time is not None
        ]
        _require(
            times == sorted(times),
            f"{where}: INSERTs, commit sent, commit returned are not in order: {times}",
        )
        for row in self.rows:
            early = row.insert_returned is not None and row.insert_returned < row.insert_sent
            _require(not early, f"{where}: row {row.key!r} returned before it was sent")

    @property
    def ended(self) -> float | None:
        """When it may have committed at the latest, as far as its publisher can tell; None if it did not."""
        if self.outcome == ROLLED_BACK:
            return None
        return self.commit_sent if self.commit_returned is None else self.commit_returned


@dataclass(frozen=True)
class Reader:
    """A reader of *channels*; `complete` if it asked on until it was quiet after all publishing had ended."""

    name: str
    channels: tuple[str, ...]
    complete: bool = False


@dataclass(frozen=True)
class Seen:
    """An event as a reader got it; `key` is what its data carries, None if it carries none."""

    id: str
    channel: str
    type: str
    key: str | None
    data: Any


@dataclass(frozen=True)
class Answer:
    """One request of a reader and what came of it.

    `turn` counts the reader's requests from 0. `request_cursor` is None for "from the oldest", or NOW.
    `adopted` says whether the reader took over `cursor`; it need not (an answer that was lost on its way, a
    crash before the cursor was kept), and then asks again with an earlier one.
    """

    reader: str
    turn: int
    request_cursor: str | None
    sent: float
    returned: float
    status: int
    cursor: str | None = None
    adopted: bool = False
    events: tuple[Seen, ...] = ()

    def __post_init__(self) -> None:
        where = f"answer {self.turn} of reader {self.reader}"
        _require(self.sent <= self.returned, f"{where} returned before it was asked for")
        _require(self.status in ANSWERED or not self.events, f"{where} has events and status {self.status}")
        has_one = bool(self.cursor) and (self.status in ANSWERED or self.status == 410)
        _require(has_one or not self.adopted, f"{where} was adopted and has no cursor to adopt")


Record = Union[Publisher, Transaction, Reader, Answer]
_KINDS = {"publisher": Publisher, "transaction": Transaction, "reader": Reader, "answer": Answer}


def to_line(record: Record) -> str:
    """*record* as a line of JSON, without its end."""
    fields = {"record": type(record).__name__.lower()}
    fields.update(vars(record))
    return json.dumps(fields, default=vars)


def from_line(line: str) -> Record:
    """The record that *line* holds.

    Raises:
        HistoryError: It holds none, or one that contradicts itself.
    """
    try:
        fields: dict[str, Any] = json.loads(line)
        kind = _KINDS[fields.pop("record")]
        if kind is Transaction:
            fields["rows"] = tuple(Row(**row) for row in fields["rows"])
        elif kind is Answer:
            fields["events"] = tuple(Seen(**seen) for seen in fields.get("events", ()))
        elif kind is Reader:
            fields["channels"] = tuple(fields["channels"])
        return kind(**fields)
    except HistoryError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise HistoryError(
            f"not a record of a history ({type(error).__name__}: {error}): {line[:200]}"
        ) from error


class Journal:
    """The file that one process writes its records to; what was written survives the kill of the process."""

    def __init__(self, path: str | Path) -> None:
        self._file = open(path, "a", encoding="utf-8")

    def write(self, record: Record) -> None:
        self._file.write(to_line(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_journal(path: str | Path) -> list[Record]:
    """The records of one journal, in order, without a last line that a kill cut short."""
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    return [from_line(line) for line in lines[:-1]]


@dataclass(frozen=True)
class History:
    """All records of one run, checked against each other; one that leaves nothing to judge is refused."""

    publishers: dict[str, Publisher] = field(default_factory=dict)
    transactions: dict[str, Transaction] = field(default_factory=dict)
    readers: dict[str, Reader] = field(default_factory=dict)
    answers: dict[str, list[Answer]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("publishers", "transactions", "readers", "answers"):
            _require(bool(getattr(self, name)), f"nothing to judge: the history has no {name}")
        complete = any(reader.complete for reader in self.readers.values())
        _require(complete, "nothing to judge: no reader is complete, so none could miss an event")
        places: dict[tuple[str, str | None], str] = {}
        for transaction in self.transactions.values():
            publisher, name = transaction.publisher, transaction.name
            _require(publisher in self.publishers, f"nobody declared publisher {publisher}")
            for row in transaction.rows:
                for mark in (("key", row.key), ("id", row.id)):
                    _require(mark not in places, f"{mark} is in {places.get(mark)} and again in {name}")
                    if mark[1] is not None:
                        places[mark] = name
        _require(bool(places), "nothing to judge: no row was published")
        for reader in self.readers.values():
            _require(bool(reader.channels), f"reader {reader.name} asks for no channel")
        for name, answers in self.answers.items():
            _require(name in self.readers, f"nobody declared reader {name}")
            for number, answer in enumerate(answers):
                _require(
                    answer.turn == number,
                    f"reader {name}: answer {number} is missing, then comes {answer.turn}",
                )
                calm = number == 0 or answers[number - 1].returned <= answer.sent
                _require(calm, f"reader {name} asked for answer {number} before the one before it returned")

    @classmethod
    def of(cls, records: Iterable[Record]) -> History:
        """The history that *records* make; of those by one name, the last counts.

        Raises:
            HistoryError: They contradict each other, or leave nothing to judge.
        """
        publishers: dict[str, Publisher] = {}
        transactions: dict[str, Transaction] = {}
        readers: dict[str, Reader] = {}
        answers: dict[str, list[Answer]] = {}
        for record in records:
            if isinstance(record, Answer):
                answers.setdefault(record.reader, []).append(record)
            elif isinstance(record, Transaction):
                earlier = transactions.get(record.name, record)
                same = [row.key for row in earlier.rows] == [row.key for row in record.rows]
                _require(
                    same and earlier.publisher == record.publisher,
                    f"two different transactions are called {record.name}",
                )
                transactions[record.name] = record
            elif isinstance(record, Reader):
                readers[record.name] = record
            else:
                publishers[record.name] = record
        return cls(publishers, transactions, readers, answers)

    @classmethod
    def read(cls, paths: Iterable[str | Path]) -> History:
        """The history that the journals at *paths* make."""
        return cls.of(record for path in paths for record in read_journal(path))
