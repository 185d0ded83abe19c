"""POST /publish: one event or a list, all or nothing, each id once."""

from __future__ import annotations

import re
import threading
import uuid

import pytest
from sqlalchemy import text

from tests.http.conftest import Held

TOKEN = "a token for those who publish"


@pytest.fixture
def site(make_site):
    return make_site(publish_token=TOKEN)


def post(site, value=None, **options):
    return site.post("/publish", value, **dict({"token": TOKEN}, **options))


def nothing_was_published(site):
    with site.engine.connect() as connection:
        for table in ("outbox", "event", "set_aside"):
            assert connection.execute(text("SELECT count(*) FROM legacy_poll_" + table)).scalar() == 0
    return True


def test_one_event_is_published_and_its_id_told(site):
    poll = site.hold({"channel": "orders"})
    reply = post(site, {"channel": "orders", "data": {"id": 7}, "type": "order.created", "id": "e-1"})
    assert reply.status == 201
    assert reply.json == {"events": [{"id": "e-1", "duplicate": False}]}
    assert reply.headers["Content-Type"] == "application/json"
    [event] = poll.reply().json["events"]
    del event["time"]
    assert event == {"id": "e-1", "channel": "orders", "type": "order.created", "data": {"id": 7}}


def test_all_but_the_data_may_be_left_out(site):
    reply = post(site, {"data": None})
    assert reply.status == 201
    [event] = site.get("/stream").json["events"]
    assert (event["channel"], event["type"], event["data"]) == ("default", "message", None)
    assert event["id"] == reply.json["events"][0]["id"] == str(uuid.UUID(event["id"]))


def test_an_id_of_null_is_one_left_out(site):
    assert uuid.UUID(post(site, {"data": 1, "id": None}).json["events"][0]["id"])


def test_a_list_is_published_in_order(site):
    reply = post(site, [{"data": number, "id": "e-%d" % number} for number in range(5)])
    assert reply.status == 201
    assert [event["id"] for event in reply.json["events"]] == ["e-%d" % number for number in range(5)]
    assert site.collect(5) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("bad", [{"data": 1, "channel": "no way"}, {"data": "x" * 300_000}, {"channel": "a"}])
def test_a_list_is_published_whole_or_not_at_all(site, bad):
    reply = post(site, [{"data": 1}, bad, {"data": 3}])
    assert reply.status in (400, 413)
    assert nothing_was_published(site)


def test_a_thousand_events_are_published_at_once(site):
    reply = post(site, [{"data": number, "id": "e-%d" % number} for number in range(1000)])
    assert reply.status == 201 and len(reply.json["events"]) == 1000
    again = post(site, [{"data": number, "id": "e-%d" % number} for number in range(1000)])
    assert again.status == 200


# Each id once.


def test_the_same_event_again_is_200_and_delivered_once(site):
    assert post(site, {"data": "first", "id": "e"}).status == 201
    reply = post(site, {"data": "second", "id": "e"})
    assert (reply.status, reply.json) == (200, {"events": [{"id": "e", "duplicate": True}]})
    post(site, {"data": "end"})
    assert site.collect(2) == ["first", "end"]


def test_within_a_list_the_first_wins(site):
    reply = post(site, [{"data": "first", "id": "e"}, {"data": "second", "id": "e"}, {"data": "end"}])
    assert reply.status == 201
    assert [event["duplicate"] for event in reply.json["events"]] == [False, True, False]
    assert site.collect(2) == ["first", "end"]


def test_one_new_event_makes_it_201(site):
    post(site, {"data": 1, "id": "old"})
    reply = post(site, [{"data": 1, "id": "old"}, {"data": 2, "id": "new"}])
    assert reply.status == 201
    assert reply.json == {"events": [{"id": "old", "duplicate": True}, {"id": "new", "duplicate": False}]}


def test_an_id_published_in_a_transaction_counts(site):
    site.publish("first", channel="default", id="e")
    assert post(site, {"data": "second", "id": "e"}).status == 200


