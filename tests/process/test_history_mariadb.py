"""Promise 1 on MariaDB: the history checker judges runs of three servers: stopped and killed; and with
the database taken away, servers reloaded and hints cut.

What the run does is told in tests/history/run.py, publishing.py and reading.py. The report that it prints is shown by
`pytest -rP`.
"""

from __future__ import annotations

import pytest

from tests.history.run import run
from tests.history.workload import LEGACY_POLL, Workload

EVENTS = 10_000


@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_every_event_reaches_every_reader_once_in_one_order(database_url, tmp_path):
    outcome = run(Workload(LEGACY_POLL, database_url, str(tmp_path), EVENTS, open_seconds=2.0), faults=True)
    print(outcome)
    assert outcome.report.held, str(outcome.report)
    assert outcome.report.events >= EVENTS
    assert "has been held for over a second" in outcome.server_log
    assert "Traceback" not in outcome.server_log, outcome.server_log


@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_outages_reloads_and_lost_hints_cost_no_event(database_url, database_server, tmp_path):
    outcome = run(Workload.with_outages(database_url, str(tmp_path)), database=database_server)
    print(outcome)
    assert outcome.report.held, str(outcome.report)
    assert len(outcome.faults) == 7
    assert "Traceback" not in outcome.server_log, outcome.server_log
