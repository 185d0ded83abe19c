"""A restored backup is told to clients: a cursor behind what it lost is unknown, one before it goes on.

With the tools that an operator would use: a copied file, pg_dump and pg_restore, mariadb-dump and mariadb.
"""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from legacy_poll import schema
from legacy_poll.errors import CursorUnknown
from tests.servers import database_name

pytestmark = pytest.mark.own_database


@pytest.fixture
def backup(engine, store, database_server, tmp_path):
    """backup() saves the database and returns restore(), which brings it back to that moment."""

    def at_rest():
        store.close()
        engine.dispose()

    def call(command, **streams):
        done = subprocess.run(command, stderr=subprocess.PIPE, timeout=60, **streams)
        assert done.returncode == 0, done.stderr.decode()

    def copy_file():
        at_rest()
        path, saved = engine.url.database, str(tmp_path / "saved.db")
        # The last connection to close has moved everything from the -wal file to this one.
        assert not os.path.exists(path + "-wal")
        shutil.copyfile(path, saved)

        def restore():
            at_rest()
            shutil.copyfile(saved, path)

        return restore

    def pg_dump():
        saved = str(tmp_path / "saved.dump")
        place = ["-h", "127.0.0.1", "-p", str(database_server.port), "-U", "postgres"]
        place += ["-d", database_name(engine.url.database)]
        call([database_server.program("pg_dump"), "-Fc", "-f", saved] + place)

        def restore():
            at_rest()
            call(
                [database_server.program("pg_restore"), "--clean", "--if-exists", "--exit-on-error"]
                + place
                + [saved]
            )

        return restore

    def mysql_dump():
        saved = str(tmp_path / "saved.sql")
        place = ["--protocol=tcp", "-h", "127.0.0.1", "-P", str(database_server.port), "-u", "root"]
        dump = [database_server.program(database_server.dump), "--no-defaults", "--single-transaction"]
        with open(saved, "wb") as file:
            call(dump + place + [engine.url.database], stdout=file)

        def restore():
            at_rest()
            with open(saved, "rb") as file:
                call(database_server.client(engine.url.database), stdin=file)

        return restore

    return {"sqlite": copy_file, "postgresql": pg_dump, "mysql": mysql_dump}[engine.dialect.name]


def fill(store, *data):
    store.publish(*data)
    store.drain()


def cursors(store):
    return [store.log.cursor_at(position) for position in range(store.log.bounds().head + 1)]


def test_cursors_behind_a_restored_backup_are_unknown_at_once(store, backup):
    fill(store, 1, 2, 3)
    restore = backup()
    fill(store, 4, 5)
    given = cursors(store)
    restore()
    assert store.data() == [1, 2, 3]
    for cursor in given[4:]:
        with pytest.raises(CursorUnknown, match="beyond the end"):
            store.read(cursor)
    assert [store.data(cursor=cursor) for cursor in given[:4]] == [[1, 2, 3], [2, 3], [3], []]


def test_cursors_behind_a_restored_backup_stay_unknown_when_the_log_has_grown_past_them(store, backup):
    fill(store, 1, 2, 3)
    restore = backup()
    fill(store, 4, 5)
    given = cursors(store)
    restore()
    fill(store, "other 4", "other 5", "other 6")
    for cursor in given[4:]:
        with pytest.raises(CursorUnknown, match="another event there"):
            store.read(cursor)
    assert store.data(cursor=given[3]) == ["other 4", "other 5", "other 6"]
    assert store.positions() == [1, 2, 3, 4, 5, 6]


def test_a_glance_tells_a_restored_log_from_the_one_that_was_there(store, backup):
    fill(store, 1)
    restore = backup()
    fill(store, 2)
    before = store.log.glance()
    restore()
    fill(store, "other 2")
    after = store.log.glance()
    assert (before.head, before.log_id) == (after.head, after.log_id)
    assert before.cursor != after.cursor


def test_a_restored_backup_with_a_new_log_knows_no_cursor(store, engine, backup):
    fill(store, 1, 2)
    restore = backup()
    given = cursors(store)
    restore()
    schema.new_log(engine)
    for cursor in given:
        with pytest.raises(CursorUnknown, match="another log"):
            store.read(cursor)
    assert store.data() == [1, 2]


def test_a_restored_log_is_at_the_version_it_was_and_goes_on(store, engine, backup):
    fill(store, 1)
    restore = backup()
    restore()
    assert schema.upgrade(engine) == schema.REVISION
    assert schema.check(store.database) is None
    store.insert({"channel": "no spaces", "data": "1"})
    fill(store, 2)
    assert (store.data(), len(store.set_aside())) == ([1, 2], 1)


def test_a_client_ahead_of_a_backup_is_told_though_the_same_id_comes_to_the_same_position(store, backup):
    """A publisher that repeats what it is not sure of gives the same id again; what was put before it is another."""
    fill(store, 1, 2, 3)
    restore = backup()
    fill(store, "four")
    store.publish("five", id="daily-report")
    store.drain()
    given = cursors(store)
    restore()
    fill(store, "another four")
    store.publish("five", id="daily-report")
    store.drain()
    assert store.positions() == [1, 2, 3, 4, 5]
    for cursor in given[4:]:
        with pytest.raises(CursorUnknown, match="another event there"):
            store.read(cursor)
    assert store.data(cursor=given[3]) == ["another four", "five"]


def test_a_glance_tells_a_restored_log_in_which_the_last_event_is_the_same(store, backup):
    fill(store, 1)
    restore = backup()
    store.publish(2, id="given")
    store.drain()
    before = store.log.glance()
    restore()
    store.publish(2, id="given")
    store.drain()
    after = store.log.glance()
    assert (before.head, before.head_id) == (after.head, after.head_id)
    assert before.cursor != after.cursor
