"""What may stand in an event: three writers agree on it, and text that is fit is not touched."""

from __future__ import annotations

import decimal
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legacy_poll.cursors import Cursor
from legacy_poll.errors import EventTooLarge, InvalidEvent
from legacy_poll.events import (
    MAX_DEPTH,
    Batch,
    Event,
    check_channels,
    check_data,
    check_event_id,
    check_name,
    encode_data,
    new_event_id,
)

MOST = 262_144
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(value=json_values)
def test_what_is_encoded_is_ascii_and_passes_the_check_and_decodes_to_the_same(value):
    text = encode_data(value, max_bytes=MOST)
    assert text.isascii()
    assert check_data(text, max_bytes=MOST) is text
    assert json.loads(text) == value


@given(text=st.text() | st.text("[]{}:,\"\\ 0123456789.eE-+truefalsn'NaIity"))
def test_what_passes_the_check_is_what_a_strict_parser_takes(text):
    def refuse(name):
        raise ValueError(name)

    def finite(digits):
        return float(digits) if abs(float(digits)) != float("inf") else refuse(digits)

    try:
        json.loads(text, parse_constant=refuse, parse_float=finite)
        fit = True
    except (ValueError, RecursionError):
        fit = False
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        fit = False
    try:
        check_data(text, max_bytes=MOST)
    except InvalidEvent:
        assert not fit
    else:
        assert fit


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        [float("-inf")],
        {float("nan"): 1},
        {1, 2},
        b"bytes",
        object(),
        decimal.Decimal(1),
        {("a", "b"): 1},
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_json_value_is_refused(value):
    with pytest.raises(InvalidEvent, match="a JSON value is needed") as caught:
        encode_data(value, max_bytes=MOST)
    assert caught.value.field == "data"


def test_a_value_that_contains_itself_is_refused():
    value = []
    value.append(value)
    with pytest.raises(InvalidEvent):
        encode_data(value, max_bytes=MOST)


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


def test_nesting_has_a_limit():
    assert encode_data(nested(MAX_DEPTH), max_bytes=MOST) == "[" * MAX_DEPTH + "1" + "]" * MAX_DEPTH
    for depth in (MAX_DEPTH + 1, 300, 100_000):
        with pytest.raises(InvalidEvent, match="at most 200 levels of nesting"):
            encode_data(nested(depth) if depth < 1000 else _deep(), max_bytes=MOST)
        with pytest.raises(InvalidEvent, match="at most 200 levels of nesting"):
            check_data("[" * depth + "]" * depth, max_bytes=MOST)


def _deep():
    value = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    "text",
    [
        json.dumps("[" * 300),
        json.dumps('"[{' * 300),
        json.dumps("\\" * 301 + "[" * 300),
        json.dumps(["["] * 300),
        json.dumps([[]] * 300),
        "[" * 200 + "]" * 200,
    ],
)
def test_brackets_that_do_not_nest_are_not_counted(text):
    assert check_data(text, max_bytes=MOST) == text


