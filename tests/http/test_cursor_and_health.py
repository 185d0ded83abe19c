"""GET /cursor, and what a balancer asks: /health/live, /health/ready."""

from __future__ import annotations

import os

import pytest
from flask import Flask, render_template_string
from sqlalchemy import create_engine

from legacy_poll import LegacyPoll
from legacy_poll.cursors import Cursor
from legacy_poll.schema import upgrade
from tests.http.conftest import Site
from tests.waiting import until


def position(reply):
    return Cursor.parse(reply.json["cursor"]).position


def test_cursor_is_the_head(site):
    reply = site.get("/cursor")
    assert reply.status == 200
    assert reply.json == {"cursor": reply.cursor}
    assert reply.headers["Cache-Control"] == "no-store"
    assert position(reply) == 0
    site.publish(1)
    assert position(site.get("/cursor")) == 1


def test_cursor_is_not_older_than_what_another_worker_answered(make_site):
    """This worker has not looked yet, and will not for a minute."""
    quick, slow = make_site(), make_site(poll_interval_seconds=60)
    slow.settle()
    for number in range(5):
        quick.publish(number)
        seen = quick.collect(number + 1, {"channel": "orders"})
        assert position(slow.get("/cursor")) >= len(seen)
        assert Cursor.parse(slow.get("/stream", {"cursor": "now"}).cursor).position >= len(seen)


