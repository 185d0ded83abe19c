"""GET /stream: every answer of the wire, from memory and from the log."""

from __future__ import annotations

import json
import re

import pytest
from sqlalchemy import text

from legacy_poll import schema
from legacy_poll.cursors import Cursor

NOW = {"timeout": 0}


def empty_answer(reply):
    assert (reply.status, reply.body) == (204, b"")
    assert "Content-Type" not in reply.headers and "Content-Length" not in reply.headers
    return reply.cursor


# 200.


def test_an_event_that_is_there_is_answered_at_once(site):
    event_id = site.publish({"id": 7}, type="order.created")
    reply = site.get("/stream", {"channel": "orders"})
    assert reply.status == 200
    [event] = reply.json["events"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event.pop("time"))
    assert event == {"id": event_id, "channel": "orders", "type": "order.created", "data": {"id": 7}}
    assert reply.json["cursor"] == reply.cursor
    assert "more" not in reply.json
    assert reply.headers["Content-Type"] == "application/json"
    assert reply.headers["Content-Length"] == str(len(reply.body))
    assert reply.headers["Cache-Control"] == "no-store"


def test_a_commit_ends_a_held_poll(site):
    poll = site.hold({"channel": "orders"})
    site.publish(1)
    assert poll.reply().data == [1]


def test_an_insert_by_another_program_ends_a_held_poll(site):
    poll = site.hold({"channel": "orders"})
    site.insert(channel="orders", data='{"id": 7}')
    reply = poll.reply()
    assert reply.data == [{"id": 7}]
    assert reply.json["events"][0]["type"] == "message"


def test_a_rolled_back_event_reaches_nobody(site):
    poll = site.hold({"channel": "orders"})
    with site.engine.connect() as connection:
        transaction = connection.begin()
        site.poll.publish(connection, "orders", "never")
        transaction.rollback()
    site.publish("this one")
    assert poll.reply().data == ["this one"]


def test_other_channels_do_not_end_a_held_poll(site):
    poll = site.hold({"channel": "orders"})
    site.publish("other", channel="users")
    site.settle()
    assert not poll.over
    site.publish("mine")
    assert poll.reply().data == ["mine"]


def test_one_poll_may_be_on_many_channels_in_either_spelling(site):
    for channel in "abcd":
        site.publish(channel, channel=channel)
    site.settle()
    reply = site.get("/stream", [("channel", "a"), ("channels", "b,d"), ("channel", "a")])
    assert reply.data == ["a", "b", "d"]


def test_without_a_channel_it_is_the_channel_default(site):
    site.publish("no", channel="orders")
    site.publish("yes", channel="default")
    assert site.get("/stream").data == ["yes"]


def test_a_chain_of_polls_gets_every_event_once_in_order(site):
    for number in range(20):
        site.publish(number)
    assert site.collect(20, {"channel": "orders", "limit": 3}) == list(range(20))


def test_many_polls_of_one_group_get_the_same_bytes(site):
    """In threads: what they wait on serves any number of them."""
    polls = [site.hold({"channel": "orders"}) for _ in range(40)]
    assert site.runtime.hub.groups == 1
    site.publish(1)
    assert len({poll.reply().body for poll in polls}) == 1


def test_polls_with_different_limits_share_a_group(site):
    one = site.hold({"channel": "orders", "limit": 1})
    both = site.hold({"channel": "orders", "limit": 2})
    with site.engine.begin() as connection:
        site.poll.publish(connection, "orders", 1)
        site.poll.publish(connection, "orders", 2)
    assert one.reply().data == [1]
    assert both.reply().data == [1, 2]


@pytest.mark.parametrize(
    "data",
    [
        '{"id":7}',
        ' { "a" : [ 1.50 , 1E2, -0.0 ] , "a" : null } ',
        '"\\u20ac \u20ac \U0001f600 \\ud83d"',
        "123456789012345678901234567890",
        '"</script><!--"',
        "[]",
        "null",
    ],
)
@pytest.mark.parametrize("memory", [True, False])
def test_data_travels_byte_for_byte(make_site, data, memory):
    site = make_site(tail_events=100 if memory else 1)
    site.insert(channel="orders", data=data)
    site.insert(channel="orders", data="1")
    site.settle()
    reply = site.get("/stream", {"channel": "orders"})
    assert b'"data":' + data.encode("utf-8") + b',"time"' in reply.body
    json.loads(reply.body.decode("utf-8"))


