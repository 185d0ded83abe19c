"""What a client may get wrong in a query: the answer names the field, the value and the rule."""

from __future__ import annotations

import pytest

CURSOR = "1-00000000-0-00000000"

# The query, the machine code, and what the message says: field, value, rule.
BAD = {
    "timeout negative": ("timeout=-1", "bad_parameter", ["timeout is '-1'", "whole number of milliseconds"]),
    "timeout not a number": ("timeout=soon", "bad_parameter", ["timeout is 'soon'", "milliseconds"]),
    "timeout a fraction": ("timeout=1.5", "bad_parameter", ["timeout is '1.5'"]),
    "timeout empty": ("timeout=", "bad_parameter", ["timeout is ''"]),
    "timeout with a plus": ("timeout=%2B5", "bad_parameter", ["timeout is '+5'"]),
    "limit zero": ("limit=0", "bad_parameter", ["limit is '0'", "at least 1"]),
    "limit negative": ("limit=-5", "bad_parameter", ["limit is '-5'", "at least 1"]),
    "limit not a number": ("limit=all", "bad_parameter", ["limit is 'all'"]),
    "heartbeat too short": ("heartbeat=999", "bad_parameter", ["heartbeat is '999'", "at least 1000"]),
    "heartbeat negative": ("heartbeat=-1", "bad_parameter", ["heartbeat is '-1'"]),
    "empty another": ("empty=404", "bad_parameter", ["empty is '404'", "200, 204"]),
    "channel empty": ("channel=", "bad_parameter", ["channel is ''", "1 to 200 of the characters"]),
    "channel empty among others": ("channels=a,,b", "bad_parameter", ["channel is ''"]),
    "channel empty beside another": ("channel=a&channels=", "bad_parameter", ["channel is ''"]),
    "channel of 201": ("channel=" + "x" * 201, "bad_parameter", ["channel is 'xxx", "1 to 200"]),
    "channel with control characters": ("channel=a%00%0Ab", "bad_parameter", ["channel is 'a\\x00\\nb'"]),
    "channel with a space": ("channel=a+b", "bad_parameter", ["channel is 'a b'"]),
    "channel not ASCII": ("channel=%C3%BC", "bad_parameter", ["channel is '\u00fc'"]),
    "channel not UTF-8": ("channel=%FF", "bad_parameter", ["channel is "]),
    "channels too many": (
        "&".join("channel=c%d" % number for number in range(101)),
        "bad_parameter",
        ["channel is '101 channels'", "at most 100"],
    ),
    "cursor malformed": ("cursor=xyz", "bad_cursor", ["cursor is 'xyz'", "exactly as an answer gave it"]),
    "cursor a number": ("cursor=17", "bad_cursor", ["cursor is '17'"]),
    "cursor of another version": ("cursor=2" + CURSOR[1:], "bad_cursor", ["cursor is '2-0000"]),
    "cursor with control characters": ("cursor=%00%0D%0Ax", "bad_cursor", ["cursor is '\\x00\\r\\nx'"]),
    "cursor huge": ("cursor=" + "9" * 5000, "bad_cursor", ["cursor is '9999", "5000 characters"]),
    "cursor twice": ("cursor={0}&cursor={0}".format(CURSOR), "bad_parameter", ["cursor is", "given once"]),
    "timeout twice": ("timeout=1&timeout=1", "bad_parameter", ["timeout is", "given once"]),
    "limit twice": ("limit=1&limit=2", "bad_parameter", ["limit is ['1', '2']", "given once"]),
    "empty twice": ("empty=200&empty=200", "bad_parameter", ["empty is", "given once"]),
    "heartbeat twice": ("heartbeat=0&heartbeat=0", "bad_parameter", ["heartbeat is", "given once"]),
    "token twice": ("token=a&token=b", "bad_parameter", ["token is", "given once"]),
    "callback while JSONP is off": ("callback=f", "bad_parameter", ["callback is 'f'", "switched off"]),
    "callback empty": ("callback=", "bad_parameter", ["callback is ''", "switched off"]),
}


@pytest.mark.parametrize("query, code, says", list(BAD.values()), ids=list(BAD))
def test_a_query_that_breaks_a_rule_is_told_which(site, query, code, says):
    reply = site.get("/stream", query)
    assert (reply.status, reply.code) == (400, code)
    for words in says:
        assert words in reply.message
    assert len(reply.body) < 1000
    assert reply.headers["Cache-Control"] == "no-store"
    assert site.runtime.admission.held == 0


GOOD = {
    "limit huge": "timeout=0&limit=" + "9" * 400,
    "heartbeat none": "timeout=0&heartbeat=0",
    "heartbeat huge": "timeout=0&heartbeat=" + "9" * 400,
    "unknown ones": "timeout=0&_=1764000000&_=1&utm_source=%00&x&=y&Channel=&TIMEOUT=x",
    "cursor empty": "timeout=0&cursor=",
    "a channel of 200": "timeout=0&channel=" + "x" * 200,
    "all the characters": "timeout=0&channel=AZaz09_.:/@~%2B=-",
    "both spellings": "timeout=0&channel=a&channels=b,c&channel=a&channels=b",
    "a channel 10,000 times": "timeout=0&" + "&".join(["channel=orders"] * 10_000),
    "a channel 10,000 times with commas": "timeout=0&channels=" + ",".join(["orders"] * 10_000),
    "a hundred channels": "timeout=0&channels=" + ",".join("c%d" % number for number in range(100)),
}


@pytest.mark.parametrize("query", list(GOOD.values()), ids=list(GOOD))
def test_what_is_odd_but_right_is_served(site, query):
    assert site.get("/stream", query).status == 204


def test_a_huge_timeout_is_clamped(make_site):
    site = make_site(hold_seconds=0.01)
    assert site.get("/stream", "timeout=" + "9" * 400).status == 204


@pytest.mark.parametrize("query", ["channel=", "channels=a,,b", "channel=%00", "token=a&token=b"])
def test_cursor_has_the_same_rules(site, query):
    reply = site.get("/cursor", query)
    assert (reply.status, reply.code) == (400, "bad_parameter")


def test_a_setting_of_channels_is_kept(make_site):
    site = make_site(max_channels=2)
    assert site.get("/stream", "timeout=0&channels=a,b").status == 204
    assert site.get("/stream", "timeout=0&channels=a,b,c").message.endswith("at most 2 in one poll")


@pytest.mark.parametrize("name", ["$", "$revoked", "$" + "x" * 500])
@pytest.mark.parametrize("path", ["/stream", "/cursor"])
def test_names_that_are_ours_are_nobodys(site, path, name):
    reply = site.get(path, [("channel", "orders"), ("channel", name), ("timeout", 0)])
    assert (reply.status, reply.code) == (403, "forbidden")
    assert "reserved" in reply.message


def test_a_refusal_touches_no_database(make_site):
    """Not even one that is down."""
    site = make_site(options={"url": "sqlite:////nonexistent/folder/log.db"})
    assert site.get("/stream", "limit=0").status == 400
    assert site.get("/stream", "cursor=xyz").status == 400
