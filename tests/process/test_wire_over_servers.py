"""The wire's own tests again, over every other server that can hold a poll: threads, gevent's own, Flask's own.

What is particular to one of them is in test_other_servers.py.
"""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine

from legacy_poll.schema import upgrade
from tests.http.conftest import SECONDS
from tests.http.test_stream import (  # noqa: F401
    test_a_chain_of_polls_gets_every_event_once_in_order,
    test_a_commit_ends_a_held_poll,
    test_a_cursor_of_another_log_is_unknown,
    test_a_cursor_that_is_nearly_right_is_unknown,
    test_a_hold_that_ends_empty_is_204_with_the_cursor_moved,
    test_a_poll_held_while_the_log_is_replaced_is_told,
    test_a_rolled_back_event_reaches_nobody,
    test_a_short_poll_is_answered_at_once,
    test_an_answer_that_was_lost_can_be_asked_for_again,
    test_an_empty_answer_may_be_200,
    test_an_event_that_is_there_is_answered_at_once,
    test_an_insert_by_another_program_ends_a_held_poll,
    test_now_answers_at_once_with_the_present_cursor,
    test_one_cursor_is_good_for_any_channels,
    test_one_poll_may_be_on_many_channels_in_either_spelling,
    test_options_says_what_it_takes,
    test_other_channels_do_not_end_a_held_poll,
    test_stream_takes_get_alone,
    test_without_a_channel_it_is_the_channel_default,
)
from tests.process.other_servers import HOLDING, make
from tests.process.test_wire_over_workers import House
from tests.waiting import until


@pytest.fixture(scope="module", params=HOLDING)
def house(request, tmp_path_factory):
    url = "sqlite:///{}".format(tmp_path_factory.mktemp("house") / "log.db")
    engine = create_engine(url, future=True)
    upgrade(engine)
    engine.dispose()
    server = make(request.param, {"PUBLIC": 1, "DATABASE_URL": url, "POLL_INTERVAL_SECONDS": 0.02})
    try:
        house = House(server.start(), url)
        yield house
        house.engine.dispose()
        assert "Traceback" not in server.log, server.log
    finally:
        server.destroy()


@pytest.fixture
def site(house):
    """The house with an empty log; at the end nobody is held."""
    house.empty()
    yield house
    until(lambda: house.held == 0, SECONDS, "nobody is held")
