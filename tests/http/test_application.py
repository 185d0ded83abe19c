"""`LegacyPoll` in an application: how it is made, what it refuses at the start, and what it takes."""

from __future__ import annotations

import logging
import threading

import pytest
from flask import Blueprint, Flask, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import create_engine, text
from werkzeug.datastructures import ImmutableMultiDict

from legacy_poll import ConfigError, InvalidEvent, LegacyPoll
from legacy_poll.schema import upgrade
from tests.http.conftest import Held
from tests.waiting import until

ORDERS = {"channel": "orders"}


@pytest.fixture
def app():
    return Flask("application")


@pytest.fixture
def url(database_path):
    return "sqlite:///{}".format(database_path)


# What is refused at the start.


def test_a_blueprint_that_nobody_decides_about_is_refused(app, url):
    poll = LegacyPoll(app, url=url)
    with pytest.raises(ConfigError, match="who may read what.*authorize=.*public=True"):
        poll.blueprint  # noqa: B018


def test_without_a_blueprint_nobody_needs_to_decide(app, url):
    poll = LegacyPoll(app, url=url)
    engine = create_engine(url, future=True)
    with engine.begin() as connection:
        assert poll.publish(connection, "orders", 1)
    engine.dispose()


def test_authorize_and_public_at_once_are_refused(url):
    with pytest.raises(ConfigError, match="not both"):
        LegacyPoll(url=url, authorize=list, public=True)


@pytest.mark.parametrize("two", [{"url": "x", "engine": object()}, {"url": "x", "db": object()}])
def test_two_databases_are_refused(two):
    with pytest.raises(ConfigError, match="one of engine=, url= and db="):
        LegacyPoll(public=True, **two)


@pytest.mark.parametrize(
    "key, suggested",
    [
        ("LEGACY_POLL_HOLD_SECOND", "LEGACY_POLL_HOLD_SECONDS"),
        ("LEGACY_POLL_MAXHELD", "LEGACY_POLL_MAX_HELD"),
    ],
)
def test_an_unknown_setting_is_refused_with_a_suggestion(app, key, suggested):
    app.config[key] = 1
    with pytest.raises(ConfigError, match="{} is not a setting.*did you mean {}".format(key, suggested)):
        LegacyPoll(app, public=True)


@pytest.mark.parametrize(
    "key, value, rule",
    [
        ("HOLD_SECONDS", -1, "0 to 3600"),
        ("HOLD_SECONDS", "soon", "a number is needed"),
        ("HOLD_SECONDS", float("nan"), "is needed"),
        ("MAX_EVENTS", 0, "1 to 10000"),
        ("MAX_EVENTS", 1.5, "a whole number is needed"),
        ("START", "middle", "oldest or now is needed"),
        ("SECRET_KEY", "short", "at least 16"),
    ],
)
def test_a_bad_setting_is_refused_with_its_rule(app, key, value, rule):
    app.config["LEGACY_POLL_" + key] = value
    with pytest.raises(ConfigError, match=rule):
        LegacyPoll(app, public=True)


def test_before_init_app_it_says_what_is_missing(app):
    poll = LegacyPoll(public=True)
    for use in (poll.cursor, poll.upgrade, lambda: poll.settings):
        with pytest.raises(ConfigError, match=r"call init_app\(app\) first"):
            use()


def test_two_of_the_same_name_in_one_application_are_refused(app, url):
    LegacyPoll(app, url=url)
    with pytest.raises(ConfigError, match="a LegacyPoll named 'legacy_poll' already: give one a name="):
        LegacyPoll(app, url=url)


@pytest.mark.parametrize(
    "options, says",
    [({}, "no database: give LegacyPoll"), ({"url": "sqlite://"}, "in memory belongs to one connection")],
)
def test_a_database_that_cannot_be_used_is_an_error_that_says_so(app, caplog, options, says):
    poll = LegacyPoll(app, public=True, **options)
    app.register_blueprint(poll.blueprint)
    response = app.test_client().get("/stream")
    assert response.status_code == 500
    assert says in caplog.text
    assert says.encode() not in response.data


# When things start.


def test_nothing_starts_before_the_first_poll(make_site, database_path):
    """A server may fork any number of times before that."""
    site = make_site()
    site.publish(1)
    with site.app.app_context():
        site.poll.upgrade()
    assert site._state._runtime is None
    names = {thread.name for thread in threading.enumerate()}
    assert not [name for name in names if name.startswith("legacy_poll")]
    assert site.get("/stream", ORDERS).data == [1]
    assert "legacy_poll publisher" in {thread.name for thread in threading.enumerate()}


def test_two_first_requests_start_one_publisher(make_site):
    site = make_site()
    both = [site.ask("/stream", {"timeout": 0}) for _ in range(8)]
    for each in both:
        each.reply()
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("legacy_poll publisher") == 1


# Which database.


