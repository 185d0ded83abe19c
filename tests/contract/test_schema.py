"""The tables come, and go, and say their version; what is not ours is not touched."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy import inspect, text

from legacy_poll import schema
from legacy_poll.errors import SchemaError, SchemaMissing, StorageBusy, StorageUnavailable
from tests.contract.store import Store, can_compare, difference_is_empty, run, two_writers
from tests.servers import find_program
from tests.waiting import until

pytestmark = pytest.mark.own_database

ROOT = Path(__file__).resolve().parents[2]
OURS = {
    "legacy_poll_apart",
    "legacy_poll_event",
    "legacy_poll_log",
    "legacy_poll_outbox",
    "legacy_poll_set_aside",
    "legacy_poll_setting",
    "legacy_poll_version",
}


@pytest.fixture
def bare(engine):
    """A store on a database without our tables."""
    store = Store(engine)
    yield store
    store.close()


@pytest.fixture
def users_tables(engine):
    """What an application has in the same database, alembic's own table included; checks that it stays."""
    columns = "(id INTEGER PRIMARY KEY, version_num VARCHAR(32))"
    for name in ("shop_order", "alembic_version", "legacy_pollution"):
        run(engine, "CREATE TABLE %s %s" % (name, columns))
        run(engine, "INSERT INTO %s (id, version_num) VALUES (7, 'theirs')" % name)
    yield
    for name in ("shop_order", "alembic_version", "legacy_pollution"):
        with engine.connect() as connection:
            rows = connection.execute(text("SELECT id, version_num FROM %s" % name)).all()
        assert [tuple(row) for row in rows] == [(7, "theirs")]


def table_names(engine):
    return {name for name in inspect(engine).get_table_names() if name.startswith("legacy_poll_")}


def set_version(engine, version):
    run(engine, "UPDATE legacy_poll_version SET version_num = :version", version=version)


@pytest.fixture
def alembic(database_url):
    """Runs the alembic command as a developer would; returns what it printed."""

    def alembic(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "alembic", "-c", "setup.cfg", *arguments],
            cwd=str(ROOT),
            env={**os.environ, "LEGACY_POLL_DATABASE_URL": database_url},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    return alembic


def works(store):
    store.insert({"channel": "no spaces", "data": "0"})
    store.publish("works")
    store.drain()
    assert (store.data(), len(store.set_aside())) == (["works"], 1)


def test_an_upgrade_makes_the_tables_and_a_second_one_does_nothing(engine, bare):
    assert schema.upgrade(engine) is None
    assert table_names(engine) == OURS
    assert schema.check(bare.database) is None
    log_id = bare.log.bounds().log_id
    works(bare)
    assert schema.upgrade(engine) == schema.REVISION
    assert (bare.log.bounds().log_id, bare.data()) == (log_id, ["works"])


def test_a_new_log_is_empty_and_starts_at_one(engine, bare):
    schema.upgrade(engine)
    first = bare.log.bounds()
    assert (first.head, first.oldest, first.head_id) == (0, 1, None)
    assert len(first.log_id) == 36


