"""When a right was revoked, by the clock that tokens are made by: no clock need agree with the database's."""

from __future__ import annotations

import json

import pytest

from legacy_poll.events import REVOKE_CHANNEL, Event, seconds_of
from legacy_poll.revocations import Revocations

TIME = "2026-01-02T03:04:05.678Z"
HERE = seconds_of(TIME)


def revocation(position=1, subject="u7", time=TIME, **says):
    data = json.dumps(dict(says, subject=subject))
    return Event(position, "id-%d" % position, REVOKE_CHANNEL, "revoke", data, time, None)


@pytest.fixture(params=[-3600.0, 0.0, 3600.0], ids=["database ahead", "agree", "database behind"])
def off(request):
    """How far this host's clock is ahead of the database's, seconds."""
    return request.param


@pytest.fixture
def revocations(off):
    return Revocations(host_time_of=lambda time: seconds_of(time) + off)


@pytest.mark.parametrize("loaded", [False, True])
def test_tokens_from_before_are_outdated_and_those_made_after_are_good(revocations, off, loaded):
    """By SQL: it has no time but the database's."""
    event = revocation()
    if loaded:
        assert revocations.load([event], upto=1) == ["u7"]
    else:
        assert revocations.note(event) == "u7"
    moment = HERE + off
    assert revocations.outdates("u7", moment - 0.001)
    assert revocations.outdates("u7", moment)
    assert not revocations.outdates("u7", moment + 0.001)
    assert not revocations.outdates("u8", moment - 10)


def test_a_revocation_that_says_its_servers_time_is_taken_at_its_word(revocations):
    revocations.note(revocation(at=HERE + 100.5))
    assert revocations.outdates("u7", HERE + 100.5)
    assert not revocations.outdates("u7", HERE + 100.501)


@pytest.mark.parametrize("at", [None, "yesterday", [], {}, True, "nan", -1, 10**400, 1e300])
def test_a_time_that_is_none_does_not_count(revocations, off, at):
    revocations.note(revocation(at=at))
    assert revocations.outdates("u7", HERE + off)
    assert not revocations.outdates("u7", HERE + off + 0.001)


@pytest.mark.parametrize("time", ["", "yesterday", "2026-01-02 03:04:05", "0000-00-00T00:00:00.000Z"])
@pytest.mark.parametrize("loaded", [False, True])
def test_a_time_that_somebody_spoiled_counts_as_now(off, time, loaded):
    """By hand, in the log: nothing fails at it, and no token from before is good."""
    revocations = Revocations(host_time_of=lambda time: seconds_of(time) + off, wall=lambda: HERE + 50)
    if loaded:
        assert revocations.load([revocation(time=time)], upto=1) == ["u7"]
    else:
        assert revocations.note(revocation(time=time)) == "u7"
    assert revocations.outdates("u7", HERE + 50)
    assert not revocations.outdates("u7", HERE + 50.001)


@pytest.mark.parametrize("data", ["", "{", "null", "[]", '"u7"', "[" * 100_000, '{"subject": 7}'])
def test_data_that_say_nothing_revoke_nobody(revocations, data):
    event = Event(1, "id-1", REVOKE_CHANNEL, "revoke", data, TIME, None)
    assert revocations.note(event) is None
    assert revocations.load([event], upto=1) == []


def test_a_number_that_is_none_does_not_count(revocations, off):
    data = '{"subject": "u7", "at": NaN}'
    revocations.note(Event(1, "id", REVOKE_CHANNEL, "revoke", data, TIME, None))
    assert not revocations.outdates("u7", HERE + off + 0.001)


def test_a_later_revocation_never_makes_older_tokens_good_again(revocations, off):
    revocations.note(revocation(1, at=HERE + 5000))
    revocations.note(revocation(2))
    assert revocations.outdates("u7", HERE + 5000)


def test_a_worker_that_starts_knows_the_latest_time_of_all_revocations_of_a_subject(revocations):
    """The last of them may be of a server whose clock is behind."""
    events = [revocation(1, at=HERE + 5000), revocation(2, at=HERE - 60)]
    assert revocations.load(events, upto=2) == ["u7"]
    assert revocations.outdates("u7", HERE + 5000)
    assert revocations.load(events, upto=2) == []
