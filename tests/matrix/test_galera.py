"""Promise 1 on a Galera cluster, with writers and servers on all of its nodes, through HAProxy as shops have it.

Nodes are killed, stopped, cut off from the others and from everybody, while publishers go on and readers follow.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.galera import Galera
from tests.history.run import run
from tests.history.workload import Workload


@pytest.fixture(scope="module")
def cluster():
    cluster = Galera()
    cluster.start()
    yield cluster
    cluster.destroy()


def test_nodes_that_go_and_come_back_cost_no_event(cluster, tmp_path):
    workload = Workload.with_outages(cluster.create_database(), str(tmp_path))
    workload = replace(workload, limit_seconds=400.0)
    outcome = run(workload, cluster=cluster)
    print(outcome)
    print(outcome.server_log)
    assert outcome.report.held, str(outcome.report)
    assert len(outcome.faults) == 5
    assert "Traceback" not in outcome.server_log, outcome.server_log
    # The servers' looks go to any node.
    assert "the log is not the one that was there" not in outcome.server_log
