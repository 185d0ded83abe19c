"""The wire as a client sees it: an application in this process, SQLite, and a publisher in a thread of its own.

Every request goes through `wsgiref.validate`. A test speaks to a `Site` with `get`, `post` and `hold`, and looks
inside only where the test is about what is inside; so most of them can later run over another lane or server.

Nothing is patched here: each held poll has a thread, as under any server with threads.
"""

from __future__ import annotations

import json
import shutil
import threading
from urllib.parse import urlencode
from wsgiref.validate import validator

import pytest
from flask import Flask
from sqlalchemy import create_engine, text
from werkzeug.test import EnvironBuilder, run_wsgi_app

from legacy_poll import LegacyPoll
from legacy_poll.schema import upgrade
from tests.waiting import until

SECONDS = 10


class Reply:
    """One answer."""

    def __init__(self, status, headers, body):
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self):
        return json.loads(self.body.decode("utf-8"))

    @property
    def data(self):
        """Of the events, in order: [1, 2, 3]."""
        return [event["data"] for event in self.json["events"]]

    @property
    def cursor(self):
        return self.headers["Legacy-Poll-Cursor"]

    @property
    def code(self):
        """The machine code of an error, whose shape is checked."""
        assert set(self.json) <= {"error", "cursor"}
        assert set(self.json["error"]) == {"code", "message"}
        assert self.headers["Content-Type"] == "application/json"
        return self.json["error"]["code"]

    @property
    def message(self):
        return self.json["error"]["message"]


class Held:
    """A request in a thread of its own."""

    def __init__(self, ask):
        self._ask = ask
        self._reply = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        try:
            self._reply = self._ask()
        except BaseException as error:
            self._reply = error

    @property
    def over(self):
        return not self._thread.is_alive()

    def reply(self):
        """The answer, once it is there."""
        self._thread.join(SECONDS)
        assert self.over, "still held after {} s".format(SECONDS)
        if isinstance(self._reply, BaseException):
            raise self._reply
        return self._reply


