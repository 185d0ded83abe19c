"""Who may be held: a client's share is 429, the worker's is 503, and both are refused before anybody is asked."""

from __future__ import annotations

import threading

import pytest
from flask import request

from tests.waiting import until

ORDERS = {"channel": "orders"}


def counted(site, limit):
    """How many the metrics say were refused by *limit*."""
    (line,) = [
        line
        for line in site.get("/metrics").body.decode("utf-8").splitlines()
        if line.startswith("legacy_poll_refused_total{") and 'limit="{}"'.format(limit) in line
    ]
    return int(line.rpartition(" ")[2])


def refused(reply, status, code):
    assert (reply.status, reply.code) == (status, code)
    assert 1 <= int(reply.headers["Retry-After"]) <= 5
    assert reply.headers["Cache-Control"] == "no-store"
    return True


def test_one_client_has_its_share(make_site):
    site = make_site(max_held_per_client=2)
    polls = [site.hold(ORDERS, address="10.0.0.1") for _ in range(2)]
    refused(site.get("/stream", ORDERS, address="10.0.0.1"), 429, "too_many_polls")
    assert counted(site, "max_held_per_client") == 1
    polls.append(site.hold(ORDERS, address="10.0.0.2"))
    site.publish(1)
    assert [poll.reply().data for poll in polls] == [[1]] * 3
    assert site.get("/stream", ORDERS, address="10.0.0.1").data == [1]


def test_the_worker_has_so_many_places(make_site):
    site = make_site(max_held=2)
    polls = [site.hold(ORDERS, address="10.0.0.%d" % number) for number in range(2)]
    refused(site.get("/stream", ORDERS, address="10.0.0.9"), 503, "server_full")
    assert [counted(site, limit) for limit in ("max_held", "max_held_per_client")] == [1, 0]
    site.publish(1)
    for poll in polls:
        assert poll.reply().data == [1]
    assert site.get("/stream", ORDERS).data == [1]


@pytest.mark.parametrize("query", [{"timeout": 0}, {"cursor": "now"}, {"timeout": 0, "cursor": "now"}])
def test_who_does_not_wait_does_not_count(make_site, query):
    site = make_site(max_held=0, max_held_per_client=1)
    assert site.get("/stream", dict(ORDERS, **query)).status == 204
    refused(site.get("/stream", ORDERS), 503, "server_full")


def test_other_routes_do_not_count(make_site):
    site = make_site(max_held=0)
    assert site.get("/cursor").status == site.get("/health/live").status == 200


def test_who_is_refused_costs_the_application_nothing(make_site):
    asked = []
    site = make_site(max_held=0, options={"authorize": asked.append})
    refused(site.get("/stream", ORDERS), 503, "server_full")
    assert asked == []


def test_a_bad_query_is_told_even_when_there_is_no_room(make_site):
    assert make_site(max_held=0).get("/stream", "limit=0").status == 400


def test_those_who_are_refused_come_back_at_different_times(make_site):
    site = make_site(max_held=0)
    assert len({site.get("/stream", ORDERS).headers["Retry-After"] for _ in range(60)}) > 2


def test_an_answer_that_is_there_at_once_needs_a_place_and_gives_it_back(make_site):
    site = make_site(max_held=1)
    site.publish(1)
    for _ in range(3):
        assert site.get("/stream", ORDERS).data == [1]


def test_a_fault_of_ours_during_the_hold_is_500_in_our_shape_and_gives_the_place_back(
    make_site, monkeypatch, caplog
):
    site = make_site(max_held=1)
    site.settle()

    def fails(*arguments, **options):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(site.runtime.hub, "join", fails)
    monkeypatch.setattr(site.runtime.log, "read_after", fails)
    for _ in range(2):
        reply = site.get("/stream", ORDERS)
        assert (reply.status, reply.code) == (500, "internal_error")
        assert b"ours" not in reply.body
    assert "ZeroDivisionError: ours" in caplog.text


