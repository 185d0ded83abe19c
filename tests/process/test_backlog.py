"""`LEGACY_POLL_MAX_BACKLOG_EVENTS` over three workers: which of them answers makes no difference.

One worker is younger than the others, and memory is small, so that the same cursor is served from memory by some and
from the database by others.
"""

from __future__ import annotations

import pytest

from tests.process.conftest import DEFAULTS
from tests.process.polls import get, head, stream
from tests.waiting import until

MOST = 12
# Above the limit: old workers have all in memory. A young one has what was there when it came.
TAIL = 1000

each_database = pytest.mark.parametrize("database_url", DEFAULTS, indirect=True)


def answers(gunicorn, **parameters):
    """What each worker says to the same poll: status, data or code, and the cursor in the answer."""
    said = {}
    for worker in gunicorn.workers:
        with gunicorn.only(worker):
            answer = get(gunicorn, stream(timeout=0, **parameters))
            said[worker] = (answer.status, answer.data if answer.status < 400 else answer.code, answer.cursor)
    return said


def settle(gunicorn, cursor):
    """Each worker has what is before *cursor*."""
    for worker in gunicorn.workers:
        with gunicorn.only(worker):
            until(
                lambda: get(gunicorn, "/status").json["worker"]["cursor"] == cursor, 30, "it has everything"
            )


@each_database
@pytest.mark.parametrize("tail", [TAIL, 5], ids=["from memory", "from the log"])
def test_every_worker_refuses_the_same_cursors(serve, terminal, tail):
    gunicorn = serve({"MAX_BACKLOG_EVENTS": MOST, "TAIL_EVENTS": tail})
    cursors = [head(gunicorn)]
    for number in range(MOST + 1):
        terminal.publish(str(number))
        until(lambda: head(gunicorn) != cursors[-1], 30, "it has a position")
        cursors.append(head(gunicorn))
        if number == MOST // 2:
            gunicorn.kill(gunicorn.workers[0])
            gunicorn.wait_until_ready()
    settle(gunicorn, cursors[-1])
    everything = list(range(MOST + 1))
    for parameters, expected in [
        ({"cursor": cursors[0]}, (410, "backlog_too_large", cursors[-1])),
        ({}, (410, "backlog_too_large", cursors[-1])),
        ({"cursor": cursors[1]}, (200, everything[1:], cursors[-1])),
        ({"cursor": cursors[-2]}, (200, everything[-1:], cursors[-1])),
        # A page further it is still the same: what counts is all that is behind, not what one answer holds.
        ({"cursor": cursors[0], "limit": 3}, (410, "backlog_too_large", cursors[-1])),
        ({"cursor": cursors[1], "limit": 3}, (206, everything[1:4], cursors[4])),
    ]:
        said = answers(gunicorn, **parameters)
        assert len(said) == len(gunicorn.workers) and set(map(repr, said.values())) == {repr(expected)}, (
            parameters,
            said,
        )
    assert get(gunicorn, stream("quiet", cursor=cursors[0], timeout=0)).status == 204
