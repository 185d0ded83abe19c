"""The long-polling format: a query becomes a PollRequest, a Batch or an error becomes an Answer."""

from __future__ import annotations

import json

import pytest
from werkzeug.datastructures import MultiDict

from legacy_poll.config import Settings
from legacy_poll.cursors import Cursor
from legacy_poll.errors import (
    BadCursor,
    BadParameter,
    CursorExpired,
    Forbidden,
    InvalidEvent,
    LegacyPollError,
    MethodNotAllowed,
    StorageUnavailable,
    TooManyPolls,
    Unauthorized,
)
from legacy_poll.events import Batch, Event
from legacy_poll.wire import parse, render, render_error
from legacy_poll.wire.longpoll import parse_channels

SETTINGS = Settings(hold_seconds=25, max_events=500, max_channels=3)
CURSOR = Cursor.at("log", 7, "event-7")
TIME = "2026-01-02T03:04:05.678Z"


def ask(*pairs, settings=SETTINGS):
    return parse(MultiDict(pairs), settings)


def event(data="1", **others):
    values = dict({"id": "i", "channel": "c", "type": "t"}, **others)
    return Event(7, values["id"], values["channel"], values["type"], data, TIME, None)


# The query.


def test_an_empty_query_is_a_hold_from_the_oldest():
    asked = ask()
    assert asked.channels is None and asked.cursor is None and not asked.now and asked.token is None
    assert (asked.limit, asked.hold_seconds, asked.empty_status) == (500, 25, 204)


def test_by_setting_it_is_a_hold_from_now():
    asked = ask(settings=Settings(start="now"))
    assert asked.now and asked.cursor is None


def test_a_cursor_is_where_it_goes_on_whatever_the_setting():
    for start in ("oldest", "now"):
        asked = ask(("cursor", str(CURSOR)), settings=Settings(start=start))
        assert asked.cursor == CURSOR and not asked.now


def test_an_empty_cursor_is_a_missing_one():
    assert ask(("cursor", "")).cursor is None
    assert ask(("cursor", ""), settings=Settings(start="now")).now


def test_the_cursor_now_is_the_present():
    asked = ask(("cursor", "now"))
    assert asked.now and asked.cursor is None


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "NOW",
        "oldest",
        " " + str(CURSOR),
        str(CURSOR) + " ",
        str(CURSOR).upper() + "X",
        "2" + str(CURSOR)[1:],
        str(CURSOR)[:-1],
        "1-00000000--1-00000000",
        "1-00000000-01-00000000",
        "1-00000000-99999999999999999999-00000000",
        "1-00000000-9223372036854775808-00000000",
        "1-0000000g-1-00000000",
        "\x00",
        "9" * 10_000,
    ],
    ids=lambda text: ascii(text)[:40],
)
def test_a_cursor_that_nobody_gave_out_is_refused(text):
    with pytest.raises(BadCursor) as caught:
        ask(("cursor", text))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "text, seconds", [("0", 0), ("1", 0.001), ("24999", 24.999), ("25000", 25), ("25001", 25), ("9" * 99, 25)]
)
def test_a_timeout_is_milliseconds_and_clamped(text, seconds):
    assert ask(("timeout", text)).hold_seconds == seconds


@pytest.mark.parametrize("text, limit", [("1", 1), ("500", 500), ("501", 500), ("9" * 99, 500)])
def test_a_limit_is_clamped(text, limit):
    assert ask(("limit", text)).limit == limit


@pytest.mark.parametrize("text, status", [("200", 200), ("204", 204)])
def test_an_empty_answers_form_is_chosen(text, status):
    assert ask(("empty", text)).empty_status == status


@pytest.mark.parametrize(
    "name, value",
    [
        ("cursor", "now"),
        ("timeout", "1"),
        ("limit", "1"),
        ("heartbeat", "0"),
        ("empty", "200"),
        ("callback", "f"),
        ("token", "t"),
    ],
)
def test_a_known_parameter_twice_is_refused_even_if_both_are_equal(name, value):
    with pytest.raises(BadParameter, match="{} is .*: may be given once".format(name)):
        ask((name, value), (name, value))


def test_unknown_parameters_are_ignored_however_many():
    asked = ask(("_", "1"), ("_", "2"), ("utm_source", "\x00"), ("", ""), ("Timeout", "x"))
    assert asked == ask()


@pytest.mark.parametrize("text", ["", "f", "alert(1)"])
def test_jsonp_is_off(text):
    with pytest.raises(BadParameter, match="callback is .*: JSONP is switched off"):
        ask(("callback", text))


def test_a_token_is_taken_as_it_is():
    assert ask(("token", "abc")).token == "abc"


# The channels.


@pytest.mark.parametrize(
    "pairs, expected",
    [
        ([], None),
        ([("channel", "a")], {"a"}),
        ([("channel", "a"), ("channel", "b")], {"a", "b"}),
        ([("channels", "a,b")], {"a", "b"}),
        ([("channels", "a"), ("channels", "b,c")], {"a", "b", "c"}),
        ([("channels", "a,b"), ("channel", "c")], {"a", "b", "c"}),
        ([("channel", "a"), ("channel", "a"), ("channels", "a,a")], {"a"}),
        ([("channel", "a" * 200)], {"a" * 200}),
        ([("channel", "A-Z.a_z:0/9@~+=-")], {"A-Z.a_z:0/9@~+=-"}),
    ],
)
def test_channels_may_be_spelled_in_either_way_and_both(pairs, expected):
    assert parse_channels(MultiDict(pairs), SETTINGS) == expected