# What is refused.


@pytest.mark.parametrize(
    "value, says",
    [
        ({"data": 1, "chanel": "orders"}, ["chanel is 'orders'", "channel, data, type and id"]),
        ({"channel": "orders"}, ["data is missing"]),
        ({"data": 1, "channel": ""}, ["channel is ''", "1 to 200 of the characters"]),
        ({"data": 1, "channel": "x" * 201}, ["channel is 'xxx", "1 to 200"]),
        ({"data": 1, "channel": "a\x00b"}, ["channel is 'a\\x00b'"]),
        ({"data": 1, "channel": None}, ["channel is None"]),
        ({"data": 1, "channel": 7}, ["channel is 7"]),
        ({"data": 1, "channel": ["orders"]}, ["channel is ['orders']"]),
        ({"data": 1, "channel": "$ours"}, ["channel is '$ours'", "reserved"]),
        ({"data": 1, "type": "no way"}, ["type is 'no way'", "1 to 200"]),
        ({"data": 1, "type": None}, ["type is None"]),
        ({"data": 1, "id": "x" * 101}, ["id is 'xxx", "1 to 100"]),
        ({"data": 1, "id": ""}, ["id is ''"]),
        ({"data": 1, "id": 7}, ["id is 7"]),
        ({"data": 1, "id": 7.5}, ["id is 7.5"]),
        ({"data": 1, "id": True}, ["id is True"]),
        ({"data": 1, "id": {}}, ["id is {}"]),
        ({"data": 1, "id": ["a"]}, ["id is ['a']"]),
        ({"data": 1, "channel": {"a": 1}}, ["channel is {'a': 1}"]),
        ({"data": 1, "type": ["a"]}, ["type is ['a']"]),
        ([], ["the body is an empty list"]),
        ([[]], ["an event is list: an object is needed"]),
        (["x"], ["an event is str: an object is needed"]),
        ("x", ["an event is str: an object is needed"]),
        (None, ["an event is NoneType: an object is needed"]),
        (7, ["an event is int: an object is needed"]),
    ],
)
def test_an_event_that_breaks_a_rule_is_told_which(site, value, says):
    reply = post(site, value)
    assert reply.status == 400
    assert reply.code in ("invalid_event", "bad_request")
    for words in says:
        assert words in reply.message
    assert len(reply.body) < 1000
    assert nothing_was_published(site)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"orders",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}x",
        b"[" * 100_000,
        b'{"data":1}{"data":2}',
        b'{"data": %s}' % (b"1" * 10_000 + b"x"),
    ],
    ids=["nothing", "half", "a word", "not UTF-8", "a mark", "deep", "two", "long"],
)
def test_a_body_that_is_not_json_is_refused(site, body):
    reply = post(site, body=body)
    assert (reply.status, reply.code) == (400, "bad_request")
    assert reply.message.startswith("the body is not JSON: ")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e400", "[[NaN]]", '{"a": -1e999}'])
def test_a_number_that_json_has_not_is_refused(site, value):
    reply = post(site, body=b'{"data": %s}' % value.encode())
    assert reply.status == 400
    assert reply.code in ("invalid_event", "bad_request")
    assert nothing_was_published(site)


def test_data_nested_too_deep_is_refused(site):
    reply = post(site, body=b'{"data": %s}' % (b"[" * 201 + b"]" * 201))
    assert (reply.status, reply.code) == (400, "invalid_event")
    assert "at most 200 levels" in reply.message
    assert post(site, body=b'{"data": %s}' % (b"[" * 200 + b"]" * 200)).status == 201


def test_an_event_larger_than_the_setting_is_413(site):
    reply = post(site, {"data": "x" * 262_143})
    assert (reply.status, reply.code) == (413, "event_too_large")
    assert reply.message == "data has 262145 bytes: at most 262144 are allowed"
    assert nothing_was_published(site)
    assert post(site, {"data": "x" * 262_142}).status == 201


