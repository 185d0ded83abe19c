"""The server by itself: `create_app()` from environment variables, the wire at the root."""

from __future__ import annotations

import os

import pytest

from legacy_poll import ConfigError
from legacy_poll.server import create_app
from tests.http.conftest import Site

KEY = "a key of more than 16 characters"


@pytest.fixture
def make_server(make_site, tmp_path):
    """Makes servers; variables without their prefix."""

    def make(**variables):
        settings = dict(
            {"database_url": "sqlite:///{}".format(tmp_path / "server.db"), "wakeup_directory": "off"},
            **variables,
        )
        environ = {"LEGACY_POLL_" + name.upper(): value for name, value in settings.items()}
        app = create_app(dict(environ, PATH="/bin", LEGACY="x"))
        site = Site(app, app.extensions["legacy_poll"]["legacy_poll"]._poll, prefix="")
        make_site.made.append(site)
        return site

    return make


def test_it_makes_its_own_tables_on_sqlite_and_serves_at_the_root(make_server):
    server = make_server(public="1", publish_token="secret")
    poll = server.hold({"channel": "orders"})
    assert server.post("/publish", {"channel": "orders", "data": 1}, token="secret").status == 201
    assert poll.reply().data == [1]
    assert server.get("/cursor").status == 200
    for path in ("/health", "/health/live", "/health/ready"):
        assert server.get(path).status == 200


def test_its_default_database_is_a_file_where_it_was_started(make_server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    app = create_app({"LEGACY_POLL_PUBLIC": "1", "LEGACY_POLL_WAKEUP_DIRECTORY": "off"})
    assert app is not None
    assert os.path.exists(str(tmp_path / "legacy_poll.db"))


def test_started_again_it_goes_on_with_the_same_log(make_server):
    first = make_server(public="1")
    first.publish(1)
    cursor = first.get("/stream", {"channel": "orders"}).cursor
    first.publish(2)
    assert make_server(public="1").get("/stream", {"channel": "orders", "cursor": cursor}).data == [2]


def test_neither_public_nor_with_a_key_it_does_not_start(make_server):
    with pytest.raises(ConfigError, match="LEGACY_POLL_SECRET_KEY.*LEGACY_POLL_PUBLIC=1"):
        make_server()


def test_public_means_without_a_token_and_a_key_means_with_one(make_server):
    assert make_server(public="1").get("/stream", {"timeout": 0}).status == 204
    assert make_server(secret_key=KEY).get("/stream", {"timeout": 0}).status == 401


@pytest.mark.parametrize(
    "variables, says",
    [
        (
            {"hold_second": "5"},
            "LEGACY_POLL_HOLD_SECOND is not a setting.*did you mean LEGACY_POLL_HOLD_SECONDS",
        ),
        ({"hold_seconds": "soon"}, "LEGACY_POLL_HOLD_SECONDS is 'soon': a number is needed"),
        ({"max_events": "0"}, "LEGACY_POLL_MAX_EVENTS is '0'"),
        ({"public": "maybe"}, "LEGACY_POLL_PUBLIC is 'maybe': 1 or 0 is needed"),
        ({"database_url": "sqlite://"}, "in memory belongs to one connection"),
    ],
)
def test_a_bad_variable_ends_the_start_and_says_which(make_server, variables, says):
    with pytest.raises(ConfigError, match=says):
        make_server(**dict({"public": "1"}, **variables))


@pytest.mark.parametrize("variables", [{"hold_seconds": "0.01"}, {"hold_seconds": "0"}])
def test_settings_come_from_the_variables(make_server, variables):
    assert make_server(public="1", **variables).get("/stream").status == 204


# What is not there, in the wire's own shape.


@pytest.mark.parametrize("path", ["/", "/nothing", "/stream/x", "/static/x", "/%00"])
def test_what_is_not_there_is_404_in_our_shape(make_server, path):
    reply = make_server(public="1").get(path)
    assert (reply.status, reply.code) == (404, "not_found")
    assert reply.headers["Cache-Control"] == "no-store"


def test_a_method_that_the_router_refuses_is_405_in_our_shape(make_server):
    reply = make_server(public="1").open("TRACE", "/cursor")
    assert (reply.status, reply.code) == (405, "method_not_allowed")
    assert "GET" in reply.headers["Allow"]
