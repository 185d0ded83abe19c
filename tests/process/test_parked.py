"""The parked lane from outside: raw connections to one worker, byte by byte, beside the standard lane where it says so.

The suites of the wire, of endings, delivery, revocation, outages and slow readers run over this lane as well. Here is
what they cannot see: the third poll of a connection is held without the application being asked, and whatever is not
exactly such a poll is not.
"""

from __future__ import annotations

import re
import signal
import socket
import time

import pytest

from tests.process.kept import (
    GONE,
    PATH,
    SECONDS,
    Client,
    approved,
    asked,
    cycle,
    metrics,
    say,
    undated,
    understood,
    unread,
    until_held,
    worker,
)
from tests.process.polls import get, head, publish
from tests.waiting import until

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def test_the_third_poll_of_a_connection_is_held_without_the_application(shop):
    gunicorn = shop()
    assert worker(gunicorn)["lane"] == "parked"
    client, cursor = approved(gunicorn)
    before = asked(gunicorn)
    for turn in range(20):
        # From one digit of the position to two, and whatever jQuery adds.
        client.path = PATH + "&_=" + str(1790000000000 + turn) if turn > 10 else PATH
        answer, cursor = cycle(client, cursor, turn)
        assert b'"data":%d,' % turn in answer
    # The two with another form, of which the second was approved.
    assert asked(gunicorn) == before + 1
    assert int(metrics(gunicorn)["approved_total"]) >= 18
    # As in the log of the standard lane.
    assert gunicorn.log.count('"GET /stream?') == 22
    assert '"GET {}&cursor={} HTTP/1.1" 200 '.format(PATH, head_of(gunicorn, 0)) in gunicorn.log


def head_of(gunicorn, position):
    return re.search(r"cursor=(1-\w+-%d-\w+) " % position, gunicorn.log).group(1)


def test_answers_are_those_of_the_standard_lane_but_for_the_date(shop):
    standard = shop("standard")
    parked = shop("parked")
    assert (worker(standard)["lane"], worker(parked)["lane"]) == ("standard", "parked")
    cases = ["", "&empty=200&timeout=300", "&timeout=300", "&limit=1&timeout=5000"]
    for case in cases:
        clients = [Client(each, path=PATH + case) for each in (standard, parked)]
        cursor = head(parked)
        for _ in range(4):
            for client in clients:
                client.ask(cursor)
            if "timeout=300" not in case:
                until_held(standard, 1)
                until_held(parked, 1)
                assert publish(parked, [{"channel": "orders", "data": n} for n in range(2)]).status == 201
            answers = [undated(client.raw()) for client in clients]
            assert answers[0] == answers[1]
            assert b"X-Shop: open" in answers[1]
            cursor = head(parked) if "limit" in case else understood(answers[1])[1]
    assert int(metrics(parked)["approved_total"]) >= 2 * len(cases)
    assert metrics(standard)["approved_total"] == "0"
    # What ends a hold otherwise: a revocation, and the worker's end.
    for end in (lambda: get(parked, "/logout?who=anne", method="POST"), None):
        clients = [approved(each) for each in (standard, parked)]
        for client, _ in clients:
            client.ask(head(parked))
        until_held(standard, 1)
        until_held(parked, 1)
        if end is not None:
            end()
        else:
            standard.signal(signal.SIGTERM)
            parked.signal(signal.SIGTERM)
        answers = [undated(client.raw()) for client, _ in clients]
        assert answers[0] == answers[1]
        assert answers[1].startswith(b"HTTP/1.1 401" if end is not None else b"HTTP/1.1 204")
        assert (b"Connection: close" in answers[1]) == (end is None)
    assert clients[1][0].over
    until(lambda: not parked.running and not standard.running, SECONDS, "both are gone")


