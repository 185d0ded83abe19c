"""The examination: one question after the other, each answer judged by what a poll needs.

What is a fault of the way and what is the server's own doing is told apart by the body: the server's are JSON, with
our machine codes; a proxy's are not. Times are compared with the time that the same question should have taken, never
with one another on different machines. The polls are on a channel of their own, so that no event disturbs them; where
the caller names one that is busy, a hold goes on from the cursor that it was given.
"""

from __future__ import annotations

import email.utils
import secrets
import ssl
import time
from typing import Callable, Dict, Iterator, List, Optional, Tuple
from urllib.parse import urlencode, urljoin

from . import programs
from .findings import FINE, NOTE, WRONG, Finding, Report
from .question import Cut, Line, Reply, Target, Unreachable, refused
from .reading import cache_signs, code_of, elsewhere, has_events, kind_of, message_of, said_by, shown

__all__ = ["Examination"]

#: Two equal polls of this length tell a cache; the second would come at once.
_EQUAL_MS = 1500
#: Three beats and a half.
_BEATS_MS = 3500
_BEAT_MS = 1000
_CLOCK_SECONDS = 60
_REDIRECTS = 5
_FOREIGN = "1-00000000-1-00000000"
_BUSY = 5


class _Stop(Exception):
    """There is no use in asking more; the last finding says why."""