def test_more_than_a_thousand_events_are_413(site):
    reply = post(site, [{"data": 1}] * 1001)
    assert (reply.status, reply.code) == (413, "body_too_large")
    assert reply.message == "the body has 1001 events: at most 1000 are allowed"
    assert nothing_was_published(site)


def test_a_body_of_more_than_8_mib_is_413(site):
    reply = post(site, body=b" " * (8 * 1024 * 1024 + 1))
    assert (reply.status, reply.code) == (413, "body_too_large")
    assert re.search(r"has 8388609 bytes: at most 8388608", reply.message)


def test_the_applications_own_limit_is_kept(make_site):
    site = make_site(publish_token=TOKEN)
    site.app.config["MAX_CONTENT_LENGTH"] = 100
    reply = post(site, {"data": "x" * 200})
    assert (reply.status, reply.code) == (413, "body_too_large")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"])
def test_another_type_of_body_is_415(site, kind):
    reply = post(site, {"data": 1}, headers={"Content-Type": kind})
    assert (reply.status, reply.code) == (415, "unsupported_media_type")
    assert "application/json is needed" in reply.message
    assert nothing_was_published(site)


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "Application/JSON"])
def test_json_may_be_spelled_in_other_ways(site, kind):
    assert post(site, {"data": 1}, headers={"Content-Type": kind}).status == 201


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
def test_publish_takes_post_alone(site, method):
    reply = site.open(method, "/publish")
    assert (reply.status, reply.headers["Allow"]) == (405, "POST, OPTIONS")


# Who may.


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer " + TOKEN + "x"},
        {"Authorization": "Bearer " + TOKEN[:-1]},
        {"Authorization": "Basic " + TOKEN},
        {"Authorization": TOKEN},
        {"Authorization": "Bearer \u00fc"},
    ],
)
def test_without_the_right_token_it_is_401(site, headers):
    reply = post(site, {"data": 1}, token=None, headers=headers)
    assert (reply.status, reply.code) == (401, "unauthorized")
    assert reply.headers["WWW-Authenticate"] == "Bearer"
    assert nothing_was_published(site)


def test_who_may_not_publish_is_not_told_what_else_is_wrong(site):
    assert post(site, body=b"x" * (9 * 1024 * 1024), token="wrong").status == 401


def test_a_token_in_the_query_is_for_readers(site):
    assert post(site, {"data": 1}, token=None, query={"token": TOKEN}).status == 401


def test_the_schemes_case_does_not_matter(site):
    headers = {"Authorization": "bearer " + TOKEN}
    assert post(site, {"data": 1}, token=None, headers=headers).status == 201


def test_without_a_token_configured_there_is_no_such_route(make_site):
    site = make_site()
    for token in (None, "", TOKEN):
        reply = post(site, {"data": 1}, token=token)
        assert (reply.status, reply.code) == (404, "not_found")
        assert "LEGACY_POLL_PUBLISH_TOKEN" in reply.message


# SQLite's one writer.


def test_behind_an_open_transaction_a_post_waits_and_then_says_503(make_site):
    site = make_site(publish_token=TOKEN, write_wait_seconds=0.05)
    with site.engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        reply = post(site, {"data": 1})
        connection.connection.rollback()
    assert (reply.status, reply.code) == (503, "storage_unavailable")
    assert 1 <= int(reply.headers["Retry-After"]) <= 5
    assert post(site, {"data": 1}).status == 201


def test_behind_a_transaction_that_ends_a_post_goes_through(site, monkeypatch):
    patient, asked = site.runtime.patient, threading.Event()
    write = patient.write
    monkeypatch.setattr(patient, "write", lambda work: (asked.set(), write(work))[1])
    with site.engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        waiting = Held(lambda: post(site, {"data": 1}))
        assert asked.wait(10)
        connection.connection.rollback()
    assert waiting.reply().status == 201
