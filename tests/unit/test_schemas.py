"""Queries and bodies as marshmallow sees them; what a number, a word and a body's event may be."""

from __future__ import annotations

import pytest
from werkzeug.datastructures import MultiDict

from legacy_poll.errors import BadParameter, RequestError
from legacy_poll.schemas import EventBody, StreamQuery, load, single_values

QUERY = StreamQuery()
BODY = EventBody()


@pytest.mark.parametrize("name", ["timeout", "limit", "heartbeat"])
@pytest.mark.parametrize(
    "text",
    ["-1", "+1", "1.0", "1e3", "", " ", " 5", "5 ", "five", "0x10", "NaN", "\u0665", "1_000", "5\n", "\x00"],
)
def test_a_number_is_decimal_digits_and_nothing_else(name, text):
    with pytest.raises(BadParameter) as caught:
        load(QUERY, {name: text})
    assert caught.value.facts["field"] == name
    assert caught.value.facts["value"] == text


@pytest.mark.parametrize(
    "text, expected",
    [
        ("0", 0),
        ("1", 1),
        ("007", 7),
        ("25000", 25_000),
        ("9" * 18, int("9" * 18)),
        ("9" * 19, 10**18),
        ("0" * 100 + "7", 7),
        ("1" * 100_000, 10**18),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_number_may_be_as_large_as_it_likes_and_costs_nothing(text, expected):
    assert load(QUERY, {"timeout": text}) == {"timeout": expected}


@pytest.mark.parametrize("zero", ["0", "000"])
def test_a_limit_of_zero_is_refused(zero):
    with pytest.raises(BadParameter, match="limit is .*: a whole number, at least 1, is needed"):
        load(QUERY, {"limit": zero})


@pytest.mark.parametrize("text, right", [("0", True), ("1", False), ("999", False), ("1000", True)])
def test_a_heartbeat_is_none_or_at_least_a_second(text, right):
    if right:
        assert load(QUERY, {"heartbeat": text}) == {"heartbeat": int(text)}
        return
    with pytest.raises(BadParameter, match="heartbeat is '{}': .*0, or at least 1000".format(text)):
        load(QUERY, {"heartbeat": text})


@pytest.mark.parametrize("text", ["200", "204"])
def test_empty_is_one_of_two(text):
    assert load(QUERY, {"empty": text}) == {"empty": text}


@pytest.mark.parametrize("text", ["", "0200", "205", "two", "200 "])
def test_empty_is_nothing_else(text):
    with pytest.raises(BadParameter, match="empty is '{}': one of 200, 204 is needed".format(text)):
        load(QUERY, {"empty": text})


def test_what_is_left_out_stays_out():
    assert load(QUERY, {}) == {}


def test_what_another_room_judges_is_taken_as_it_is():
    assert load(QUERY, {"cursor": "\x00", "token": ""}) == {"cursor": "\x00", "token": ""}


def test_of_several_faults_the_first_in_the_schemas_order_is_told():
    with pytest.raises(BadParameter, match="timeout is"):
        load(QUERY, {"empty": "x", "limit": "x", "timeout": "x"})


@pytest.mark.parametrize("data", [None, 0, False, "", [], {}])
def test_data_may_be_anything_but_missing(data):
    assert load(BODY, {"data": data}) == {"data": data}


def test_missing_data_is_told_as_missing():
    with pytest.raises(RequestError, match="data is missing: missing data for required field"):
        load(BODY, {"channel": "orders"})


def test_a_parameter_given_twice_is_refused():
    arguments = MultiDict([("cursor", "a"), ("cursor", "b")])
    with pytest.raises(BadParameter, match=r"cursor is \['a', 'b'\]: may be given once"):
        single_values(arguments, ["cursor"])


def test_only_what_is_asked_for_is_found():
    arguments = MultiDict([("cursor", "a"), ("_", "1"), ("_", "2")])
    assert single_values(arguments, ["cursor", "timeout"]) == {"cursor": "a"}
