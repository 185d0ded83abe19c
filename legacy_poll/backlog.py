"""From which outbox id on there can be rows that nobody has moved yet.

Moved rows are deleted, but while a transaction is open somewhere (a long report, a nightly dump), the database keeps
every dead one, and a scan of the outbox from its beginning walks over all of them at each look: a hundred thousand
dead rows make a tick cost tens of milliseconds. So, where the database can tell which transactions are still open, the
scan starts at a *low-water mark*.

A plain mark is wrong: a transaction that publishes, waits while ten thousand ids pass, and publishes again would be
found by its second row first, and torn apart. The rule that keeps the order:

* A mark M is taken behind an id that is known to have been given out. Every transaction that can still own an id below
  M has begun to write to the outbox, so it holds the table's lock that an INSERT takes first. These are listed, *after*
  M is known.
* When each of them that is still open has a transaction id, those are the *suspects*, and then one look at everything
  (a *sweep*) is made. What of the others was visible is moved; nothing up to M can appear but by a suspect.
* From then on a look starts behind M, and its own snapshot says whether any suspect has ended since. If one has, this
  look is not used: a sweep sees all of that transaction's rows at once, and in order. It is no suspect any more then.
* Ids must rise. A sequence that was set back (an older dump was restored, a table was emptied with its identity) gives
  out ids below M again, to anybody. So each look also takes the sequence's last value; when it is lower than before,
  this look is not used either, and there is no mark until one is proven anew. Who may not see the sequence has no mark.

Ids that were given by hand obey none of this: a sweep from time to time finds them, late but not never. While few rows
have been moved there is no mark, and every look is a sweep.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Callable, FrozenSet, Optional, Tuple

from sqlalchemy.engine import Connection

from .dialects import Dialect

__all__ = ["Backlog", "NO_MARK"]

#: The lowest id that the column can have: looks start at the mark itself.
NO_MARK = -(2**63)
_MAX_ID = 2**63 - 1
#: A new mark is worth its queries after this many rows were moved behind the old one.
_MARK_ROWS = 2000
#: With a mark, sweep at least this often, seconds; but spend no more than a twentieth of the time on it.
_SWEEP_SECONDS = 1.0
_SWEEP_SHARE = 20


@dataclass(frozen=True)
class _Candidate:
    mark: int
    writers: FrozenSet[str]


class Backlog:
    """The low-water mark of one worker.

    Args:
        dialect: Of the database.
        clock: Seconds, monotonic.
        mark_rows: Rows to be moved before a new mark is taken.
    """

    def __init__(
        self, dialect: Dialect, *, clock: Callable[[], float] = time.monotonic, mark_rows: int = _MARK_ROWS
    ) -> None:
        self._dialect = dialect
        self._clock = clock
        self._mark_rows = mark_rows
        self._moved = 0
        self._candidate: Optional[_Candidate] = None
        self._ready: Optional[FrozenSet[int]] = None
        self._suspects: FrozenSet[int] = frozenset()
        # Of these, those that were still open when the last sweep began.
        self._left: FrozenSet[int] = frozenset()
        self._began_at = self._swept_at = clock()
        self._last_id_sql = ""
        self._last_id = NO_MARK
        self._life = ""
        #: Looks start at this id.
        self.mark = NO_MARK

    @property
    def moment_sql(self) -> str:
        """SQL that a look takes along for :meth:`needs_sweep`."""
        if not self._dialect.snapshot_sql:
            return "NULL"
        if self.mark == NO_MARK:
            return self._dialect.snapshot_sql
        return "%s || '/' || %s" % (self._dialect.snapshot_sql, self._last_id_sql)

    def reset(self) -> None:
        """Begins without a mark: the ids, or the log, are not those that were there."""
        self._moved = 0
        self._candidate = self._ready = None
        self._suspects = self._left = frozenset()
        self._last_id = self.mark = NO_MARK

    def needs_sweep(self, moment: Optional[str]) -> bool:
        """Whether a look that started at the mark may miss something, or tear a transaction apart.

        Args:
            moment: :attr:`moment_sql` of the statement that looked.
        """
        if self.mark == NO_MARK or moment is None:
            return True
        snapshot, _, last_id = moment.partition("/")
        if self._went_back(last_id):
            return True
        if self._dialect.has_ended(snapshot, self._suspects):
            return True
        took = self._swept_at - self._began_at
        return self._clock() - self._swept_at >= max(_SWEEP_SECONDS, _SWEEP_SHARE * took)

    def _went_back(self, said: str) -> bool:
        """Takes in what the sequence says; if it was set back, there is no mark any more."""
        last_id, life = _parsed(said)
        if last_id < self._last_id or life != self._life:
            self.reset()
            return True
        self._last_id = last_id
        return False

    def before_sweep(self, connection: Connection) -> None:
        """Finds out whether the candidate can become the mark with the sweep that follows."""
        self._began_at = self._clock()
        self._ready = None
        self._left = self._still_open(connection, self._suspects)
        if self._candidate is None:
            return
        if self._went_back(str(self._dialect.scalar(connection, "SELECT " + self._last_id_sql))):
            return
        found = self._dialect.open_writers(connection)
        # A prepared transaction goes under another name than it was listed by.
        still = [
            xid for writer, xid in found.items() if writer in self._candidate.writers or writer[:1] == "-"
        ]
        if None not in still:
            self._ready = self._still_open(connection, frozenset(xid for xid in still if xid is not None))

    def _still_open(self, connection: Connection, transactions: FrozenSet[int]) -> FrozenSet[int]:
        if not transactions:
            return transactions
        # Who ends between this snapshot and the sweep's is suspected for nothing, and costs one sweep more.
        snapshot = self._dialect.scalar(connection, "SELECT " + self._dialect.snapshot_sql)
        return frozenset(
            xid for xid in transactions if not self._dialect.has_ended(snapshot, frozenset((xid,)))
        )

    def after_sweep(self, *, complete: bool) -> None:
        """Takes the candidate as the mark, if it can be.

        Args:
            complete: Whether everything that the sweep saw has been moved by now, and that was all there was.
        """
        self._swept_at = self._clock()
        if not complete:
            return
        # Of whoever had ended by then everything was seen, and moved.
        self._suspects = self._left
        if self._candidate is None or self._ready is None:
            return
        self._suspects = self._ready
        self.mark = self._candidate.mark
        self._candidate = self._ready = None

    def has_moved(self, rows: int, *, last_id: int) -> bool:
        """Counts what was moved.

        Args:
            rows: How many.
            last_id: The highest id among them.

        Returns:
            Whether it is time to :meth:`choose` the next mark.
        """
        self._moved += rows
        return (
            bool(self._dialect.snapshot_sql)
            and self._moved >= self._mark_rows
            and self.mark <= last_id < _MAX_ID
        )

    def choose(self, connection: Connection, last_id: int) -> None:
        """Makes what follows *last_id* the candidate for the next mark.

        Args:
            connection: Reads.
            last_id: Was moved, so it was given out before this call: whoever owns a lower one shows by now. An id
                that the sequence has not given out yet makes no candidate.
        """
        self._moved = 0
        self._candidate = self._ready = None
        self._last_id_sql = self._dialect.last_id_sql(connection)
        if not self._last_id_sql:
            return
        said = str(self._dialect.scalar(connection, "SELECT " + self._last_id_sql))
        if self.mark == NO_MARK:
            self._last_id, self._life = _parsed(said)
        elif self._went_back(said):
            return
        if last_id > self._last_id:
            return  # given by hand, ahead of the sequence: the ids between the two are still to come
        self._candidate = _Candidate(last_id + 1, frozenset(self._dialect.open_writers(connection)))


def _parsed(said: str) -> Tuple[int, str]:
    last_id, _, life = said.partition("/")
    return int(last_id), life
