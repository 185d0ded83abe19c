"""A timer wheel: many deadlines for the price of one timer.

Deadlines are met to a part of a second, early rather than late. What has the same one is in one slot; setting,
discarding and meeting a deadline cost the same however many there are.
"""

from __future__ import annotations

import time
from typing import Any, Callable, Dict, List

__all__ = ["SLOTS_A_SECOND", "TimerWheel"]

SLOTS_A_SECOND = 8


class TimerWheel:
    """Deadlines of items, each of which has an attribute ``slot`` that is the wheel's; None while it has no deadline.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._slots: Dict[int, Dict[Any, None]] = {}
        self._next = 0

    def __bool__(self) -> bool:
        return bool(self._slots)

    def slot_of(self, deadline: float) -> int:
        """Where what has this *deadline* goes now."""
        return max(int(self._clock() * SLOTS_A_SECOND) + 1, int(deadline * SLOTS_A_SECOND))

    def set(self, item: Any, deadline: float) -> None:
        """Gives *item* the *deadline*, in place of the one it may have."""
        self.discard(item)
        if not self._slots:
            self._next = int(self._clock() * SLOTS_A_SECOND)
        slot = item.slot = self.slot_of(deadline)
        there = self._slots.get(slot)
        if there is None:
            self._slots[slot] = {item: None}
        else:
            there[item] = None

    def discard(self, item: Any) -> None:
        """Takes the deadline of *item*, if it has one."""
        slot, item.slot = item.slot, None
        if slot is not None:
            there = self._slots[slot]
            del there[item]
            if not there:
                del self._slots[slot]

    def due(self) -> List[Any]:
        """The items whose deadline has come; they have none any more."""
        now = int(self._clock() * SLOTS_A_SECOND)
        found: List[Any] = []
        while self._slots and self._next <= now:
            found += self._slots.pop(self._next, ())
            self._next += 1
        for item in found:
            item.slot = None
        return found