@pytest.mark.parametrize(
    "pairs",
    [
        [("channel", "")],
        [("channels", "")],
        [("channels", "a,,b")],
        [("channels", "a,")],
        [("channels", ",")],
        [("channel", "a,b")],
        [("channel", "a" * 201)],
        [("channel", "a b")],
        [("channel", "a\n")],
        [("channel", "\x00")],
        [("channel", "\u00e9")],
        [("channel", "a"), ("channel", "")],
        [("channel", "a*")],
        [("channel", "a$")],
    ],
)
def test_a_channel_that_breaks_the_rule_is_refused(pairs):
    with pytest.raises(BadParameter, match="channel is .*: 1 to 200 of the characters"):
        parse_channels(MultiDict(pairs), SETTINGS)


def test_more_channels_than_the_setting_allows_are_refused():
    with pytest.raises(BadParameter, match="channel is '4 channels': at most 3 in one poll"):
        parse_channels(MultiDict([("channels", "a,b,c,d")]), SETTINGS)
    parse_channels(MultiDict([("channels", "a,b,c,a,b,c")]), SETTINGS)


# The answers.


def header(answer, name):
    found = [value for key, value in answer.headers if key == name]
    assert len(found) <= 1
    return found[0] if found else None


def test_events_are_an_answer_with_their_cursor():
    answer = render(Batch((event(id="a", channel="orders", type="order.created"),), CURSOR), empty_status=204)
    assert answer.status == 200
    assert header(answer, "Content-Type") == "application/json"
    assert header(answer, "Content-Length") == str(len(answer.body))
    assert header(answer, "Legacy-Poll-Cursor") == str(CURSOR)
    assert json.loads(answer.body.decode()) == {
        "events": [{"id": "a", "channel": "orders", "type": "order.created", "data": 1, "time": TIME}],
        "cursor": str(CURSOR),
    }


@pytest.mark.parametrize(
    "data", ["1", ' {"a" : [1.50, 1E2 ,"\\u20ac"] } ', '"\u20ac\U0001f600"', "1" * 400, "-0.0", '"</script>"']
)
def test_data_travels_byte_for_byte(data):
    answer = render(Batch((event(data),), CURSOR), empty_status=204)
    assert b'"data":' + data.encode("utf-8") + b',"time"' in answer.body
    json.loads(answer.body.decode("utf-8"))


def test_a_batch_that_was_cut_is_206_and_says_more():
    answer = render(Batch((event(),), CURSOR, True), empty_status=204)
    assert answer.status == 206
    assert json.loads(answer.body.decode())["more"] is True


def test_an_empty_batch_is_204_with_its_cursor_and_nothing_else():
    answer = render(Batch((), CURSOR), empty_status=204)
    assert (answer.status, answer.body, answer.headers) == (204, b"", (("Legacy-Poll-Cursor", str(CURSOR)),))


def test_an_empty_batch_may_be_200():
    answer = render(Batch((), CURSOR), empty_status=200)
    assert answer.status == 200
    assert json.loads(answer.body.decode()) == {"events": [], "cursor": str(CURSOR)}
    assert header(answer, "Legacy-Poll-Cursor") == str(CURSOR)


def test_a_batch_is_rendered_once():
    batch = Batch((event(),), CURSOR)
    assert render(batch, empty_status=204).body is render(batch, empty_status=200).body


@pytest.mark.parametrize(
    "error, status, code",
    [
        (BadParameter("timeout", "x", "a number"), 400, "bad_parameter"),
        (BadCursor("x"), 400, "bad_cursor"),
        (InvalidEvent("type", "x y", "no"), 400, "invalid_event"),
        (Unauthorized("no"), 401, "unauthorized"),
        (Forbidden("no"), 403, "forbidden"),
        (CursorExpired("old"), 410, "cursor_expired"),
        (TooManyPolls("many"), 429, "too_many_polls"),
        (StorageUnavailable("gone"), 503, "storage_unavailable"),
        (LegacyPollError("a fault"), 500, "internal_error"),
    ],
)
def test_every_error_has_one_shape(error, status, code):
    answer = render_error(error)
    assert answer.status == status
    assert json.loads(answer.body.decode()) == {"error": {"code": code, "message": str(error)}}
    assert header(answer, "Content-Type") == "application/json"
    assert header(answer, "Content-Length") == str(len(answer.body))


def test_an_error_may_have_a_cursor_and_a_time_to_come_back():
    answer = render_error(CursorExpired("old"), cursor=CURSOR)
    assert json.loads(answer.body.decode())["cursor"] == str(CURSOR) == header(answer, "Legacy-Poll-Cursor")
    assert header(render_error(TooManyPolls("many"), retry_after=3), "Retry-After") == "3"


def test_errors_bring_the_headers_of_their_status():
    assert header(render_error(Unauthorized("no")), "WWW-Authenticate") == "Bearer"
    assert header(render_error(MethodNotAllowed("no", allow="GET, OPTIONS")), "Allow") == "GET, OPTIONS"


def test_a_message_shows_the_value_short_and_harmless():
    answer = render_error(BadParameter("timeout", "\n\x00<script>" + "9" * 10_000, "a number is needed"))
    message = json.loads(answer.body.decode())["error"]["message"]
    assert message.startswith("timeout is '\\n\\x00<script>999") and message.endswith("a number is needed")
    assert len(message) < 200
