"""PostgreSQL behind a long report: each move leaves a dead version of the log's one row, and nobody may clean up.

Whoever looked for the row by walking over all of them would take longer with every event, for as long as the report
runs. The server's own counts of blocks are the judge.
"""

from __future__ import annotations

import pytest
from sqlalchemy import text

from tests.contract.store import on_postgresql
from tests.servers import database_name
from tests.waiting import until

pytestmark = [pytest.mark.own_database, on_postgresql]

VERSIONS = 4000
BLOCKS = "SELECT pg_relation_size('legacy_poll_log') / 8192"
WALKED = "SELECT heap_blks_hit + heap_blks_read FROM pg_statio_user_tables WHERE relname = 'legacy_poll_log'"
# As so many moves would do, each in a transaction of its own.
GROW = (
    "DO $$ BEGIN FOR i IN 1..%d LOOP UPDATE legacy_poll_log SET oldest = oldest; COMMIT; END LOOP; END $$"
    % VERSIONS
)


@pytest.fixture
def report(engine, tables):
    """A transaction that has been open since before."""
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        connection.execute(text("SELECT count(*) FROM legacy_poll_log")).all()
        yield connection
        connection.rollback()


@pytest.fixture
def grown(report, database_server, database_url):
    """How many blocks the log's row has had."""
    database_server.execute(GROW, database_url)
    return int(database_server.execute(BLOCKS, database_url))


def walked(database_server, database_url, store):
    """Blocks of the log's table that have been looked at so far, by those whose sessions have ended."""
    store.close()
    ours = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND state = 'idle'"
        " AND query LIKE '%legacy_poll_%' AND pid <> pg_backend_pid()"
    )
    ours = ours.format(database_name(database_url))
    until(lambda: int(database_server.execute(ours)) == 0, what="our sessions have ended")
    return int(database_server.execute(WALKED, database_url))


@pytest.mark.parametrize("done", [None, "ANALYZE", "VACUUM"])
def test_looks_and_moves_do_not_walk_over_dead_versions_of_the_logs_row(
    done, store, grown, database_server, database_url
):
    assert grown >= 20
    if done is not None:
        # Autovacuum does either sooner or later; the planner then knows that the table has one row.
        database_server.execute(done + " legacy_poll_log", database_url)
    store.log.glance()
    before = walked(database_server, database_url, store)
    for number in range(20):
        store.publish(number)
        assert [each.data for each in store.move().events] == [str(number)]
        store.log.glance()
        store.log.bounds()
        store.read()
    looked = walked(database_server, database_url, store) - before
    # Eight looks each time, at least.
    assert looked / (20 * 8) < grown / 4, (looked, grown)
    store.check()


def test_the_row_is_found_when_it_comes_back_to_the_beginning_of_its_table(
    store, make_store, grown, report, database_server, database_url
):
    other = make_store()
    for each in (store, other):
        each.publish(1)
        each.drain()
    report.rollback()
    database_server.execute("VACUUM FULL legacy_poll_log", database_url)
    for number in range(2, 30):
        store.publish(number)
        store.drain()
    place = database_server.execute("SELECT ctid FROM legacy_poll_log", database_url)
    assert place.startswith("(0,"), place
    assert other.log.bounds().head == other.log.glance().head == 30
    other.publish(30)
    other.drain()
    assert store.data() == other.data() == [1, 1] + list(range(2, 31))
