"""The trigger of SQLite takes a row only if Python's rules would: what it takes, nobody judges again.

It may take less, since what it leaves is judged by the sequencer. But what `publish()` writes it takes, so that an
application needs no second writer.
"""

from __future__ import annotations

import json
import sqlite3

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from legacy_poll.errors import InvalidEvent
from legacy_poll.events import MAX_ID, MAX_NAME, check_data, check_name, encode_data
from tests.contract.store import run

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

MOST = 262_144
tries = settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def taken(tables, engine):
    """taken(channel=..., data=...): whether the trigger takes such a row. Values are text, or bytes stored as text."""
    connection = sqlite3.connect(engine.url.database)
    connection.isolation_level = None

    def taken(**row):
        connection.execute("BEGIN")
        try:
            marks = ", ".join("CAST(? AS TEXT)" if value is not None else "?" for value in row.values())
            sql = "INSERT INTO legacy_poll_outbox (%s) VALUES (%s)" % (", ".join(row), marks)
            values = [value.encode("utf-8") if isinstance(value, str) else value for value in row.values()]
            connection.execute(sql, values)
            left = connection.execute("SELECT count(*) FROM legacy_poll_outbox").fetchone()[0]
            moved = connection.execute("SELECT count(*) FROM legacy_poll_event").fetchone()[0]
            assert left + moved == 1
            return moved == 1
        finally:
            connection.execute("ROLLBACK")

    yield taken
    connection.close()


def fit(check, *arguments, **options):
    try:
        check(*arguments, **options)
    except InvalidEvent:
        return False
    return True


plain = st.characters(codec="utf-8")
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(plain),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(plain, max_size=5), inner, max_size=4)
    ),
    max_leaves=10,
)
json_texts = st.builds(
    lambda value, indent, ascii: json.dumps(value, indent=indent, ensure_ascii=ascii),
    json_values,
    st.sampled_from([None, 0, 1, "\t"]),
    st.booleans(),
)
# The letters that JSON is made of, and the white space that some parsers take and others do not.
shards = st.sampled_from(
    list("{}[]:,\"\\+-.0123456789eEaunfltrsiNIxX'/ \t\r\n\v\f\x00\x01\x1f\x7f\x80\xa0\u2028\ufeffé❄😀")
    + [
        "true",
        "false",
        "null",
        "NaN",
        "nan",
        "inf",
        "Infinity",
        "-Infinity",
        "1e308",
        "1e309",
        "1e400",
        "-0",
        "0x1",
    ]
    + [
        "1.7976931348623157e308",
        "1.7976931348623159e308",
        "\\u0000",
        "\\ud800",
        "\\u12",
        "/*",
        "*/",
        "//",
        "[1e999]",
    ]
)
jsonish = st.lists(shards, max_size=12).map("".join)


def damaged(text, place, shard):
    place %= len(text) + 1
    return text[:place] + shard + text[place + 1 :]


damaged_texts = st.builds(damaged, json_texts, st.integers(min_value=0), shards)


@tries
@example("1e400")
@example("[1E400]")
@example('{"a": -1.0e999}')
@example("NaN")
@example("nan")
@example("Infinity")
@example("\f1")
@example("1\v")
@example("\ufeff1")
@example("1\x00")
@example("1\x00 {")
@example('"\x01"')
@example('"\t"')
@example("01")
@example("-")
@example("1.")
@example(".5")
@example("+1")
@example("0x10")
@example("{a: 1}")
@example("[1,]")
@example("'a'")
@example('"\\x41"')
@example('"\\u12g4"')
@example("")
@example(" ")
@example("[" * 201 + "]" * 201)
@example("[" * 1001 + "]" * 1001)
@given(text=jsonish | damaged_texts | json_texts | st.text(plain))
def test_data_that_the_trigger_takes_passes_the_rules(taken, text):
    if taken(channel="a", data=text):
        check_data(text, max_bytes=MOST)


