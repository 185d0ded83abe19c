"""Kept connections and whatever a client may do on them, beside the model in model.py, in both lanes.

Two connections, each of another user, to one worker. Scripts are made up by hypothesis and shrunk when they fail: polls
as they were approved and almost so, in pieces, in pairs, behind other requests, behind junk; sent while a poll is held;
half-closed and hung up; events and logouts in between. After each step everything that the model says has come, and
nothing else; at the end no place and no descriptor is left.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
from dataclasses import dataclass
from typing import Any, Tuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.process.conftest import each_lane
from tests.process.kept import (
    GONE,
    SECONDS,
    Client,
    metrics,
    open_connections,
    say,
    undated,
    understood,
    unread,
    until_held,
)
from tests.process.model import MOST_EVENTS, Answer, Model, Other, Poll, Rest
from tests.process.polls import connect, head, publish
from tests.waiting import until

WHO = ("anne", "bert")
SHARED = "orders"
# Time does not pass for the model: nobody's hold or approval runs out, and nothing that idles is closed.
FOREVER = 600

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


# What a script is made of.


@dataclass(frozen=True)
class Ask:
    """A poll: whose, of what, from where, and how its bytes look."""

    who: Any = None  # of the connection
    channels: str = SHARED
    back: int = 0
    cursor: str = "right"
    query: str = ""
    form: str = "as always"


@dataclass(frozen=True)
class Send:
    """Requests in one go, cut at these parts of their bytes; behind the first cut something is published."""

    which: int
    requests: Tuple[Any, ...]
    cuts: Tuple[float, ...] = ()
    between: Any = None


def often(usual, *others):
    """*usual*, and now and then one of the *others*."""
    return st.sampled_from([usual] * max(3, 2 * len(others)) + list(others))


QUERIES = (
    "",
    "&_=1790000000000",
    "&_=7",
    "&limit=1",
    "&timeout=0",
    "&cursor=",
    "&%63ursor=",
    "&channel=secret",
)
QUERIES += ("&chann%65l=secret", "&x=?cursor=", "&empty=200")
FORMS = ("as always", "another order", "one more", "a cursor in a header", "closes", "with a body")
FORMS += ("traced", "traced twice", "traced oddly")
CHANNELS = (SHARED, "own", "others", "secret", "both")
asks = st.builds(
    Ask,
    who=often(None, *WHO),
    channels=often(*CHANNELS),
    back=often(0, 1, 2, 5, 30),
    cursor=often("right", "now", "unknown", "another check", "a zero in front", "empty space"),
    query=often(*QUERIES),
    form=often(*FORMS),
)
JUNK = (b"\x00\xff\x80\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
others = st.one_of(
    st.just("HEAD"),
    st.tuples(st.just("echo"), st.one_of(st.binary(max_size=40), st.just("a poll"))),
    st.sampled_from(JUNK),
)
repeated = st.just(Ask())
requests = st.lists(st.one_of(repeated, repeated, asks, asks, others), min_size=1, max_size=3).map(tuple)
which = st.integers(min_value=0, max_value=len(WHO) - 1)
news = st.tuples(st.just("publish"), often(SHARED, *["user:" + who for who in WHO]))
cuts = st.lists(st.floats(min_value=0, max_value=1), min_size=1, max_size=3).map(tuple)


def again_and_again(number, ask):
    """The same poll until it is approved, if it can be, and once more."""
    own = {"own": ask.who or WHO[number]}.get(ask.channels)
    return 3 * [Send(number, (ask,)), ("publish", "user:" + own if own else SHARED)]


# Each is a few steps, and in most of them nobody waits at the end.
turns = st.one_of(
    st.tuples(st.builds(Send, which, st.tuples(repeated)), st.just(("publish", SHARED))),
    st.builds(again_and_again, which, asks),
    st.tuples(st.builds(Send, which, requests), st.just(("publish", SHARED)), news),
    st.tuples(st.builds(Send, which, requests, cuts, often(None, SHARED)), st.just(("publish", SHARED))),
    st.tuples(st.builds(Send, which, st.tuples(repeated)), st.builds(Send, which, requests), news),
    st.tuples(st.builds(Send, which, requests), st.tuples(often("hang up", "close half", "log out"), which)),
)
scripts = st.lists(turns, min_size=4, max_size=12).map(
    lambda turns: [step for turn in turns for step in turn]
)
# Both are parked behind it, and their next polls have been approved before.
PARK = [Send(0, (Ask(),)), Send(1, (Ask(),)), ("publish", SHARED)]


class Wire(Client):
    """One connection beside its line of the model."""

    def __init__(self, gunicorn, who, line):
        super().__init__(gunicorn, who=who)
        self.who = who
        self.line = line

    def hears(self, expected):
        answer = self.raw(bodiless=expected.bodiless)
        if expected.status is None:
            assert answer == GONE or re.match(rb"HTTP/1\.[01] [45]\d\d ", answer), answer
            return
        assert answer != GONE, "it was closed in the place of {}".format(expected)
        start, _, body = answer.partition(b"\r\n\r\n")
        lines = start.decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:])
        assert int(lines[0].split(" ")[1]) == expected.status, (answer, expected)
        assert headers["X-Who"] == expected.who, (answer, expected)
        assert headers.get("Legacy-Poll-Cursor") == self.gunicorn.cursor_at(expected.position), (
            answer,
            expected,
        )
        if expected.body is not None or expected.bodiless:
            assert body == (expected.body or b""), (answer, expected)
        else:
            events = json.loads(body).get("events", []) if body else []
            found = tuple((event["channel"], event["data"]) for event in events)
            assert found == expected.events, (answer, expected)

    def is_quiet(self):
        """Nothing more has come."""
        assert self.buffer == b"", self.buffer
        self.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            more = self.socket.recv(1000)
            raise AssertionError("{!r} came as well".format(more))
        self.socket.settimeout(SECONDS)


class Play:
    """A server, its model, and what both are made to do."""

    def __init__(self, gunicorn):
        self.port = gunicorn.port
        self._gunicorn = gunicorn
        self._control = connect(gunicorn)
        self._cursors = [self._get("/cursor").json()["cursor"]]
        self._model = Model()
        self._wires = {}
        self._traces = 0

    # The server.

    def _get(self, path, method="GET"):
        self._control.request(method, path)
        return _Read(self._control.getresponse())

    def _left_behind(self):
        found = self.metrics()
        return found["parked"], found["groups"]

    def cursor_at(self, position):
        return None if position is None else self._cursors[position]

    def metrics(self):
        return dict(re.findall(r"^legacy_poll_(\w+){[^}]*} (\S+)$", self._get("/metrics").text, re.M))

    # Steps.

    def play(self, script):
        """Does the steps of *script*; at the end the server has no connection but that which is asked for metrics."""
        for who in list(self._wires):  # of a script that failed
            self._drop(who)
        for step in script:
            if isinstance(step, Send):
                self._send(step)
            else:
                name, argument = step
                getattr(self, "_" + name.replace(" ", "_"))(argument)
            self._settle()
        for who in list(self._wires):
            self._hang_up(WHO.index(who))
            self._settle()
        # That a client has gone is seen a moment later where nothing is held for it.
        until(lambda: open_connections(self._gunicorn) == 1, SECONDS, "all their connections are closed")
        until(
            lambda: self._left_behind() == ("0", "0"),
            SECONDS,
            "none of them is parked, and nothing waited for",
        )

    def _wire(self, number):
        who = WHO[number]
        wire = self._wires.get(who)
        if wire is None or wire.line.over:
            self._drop(who)
            wire = self._wires[who] = Wire(self, who, self._model.connect())
        return wire

    def _drop(self, who):
        wire = self._wires.pop(who, None)
        if wire is not None:
            wire.close()
            self._model.lines.remove(wire.line)

    def _send(self, step):
        wire = self._wire(step.which)
        pieces = [part for each in step.requests for part in self._spoken(wire, each)]
        for raw, meaning in pieces:
            wire.line.begin(meaning, len(raw))
        data = b"".join(raw for raw, _ in pieces)
        places = {int(cut * len(data)) for cut in step.cuts}
        for junk in JUNK:
            # In pieces: how many of them show that it is junk is the server's affair.
            places -= set(range(data.find(junk), data.find(junk) + len(junk)))
        places = sorted(places | {0, len(data)})
        for start, stop in zip(places, places[1:]):
            if wire.line.over:
                return  # by what came before
            wire.send(data[start:stop])
            wire.line.take(stop - start)
            if start == 0 and stop < len(data) and step.between is not None:
                self._settle()
                self._publish(step.between)
                self._settle()
            elif wire.line.held is None:
                until(lambda: unread(self, wire) == 0, SECONDS, "the server has read it")

    def _publish(self, channel):
        number = len(self._cursors)
        assert publish(self, {"channel": channel, "data": number}, connection=self._control).status == 201
        self._model.publish(channel, number)
        self._cursors.append(self._get("/cursor").json()["cursor"])

    def _log_out(self, number):
        assert self._get("/logout?who=" + WHO[number], "POST").status == 200
        before = self._cursors[-1]
        until(lambda: self._get("/cursor").json()["cursor"] != before, SECONDS, "it is in the log")
        self._model.revoke(WHO[number])
        self._cursors.append(self._get("/cursor").json()["cursor"])

    def _close_half(self, number):
        wire = self._wire(number)
        wire.line.hang_up()
        with contextlib.suppress(OSError):
            wire.socket.shutdown(socket.SHUT_WR)

    def _hang_up(self, number):
        wire = self._wires.get(WHO[number])
        if wire is not None:
            wire.line.hang_up()
            self._drop(WHO[number])

    def _settle(self):
        """All that the model says has come, and nothing else."""
        for wire in self._wires.values():
            while wire.line.expected:
                wire.hears(wire.line.expected.popleft())
            if wire.line.over:
                assert wire.over
        until(self._is_settled, SECONDS, "{} polls are held".format(self._model.held))
        for wire in self._wires.values():
            if not wire.line.over:
                wire.is_quiet()

    def _is_settled(self):
        found = self.metrics()
        return (int(found["held"]), int(found["position"])) == (self._model.held, self._model.position)

    # Requests: their bytes, and what these mean.

    def _spoken(self, wire, each):
        if isinstance(each, Ask):
            return self._polled(wire, each)
        if isinstance(each, bytes):
            return [(each, Other(Answer(None), closes=True))]
        if each == "HEAD":
            raw = wire.request(self._cursors[-1]).replace(b"GET ", b"HEAD ", 1)
            return [(raw, Other(Answer(405, wire.who, bodiless=True)))]
        _, body = each
        body = wire.request(self._cursors[-1]) if body == "a poll" else body
        lines = [
            "POST /echo HTTP/1.1",
            "Host: here",
            "Cookie: who=" + wire.who,
            "Content-Length: %d" % len(body),
        ]
        raw = "\r\n".join(lines + ["", ""]).encode("ascii") + body
        return [(raw, Other(Answer(200, wire.who, body=body)))]

    def _polled(self, wire, ask):
        who = ask.who or wire.who
        other = WHO[1 - WHO.index(who)]
        channels = {"own": ("user:" + who,), "others": ("user:" + other,), "both": (SHARED, "user:" + who)}
        channels = channels.get(ask.channels, (ask.channels,))
        position = max(0, self._model.position - ask.back)
        right = self._cursors[position]
        log, check = right.split("-")[1::2]
        cursor = {
            "now": "now",
            "unknown": "1-{}-{}-{}".format(log, len(self._cursors) + 1000, check),
            "another check": "1-{}-{}-00000000".format(log, position),
            "a zero in front": "1-{}-0{}-{}".format(log, position, check),
            "empty space": right + "+",
        }.get(ask.cursor, right)
        wrong = {"right": None, "now": None, "unknown": 410, "another check": 410}.get(ask.cursor, 400)
        twice = ask.query in ("&cursor=", "&%63ursor=")
        meaning = Poll(
            who,
            channels + (("secret",) if ask.query.endswith("=secret") else ()),
            position,
            limit=1 if ask.query == "&limit=1" else MOST_EVENTS,
            wrong=400 if twice else wrong,
            now=ask.cursor == "now",
            waits=ask.query != "&timeout=0",
            empty=200 if ask.query == "&empty=200" else 204,
            closes=ask.form == "closes",
        )
        query = ask.query + (self._cursors[0] if ask.query.endswith("cursor=") else "")
        wire.path = "/stream?" + "&".join("channel=" + channel for channel in channels)
        usual = list(wire.headers)
        wire.headers[1] = "Cookie: who={}; theme=dark".format(who)
        if ask.form == "another order":
            wire.headers.reverse()
        elif ask.form in FORMS[2:]:
            more = {
                "one more": "X-New: 1",
                "closes": "Connection: close",
                "with a body": "Content-Length: {}",
            }
            wire.headers.append(more.get(ask.form, "Referer: http://here/?cursor=" + self._cursors[0]))
        body = wire.request(self._cursors[0]) if ask.form == "with a body" else b""
        wire.headers[-1] = wire.headers[-1].format(len(body))
        raw = wire.request(cursor, more=query)
        wire.path, wire.headers = "/stream?channel=" + SHARED, usual
        return [(raw, meaning)] + ([(body, Rest())] if body else [])


class _Read:
    def __init__(self, answer):
        self.status = answer.status
        self.text = answer.read().decode("utf-8")

    def json(self):
        return json.loads(self.text)


@each_lane
def test_whatever_a_client_does_it_gets_what_its_requests_say(shop, lane):
    limits = {"REAUTHORIZE_SECONDS": FOREVER, "MAX_EVENTS": MOST_EVENTS, "VARYING_HEADERS": "X-Request-Id"}
    gunicorn = shop(lane, options=["--keep-alive", str(FOREVER)], **limits)
    [worker] = gunicorn.workers
    play = Play(gunicorn)
    play.play(PARK * 3)
    before = gunicorn.sockets(worker)

    @settings(
        max_examples={"standard": 20, "parked": 60}[lane],
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(scripts)
    def each(script):
        play.play(PARK + script)

    each()
    assert gunicorn.sockets(worker) <= before
    found = play.metrics()
    if lane == "parked":
        # Of the polls that were answered, some hundreds.
        assert int(found["approved_total"]) >= 50, found
    assert "a parked poll failed" not in gunicorn.log and "a hold failed" not in gunicorn.log


@each_lane
def test_polls_of_one_user_are_answered_together_and_each_with_its_own_headers(shop, lane):
    gunicorn = shop(lane, REAUTHORIZE_SECONDS=FOREVER, options=["--keep-alive", str(FOREVER)])
    clients = {theme: [Client(gunicorn) for _ in range(3)] for theme in ("dark", "light", "old")}
    for theme, theirs in clients.items():
        for client in theirs:
            client.headers[1] = "Cookie: who=anne; theme=" + theme
    cursor = head(gunicorn)
    for turn in range(4):
        for client in [client for theirs in clients.values() for client in theirs]:
            client.ask(cursor)
        until_held(gunicorn, 9)
        say(gunicorn, turn)
        for theme, theirs in clients.items():
            [answer] = {undated(client.raw()) for client in theirs}
            assert b"\r\nX-Theme: %s\r\n" % theme.encode("ascii") in answer
            status, cursor, body = understood(answer)
            assert status == 200 and b'"data":%d,' % turn in body
    if lane == "parked":
        assert int(metrics(gunicorn)["approved_total"]) >= 18


@each_lane
def test_every_split_of_a_held_poll_gives_the_same_answer_and_the_connection_goes_on(shop, lane):
    gunicorn = shop(lane, REAUTHORIZE_SECONDS=FOREVER, options=["--keep-alive", str(FOREVER)])
    split, whole = Client(gunicorn), Client(gunicorn)
    cursor, place = head(gunicorn), 0
    while True:
        # In the parked lane both wait between two polls, and what they ask is approved from the third turn on.
        request = split.request(cursor)
        if place >= len(request):
            break
        split.send(request[:place])
        until(lambda: unread(gunicorn, split) == 0, SECONDS, "the server has read it")
        split.send(request[place:])
        whole.send(request)
        until_held(gunicorn, 2)
        say(gunicorn, place)
        answers = [undated(client.raw()) for client in (split, whole)]
        assert answers[0] == answers[1], request[:place]
        status, cursor, body = understood(answers[0])
        assert status == 200 and b'"data":%d,' % place in body
        place += 1
    assert place > 100
    if lane == "parked":
        # Those in one piece.
        assert int(metrics(gunicorn)["approved_total"]) >= place - 3
