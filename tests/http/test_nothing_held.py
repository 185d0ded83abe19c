"""Promise 3: a held poll holds no database connection, no Flask context and no session of the application's."""

from __future__ import annotations

import json

import flask
import pytest
from flask import Flask, Response, g, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text
from sqlalchemy.pool import QueuePool
from werkzeug.test import EnvironBuilder

from tests.waiting import until

ORDERS = {"channel": "orders"}
MANY = 200


@pytest.fixture
def app():
    return Flask("application")


@pytest.fixture
def db(app, database_path):
    """Flask-SQLAlchemy with one connection and not one more: whoever keeps it is noticed."""
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///{}".format(database_path)
    app.config["SQLALCHEMY_TRACK_MODIFICATIONS"] = False
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {
        "poolclass": QueuePool,
        "pool_size": 1,
        "max_overflow": 0,
        "pool_timeout": 10,
        "connect_args": {"check_same_thread": False},
    }
    return SQLAlchemy(app)


def test_many_held_polls_hold_none_of_the_applications_connections(make_site, app, db):
    asked = []

    def authorize(channels):
        asked.append(db.session.execute(text("SELECT count(*) FROM legacy_poll_event")).scalar())
        return channels

    site = make_site(app=app, options={"db": db, "authorize": authorize})
    site.settle()
    polls = [site.ask("/stream", ORDERS) for _ in range(MANY)]
    until(lambda: site.held == MANY)
    pool = site.engine.pool
    assert pool.size() == 1 and pool.checkedout() == 0
    assert site.runtime.hub.groups == 1
    # The application works on, with its one connection.
    with app.app_context():
        site.poll.publish(db.session, "orders", 1)
        db.session.commit()
    assert [poll.reply().data for poll in polls] == [[1]] * MANY
    assert pool.checkedout() == 0
    assert asked == [0] * MANY


class Watched:
    """Stands before a Hold and asks *look* as the wait begins."""

    def __init__(self, hold, look):
        self._hold = hold
        self._look = look

    def __getattr__(self, name):
        return getattr(self._hold, name)

    def __call__(self, *arguments, **options):
        self._look()
        return self._hold(*arguments, **options)


def test_when_the_wait_begins_the_contexts_are_gone(make_site, app, db):
    happened = []

    def authorize(channels):
        happened.append("authorize")
        assert flask.has_request_context()
        db.session.execute(text("SELECT 1"))
        return channels

    app.before_request(lambda: happened.append("before"))
    app.after_request(lambda response: (happened.append("after"), response)[1])
    app.teardown_request(lambda error: happened.append("teardown request"))
    app.teardown_appcontext(lambda error: happened.append("teardown app"))
    site = make_site(app=app, options={"db": db, "authorize": authorize})

    def look():
        happened.append("wait")
        assert not flask.has_request_context() and not flask.has_app_context()
        assert site.engine.pool.checkedout() == 0

    site.runtime.hold = Watched(site.runtime.hold, look)
    site.publish(1)
    del happened[:]
    assert site.get("/stream", ORDERS).data == [1]
    assert happened == ["before", "authorize", "after", "teardown request", "teardown app", "wait"]


# What the application does to the response.


@pytest.mark.parametrize(
    "query, status",
    [({}, 200), ({"cursor": "now"}, 204), ({"limit": 1}, 206), ({"cursor": "1-00000000-0-00000000"}, 410)],
)
def test_headers_of_after_request_are_kept_whatever_the_answer(make_site, app, query, status):
    @app.after_request
    def theirs(response):
        assert response.status_code == 200
        response.headers["X-Theirs"] = request.path
        response.headers["Cache-Control"] = "no-store, private"
        response.set_cookie("seen", "1")
        return response

    site = make_site(app=app)
    site.publish(1)
    site.publish(2)
    site.settle()
    reply = site.get("/stream", dict(ORDERS, **query))
    assert reply.status == status
    assert reply.headers["X-Theirs"] == "/poll/stream"
    assert reply.headers["Cache-Control"] == "no-store, private"
    assert reply.headers["Set-Cookie"].startswith("seen=1")


@pytest.mark.parametrize(
    "read", [lambda response: response.get_data(), lambda response: response.add_etag(), lambda r: r.json]
)
def test_code_that_reads_the_body_there_is_told_and_holds_nothing(make_site, app, caplog, read):
    app.after_request(lambda response: (read(response), response)[1])
    site = make_site(app=app, max_held=1)
    for _ in range(3):
        assert site.get("/stream", ORDERS).status == 500
        assert site.runtime.admission.held == 0
    assert "RuntimeError: the body of a held poll is not known yet" in caplog.text


