"""Channel tokens: what they say, and that nobody but the key's owner can say it."""

from __future__ import annotations

import base64
import json

import pytest

from legacy_poll.errors import ConfigError, InvalidEvent, Unauthorized
from legacy_poll.tokens import Token, Tokens
from tests.unit.memory_log import Clock

KEY = "a key of more than 16 characters"


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def tokens(clock):
    return Tokens(KEY, clock=clock)


def test_a_token_says_which_channels_until_when_and_who(tokens):
    text = tokens.make(["orders", "user:7"], expires_seconds=60, subject="u7")
    assert tokens.read(text) == Token(
        frozenset(["orders", "user:7"]), expires=1060, issued=1000, subject="u7"
    )


def test_without_a_subject_it_is_nobodys(tokens):
    assert tokens.read(tokens.make(["orders"], expires_seconds=60)).subject is None


def test_it_goes_into_a_query_string_as_it_is(tokens):
    text = tokens.make(["orders/~+=-@.:_"] * 3, expires_seconds=60, subject="\u00fc&=")
    assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")


def test_it_holds_until_the_moment_it_expires(tokens, clock):
    text = tokens.make(["orders"], expires_seconds=60)
    clock.now += 59.9
    tokens.read(text)
    clock.now += 0.1
    with pytest.raises(Unauthorized, match="expired 0 s ago"):
        tokens.read(text)


def test_another_process_with_the_same_key_reads_it(tokens, clock):
    assert Tokens(KEY, clock=clock).read(tokens.make(["orders"], expires_seconds=60))


@pytest.mark.parametrize("missing", [None, ""])
def test_none_at_all_is_told_how_to_bring_one(tokens, missing):
    with pytest.raises(Unauthorized, match="token=... or the header Authorization: Bearer"):
        tokens.read(missing)


def test_one_of_another_key_is_refused(tokens, clock):
    text = Tokens("another key, as long as it", clock=clock).make(["orders"], expires_seconds=60)
    with pytest.raises(Unauthorized, match="not one of ours"):
        tokens.read(text)


def test_one_that_was_widened_is_refused(tokens):
    payload, _, signature = tokens.make(["orders"], expires_seconds=60).rpartition(".")
    says = json.loads(base64.urlsafe_b64decode(payload + "=="))
    says["c"].append("secrets")
    forged = base64.urlsafe_b64encode(json.dumps(says).encode()).decode().rstrip("=")
    with pytest.raises(Unauthorized):
        tokens.read(forged + "." + signature)


@pytest.mark.parametrize(
    "text",
    ["x", ".", "a.b.c", "\u00e9", "\udcff", "\x00", "=" * 10_000, "." * 10_000],
    ids=lambda text: ascii(text)[:20],
)
def test_nonsense_is_refused(tokens, text):
    with pytest.raises(Unauthorized, match="not one of ours"):
        tokens.read(text)


@pytest.mark.parametrize("says", [{}, [], "orders", None, 1, {"c": 1, "e": 1}, {"c": ["a"], "e": "soon"}])
def test_what_the_key_signed_for_another_purpose_is_refused(tokens, says):
    with pytest.raises(Unauthorized, match="not one of ours"):
        tokens.read(tokens._serializer.dumps(says))


def test_a_bad_channel_name_is_refused_when_it_is_made(tokens):
    with pytest.raises(InvalidEvent):
        tokens.make(["no way"], expires_seconds=60)


@pytest.mark.parametrize("names", ["orders", b"orders"])
def test_one_name_is_no_list_of_its_letters(tokens, names):
    with pytest.raises(InvalidEvent, match="an iterable of names is needed"):
        tokens.make(names, expires_seconds=60)


@pytest.mark.parametrize("subject", ["", 7, ["u7"], b"u7", "\ud800"])
def test_a_subject_that_could_never_be_revoked_is_refused(tokens, subject):
    with pytest.raises(InvalidEvent, match="subject is .* is needed"):
        tokens.make(["orders"], expires_seconds=60, subject=subject)


def test_without_a_key_there_are_no_tokens():
    with pytest.raises(ConfigError, match="LEGACY_POLL_SECRET_KEY is not set"):
        Tokens("")
