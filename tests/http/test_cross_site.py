"""Pages of other sites: CORS where the browser knows it, JSONP where it is switched on; and the scripts we serve."""

from __future__ import annotations

import json
import re

import pytest
from flask import Blueprint, Flask, abort, url_for

from legacy_poll import LegacyPoll
from legacy_poll.config import Settings
from legacy_poll.errors import ConfigError

SHOP = "https://shop.example"
ORDERS = {"channel": "orders"}


def page(origin):
    return {"headers": {"Origin": origin}}


def called(reply, name):
    """What a script gives to the function *name*."""
    assert reply.status == 200
    assert reply.headers["Content-Type"] == "application/javascript; charset=utf-8"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["Cache-Control"] == "no-store"
    assert reply.headers["Content-Length"] == str(len(reply.body))
    text = reply.body.decode("ascii")
    assert text.startswith("/**/{}(".format(name)) and text.endswith(");"), text
    return json.loads(text[len("/**/" + name + "(") : -2])


# CORS


def test_nobody_is_allowed_unless_a_setting_says_so(site):
    reply = site.get("/stream", dict(ORDERS, timeout=0), **page(SHOP))
    assert not [name for name in reply.headers.keys() if name.startswith("Access-Control")]


@pytest.mark.parametrize("path", ["/stream", "/cursor"])
def test_an_origin_of_the_setting_may_read_answers_with_its_users_cookies(make_site, path):
    site = make_site(cors_origins="https://other.example, " + SHOP)
    reply = site.get(path, dict(ORDERS, timeout=0), **page(SHOP))
    assert reply.headers["Access-Control-Allow-Origin"] == SHOP
    assert reply.headers["Access-Control-Allow-Credentials"] == "true"
    assert "Legacy-Poll-Cursor" in reply.headers["Access-Control-Expose-Headers"]
    assert "Origin" in reply.headers["Vary"]
    for origin in ["https://evil.example", SHOP + ".evil.example", "http://shop.example", "null"]:
        reply = site.get(path, dict(ORDERS, timeout=0), **page(origin))
        assert "Access-Control-Allow-Origin" not in reply.headers
        assert "Access-Control-Allow-Credentials" not in reply.headers
        assert "Origin" in reply.headers["Vary"]


def test_everybody_may_read_but_as_nobody(make_site):
    reply = make_site(cors_origins="*").get("/stream", dict(ORDERS, timeout=0), **page(SHOP))
    assert reply.headers["Access-Control-Allow-Origin"] == "*"
    assert "Access-Control-Allow-Credentials" not in reply.headers


def test_held_polls_and_refusals_may_be_read_as_well(make_site):
    site = make_site(cors_origins=SHOP, max_held=1)
    poll = site.hold(ORDERS, **page(SHOP))
    full = site.get("/stream", ORDERS, **page(SHOP))
    site.publish(1)
    answered = poll.reply()
    gone = site.get("/stream", dict(ORDERS, cursor="1-00000000-7-00000000"), **page(SHOP))
    for reply, status in [(answered, 200), (full, 503), (gone, 410)]:
        assert (reply.status, reply.headers["Access-Control-Allow-Origin"]) == (status, SHOP)


def test_what_authorize_refuses_may_be_read_as_well(make_site):
    site = make_site(cors_origins=SHOP, options={"authorize": lambda channels: abort(401)})
    reply = site.get("/stream", ORDERS, **page(SHOP))
    assert (reply.status, reply.headers["Access-Control-Allow-Origin"]) == (401, SHOP)


def test_a_preflight_is_told_what_may_be_sent(make_site):
    site = make_site(cors_origins=SHOP)
    asks = {"Origin": SHOP, "Access-Control-Request-Method": "GET"}
    reply = site.open("OPTIONS", "/stream", headers=asks)
    assert reply.status == 200
    assert reply.headers["Access-Control-Allow-Origin"] == SHOP
    assert reply.headers["Access-Control-Allow-Methods"] == "GET"
    assert reply.headers["Access-Control-Allow-Headers"] == "Authorization"
    assert "Access-Control-Allow-Origin" not in site.open("OPTIONS", "/publish", headers=asks).headers


@pytest.mark.parametrize(
    "origins", ["shop.example", SHOP + "/", "https://Shop.example", SHOP + ",*", "https://*.example"]
)
def test_an_origin_that_no_browser_sends_is_refused_at_the_start(origins):
    with pytest.raises(ConfigError, match="LEGACY_POLL_CORS_ORIGINS has "):
        Settings(cors_origins=origins)


@pytest.mark.parametrize("origins", ["", "*", SHOP, SHOP + ":8443", "http://[::1]:5000, http://localhost"])
def test_origins_as_browsers_send_them_are_taken(origins):
    assert all(origins.count(each) for each in Settings(cors_origins=origins).origins)


# JSONP


def test_events_come_as_a_call(make_site):
    site = make_site(jsonp=True)
    poll = site.hold(dict(ORDERS, callback="app.on_answer"))
    site.publish({"text": "</script>\u2028\u2029é"})
    reply = poll.reply()
    says = called(reply, "app.on_answer")
    assert says["events"][0]["data"] == {"text": "</script>\u2028\u2029é"}
    assert says["cursor"] == reply.cursor
    # Line separators end a line in old engines' scripts.
    assert "\u2028" not in reply.body.decode("utf-8")


