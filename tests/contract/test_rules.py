"""A row that breaks a rule is set aside with its reason, and never stops or overtakes the rows around it."""

from __future__ import annotations

import json
import re

import pytest
from sqlalchemy import select, text

from legacy_poll import tables
from tests.contract.store import run

NAME = r"1 to 200 of the characters A-Z a-z 0-9 _ \. : / @ ~ \+ = -"
ID = NAME.replace("200", "100")
MOST = 262_144

BROKEN = {
    "data that is not JSON": ({"data": "{id: 7}"}, "data is '{id: 7}': JSON text is needed"),
    "data that is empty": ({"data": ""}, "data is '': JSON text is needed"),
    "data in single quotes": ({"data": "{'a': 1}"}, "JSON text is needed"),
    "data with a comma too many": ({"data": "[1, 2,]"}, "JSON text is needed"),
    "data of two values": ({"data": "1 2"}, "JSON text is needed"),
    "data with a bare control character": ({"data": '"a\x01b"'}, "JSON text is needed"),
    "a number with a leading zero": ({"data": "07"}, "JSON text is needed"),
    "NaN": ({"data": "NaN"}, "NaN is not JSON"),
    "NaN inside": ({"data": '{"a": [NaN]}'}, "NaN is not JSON"),
    "Infinity": ({"data": "Infinity"}, "Infinity is not JSON"),
    "-Infinity": ({"data": "[-Infinity]"}, "-Infinity is not JSON"),
    "1e400": ({"data": "1e400"}, "1e400 is beyond the range of a double"),
    "-1E400 inside": ({"data": '{"a": -1E400}'}, "-1E400 is beyond the range of a double"),
    "data that is NULL": ({"data": None}, "data is None: JSON text is needed"),
    "data that is too large": ({"data": '"%s"' % ("x" * MOST)}, "data has 262146 bytes: at most 262144"),
    "data that is too large in bytes alone": (
        {"data": '"%s"' % ("é" * (MOST // 2))},
        "data has 262146 bytes",
    ),
    "data of 1 MiB": ({"data": '"%s"' % ("x" * 1_048_574)}, "data has 1048576 bytes: at most 262144"),
    "data nested 300 deep": ({"data": "[" * 300 + "]" * 300}, "at most 200 levels of nesting"),
    "objects nested 300 deep": ({"data": '{"a":' * 300 + "1" + "}" * 300}, "at most 200 levels of nesting"),
    # From every quote on there are 100,000 more to look through, if one looks like that.
    "a string that never ends": (
        {"data": "[" * 201 + '"' + '\\"' * 100_000},
        "at most 200 levels of nesting",
    ),
    "no channel": ({"channel": None}, "channel is None: " + NAME),
    "an empty channel": ({"channel": ""}, "channel is '': " + NAME),
    "a channel of 201 characters": ({"channel": "x" * 201}, "channel is 'x+.*: " + NAME),
    "a channel with a space": ({"channel": "a b"}, "channel is 'a b': " + NAME),
    "a channel with a tab": ({"channel": "a\tb"}, r"channel is 'a\\tb': " + NAME),
    "a channel with a newline behind": ({"channel": "orders\n"}, r"channel is 'orders\\n': " + NAME),
    "a channel with a control character": ({"channel": "\x7f"}, r"channel is '\\x7f': " + NAME),
    "a channel that is not ASCII": ({"channel": "café"}, "channel is 'café': " + NAME),
    "a reserved channel": ({"channel": "$legacy_poll"}, r"channel is '\$legacy_poll': .* reserved"),
    "an empty type": ({"type": ""}, "type is '': " + NAME),
    "a type with a space": ({"type": "a b"}, "type is 'a b': " + NAME),
    "a type of 201 characters": ({"type": "x" * 201}, "type is 'x+.*: " + NAME),
    "a reserved type": ({"type": "$x"}, "type is .* reserved"),
    "an empty id": ({"event_id": ""}, "id is '': " + ID),
    "an id of 101 characters": ({"event_id": "x" * 101}, "id is 'x+.*: " + ID),
    "an id with a space": ({"event_id": "a b"}, "id is 'a b': " + ID),
    "a reserved id": ({"event_id": "$x"}, "id is .* reserved"),
}

# What only some databases can store: column, SQL of the value, reason.
INVALID_UTF8 = "CAST(x'22ff22' AS TEXT)"
STRANGE = {
    "sqlite": {
        "bytes that are not UTF-8": ("data", INVALID_UTF8, "data is .*: text that can be encoded as UTF-8"),
        "bytes that are not UTF-8, behind a backslash": ("data", "CAST(x'225cff22' AS TEXT)", "UTF-8"),
        "half of a character": ("data", "CAST(x'22e4bd22' AS TEXT)", "UTF-8"),
        "an encoded surrogate": ("data", "CAST(x'22eda08022' AS TEXT)", "UTF-8"),
        "a channel that is not UTF-8": ("channel", INVALID_UTF8, "channel is .*: " + NAME),
        "a type that is not UTF-8": ("type", INVALID_UTF8, "type is .*: " + NAME),
        "an id that is not UTF-8": ("event_id", INVALID_UTF8, "id is .*: " + ID),
        "data of the wrong type": ("data", "x'7b7d'", "data is b'{}': JSON text is needed"),
        "a channel of the wrong type": ("channel", "x'4142'", "channel is b'AB': " + NAME),
        "a type of the wrong type": ("type", "x'4142'", "type is b'AB': " + NAME),
        "an id of the wrong type": ("event_id", "x'4142'", "id is b'AB': " + ID),
        "a NUL character in data": (
            "data",
            "'1' || char(0) || '2'",
            r"data is '1\\x002': JSON text is needed",
        ),
        "a NUL character behind data": ("data", "'1' || char(0)", r"data is '1\\x00': JSON text is needed"),
        "a NUL character in a channel": (
            "channel",
            "'a' || char(0) || 'b'",
            r"channel is 'a\\x00b': " + NAME,
        ),
        "a NUL character in a type": ("type", "'a' || char(0) || 'b'", r"type is 'a\\x00b': " + NAME),
        "a NUL character in an id": ("event_id", "'a' || char(0) || 'b'", r"id is 'a\\x00b': " + ID),
    },
    "mysql": {
        "a NUL character in data": (
            "data",
            "CONCAT('1', CHAR(0), '2')",
            r"data is '1\\x002': JSON text is needed",
        ),
        "a NUL character in a channel": (
            "channel",
            "CONCAT('a', CHAR(0), 'b')",
            r"channel is 'a\\x00b': " + NAME,
        ),
        "a space behind a channel": ("channel", "'orders '", "channel is 'orders ': " + NAME),
    },
    "postgresql": {},
}

FIT = {
    "a string": '"x"',
    "null": "null",
    "a number": "-1.5e300",
    "white space around": ' \t\r\n {"a" : [ ] } \n',
    "the same key twice": '{"a": 1, "a": 2}',
    "half a surrogate pair, escaped": '"\\ud800"',
    "a character that is not ASCII": '"снег ❄ 😀"',
    "long data that is not ASCII": '"%s"' % ("снег ❄ 😀" * 200),
    "a NUL character, escaped": '"\\u0000"',
    "an integer of 100 digits": "1" * 100,
    "data of the largest size": '"%s"' % ("x" * (MOST - 2)),
    "data nested 200 deep": "[" * 200 + "]" * 200,
    "brackets in strings": json.dumps("[" * 300),
    "quotes and backslashes": '["\\\\", "\\"[", "\\\\\\""]',
}


def around(store, *rows):
    """Publishes 1, then *rows*, then 2, all in one transaction."""
    store.insert({"channel": "orders", "data": "1"}, *rows, {"channel": "orders", "data": "2"})


@pytest.mark.parametrize("row, reason", BROKEN.values(), ids=list(BROKEN))
def test_a_row_is_set_aside_for(row, reason, store):
    row = {"channel": "bad", "data": '"bad"', **row}
    around(store, row)
    store.drain()
    assert store.data() == [1, 2]
    assert store.positions() == [1, 2]
    ((channel, data, why),) = store.set_aside()
    assert (channel, data) == (row["channel"], row["data"])
    assert re.search(reason, why), why
    assert len(why) < 500
    store.publish(3)
    store.drain()
    assert store.data() == [1, 2, 3]


@pytest.mark.parametrize(
    "database_url, column, value, reason",
    [
        pytest.param(server, *case, id="%s on %s" % (name, server))
        for kind, cases in STRANGE.items()
        for server in (("mariadb", "mysql") if kind == "mysql" else (kind,))
        for name, case in cases.items()
    ],
    indirect=["database_url"],
)
def test_a_row_that_few_databases_can_store_is_set_aside_for(store, column, value, reason):
    columns = {"channel": "'bad'", "data": "'0'", column: value}
    sql = "INSERT INTO legacy_poll_outbox (%s) VALUES (%s)" % (
        ", ".join(columns),
        ", ".join(columns.values()),
    )
    store.insert({"channel": "orders", "data": "1"})
    run(store.engine, sql)
    store.insert({"channel": "orders", "data": "2", "event_id": "two"})
    store.drain()
    assert store.data() == [1, 2]
    ((_, _, why),) = store.set_aside()
    assert re.search(reason, why), why
    with store.engine.connect() as connection:
        # What is set aside is what was inserted, byte for byte.
        same = text("SELECT count(*) FROM legacy_poll_set_aside WHERE %s = %s" % (column, value))
        assert connection.execute(same).scalar() == 1


@pytest.mark.parametrize("data", FIT.values(), ids=list(FIT))
def test_text_that_is_fit_travels_as_it_is(data, store):
    store.insert({"channel": "orders", "data": data})
    store.drain()
    assert store.set_aside() == []
    (event,) = store.events()
    assert event.data == data
    assert event.size == len(data.encode("utf-8"))


def test_names_of_the_largest_length_are_fit(store):
    longest = {"channel": "c" * 200, "type": "t" * 200, "event_id": "i" * 100, "data": "1"}
    store.insert(longest)
    store.drain()
    (event,) = store.events()
    assert (event.channel, event.type, event.id) == (longest["channel"], longest["type"], longest["event_id"])


def test_every_character_of_the_rule_is_fit(store):
    name = "AZaz09_.:/@~+=-"
    store.insert({"channel": name, "type": name, "event_id": name, "data": "1"})
    store.drain()
    (event,) = store.events()
    assert (event.channel, event.type, event.id) == (name, name, name)


def test_order_is_kept_around_many_broken_rows(store):
    rows = []
    for number in range(20):
        rows.append({"channel": "orders", "data": str(number)})
        rows.append({"channel": "no spaces", "data": str(number)})
    store.insert(*rows)
    store.publish(20)
    store.drain()
    assert store.data() == list(range(21))
    assert [data for _, data, _ in store.set_aside()] == [str(number) for number in range(20)]


def test_a_batch_of_nothing_but_broken_rows_does_not_stop_the_next(make_store):
    store = make_store(move_rows=3)
    store.insert(*[{"channel": "no spaces", "data": str(number)} for number in range(7)])
    store.publish("behind")
    store.drain()
    assert store.data() == ["behind"]
    assert len(store.set_aside()) == 7
    store.check()


def test_what_was_set_aside_says_what_it_was_and_when(store):
    row = {"channel": "no spaces", "type": "t", "event_id": "a", "data": "{"}
    store.insert(row)
    (moved,) = store.drain()
    with store.engine.connect() as connection:
        (kept,) = connection.execute(select(tables.set_aside)).mappings().all()
    assert {name: kept[name] for name in row} == row
    assert moved.set_aside == ((kept["outbox_id"], kept["reason"]),)
    assert kept["created_at"] <= kept["set_aside_at"]


def test_the_setting_for_the_largest_event_is_honoured(make_store, is_sqlite):
    store = make_store(max_event_bytes=10)
    if is_sqlite:
        store.database.write(lambda connection: store.dialect.prepare(connection, max_event_bytes=10))
    store.insert({"channel": "orders", "data": "1234567890"}, {"channel": "orders", "data": "12345678901"})
    store.drain()
    assert store.data() == [1234567890]
    assert [why for _, _, why in store.set_aside()] == ["data has 11 bytes: at most 10 are allowed"]
    store.check()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_on_sqlite_everything_behind_an_odd_row_waits_for_the_sequencer(store):
    around(store, {"channel": "no spaces", "data": "0"})
    assert store.data() == [1]
    store.publish(3)
    assert (store.data(), store.waiting()) == ([1], 3)
    store.drain()
    assert (store.data(), store.waiting()) == ([1, 2, 3], 0)
    store.publish(4)
    assert (store.data(), store.waiting()) == ([1, 2, 3, 4], 0)
