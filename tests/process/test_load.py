"""The bench's load generator, against a real worker: it compiles without a warning, and sees what went wrong.

Its other dialects are those of servers that only `python -m bench peers` starts.
"""

from __future__ import annotations

import time

import pytest

from bench.load import Load, LoadFailed, compiled
from tests.process.conftest import each_lane
from tests.process.polls import get, head, publish
from tests.waiting import until

POLLS = 50
NOTHING_WRONG = [0, 0, 0]

pytestmark = [pytest.mark.parametrize("database_url", ["sqlite"], indirect=True), each_lane]


@pytest.fixture(scope="module")
def program():
    with compiled() as path:
        yield path


@pytest.fixture
def gunicorn(serve):
    return serve(workers=1)


@pytest.fixture
def load(program, gunicorn):
    target = "/stream?channel=orders"
    with Load(program, "ours", POLLS, target, [gunicorn.port], head(gunicorn)) as load:
        yield load


def say(gunicorn, number):
    """Publishes message *number*, and returns when that began."""
    began = time.monotonic()
    publish(gunicorn, {"channel": "orders", "data": {"n": number}})
    return began


def test_every_poll_gets_each_message_once_in_its_order(load, gunicorn):
    load.ask("wait")
    assert load.hold() > 0
    began = say(gunicorn, 0)
    assert began < load.all_have(0) < time.monotonic()
    first, p50, p99, last = load.milliseconds(0, began)
    assert 0 < first <= p50 <= p99 <= last
    assert load.hold() > 0
    load.ask("at-once")
    for number in range(1, 5):
        say(gunicorn, number)
        load.all_have(number)
    assert load.counts(5) == NOTHING_WRONG


def test_what_is_missed_comes_twice_or_out_of_order_is_counted(load, gunicorn):
    load.ask("at-once")
    load.hold()
    for number in (0, 1, 1, 3):
        say(gunicorn, number)
    load.all_have(3)
    assert load.counts(4) == [POLLS, POLLS, 0]
    say(gunicorn, 2)
    load.all_have(2)
    assert load.counts(4) == [0, POLLS, POLLS]


def test_polls_that_wait_do_not_ask_until_they_are_told(load, gunicorn):
    load.ask("wait")
    load.hold()
    say(gunicorn, 0)
    load.all_have(0)
    say(gunicorn, 1)
    say(gunicorn, 2)
    cursor = head(gunicorn)
    until(
        lambda: get(gunicorn, "/status").json["worker"]["cursor"] == cursor, what="the worker has all of them"
    )
    load.ask("at-once")
    load.hold()
    load.all_have(2)
    # What came while they did not ask is one answer.
    assert load.milliseconds(1, 0) == load.milliseconds(2, 0)
    assert load.counts(3) == NOTHING_WRONG


def test_a_connection_that_ends_is_an_error(load, gunicorn):
    load.hold()
    [worker] = gunicorn.workers
    gunicorn.kill(worker)
    with pytest.raises(LoadFailed, match="closed connection"):
        load.all_have(0)
