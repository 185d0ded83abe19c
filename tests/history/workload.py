"""What a run does: one frozen record, given to every process of the run as an argument.

All chance comes from `random.Random`, seeded by the run and the name of who draws, so that a run can be done again;
what the processes do to each other in time cannot.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

LEGACY_POLL, HOME_MADE = "legacy-poll", "home-made"

PUBLISHERS = 8
READERS = 20

# Name and weight: two carry most of the traffic, and the last two are so quiet that their readers' cursors move by
# empty answers only.
CHANNELS = {
    "orders": 30,
    "stock": 25,
    "user:1": 10,
    "user:2": 10,
    "user:3": 8,
    "mail": 8,
    "chat/eu": 5,
    "audit": 2,
    "alarm": 1,
    "rare": 1,
}

DELAY_SECONDS = 0.005
"""Every transaction stays open up to this long after its rows."""

LONG_SHARE = 0.04
"""Of the transactions of seven publishers, how many stay open up to `open_seconds`; all of the eighth's do."""


@dataclass(frozen=True)
class Workload:
    """One run.

    Attributes:
        log: LEGACY_POLL or HOME_MADE.
        url: The database, with its tables.
        directory: Where journals, orders to fail and the sign that all is over are.
        events: Least number of events to commit.
        open_seconds: Longest time that a transaction stays open.
        ports: Of the servers, one worker each.
        events_per_second: Aimed at by all publishers together.
        limit_seconds: After this, every process of the run gives up.
        seed: Of all chance.
        outages: Whether the database goes away in between: publishers then come back, as applications do.
        park: Whether polls wait in the parked lane.
        wakeup_directory: For hints between the processes of the run; off: none.
    """

    log: str
    url: str
    directory: str
    events: int
    open_seconds: float
    ports: tuple[int, ...] = ()
    events_per_second: float = 500.0
    limit_seconds: float = 600.0
    seed: int = 1
    outages: bool = False
    park: bool = False
    wakeup_directory: str = "off"

    @property
    def sqlite(self) -> bool:
        return self.url.startswith("sqlite")

    @property
    def longest_open_seconds(self) -> float:
        """SQLite has one write transaction at a time: one left open is not a race but a stop for all others."""
        return min(self.open_seconds, DELAY_SECONDS) if self.sqlite else self.open_seconds

    @property
    def path(self) -> Path:
        return Path(self.directory)

    @property
    def over(self) -> Path:
        """Exists once everything is published and, as far as the database can tell, in the log."""
        return self.path / "over"

    @property
    def calm(self) -> Path:
        """Exists once all that is done to the run is over: until then its publishers go on."""
        return self.path / "calm"

    def random(self, *name: object) -> Random:
        return Random(":".join(map(str, (self.seed,) + name)))

    def share(self, publisher: int) -> int:
        """The least number of events that publisher number *publisher* commits.

        The first, whose every transaction is long, could not keep up with the others.
        """
        slow = max(10, self.events // 100)
        rest = self.events - slow
        return slow if publisher == 0 else -(-rest // (PUBLISHERS - 1))

    @classmethod
    def with_outages(cls, url: str, directory: str) -> Workload:
        """A slower run, in which there is time for each thing to go away and come back."""
        return cls(
            LEGACY_POLL,
            url,
            directory,
            events=3_000,
            open_seconds=0.5,
            events_per_second=150.0,
            limit_seconds=150.0,
            outages=True,
        )

    def to_text(self) -> str:
        return json.dumps(vars(self))

    @classmethod
    def from_text(cls, text: str) -> Workload:
        fields = json.loads(text)
        fields["ports"] = tuple(fields["ports"])
        return cls(**fields)