def test_a_page_with_its_cursor_misses_nothing(make_site):
    """The template reads the cursor, then its data; what commits in between comes by the poll."""
    app = Flask("application")
    site = make_site(app=app)

    @app.route("/page")
    def page():
        cursor = site.poll.cursor()
        site.publish("between")
        return render_template_string("{{ cursor }}", cursor=cursor)

    site.publish("before")
    site.prefix = ""
    cursor = site.get("/page").body.decode()
    site.prefix = "/poll"
    site.publish("after")
    assert site.collect(2, {"channel": "orders", "cursor": cursor}) == ["between", "after"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize("path", ["/cursor", "/health", "/health/live", "/health/ready"])
def test_they_take_get_and_head(site, path, method):
    reply = site.open(method, path)
    assert (reply.status, reply.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")
    assert site.open("OPTIONS", path).headers["Allow"] == "GET, HEAD, OPTIONS"


@pytest.mark.parametrize("path", ["/cursor", "/health/live"])
def test_head_is_get_without_a_body(site, path):
    reply = site.open("HEAD", path)
    assert (reply.status, reply.body) == (200, b"")


# Health.


def test_live_is_live_whatever_the_database(make_site):
    site = make_site(options={"url": "sqlite:////nonexistent/folder/log.db"})
    reply = site.get("/health/live")
    assert (reply.status, reply.json) == (200, {"status": "live"})
    assert reply.headers["Cache-Control"] == "no-store"


def not_ready(reply, code):
    assert (reply.status, reply.code) == (503, code)
    assert 1 <= int(reply.headers["Retry-After"]) <= 5
    return True


@pytest.mark.parametrize("path", ["/health", "/health/ready"])
def test_ready_is_ready_once_the_log_was_read(make_site, monkeypatch, path):
    site = make_site()
    monkeypatch.setattr(site.runtime.publisher, "start", lambda: None)
    not_ready(site.get(path), "starting")
    monkeypatch.undo()
    site.runtime.publisher.start()
    site.settle()
    reply = site.get(path)
    assert (reply.status, reply.json) == (200, {"status": "ready"})


@pytest.fixture
def make_bare_site(tmp_path):
    """Makes a site over a database file that nobody made tables in."""
    made = []

    def make(path="bare.db", **settings):
        app = Flask("application")
        for name, value in dict({"wakeup_directory": "off"}, **settings).items():
            app.config["LEGACY_POLL_" + name.upper()] = value
        poll = LegacyPoll(app, url="sqlite:///{}".format(tmp_path / path), public=True)
        app.register_blueprint(poll.blueprint, url_prefix="/poll")
        made.append(Site(app, poll))
        return made[-1]

    yield make
    for site in made:
        site.close()


def test_without_tables_it_is_not_ready_and_says_what_to_do(make_bare_site, caplog):
    site = make_bare_site()
    site.runtime.start()
    until(lambda: site.runtime.publisher.failure)
    not_ready(site.get("/health/ready"), "schema_missing")
    assert "run: legacy-poll upgrade" in caplog.text
    for path in ("/stream", "/cursor"):
        not_ready(site.get(path), "schema_missing")
    with site.app.app_context():
        site.poll.upgrade()
    site.runtime.publisher.wake()
    until(lambda: site.get("/health/ready").status == 200)
    assert site.get("/stream", {"timeout": 0}).status == 204


@pytest.mark.parametrize(
    "version, code", [("1_0000", "schema_missing"), ("2_0001", "schema_mismatch"), ("1_9999", None)]
)
def test_tables_of_another_version(make_bare_site, caplog, version, code):
    site = make_bare_site()
    upgrade(site.engine)
    with site.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE legacy_poll_version SET version_num = '{}'".format(version))
    site.runtime.start()
    publisher = site.runtime.publisher
    until(lambda: publisher.failure or publisher.live)
    if code is None:
        # Newer, of the same line: made to work with this code.
        assert site.get("/health/ready").status == 200
        assert "newer than this code" in caplog.text
    else:
        not_ready(site.get("/health/ready"), code)
        assert version in caplog.text


def test_a_database_that_is_down_at_start(make_bare_site, tmp_path):
    """Its folder is not there yet: so no file can be made in it."""
    site = make_bare_site("later/log.db")
    not_ready(site.get("/stream", {"timeout": 0}), "storage_unavailable")
    until(lambda: site.runtime.publisher.failure)
    not_ready(site.get("/health/ready"), "storage_unavailable")
    not_ready(site.get("/cursor"), "storage_unavailable")
    os.mkdir(str(tmp_path / "later"))
    engine = create_engine("sqlite:///{}".format(tmp_path / "later" / "log.db"))
    upgrade(engine)
    engine.dispose()
    site.runtime.publisher.wake()
    until(lambda: site.get("/health/ready").status == 200)
    site.publish(1)
    assert site.collect(1, {"channel": "orders"}) == [1]


def test_a_database_that_goes_away_and_comes_back_costs_held_polls_nothing_but_time(
    make_site, database_path, caplog
):
    site = make_site()
    site.settle()
    poll = site.hold({"channel": "orders"})
    folder = os.path.dirname(database_path)
    os.rename(folder, folder + "-away")
    until(lambda: site.runtime.publisher.failure)
    not_ready(site.get("/health/ready"), "storage_unavailable")
    not_ready(site.get("/cursor"), "storage_unavailable")
    # A cursor that memory knows is served, and held, as if nothing were.
    known = str(site.runtime.hub.cursor)
    assert site.get("/stream", {"channel": "orders", "cursor": known, "timeout": 1}).status == 204
    assert not poll.over
    os.rename(folder + "-away", folder)
    site.publish(1)
    assert poll.reply().data == [1]
    until(lambda: site.get("/health/ready").status == 200)
    told = [record.getMessage() for record in caplog.records if record.name == "legacy_poll"]
    assert len(told) == 2 and told[1] == "legacy_poll: the database works again"


def test_what_is_wrong_with_the_database_is_for_the_log_and_not_for_clients(make_site):
    site = make_site(options={"url": "sqlite:////nonexistent/folder/log.db"})
    until(lambda: site.get("/health/ready").code == "storage_unavailable")
    for path in ("/stream", "/cursor", "/health/ready"):
        assert b"nonexistent" not in site.get(path).body
        assert b"sqlite" not in site.get(path).body.lower()
        assert b"unable to open" not in site.get(path).body