# 204, and 200 in its place.


def test_a_hold_that_ends_empty_is_204_with_the_cursor_moved(site):
    site.publish("other", channel="users")
    site.settle()
    start = site.get("/stream", {"channel": "orders", "timeout": 1})
    cursor = empty_answer(start)
    site.publish("other", channel="users")
    site.settle()
    moved = empty_answer(site.get("/stream", {"channel": "orders", "cursor": cursor, "timeout": 1}))
    assert cursor != moved
    assert moved == site.get("/cursor").json["cursor"]


def test_an_empty_answer_may_be_200(site):
    reply = site.get("/stream", {"channel": "orders", "timeout": 1, "empty": "200"})
    assert reply.status == 200
    assert reply.json == {"events": [], "cursor": reply.cursor}
    assert site.get("/stream", {"channel": "orders", "timeout": 1, "empty": "204"}).status == 204


def test_a_short_poll_is_answered_at_once(site):
    empty_answer(site.get("/stream", {"timeout": 0}))
    site.settle()
    empty_answer(site.get("/stream", {"timeout": 0, "cursor": site.get("/cursor").json["cursor"]}))


def test_a_hold_is_no_longer_than_the_server_allows(make_site):
    site = make_site(hold_seconds=0.01)
    for timeout in ({}, {"timeout": 10**30}, {"timeout": 20_000}):
        empty_answer(site.get("/stream", dict(timeout, channel="orders")))


# 206.


@pytest.mark.parametrize("memory", [True, False])
def test_an_answer_cut_at_the_limit_is_206(make_site, memory):
    site = make_site(tail_events=100 if memory else 1)
    for number in range(3):
        site.publish(number)
    site.settle()
    reply = site.get("/stream", {"channel": "orders", "limit": 2})
    assert (reply.status, reply.data, reply.json["more"]) == (206, [0, 1], True)
    rest = site.get("/stream", {"channel": "orders", "limit": 2, "cursor": reply.cursor})
    assert (rest.status, rest.data) == (200, [2])


def test_a_limit_is_clamped_to_the_settings(make_site):
    site = make_site(max_events=2)
    for number in range(3):
        site.publish(number)
    site.settle()
    for limit in ({}, {"limit": 3}, {"limit": 10**30}):
        assert site.get("/stream", dict(limit, channel="orders")).data == [0, 1]


@pytest.mark.parametrize("memory", [True, False])
def test_an_answer_cut_at_the_bytes_is_206(make_site, memory):
    site = make_site(max_response_bytes=1024, tail_events=100 if memory else 1)
    for _ in range(5):
        site.publish("x" * 400)
    site.settle()
    reply = site.get("/stream", {"channel": "orders"})
    assert (reply.status, len(reply.data)) == (206, 2)


@pytest.mark.parametrize("memory", [True, False])
def test_an_event_larger_than_the_byte_limit_comes_alone(make_site, memory):
    site = make_site(max_response_bytes=1024, tail_events=100 if memory else 1)
    for data in ("small", "x" * 5000, "small"):
        site.publish(data)
    site.settle()
    sizes, query = [], {"channel": "orders"}
    for _ in range(3):
        reply = site.get("/stream", query)
        sizes.append((reply.status, [len(data) for data in reply.data]))
        query["cursor"] = reply.cursor
    assert sizes == [(206, [5]), (206, [5000]), (200, [5])]


# Where to start.


def test_without_a_cursor_it_starts_at_the_oldest_event(make_site):
    site = make_site(retention_events=2)
    for number in range(5):
        site.publish(number)
    site.trim()
    assert site.get("/stream", {"channel": "orders"}).data == [3, 4]
    assert site.get("/stream", {"channel": "orders", "cursor": ""}).data == [3, 4]


