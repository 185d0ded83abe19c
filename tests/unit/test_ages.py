"""How old events are when clocks jump: a trim believes what deletes less."""

from __future__ import annotations

import random
from datetime import datetime, timedelta, timezone

import pytest

from legacy_poll.storage.ages import KnownFor, SteadyClock, earlier
from tests.unit.memory_log import Clock

START = datetime(2026, 11, 30, 12, 0, 0)


def text(moment):
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + "%03dZ" % (moment.microsecond // 1000)


class World:
    """True time, a database's clock that is off by *database* seconds, and a host's that is off by *host*."""

    def __init__(self):
        self.clock = Clock()
        self.began = self.clock.now
        self.database = self.host = 0.0
        self.steady = SteadyClock(clock=self.clock, wall=self._wall)

    @property
    def now(self):
        return START + timedelta(seconds=self.clock.now - self.began)

    def _wall(self):
        return self.now.replace(tzinfo=timezone.utc).timestamp() + self.host

    def believed(self):
        """By how many seconds what is believed is ahead of the truth."""
        said = self.steady(text(self.now + timedelta(seconds=self.database)))
        return (datetime.strptime(said, "%Y-%m-%dT%H:%M:%S.%fZ") - self.now).total_seconds()


@pytest.fixture
def world():
    return World()


@pytest.mark.parametrize("ahead", [3600, 86_400, 366 * 86_400, 400 * 366 * 86_400])
def test_a_databases_clock_that_is_ahead_from_the_start_is_not_believed(world, ahead):
    world.database = ahead
    assert world.believed() <= 1
    assert world.steady.ahead_seconds == pytest.approx(ahead, abs=2)


@pytest.mark.parametrize("both", [False, True])
def test_a_clock_that_jumps_ahead_is_not_followed(world, both):
    assert world.believed() == 0
    world.clock.now += 100
    world.database = 86_400
    world.host = 86_400 if both else 0
    assert world.believed() <= 2
    world.clock.now += 3600
    assert world.believed() <= 5
    assert world.steady.ahead_seconds > 86_000
    world.database = world.host = 0
    assert (world.believed(), world.steady.ahead_seconds) == (0, 0)


def test_a_clock_that_jumps_back_is_believed_and_forgiven(world):
    world.believed()
    world.database = -86_400
    assert world.believed() == -86_400
    world.database = 0
    assert world.believed() == 0


def test_clocks_that_agree_roughly_are_not_spoken_of(world):
    world.database, world.host = 30, -20
    world.believed()
    assert world.steady.ahead_seconds == 0


def test_a_clock_that_runs_a_little_fast_is_followed(world):
    for _ in range(100):
        world.clock.now += 86_400
        world.database += 5
        world.host += 5
        assert world.believed() == pytest.approx(world.database, abs=0.01)


@pytest.mark.parametrize("seed", range(20))
def test_believed_present_is_never_ahead_of_the_truth_by_more_than_seconds_whatever_the_clocks_do(seed):
    chance = random.Random(seed)
    world = World()
    assert world.believed() == 0
    for _ in range(300):
        passed = chance.choice([0.05, 10, 600])
        world.clock.now += passed
        for name in ("database", "host"):
            if chance.random() < 0.2:
                setattr(world, name, chance.choice([0, 0, 3600, -3600, 86_400, -86_400, 1e8, -1e8]))
        slack = 2 + 0.001 * (world.clock.now - world.began)
        assert world.believed() <= slack, seed


@pytest.mark.parametrize(
    "seconds, expected",
    [
        (1, "2026-11-30T11:59:59.000Z"),
        (0.001, "2026-11-30T11:59:59.999Z"),
        (3.6e10, "0886-"),
        (6.3e10, "0030-"),
        (4e10 * 1.6, ""),
        (1e18, ""),
    ],
)
def test_a_time_of_any_year_is_text_that_sorts(seconds, expected):
    found = earlier(text(START), seconds)
    assert found.startswith(expected)
    assert len(found) in (0, 24)
    assert found < text(START)


def test_a_position_is_old_when_it_has_been_known_for_as_long():
    clock = Clock()
    known = KnownFor(clock=clock)
    assert known.see("log", 10, "a", 100) is None
    clock.now += 50
    assert known.see("log", 20, "b", 100) is None
    clock.now += 51
    assert known.see("log", 30, "c", 100) == (10, "a")
    clock.now += 50
    assert known.see("log", 30, "c", 100) == (20, "b")


@pytest.mark.parametrize("log_id, head", [("another", 40), ("log", 5)])
def test_known_positions_are_of_one_log_that_never_goes_back(log_id, head):
    clock = Clock()
    known = KnownFor(clock=clock)
    known.see("log", 10, "a", 100)
    clock.now += 90
    known.see(log_id, head, "b", 100)
    clock.now += 20
    assert known.see(log_id, 50, "c", 100) is None
    clock.now += 81
    assert known.see(log_id, 60, "d", 100) == (head, "b")


def test_known_positions_are_bounded_and_never_too_many():
    clock, told = Clock(), []
    known = KnownFor(clock=clock)
    for step in range(5000):
        clock.now += 0.5
        told.append((clock.now, step))
        found = known.see("log", step, str(step), 100)
        old = [each for when, each in told if clock.now - when > 100]
        assert found is None or found[0] <= old[-1]
        assert len(known._seen) <= 70
    assert found[0] > 5000 - 220
    assert found[1] == str(found[0])
