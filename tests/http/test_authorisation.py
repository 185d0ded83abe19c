"""Who may read what: `authorize=` in the request's own context, and channel tokens outside of an application."""

from __future__ import annotations

import base64
import json

import pytest
from flask import Flask, abort, g, redirect, request, session

from legacy_poll.errors import StorageUnavailable
from legacy_poll.server import create_app
from legacy_poll.tokens import Tokens
from tests.http.conftest import Site

KEY = "a key of more than 16 characters"
NOW = {"timeout": 0}


def with_authorize(make_site, authorize, **settings):
    return make_site(options={"authorize": authorize}, **settings)


# authorize=.


def test_authorize_is_asked_about_the_channels_of_the_poll(make_site):
    asked = []

    def authorize(channels):
        asked.append(channels)
        return channels

    site = with_authorize(make_site, authorize)
    site.get("/stream", {"channels": "a,b", "channel": "a", "timeout": 0})
    site.get("/stream", NOW)
    site.get("/cursor", {"channel": "c"})
    assert asked == [frozenset("ab"), frozenset(["default"]), frozenset("c")]


def test_authorize_runs_in_the_requests_context(make_site):
    app = Flask("application")
    app.secret_key = KEY

    @app.before_request
    def load_user():
        g.user = request.headers.get("X-User")

    def authorize(channels):
        session["seen"] = True
        return ["user:" + g.user]

    site = make_site(app=app, options={"authorize": authorize})
    reply = site.get("/stream", {"channel": "user:7", "timeout": 0}, headers={"X-User": "7"})
    assert reply.status == 204
    assert "session=" in reply.headers["Set-Cookie"]
    assert site.get("/stream", {"channel": "user:7"}, headers={"X-User": "8"}).status == 403


@pytest.mark.parametrize("path", ["/stream", "/cursor"])
def test_what_is_asked_for_beyond_what_is_allowed_is_named_and_nothing_is_served(make_site, path):
    site = with_authorize(make_site, lambda channels: [name for name in channels if name.startswith("a")])
    site.publish(1, channel="a1")
    reply = site.get(path, {"channels": "a1,b2,b1"})
    assert (reply.status, reply.code) == (403, "forbidden")
    assert reply.message == "not allowed to read: b1, b2"
    assert "Legacy-Poll-Cursor" not in reply.headers


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset, iter, dict.fromkeys])
def test_authorize_may_return_any_iterable_and_more_than_was_asked_for(make_site, kind):
    site = with_authorize(make_site, lambda channels: kind(["orders", "others"]))
    assert site.get("/stream", {"channel": "orders", "timeout": 0}).status == 204


@pytest.mark.parametrize("status, code", [(401, "unauthorized"), (403, "forbidden"), (404, "not_found")])
@pytest.mark.parametrize("path", ["/stream", "/cursor"])
def test_authorize_may_abort(make_site, path, status, code):
    site = with_authorize(make_site, lambda channels: abort(status, "ask the sales team"))
    reply = site.get(path)
    assert (reply.status, reply.code, reply.message) == (status, code, "ask the sales team")
    assert reply.headers["Cache-Control"] == "no-store"


def test_an_abort_keeps_its_headers(make_site):
    from werkzeug.datastructures import WWWAuthenticate
    from werkzeug.exceptions import Unauthorized

    def authorize(channels):
        raise Unauthorized("log in", www_authenticate=WWWAuthenticate("basic", {"realm": "shop"}))

    reply = with_authorize(make_site, authorize).get("/stream")
    assert (reply.status, reply.code) == (401, "unauthorized")
    assert reply.headers["WWW-Authenticate"].lower().startswith("basic realm=")


def test_authorize_may_redirect(make_site):
    site = with_authorize(make_site, lambda channels: abort(redirect("/login")))
    reply = site.get("/stream")
    assert reply.status == 302
    assert reply.headers["Location"].endswith("/login")


def test_a_database_that_is_down_while_authorize_asks_is_503(make_site):
    def authorize(channels):
        raise StorageUnavailable("the users' database, with its password")

    reply = with_authorize(make_site, authorize).get("/stream")
    assert (reply.status, reply.code) == (503, "storage_unavailable")
    assert "password" not in reply.message


@pytest.mark.parametrize("returned", [None, True, False, "orders"])
def test_authorize_that_returns_no_channels_is_an_error_that_says_so(make_site, caplog, returned):
    site = with_authorize(make_site, lambda channels: returned)
    reply = site.get("/stream", {"channel": "orders"})
    assert reply.status == 500
    assert "authorize returned {!r}: it must return the channels".format(returned) in caplog.text


def test_authorize_that_fails_is_an_error_of_the_application(make_site, caplog):
    def authorize(channels):
        raise ZeroDivisionError("theirs")

    assert with_authorize(make_site, authorize).get("/stream").status == 500
    assert "theirs" in caplog.text


@pytest.mark.parametrize(
    "authorize",
    [
        lambda channels: abort(403),
        lambda channels: abort(redirect("/")),
        lambda channels: 1 / 0,
        lambda c: [],
    ],
)
def test_a_refusal_gives_the_place_back(make_site, authorize):
    site = with_authorize(make_site, authorize, max_held=1)
    for _ in range(3):
        assert site.get("/stream", {"channel": "orders"}).status != 503
    assert site.runtime.admission.held == 0