def test_by_setting_it_starts_with_the_present(make_site):
    site = make_site(start="now")
    site.publish("before")
    site.settle()
    cursor = empty_answer(site.get("/stream", {"channel": "orders"}))
    site.publish("after")
    assert site.get("/stream", {"channel": "orders", "cursor": cursor}).data == ["after"]


def test_now_answers_at_once_with_the_present_cursor(site):
    site.publish("before")
    site.settle()
    cursor = empty_answer(site.get("/stream", {"channel": "orders", "cursor": "now"}))
    reply = site.get("/stream", {"channel": "orders", "cursor": "now", "empty": "200"})
    assert reply.json == {"events": [], "cursor": cursor}
    site.publish("after")
    assert site.get("/stream", {"channel": "orders", "cursor": cursor}).data == ["after"]


def test_one_cursor_is_good_for_any_channels(site):
    site.publish(1, channel="a")
    cursor = site.get("/stream", {"channel": "a"}).cursor
    site.publish(2, channel="b")
    assert site.get("/stream", {"channel": "b", "cursor": cursor}).data == [2]


def test_an_answer_that_was_lost_can_be_asked_for_again(site):
    site.publish(1)
    site.settle()
    cursor = Cursor.parse(site.get("/cursor").json["cursor"])
    start = str(Cursor.at(site.runtime.log.bounds().log_id, 0, None))
    for _ in range(2):
        reply = site.get("/stream", {"channel": "orders", "cursor": start})
        assert reply.data == [1] and reply.cursor == str(cursor)


# 410.


def gone(site, reply, code):
    """A 410 that says where to go on: the head."""
    assert (reply.status, reply.code) == (410, code)
    assert reply.json["cursor"] == reply.cursor == site.get("/cursor").json["cursor"]
    site.publish("after")
    assert site.get("/stream", {"channel": "orders", "cursor": reply.cursor}).data == ["after"]


def test_a_cursor_whose_events_were_trimmed_is_expired(make_site):
    site = make_site(retention_events=2, tail_events=1)
    site.publish(0)
    cursor = site.get("/stream", {"channel": "orders"}).cursor
    for number in range(1, 6):
        site.publish(number)
    site.settle()
    site.trim()
    gone(site, site.get("/stream", {"channel": "orders", "cursor": cursor}), "cursor_expired")


@pytest.mark.parametrize("memory", [True, False], ids=["from memory", "from the log"])
@pytest.mark.parametrize("limit", [1, 500])
def test_a_cursor_too_far_behind_is_told(make_site, memory, limit):
    site = make_site(max_backlog_events=3, tail_events=10_000 if memory else 1)
    cursors = [site.get("/cursor").cursor]
    for number in range(4):
        site.publish(number)
        site.publish(number, channel="others")
        cursors.append(site.get("/cursor").cursor)
    site.settle()
    query = {"channel": "orders", "limit": limit}
    assert site.get("/stream", dict(query, cursor=cursors[1])).data == [1, 2, 3][:limit]
    assert site.get("/stream", dict(query, cursor=cursors[0], channel="quiet", timeout=0)).status == 204
    gone(site, site.get("/stream", dict(query, cursor=cursors[0])), "backlog_too_large")
    assert bool(site.runtime.catchup.reads) != memory
    assert site.runtime.hub.held == 0


def test_without_a_cursor_everything_counts(make_site):
    site = make_site(max_backlog_events=2)
    for number in range(2):
        site.publish(number)
    assert site.get("/stream", {"channel": "orders"}).data == [0, 1]
    site.publish(2)
    gone(site, site.get("/stream", {"channel": "orders"}), "backlog_too_large")


def test_by_setting_a_start_with_the_present_is_never_behind(make_site):
    site = make_site(max_backlog_events=1, start="now")
    for number in range(3):
        site.publish(number)
    assert site.get("/stream", {"channel": "orders"}).status == 204


def test_who_is_held_gets_what_comes_however_much_it_is(make_site):
    site = make_site(max_backlog_events=2)
    poll = site.hold({"channel": "orders"})
    with site.engine.begin() as connection:
        for number in range(5):
            site.poll.publish(connection, "orders", number)
    assert poll.reply().data == [0, 1, 2, 3, 4]


