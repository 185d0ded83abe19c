"""An id is known as long as its event is retained, and not longer, though its row is still there."""

from __future__ import annotations

import pytest

from tests.contract.store import run

LATER = "2999-01-01T00:00:00.000Z"


@pytest.fixture
def kept(make_store):
    """A log whose events are all trimmed, but for the row that stays below `oldest`: its id is `daily-report`."""
    store = make_store(retention_seconds=60)
    store.publish("yesterday's", id="daily-report")
    store.drain()
    store.log.trim(LATER)
    assert (store.data(), store.positions()) == ([], [1])
    return store


def test_an_id_that_is_retained_is_not_delivered_again(make_store):
    store = make_store()
    store.publish("first", id="daily-report")
    store.drain()
    store.publish("second", id="daily-report")
    store.drain()
    assert (store.data(), store.waiting()) == (["first"], 0)


def test_an_id_that_was_trimmed_is_delivered_again_though_its_row_is_there(kept):
    kept.publish("today's", id="daily-report")
    kept.drain()
    assert kept.data() == ["today's"]
    kept.publish("again", id="daily-report")
    kept.drain()
    assert kept.data() == ["today's"]
    kept.check()


def test_an_id_that_was_trimmed_is_delivered_again_by_the_sequencer_too(kept, leave):
    leave(kept)
    kept.insert({"channel": "orders", "data": '"today\'s"', "event_id": "daily-report"})
    kept.drain()
    assert kept.data() == ["today's"]


def test_ids_below_the_oldest_that_no_trim_has_deleted_yet_are_forgotten(make_store):
    """Trimming lags: what is out of sight is deleted batch by batch."""
    store = make_store()
    store.publish(*range(20), channel="orders")
    store.publish("old", id="given")
    store.publish("last")
    store.drain()
    run(store.engine, "UPDATE legacy_poll_log SET oldest = 22")
    store.publish("new", id="given")
    store.drain()
    assert store.data() == ["last", "new"]
    assert len(store.positions()) == 23