@tries
@example(b'"\xff"')
@example(b'"\x80"')
@example(b'"\xc3"')
@example(b'"\xe4\xbd"')
@example(b'"\xf0\x9f\x98"')
@example(b'"\xed\xa0\x80"')
@example(b'"\xf4\x90\x80\x80"')
@example(b'"\xc0\x80"')
@example(b'"' + b"x" * 3000 + b'\xff"')
@example(b'\xff"a"')
@given(raw=st.binary(max_size=12).map(lambda inner: b'"' + inner + b'"') | st.binary(max_size=12))
def test_bytes_that_the_trigger_takes_are_utf8_and_pass_the_rules(taken, raw):
    if taken(channel="a", data=raw):
        check_data(raw.decode("utf-8"), max_bytes=MOST)


names = (
    st.text(st.sampled_from("AZaz09_.:/@~+=-"), min_size=1, max_size=205)
    | st.text(st.sampled_from("az09_.:/@~+=-$ \t\n\x00\x7fé[]^*?"), max_size=6)
    | st.text(plain, max_size=6)
)


@tries
@example("")
@example("a\x00b")
@example("\x00")
@example("a\n")
@example("$a")
@example("x" * 100)
@example("x" * 101)
@example("x" * 200)
@example("x" * 201)
@given(name=names)
def test_names_are_taken_by_the_trigger_exactly_when_they_pass_the_rules(taken, name):
    assert taken(channel=name, data="1") == fit(check_name, "channel", name)
    assert taken(channel="a", data="1", type=name) == fit(check_name, "type", name, longest=MAX_NAME)
    assert taken(channel="a", data="1", event_id=name) == fit(check_name, "id", name, longest=MAX_ID)


@tries
@example(b"\xff")
@example(b"a\xff")
@example(b"\xc1\xa1")
@given(raw=st.binary(max_size=6))
def test_names_that_are_not_text_are_never_taken(taken, raw):
    if taken(channel=raw, data="1"):
        check_name("channel", raw.decode("utf-8"))


@tries
@given(value=json_values)
def test_whatever_publish_writes_is_taken_by_the_trigger(taken, value):
    text = encode_data(value, max_bytes=MOST)
    assert text.count("[") + text.count("{") <= 200
    assert taken(channel="orders", type="message", event_id="a", data=text)


@tries
@given(text=json_texts)
def test_json_that_is_not_ascii_is_taken_too_if_it_is_short(taken, text):
    short = len(text.encode("utf-8")) <= 2000 and text.count("[") + text.count("{") <= 200
    # U+FFFE and U+FFFF are what SQLite itself takes for faults.
    if short and "\ufffe" not in text and "\uffff" not in text:
        assert taken(channel="a", data=text)


def test_null_is_taken_where_a_default_stands_for_it_and_not_elsewhere(taken):
    assert taken(channel="a", data="1", type=None, event_id=None)
    assert not taken(channel=None, data="1")
    assert not taken(channel="a", data=None)


def test_the_trigger_keeps_to_the_setting_from_the_moment_that_it_is_prepared(make_store, taken):
    store = make_store(max_event_bytes=10)

    def needs():
        return store.database.read(
            lambda connection: store.dialect.needs_prepare(connection, max_event_bytes=10)
        )

    assert taken(channel="a", data='"%s"' % ("x" * (MOST - 2)))
    assert not taken(channel="a", data='"%s"' % ("x" * (MOST - 1)))
    assert needs()
    store.database.write(lambda connection: store.dialect.prepare(connection, max_event_bytes=10))
    assert not needs()
    assert taken(channel="a", data="1234567890")
    assert not taken(channel="a", data="12345678901")
    assert not taken(channel="a", data='"ééééé"')


def test_no_row_is_taken_past_one_that_waits(store, taken):
    run(
        store.engine,
        "INSERT INTO legacy_poll_outbox (channel, data) VALUES ('no spaces', '1'), ('orders', '2')",
    )
    assert store.waiting() == 2
    assert store.data() == []


def test_ids_made_by_the_trigger_are_random_uuids(store):
    run(
        store.engine,
        "INSERT INTO legacy_poll_outbox (channel, data) VALUES " + ", ".join(["('a', '1')"] * 200),
    )
    ids = [each.id for each in store.events()]
    import uuid

    made = [uuid.UUID(each) for each in ids]
    assert [str(each) for each in made] == ids
    assert {each.version for each in made} == {4}
    assert {each.variant for each in made} == {uuid.RFC_4122}
    assert len(set(ids)) == 200
