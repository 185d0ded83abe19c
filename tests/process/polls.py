"""Clients as the wire's contract has them: a poll, and somebody who goes on from answer to answer.

Every request goes over a connection of its own, so that a client hops between the workers as it comes. A client
checks what it is given: each event once, in the order of positions that it can see, and no cursor below its own.
The only place in the tests that looks into a cursor.
"""

from __future__ import annotations

import http.client
import json
import select
from urllib.parse import urlencode

ANSWER_SECONDS = 30


def position(cursor):
    """The position in a cursor's text, `1-log-position-check`."""
    version, _, at, _ = cursor.split("-")
    assert version == "1"
    return int(at)


class Answer:
    """What came back: status, headers, and the body as JSON (None where there is none)."""

    def __init__(self, response):
        self.status = response.status
        self.headers = response.headers
        raw = response.read()
        self.text = raw.decode("utf-8")
        self.json = json.loads(self.text) if raw else None

    @property
    def cursor(self):
        return self.headers["Legacy-Poll-Cursor"]

    @property
    def code(self):
        """The machine code of an error."""
        return self.json["error"]["code"]

    @property
    def data(self):
        return [event["data"] for event in self.json["events"]] if self.json else []

    def __repr__(self):
        return "<Answer {} {}>".format(self.status, self.text[:300])


class Request:
    """One request, sent at once and answered whenever; `connection` keeps one open for the next.

    Args:
        gunicorn: Whom to ask; anything with a port.
        path: With its query.
        connection: An open http.client.HTTPConnection to use, and to leave open; a new one by default.
    """

    def __init__(self, gunicorn, path, *, method="GET", body=None, headers=(), connection=None):
        self.connection = connection or connect(gunicorn)
        headers = dict(headers)
        if connection is None and not getattr(gunicorn, "parks", False):
            headers["Connection"] = "close"
        self.connection.request(method, path, body=body, headers=headers)

    @property
    def answered(self):
        """Whether there is something to read: an answer, or the end of the connection."""
        poller = select.poll()
        poller.register(self.connection.sock, select.POLLIN)
        return bool(poller.poll(0))

    @property
    def worker_socket(self):
        """Our end of the connection."""
        return self.connection.sock

    def answer(self, seconds=ANSWER_SECONDS):
        """The answer.

        Raises:
            OSError or http.client.HTTPException: The connection ended without one.
        """
        self.connection.sock.settimeout(seconds)
        return Answer(self.connection.getresponse())

    def close(self):
        self.connection.close()


def connect(gunicorn):
    """An open connection."""
    connection = http.client.HTTPConnection("127.0.0.1", gunicorn.port, timeout=ANSWER_SECONDS)
    connection.connect()
    return connection


def get(gunicorn, path, **options):
    """The answer to a GET."""
    return Request(gunicorn, path, **options).answer()


def stream(channel="orders", prefix="", **parameters):
    """The path of a poll."""
    query = [("channel", each) for each in ([channel] if isinstance(channel, str) else channel)]
    query += [(name, value) for name, value in parameters.items() if value is not None]
    return "{}/stream?{}".format(prefix, urlencode(query))


def head(gunicorn, prefix=""):
    """The present cursor, by GET /cursor."""
    answer = get(gunicorn, prefix + "/cursor")
    assert answer.status == 200, answer
    return answer.json["cursor"]


def publish(gunicorn, events, token="publish-token", path="/publish", **options):
    """The answer to POST /publish."""
    headers = {"Content-Type": "application/json", "Authorization": "Bearer " + token}
    body = json.dumps(events)
    return Request(gunicorn, path, method="POST", body=body, headers=headers, **options).answer()


class Client:
    """Follows channels: asks, hears, and asks again with the cursor that it was given.

    Args:
        gunicorn: Whom to ask.
        cursor: Where to start; by default the oldest event.
        parameters: Of every poll.
    """

    def __init__(self, gunicorn, *, channel="orders", cursor=None, prefix="", **parameters):
        self.gunicorn = gunicorn
        self.cursor = cursor
        self.seen = []
        self.ids = []
        self._channel = channel
        self._prefix = prefix
        self._parameters = parameters
        self.request = None

    @property
    def path(self):
        return stream(self._channel, self._prefix, cursor=self.cursor, **self._parameters)

    def ask(self, connection=None):
        """Sends the next poll."""
        self.request = Request(self.gunicorn, self.path, connection=connection)
        return self

    @property
    def held(self):
        return self.request is not None and not self.request.answered

    def hear(self, seconds=ANSWER_SECONDS):
        """Takes the answer to what was asked, checks it, and adopts its cursor."""
        answer = self.request.answer(seconds)
        self.request = None
        if answer.status in (200, 206, 204):
            self._adopt(answer)
        return answer

    def drop(self):
        """Hangs up, or tidies up after a connection that ended: the cursor stays."""
        self.request.close()
        self.request = None

    def hear_until(self, count, answers=100):
        """Asks and hears until *count* events were seen in all; returns their data."""
        while len(self.seen) < count:
            assert answers, "only {} came: {}".format(len(self.seen), self.seen)
            answers -= 1
            if self.request is None:
                self.ask()
            answer = self.hear()
            assert answer.status in (200, 206, 204), answer
        return self.seen

    def _adopt(self, answer):
        if self.cursor is not None:
            assert position(answer.cursor) >= position(self.cursor), "the cursor went back"
        if answer.json is not None:
            assert answer.json["cursor"] == answer.cursor
            ids = [event["id"] for event in answer.json["events"]]
            assert len(set(self.ids + ids)) == len(self.ids) + len(ids), "an event came twice"
            self.ids += ids
            self.seen += answer.data
        self.cursor = answer.cursor