def test_every_split_of_a_poll_gives_the_same_answer(shop):
    gunicorn = shop()
    client, _ = approved(gunicorn, path=PATH + "&limit=1")
    first = re.sub(r"-\d+-\w+$", "-0-e3b0c442", head(gunicorn))
    whole = client.request(first)
    client.send(whole)
    expected = undated(client.raw())
    assert expected.startswith(b"HTTP/1.1 206")
    before = asked(gunicorn)
    client.send(whole)
    assert undated(client.raw()) == expected and asked(gunicorn) == before
    for place in range(1, len(whole)):
        # Each on a connection that is parked, between two polls.
        client = Client(gunicorn, path=PATH + "&limit=1")
        cycle(client, head(gunicorn))
        client.send(whole[:place])
        until(lambda each=client: unread(gunicorn, each) == 0, SECONDS, "the server has read it")
        client.send(whole[place:])
        assert undated(client.raw()) == expected, whole[:place]
        client.close()


def test_two_polls_at_once_are_answered_in_order(shop):
    gunicorn = shop()
    client, cursor = approved(gunicorn, path=PATH + "&limit=1")
    first = re.sub(r"-\d+-\w+$", "-0-e3b0c442", cursor)
    second = understood(Client(gunicorn, path=PATH + "&limit=1").ask(first).raw())[1]
    client.send(client.request(first) + client.request(second))
    answers = [client.hear() for _ in range(2)]
    assert [status for status, _, _ in answers] == [206, 200]
    # The second while the first is held, on an approval.
    client, cursor = approved(gunicorn)
    client.ask(cursor)
    until_held(gunicorn, 1)
    client.send(client.request(cursor))
    client.send(b"GET /asked HTTP/1.1\r\nHost: here\r\n\r\n")
    until(lambda: unread(gunicorn, client) > 0, SECONDS, "they are there")
    assert worker(gunicorn)["held"] == 1
    say(gunicorn, "to both")
    first, second, third = client.raw(), client.raw(), client.raw()
    assert b"to both" in first and undated(first) == undated(second)
    assert third.startswith(b"HTTP/1.1 200 OK") and b"anne" in third


