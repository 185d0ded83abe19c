"""`poll.revoke(subject)` over three workers, on each database: it reaches every one of them as surely as an event."""

from __future__ import annotations

import pytest

from legacy_poll.tokens import Tokens
from tests.process.conftest import (
    NO_HINTS,
    ask_worker,
    each_default_place,
    each_lane,
    everyone,
    hold_everywhere,
)
from tests.process.polls import Client, Request, get, head, position, stream
from tests.waiting import until

KEY = "a key of more than 16 characters"
WORKERS = 2


@pytest.fixture
def users(serve, tmp_path):
    """Workers of an application whose users log out; without hints, as those on other hosts."""
    environ = {"GATES": str(tmp_path)}
    return serve(NO_HINTS, workers=WORKERS, app="tests.process.users:app", environ=environ)


def log_out(gunicorn, subject, **query):
    before = head(gunicorn)
    path = "/logout?as={}".format(subject) + "".join("&{}={}".format(*each) for each in query.items())
    answer = Request(gunicorn, path, method="POST").answer()
    assert answer.status == 200, answer
    if not answer.json["undone"]:
        until(lambda: head(gunicorn) != before, what="it is in the log")


def is_refused(answer):
    assert (answer.status, answer.code) == (401, "unauthorized"), answer
    assert "revoked" in answer.json["error"]["message"]
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def everywhere(gunicorn, path):
    """The answer of each worker."""
    answers = []
    for worker in gunicorn.workers:
        with gunicorn.only(worker):
            answers.append(get(gunicorn, path))
    return answers


def noted(gunicorn):
    """Each worker has the whole log, and so every revocation in it."""
    end = position(head(gunicorn))

    def has_it():
        return position(get(gunicorn, "/status").json["worker"]["cursor"]) >= end

    for worker in gunicorn.workers:
        with gunicorn.only(worker):
            until(has_it, what="it has everything")


@each_default_place
def test_the_subjects_polls_end_on_every_worker_and_all_others_stay(users):
    start = head(users)
    theirs = everyone(hold_everywhere(users, 2, cursor=start, **{"as": "u7"}))
    others = everyone(hold_everywhere(users, 2, cursor=start, **{"as": "u8"}))
    log_out(users, "u7")
    for client in theirs:
        is_refused(client.hear())
    noted(users)
    assert len(others) == 2 * WORKERS and all(client.held for client in others)

    # Who logs in again is held again, on every worker.
    again = everyone(hold_everywhere(users, 1, cursor=start, **{"as": "u7"}))
    assert all(client.held for client in again)
    log_out(users, "nobody")
    noted(users)
    assert all(client.held for client in again + others)
    log_out(users, "u8")
    for client in others:
        is_refused(client.hear())
    assert all(client.held for client in again)


@each_default_place
def test_one_that_is_rolled_back_does_nothing(users, terminal):
    held = everyone(hold_everywhere(users, 1, cursor=head(users), **{"as": "u7"}))
    log_out(users, "u7", undo=1)
    # What is committed behind it has come, so it would have come as well.
    terminal.publish("1", channel="another")
    until(lambda: head(users) != held[0].cursor, what="the event behind it has come")
    noted(users)
    assert len(held) == WORKERS and all(client.held for client in held)
    terminal.publish("2")
    assert [client.hear().data for client in held] == [[2]] * len(held)


@each_default_place
def test_an_authorisation_under_way_at_that_moment_is_not_kept(users, tmp_path):
    start = head(users)
    asked = {}
    for worker in users.workers:
        for subject in ("u7", "u8"):
            gate = "{}-{}".format(subject, worker)
            path = stream(cursor=start, gate=gate, **{"as": subject})
            asked[gate] = ask_worker(users, worker, path)
            until((tmp_path / (gate + ".asked")).exists, what="its authorisation is under way")
    log_out(users, "u7")
    noted(users)
    for gate in asked:
        (tmp_path / (gate + ".open")).write_text("")
    for gate, request in asked.items():
        if gate.startswith("u7"):
            is_refused(request.answer())
    for worker in users.workers:
        with users.only(worker):
            until(lambda: get(users, "/status").json["worker"]["held"] == 1, what="the other is held")
    assert not any(request.answered for gate, request in asked.items() if gate.startswith("u8"))


@each_default_place
def test_tokens_made_before_are_refused_by_every_worker_from_its_first_request_on(serve, terminal):
    gunicorn = serve(dict(NO_HINTS, PUBLIC=0, SECRET_KEY=KEY), workers=WORKERS)
    tokens = Tokens(KEY)
    # By the database's clock, which is this machine's.
    old, others = (tokens.make(["orders"], expires_seconds=3600, subject=name) for name in ("u7", "u8"))
    held = everyone(hold_everywhere(gunicorn, 1, token=old))
    stay = everyone(hold_everywhere(gunicorn, 1, token=others))
    terminal.publish('{"subject": "u7"}', channel="$revoke")
    for client in held:
        is_refused(client.hear())
    # No worker knows it from before but from the log: these are new, and this is the first that they are asked.
    gunicorn.kill(gunicorn.workers[0])
    until(lambda: len(gunicorn.workers) == WORKERS, what="there is another worker")
    for answer in everywhere(gunicorn, stream(token=old, timeout=0)):
        is_refused(answer)
    new = tokens.make(["orders"], expires_seconds=3600, subject="u7")
    for text in (new, others):
        for answer in everywhere(gunicorn, stream(token=text, timeout=0)):
            assert answer.status == 204
    alive = [client for client in stay if client.held]
    assert len(alive) == WORKERS - 1
    terminal.publish("1")
    assert [client.hear().data for client in alive] == [[1]] * len(alive)
    assert Client(gunicorn, token=new).hear_until(1) == [1]


@each_lane
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_held_poll_does_not_outlive_its_token(serve):
    gunicorn = serve({"PUBLIC": 0, "SECRET_KEY": KEY}, workers=1)
    token = Tokens(KEY).make(["orders"], expires_seconds=3)
    client = Client(gunicorn, channel="orders", token=token)
    # Held for ten minutes, if it were not for the token; its last moment may take another poll or two.
    for _ in range(20):
        answer = client.ask().hear()
        if answer.status != 204:
            break
    assert (answer.status, answer.code) == (401, "unauthorized"), answer
    assert "expired" in answer.json["error"]["message"]
