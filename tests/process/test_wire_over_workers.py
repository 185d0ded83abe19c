"""The wire's own tests again, over three workers of a real gunicorn and without stickiness, on each database.

The tests are those of tests/http; only the site differs: every request is a connection of its own, so a client hops
between workers all the time, and what one worker answered is asked on of another. Each test begins with an empty log,
which the workers, that keep running, find out by themselves.
"""

from __future__ import annotations

import http.client
import json
from urllib.parse import urlencode

import pytest
from flask import Flask
from sqlalchemy import create_engine, text

from legacy_poll import LegacyPoll
from legacy_poll.schema import new_log, upgrade
from tests.conftest import SERVERS
from tests.gunicorn import Gunicorn
from tests.http.conftest import SECONDS, Reply, Site
from tests.http.test_stream import (  # noqa: F401
    test_a_chain_of_polls_gets_every_event_once_in_order,
    test_a_commit_ends_a_held_poll,
    test_a_cursor_of_another_log_is_unknown,
    test_a_cursor_that_is_nearly_right_is_unknown,
    test_a_hold_that_ends_empty_is_204_with_the_cursor_moved,
    test_a_poll_held_while_the_log_is_replaced_is_told,
    test_a_rolled_back_event_reaches_nobody,
    test_a_short_poll_is_answered_at_once,
    test_an_answer_that_was_lost_can_be_asked_for_again,
    test_an_empty_answer_may_be_200,
    test_an_event_that_is_there_is_answered_at_once,
    test_an_insert_by_another_program_ends_a_held_poll,
    test_now_answers_at_once_with_the_present_cursor,
    test_one_cursor_is_good_for_any_channels,
    test_one_poll_may_be_on_many_channels_in_either_spelling,
    test_options_says_what_it_takes,
    test_other_channels_do_not_end_a_held_poll,
    test_stream_takes_get_alone,
    test_without_a_channel_it_is_the_channel_default,
)
from tests.process.conftest import LANES
from tests.waiting import until

WORKERS = 3
TABLES = ("outbox", "event", "set_aside")


class House(Site):
    """Three workers, seen through connections that are used once."""

    def __init__(self, gunicorn, url):
        app = Flask("publisher")
        app.config["LEGACY_POLL_WAKEUP_DIRECTORY"] = "off"
        self.gunicorn = gunicorn
        self.prefix = ""
        self.app = app
        self.poll = LegacyPoll(app, engine=create_engine(url, future=True), public=True)

    def open(self, method, path, query=(), *, headers=(), body=None):
        text_of_query = query if isinstance(query, str) else urlencode(query, doseq=True)
        connection = http.client.HTTPConnection("127.0.0.1", self.gunicorn.port, timeout=SECONDS * 6)
        try:
            connection.request(method, path + "?" + text_of_query, body=body, headers=dict(headers))
            answer = connection.getresponse()
            return Reply(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    def workers(self):
        """What each worker says of itself."""
        seen = {}

        def all_seen():
            says = self.get("/status").json["worker"]
            seen[says["pid"]] = says
            return len(seen) == len(self.gunicorn.workers)

        until(all_seen, SECONDS * 3, "every worker has answered")
        return list(seen.values())

    @property
    def held(self):
        return sum(worker["held"] for worker in self.workers())

    def settle(self):
        log = self.runtime.log

        def settled():
            head = str(log.bounds().cursor)
            return not log.glance().waiting and all(worker["cursor"] == head for worker in self.workers())

        until(settled, SECONDS * 3, "every worker has all that is committed")

    def empty(self):
        """A log in which nothing ever happened."""
        with self.engine.begin() as connection:
            for table in TABLES:
                connection.execute(text("DELETE FROM legacy_poll_{}".format(table)))
            connection.execute(text("UPDATE legacy_poll_log SET head = 0, oldest = 1"))
        new_log(self.engine)
        self.settle()


@pytest.fixture(scope="module", params=["sqlite", "postgresql", "mariadb", "mysql", "sqlite-parked"])
def house(request, tmp_path_factory):
    kind, _, lane = request.param.partition("-")
    if kind == "sqlite":
        url = "sqlite:///{}".format(tmp_path_factory.mktemp("house") / "log.db")
    else:
        server = request.getfixturevalue("_" + SERVERS[kind])
        server.start()
        url = server.create_database()
    engine = create_engine(url, future=True)
    upgrade(engine)
    engine.dispose()
    settings = {"PUBLIC": 1, "DATABASE_URL": url, "POLL_INTERVAL_SECONDS": 0.02, **LANES[lane or "standard"]}
    gunicorn = Gunicorn(settings, workers=WORKERS)
    try:
        gunicorn.start()
        house = House(gunicorn, url)
        yield house
        house.engine.dispose()
        assert "Traceback" not in gunicorn.log, gunicorn.log
    finally:
        gunicorn.destroy()


@pytest.fixture
def site(house):
    """The house with an empty log; at the end nobody is held."""
    house.empty()
    yield house
    until(lambda: house.held == 0, SECONDS, "nobody is held")


def test_a_chain_of_polls_that_hops_is_the_same_on_every_worker(site):
    for number in range(30):
        site.publish(number)
    assert site.collect(30, {"channel": "orders", "limit": 4}) == list(range(30))


def test_a_worker_that_was_stopped_neither_refuses_nor_goes_back(site):
    start = site.get("/cursor").cursor
    behind = site.gunicorn.workers[0]
    with site.gunicorn.paused(behind):
        site.publish("first")
        with site.gunicorn.only(site.gunicorn.workers[1]):
            seen = site.get("/stream", {"channel": "orders", "cursor": start})
    assert seen.data == ["first"]
    with site.gunicorn.only(behind):
        poll = site.ask("/stream", {"channel": "orders", "cursor": seen.cursor, "timeout": 500})
        reply = poll.reply()
    assert reply.status == 204
    assert int(reply.cursor.split("-")[2]) >= int(seen.cursor.split("-")[2])
    assert json.loads(site.get("/status").body)["worker"]["failure"] is None