JUNK = [
    b"\x00\xff\x80\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET " + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",
    b"\r\n\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]


@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
def test_junk_between_two_polls_is_for_gunicorn(shop, junk):
    gunicorn = shop()
    other, cursor = approved(gunicorn)
    client = Client(gunicorn)
    _, cursor = cycle(client, cursor)
    other.ask(cursor)
    until_held(gunicorn, 1)
    client.send(junk)
    answer = client.raw()
    # gunicorn 20.1 takes HTTP/2.0 for a version, and says 404; 22 fails while it says that it is none: 500.
    assert answer == GONE or re.match(rb"HTTP/[12].. [45]", answer), answer
    say(gunicorn, "for the other")
    assert b"for the other" in other.raw()
    assert "a parked poll failed" not in gunicorn.log


def test_whatever_is_not_the_same_request_is_for_the_application(shop):
    port = socket.socket()
    port.bind(("127.0.0.1", 0))
    second = port.getsockname()[1]
    port.close()
    gunicorn = shop(options=["-b", "127.0.0.1:{}".format(second)])
    client, cursor = approved(gunicorn)
    before = asked(gunicorn)
    _, cursor = cycle(client, cursor)
    assert asked(gunicorn) == before
    others = [
        {"who": "bert"},
        {"headers": ["Authorization: Bearer abc"]},
        {"headers": ["X-New: 1"]},
        {"path": "/stream?channel=stock&channel=orders"},
        {"path": PATH + "&limit=7"},
        {"source": "127.0.0.2"},
        {"port": second},
    ]
    for count, options in enumerate(others, start=1):
        client = Client(gunicorn)
        _, cursor = cycle(client, cursor)
        before = asked(gunicorn)
        other = Client(gunicorn, **options)
        _, cursor = cycle(other, cursor)
        _, cursor = cycle(other, cursor)
        assert asked(gunicorn) == before + 1, options
        _, cursor = cycle(other, cursor)
        assert asked(gunicorn) == before + 1, options
        assert int(metrics(gunicorn)["approvals"]) == count + 1
    # On the same connection: another cookie, and a channel that it may not read.
    client, cursor = approved(gunicorn)
    before = asked(gunicorn)
    client.headers[1] = "Cookie: who=carl"
    client.ask(cursor)
    until(lambda: asked(gunicorn) == before + 1, SECONDS, "the application was asked")
    say(gunicorn, 1)
    _, cursor, _ = client.hear()
    client.path = "/stream?channel=secret"
    client.ask(cursor)
    assert client.hear()[0] == 403


def test_what_nobody_tells_of_is_found_when_the_approval_ends(shop):
    gunicorn = shop(REAUTHORIZE_SECONDS=2)
    client, cursor = approved(gunicorn)
    get(gunicorn, "/withdraw?who=anne", method="POST")
    status = 204
    while status == 204:
        # Held for ten minutes, if it were not for the approval's end.
        client.ask(cursor)
        status, moved, _ = client.hear()
        cursor = moved or cursor
    assert status == 403


def test_a_logout_ends_the_held_poll_and_its_approval(shop):
    gunicorn = shop()
    client, cursor = approved(gunicorn)
    other, _ = approved(gunicorn, who="bert")
    cursor = head(gunicorn)
    client.ask(cursor)
    other.ask(cursor)
    until_held(gunicorn, 2)
    before = asked(gunicorn)
    get(gunicorn, "/logout?who=anne", method="POST")
    status, _, body = client.hear()
    assert status == 401 and b"revoked" in body
    assert asked(gunicorn) == before
    # Who logged in again is asked about again; the other never was.
    client.ask(cursor)
    until_held(gunicorn, 2)
    assert asked(gunicorn) == before + 1
    say(gunicorn, "to both")
    assert [b"to both" in each.raw() for each in (client, other)] == [True, True]
    assert asked(gunicorn) == before + 1


def test_a_poll_whose_answer_sets_a_cookie_is_never_approved(shop):
    gunicorn = shop()
    client = Client(gunicorn, path=PATH + "&mark=1")
    cursor = head(gunicorn)
    for turn in range(4):
        answer, cursor = cycle(client, cursor, turn)
        assert b"Set-Cookie: mark=1" in answer
    assert asked(gunicorn) == 4
    assert metrics(gunicorn)["approvals"] == "0"


def test_a_client_that_connects_anew_with_the_same_bytes_is_not_asked_about_again(shop):
    gunicorn = shop()
    client, cursor = approved(gunicorn)
    client.close()
    before = asked(gunicorn)
    for turn in range(3):
        until(lambda: metrics(gunicorn)["parked"] == "0", SECONDS, "the one before is gone")
        # All at once, and the request a moment behind the connection.
        again = Client(gunicorn)
        if turn % 2:
            until(lambda: metrics(gunicorn)["parked"] == "1", SECONDS, "it is parked before it asks")
        _, cursor = cycle(again, cursor, turn)
        again.close()
    assert asked(gunicorn) == before
    other = Client(gunicorn, who="bert")
    cycle(other, cursor)
    assert asked(gunicorn) == before + 1


def opened(shop, **options):
    """A shop whose lane takes new connections: its first was parked, and is gone."""
    gunicorn = shop(**options)
    first = Client(gunicorn)
    cycle(first, head(gunicorn))
    first.close()
    until(lambda: metrics(gunicorn)["parked"] == "0", SECONDS, "the first is gone")
    return gunicorn


def test_the_connection_of_a_poll_that_is_answered_at_once_waits_in_the_lane_too(shop):
    gunicorn = opened(shop, options=["--keep-alive", "60"])
    client = Client(gunicorn)
    for cursor in ("now", re.sub(r"-\d+-\w+$", "-0-e3b0c442", head(gunicorn))):
        client.ask(cursor, more="&empty=200")
        status, cursor, _ = client.hear()
        assert status == 200
        assert metrics(gunicorn)["parked"] == "1"
    # It holds no place, and goes on.
    assert worker(gunicorn)["held"] == 0
    before = asked(gunicorn)
    cycle(client, cursor)
    assert asked(gunicorn) == before + 1


def test_a_poll_is_not_held_under_the_terms_of_one_that_asked_for_the_present_cursor(shop):
    gunicorn = shop(TAIL_EVENTS=1)
    start = head(gunicorn)
    now = Client(gunicorn)
    # Its connection waits in the lane, with terms that are equal but for this.
    now.ask("now")
    assert now.hear()[0] == 204
    for data in range(3):
        say(gunicorn, data)
    until(lambda: worker(gunicorn)["cursor"] == head(gunicorn), SECONDS, "the worker has them")
    client = Client(gunicorn)
    before = asked(gunicorn)
    # What it has missed is not in memory: the log is read, first by the application's request, then by the lane.
    answers = [client.ask(start).hear() for _ in range(2)]
    assert asked(gunicorn) == before + 1
    assert answers[0] == answers[1] and answers[0][0] == 200
    assert b'"data":2' in answers[1][2]


def test_two_logs_of_one_process_do_not_take_each_others_polls(shop):
    gunicorn = shop()
    cursors = [head(gunicorn), get(gunicorn, "/other/cursor").json["cursor"]]
    assert cursors[0].split("-")[1] != cursors[1].split("-")[1]
    clients = [Client(gunicorn), Client(gunicorn, path="/other" + PATH)]
    for _ in range(2):
        assert [client.ask("now", more="&empty=200").hear()[1] for client in clients] == cursors
    for turn in range(4):
        for client, cursor in zip(clients, cursors):
            client.ask(cursor)
        until_held(gunicorn, 1)
        until(lambda: get(gunicorn, "/other/status").json["worker"]["held"] == 1, SECONDS, "the other holds")
        for number, client in enumerate(clients):
            event = {"channel": "orders", "data": "{} in {}".format(turn, number)}
            assert publish(gunicorn, event, path=["/publish", "/other/publish"][number]).status == 201
            status, cursors[number], body = client.hear()
            assert status == 200 and '"{} in {}"'.format(turn, number).encode("ascii") in body
    parked = [get(gunicorn, path).json["worker"]["lane"] for path in ("/status", "/other/status")]
    assert parked == ["parked", "parked"]


def test_a_new_connection_has_its_own_time_to_send_its_first_request(shop):
    gunicorn = opened(shop)
    early = Client(gunicorn)
    until(lambda: metrics(gunicorn)["parked"] == "1", SECONDS, "it waits in the lane")
    # gunicorn's keepalive is 2 s here: half of it, in which another comes.
    early.socket.settimeout(1.0)
    with pytest.raises(socket.timeout):
        early.raw()
    late = Client(gunicorn)
    early.socket.settimeout(SECONDS)
    assert early.over
    late.send(b"GET /asked HTTP/1.1\r\nHost: here\r\n\r\n")
    assert late.raw().startswith(b"HTTP/1.1 200")


def test_a_header_that_was_declared_may_differ_from_poll_to_poll(shop):
    gunicorn = shop(VARYING_HEADERS="X-Request-Id, traceparent")
    client, cursor = approved(gunicorn, headers=["x-request-id: 1", "Traceparent: 00-a-b-01"])
    before = asked(gunicorn)
    for turn in range(3):
        client.headers[2:] = ["x-request-id: {:x}".format(turn + 9), "Traceparent: 00-c-{}-01".format(turn)]
        _, cursor = cycle(client, cursor, turn)
    assert asked(gunicorn) == before
    client.headers.append("X-Span: 1")
    cycle(client, cursor)
    assert asked(gunicorn) == before + 1


def test_an_answer_that_cannot_be_sent_ends_its_own_connection_and_no_others(shop):
    gunicorn = shop()
    other, cursor = approved(gunicorn)
    other.ask(head(gunicorn))
    until_held(gunicorn, 1)
    first = re.sub(r"-\d+-\w+$", "-0-e3b0c442", cursor)
    # Approved at first; then on an approval, behind its connection and on one that waited already.
    for waits in (False, False, True):
        client = Client(gunicorn, path=PATH + "&odd=1")
        if waits:
            until(lambda: metrics(gunicorn)["parked"] == "2", SECONDS, "it is parked before it asks")
        assert client.ask(first).over
        until(lambda: metrics(gunicorn)["parked"] == "1", SECONDS, "it is gone")
        assert worker(gunicorn)["held"] == 1
    assert asked(gunicorn) == 3
    # Two that wait together, and one right to read is revoked.
    clients = [Client(gunicorn, path=PATH + "&odd=1") for _ in range(2)]
    for client in clients:
        client.ask(head(gunicorn))
    until_held(gunicorn, 3)
    get(gunicorn, "/logout?who=anne", method="POST")
    assert [client.over for client in clients] == [True, True] and other.hear()[0] == 401
    until_held(gunicorn, 0)
    _, cursor = cycle(other, head(gunicorn))
    assert gunicorn.log.count("a parked poll failed") == 5


def test_what_runs_when_a_response_is_closed_may_fail_or_wait(shop):
    gunicorn = shop()
    client, other = Client(gunicorn, path=PATH + "&closing=1"), Client(gunicorn)
    for each in (client, other):
        each.ask(head(gunicorn))
    until_held(gunicorn, 2)
    # Its response is being closed; who may not read any more must not be forgotten over it.
    get(gunicorn, "/logout?who=anne", method="POST")
    assert other.hear()[0] == 401
    get(gunicorn, "/open", method="POST")
    assert client.hear()[0] == 401
    for turn in range(3):
        _, cursor = cycle(client, head(gunicorn), turn)
    client.close()
    until_held(gunicorn, 0)
    assert gunicorn.log.count("a function of call_on_close failed") > 1


def test_the_access_log_has_each_polls_own_request_id(shop):
    logged = "%({x-request-id}i)s %({http_x_request_id}e)s; %({traceparent}i)s %({host}i)s."
    gunicorn = shop(
        VARYING_HEADERS="X-Request-Id,traceparent", options=["--access-logformat", "logged " + logged]
    )
    client, cursor = Client(gunicorn), head(gunicorn)
    for turn in range(4):
        client.headers[2:] = ["X-request-id: id-{}".format(turn), "Traceparent: 00-{}".format(turn)]
        _, cursor = cycle(client, cursor, turn)
    assert asked(gunicorn) == 2
    # And of one that hangs up.
    client.headers[2:] = ["X-request-id: id-4", "Traceparent: 00-4"]
    client.ask(cursor)
    until_held(gunicorn, 1)
    client.close()
    until_held(gunicorn, 0)
    for turn in range(5):
        assert gunicorn.log.count("logged id-{0} id-{0}; 00-{0} here.".format(turn)) == 1, turn


def test_a_response_that_middleware_hides_stays_in_the_standard_lane(shop):
    gunicorn = shop(hide=True)
    client, cursor = Client(gunicorn), head(gunicorn)
    for turn in range(3):
        _, cursor = cycle(client, cursor, turn)
    assert asked(gunicorn) == 3
    assert metrics(gunicorn)["parked"] == "0"


def test_a_hang_up_frees_the_place_at_once_and_is_logged(shop):
    gunicorn = shop()
    for turn, behind in enumerate([b"", b"GET /asked HTTP/1.1\r\nHost: here\r\n\r\n"]):
        client, cursor = approved(gunicorn)
        client.ask(cursor)
        until_held(gunicorn, 1)
        client.send(behind)
        client.close()
        until_held(gunicorn, 0)
        assert gunicorn.log.count('" 499 ') == turn + 1
    assert get(gunicorn, "/status").json["answers"]["hangup"] == 2


def test_limits_are_those_of_the_worker(shop):
    gunicorn = shop(MAX_HELD=2)
    clients = [approved(gunicorn)[0] for _ in range(3)]
    cursor = head(gunicorn)
    clients[0].ask(cursor)
    clients[1].ask(cursor)
    until_held(gunicorn, 2)
    clients[2].ask(cursor)
    status, _, body = clients[2].hear()
    assert status == 503 and b"server_full" in body
    say(gunicorn, "to two")
    assert all(b"to two" in client.raw() for client in clients[:2])
    # A place is free again; its connection is gunicorn's by now.
    clients[2].ask(head(gunicorn))
    until_held(gunicorn, 1)


def test_a_connection_that_is_not_used_is_closed(shop):
    gunicorn = shop()
    client, _ = approved(gunicorn)
    assert metrics(gunicorn)["parked"] == "1"
    assert client.over
    assert metrics(gunicorn)["parked"] == "0"


def hear_the_same(gunicorn, clients, cursor, data):
    """All of *clients* ask and are held, *data* is published, and all get one answer; returns its cursor."""
    for client in clients:
        client.ask(cursor)
    until_held(gunicorn, len(clients))
    say(gunicorn, data)
    [answer] = {undated(client.raw()) for client in clients}
    return understood(answer)[1]


def test_a_worker_that_stood_still_answers_what_came_meanwhile(shop):
    gunicorn = shop()
    [process] = gunicorn.workers
    # More than the worker looks at in one step, each with a connection that waits for its next poll.
    clients = [Client(gunicorn) for _ in range(600)]
    cursor = head(gunicorn)
    for turn in range(2):
        cursor = hear_the_same(gunicorn, clients, cursor, turn)
    with gunicorn.paused(process):
        # gunicorn's keepalive, 2 s here, ends meanwhile: a machine that was moved, a container without CPU time.
        over = time.monotonic() + 3
        for client in clients:
            client.ask(cursor)
        until(lambda: time.monotonic() > over, SECONDS, "their connections are due to be closed")
    until_held(gunicorn, len(clients))
    say(gunicorn, "to all")
    assert all(b"to all" in client.raw() for client in clients)


def test_a_client_that_does_not_read_is_cut_off_and_nobody_waits_for_it(shop):
    size = 12_000_000
    gunicorn = shop(SEND_SECONDS=1, MAX_EVENT_BYTES=16_000_000)
    slow, _ = approved(gunicorn)
    slow.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    quick, _ = approved(gunicorn)
    cursor = head(gunicorn)
    slow.ask(cursor)
    quick.ask(cursor)
    until_held(gunicorn, 2)
    engine_insert(gunicorn, "x" * size)
    assert len(quick.raw()) > size
    until(lambda: metrics(gunicorn)["cut_total"] == "1", SECONDS, "the slow one is cut off")
    until_held(gunicorn, 0)
    until(
        lambda: metrics(gunicorn)["parked"] == "0", SECONDS, "both connections are closed, one of them unused"
    )


def engine_insert(gunicorn, text):
    from sqlalchemy import create_engine
    from sqlalchemy import text as sql

    engine = create_engine(gunicorn.settings["DATABASE_URL"], future=True)
    with engine.begin() as connection:
        connection.execute(
            sql("INSERT INTO legacy_poll_outbox (channel, data) VALUES ('orders', :data)"),
            {"data": '"%s"' % text},
        )
    engine.dispose()


def test_a_thousand_cycles_leave_no_descriptor_and_no_place(shop):
    gunicorn = shop()
    [process] = gunicorn.workers
    say(gunicorn, "the first; what publishing opens is there")
    until(lambda: gunicorn.sockets(process) <= 5, SECONDS, "the questions at the start are over")
    before = gunicorn.sockets(process)
    clients = [Client(gunicorn) for _ in range(50)]
    cursor = head(gunicorn)
    for turn in range(20):
        cursor = hear_the_same(gunicorn, clients, cursor, turn)
    # The first two polls of the first connection, and the first ones of the others.
    assert 50 < asked(gunicorn) <= 100
    for client in clients[:25]:
        client.ask(cursor)
    until_held(gunicorn, 25)
    for client in clients:
        client.close()
    until_held(gunicorn, 0)
    until(lambda: metrics(gunicorn)["parked"] == "0", SECONDS, "no connection is parked")
    until(lambda: gunicorn.sockets(process) <= before, SECONDS, "all their sockets are closed")
    assert "Traceback" not in gunicorn.log


def test_what_cannot_be_had_is_said(shop):
    gunicorn = shop(options=["--keep-alive", "0"])
    get(gunicorn, "/health/ready")
    assert worker(gunicorn)["lane"] == "standard, since gunicorn's keepalive is 0"
    said = "polls wait in the standard lane, since gunicorn's keepalive is 0"
    # Once for each of the application's two logs.
    assert gunicorn.logged(said) == 2
    # What is there without asking for it.
    gunicorn = shop("default")
    assert worker(gunicorn)["lane"] == "parked"
    assert gunicorn.logged("polls wait in the parked lane") == 2
