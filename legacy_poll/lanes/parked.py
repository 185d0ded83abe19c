"""The parked lane: while a poll waits, its connection is a descriptor and a place in a cohort, and no greenlet.

On gunicorn's gevent worker, plain HTTP/1.1 with keep-alive. The request runs as in the standard lane up to and with its
first look; then its connection is taken out of gunicorn's hands. One greenlet does all the work and never waits (see
reactor). When a group's event is set (see waiting), the same bytes are written to all of its connections (see telling).
Then a connection waits here for its next request; one that equals an approved one (see approvals) is held or answered
at once, and anything else goes back to gunicorn with the bytes that were read.

What costs is Python, not the system's calls. So all that can be is done for a cohort (see cohorts) and not for each of
its connections: joining and leaving a group, places, deadlines, answers, metrics.

Rules. A step never blocks: what might (a read of the log, an answer that the client does not take) goes aside into a
greenlet of its own. Within the handling of one list of events nobody else runs, so a descriptor in it is still the one
that it was. Bytes that come while a poll is held are noted and left unread, and an end shows behind them. A cohort that
is not IDLE has its places of the admission.

Interleavings guarded against: a hang-up while its answer is under way (SENDING and ``gone``) or while the log is read
(see holding); a group that ends between the look and the parking (no step between them); a worker that stops (a
greenlet in gunicorn's pool stays until the last connection here is closed).
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections import deque
from dataclasses import replace
from typing import Any, Callable, Deque, Dict, List, Optional, Tuple
from weakref import WeakValueDictionary

import gevent
import gevent.event

from ..admission import Admission
from ..cursors import Cursor
from ..errors import LegacyPollError
from ..events import Batch
from ..hold import Hold, Stay
from ..metrics import Metrics
from .approvals import MOST_BYTES, Approval, Approvals, Parking, Requests, Right, Terms
from .cohorts import HELD, IDLE, LOOKING, SENDING, Cohort, Parked, Place
from .connection import probe
from .gunicorn_seam import Asked, GunicornSeam
from .holding import Holder
from .reactor import OVER, Reactor
from .standard import LateBody
from .telling import Teller
from .waiting import Waiting
from .wheel import SLOTS_A_SECOND

__all__ = ["JITTER", "ParkedLane"]

logger = logging.getLogger("legacy_poll")

#: Holds are shortened at random by up to one part in this many: a fleet that connected together must not come back so.
JITTER = 16
#: Connections that are served before others get their turn.
_AT_ONCE = 250
#: Most connections of one cohort: they have the same deadline, and a fleet must not come back together.
_COHORT = 50


class _Block:
    """The application's headers of its answers to polls; equal ones are kept once."""

    __slots__ = ("headers", "__weakref__")

    def __init__(self, headers: Tuple[Tuple[str, str], ...]) -> None:
        self.headers = headers


class _Alike:
    """Requests read in one step that ask the same."""

    __slots__ = ("terms", "cursor", "until", "requests")

    def __init__(self, terms: Terms, cursor: Cursor, until: float) -> None:
        self.terms = terms
        self.cursor = cursor
        self.until = until
        #: The connection, its bytes, and their approval.
        self.requests: List[Tuple[Parked, bytes, Approval]] = []