@pytest.mark.parametrize("how", ["url", "engine", "config", "db", "found"])
def test_the_database_may_be_named_in_many_ways(make_site, app, url, how):
    options, settings = {}, {}
    if how in ("db", "found"):
        app.config["SQLALCHEMY_DATABASE_URI"] = url
        app.config["SQLALCHEMY_TRACK_MODIFICATIONS"] = False
        db = SQLAlchemy(app)
        options = {"db": db if how == "db" else None}
    elif how == "config":
        options, settings = {"url": None}, {"database_url": url}
    else:
        options = {how: url if how == "url" else create_engine(url, future=True)}
    site = make_site(app=app, options=options, **settings)
    poll = site.hold(ORDERS)
    site.publish(1)
    assert poll.reply().data == [1]


def test_flask_sqlalchemys_session_publishes_in_its_own_transaction(make_site, app, url):
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    app.config["SQLALCHEMY_TRACK_MODIFICATIONS"] = False
    db = SQLAlchemy(app)
    site = make_site(app=app, options={"db": db})
    with app.app_context():
        site.poll.publish(db.session, "orders", "rolled back")
        db.session.rollback()
        site.poll.publish(db.session, "orders", "first")
        savepoint = db.session.begin_nested()
        site.poll.publish(db.session, "orders", "undone")
        savepoint.rollback()
        with db.session.begin_nested():
            site.poll.publish(db.session, "orders", "second")
        db.session.commit()
        db.session.remove()
    assert site.collect(2, ORDERS) == ["first", "second"]


def test_a_bad_event_is_refused_where_it_is_published(site):
    for channel, data in (("no way", 1), ("orders", float("nan")), ("orders", {1, 2}), ("$ours", 1)):
        with pytest.raises(InvalidEvent):
            site.publish(data, channel=channel)
    site.publish("fine")
    assert site.collect(1, ORDERS) == ["fine"]


def test_a_commit_wakes_the_publisher_of_this_process(make_site):
    """The interval is a minute: only the hint can bring it."""
    site = make_site(poll_interval_seconds=60)
    site.settle()
    poll = site.hold(ORDERS)
    site.publish(1)
    assert poll.reply().data == [1]


# Channels that the application names.


@pytest.mark.parametrize(
    "channels, expected",
    [
        (["a", "b"], ["a", "b"]),
        (("a",), ["a"]),
        (iter(["a", "b"]), ["a", "b"]),
        (lambda: ["b"], ["b"]),
        (lambda: {"a": 1}, ["a"]),
        (lambda: None, ["default"]),
        (None, ["default"]),
    ],
)
def test_a_poll_that_names_no_channel_is_on_those_of_the_application(make_site, channels, expected):
    site = make_site(options={"channels": channels})
    for name in ("a", "b", "default"):
        site.publish(name, channel=name)
    site.settle()
    for _ in range(2):
        assert site.get("/stream").data == expected
    assert site.get("/stream", {"channel": "b"}).data == ["b"]


def test_an_application_may_put_other_arguments_in_the_place_of_the_querys(make_site, app):
    @app.before_request
    def give_the_tenants_channel():
        if "X-Tenant" in request.headers:
            request.args = ImmutableMultiDict({**request.args, "channel": request.headers["X-Tenant"]})

    site = make_site(app=app)
    for channel in ("default", "one", "two"):
        site.publish(channel, channel)
    for tenant in ("one", "two", None, "one", None):
        headers = {} if tenant is None else {"X-Tenant": tenant}
        assert site.get("/stream", "timeout=0", headers=headers).data == [tenant or "default"]


def test_the_applications_channels_are_authorised_like_any(make_site):
    site = make_site(options={"channels": ["a", "b"], "authorize": lambda channels: ["a"]})
    assert site.get("/stream").message == "not allowed to read: b"


@pytest.mark.parametrize("channels", ["orders", ["no way"], [""], [7], ["$ours"]])
def test_bad_channels_are_refused_at_the_start(channels):
    with pytest.raises(ConfigError, match="channels="):
        LegacyPoll(public=True, channels=channels)


@pytest.mark.parametrize("channels", ["orders", ["no way"], [7], ["$ours"]])
def test_bad_channels_of_a_function_are_an_error_of_the_application(make_site, caplog, channels):
    """The client did nothing wrong, and is told nothing."""
    site = make_site(options={"channels": lambda: channels})
    assert site.get("/stream").status == 500
    assert "channels=" in caplog.text


def test_a_request_for_which_there_is_no_channel_is_403(make_site):
    site = make_site(options={"channels": lambda: []})
    reply = site.get("/stream")
    assert (reply.status, reply.code) == (403, "forbidden")
    assert site.get("/stream", {"channel": "a", "timeout": 0}).status == 204


# More than one.


