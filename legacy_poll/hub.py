"""Groups of waiting polls, and the recent end of the log in memory.

All polls that wait on the same channels have seen the same events of these channels (else they would have been
answered), however long ago they asked: they form one group, with one ``gevent.event.Event``, and get the same batch.
A poll whose cursor is ahead of this worker, because another worker was faster, gets a group of its own kind, which
only events behind that cursor end.

Rules. Nothing here waits, and nothing here touches a database: every method is one step under one lock, so that a
join and a delivery cannot pass each other. A cursor that cannot be vouched for from memory is never refused here;
the caller asks the log.

Interleavings guarded against: an event between a poll's look and its wait (both happen in :meth:`Hub.join`); an event
at the moment of a timeout (:meth:`Hub.leave` returns it if the group was reached first); a worker that is behind
(its answers never carry a cursor below the request's).
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, Callable, Deque, Dict, FrozenSet, List, Optional, Sequence, Tuple, Union

import gevent.event

from .cursors import Cursor
from .errors import BacklogTooLarge, ServerFull
from .events import Batch, Event

__all__ = ["Hub", "Group", "cut"]

Channels = FrozenSet[str]
#: Bytes that an event costs beside its data, roughly.
_EVENT_BYTES = 400
#: Answers from the tail kept for those who come with the same question before the next event.
_MEMO = 1000


class Group:
    """Polls that wait for the same thing.

    Attributes:
        channels: What they wait on.
        ahead: The cursor that they share when it is ahead of this worker; None for those that have seen what the
            worker has.
        event: Set when there is something to look at.
        waiting: How many polls.
    """

    __slots__ = ("channels", "ahead", "event", "waiting", "events", "cursor", "ended", "batches")

    def __init__(self, channels: Channels, ahead: Optional[Cursor], event: Any) -> None:
        self.channels = channels
        self.ahead = ahead
        self.event = event
        self.waiting = 0
        self.events: Optional[Tuple[Event, ...]] = None
        self.cursor: Optional[Cursor] = None
        self.ended = False
        self.batches: Dict[int, Batch] = {}


class Hub:
    """The groups and the tail of one worker.

    Args:
        tail_events: Most events to remember.
        tail_bytes: Most bytes of data to remember, roughly.
        max_bytes: Most bytes of data in one answer.
        max_group: Most polls that wait on one set of channels; 0 is no limit.
        max_backlog: Most events behind the cursor of a poll that comes; 0 is no limit. Who waits has seen everything,
            and gets what comes however much it is.
        make_event: Makes what a group waits on. gevent's serves the greenlets of one thread and no other thread;
            where each request has a thread of its own, it is ``threading.Event``.
    """

    def __init__(
        self,
        *,
        tail_events: int,
        tail_bytes: int,
        max_bytes: int,
        max_group: int = 0,
        max_backlog: int = 0,
        make_event: Callable[[], Any] = gevent.event.Event,
    ) -> None:
        self._max_group = max_group
        self._max_backlog = max_backlog
        self._make_event = make_event
        self._tail_events = tail_events
        self._tail_bytes = tail_bytes
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._cursor: Optional[Cursor] = None
        self._floor: Optional[Cursor] = None
        self._tail: Deque[Event] = deque()
        self._bytes = 0
        self._by_channel: Dict[str, Deque[Event]] = {}
        self._groups: Dict[Tuple[Channels, Optional[Cursor]], Group] = {}
        self._groups_on: Dict[str, Dict[Group, None]] = {}
        self._ahead: Dict[Group, None] = {}
        self._memo: Dict[Tuple[Channels, int, int, int], Batch] = {}
        self.held = 0

    @property
    def cursor(self) -> Optional[Cursor]:
        """Behind the last event delivered; None before :meth:`prime`."""
        return self._cursor

    @property
    def groups(self) -> int:
        """How many groups wait."""
        return len(self._groups)

    @property
    def remembered(self) -> int:
        """How many events are in memory."""
        return len(self._tail)

    @property
    def span(self) -> Tuple[int, int]:
        """The first and the last position in memory; the last is below the first when there is none."""
        with self._lock:
            if not self._tail:
                return 1, 0
            return self._tail[0].position, self._tail[-1].position

    def prime(self, cursor: Cursor) -> None:
        """Starts afresh behind *cursor*, with nothing in memory; everybody who waits looks again."""
        with self._lock:
            self._cursor = self._floor = cursor
            self._tail.clear()
            self._by_channel.clear()
            self._memo.clear()
            self._bytes = 0
            ended = self._end_all()
        _wake(ended)

    def look_again(self) -> None:
        """Ends every wait without an answer: each poll looks where it stands, and may wait again."""
        with self._lock:
            ended = self._end_all()
        _wake(ended)

    def end(self, groups: Sequence[Group]) -> None:
        """Ends the wait of *groups* without an answer: their polls look again, and may wait again."""
        with self._lock:
            ended = [group for group in groups if self._groups.get((group.channels, group.ahead)) is group]
            for group in ended:
                group.ended = True
                self._remove(group)
        _wake(ended)

    def end_beyond(self, position: int) -> None:
        """Ends the waits of those whose cursor is beyond *position*, where the log ends: each poll looks again.

        They came on the log's word that it goes on as far. So it was cut back since, or the look that found its end is
        older than their word.
        """
        if self._ahead:
            self.end(
                [group for group in list(self._ahead) if group.ahead and group.ahead.position > position]
            )

    def deliver(self, events: Sequence[Event], cursor: Cursor) -> None:
        """Takes in *events*, which follow what was delivered before without a gap, and answers who waits for them.

        Args:
            events: In order; may be empty.
            cursor: Behind the last of them.
        """
        with self._lock:
            reached: Dict[Group, List[Event]] = {}
            for event in events:
                self._remember(event)
                for group in self._groups_on.get(event.channel, ()):
                    if group.ahead is None or event.position > group.ahead.position:
                        reached.setdefault(group, []).append(event)
            self._forget_oldest()
            self._memo.clear()
            self._cursor = cursor
            for group, theirs in reached.items():
                if group.ahead is None or self._knows(group.ahead):
                    group.events = tuple(theirs)
                    group.cursor = cursor
                else:
                    # By now memory should have their cursor's event: it has another there, or forgot it already.
                    group.ended = True
                self._remove(group)
            passed = [
                group for group in self._ahead if group.ahead and group.ahead.position <= cursor.position
            ]
            for group in passed:
                del self._ahead[group]
                if group.ahead and not self._knows(group.ahead):
                    # As above, and no event has reached them: they have seen what is not in the log any more.
                    group.ended = True
                    self._remove(group)
        _wake(reached)
        _wake([group for group in passed if group.ended])

    def replace(self, events: Sequence[Event]) -> None:
        """Remembers *events*, which were erased from the log, instead of those that were at their positions."""
        with self._lock:
            changed = set()
            for event in events:
                number = event.position - self._tail[0].position if self._tail else -1
                if not 0 <= number < len(self._tail) or self._tail[number] == event:
                    continue
                before, self._tail[number] = self._tail[number], event
                self._bytes += event.size - before.size
                changed |= {before.channel, event.channel}
            if changed:
                # Each channel once, however many of its events were erased.
                by_channel: Dict[str, Deque[Event]] = {}
                for event in self._tail:
                    if event.channel in changed:
                        by_channel.setdefault(event.channel, deque()).append(event)
                for channel in changed:
                    self._by_channel.pop(channel, None)
                self._by_channel.update(by_channel)
            self._memo.clear()

    def forget(self, upto: int) -> None:
        """Forgets the events up to the position *upto*: only the log can tell those who are before it."""
        with self._lock:
            while self._tail and self._tail[0].position <= upto:
                self._forget_one()
            self._memo.clear()

    def join(
        self,
        channels: Channels,
        cursor: Cursor,
        *,
        limit: int,
        verified: bool = False,
        cut_back: bool = False,
        first: bool = True,
        polls: int = 1,
    ) -> Union[Batch, Group, None]:
        """Looks and, when there is nothing to see, waits, in one step.

        Args:
            channels: Names, already authorised.
            cursor: Where the poll stands.
            limit: Most events in the answer.
            verified: The log itself has just vouched for *cursor*.
            cut_back: And the log ends there, though this worker had read further before: it was cut back. Whatever
                comes then comes after the hub has started afresh, which ends every wait.
            first: The poll has just come; one that waited already may be behind as far as it likes.
            polls: How many ask the same; all of them join, or none.

        Returns:
            A Batch when events are in memory; a Group to wait on, and to :meth:`leave`; None when only the log can
            tell.

        Raises:
            BacklogTooLarge: Memory has more events behind *cursor* than the limit.
            ServerFull: As many as may wait on these channels already.
        """
        with self._lock:
            ahead: Optional[Cursor] = None
            if not self._knows(cursor):
                if not verified or not (cut_back or self._is_ahead(cursor)):
                    return None
                ahead = cursor
            else:
                batch = self._after(channels, cursor, limit, self._max_backlog if first else 0)
                if batch is not None:
                    return batch
            key = (channels, ahead)
            group = self._groups.get(key)
            if group is None:
                group = self._groups[key] = Group(channels, ahead, self._make_event())
                for channel in channels:
                    self._groups_on.setdefault(channel, {})[group] = None
                if ahead is not None:
                    self._ahead[group] = None
            if self._max_group and group.waiting + polls > self._max_group:
                if not group.waiting:
                    self._remove(group)
                raise ServerFull(
                    "%d polls wait on these channels: at most %d may" % (group.waiting, self._max_group),
                    limit="max_group",
                )
            group.waiting += polls
            self.held += polls
            return group

    def leave(self, group: Group, *, limit: int, polls: int = 1) -> Optional[Batch]:
        """Ends one poll's wait, whatever its reason.

        Args:
            group: From :meth:`join`.
            limit: Most events in the answer.
            polls: How many leave.

        Returns:
            The group's events, if it was reached; else an empty Batch whose cursor is what has been looked at by
            this moment; None when the poll must look again.
        """
        with self._lock:
            group.waiting -= polls
            self.held -= polls
            if group.events is not None and group.cursor is not None:
                batch = group.batches.get(limit)
                if batch is None:
                    batch = group.batches[limit] = cut(group.events, group.cursor, limit, self._max_bytes)
                return batch
            if group.ended:
                return None
            if group.waiting == 0:
                self._remove(group)
            # Nothing on these channels was delivered since they joined, so all that was delivered has been looked at;
            # but who is ahead of this worker may only move on when the worker has passed the same event.
            if group.ahead is not None and not self._knows(group.ahead):
                return Batch((), group.ahead)
            assert self._cursor is not None
            return Batch((), self._cursor)

    def _knows(self, cursor: Cursor) -> bool:
        """Whether memory can vouch for *cursor* and has all that came after it."""
        if self._cursor is None or self._floor is None or cursor.log != self._cursor.log:
            return False
        if not self._floor.position <= cursor.position <= self._cursor.position:
            return False
        if cursor.position == self._cursor.position:
            return cursor.check == self._cursor.check
        if cursor.position == self._floor.position:
            return cursor.check == self._floor.check
        there = self._tail[cursor.position - self._tail[0].position]
        return cursor.check == there.check

    def _is_ahead(self, cursor: Cursor) -> bool:
        """Whether a cursor that memory cannot vouch for, but the log did, may wait here."""
        if self._cursor is None or self._floor is None:
            return True
        # Below the floor more may have happened than the log said; otherwise this worker is behind, or is about to
        # find out that the log was replaced, and then everybody looks again.
        return cursor.log != self._cursor.log or cursor.position >= self._floor.position

    def _after(self, channels: Channels, cursor: Cursor, limit: int, max_backlog: int) -> Optional[Batch]:
        assert self._cursor is not None
        key = (channels, cursor.position, limit, max_backlog)
        batch = self._memo.get(key)
        if batch is not None:
            return batch
        found: List[Event] = []
        for channel in channels:
            for event in reversed(self._by_channel.get(channel, ())):
                if event.position <= cursor.position:
                    break
                found.append(event)
                if max_backlog and len(found) > max_backlog:
                    raise BacklogTooLarge.behind(cursor, max_backlog)
        if not found:
            return None
        found.sort(key=lambda event: event.position)
        if len(self._memo) >= _MEMO:
            self._memo.clear()
        batch = self._memo[key] = cut(found, self._cursor, limit, self._max_bytes)
        return batch

    def _remember(self, event: Event) -> None:
        self._tail.append(event)
        self._bytes += event.size + _EVENT_BYTES
        self._by_channel.setdefault(event.channel, deque()).append(event)

    def _forget_oldest(self) -> None:
        while len(self._tail) > self._tail_events or (self._bytes > self._tail_bytes and self._tail):
            self._forget_one()

    def _forget_one(self) -> None:
        assert self._floor is not None
        oldest = self._tail.popleft()
        self._bytes -= oldest.size + _EVENT_BYTES
        on_channel = self._by_channel[oldest.channel]
        on_channel.popleft()
        if not on_channel:
            del self._by_channel[oldest.channel]
        self._floor = self._floor.after(oldest.position, oldest.id, oldest.mark)

    def _remove(self, group: Group) -> None:
        key = (group.channels, group.ahead)
        if self._groups.get(key) is not group:
            return  # it has ended; another may have its place
        del self._groups[key]
        self._ahead.pop(group, None)
        for channel in group.channels:
            on_channel = self._groups_on[channel]
            on_channel.pop(group, None)
            if not on_channel:
                del self._groups_on[channel]

    def _end_all(self) -> List[Group]:
        ended = list(self._groups.values())
        for group in ended:
            group.ended = True
        self._groups.clear()
        self._groups_on.clear()
        self._ahead.clear()
        return ended


def cut(events: Sequence[Event], cursor: Cursor, limit: int, max_bytes: int) -> Batch:
    """As many of *events* as fit into one answer, at least one, as a Batch.

    Args:
        events: In order, at least one.
        cursor: Behind all that has been looked at; the batch's, if nothing is cut off.
        limit: Most events.
        max_bytes: Most bytes of data.
    """
    total = 0
    for count, event in enumerate(events):
        total += event.size
        if count and (count >= limit or total > max_bytes):
            last = events[count - 1]
            return Batch(tuple(events[:count]), cursor.after(last.position, last.id, last.mark), True)
    return Batch(tuple(events), cursor)


def _wake(groups: "Union[Dict[Group, List[Event]], List[Group]]") -> None:
    for group in groups:
        group.event.set()
