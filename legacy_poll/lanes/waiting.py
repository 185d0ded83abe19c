"""Which cohorts wait in which of the hub's groups, and what a group's event calls.

No greenlet waits, or ten thousand groups of one would cost as much as ten thousand greenlets.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Callable, Deque, Dict, Iterator

from ..hold import Stay
from ..hub import Group
from .cohorts import Cohort

__all__ = ["Waiting"]


class _Link:
    """The cohorts of one group; what its event calls."""

    __slots__ = ("cohorts", "_group", "_ended")

    def __init__(self, group: Group, ended: Callable[[Group], None]) -> None:
        self.cohorts: Dict[Cohort, None] = {}
        self._group = group
        self._ended = ended

    def __call__(self, event: Any) -> None:
        self._ended(self._group)


class Waiting:
    """Cohorts by group.

    Args:
        wake: Called, in the event loop, when a group has ended.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._links: Dict[Group, _Link] = {}
        self._ended: Deque[Group] = deque()

    @property
    def has_ended(self) -> bool:
        """Whether :meth:`ended` has something."""
        return bool(self._ended)

    def join(self, cohort: Cohort, stay: Stay) -> None:
        """Lets *cohort* wait for the end of *stay*."""
        cohort.stay = stay
        group = stay.group
        link = self._links.get(group)
        if link is None:
            link = self._links[group] = _Link(group, self._group_ended)
            group.event.rawlink(link)
        link.cohorts[cohort] = None

    def leave(self, cohort: Cohort) -> None:
        """It does not wait any more; no error if it did not."""
        group = cohort.stay.group if cohort.stay is not None else None
        link = self._links.get(group) if group is not None else None
        if group is not None and link is not None:
            link.cohorts.pop(cohort, None)
            if not link.cohorts:
                del self._links[group]
                # Others may wait in the group for long, and we may come back to it often.
                group.event.unlink(link)

    def ended(self) -> Iterator[Cohort]:
        """The cohorts whose group has ended; they wait no more."""
        while self._ended:
            link = self._links.pop(self._ended.popleft(), None)
            if link is not None:
                yield from link.cohorts

    def _group_ended(self, group: Group) -> None:
        if group in self._links:
            self._ended.append(group)
            self._wake()