def test_two_logs_in_one_application(make_site, app, tmp_path):
    url = "sqlite:///{}".format(tmp_path / "second.db")
    engine = create_engine(url)
    upgrade(engine)
    engine.dispose()
    first = make_site(app=app, prefix="/one", options={"name": "one"})
    second = make_site(app=app, prefix="/two", options={"name": "two", "url": url})
    polls = [first.hold(ORDERS), second.hold(ORDERS)]
    first.publish("first")
    second.publish("second")
    replies = [poll.reply() for poll in polls]
    assert [reply.data for reply in replies] == [["first"], ["second"]]
    reply = second.get("/stream", dict(ORDERS, cursor=replies[0].cursor))
    assert (reply.status, reply.code) == (410, "cursor_unknown")


def test_two_logs_in_one_application_have_a_description_each(make_site, app, tmp_path):
    make_site(app=app, prefix="/poll")
    others = "sqlite:///{}".format(tmp_path / "second.db")
    make_site(app=app, prefix="/second", options={"url": others, "name": "second"})
    client = app.test_client()
    answers = [client.get(prefix + "/openapi.yaml", buffered=True) for prefix in ("/poll", "/second")]
    assert answers[0].data == answers[1].data != b""
    for answer in answers:
        assert answer.headers["Content-Type"] == "application/yaml"
        assert answer.headers["Cache-Control"] == "no-store"
        assert b"  - url: .\n" in answer.data


def test_one_legacy_poll_in_two_applications(url):
    """As with application factories in tests: each has its own settings and its own publisher."""
    poll = LegacyPoll(url=url, public=True)
    replies = []
    for number in range(2):
        app = Flask("application-{}".format(number))
        app.config.update({"LEGACY_POLL_MAX_EVENTS": 1 + number, "LEGACY_POLL_WAKEUP_DIRECTORY": "off"})
        poll.init_app(app)
        app.register_blueprint(poll.blueprint, url_prefix="/poll")
        with app.app_context():
            assert poll.settings.max_events == 1 + number
            with poll._state.engine().begin() as connection:
                for _ in range(2):
                    poll.publish(connection, "orders", number)
            poll.runtime.start()
            until(lambda expected=2 + 2 * number: poll.runtime.hub.remembered == expected)
        replies.append(app.test_client().get("/poll/stream?channel=orders", buffered=True))
        with app.app_context():
            poll.runtime.stop()
            poll._state.engine().dispose()
    assert [len(reply.get_json()["events"]) for reply in replies] == [1, 2]


def test_a_blueprint_inside_a_blueprint(app, url):
    outer = Blueprint("outer", __name__)
    poll = LegacyPoll(url=url, public=True)
    app.config["LEGACY_POLL_WAKEUP_DIRECTORY"] = "off"
    poll.init_app(app)
    outer.register_blueprint(poll.blueprint, url_prefix="/poll")
    app.register_blueprint(outer, url_prefix="/shop")
    client = app.test_client()
    assert client.get("/shop/poll/stream?timeout=0", buffered=True).status_code == 204
    assert client.post("/shop/poll/stream", buffered=True).status_code == 405
    with app.app_context():
        assert poll.runtime.admission.held == 0
        poll.runtime.stop()
        poll._state.engine().dispose()


# The database's tables, tokens.


def test_upgrade_makes_the_tables_and_may_be_called_again(app, tmp_path):
    url = "sqlite:///{}".format(tmp_path / "new.db")
    poll = LegacyPoll(app, url=url)
    for _ in range(2):
        with app.app_context():
            poll.upgrade()
    engine = create_engine(url)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT head FROM legacy_poll_log")).scalar() == 0
    engine.dispose()


def test_tokens_need_a_key(app, url):
    poll = LegacyPoll(app, url=url)
    with app.app_context():
        with pytest.raises(ConfigError, match="LEGACY_POLL_SECRET_KEY is not set"):
            poll.token(["orders"])
        app.secret_key = "the application's own key"
        assert poll.token(["orders"])


# In a test suite of the application's own.


def test_the_publisher_runs_in_a_thread_where_nothing_is_patched(site):
    poll = site.hold(ORDERS)
    assert type(site.runtime.publisher._thread) is threading.Thread
    site.publish(1)
    assert poll.reply().data == [1]


def test_a_client_that_never_closes_its_responses_does_not_fill_the_places(make_site):
    site = make_site(max_held=2)
    client = site.app.test_client()
    kept = []
    for _ in range(5):
        kept.append(client.get("/poll/stream?timeout=1"))
        assert kept[-1].status_code == 204
    site.publish(1)
    for _ in range(5):
        kept.append(client.get("/poll/stream?channel=orders"))
        assert kept[-1].get_json()["events"][0]["data"] == 1
    for response in kept:
        response.close()


def test_the_log_says_nothing_when_nothing_is_wrong(site, caplog):
    caplog.set_level(logging.INFO, logger="legacy_poll")
    site.publish(1)
    assert site.collect(1, ORDERS) == [1]
    Held(lambda: site.get("/stream", {"timeout": 1})).reply()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("where", [None, "orders", object()])
def test_publishing_on_what_has_no_transaction_says_what_is_needed(site, where):
    with pytest.raises(TypeError, match="such as db.session, or a Connection, not "):
        site.poll.publish(where, "orders", 1)
