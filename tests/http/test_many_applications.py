"""Several applications, and several logs, in one process: each has its own, and events never cross."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
from flask import Flask
from flask.cli import FlaskGroup
from sqlalchemy import create_engine
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

from legacy_poll import LegacyPoll
from legacy_poll.schema import upgrade

ROOT = Path(__file__).resolve().parents[2]
PUBLISHERS = "legacy_poll publisher"


@pytest.fixture
def make_url(tmp_path):
    """Makes empty logs of this test's own."""

    def make(name):
        url = "sqlite:///{}".format(tmp_path / (name + ".db"))
        engine = create_engine(url, future=True)
        upgrade(engine)
        engine.dispose()
        return url

    return make


def application(**settings):
    app = Flask("application")
    app.config.update({"LEGACY_POLL_" + name: value for name, value in settings.items()})
    app.config["LEGACY_POLL_WAKEUP_DIRECTORY"] = "off"
    return app


def publish(app, poll, data):
    with app.app_context(), poll._state.engine().begin() as connection:
        poll.publish(connection, "orders", data)


def ask(client, path="/poll", **query):
    query.setdefault("timeout", 0)
    answer = client.get(path + "/stream", query_string=dict(query, channel="orders"))
    assert answer.status_code in (200, 204), answer.data
    found = json.loads(answer.data)["events"] if answer.data else []
    return [event["data"] for event in found], answer.headers["Legacy-Poll-Cursor"]


def publishers():
    return [thread for thread in threading.enumerate() if thread.name == PUBLISHERS]


def test_two_applications_under_one_dispatcher_have_a_log_each(make_url):
    made = {}
    for name in ("shop", "blog"):
        app = application()
        poll = LegacyPoll(app, url=make_url(name), public=True)
        app.register_blueprint(poll.blueprint, url_prefix="/poll")
        made[name] = app, poll
    whole = DispatcherMiddleware(made["shop"][0].wsgi_app, {"/blog": made["blog"][0].wsgi_app})
    client = Client(whole)
    for name, path in (("shop", "/poll"), ("blog", "/blog/poll")):
        publish(*made[name], name)
        assert ask(client, path)[0] == [name]
    _, cursor = ask(client, "/poll")
    # A cursor of one is nothing to the other, and says so.
    assert client.get("/blog/poll/stream?channel=orders&timeout=0&cursor=" + cursor).status_code == 410
    # Held in both at once: each is ended by its own.
    answers = {}
    cursors = {path: ask(client, path)[1] for path in ("/poll", "/blog/poll")}

    def hold(path):
        answers[path] = ask(Client(whole), path, cursor=cursors[path], timeout=20000)[0]

    held = [threading.Thread(target=hold, args=(path,)) for path in cursors]
    for thread in held:
        thread.start()
    for name in made:
        publish(*made[name], name + " again")
    for thread in held:
        thread.join(30)
    assert answers == {"/poll": ["shop again"], "/blog/poll": ["blog again"]}
    for app, poll in made.values():
        with app.app_context():
            poll.stop()
    assert publishers() == []


def test_two_logs_in_one_application_each_have_their_own_events_and_commands(make_url, tmp_path):
    app = application()
    polls = {}
    for name in ("orders", "chat"):
        polls[name] = LegacyPoll(app, url="sqlite:///%s" % (tmp_path / name), public=True, name=name)
        app.register_blueprint(polls[name].blueprint, url_prefix="/" + name)
    group = FlaskGroup(create_app=lambda: app)

    def command(*arguments):
        return app.test_cli_runner().invoke(cli=group, args=["legacy-poll"] + list(arguments))

    # Not the first of them in silence.
    done = command("upgrade")
    assert (done.exit_code, "several logs; --name is one of: chat, orders" in done.output) == (1, True)
    done = command("--name", "pager", "upgrade")
    assert (done.exit_code, "no log named 'pager'" in done.output) == (1, True)
    for name in polls:
        assert command("--name", name, "upgrade").exit_code == 0
        assert command("--name", name, "publish", "orders", json.dumps(name)).exit_code == 0
    client = app.test_client()
    for name in polls:
        assert ask(client, "/" + name)[0] == [name]
        publish(app, polls[name], "more")
        assert ask(client, "/" + name)[0] == [name, "more"]
    for poll in polls.values():
        with app.app_context():
            poll.stop()


