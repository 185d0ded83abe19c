"""Rights that end while a poll is held on an approval, in every worker: the application was not asked about that poll.

The rules of revocation itself are in test_revocation.py, over both lanes; here it is what the parked lane remembers.
"""

from __future__ import annotations

import pytest

from legacy_poll.tokens import Tokens
from tests.process.conftest import NO_HINTS
from tests.process.kept import Client, approved, asked, cycle, metrics, say, until_held
from tests.process.polls import get, head

KEY = "a key of more than 16 characters"
OPTIONS = ["--keep-alive", "600"]

pytestmark = [
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
    pytest.mark.parametrize("lane", ["parked"]),
]


def on_each(gunicorn):
    """Each worker in turn, alone: whoever connects or asks meets it."""
    for worker in gunicorn.workers:
        with gunicorn.only(worker):
            yield worker


def test_a_logout_ends_approved_polls_and_approvals_on_every_worker(serve):
    gunicorn = serve(
        dict(NO_HINTS, REAUTHORIZE_SECONDS=600), workers=2, app="tests.process.parking:app", options=OPTIONS
    )
    anne, bert, before = {}, {}, {}
    for worker in on_each(gunicorn):
        for who, clients in (("anne", anne), ("bert", bert)):
            clients[worker], _ = approved(gunicorn, who=who)
        before[worker] = asked(gunicorn)
        cursor = head(gunicorn)
        for client in (anne[worker], bert[worker]):
            client.ask(cursor)
        until_held(gunicorn, 2)
        # Nobody was asked about these.
        assert asked(gunicorn) == before[worker] and int(metrics(gunicorn)["approved_total"]) >= 2
    # The first has found the events of the second in the log by now.
    first = next(iter(before))
    for clients in (anne, bert):
        assert clients[first].hear()[0] == 200
    with gunicorn.only(first):
        cursor = head(gunicorn)
        for client in (anne[first], bert[first]):
            client.ask(cursor)
        until_held(gunicorn, 2)
    assert get(gunicorn, "/logout?who=anne", method="POST").status == 200
    for client in anne.values():
        status, _, body = client.hear()
        assert status == 401 and b"revoked" in body
    for worker in on_each(gunicorn):
        until_held(gunicorn, 1)
        seen = asked(gunicorn)
        # Who logs in again is asked about again, here as well.
        anne[worker].ask(head(gunicorn))
        until_held(gunicorn, 2)
        assert asked(gunicorn) == seen + 1
    say(gunicorn, "to all")
    for client in [*anne.values(), *bert.values()]:
        status, _, body = client.hear()
        assert status == 200 and b"to all" in body
        assert b"" == client.buffer


def test_another_cookie_on_a_connection_with_an_approved_poll_is_another_request(serve):
    gunicorn = serve(
        dict(NO_HINTS, REAUTHORIZE_SECONDS=600), workers=2, app="tests.process.parking:app", options=OPTIONS
    )
    for _ in on_each(gunicorn):
        client, cursor = approved(gunicorn, who="anne", path="/stream?channel=user:anne&channel=orders")
        _, cursor = cycle(client, cursor)
        before = asked(gunicorn)
        client.headers[1] = "Cookie: who=bert; theme=dark"
        client.ask(cursor)
        assert client.hear()[0] == 403
        assert asked(gunicorn) == before + 1
        client.headers[1] = "Cookie: who=anne; theme=dark"
        _, cursor = cycle(client, cursor)


def test_a_token_that_expires_ends_its_approval_on_every_worker(serve):
    settings = dict(NO_HINTS, PUBLIC=0, SECRET_KEY=KEY, REAUTHORIZE_SECONDS=1)
    gunicorn = serve(settings, workers=2, options=OPTIONS)
    tokens = Tokens(KEY)
    lasting = tokens.make(["orders"], expires_seconds=3600)
    short = tokens.make(["orders"], expires_seconds=3)
    stay, go = [], []
    for _ in on_each(gunicorn):
        for clients, token in ((stay, lasting), (go, short)):
            # Short holds: the first of a connection, of which the application was asked, would last for ten minutes.
            path = "/stream?timeout=300&channel=orders"
            client = Client(gunicorn, path=path, headers=["Authorization: Bearer " + token])
            clients.append(client)
            client.send(b"GET /health/live HTTP/1.1\r\nHost: here\r\n\r\n")
            assert client.hear()[0] == 200
    cursor = get(gunicorn, "/cursor?channel=orders&token=" + lasting).json["cursor"]
    statuses = [204] * len(go)
    # Each goes on polling, and is let in without a question for a second at most.
    while statuses != [401] * len(go):
        for client in stay + go:
            client.ask(cursor)
        assert [client.hear()[0] for client in stay] == [204] * len(stay)
        was, statuses = statuses, [client.hear()[0] for client in go]
        assert set(statuses) <= {204, 401}
        assert all(status == 401 for status, before in zip(statuses, was) if before == 401)
    for _ in on_each(gunicorn):
        assert int(metrics(gunicorn)["approved_total"]) >= 4