class ParkedLane:
    """The parked connections of one worker.

    Args:
        seam: The worker.
        hold: Looks and waits.
        admission: Who may be held.
        metrics: Told of each answer.
        reauthorize_seconds: How long an approval is good.
        send_seconds: Longest time for a client to take a piece of an answer.
        is_well: Whether approvals may be used now; else every request goes through the application.
        varying_headers: Names of headers whose values may differ between equal requests.
        clock: Seconds, monotonic; the hold's.
    """

    def __init__(
        self,
        seam: GunicornSeam,
        hold: Hold,
        admission: Admission,
        metrics: Metrics,
        *,
        reauthorize_seconds: float,
        send_seconds: float,
        is_well: Callable[[], bool],
        varying_headers: Tuple[str, ...] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seam = seam
        self._hold = hold
        self._admission = admission
        self._is_well = is_well
        self._clock = clock
        self._requests = Requests(varying_headers)
        self._approvals = Approvals(reauthorize_seconds=reauthorize_seconds, clock=clock)
        self._reactor = Reactor(clock=clock)
        self._waiting = Waiting(self._reactor.wake)
        self._teller = Teller(
            seam,
            hold,
            admission,
            metrics,
            send_seconds=send_seconds,
            guarded=self._guarded,
            told=self._told,
            close=self._close,
            clock=clock,
        )
        self._holder = Holder(
            hold, self._waiting, self._reactor, self._teller, guarded=self._guarded, clock=clock
        )
        self._kept: "WeakValueDictionary[Any, Any]" = WeakValueDictionary()
        self._connections: Dict[int, Parked] = {}
        self._todo: Deque[Tuple[Cohort, Stay]] = deque()
        self._over = gevent.event.Event()
        self._draining = self._rights_lost = False
        self._most_connections = admission.max_held + seam.worker_connections
        self._fresh: Optional[Cohort] = None
        #: Since the start: polls that were parked, and those of them that no application saw.
        self.parked = self.approved = 0

    def start(self) -> None:
        """Begins to take connections over."""
        self._hold.on_revoked = self._revoked
        self._seam.watch(self.take, self.accept)

    @property
    def connections(self) -> int:
        """How many are parked, held or not."""
        return len(self._connections)

    @property
    def approvals(self) -> int:
        """How many requests are approved."""
        return len(self._approvals)

    def drain(self) -> None:
        """The worker may end when the last connection here has: the hold ends those that wait."""
        self._draining = True
        if not self._connections:
            self._over.set()

    def take(self, body: LateBody) -> bool:
        """Takes the connection of the poll that *body* answers, if it can be parked; holds or answers the poll.

        In the request's greenlet. Where it returns False, what the look found is the standard lane's to answer.
        """
        parking: Parking = body.parking
        if parking.lane is not self:
            return False
        asked = self._seam.asked(body)
        if asked is None or self._seam.pool(asked.number) is None:
            return False
        parking.began = self._clock()
        # Who asks is noted with the connection, so that those who ask the same can wait together whoever they are.
        question = parking.question
        anonymous = question if question.subject is None else replace(question, subject=None)
        found: Any = None
        try:
            self._hold.check(question.subject, question.authorised_at)
            found = self._hold.enter(anonymous)
            # It may have taken a while.
            self._hold.check(question.subject, question.authorised_at)
        except Exception as error:
            if isinstance(found, Stay):
                self._hold.leave(found)
            parking.found = error
            return False
        # Nobody else runs from here on.
        if not isinstance(found, Stay):
            if self._answers(body, asked, found):
                return True
            parking.found = found
            return False
        if self._hold.left(found) <= 0:
            parking.found = self._hold.leave(found)
            return False
        try:
            cohort = self._park(body, asked)
        except BaseException:
            self._hold.leave(found)
            raise
        if cohort is None:
            self._hold.leave(found)
            return False
        self._holder.wait(cohort, found)
        self.parked += 1
        return True

    def _answers(self, body: LateBody, asked: Asked, batch: Batch) -> bool:
        # So that the connection waits for its next request here, and not in a greenlet.
        parking: Parking = body.parking
        if self._hold.draining:
            return False
        if not parking.placed:
            try:
                self._admission.take(self._client(parking))
            except LegacyPollError:
                return False
        cohort = self._park(body, asked)
        if cohort is None:
            if not parking.placed:
                self._admission.leave(self._client(parking))
            return False
        self._guarded(self._teller.answer, cohort, batch)
        return True

    def accept(self, connection: Any, number: int, peer: Any, first: bytes) -> bool:
        """Takes a new *connection* whose first request is an approved one, or not there yet; else returns False.

        Args:
            connection: gevent's socket.
            number: Of the listener that it came by.
            peer: Its other end's address.
            first: What it has sent already.
        """
        if self._draining or not self._reactor.is_open or len(self._connections) >= self._most_connections:
            return False
        place = self._place(number, peer)
        if first and self._approved(place, first, self._clock()) is None:
            return False
        try:
            self._reactor.register(connection.fileno())
        except (OSError, ValueError):
            return False
        fresh, now = self._fresh, self._clock()
        deadline = now + self._seam.keepalive_seconds
        if fresh is None or fresh.slot != self._reactor.slot_of(deadline) or len(fresh.members) >= _COHORT:
            fresh = self._fresh = Cohort(IDLE, None, now)
            self._reactor.set_deadline(fresh, deadline)
        descriptor = connection.detach()
        parked = self._connections[descriptor] = Parked(descriptor, place, peer, fresh)
        fresh.members[parked] = None
        if first:
            alike: Dict[Any, _Alike] = {}
            self._sort(parked, first, alike, now)
            self._enter_all(alike)
        return True

    def _park(self, body: LateBody, asked: Asked) -> Optional[Cohort]:
        parking: Parking = body.parking
        self._open(asked.number)
        terms = self._terms(body)
        seen = self._seam.seen(body.environ, asked)
        try:
            probe(asked.socket)
            self._reactor.register(asked.socket.fileno())
        except (OSError, ValueError):
            return None  # it has gone, or there is no room: the standard lane finds out
        body.part()
        descriptor = asked.socket.detach()
        place = self._place(asked.number, asked.peer)
        cohort = Cohort(LOOKING, terms, parking.began)
        parked = self._connections[descriptor] = Parked(descriptor, place, asked.peer, cohort)
        cohort.members[parked] = None
        parked.seen = seen
        right = parked.right = Right.of(parking.question)
        known = self._requests.recognise(asked.heard) if asked.heard else None
        if known is not None and known[1] == parking.question.cursor and _may_repeat(terms.block):
            key = place.prefix + known[0]
            self._approvals.add(
                key,
                terms,
                authorised=parking.authorised,
                good_seconds=parking.good_seconds,
                right=right,
                seen=seen,
            )
        return cohort

    def _terms(self, body: LateBody) -> Terms:
        headers = tuple(body.headers.to_wsgi_list())
        block = self._once(headers, lambda: _Block(headers))
        parking: Parking = body.parking
        terms = Terms(parking, block, self._client(parking))
        return self._once(terms.key, lambda: terms)

    def _client(self, parking: Parking) -> str:
        return parking.client if self._admission.counts_clients else ""

    def _place(self, number: int, peer: Any) -> Place:
        host = peer[0] if isinstance(peer, tuple) else str(peer)
        return self._once((number, host), lambda: Place(number, host))

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = make()
        return found

    def _open(self, number: int) -> None:
        if not self._reactor.is_open:
            self._seam.keep(number, self._over)
            self._reactor.open(self._step)

    # What there is to do.

    def _step(self) -> bool:
        """Does what there is to do, a little of it; returns whether there is more."""
        if self._rights_lost:
            self._rights_lost = False
            # However many were revoked, all connections are looked at once: a millisecond for ten thousand.
            for parked in list(self._connections.values()):
                if parked.cohort is not None and parked.cohort.state is HELD:
                    self._holder.refuse_revoked(parked)
        for cohort in self._waiting.ended():
            assert cohort.stay is not None
            self._todo.append((cohort, cohort.stay))
        all_arrived = False
        if self._todo:
            # Who waits for an answer comes before who asks again.
            self._end_some()
        else:
            self._teller.forget()
            events = self._reactor.happened(_AT_ONCE)
            self._arrive(events)
            all_arrived = len(events) < _AT_ONCE
        for cohort in self._reactor.due():
            if cohort.state is HELD:
                self._todo.append((cohort, cohort.stay))
            elif cohort.state is IDLE and not all_arrived:
                # Their next polls may have come while this worker was busy or stood still, and are looked at first.
                self._reactor.set_deadline(cohort, self._clock())
            elif cohort.state is IDLE:
                for parked in list(cohort.members):
                    self._close(parked)
        return bool(self._todo or self._waiting.has_ended or not all_arrived)

    def _end_some(self) -> None:
        served = 0
        while self._todo and served < _AT_ONCE:
            cohort, stay = self._todo.popleft()
            if cohort.state is HELD and cohort.stay is stay and cohort.members:
                served += len(cohort.members)
                self._guarded(self._holder.end, cohort)

    def _guarded(self, function: Callable[..., None], cohort: Cohort, *arguments: Any) -> None:
        # A fault with some connections must not end the loop of all.
        try:
            function(cohort, *arguments)
        except Exception:
            logger.exception("legacy_poll: a parked poll failed")
            self._give_up(cohort)

    def _give_up(self, cohort: Cohort) -> None:
        members = list(cohort.members)
        self._holder.give_up(cohort)
        if cohort.state is not IDLE:
            self._admission.leave(cohort.terms.client, len(members))
        cohort.state = IDLE
        for parked in members:
            self._close(parked)

    def _arrive(self, events: List[Tuple[int, int]]) -> None:
        alike: Dict[Any, _Alike] = {}
        now = self._clock()
        for descriptor, flags in events:
            parked = self._connections.get(descriptor)
            if parked is None:
                continue
            try:
                self._happened(parked, flags, alike, now)
            except Exception:
                logger.exception("legacy_poll: a parked poll failed")
                self._close(parked)
        self._enter_all(alike)

    def _happened(self, parked: Parked, flags: int, alike: Dict[Any, _Alike], now: float) -> None:
        cohort = parked.cohort
        assert cohort is not None
        if cohort.state is IDLE:
            self._read(parked, alike, now, over=flags & OVER)
        elif not flags & OVER:
            cohort.note_unread(parked)
        elif cohort.state is SENDING:
            cohort.gone = True
        else:
            self._teller.hung_up(parked, self._holder.part(parked))
            self._close(parked)

    # A request on a connection that is ours.

    def _read(self, parked: Parked, alike: Dict[Any, _Alike], now: float, *, over: int = 0) -> None:
        try:
            data = os.read(parked.descriptor, MOST_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(parked)
            return
        # What a half-closed connection still asks is for gunicorn to see.
        if over:
            self._give_back(parked, data)
        else:
            self._sort(parked, data, alike, now)

    def _approved(self, place: Place, data: bytes, now: float) -> Optional[Tuple[Approval, Cursor]]:
        known = self._requests.glance(data)
        if known is None:
            return None
        approval = self._approvals.find(place.prefix + known[0], now)
        if approval is None or (approval.right is not None and self._hold.lost(*approval.right)):
            return None  # who has lost the right may have been given it again: the application knows
        return approval, known[1]

    def _sort(self, parked: Parked, data: bytes, alike: Dict[Any, _Alike], now: float) -> None:
        """Puts the request *data* to those that ask the same, or gives it back."""
        allowed = self._approved(parked.place, data, now)
        if allowed is None:
            self._give_back(parked, data)
            return
        approval, cursor = allowed
        terms = approval.terms
        until = approval.until
        if until >= now + terms.hold_seconds:
            until = 0.0
        else:
            until = int(until * SLOTS_A_SECOND) / SLOTS_A_SECOND
        # Those who have seen the same come with one cursor object, and compare as fast as numbers.
        key = (terms, id(cursor), until)
        found = alike.get(key)
        if found is None:
            found = alike[key] = _Alike(terms, cursor, until)
        found.requests.append((parked, data, approval))

    def _enter_all(self, alike: Dict[Any, _Alike]) -> None:
        if not alike:
            return
        usable = not self._hold.draining and self._is_well()
        for each in alike.values():
            for start in range(0, len(each.requests), _COHORT):
                requests = each.requests[start : start + _COHORT]
                if not usable:
                    self._give_all_back(requests)
                    continue
                try:
                    self._enter(each, requests)
                except Exception:
                    logger.exception("legacy_poll: a parked poll failed")
                    for parked, _, _ in requests:
                        if parked.cohort is not None and parked.cohort.state is not IDLE:
                            self._give_up(parked.cohort)
                        self._close(parked)

    def _enter(self, alike: _Alike, requests: List[Tuple[Parked, bytes, Approval]]) -> None:
        """Holds or answers *requests*, or gives them back where that is not for us to do."""
        terms, polls, now = alike.terms, len(requests), self._clock()
        if not self._seam.has_room(polls):
            self._give_all_back(requests)
            return
        deadline = now + terms.hold_seconds * (1 - random.random() / JITTER)
        if alike.until:
            deadline = min(deadline, alike.until)
        try:
            self._admission.take(terms.client, polls)
            try:
                found = self._hold.enter_from_memory(terms.question, alike.cursor, deadline, polls=polls)
            except BaseException:
                self._admission.leave(terms.client, polls)
                raise
        except LegacyPollError:
            # Some may have room; who is refused is gunicorn's, whose request is refused for the same reason and says
            # it.
            if polls == 1:
                self._give_all_back(requests)
            for one in requests if polls > 1 else ():
                self._enter(alike, [one])
            return
        self._seam.count(polls)
        self.approved += polls
        cohort = Cohort(LOOKING, terms, now)
        members = cohort.members
        for parked, data, approval in requests:
            before = parked.cohort
            assert before is not None
            del before.members[parked]
            if not before.members:
                self._reactor.discard_deadline(before)
            parked.cohort = cohort
            members[parked] = None
            parked.right = approval.right
            if approval.seen is not None:
                parked.seen, parked.target = approval.seen, data[4 : data.index(b" ", 4)].decode("latin-1")
                parked.varied = self._requests.varied(data)
        if isinstance(found, Stay):
            self.parked += polls
            self._holder.wait(cohort, found)
        elif found is not None:
            self._teller.answer(cohort, found)
        else:
            self._holder.read(cohort, replace(terms.question, cursor=alike.cursor), deadline)

    def _give_all_back(self, requests: List[Tuple[Parked, bytes, Approval]]) -> None:
        for parked, data, _ in requests:
            self._give_back(parked, data)

    def _give_back(self, parked: Parked, data: bytes) -> None:
        self._reactor.unregister(parked.descriptor)
        place, peer = parked.place, parked.peer
        self._seam.give_back(self._forget(parked), data, place.number, peer)

    # Rights that were revoked.

    def _revoked(self) -> None:
        """Somebody lost the right to read; those who hold polls by it are found in the next step, before any answer."""
        self._rights_lost = True
        self._reactor.wake()

    def _told(self, cohort: Cohort, close: bool) -> None:
        """All of *cohort* have their answers, and no places any more."""
        cohort.state, cohort.stay = IDLE, None
        unread, cohort.unread = cohort.unread, None
        if close or not cohort.members:
            self._reactor.discard_deadline(cohort)
            for parked in list(cohort.members):
                self._close(parked)
            return
        now = self._clock()
        self._reactor.set_deadline(cohort, now + self._seam.keepalive_seconds)
        if unread:
            alike: Dict[Any, _Alike] = {}
            for parked in unread:
                if parked.cohort is cohort:
                    self._read(parked, alike, now)
            self._enter_all(alike)

    # The end of a connection here.

    def _forget(self, parked: Parked) -> int:
        """Takes *parked* out of all books; returns the descriptor, which is open."""
        cohort, parked.cohort = parked.cohort, None
        if cohort is not None:
            cohort.members.pop(parked, None)
            if cohort.state is IDLE and not cohort.members:
                self._reactor.discard_deadline(cohort)
        descriptor, parked.descriptor = parked.descriptor, -1
        self._connections.pop(descriptor, None)
        if self._draining and not self._connections:
            self._over.set()
        return descriptor

    def _close(self, parked: Parked) -> None:
        if parked.cohort is not None:
            self._reactor.unregister(parked.descriptor)
            os.close(self._forget(parked))


def _may_repeat(block: _Block) -> bool:
    return not any(name.lower() == "set-cookie" for name, _ in block.headers)
