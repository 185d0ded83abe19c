"""The timer wheel beside a list of deadlines, on a clock that tests turn."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from legacy_poll.lanes.parked import JITTER
from legacy_poll.lanes.wheel import SLOTS_A_SECOND, TimerWheel

SLOT = 1 / SLOTS_A_SECOND


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


class Item:
    slot = None


ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 4), st.floats(-1, 30)),
        st.tuples(st.just("discard"), st.integers(0, 4), st.none()),
        st.tuples(st.just("turn"), st.none(), st.floats(0, 20)),
    ),
    max_size=40,
)


@given(ACTS)
def test_each_deadline_is_met_once_early_by_a_slot_and_never_late(acts):
    clock, items, expected = Clock(), [Item() for _ in range(5)], {}
    wheel = TimerWheel(clock=clock)
    for act, number, seconds in acts:
        if act == "set":
            wheel.set(items[number], clock.now + seconds)
            expected[number] = (clock.now, clock.now + seconds)
        elif act == "discard":
            wheel.discard(items[number])
            expected.pop(number, None)
        else:
            clock.now += seconds
            met = wheel.due()
            assert len(met) == len(set(met))
            for number in map(items.index, met):
                began, deadline = expected.pop(number)
                assert items[number].slot is None
                # At once is at the next slot.
                assert clock.now > deadline - SLOT or clock.now > began + SLOT, (number, deadline)
            for began, deadline in expected.values():
                assert clock.now < max(deadline, began + SLOT) + SLOT
        assert bool(wheel) == bool(expected)
        assert {n for n, item in enumerate(items) if item.slot is not None} == set(expected)


def test_twenty_thousand_holds_end_spread_and_each_look_touches_only_what_is_due():
    clock = Clock()
    wheel = TimerWheel(clock=clock)
    items = [Item() for _ in range(20_000)]
    hold = 25.0
    for number, item in enumerate(items):
        # As they are held: together, shortened at random; here evenly.
        wheel.set(item, clock.now + hold * (1 - number / len(items) / JITTER))
    looks, ended = [], 0
    while wheel:
        clock.now += SLOT
        looks.append(len(wheel.due()))
        ended += looks[-1]
    assert ended == len(items)
    assert len(looks) <= hold * SLOTS_A_SECOND
    # Nothing is touched before the first is due, and then no look has more than its part.
    first = next(number for number, count in enumerate(looks) if count)
    assert first >= hold * (1 - 1 / JITTER) * SLOTS_A_SECOND - 2
    assert max(looks) <= 2 * len(items) / (hold / JITTER * SLOTS_A_SECOND)


def test_a_clock_that_jumps_by_hours_meets_all_deadlines_at_once():
    clock = Clock()
    wheel = TimerWheel(clock=clock)
    items = [Item() for _ in range(100)]
    for number, item in enumerate(items):
        wheel.set(item, clock.now + number)
    clock.now += 36_000
    assert set(wheel.due()) == set(items)
    assert not wheel and wheel.due() == []
