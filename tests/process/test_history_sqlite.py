"""Promise 1 on SQLite: the history checker judges a run of three servers and eight writers that are stopped and killed.

SQLite has one write transaction at a time, and a trigger in it gives the position. So no transaction stays open for
long here: that would not be a race but a stop for all other writers. A worker holds the lock only when it moves what
the trigger left alone (a row that is to be set aside and what stands behind it, long text beyond ASCII), and there it
is stopped and killed, as publishers are in their transactions. While a writer is stopped nobody can write, but readers
are answered.
"""

from __future__ import annotations

import pytest

from tests.history.run import run
from tests.history.workload import LEGACY_POLL, Workload
from tests.process.conftest import each_lane

EVENTS = {"standard": 10_000, "parked": 8_000}


@each_lane
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_every_event_reaches_every_reader_once_in_one_order(database_url, lane, tmp_path):
    workload = Workload(
        LEGACY_POLL, database_url, str(tmp_path), EVENTS[lane], open_seconds=2.0, park=lane == "parked"
    )
    outcome = run(workload, faults=True)
    print(outcome)
    assert outcome.report.held, str(outcome.report)
    assert outcome.report.events >= EVENTS[lane]
    assert (outcome.approved > 0) == (lane == "parked")
    assert "Traceback" not in outcome.server_log, outcome.server_log


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_outages_reloads_and_lost_hints_cost_no_event(database_url, database_server, tmp_path):
    outcome = run(Workload.with_outages(database_url, str(tmp_path)), database=database_server)
    print(outcome)
    assert outcome.report.held, str(outcome.report)
    assert len(outcome.faults) == 4
    assert "Traceback" not in outcome.server_log, outcome.server_log
