"""The one text format that clients carry: exactly what was given out comes back, and nothing else is taken."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from legacy_poll.cursors import MAX_POSITION, Cursor, Marks, check_of, short_log
from legacy_poll.errors import BadCursor

LOG = "5f0c9a12-0000-4000-8000-000000000001"
positions = st.integers(min_value=0, max_value=MAX_POSITION)
ids = st.text(min_size=1, max_size=100)


@given(position=positions, event_id=ids)
@example(position=MAX_POSITION, event_id="a")
@example(position=0, event_id="a")
def test_a_cursor_survives_the_journey_as_text(position, event_id):
    cursor = Cursor.at(LOG, position, event_id)
    assert Cursor.parse(str(cursor)) == cursor


@given(text=st.text(max_size=60) | st.from_regex(r"[0-9]-[0-9a-fA-F]{7,9}-[0-9+ ]{0,21}-[0-9a-f]{7,9}\n?"))
def test_a_text_is_refused_or_comes_back_as_it_was(text):
    try:
        cursor = Cursor.parse(text)
    except BadCursor as error:
        assert error.facts["value"] == text
    else:
        assert str(cursor) == text


def test_the_format_is_a_version_the_log_the_position_and_a_check():
    # What is out there with clients: a change of this needs another version.
    assert str(Cursor.at(LOG, 1234, "order:7")) == "1-96a043c5-1234-8d00b652"
    assert short_log(LOG) == "96a043c5"
    assert (check_of("order:7"), check_of(None)) == ("8d00b652", "e3b0c442")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "1",
        "1-",
        "1---",
        "2-96a043c5-1-e3b0c442",
        "01-96a043c5-1-e3b0c442",
        "1-96a043c5-1",
        "1-96a043c5-1-e3b0c442-",
        "1-96a043c5-01-e3b0c442",
        "1-96a043c5--1-e3b0c442",
        "1-96a043c5-+1-e3b0c442",
        "1-96a043c5-1.0-e3b0c442",
        "1-96a043c5-1e3-e3b0c442",
        "1-96a043c5- 1-e3b0c442",
        "1-96a043c5-\u0661-e3b0c442",
        "1-96A043C5-1-e3b0c442",
        "1-96a043c-1-e3b0c442",
        "1-96a043c55-1-e3b0c442",
        "1-96a043c5-1-e3b0c44g",
        " 1-96a043c5-1-e3b0c442",
        "1-96a043c5-1-e3b0c442 ",
        "1-96a043c5-1-e3b0c442\n",
        "1-96a043c5-1-e3b0c442\x00",
        "1-96a043c5-9223372036854775808-e3b0c442",
        "1-96a043c5-" + "9" * 5000 + "-e3b0c442",
        "9" * 100_000,
    ],
)
def test_a_text_that_was_never_given_out_is_refused(text):
    with pytest.raises(BadCursor, match="a cursor is used exactly as an answer gave it") as caught:
        Cursor.parse(text)
    assert len(str(caught.value)) < 300


def test_the_check_tells_events_apart_and_an_event_from_none():
    checks = {check_of(event_id) for event_id in (None, "", "a", "A", "b", "event a")}
    assert len(checks) == 6


def test_logs_are_told_apart():
    assert short_log("a") != short_log("b")
    assert Cursor.at("a", 1, "x") != Cursor.at("b", 1, "x")


def test_at_the_start_there_is_no_event_to_check():
    assert Cursor.at(LOG, 0, None) == Cursor.at(LOG, 0, "left over")
    assert Cursor.at(LOG, 0, None).check == check_of(None)


def test_a_cursor_leads_to_the_next_one_of_its_log():
    assert Cursor.at(LOG, 1, "a").after(2, "b") == Cursor.at(LOG, 2, "b")


def test_a_cursor_can_be_a_key_and_does_not_change():
    assert len({Cursor.at(LOG, 1, "a"), Cursor.at(LOG, 1, "a"), Cursor.at(LOG, 1, "b")}) == 2
    with pytest.raises(AttributeError):
        Cursor.at(LOG, 1, "a").position = 2


def test_marks_of_one_move_differ_and_those_of_two_moves_do_too():
    first, second = Marks(), Marks()
    marks = [first.at(position) for position in range(1, 1001)]
    assert len(set(marks)) == 1000
    assert [second.at(position) for position in range(1, 1001)] != marks
    for mark in marks:
        assert Cursor.parse(str(Cursor.at(LOG, 7, "id", mark))).check == mark


@pytest.mark.parametrize("first", [0, 2**32 - 1, 2**32 - 500])
def test_a_mark_has_eight_digits_whatever_the_number(first):
    marks = Marks()
    marks._first = first
    found = [marks.at(position) for position in (1, 499, 500, 501, MAX_POSITION)]
    assert [len(mark) for mark in found] == [8] * 5
    assert len(set(found)) == 5


def test_an_event_with_a_mark_is_checked_by_it_and_one_without_by_its_id():
    assert check_of("order:7", "0123abcd") == "0123abcd"
    assert Cursor.at(LOG, 7, "order:7", "0123abcd").check == "0123abcd"
    assert Cursor.at(LOG, 0, "order:7", "0123abcd").check == check_of(None)
    assert Cursor.at(LOG, 1, "a").after(2, "b", "0123abcd") == Cursor.at(LOG, 2, "c", "0123abcd")