# Whose share.


def test_an_address_is_believed_as_far_as_our_own_proxies_vouch_for_it(make_site):
    site = make_site(max_held_per_client=1, trusted_proxies=1)

    def forwarded(text):
        return {"address": "10.0.0.1", "headers": {"X-Forwarded-For": text}}

    polls = [site.hold(ORDERS, **forwarded("1.1.1.1")), site.hold(ORDERS, **forwarded("1.1.1.1, 2.2.2.2"))]
    refused(site.get("/stream", ORDERS, **forwarded("made up, 2.2.2.2")), 429, "too_many_polls")
    site.publish(1)
    for poll in polls:
        poll.reply()


def test_without_proxies_of_ours_nobody_is_believed(make_site):
    site = make_site(max_held_per_client=1)
    poll = site.hold(ORDERS, headers={"X-Forwarded-For": "1.1.1.1"})
    refused(site.get("/stream", ORDERS, headers={"X-Forwarded-For": "2.2.2.2"}), 429, "too_many_polls")
    site.publish(1)
    poll.reply()


def test_the_application_may_say_whose_share_it_is(make_site):
    site = make_site(max_held_per_client=1, options={"client_key": lambda: request.headers.get("X-User")})
    polls = [site.hold(ORDERS, headers={"X-User": user}) for user in "ab"]
    refused(site.get("/stream", ORDERS, headers={"X-User": "a"}), 429, "too_many_polls")
    site.publish(1)
    for poll in polls:
        poll.reply()


def test_one_group_may_have_a_limit(make_site):
    site = make_site(max_group=1)
    site.settle()
    poll = site.hold(ORDERS)
    refused(site.get("/stream", ORDERS), 503, "server_full")
    assert counted(site, "max_group") == 1
    site.publish(1)
    poll.reply()


def test_a_poll_may_name_so_many_channels(make_site):
    site = make_site(max_channels=2)
    assert site.get("/stream", "channels=a,b&timeout=0").status == 204
    reply = site.get("/stream", "channels=a,b,c&timeout=0")
    assert (reply.status, reply.code) == (400, "bad_parameter")
    assert "'3 channels': at most 2 in one poll" in reply.message
    assert counted(site, "max_channels") == 1


def test_reads_of_old_events_wait_for_their_turn_up_to_a_number(make_site, monkeypatch):
    site = make_site(max_catchups=1, catchup_reads=1, tail_events=1)
    for number in range(3):
        site.publish(number)
    site.settle()
    under_way, go_on = threading.Event(), threading.Event()
    read_after = site.runtime.log.read_after

    def slow(*arguments, **options):
        under_way.set()
        assert go_on.wait(10)
        return read_after(*arguments, **options)

    monkeypatch.setattr(site.runtime.log, "read_after", slow)
    reads = [site.ask("/stream", dict(ORDERS, limit=1))]
    assert under_way.wait(10)
    flights = site.runtime.catchup._flights
    reads.append(site.ask("/stream", dict(ORDERS, limit=2)))
    until(lambda: len(flights._boarding) == 1)
    refused(site.get("/stream", dict(ORDERS, limit=3)), 503, "server_full")
    assert counted(site, "max_catchups") == 1
    go_on.set()
    assert [read.reply().data for read in reads] == [[0], [0, 1]]


# A worker that is about to end.


def test_drained_held_polls_are_answered_and_new_ones_refused(site):
    polls = [site.hold(ORDERS) for _ in range(3)]
    site.runtime.drain()
    for poll in polls:
        reply = poll.reply()
        assert (reply.status, reply.cursor) == (204, site.get("/cursor").json["cursor"])
    refused(site.get("/stream", ORDERS), 503, "draining")
    refused(site.get("/health/ready"), 503, "draining")
    assert site.get("/health/live").status == 200
    assert site.get("/stream", dict(ORDERS, timeout=0)).status == 204
