"""The checker must reject a log whose cursor is the auto-increment id: who guards the guard.

It is the run of the other history tests, without faults: nobody is stopped or killed, and events are lost all the
same. `python -m tests.history` measures how many, with its table for the README.
"""

from __future__ import annotations

import pytest

from tests.history.checker import LOST
from tests.history.run import run
from tests.history.workload import DELAY_SECONDS, HOME_MADE, Workload

EVENTS = 3_000


@pytest.mark.parametrize(
    "database_url, open_seconds",
    [("postgresql", DELAY_SECONDS), ("postgresql", 2.0), ("mariadb", 2.0)],
    indirect=["database_url"],
)
def test_a_log_by_auto_increment_ids_is_rejected(database_url, tmp_path, open_seconds):
    outcome = run(Workload(HOME_MADE, database_url, str(tmp_path), EVENTS, open_seconds))
    print(outcome)
    assert LOST in outcome.report.kinds