def test_behind_a_heartbeat_a_cursor_too_far_behind_is_told_in_the_body(make_site):
    site = make_site(max_backlog_events=2)
    for number in range(3):
        site.publish(number)
    reply = site.get("/stream", {"channel": "orders", "heartbeat": 1000})
    assert (reply.status, reply.code) == (410, "backlog_too_large")


def test_a_cursor_of_another_log_is_unknown(site):
    cursor = site.get("/cursor").json["cursor"]
    schema.new_log(site.engine)
    gone(site, site.get("/stream", {"channel": "orders", "cursor": cursor}), "cursor_unknown")


def test_a_poll_held_while_the_log_is_replaced_is_told(site):
    poll = site.hold({"channel": "orders"})
    schema.new_log(site.engine)
    gone(site, poll.reply(), "cursor_unknown")


@pytest.mark.parametrize(
    "forge",
    [
        lambda cursor: Cursor(cursor.log, cursor.position + 1, cursor.check),
        lambda cursor: Cursor(cursor.log, 2**63 - 1, cursor.check),
        lambda cursor: Cursor(cursor.log, cursor.position, "00000000"),
        lambda cursor: Cursor(cursor.log, cursor.position - 1, cursor.check),
        lambda cursor: Cursor("00000000", cursor.position, cursor.check),
    ],
    ids=["beyond the end", "far beyond the end", "failed check", "check of another", "foreign"],
)
def test_a_cursor_that_is_nearly_right_is_unknown(site, forge):
    for number in range(3):
        site.publish(number)
    site.settle()
    cursor = str(forge(Cursor.parse(site.get("/cursor").json["cursor"])))
    gone(site, site.get("/stream", {"channel": "orders", "cursor": cursor}), "cursor_unknown")


def test_a_log_cut_back_is_told_to_those_who_were_ahead(site):
    for number in range(3):
        site.publish(number)
    site.settle()
    poll = site.hold({"channel": "other", "cursor": site.get("/cursor").json["cursor"]})
    with site.engine.begin() as connection:
        connection.execute(text("DELETE FROM legacy_poll_event WHERE position > 1"))
        connection.execute(text("UPDATE legacy_poll_log SET head = 1"))
    gone(site, poll.reply(), "cursor_unknown")


# Two workers.


def test_a_worker_that_is_behind_neither_refuses_nor_goes_back(make_site, monkeypatch):
    """The client hops from a worker that has the event to one that has not looked yet."""
    quick, slow = make_site(), make_site(poll_interval_seconds=60)
    slow.settle()
    quick.publish(1)
    cursor = quick.get("/stream", {"channel": "orders"}).cursor
    assert empty_answer(slow.get("/stream", {"channel": "orders", "cursor": cursor, "timeout": 1})) == cursor
    poll = slow.hold({"channel": "orders", "cursor": cursor})
    quick.publish(2)
    slow.runtime.publisher.wake()
    assert poll.reply().data == [2]


def test_two_workers_give_the_same_answers(make_site):
    sites = [make_site(), make_site()]
    for number in range(5):
        sites[number % 2].publish(number)
    for site in sites:
        assert site.collect(5, {"channel": "orders"}) == [0, 1, 2, 3, 4]


# 405, 404, OPTIONS.


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "PATCH", "DELETE"])
def test_stream_takes_get_alone(site, method):
    reply = site.open(method, "/stream", NOW)
    assert reply.status == 405
    assert reply.headers["Allow"] == "GET, OPTIONS"
    if method == "HEAD":
        assert reply.body == b""
    else:
        assert reply.code == "method_not_allowed"
        assert reply.message == site.prefix + "/stream takes GET"


def test_options_says_what_it_takes(site):
    reply = site.open("OPTIONS", "/stream")
    assert (reply.status, reply.headers["Allow"], reply.body) == (200, "GET, OPTIONS", b"")


@pytest.mark.parametrize("path", ["/nothing", "/stream/more", ""])
def test_there_is_nothing_else_under_the_prefix(site, path):
    assert site.get(path).status == 404