def test_several_processes_may_upgrade_at_once(engine, bare, database_url):
    code = (
        "import sys; from sqlalchemy import create_engine; from legacy_poll.schema import upgrade;"
        "engine = create_engine(sys.argv[1], future=True); sys.stdin.readline(); print(upgrade(engine))"
    )
    command = [sys.executable, "-c", code, database_url]
    started = [
        subprocess.Popen(
            command, cwd=str(ROOT), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(4)
    ]
    try:
        said = []
        for process in started:
            process.stdin.write(b"go\n")
            process.stdin.flush()
        for process in started:
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0, err.decode()
            said.append(out.decode().strip())
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert sorted(said) == [schema.REVISION] * 3 + ["None"]
    works(bare)


def test_missing_tables_are_told_with_the_command_that_makes_them(bare):
    calls = [
        bare.log.glance,
        bare.log.bounds,
        bare.read,
        lambda: bare.log.trim("2024-01-01T00:00:00.000Z"),
        lambda: schema.check(bare.database),
    ]
    for call in calls:
        with pytest.raises(SchemaMissing, match="are missing; run: legacy-poll upgrade"):
            call()
    assert issubclass(SchemaMissing, StorageUnavailable)


def test_tables_that_come_later_need_no_new_store(engine, bare):
    with pytest.raises(SchemaMissing):
        bare.log.glance()
    schema.upgrade(engine)
    works(bare)


def test_a_newer_schema_of_the_same_line_is_worked_with_and_warned_of(store, engine):
    set_version(engine, "1_0999")
    warning = schema.check(store.database)
    assert "version 1_0999, newer than this code's %s: upgrade the package soon" % schema.REVISION in warning
    assert schema.upgrade(engine) == "1_0999"
    works(store)


def test_a_schema_of_another_line_is_refused(store, engine):
    set_version(engine, "2_0001")
    for call in (lambda: schema.check(store.database), lambda: schema.upgrade(engine)):
        with pytest.raises(SchemaError, match="version 2_0001 and this code works with line 1 only"):
            call()


def test_an_older_schema_of_the_same_line_is_told_with_the_command_that_upgrades_it(store, engine):
    set_version(engine, "1_0000")
    with pytest.raises(
        SchemaMissing, match="version 1_0000 and this code needs .*; run: legacy-poll upgrade"
    ):
        schema.check(store.database)


def test_the_alembic_command_upgrades_checks_and_downgrades(engine, bare, users_tables, alembic):
    alembic("upgrade", "head")
    assert table_names(engine) == OURS
    assert schema.check(bare.database) is None
    log_id = bare.log.bounds().log_id
    assert schema.upgrade(engine) == schema.REVISION
    works(bare)
    # Autogenerate sees nothing to do, whatever tables stand beside ours.
    if can_compare(engine):
        assert "No new upgrade operations detected" in alembic("check")
    alembic("downgrade", "base")
    assert table_names(engine) == {"legacy_poll_version"}
    with pytest.raises(SchemaMissing):
        schema.check(bare.database)
    assert schema.upgrade(engine) is None
    # The same tables, and another log.
    assert bare.log.bounds().log_id != log_id
    works(bare)


def test_sql_for_a_database_administrator_makes_the_same_tables(
    engine, bare, users_tables, alembic, database_server
):
    script = alembic("upgrade", "head", "--sql")
    assert table_names(engine) == set()
    if database_server is None:
        command = [find_program("sqlite3"), "-bail", engine.url.database]
    else:
        command = database_server.client(engine.url.database)
    done = subprocess.run(
        command, input=script.encode(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert table_names(engine) == OURS
    assert schema.check(bare.database) is None
    assert schema.upgrade(engine) == schema.REVISION
    assert len(bare.log.bounds().log_id) >= 32
    works(bare)
    if can_compare(engine):
        difference_is_empty(engine)


def test_the_models_match_the_migrations(engine, tables, users_tables):
    if not can_compare(engine):
        pytest.skip("alembic cannot compare these tables with SQLAlchemy 1.4")
    difference_is_empty(engine)


def test_an_upgrade_touches_nothing_beside_its_own_tables(engine, bare, users_tables):
    before = set(inspect(engine).get_table_names())
    schema.upgrade(engine)
    # SQLite keeps the last ids that it gave in a table of its own.
    assert set(inspect(engine).get_table_names()) - before - {"sqlite_sequence"} == OURS
    works(bare)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_applications_autogenerate_is_told_to_look_past_what_is_ours(engine, users_tables):
    schema.upgrade(engine)
    # SQLAlchemy 1.4 names this one, which our tables' ids made, and nobody may drop it.
    names = set(inspect(engine).get_table_names()) | {"sqlite_sequence"}
    seen = {name for name in names if schema.include_name(name, "table", {"schema_name": None})}
    assert seen == {"shop_order", "alembic_version", "legacy_pollution"}
    assert schema.include_name(None, "schema", {})
    assert schema.include_name("legacy_poll_index", "index", {"table_name": "shop_order"})


def test_the_outbox_has_no_unique_key_but_its_id(engine, tables):
    found = inspect(engine)
    assert found.get_unique_constraints("legacy_poll_outbox") == []
    assert [index for index in found.get_indexes("legacy_poll_outbox") if index["unique"]] == []


@two_writers
def test_an_upgrade_that_cannot_be_done_says_why_and_leaves_no_lock(engine, bare):
    run(engine, "CREATE TABLE legacy_poll_outbox (id INTEGER)")
    with pytest.raises(
        StorageUnavailable, match="some of the tables of legacy_poll, and not .*drop the rest"
    ):
        schema.upgrade(engine)
    run(engine, "DROP TABLE legacy_poll_outbox")
    run(engine, "DROP TABLE IF EXISTS legacy_poll_version")
    schema.upgrade(engine)
    works(bare)


@two_writers
def test_an_application_in_a_transaction_of_its_own_is_not_committed_by_an_upgrade(engine, bare):
    run(engine, "CREATE TABLE shop_order (id INTEGER PRIMARY KEY)")
    with engine.connect() as connection:
        connection.execute(text("INSERT INTO shop_order (id) VALUES (1)"))
        schema.upgrade(engine)
        connection.rollback()
        assert connection.execute(text("SELECT count(*) FROM shop_order")).scalar() == 0


def next_version(monkeypatch, tmp_path, statement):
    """From here on this code is of the next version, whose migration runs *statement*."""
    folder = tmp_path / "migrations"
    shutil.copytree(str(ROOT / "alembic"), str(folder), ignore=shutil.ignore_patterns("__pycache__"))
    revision = "revision, down_revision = '1_0900', '{}'\n".format(schema.REVISION)
    body = "from alembic import op\n\n\ndef upgrade():\n    op.execute({!r})\n".format(statement)
    (folder / "versions" / "1_0900_next.py").write_text(revision + body)
    monkeypatch.setattr(schema, "migrations", lambda: str(folder))
    monkeypatch.setattr(schema, "REVISION", "1_0900")


# Who watches also gives up after 20 s; and how many wait for a table.
WATCHER = {"postgresql": "SET statement_timeout = '20s'", "mysql": "SET SESSION lock_wait_timeout = 20"}
WAITERS = {
    "postgresql": "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation IS NOT NULL",
    "mysql": "SELECT count(*) FROM information_schema.processlist WHERE db = DATABASE()"
    " AND state LIKE 'Waiting for table metadata lock'",
}


@two_writers
def test_an_upgrade_gives_way_to_open_transactions_and_publishers_do_not_queue_behind_it(
    engine, bare, monkeypatch, tmp_path
):
    schema.upgrade(engine)
    schema_before = schema.REVISION
    next_version(monkeypatch, tmp_path, "ALTER TABLE legacy_poll_outbox ADD COLUMN trace TEXT")
    insert = text("INSERT INTO legacy_poll_outbox (channel, data) VALUES ('orders', '1')")
    done = []
    upgrading = threading.Thread(target=lambda: done.append(schema.upgrade(engine)))
    with engine.begin() as long:
        long.execute(insert)
        upgrading.start()
        with engine.connect() as watcher:
            watcher.execution_options(isolation_level="AUTOCOMMIT")
            watcher.execute(text(WATCHER[engine.dialect.name]))
            waits = WAITERS[engine.dialect.name]
            for _ in range(2):
                until(lambda: watcher.execute(text(waits)).scalar(), 20, "the upgrade waits for the table")
                # Behind it, and not for as long as the long transaction takes.
                watcher.execute(insert)
        assert not done
    upgrading.join(30)
    assert done == [schema_before]
    monkeypatch.undo()
    assert "newer than this code's" in schema.check(bare.database)


@two_writers
def test_an_upgrade_that_finds_no_gap_says_so_and_changes_nothing(engine, bare, monkeypatch, tmp_path):
    schema.upgrade(engine)
    next_version(monkeypatch, tmp_path, "ALTER TABLE legacy_poll_outbox ADD COLUMN trace TEXT")
    monkeypatch.setattr(schema, "_UPGRADE_WAIT_SECONDS", 0)
    with engine.connect() as other:
        other.execute(text("INSERT INTO legacy_poll_outbox (channel, data) VALUES ('orders', '1')"))
        with pytest.raises(StorageBusy, match="(?i)lock (wait )?timeout"):
            schema.upgrade(engine)
        other.rollback()
    monkeypatch.undo()
    assert schema.check(bare.database) is None
    works(bare)


@pytest.mark.parametrize("database_url", ["mariadb", "mysql"], indirect=True)
def test_an_upgrade_that_waits_in_vain_for_another_gives_up(engine, monkeypatch):
    monkeypatch.setattr("legacy_poll.dialects.mysql._UPGRADE_WAIT_SECONDS", 0)
    monkeypatch.setattr(schema, "_UPGRADE_WAIT_SECONDS", 0)
    with engine.connect() as other:
        # Also that of earlier versions, which had the server digest the name.
        digest = hashlib.sha1(engine.url.database.encode()).hexdigest()
        name = {"name": "legacy_poll.upgrade." + digest[:16]}
        assert other.execute(text("SELECT GET_LOCK(:name, 0)"), name).scalar() == 1
        with pytest.raises(StorageBusy, match="another upgrade has been under way"):
            schema.upgrade(engine)
        assert table_names(engine) == set()
        other.execute(text("SELECT RELEASE_LOCK(:name)"), name)
    schema.upgrade(engine)
    assert table_names(engine) == OURS