def test_a_row_that_another_program_wrote_ends_no_line_of_the_script(make_site):
    """Its JSON travels as it is, and may hold raw what an old engine takes for the end of a line."""
    site = make_site(jsonp=True)
    data = json.dumps("é\u2028\u2029", ensure_ascii=False)
    site.insert(event_id="a", channel="orders", data=data)
    reply = site.get("/stream", dict(ORDERS, callback="f", timeout=5000))
    script = reply.body.decode("utf-8")
    assert "\u2028" not in script and "\u2029" not in script
    assert json.loads(script[len("/**/f(") : -2])["events"][0]["data"] == "é\u2028\u2029"
    assert reply.headers["Content-Length"] == str(len(reply.body))
    assert data in site.get("/stream", dict(ORDERS, timeout=0)).body.decode("utf-8")


def test_a_cut_answer_and_an_empty_one_say_so_in_the_body(make_site):
    site = make_site(jsonp=True)
    site.publish(1)
    site.publish(2)
    says = called(site.get("/stream", dict(ORDERS, callback="f", limit=1)), "f")
    assert says["more"] is True
    says = called(site.get("/stream", dict(ORDERS, callback="f", timeout=0, cursor="now", empty=204)), "f")
    assert says["events"] == []
    assert says["cursor"]


@pytest.mark.parametrize(
    "query, code",
    [
        ({"limit": 0}, "bad_parameter"),
        ({"cursor": "nonsense"}, "bad_cursor"),
        ({"cursor": "1-00000000-7-00000000"}, "cursor_unknown"),
        ({"channel": "$ours"}, "forbidden"),
    ],
)
def test_refusals_come_as_a_call_too(make_site, query, code):
    site = make_site(jsonp=True)
    says = called(site.get("/stream", dict(dict(ORDERS, callback="f"), **query)), "f")
    assert says["error"]["code"] == code
    assert ("cursor" in says) == (code == "cursor_unknown")


def test_what_authorize_refuses_comes_as_a_call_too(make_site):
    site = make_site(jsonp=True, options={"authorize": lambda channels: abort(403)})
    assert called(site.get("/stream", dict(ORDERS, callback="f")), "f")["error"]["code"] == "forbidden"


def test_a_full_server_says_so_in_a_call(make_site):
    site = make_site(jsonp=True, max_held=0)
    assert called(site.get("/stream", dict(ORDERS, callback="f")), "f")["error"]["code"] == "server_full"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a b",
        "f(",
        "1f",
        "a..b",
        ".a",
        "a.",
        "f;alert(1)//",
        "f\u2028",
        "é",
        "a[0]",
        "<script>",
        "f" * 101,
        "f\n",
    ],
)
def test_a_callback_is_the_name_of_a_function_and_nothing_else(make_site, name):
    reply = make_site(jsonp=True).get("/stream", dict(ORDERS, callback=name))
    assert (reply.status, reply.code) == (400, "bad_parameter")
    assert reply.headers["Content-Type"] == "application/json"


def test_twice_is_once_too_often(make_site):
    assert make_site(jsonp=True).get("/stream", "callback=f&callback=g").status == 400


# Scripts


def test_the_library_is_served_and_kept_for_as_long_as_it_is_the_same(site):
    with site.app.test_request_context():
        url = site.poll.script_url()
    path, _, query = url[len("/poll") :].partition("?")
    reply = site.get(path, query)
    assert reply.status == 200
    assert reply.headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert reply.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert b"LegacyPoll" in reply.body
    # Without the digest, or with that of another version: asked for again, and seldom sent again.
    for other in ["", "v=0123456789abcdef"]:
        reply = site.get(path, other)
        assert reply.headers["Cache-Control"] == "no-cache"
        again = site.get(path, other, headers={"If-None-Match": reply.headers["ETag"]})
        assert (again.status, again.body) == (304, b"")


def test_the_plugin_is_served_and_nothing_else_of_its_folder(site):
    assert b"jQuery" in site.get("/jquery.legacy-poll.js").body
    assert site.get("/package.json").status == 404
    with site.app.test_request_context(), pytest.raises(ConfigError, match="there is no script 'jquery.js'"):
        site.poll.script_url("jquery.js")


def test_a_page_finds_the_script_wherever_the_blueprint_is(make_site, database_path):
    app = Flask("application")
    poll = LegacyPoll(app, url="sqlite:///{}".format(database_path), public=True)
    with app.test_request_context(), pytest.raises(ConfigError, match="has not registered"):
        poll.script_url()
    outer = Blueprint("outer", __name__, url_prefix="/outer")
    outer.register_blueprint(poll.blueprint, url_prefix="/inner")
    app.register_blueprint(outer)
    with app.test_request_context():
        url = poll.script_url()
        assert re.fullmatch(r"/outer/inner/legacy-poll\.js\?v=[0-9a-f]{16}", url)
        assert url_for("outer.legacy_poll.stream") == "/outer/inner/stream"
    assert app.test_client().get(url).status_code == 200
