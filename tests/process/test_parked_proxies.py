"""The parked lane behind real nginx and HAProxy, with the configuration of docs/deploy/ and keep-alive upstreams.

A client's next poll comes on another connection of the proxy's, beside those of all other clients: the approvals are
the worker's, and the bytes say whose request it is.
"""

from __future__ import annotations

import json

import pytest

from tests.process.kept import SECONDS, Client, asked, metrics, say, until_held
from tests.process.polls import head
from tests.proxies import HAProxy, Nginx
from tests.waiting import until

USERS = ["user%d" % number for number in range(8)]
ROUNDS = 100
BURST = 200

pytestmark = [
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
    pytest.mark.parametrize("kind", [Nginx, HAProxy], ids=lambda kind: kind.name),
]


@pytest.fixture
def behind(shop, kind):
    """One worker with the parked lane, and the proxy in front of it."""
    gunicorn = shop("parked", TRUSTED_PROXIES=1, REAUTHORIZE_SECONDS=600)
    proxy = kind(gunicorn.port)
    try:
        proxy.start()
        yield gunicorn, proxy
    finally:
        with open(proxy.log_path, errors="replace") as log:
            print(proxy.name, log.read()[-3000:])
        proxy.destroy()


class Follower(Client):
    """A user's browser behind *proxy*: reads what is for all, and (every other) what is for the user alone."""

    def __init__(self, gunicorn, proxy, who):
        self.own = "user:" + who if USERS.index(who) % 2 else "orders"
        path = "/poll/stream?channel=orders" + ("&channel=" + self.own if self.own != "orders" else "")
        super().__init__(gunicorn, who=who, path=path, port=proxy.port)
        self.who = who
        self.seen = []
        self.cursor = head(gunicorn)

    def hear_events(self):
        answer = self.raw()
        start, _, body = answer.partition(b"\r\n\r\n")
        assert start.startswith(b"HTTP/1.1 200"), answer
        # HAProxy writes names of headers in small letters.
        assert b"\r\nx-who: %s\r\n" % self.who.encode("ascii") in start.lower() + b"\r\n", answer
        found = json.loads(body)
        self.cursor = found["cursor"]
        self.seen += [event["data"] for event in found["events"]]


def test_approved_polls_lose_nothing_and_mix_nothing(behind):
    gunicorn, proxy = behind
    users = [Follower(gunicorn, proxy, who) for who in USERS]
    wanted = {user: [] for user in users}

    def publish(number, channel="orders"):
        say(gunicorn, number, channel)
        for user in users:
            if channel in ("orders", user.own):
                wanted[user].append(number)

    for user in users:
        user.ask(user.cursor)
    for number in range(ROUNDS):
        until_held(gunicorn, len(users))
        # To all, or to one of them: the others stay where they are.
        publish(number, users[number % len(users)].own)
        for user in users:
            if user.seen != wanted[user]:
                user.hear_events()
                assert user.seen == wanted[user]
                user.ask(user.cursor)
    for number in range(ROUNDS, ROUNDS + BURST):
        # They come back when they can, each to several at once.
        publish(number, users[number % len(users)].own)
        user = users[number // 9 % len(users)]
        if number % 9 == 0 and user.seen != wanted[user]:
            user.hear_events()
            user.ask(user.cursor)
    for user in users:
        while user.seen != wanted[user]:
            user.hear_events()
            assert user.seen == wanted[user][: len(user.seen)]
            user.ask(user.cursor)
    until_held(gunicorn, len(users))
    found = metrics(gunicorn)
    polls = gunicorn.log.count('"GET /stream?')
    # All but the first of each, and what a connection that was new to the worker brought.
    assert int(found["approved_total"]) > polls / 2, (polls, found)
    assert asked(gunicorn) + int(found["approved_total"]) == polls + len(users)
    for user in users:
        user.close()
    until_held(gunicorn, 0)


def test_a_hang_up_behind_the_proxy_frees_the_place_of_an_approved_poll(behind):
    gunicorn, proxy = behind
    users = [Follower(gunicorn, proxy, who) for who in USERS[:3]]
    for turn in range(4):
        for user in users:
            user.ask(user.cursor)
        until_held(gunicorn, 3)
        say(gunicorn, turn)
        for user in users:
            user.hear_events()
    before = asked(gunicorn)
    for user in users:
        user.ask(user.cursor)
    until_held(gunicorn, 3)
    assert asked(gunicorn) == before
    users[0].close()
    until_held(gunicorn, 2)
    say(gunicorn, "still here")
    for user in users[1:]:
        user.hear_events()
        assert user.seen[-1] == "still here"
        user.close()
    until(lambda: gunicorn.log.count('" 499 ') == 1, SECONDS, "it is logged")
