"""Promise 1: the history checker judges runs of three servers and eight publishers, which are stopped and killed; and
with the database taken away, servers reloaded and hints cut.

What a run does is told in tests/history/run.py, publishing.py and reading.py. Its report is shown by `pytest -rP`. A
run takes the machine for a minute: all of them are in one file, so that none runs beside another. Longer ones by hand:
`python -m tests.history --faults`.

SQLite has one write transaction at a time, and a trigger in it gives the position. So no transaction stays open for
long there: that would not be a race but a stop for all other writers. A worker holds the lock only when it moves what
the trigger left alone (a row that is to be set aside and what stands behind it, long text beyond ASCII), and there it
is stopped and killed, as publishers are in their transactions. While a writer is stopped nobody can write, but readers
are answered.
"""

from __future__ import annotations

import pytest

from tests.history.run import run
from tests.history.workload import LEGACY_POLL, Workload
from tests.process.conftest import each_lane

EVENTS = 3_000
# What is taken away in a run with outages: SQLite has no server, and only PostgreSQL notifies.
TAKEN_AWAY = {"sqlite": 4, "postgresql": 8, "mariadb": 7}


@pytest.mark.parametrize("database_url", ["postgresql", "mariadb", "mysql"], indirect=True)
def test_every_event_reaches_every_reader_once_in_one_order(database_url, tmp_path):
    outcome = run(Workload(LEGACY_POLL, database_url, str(tmp_path), EVENTS, open_seconds=2.0), faults=True)
    print(outcome)
    assert outcome.report.held, str(outcome.report)
    assert outcome.report.events >= EVENTS
    assert "has been held for over a second" in outcome.server_log
    assert "Traceback" not in outcome.server_log, outcome.server_log


@each_lane
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_every_event_of_one_writer_at_a_time_reaches_every_reader_once_in_one_order(
    database_url, lane, tmp_path
):
    workload = Workload(
        LEGACY_POLL, database_url, str(tmp_path), EVENTS, open_seconds=2.0, park=lane == "parked"
    )
    outcome = run(workload, faults=True)
    print(outcome)
    assert outcome.report.held, str(outcome.report)
    assert outcome.report.events >= EVENTS
    assert (outcome.approved > 0) == (lane == "parked")
    assert "Traceback" not in outcome.server_log, outcome.server_log


@pytest.mark.parametrize("database_url", TAKEN_AWAY, indirect=True)
def test_outages_reloads_and_lost_hints_cost_no_event(database_url, database_server, request, tmp_path):
    outcome = run(Workload.with_outages(database_url, str(tmp_path)), database=database_server)
    print(outcome)
    assert outcome.report.held, str(outcome.report)
    assert len(outcome.faults) == TAKEN_AWAY[request.node.callspec.params["database_url"]]
    assert "Traceback" not in outcome.server_log, outcome.server_log