def test_one_legacy_poll_for_every_application_of_a_factory(make_url):
    """The module has one, the factory is called again and again, with a database each."""
    poll = LegacyPoll(public=True)
    apps = []
    for name in ("first", "second", "third"):
        app = application(DATABASE_URL=make_url(name))
        poll.init_app(app)
        app.register_blueprint(poll.blueprint, url_prefix="/poll")
        apps.append(app)
    for number, app in enumerate(apps):
        publish(app, poll, number)
    for number, app in enumerate(apps):
        assert ask(app.test_client())[0] == [number]
    assert len(publishers()) == 3
    # A commit wakes the publisher of its application, whichever was joined last.
    for app in apps:
        with app.app_context():
            woken = []
            poll.runtime.publisher.wake = lambda to=woken: to.append(1)
            publish(app, poll, "more")
            assert woken
            del poll.runtime.publisher.wake
    for app in apps:
        with app.app_context():
            poll.stop()
    assert publishers() == []


def test_a_factory_with_a_legacy_poll_each_on_one_database(make_url):
    url, clients, all_of = make_url("shared"), [], []
    for _ in range(2):
        app = application()
        poll = LegacyPoll(app, url=url, public=True)
        app.register_blueprint(poll.blueprint, url_prefix="/poll")
        clients.append(app.test_client())
        all_of.append((app, poll))
    publish(*all_of[0], "for both")
    assert [ask(client)[0] for client in clients] == [["for both"]] * 2
    for app, poll in all_of:
        with app.app_context():
            poll.stop()


def test_an_application_that_nobody_keeps_goes_though_its_legacy_poll_stays(make_url):
    poll = LegacyPoll(public=True)
    gone = application(DATABASE_URL=make_url("gone"))
    poll.init_app(gone)
    publish(gone, poll, 1)
    with gone.app_context():
        poll.stop()
    reference = weakref.ref(gone)
    last = application(DATABASE_URL=make_url("last"))
    poll.init_app(last)
    del gone
    gc.collect()
    assert reference() is None
    with last.app_context():
        assert poll.cursor()
        poll.stop()


def test_stop_ends_everything_and_the_next_poll_starts_anew(make_site):
    site = make_site()
    site.publish(1)
    poll = site.hold({"channel": "users"})
    old = site.runtime
    with site.app.app_context():
        site.poll.stop()
    assert poll.reply().status == 204
    assert not old.publisher._thread.is_alive()
    assert site.get("/stream", {"channel": "orders"}).data == [1]
    assert site.runtime is not old
    held = site.hold({"channel": "users"})
    site.publish(2, channel="users")
    assert held.reply().data == [2]


# A user's own tests, as docs/flask.md has them: no server, nothing patched, and an end.

SUITE = """
import unittest

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from legacy_poll import LegacyPoll

db = SQLAlchemy()
poll = LegacyPoll(db=db, public=True)


def create_app(url):
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    app.config["SQLALCHEMY_TRACK_MODIFICATIONS"] = False
    db.init_app(app)
    poll.init_app(app)
    app.register_blueprint(poll.blueprint, url_prefix="/poll")

    @app.route("/orders", methods=["POST"])
    def place():
        poll.publish(db.session, "orders", {"item": "tea"})
        db.session.commit()
        return "placed"

    return app


class Orders(unittest.TestCase):
    def setUp(self):
        self.app = create_app("sqlite:///test%d.db" % id(self))
        with self.app.app_context():
            poll.upgrade()
        self.client = self.app.test_client()

    def test_what_was_published_is_there(self):
        cursor = self.client.get("/poll/cursor").get_json()["cursor"]
        self.assertEqual(self.client.get("/poll/stream?channel=orders&timeout=0&cursor=" + cursor).status_code, 204)
        self.client.post("/orders")
        told = self.client.get("/poll/stream?channel=orders&timeout=20000&cursor=" + cursor).get_json()
        self.assertEqual([event["data"] for event in told["events"]], [{"item": "tea"}])

    def test_from_the_beginning(self):
        self.client.post("/orders")
        told = self.client.get("/poll/stream?channel=orders&timeout=0").get_json()
        self.assertEqual(len(told["events"]), 1)


unittest.main()
"""


def test_a_users_test_suite_needs_no_server_and_ends(tmp_path):
    """Without stop(): publishers run when the interpreter ends."""
    (tmp_path / "suite.py").write_text(SUITE)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "suite.py"],
        cwd=str(tmp_path),
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.strip().endswith("OK") and "legacy_poll" not in done.stdout, done.stdout