def test_code_that_is_careful_leaves_held_polls_alone(make_site, app):
    @app.after_request
    def compress(response):
        if not getattr(response, "is_held", False):
            response.set_data(response.get_data())
        return response

    site = make_site(app=app)
    site.publish(1)
    assert site.get("/stream", ORDERS).data == [1]
    assert site.get("/cursor").status == 200


def test_a_response_that_was_put_in_its_place_holds_nothing(make_site, app):
    app.after_request(lambda response: Response("theirs", status=418))
    site = make_site(app=app, max_held=1)
    for _ in range(3):
        assert site.get("/stream", ORDERS).status == 418
        assert site.runtime.admission.held == 0


def test_a_request_that_is_refused_before_the_view_holds_nothing(make_site, app):
    app.before_request(lambda: ("theirs", 403))
    site = make_site(app=app, max_held=1)
    assert site.get("/stream", ORDERS).status == 403
    assert site.runtime.admission.held == 0


class Theirs(Response):
    """An application's response class; Flask makes all responses instances of it."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.headers["X-Theirs"] = "yes"


def test_an_applications_own_response_class_waits_too(make_site, app):
    app.response_class = Theirs
    site = make_site(app=app)
    poll = site.hold(ORDERS)
    site.publish(1)
    reply = poll.reply()
    assert reply.data == [1]
    assert reply.headers["X-Theirs"] == "yes"


def test_a_session_cookie_is_sent(make_site, app):
    app.secret_key = "a key of more than 16 characters"

    @app.before_request
    def visit():
        flask.session["visits"] = flask.session.get("visits", 0) + 1
        g.anything = object()

    site = make_site(app=app)
    reply = site.get("/stream", {"timeout": 0})
    assert (reply.status, "session=" in reply.headers["Set-Cookie"]) == (204, True)


@pytest.mark.parametrize("path", ["/stream", "/cursor", "/health/live", "/nothing/of/ours"])
def test_a_session_that_was_not_changed_leaves_our_answers_alone(make_site, app, path):
    """Flask writes the cookie of a permanent session with every response."""
    app.secret_key = "a key of more than 16 characters"

    @app.route("/login")
    def login():
        flask.session["user"] = 7
        flask.session.permanent = True
        return ""

    site = make_site(app=app)
    client = app.test_client()
    assert "session=" in client.get("/login", buffered=True).headers["Set-Cookie"]
    response = client.get("/poll" + path, query_string="timeout=0", buffered=True)
    assert ("Set-Cookie" in response.headers) == (path == "/nothing/of/ours")
    site.settle()


# What the server does with the response.


class Served:
    """One request by hand, without the validator, as a server makes it."""

    def __init__(self, site, query="channel=orders"):
        self.started = []
        environ = EnvironBuilder("/poll/stream", query_string=query).get_environ()
        self.body = Flask.wsgi_app.__get__(site.app)(environ, self._start_response)

    def _start_response(self, status, headers, exc_info=None):
        self.started.append(status)
        return lambda data: None


def test_a_response_that_nobody_iterates_gives_its_place_back(site):
    served = Served(site)
    assert site.runtime.admission.held == 1
    assert served.started == []
    served.body.close()
    assert site.runtime.admission.held == 0


def test_a_response_is_read_to_its_end_without_a_close(site):
    """As some test clients do."""
    site.publish(1)
    served = Served(site)
    body = b"".join(served.body)
    assert json.loads(body.decode())["events"][0]["data"] == 1
    assert served.started == ["200 OK"]
    assert site.runtime.admission.held == 0
    served.body.close()


def test_between_the_answer_and_the_close_the_place_is_still_taken(site):
    """A client that reads slowly costs memory: it counts until it has all of it."""
    site.publish(1)
    served = Served(site)
    assert next(iter(served.body))
    assert site.runtime.admission.held == 1
    served.body.close()


def test_middleware_that_wraps_the_body_changes_nothing(make_site, app):
    class Upper:
        def __init__(self, wsgi_app):
            self.wsgi_app = wsgi_app

        def __call__(self, environ, start_response):
            body = self.wsgi_app(environ, start_response)
            try:
                for block in body:
                    yield block
            finally:
                body.close()

    site = make_site(app=app)
    app.wsgi_app = Upper(app.wsgi_app)
    poll = site.hold(ORDERS)
    site.publish(1)
    assert poll.reply().data == [1]