def test_a_string_that_never_ends_is_looked_at_once():
    # Looked at again from each of its quotes, this takes minutes; in a process of its own it can be given up.
    code = (
        "from legacy_poll.events import check_data, InvalidEvent\n"
        "for tail in ('\\\\\"' * 130000, '\\\\' * 260000, '\"a' * 130000):\n"
        "    try:\n"
        "        check_data('[' * 201 + '\"' + tail, max_bytes=10**6)\n"
        "    except InvalidEvent as error:\n"
        "        print(error.field)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=60, check=True).stdout
    assert said.split() == [b"data"] * 3


def test_sizes_are_counted_in_bytes_and_the_limit_is_allowed():
    assert encode_data("x" * 8, max_bytes=10) == '"xxxxxxxx"'
    with pytest.raises(EventTooLarge, match="11 bytes: at most 10"):
        encode_data("x" * 9, max_bytes=10)
    # Six characters each, escaped.
    with pytest.raises(EventTooLarge, match="14 bytes"):
        encode_data("éé", max_bytes=10)
    assert check_data('"éééé"', max_bytes=10) == '"éééé"'
    with pytest.raises(EventTooLarge, match="12 bytes"):
        check_data('"ééééé"', max_bytes=10)


def test_numbers_that_no_double_can_hold_are_refused():
    for text in ("1e400", "-1e400", "[1E400]", '{"a": 1.0e+309}', "1" + "0" * 310 + ".5"):
        with pytest.raises(InvalidEvent, match="beyond the range of a double"):
            check_data(text, max_bytes=MOST)
    for text in ("1e308", "-1.7976931348623157e308", "1e-400", "-0.0", "12345678901234567890"):
        assert check_data(text, max_bytes=MOST) == text


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "[NaN]", '{"a": Infinity}'])
def test_constants_that_are_not_json_are_refused(text):
    with pytest.raises(InvalidEvent, match="is not JSON"):
        check_data(text, max_bytes=MOST)


@pytest.mark.parametrize("value", [None, 7, b"{}", {"a": 1}], ids=repr)
def test_what_is_no_text_is_not_json_text(value):
    with pytest.raises(InvalidEvent, match="JSON text is needed"):
        check_data(value, max_bytes=MOST)


def test_half_a_surrogate_pair_is_fit_when_escaped_and_not_when_bare():
    assert encode_data("\ud800", max_bytes=MOST) == '"\\ud800"'
    with pytest.raises(InvalidEvent, match="UTF-8"):
        check_data('"\ud800"', max_bytes=MOST)


@pytest.mark.parametrize("name", ["a", "A-Z", "orders", "user:7", "a/b@c~d+e=f.g_h-0", "x" * 200])
def test_a_name_is_fit(name):
    assert check_name("channel", name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "a b",
        "a\n",
        "\na",
        "a\x00",
        "\x7f",
        "é",
        "a,b",
        "a;b",
        "a%",
        "a*",
        "x" * 201,
        None,
        7,
        b"a",
        ["a"],
    ],
)
def test_a_name_is_refused_with_the_rule(name):
    rule = r"1 to 200 of the characters A-Z a-z 0-9 _ \. : / @ ~ \+ = -"
    with pytest.raises(InvalidEvent, match="type is .*: " + rule) as caught:
        check_name("type", name)
    assert caught.value.facts == {"field": "type", "value": name, "rule": caught.value.rule}


def test_names_that_start_with_a_dollar_sign_are_reserved():
    with pytest.raises(InvalidEvent, match=r"names that start with \$ are reserved"):
        check_name("channel", "$revoked")


def test_channels_are_checked_one_by_one_and_become_a_set():
    assert check_channels(["b", "a", "b"]) == frozenset(["a", "b"])
    with pytest.raises(InvalidEvent, match="channel is 'a b'"):
        check_channels(["a", "a b"])


def test_an_id_may_be_given_and_is_else_made():
    assert check_event_id("x" * 100) == "x" * 100
    with pytest.raises(InvalidEvent, match="id is .*: 1 to 100 of"):
        check_event_id("x" * 101)
    assert check_event_id(None) != check_event_id(None)
    assert len(new_event_id()) == 36


def test_an_event_knows_its_size_in_bytes():
    assert Event(1, "a", "c", "t", '"abc"', "", None).size == 5
    assert Event(1, "a", "c", "t", '"é❄😀"', "", None).size == 2 + 2 + 3 + 4


def test_events_and_batches_do_not_change():
    event = Event(1, "a", "c", "t", "1", "2024-01-01T00:00:00.000Z", None)
    batch = Batch((event,), Cursor.at("log", 1, "a"))
    assert batch == Batch((event,), Cursor.at("log", 1, "a"), False)
    for thing, name in ((event, "position"), (batch, "more")):
        with pytest.raises(AttributeError):
            setattr(thing, name, 2)
