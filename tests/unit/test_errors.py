"""Each error belongs to one of three families, and says the value found and the rule that it broke."""

from __future__ import annotations

import inspect

import pytest

from legacy_poll import errors


def all_errors():
    found = [each for each in vars(errors).values() if inspect.isclass(each) and issubclass(each, Exception)]
    return [each for each in found if each.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_every_error_belongs_to_exactly_one_family(kind):
    families = (errors.ConfigError, errors.StorageUnavailable, errors.RequestError)
    # The base of all, and a client that hung up: nobody is there to be told, and nobody has to act.
    if kind not in (errors.LegacyPollError, errors.ClientGone):
        assert sum(issubclass(kind, family) for family in families) == 1


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_every_error_is_exported(kind):
    assert kind.__name__ in errors.__all__


def test_every_machine_code_stands_for_one_error():
    codes = [each.code for each in all_errors() if "code" in vars(each)]
    assert len(codes) == len(set(codes))
    assert all(code == code.lower() and code.isidentifier() for code in codes)


STATUSES = {
    "BadParameter": (400, "bad_parameter"),
    "BadCursor": (400, "bad_cursor"),
    "InvalidEvent": (400, "invalid_event"),
    "EventTooLarge": (413, "event_too_large"),
    "CursorExpired": (410, "cursor_expired"),
    "CursorUnknown": (410, "cursor_unknown"),
    "BacklogTooLarge": (410, "backlog_too_large"),
    "Unauthorized": (401, "unauthorized"),
    "Forbidden": (403, "forbidden"),
    "NotFound": (404, "not_found"),
    "MethodNotAllowed": (405, "method_not_allowed"),
    "UnsupportedMediaType": (415, "unsupported_media_type"),
    "BodyTooLarge": (413, "body_too_large"),
    "TooManyPolls": (429, "too_many_polls"),
    "ServerFull": (503, "server_full"),
    "Draining": (503, "draining"),
    "StorageUnavailable": (503, "storage_unavailable"),
    "SchemaMissing": (503, "schema_missing"),
}


@pytest.mark.parametrize("name", STATUSES)
def test_status_and_code_stand_on_the_class(name):
    kind = getattr(errors, name)
    assert (kind.status, kind.code) == STATUSES[name]


@pytest.mark.parametrize("name", [name for name, (status, _) in STATUSES.items() if status in (429, 503)])
def test_what_is_refused_for_now_may_be_asked_again(name):
    kind = getattr(errors, name)
    assert issubclass(kind, errors.StorageUnavailable) or kind.again_later


def test_a_bad_parameter_names_the_field_the_value_and_the_rule():
    error = errors.BadParameter("timeout", "-1", "a number of milliseconds is needed")
    assert str(error) == "timeout is '-1': a number of milliseconds is needed"
    assert error.facts == {"field": "timeout", "value": "-1", "rule": "a number of milliseconds is needed"}


def test_a_bad_cursor_says_what_a_cursor_is():
    error = errors.BadCursor("x")
    assert str(error) == "cursor is 'x': a cursor is used exactly as an answer gave it"
    assert error.facts["field"] == "cursor"


def test_an_event_that_is_too_large_says_both_sizes():
    error = errors.EventTooLarge(11, 10)
    assert str(error) == "data has 11 bytes: at most 10 are allowed"
    assert (error.field, error.rule, error.facts) == ("data", "at most 10 bytes", {"size": 11, "most": 10})
    assert isinstance(error, errors.InvalidEvent)


def test_an_invalid_event_is_a_value_error_for_those_who_publish():
    assert isinstance(errors.InvalidEvent("channel", "a b", "no spaces"), ValueError)


def test_unauthorized_asks_for_a_bearer_token():
    assert errors.Unauthorized("no token").headers == {"WWW-Authenticate": "Bearer"}


def test_a_method_that_is_not_allowed_names_those_that_are():
    assert errors.MethodNotAllowed("HEAD is not allowed", allow="GET").headers == {"Allow": "GET"}


def test_other_errors_ask_for_no_headers():
    assert errors.CursorUnknown("gone").headers == {}


def test_a_value_is_shown_quoted_with_control_characters_escaped():
    assert errors.shown("a\n\x00b\u202e") == r"'a\n\x00b\u202e'"
    assert errors.shown("\udcff") == r"'\udcff'"
    assert errors.shown(7) == "7"


def test_a_long_value_is_cut_and_its_length_said():
    text = errors.shown("x" * 5000)
    assert text == "'" + "x" * 79 + "... (5000 characters)"


def test_a_short_value_is_not_cut():
    assert errors.shown("x" * 78) == "'" + "x" * 78 + "'"
