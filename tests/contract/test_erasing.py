"""Events that are erased for good: gone from the log, the outbox and what was set aside; readers go on past them."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import select, text

from legacy_poll.errors import InvalidEvent
from legacy_poll.eventlog import append_revocation
from legacy_poll.storage.erasing import Erased, What, erase
from legacy_poll.tables import event, outbox
from tests.contract.store import run, series


@pytest.fixture
def filled(store):
    for number in range(1, 11):
        store.publish(number, channel="orders" if number % 2 else "user:7", id="id-%d" % number)
    store.drain()
    return store


def rows(store, *columns):
    query = select(*columns).order_by(event.c.position)
    return store.database.read(lambda connection: [tuple(row) for row in connection.execute(query)])


def erased(store, **what):
    done = erase(store.database, What(**what))
    store.drain()
    return done


@pytest.mark.parametrize(
    "what, positions",
    [
        ({"positions": ((3, 3),)}, [3]),
        ({"positions": ((3, 5), (9, 400))}, [3, 4, 5, 9, 10]),
        ({"ids": frozenset(["id-1", "id-10", "nobody's"])}, [1, 10]),
        ({"channels": frozenset(["user:7"])}, [2, 4, 6, 8, 10]),
        ({"ids": frozenset(["id-1"]), "positions": ((1, 2),), "channels": frozenset(["user:7"])}, None),
    ],
)
def test_erased_events_are_gone_and_readers_before_and_behind_them_go_on(filled, what, positions):
    positions = positions or [1, 2, 4, 6, 8, 10]
    cursors = [filled.log.cursor_at(position) for position in range(11)]
    assert erased(filled, **what) == Erased(len(positions), 0, 0)
    for position, cursor in enumerate(cursors):
        wanted = [number for number in range(position + 1, 11) if number not in positions]
        assert filled.data(cursor=cursor, channels=["orders", "user:7"]) == wanted
    found = rows(filled, event.c.position, event.c.id, event.c.channel, event.c.type, event.c.data)
    for position, event_id, channel, kind, data in found[:10]:
        if position in positions:
            assert (channel, kind, data) == ("$erased", "erased", "null")
            assert not event_id.startswith("id-")
        else:
            assert (event_id, data) == ("id-%d" % position, str(position))


def test_workers_are_told_by_an_event_that_names_the_positions(filled):
    erased(filled, positions=((3, 5), (9, 9)))
    told = filled.events(channels=["$erase"])
    assert [json.loads(each.data) for each in told] == [{"positions": [[3, 5], [9, 9]]}]


def test_erasing_again_erases_nothing_and_tells_nobody(filled):
    erased(filled, channels=frozenset(["user:7"]))
    head = filled.log.bounds().head
    assert erased(filled, channels=frozenset(["user:7"])) == Erased()
    assert erased(filled, positions=((2, 2), (4, 4))) == Erased()
    assert filled.log.bounds().head == head


def test_rows_that_wait_and_rows_that_were_set_aside_are_erased_too(filled, leave, is_sqlite):
    run(filled.engine, "DELETE FROM legacy_poll_outbox")
    filled.insert(
        {"channel": "user:7", "data": "not JSON"}, {"channel": "no spaces", "data": "1", "event_id": "secret"}
    )
    filled.drain()
    leave(filled)
    filled.insert(
        {"channel": "user:7", "data": '"waits"'},
        {"channel": "orders", "data": '"waits too"', "event_id": "secret"},
        {"channel": "orders", "data": '"stays"'},
    )
    done = erased(filled, channels=frozenset(["user:7"]), ids=frozenset(["secret"]))
    assert done == Erased(5, 2, 2)
    assert filled.data(channels=["orders", "user:7"]) == [1, 3, 5, 7, 9, "stays"]
    assert [row[0] for row in filled.set_aside()] == ["no spaces"] * is_sqlite


def test_an_erased_id_is_forgotten(filled):
    erased(filled, ids=frozenset(["id-3"]))
    filled.publish("anew", id="id-3")
    filled.drain()
    assert filled.data(cursor=filled.log.cursor_at(11)) == ["anew"]


def test_revocations_stay(store):
    with store.engine.begin() as connection:
        append_revocation(connection, "u7")
    store.publish(1)
    store.drain()
    assert erased(store, positions=((1, 2),)) == Erased(1, 0, 0)
    assert [json.loads(each.data) for each in store.events(channels=["$revoke"])] == [{"subject": "u7"}]
    with pytest.raises(InvalidEvent, match="reserved"):
        What(channels=frozenset(["$revoke"]))


def test_trims_go_past_erased_events_and_take_them_when_they_are_old(make_store):
    store = make_store(retention_events=4)
    store.publish(*range(1, 11))
    store.drain()
    erased(store, positions=((2, 8),))
    store.log.trim(store.log.glance().now)
    assert store.positions() == [7, 8, 9, 10, 11]
    assert store.data(channels=["orders"]) == [9, 10]


def test_thousands_of_events_are_erased_in_small_transactions(store, engine):
    run(engine, series(engine, 1200, channel="crowd"))
    store.publish("stays")
    store.drain()
    seen = []
    done = erase(store.database, What(channels=frozenset(["crowd"])), progress=seen.append)
    assert (done.events, seen) == (1200, [500, 1000, 1200])
    store.drain()
    assert store.data(channels=["crowd", "orders"]) == ["stays"]
    assert [json.loads(each.data) for each in store.events(channels=["$erase"])] == [
        {"positions": [[1, 500]]},
        {"positions": [[501, 1000]]},
        {"positions": [[1001, 1200]]},
    ]


def test_a_row_that_moves_while_it_is_erased_is_erased(store, make_store, leave, monkeypatch):
    leave(store)
    store.insert({"channel": "user:7", "data": "1"})
    other = make_store()
    delete_outbox = store.dialect.delete_outbox

    def meanwhile(connection, ids):
        if not other.engine.dialect.name == "sqlite":  # there is no second writer meanwhile
            other.drain()
        return delete_outbox(connection, ids)

    monkeypatch.setattr(store.dialect, "delete_outbox", meanwhile)
    done = erase(store.database, What(channels=frozenset(["user:7"])))
    monkeypatch.undo()
    store.drain()
    assert done.events + done.waiting == 1
    assert store.events(channels=["user:7"]) == ()


@pytest.mark.parametrize(
    "data",
    ["1", "{}", '{"positions": []}', '{"positions": [[0, 1]]}', '{"positions": [[2, 1]]}', '["positions"]'],
)
def test_an_event_that_says_erased_and_names_no_positions_is_set_aside(store, data):
    store.insert({"channel": "$erase", "data": data}, {"channel": "orders", "data": "1"})
    store.drain()
    assert store.data() == [1]
    assert [row[:2] for row in store.set_aside()] == [("$erase", data)]


def test_nothing_of_an_erased_event_is_left_in_the_tables(filled):
    filled.publish({"name": "Mrs Zhukov"}, channel="user:zhukov", id="zhukov-1")
    filled.drain()
    erased(filled, channels=frozenset(["user:zhukov"]))
    with filled.engine.connect() as connection:
        for table in (event, outbox):
            for row in connection.execute(text("SELECT * FROM %s" % table.name)):
                assert "zhukov" not in " ".join(map(str, row)).lower()
