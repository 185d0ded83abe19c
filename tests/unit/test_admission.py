"""Places: taken, refused, and given back whatever becomes of the request."""

from __future__ import annotations

import gevent
import gevent.event
import pytest

from legacy_poll.admission import Admission
from legacy_poll.errors import Draining, ServerFull, TooManyPolls
from tests.waiting import until


@pytest.fixture
def make_admission():
    made = []

    def make(max_held=100, max_held_per_client=0):
        made.append(Admission(max_held=max_held, max_held_per_client=max_held_per_client))
        return made[-1]

    yield make
    for admission in made:
        assert admission.held == 0
        assert not admission._by_client, "clients without polls: {}".format(sorted(admission._by_client))


def test_the_workers_places_are_counted(make_admission):
    admission = make_admission(max_held=2)
    leaves = [admission.enter("a"), admission.enter("b")]
    with pytest.raises(ServerFull, match="holds 2 polls: at most 2 are allowed"):
        admission.enter("c")
    leaves.pop()()
    leaves.append(admission.enter("c"))
    assert admission.held == 2
    for leave in leaves:
        leave()


def test_one_clients_share_is_counted(make_admission):
    admission = make_admission(max_held_per_client=1)
    leaves = [admission.enter("a"), admission.enter("b")]
    with pytest.raises(TooManyPolls, match="holds 1 polls: at most 1 are allowed"):
        admission.enter("a")
    leaves[0]()
    leaves[0] = admission.enter("a")
    for leave in leaves:
        leave()


def test_without_a_share_a_client_may_have_all(make_admission):
    admission = make_admission(max_held=3)
    leaves = [admission.enter("a") for _ in range(3)]
    for leave in leaves:
        leave()


def test_with_no_places_everybody_is_refused(make_admission):
    with pytest.raises(ServerFull):
        make_admission(max_held=0).enter("a")


def test_who_has_its_share_of_a_full_server_is_told_of_its_share(make_admission):
    """The client can do something about the one, and nothing about the other."""
    admission = make_admission(max_held=1, max_held_per_client=1)
    leave = admission.enter("a")
    with pytest.raises(TooManyPolls):
        admission.enter("a")
    with pytest.raises(ServerFull):
        admission.enter("b")
    leave()


def test_a_refusal_takes_no_place(make_admission):
    admission = make_admission(max_held=1, max_held_per_client=1)
    leave = admission.enter("a")
    for client in ("a", "b"):
        with pytest.raises((TooManyPolls, ServerFull)):
            admission.enter(client)
    leave()
    assert admission.held == 0


def test_a_place_is_given_back_once(make_admission):
    admission = make_admission(max_held_per_client=2)
    first, second = admission.enter("a"), admission.enter("a")
    first()
    first()
    assert admission.held == 1
    second()


def test_closed_it_lets_nobody_in_and_those_inside_leave(make_admission):
    admission = make_admission()
    leave = admission.enter("a")
    admission.close()
    with pytest.raises(Draining):
        admission.enter("b")
    assert admission.held == 1
    leave()


def test_a_refusal_says_which_setting_it_is_by(make_admission):
    admission = make_admission(max_held=1, max_held_per_client=1)
    leave = admission.enter("a")
    for client, limit in [("a", "max_held_per_client"), ("b", "max_held")]:
        with pytest.raises((TooManyPolls, ServerFull)) as caught:
            admission.enter(client)
        assert caught.value.limit == limit
    leave()


@pytest.mark.parametrize("how", [gevent.GreenletExit, gevent.Timeout(1)])
def test_a_killed_request_gives_its_place_back(make_admission, how):
    admission = make_admission(max_held_per_client=1)

    def request():
        leave = admission.enter("a")
        try:
            gevent.event.Event().wait()
        finally:
            leave()

    greenlet = gevent.spawn(request)
    until(lambda: admission.held == 1)
    greenlet.kill(how, timeout=5)
    assert greenlet.dead
    assert admission.held == 0
