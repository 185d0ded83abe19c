"""Who is in the parked lane, and with whom: connections that do the same are one cohort, and cost one's bookkeeping.

A cohort's connections came in the same moment, wait in the same group under the same terms until the same deadline, and
are sent the same bytes; then they wait for their next requests, until each leaves for another cohort.
"""

from __future__ import annotations

from typing import Any, Dict, Optional, Sequence, Tuple

from ..hold import Stay
from .approvals import Right

__all__ = ["HELD", "IDLE", "LOOKING", "SENDING", "Cohort", "Parked", "Place"]

# What a cohort does: it waits for events; or for its next requests; or a greenlet looks in the log, or sends, for it.
HELD, IDLE, LOOKING, SENDING = "held", "idle", "looking", "sending"


class Place:
    """Where connections come from; equal ones are kept once.

    Attributes:
        number: The listener's.
        prefix: Of the keys of approvals: the listener's number and the peer's address.
    """

    __slots__ = ("number", "prefix", "__weakref__")

    def __init__(self, number: int, host: str) -> None:
        self.number = number
        self.prefix = ("%d %s\n" % (number, host)).encode("utf-8", "surrogateescape")


class Parked:
    """One connection.

    Attributes:
        descriptor: Ours alone.
        place: Where it comes from.
        peer: Its other end, for the server.
        cohort: What it does, and with whom; None once it is gone.
        right: Whose right its poll has; None where nobody is known to ask.
        seen: What the access log is told of its poll; None without one.
        target: Of its poll, where that is not the one that was seen.
        varied: Headers of its poll that are not as those that were seen: names and values.
    """

    __slots__ = ("descriptor", "place", "peer", "cohort", "right", "seen", "target", "varied")

    def __init__(self, descriptor: int, place: Place, peer: Any, cohort: "Cohort") -> None:
        self.descriptor = descriptor
        self.place = place
        self.peer = peer
        self.cohort: Optional[Cohort] = cohort
        self.right: Optional[Right] = None
        self.seen: Any = None
        self.target: Optional[str] = None
        self.varied: Sequence[Tuple[str, str]] = ()


class Cohort:
    """Connections that do the same.

    Attributes:
        state: What they do.
        members: Who they are.
        terms: How they are held and answered, a Terms; None for new ones that have not asked yet.
        began: When their polls came, monotonic.
        stay: Where they wait; all together.
        slot: The timer wheel's.
        unread: Those that have sent something while they were held; None for nobody.
        gone: While it is sent to: its one connection has hung up.
    """

    __slots__ = ("state", "members", "terms", "began", "stay", "slot", "unread", "gone")

    def __init__(self, state: str, terms: Any, began: float) -> None:
        self.state = state
        self.members: Dict[Parked, None] = {}
        self.terms = terms
        self.began = began
        self.stay: Optional[Stay] = None
        self.slot: Optional[int] = None
        self.unread: Optional[Dict[Parked, None]] = None
        self.gone = False

    def join(self, parked: Parked) -> None:
        """Takes *parked* in, from where it was."""
        if parked.cohort is not None:
            parked.cohort.members.pop(parked, None)
        parked.cohort = self
        self.members[parked] = None

    def note_unread(self, parked: Parked) -> None:
        """Notes that *parked* has sent something."""
        if self.unread is None:
            self.unread = {}
        self.unread[parked] = None

    def apart(self, parked: Parked) -> "Cohort":
        """A cohort of *parked* alone, which leaves this one: in no group, without a deadline."""
        alone = Cohort(self.state, self.terms, self.began)
        alone.stay = self.stay
        alone.join(parked)
        if self.unread is not None and parked in self.unread:
            del self.unread[parked]
            alone.note_unread(parked)
        return alone
