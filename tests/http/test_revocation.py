"""`poll.revoke(subject)`: whose right to read ends, when, and whose does not."""

from __future__ import annotations

import pytest
from flask import request
from sqlalchemy.orm import Session

from legacy_poll import LegacyPoll
from legacy_poll.errors import InvalidEvent, StorageUnavailable
from legacy_poll.server import create_app
from legacy_poll.tokens import Tokens
from tests.http.conftest import Site
from tests.waiting import until

KEY = "a key of more than 16 characters"
NOW = {"channel": "orders", "timeout": 0}


def as_user(name):
    return {"headers": {"X-User": name}}


def user():
    return request.headers.get("X-User")


@pytest.fixture
def make_shop(make_site):
    """Sites where a header says who asks; those of one test are workers of one application."""

    def make(authorize=lambda channels: channels, **settings):
        return make_site(options={"authorize": authorize, "subject": user}, **settings)

    return make


@pytest.fixture
def shop(make_shop):
    shop = make_shop()
    shop.settle()
    return shop


@pytest.fixture
def make_server(make_site, database_path):
    """Servers by themselves, with a key; those of one test are workers of one server."""

    def make():
        environ = {
            "DATABASE_URL": "sqlite:///{}".format(database_path),
            "SECRET_KEY": KEY,
            "WAKEUP_DIRECTORY": "off",
            "POLL_INTERVAL_SECONDS": "0.02",
        }
        app = create_app({"LEGACY_POLL_" + name: value for name, value in environ.items()})
        site = Site(app, app.extensions["legacy_poll"]["legacy_poll"]._poll, prefix="")
        make_site.made.append(site)
        return site

    return make


def noted(site, count=1):
    """*site*'s worker has met so many revocations."""
    until(lambda: site.runtime.revocations.serial == count, what="the revocation has been noted")


def is_refused(reply):
    assert (reply.status, reply.code) == (401, "unauthorized")
    assert "revoked" in reply.message
    assert reply.headers["WWW-Authenticate"] == "Bearer"
    assert "Legacy-Poll-Cursor" not in reply.headers


def test_the_subjects_held_polls_end_and_no_others(shop):
    theirs = [shop.hold({"channel": name}, **as_user("u7")) for name in ("orders", "orders", "news")]
    others = [shop.hold({"channel": name}, **as_user("u8")) for name in ("orders", "news")]
    nobodys = shop.hold({"channel": "orders"})
    shop.poll.revoke("u7")
    for poll in theirs:
        is_refused(poll.reply())
    assert shop.held == 3
    shop.publish("for those who stayed")
    shop.publish("for those who stayed", channel="news")
    for poll in others + [nobodys]:
        assert poll.reply().data == ["for those who stayed"]


@pytest.mark.parametrize("kind", ["a connection", "a session"])
def test_a_revocation_counts_when_its_transaction_commits(shop, kind):
    poll = shop.hold({"channel": "orders"}, **as_user("u7"))
    where = shop.engine.connect() if kind == "a connection" else Session(shop.engine, future=True)
    with where:
        with where.begin():
            shop.poll.revoke("u7", where)
    is_refused(poll.reply())


def test_a_revocation_that_is_rolled_back_does_nothing(shop):
    poll = shop.hold({"channel": "orders"}, **as_user("u7"))
    with Session(shop.engine, future=True) as session:
        shop.poll.revoke("u7", session)
        session.rollback()
    shop.publish("after it")
    assert poll.reply().data == ["after it"]
    assert shop.runtime.revocations.serial == 0


def test_afterwards_a_new_poll_is_authorised_anew_and_held(shop):
    poll = shop.hold({"channel": "orders"}, **as_user("u7"))
    shop.poll.revoke("u7")
    is_refused(poll.reply())
    again = shop.hold({"channel": "orders"}, **as_user("u7"))
    shop.publish(1)
    assert again.reply().data == [1]


def test_who_was_authorised_before_it_and_held_after_it_is_not_kept(make_shop):
    def authorize(channels):
        if revoke:
            shop.poll.revoke(revoke.pop())
            noted(shop)
        return channels

    revoke = []
    shop = make_shop(authorize)
    shop.settle()
    revoke.append("u7")
    is_refused(shop.get("/stream", {"channel": "orders"}, **as_user("u7")))
    assert shop.get("/stream", NOW, **as_user("u7")).status == 204
    # Of somebody else it does not matter.
    revoke.append("u9")
    assert shop.get("/stream", NOW, **as_user("u8")).status == 204
    assert shop.runtime.admission.held == 0


def test_events_behind_it_are_not_for_the_subject(shop):
    poll = shop.hold({"channel": "orders"}, **as_user("u7"))
    with shop.engine.begin() as connection:
        shop.poll.revoke("u7", connection)
        shop.poll.publish(connection, "orders", "not for them")
    is_refused(poll.reply())


def test_behind_a_heartbeat_it_is_told_in_the_body(shop):
    # Without a beat so far the status is still open.
    poll = shop.hold({"channel": "orders", "heartbeat": 60_000}, **as_user("u7"))
    shop.poll.revoke("u7")
    is_refused(poll.reply())