class Site:
    """An application that serves polls under *prefix*, and a client of it."""

    def __init__(self, app, poll, *, prefix="/poll"):
        self.app = app
        self.poll = poll
        self.prefix = prefix
        app.wsgi_app = validator(app.wsgi_app)

    # What a client can do.

    def open(self, method, path, query=(), *, headers=(), body=None, address="127.0.0.1"):
        """One request; *query* is a dict, a list of pairs or the text itself."""
        text_of_query = query if isinstance(query, str) else urlencode(query, doseq=True)
        headers = dict(headers)
        environ = EnvironBuilder(
            self.prefix + path,
            method=method,
            query_string=text_of_query,
            content_type=headers.pop("Content-Type", None),
            headers=list(headers.items()),
            data=body,
            environ_base={"REMOTE_ADDR": address},
        ).get_environ()
        for name in ("HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH"):
            environ.pop(name, None)  # Werkzeug 2.0 adds them, and no server has them
        # What the client of Flask does, but for the response object, which adds headers of its own to a 204.
        blocks, status, sent = run_wsgi_app(self.app, environ, buffered=True)
        return Reply(int(status.split()[0]), sent, b"".join(blocks))

    def get(self, path, query=(), **options):
        return self.open("GET", path, query, **options)

    def post(self, path, value=None, *, token=None, **options):
        """*value* as JSON, or the option *body* as it is."""
        headers = {"Content-Type": "application/json"}
        if token is not None:
            headers["Authorization"] = "Bearer " + token
        headers.update(options.pop("headers", {}))
        body = options.pop("body", None)
        return self.open(
            "POST",
            path,
            body=json.dumps(value).encode("utf-8") if body is None else body,
            headers=headers,
            **options,
        )

    def ask(self, path="/stream", query=(), **options):
        """A request that may take long."""
        return Held(lambda: self.get(path, query, **options))

    def hold(self, query=(), **options):
        """A poll that is being held by now."""
        before = self.held
        poll = self.ask("/stream", query, **options)
        until(lambda: self.held > before or poll.over)
        if poll.over:
            raise AssertionError("not held: {}".format(poll.reply().body))
        return poll

    def collect(self, count, query=()):
        """Asks until *count* events have come; returns their data."""
        query, found = dict(query), []
        while len(found) < count:
            reply = self.get("/stream", query)
            assert reply.status in (200, 206), reply.body
            found += reply.data
            query["cursor"] = reply.cursor
        return found

    # What the application can do.

    def publish(self, data, channel="orders", **columns):
        """In a transaction of its own; returns the event's id."""
        with self.engine.begin() as connection:
            return self.poll.publish(connection, channel, data, **columns)

    def insert(self, **row):
        """An outbox row as another program writes it."""
        sql = "INSERT INTO legacy_poll_outbox ({}) VALUES ({})".format(
            ", ".join(row), ", ".join(":" + name for name in row)
        )
        with self.engine.begin() as connection:
            connection.execute(text(sql), row)

    # What is inside.

    @property
    def runtime(self):
        return self._state.runtime()

    @property
    def engine(self):
        return self._state.engine()

    @property
    def _state(self):
        return self.app.extensions["legacy_poll"][self.poll._name]

    @property
    def held(self):
        return self.runtime.hub.held

    def settle(self):
        """Returns when this worker has all that is committed."""
        self.runtime.start()
        log, hub = self.runtime.log, self.runtime.hub
        until(lambda: hub.cursor == log.bounds().cursor and not log.glance().waiting)

    def trim(self):
        """What the retention settings say, now."""
        self.runtime.log.trim(self.runtime.log.glance().now)

    def close(self):
        """Everybody has left; nothing of theirs stayed behind."""
        if self._state._runtime is None:
            return
        runtime = self.runtime
        runtime.stop()
        thread = runtime.publisher._thread
        if thread is not None:
            thread.join(SECONDS)
            assert not thread.is_alive()
        assert runtime.hub.held == 0
        assert runtime.hub.groups == 0
        assert not runtime.hub._groups_on
        assert runtime.admission.held == 0
        assert not runtime.admission._by_client
        flights = runtime.catchup._flights
        assert not flights._boarding and not flights._flying
        checked_out = getattr(self.engine.pool, "checkedout", lambda: 0)()
        assert checked_out == 0, "{} connections of the application's pool are missing".format(checked_out)
        runtime.database.close()
        runtime.patient.close()
        self.engine.dispose()


@pytest.fixture(scope="session")
def _tables(tmp_path_factory):
    """A database with the tables, to be copied: migrations take longer than the tests."""
    path = tmp_path_factory.mktemp("tables") / "log.db"
    engine = create_engine("sqlite:///{}".format(path), future=True)
    upgrade(engine)
    engine.dispose()
    return path


@pytest.fixture
def database_path(_tables, tmp_path):
    """An empty log of this test's own."""
    folder = tmp_path / "database"
    folder.mkdir()
    return shutil.copy(str(_tables), str(folder / "log.db"))


@pytest.fixture
def make_site(database_path):
    """Makes sites: *settings* without their prefix, the rest for LegacyPoll or for the application.

    Sites of one test share its database, as workers do.
    """
    made = []

    def make(*, app=None, prefix="/poll", options=None, poll_of=None, **settings):
        app = app or Flask("application")
        defaults = {"poll_interval_seconds": 0.02, "wakeup_directory": "off"}
        for name, value in dict(defaults, **settings).items():
            app.config["LEGACY_POLL_" + name.upper()] = value
        options = dict(options or {})
        if not {"engine", "url", "db"} & set(options):
            options["url"] = "sqlite:///{}".format(database_path)
        if "authorize" not in options:
            options.setdefault("public", True)
        poll = LegacyPoll(**options)
        poll.init_app(app)
        app.register_blueprint(poll.blueprint, url_prefix=prefix)
        made.append(Site(app, poll, prefix=prefix))
        return made[-1]

    make.made = made
    yield make
    for site in made:
        site.close()


@pytest.fixture
def site(make_site):
    """A public one with the default settings."""
    return make_site()
