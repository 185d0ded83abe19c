"""Promise 1 on MySQL: the history checker judges a run of three servers, stopped and killed.

What the run does is told in tests/history/run.py, publishing.py and reading.py. The report that it prints is shown by
`pytest -rP`. Outages and lost hints are for the other databases: nothing in them is MySQL's own.
"""

from __future__ import annotations

import pytest

from tests.history.run import run
from tests.history.workload import LEGACY_POLL, Workload

EVENTS = 10_000


@pytest.mark.parametrize("database_url", ["mysql"], indirect=True)
def test_every_event_reaches_every_reader_once_in_one_order(database_url, tmp_path):
    outcome = run(Workload(LEGACY_POLL, database_url, str(tmp_path), EVENTS, open_seconds=2.0), faults=True)
    print(outcome)
    assert outcome.report.held, str(outcome.report)
    assert outcome.report.events >= EVENTS
    assert "has been held for over a second" in outcome.server_log
    assert "Traceback" not in outcome.server_log, outcome.server_log