@pytest.mark.parametrize("subject", ["", None, 7, b"u7"])
def test_a_subject_is_text(shop, subject):
    with pytest.raises(InvalidEvent, match="subject is .*: text is needed"):
        shop.poll.revoke(subject)
    assert shop.runtime.log.bounds().head == 0


def test_a_subject_that_the_application_counts_by_is_met_by_its_text(make_site):
    """A user's number, out of a session: the revocation has it as text."""
    shop = make_site(options={"authorize": lambda channels: channels, "subject": lambda: 7})
    poll = shop.hold({"channel": "orders"})
    shop.poll.revoke("7")
    is_refused(poll.reply())


def test_a_row_on_the_reserved_channel_is_one_and_a_broken_one_hurts_nobody(shop):
    poll = shop.hold({"channel": "orders"}, **as_user("u7"))
    for data in (
        "{}",
        "[]",
        "null",
        '"u7"',
        '{"subject": null}',
        '{"subject": ["u7"]}',
        "7",
        '{"subject": "u7"}',
    ):
        shop.insert(channel="$revoke", data=data)
    is_refused(poll.reply())
    assert shop.runtime.publisher.failure is None


def test_without_a_database_nothing_was_revoked_and_the_caller_is_told(make_shop):
    poll = LegacyPoll(url="sqlite:////nonexistent/folder/log.db", public=True)
    poll.init_app(make_shop().app.__class__("another"))
    with pytest.raises(StorageUnavailable):
        poll.revoke("u7")


# Workers that start afterwards: by then the subject may have logged in again, or still have an old token.


def test_who_logged_in_again_is_held_by_a_worker_that_starts_then(shop, make_shop):
    for subject in ("u7", "u8", "u7"):
        shop.poll.revoke(subject)
    noted(shop, 3)
    young = make_shop()
    polls = [young.ask("/stream", {"channel": "orders"}, **as_user(name)) for name in ("u7", "u8", "u9")]
    young.settle()
    until(lambda: young.held == 3 or any(poll.over for poll in polls))
    young.publish(1)
    assert [poll.reply().data for poll in polls] == [[1]] * 3


def test_who_logged_in_again_is_held_on_by_a_worker_that_starts_afresh(shop):
    """After a hole in the log, say: it learns again what it knew."""
    shop.poll.revoke("u7")
    noted(shop)
    poll = shop.hold({"channel": "orders"}, **as_user("u7"))
    shop.runtime._load_revocations()
    shop.publish(1)
    assert poll.reply().data == [1]
    assert shop.runtime.revocations.serial == 1


def test_what_was_revoked_while_it_started_afresh_counts(shop, make_shop):
    """Read by the load and not delivered, or both."""
    poll = shop.hold({"channel": "orders"}, **as_user("u7"))
    deliver, shop.runtime.publisher._on_reserved = shop.runtime.publisher._on_reserved, lambda events: None
    make_shop().poll.revoke("u7")
    shop.settle()
    assert not poll.over
    shop.runtime._load_revocations()
    is_refused(poll.reply())
    shop.runtime.publisher._on_reserved = deliver
    assert shop.get("/stream", NOW, **as_user("u7")).status == 204


# Channel tokens.


def token(subject=None, **options):
    return Tokens(KEY, **options).make(["orders"], expires_seconds=3600, subject=subject)


def with_token(text):
    return dict(NOW, token=text)


def test_tokens_made_before_are_refused_and_those_made_after_hold(make_server):
    server = make_server()
    old, others, nobodys = token("u7"), token("u8"), token()
    server.settle()
    poll = server.hold({"channel": "orders", "token": old})
    server.poll.revoke("u7")
    is_refused(poll.reply())
    for path in ("/stream", "/cursor"):
        is_refused(server.get(path, with_token(old)))
        for good in (others, nobodys):
            assert server.get(path, with_token(good)).status in (200, 204)
    until(lambda: server.get("/stream", with_token(token("u7"))).status == 204)


@pytest.mark.parametrize("path", ["/stream", "/cursor"])
def test_a_worker_that_starts_afterwards_refuses_them_from_its_first_request_on(make_server, path):
    old = token("u7")
    server = make_server()
    server.publish("not for them")
    server.poll.revoke("u7")
    server.settle()
    is_refused(make_server().get(path, with_token(old)))


@pytest.mark.parametrize("path", ["/stream", "/cursor"])
def test_a_worker_that_could_not_load_them_refuses_to_say_and_loads_them_later(make_server, path):
    old = token("u7")
    server = make_server()
    server.poll.revoke("u7")
    server.settle()
    young = make_server()
    read = young.runtime.log.read_after
    failing = [True]

    def fails(*arguments, **options):
        if failing:
            raise StorageUnavailable("it fails just now")
        return read(*arguments, **options)

    young.runtime.log.read_after = fails
    reply = young.get(path, with_token(old))
    assert (reply.status, reply.code) == (503, "storage_unavailable")
    assert reply.headers["Retry-After"]
    failing.clear()
    until(lambda: young.get(path, with_token(old)).status != 503)
    is_refused(young.get(path, with_token(old)))