class Examination:
    """Holds polls through a URL, and says what stands in their way.

    Args:
        target: What to examine.
        channel: Which channel to read; one of its own if empty.
        hold_seconds: How long a poll that nothing should cut is held.
        answer_seconds: Longest wait for an answer that is not held.
        tell: Called with a line of progress, from time to time.
    """

    def __init__(
        self,
        target: Target,
        *,
        channel: str = "",
        hold_seconds: float = 25.0,
        answer_seconds: float = 10.0,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._target = target
        self._channel = channel or "legacy-poll-doctor:" + secrets.token_hex(4)
        self._named = bool(channel)
        self._hold_seconds = hold_seconds
        self._answer_seconds = answer_seconds
        self._tell = tell
        self._programs: List[str] = []
        self._cursor = ""
        self._line = self._new_line()

    def run(self) -> Report:
        """Asks everything, which takes the hold and about ten seconds more, and says what was found."""
        findings: List[Finding] = []
        try:
            for step in (
                self._reach,
                self._identify,
                self._refusals,
                self._caches,
                self._beats,
                self._hold,
                self._connections,
                self._protocol,
            ):
                findings.extend(step())
        except _Stop as stop:
            findings.extend(stop.args[0])
        except Unreachable as error:
            findings.append(
                Finding(WRONG, "connection", str(error), "look whether the server or a firewall went away")
            )
        finally:
            self._line.close()
        shown = tuple(name for name in self._programs if name != "gunicorn")
        return Report(self._target.url, shown, tuple(findings))

    # Steps, in their order

    def _reach(self) -> Iterator[Finding]:
        """Is this legacy_poll, and may we read?"""
        self._tell("asking %s for its cursor" % self._target.url)
        seen = {self._target.url}
        while True:
            reply = self._first("/cursor?" + urlencode({"channel": self._channel}))
            self._notice(reply.sample())
            if reply.status not in (301, 302, 303, 307, 308):
                break
            try:
                to = urljoin(self._target.url + "/cursor", reply.header("Location"))
            except ValueError:
                to = reply.header("Location")
            page = to.partition("?")[0].partition("#")[0]
            prefix = page[: -len("/cursor")] if page.endswith("/cursor") else page
            yield Finding(
                NOTE,
                "redirect",
                "%s answers %d, to %s" % (self._target.url, reply.status, to),
                "give pages the URL behind the redirect: it costs every poll a round trip, and a POST its body",
            )
            if prefix in seen or len(seen) > _REDIRECTS:
                raise _Stop(
                    [
                        Finding(
                            WRONG,
                            "redirect",
                            "the redirects go round in a circle",
                            elsewhere(self._programs),
                        )
                    ]
                )
            seen.add(prefix)
            self._go_to(prefix)
        yield from self._judge_first(reply)

    def _judge_first(self, reply: Reply) -> Iterator[Finding]:
        said = said_by(reply)
        if said is None:
            what = "%d with %s instead of a cursor" % (reply.status, kind_of(reply))
            raise _Stop([Finding(WRONG, "answers", what, elsewhere(self._programs))])
        code = code_of(said)
        if reply.status in (401, 403):
            advice = "a channel that may be read: --channel, and --token where the server wants one"
            raise _Stop([Finding(WRONG, "rights", "%d %s" % (reply.status, message_of(said)), advice)])
        if reply.status != 200 or not isinstance(said.get("cursor"), str):
            advice = "the server's own log says more" if code else elsewhere(self._programs)
            raise _Stop([Finding(WRONG, "answers", "%d %s" % (reply.status, message_of(said)), advice)])
        self._cursor = said["cursor"]
        yield Finding(FINE, "answers", "a cursor after %.2f s" % reply.seconds)
        missing = [
            name
            for name, wanted in (("Legacy-Poll-Cursor", self._cursor), ("Cache-Control", "no-store"))
            if wanted not in reply.header(name)
        ]
        if missing:
            what = "on the way these headers were lost: " + ", ".join(missing)
            advice = "let the server's headers pass; clients need Legacy-Poll-Cursor, caches the other"
            yield Finding(WRONG, "headers", what, advice)
        else:
            yield Finding(FINE, "headers", "the cursor and Cache-Control: no-store come through")
        yield from _clock(reply)

    def _identify(self) -> Iterator[Finding]:
        """Who is in between?"""
        said = refused(self._target, self._answer_seconds)
        nearest = list(programs.recognise(said))
        self._programs = nearest + [name for name in self._programs if name not in nearest]
        shown = [name for name in self._programs if name != "gunicorn"]
        if shown:
            what = ", ".join(shown)
            advice = "its settings for held polls: " + programs.PAGE
            yield Finding(NOTE, "in between", what + "; others may hide", advice)
        elif "gunicorn" in nearest:
            yield Finding(
                FINE, "in between", "nothing: gunicorn itself answers here, perhaps behind a TCP balancer"
            )
        else:
            yield Finding(NOTE, "in between", "nothing shows itself")

    def _refusals(self) -> Iterator[Finding]:
        """Do error answers come through as they are?"""
        try:
            reply = self._ask({"cursor": _FOREIGN, "timeout": "0"})
        except Cut as cut:
            yield Finding(WRONG, "error answers", str(cut), programs.advice(programs.ERRORS, self._programs))
            return
        if reply.status == 410 and code_of(said_by(reply)) == "cursor_unknown":
            yield Finding(FINE, "error answers", "a 410 comes through as it is")
        else:
            what = "a 410 became %d with %s" % (reply.status, kind_of(reply))
            yield Finding(WRONG, "error answers", what, programs.advice(programs.ERRORS, self._programs))

    def _caches(self) -> Iterator[Finding]:
        """Is the same question answered twice by the same answer?"""
        self._tell("asking the same twice")
        # The same parameters, to the byte; and such as nobody asked before.
        parameters = {"timeout": str(_EQUAL_MS), "empty": "200", "_": secrets.token_hex(4)}
        replies = []
        for _ in range(2):
            try:
                reply = self._ask(parameters, held_seconds=_EQUAL_MS / 1000)
            except Cut:
                reply = None
            said = None if reply is None else said_by(reply)
            if reply is None or said is None:
                # How long a silent poll lives is asked later, at length.
                yield Finding(NOTE, "cache", "not to be told: a poll of %.1f s was cut" % (_EQUAL_MS / 1000))
                return
            if reply.status >= 400:
                advice = "the server itself refuses polls; its /status and its log say more"
                raise _Stop([Finding(WRONG, "polls", "%d %s" % (reply.status, message_of(said)), advice)])
            replies.append(reply)
        first, second = replies
        signs = ", ".join(sign for reply in replies for sign in cache_signs(reply))
        enough = _EQUAL_MS / 1000 / 2
        if first.seconds > enough > second.seconds and not has_events(second):
            signs = signs or "the second of two equal polls came after %.2f s" % second.seconds
        if signs:
            advice = programs.advice(programs.CACHES, self._programs)
            yield Finding(WRONG, "cache", "answers come from a cache: " + signs, advice)
        elif first.seconds > enough:
            yield Finding(FINE, "cache", "each poll is the server's: two equal ones were both held")
        else:
            what = "no sign of one; polls are answered at once here, so times tell nothing"
            advice = "" if has_events(first) else "the server holds none: LEGACY_POLL_HOLD_SECONDS"
            yield Finding(NOTE, "cache", what, advice)

    def _beats(self) -> Iterator[Finding]:
        """Does white space come while a poll is held?"""
        self._tell("holding a poll with heartbeats for %.1f s" % (_BEATS_MS / 1000))
        beats = {"timeout": str(_BEATS_MS), "heartbeat": str(_BEAT_MS), "empty": "200"}
        try:
            reply = self._ask(beats, held_seconds=_BEATS_MS / 1000)
        except Cut as cut:
            yield Finding(WRONG, "heartbeats", "%s, after %.1f s" % (cut, cut.seconds), self._limit_advice())
            return
        encoding = reply.header("Content-Encoding")
        if said_by(reply) is None:
            yield Finding(WRONG, "heartbeats", shown(reply), self._limit_advice())
        elif reply.seconds < 2.5 * _BEAT_MS / 1000 or has_events(reply):
            what = "not to be told: the poll was over after %.1f s" % reply.seconds
            yield Finding(
                NOTE, "heartbeats", what, "name a quiet channel with --channel" if has_events(reply) else ""
            )
        elif reply.pieces[0][0] > reply.seconds - _BEAT_MS / 1000:
            what = "the white space came with the end of the answer, after %.1f s: " % reply.pieces[0][0]
            what += "compressed (%s), and held back" % encoding if encoding else "somebody buffers answers"
            yield Finding(WRONG, "heartbeats", what, programs.advice(programs.BUFFERS, self._programs))
        else:
            what = "white space comes while a poll is held, the first after %.1f s" % reply.pieces[0][0]
            yield Finding(FINE, "heartbeats", what)
        if encoding:
            what = "answers are compressed on the way (%s)" % encoding
            yield Finding(
                NOTE, "compression", what, "costs the proxy's time; most answers are too small to gain by it"
            )

    def _hold(self) -> Iterator[Finding]:
        """Is a poll that is silent held as long as it should be?"""
        left = self._hold_seconds
        opened = self._line.opened
        for _ in range(_BUSY):
            self._tell("holding a silent poll for %.0f s" % left)
            parameters = {"timeout": str(int(left * 1000)), "empty": "200"}
            try:
                reply = self._ask(parameters, held_seconds=left)
            except Cut as cut:
                yield from self._cut_and_beyond(cut.seconds, str(cut), ())
                return
            said = said_by(reply)
            if said is None:
                yield from self._cut_and_beyond(reply.seconds, shown(reply), programs.authors(reply.sample()))
                return
            if reply.status >= 400:
                yield Finding(
                    WRONG,
                    "hold",
                    "%d %s" % (reply.status, message_of(said)),
                    "the server's own log says more",
                )
                return
            if not has_events(reply):
                # Servers end a hold a little early, so that not all clients come back together.
                if reply.seconds >= 0.8 * left:
                    what = "a silent poll was held for %.1f s and answered" % reply.seconds
                    if self._line.opened == opened and not reply.closes:
                        what += "; its connection goes on"
                    yield Finding(FINE, "hold", what)
                else:
                    what = "the server itself ends a poll after %.1f s" % reply.seconds
                    advice = "its limit is LEGACY_POLL_HOLD_SECONDS, unless it was just reloaded"
                    yield Finding(NOTE, "hold", what, advice)
                return
            self._cursor = said["cursor"]
            left = max(1.0, left - reply.seconds)
        what = "the channel is busy: no poll was silent for long enough"
        yield Finding(NOTE, "hold", what, "name a quiet channel with --channel")

    def _cut_and_beyond(self, seconds: float, how: str, by: Tuple[str, ...]) -> Iterator[Finding]:
        """A silent poll was cut: would white space have kept it?"""
        yield self._cut(seconds, how, by)
        beat = max(_BEAT_MS, int(seconds * 5) * 100)
        hold = min(max(2.5 * seconds, seconds + 2.5), seconds + 30)
        self._tell("holding a poll with heartbeats for %.0f s" % hold)
        parameters = {"timeout": str(int(hold * 1000)), "heartbeat": str(beat), "empty": "200"}
        try:
            reply: Optional[Reply] = self._ask(parameters, held_seconds=hold)
        except Cut:
            reply = None
        if reply is not None and said_by(reply) is not None and reply.seconds > seconds:
            what = "with white space every %d ms a poll was held for %.1f s, beyond that limit" % (
                beat,
                reply.seconds,
            )
            advice = "until the limit is raised, let clients ask with heartbeat=%d" % beat
            yield Finding(NOTE, "beyond the limit", what, advice)
        else:
            what = "white space every %d ms does not keep a poll alive beyond that limit" % beat
            advice = "until the limit is raised, LEGACY_POLL_HOLD_SECONDS below %.1f" % seconds
            yield Finding(WRONG, "beyond the limit", what, advice)

    def _connections(self) -> Iterator[Finding]:
        """Does one connection serve poll after poll?"""
        before = self._line.opened
        for _ in range(3):
            try:
                self._line.ask("/cursor?" + urlencode({"channel": self._channel}))
            except Cut as cut:
                yield Finding(WRONG, "keep-alive", "%s, after %.1f s" % (cut, cut.seconds))
                return
        if self._line.opened - before <= 1:
            yield Finding(FINE, "keep-alive", "a connection serves one question after the other")
        else:
            what = "each answer ends its connection: every poll pays for a new one"
            yield Finding(NOTE, "keep-alive", what, programs.advice(programs.CONNECTION, self._programs))

    def _protocol(self) -> Iterator[Finding]:
        """Which HTTP do browsers get?"""
        if not self._target.tls:
            what = "HTTP/1.1 without TLS: browsers open six connections to a host, and a held poll takes one"
            yield Finding(NOTE, "protocol", what, "HTTP/2 needs https")
            return
        with self._target.connect(self._answer_seconds, ("h2", "http/1.1")) as connection:
            assert isinstance(connection, ssl.SSLSocket)
            chosen, version = connection.selected_alpn_protocol(), connection.version()
        if chosen == "h2":
            yield Finding(FINE, "protocol", "HTTP/2 over %s" % version)
        else:
            what = (
                "HTTP/1.1 over %s: browsers open six connections to a host, and a held poll takes one"
                % version
            )
            yield Finding(NOTE, "protocol", what, programs.advice(programs.HTTP2, self._programs))

    # What the steps share

    def _new_line(self) -> Line:
        def tick(seconds: float) -> None:
            self._tell("no answer after %.0f s" % seconds)

        return Line(self._target, answer_seconds=self._answer_seconds, tick=tick)

    def _go_to(self, url: str) -> None:
        target = self._target
        try:
            moved = Target.parse(url, token=target.token, insecure=target.insecure)
        except ValueError:
            raise _Stop([Finding(WRONG, "redirect", "a redirect to %r leads nowhere" % url)]) from None
        if (moved.host, moved.tls or not target.tls) != (target.host, True):
            # A token goes to whom it was meant for.
            moved = Target.parse(url, insecure=target.insecure)
        self._line.close()
        self._target = moved
        self._line = self._new_line()

    def _first(self, path: str) -> Reply:
        """The first answer, when nothing is known yet."""
        try:
            return self._line.ask(path)
        except Unreachable as error:
            advice = "is the URL right, and does the server run?"
            if error.certificate:
                advice = "mend the certificate: browsers refuse it too. --insecure examines the rest"
            about = "certificate" if error.certificate else "connection"
            raise _Stop([Finding(WRONG, about, str(error), advice)]) from error
        except Cut as cut:
            what = "%s, after %.1f s" % (cut, cut.seconds)
            raise _Stop([Finding(WRONG, "answers", what, elsewhere(self._programs))]) from cut

    def _ask(self, parameters: Dict[str, str], *, held_seconds: float = 0.0) -> Reply:
        query = dict({"channel": self._channel, "cursor": self._cursor}, **parameters)
        return self._line.ask("/stream?" + urlencode(query), held_seconds=held_seconds)

    def _notice(self, text: str) -> None:
        self._programs += [name for name in programs.recognise(text) if name not in self._programs]

    def _limit_advice(self) -> str:
        return programs.advice(programs.LIMIT, self._programs, seconds=long_enough(self._hold_seconds))

    def _cut(self, seconds: float, how: str, by: Tuple[str, ...]) -> Finding:
        """A held poll was cut."""
        names = by or tuple(name for name in self._programs if name != "gunicorn")
        what = "a silent poll was cut after %.1f s: %s" % (seconds, how)
        if by:
            what += ", by " + ", ".join(by)
        advice = programs.advice(programs.LIMIT, names, seconds=long_enough(self._hold_seconds))
        return Finding(WRONG, "hold", what, advice)


def _clock(reply: Reply) -> Iterator[Finding]:
    try:
        server = email.utils.parsedate_to_datetime(reply.header("Date")).timestamp()
    except (TypeError, ValueError, IndexError):
        yield Finding(NOTE, "clock", "the answer has no Date")
        return
    # Date has whole seconds, and was written while we waited.
    ahead = server - time.time() + reply.seconds / 2 + 0.5
    if abs(ahead) > _CLOCK_SECONDS:
        what = "the server's clock is %.0f s %s of this one's" % (
            abs(ahead),
            "ahead" if ahead > 0 else "behind",
        )
        advice = "channel tokens expire by the server's clock; keep both right with NTP"
        yield Finding(NOTE, "clock", what.replace("behind of", "behind"), advice)
    else:
        yield Finding(FINE, "clock", "the server's clock and this one agree")


def long_enough(hold_seconds: float) -> int:
    """A limit with room to spare above the hold."""
    return max(60, int(2 * hold_seconds))