def test_a_token_means_nothing_where_authorize_decides(make_site):
    site = with_authorize(make_site, lambda channels: channels)
    assert site.get("/stream", dict(NOW, token="whatever")).status == 204


# Channel tokens, at the server by itself.


@pytest.fixture
def server(database_path, make_site):
    """The server by itself, with a key."""
    app = create_app(
        {
            "LEGACY_POLL_DATABASE_URL": "sqlite:///{}".format(database_path),
            "LEGACY_POLL_SECRET_KEY": KEY,
            "LEGACY_POLL_WAKEUP_DIRECTORY": "off",
        }
    )
    site = Site(app, app.extensions["legacy_poll"]["legacy_poll"]._poll, prefix="")
    make_site.made.append(site)
    return site


def token(*channels, expires=3600, key=KEY):
    return Tokens(key).make(channels, expires_seconds=expires)


def bearer(text, scheme="Bearer"):
    return {"Authorization": "{} {}".format(scheme, text)}


@pytest.mark.parametrize("path", ["/stream", "/cursor"])
@pytest.mark.parametrize(
    "query, headers",
    [
        ({}, {}),
        ({"token": ""}, {}),
        ({"token": "nonsense"}, {}),
        ({"token": "\x00\u00fc"}, {}),
        ({}, {"Authorization": "Bearer"}),
        ({}, bearer("nonsense")),
        ({}, bearer(token("orders"), scheme="Basic")),
        ({"token": token("orders", key="another key, of 16 and more")}, {}),
        ({"token": token("orders", expires=-1)}, {}),
    ],
    ids=[
        "none",
        "empty",
        "nonsense",
        "no ASCII",
        "no token",
        "nonsense bearer",
        "scheme",
        "forged",
        "expired",
    ],
)
def test_without_a_good_token_it_is_401(server, path, query, headers):
    reply = server.get(path, dict(query, channel="orders", timeout=0), headers=headers)
    assert (reply.status, reply.code) == (401, "unauthorized")
    assert reply.headers["WWW-Authenticate"] == "Bearer"
    assert server.runtime.admission.held == 0


@pytest.mark.parametrize("path, status", [("/stream", 204), ("/cursor", 200)])
def test_a_token_lets_in_as_parameter_and_as_header(server, path, status):
    query = {"channel": "orders", "timeout": 0}
    assert server.get(path, dict(query, token=token("orders"))).status == status
    assert server.get(path, query, headers=bearer(token("orders"))).status == status


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "bEARER"])
def test_the_schemes_case_does_not_matter(server, scheme):
    headers = bearer(token("orders"), scheme=scheme)
    assert server.get("/stream", {"channel": "orders", "timeout": 0}, headers=headers).status == 204


@pytest.mark.parametrize("path", ["/stream", "/cursor"])
def test_a_token_narrower_than_the_question_is_403_and_names_what_is_missing(server, path):
    reply = server.get(path, {"channels": "orders,user:8,user:7", "token": token("orders")})
    assert (reply.status, reply.code) == (403, "forbidden")
    assert reply.message == "not allowed to read: user:7, user:8"


def changed(text, **says):
    """The token *text* with other claims below the same signature."""
    payload, signature = text.rsplit(".", 1)
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert set(says) <= set(claims)
    claims.update(says)
    raw = json.dumps(claims, separators=(",", ":")).encode("utf-8")
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii") + "." + signature


@pytest.mark.parametrize("path", ["/stream", "/cursor"])
@pytest.mark.parametrize(
    "says",
    [{"c": ["orders", "staff"]}, {"c": ["orders"]}, {"e": 9_999_999_999}, {"i": 9_999_999_999}, {"s": "u8"}],
)
def test_a_token_whose_words_were_changed_is_401(server, path, says):
    text = Tokens(KEY).make(["news"], expires_seconds=3600, subject="u7")
    assert server.get(path, {"channel": "news", "token": text, "timeout": 0}).status in (200, 204)
    for name in ("news", "orders"):
        reply = server.get(path, {"channel": name, "token": changed(text, **says), "timeout": 0})
        assert (reply.status, reply.code) == (401, "unauthorized")


def test_a_token_of_another_salt_is_401(server):
    """What the same key signed for another purpose, such as a session."""
    from itsdangerous import URLSafeSerializer

    says = {"c": ["orders"], "e": 9_999_999_999, "i": 0}
    for salt in ("cookie-session", "itsdangerous"):
        text = URLSafeSerializer(KEY, salt=salt).dumps(says)
        assert server.get("/stream", {"channel": "orders", "token": text, "timeout": 0}).status == 401


def test_a_token_wider_than_the_question_serves_the_question(server):
    server.publish("mine", channel="a")
    server.publish("not asked for", channel="b")
    server.settle()
    assert server.get("/stream", {"channel": "a", "token": token("a", "b")}).data == ["mine"]


def test_the_applications_poll_makes_tokens_too(server):
    with server.app.app_context():
        text = server.poll.token(["orders"], expires_seconds=60, subject="u7")
    assert server.get("/stream", {"channel": "orders", "token": text, "timeout": 0}).status == 204
