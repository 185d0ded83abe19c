"""What the documentation shows is run: the README's application, the SQL, the transcripts."""

from __future__ import annotations

import difflib
import importlib.util
import re
import sqlite3
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url

from legacy_poll.config import Settings
from legacy_poll.database import Database
from legacy_poll.eventlog import EventLog
from legacy_poll.schema import upgrade
from legacy_poll.sequencer import Sequencer

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TABLES = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")


def load(name, path):
    """The module in the file *path*, which need not be on sys.path."""
    spec = importlib.util.spec_from_file_location(name, str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# README.md


def example(name):
    """The code block of the README that is marked as the file *name*."""
    [code] = re.findall(r"<!-- example: %s -->\n```\w+\n(.*?)^```$" % re.escape(name), README, re.M | re.S)
    return code


@pytest.fixture
def shop(tmp_path):
    """The README's application, its page included, as a module."""
    (tmp_path / "templates").mkdir()
    for name in ("app.py", "templates/board.html"):
        (tmp_path / name).write_text(example(name), encoding="utf-8")
    module = load("readme_app", tmp_path / "app.py")
    yield module
    module.poll.runtime.stop()
    with module.app.app_context():
        module.db.engine.dispose()
    del sys.modules["readme_app"]


def test_readme_example_serves_what_was_committed_from_the_pages_cursor_on(shop):
    client = shop.app.test_client()
    page = client.get("/").get_data(as_text=True)
    [cursor] = re.findall(r'cursor: "(.*?)"', page)
    placed = client.post("/orders", data={"item": "Flat white"})
    assert placed.status_code == 201
    answer = client.get("/poll/stream", query_string={"channel": "orders", "cursor": cursor, "timeout": 0})
    assert answer.status_code == 200
    [event] = answer.get_json()["events"]
    assert event["type"] == "order.created"
    assert event["data"] == {"id": placed.get_json()["id"], "item": "Flat white"}


def test_readme_example_tells_nobody_of_what_was_rolled_back(shop):
    with shop.app.app_context():
        shop.db.session.add(shop.Order(item="Nothing"))
        shop.poll.publish(shop.db.session, "orders", {"id": 1})
        shop.db.session.rollback()
    answer = shop.app.test_client().get("/poll/stream?channel=orders&timeout=0&empty=200")
    assert answer.get_json()["events"] == []


def test_readme_example_refuses_other_channels(shop):
    answer = shop.app.test_client().get("/poll/stream?channel=orders&channel=staff&timeout=0")
    assert answer.status_code == 403


# tables.md


def sql_of(label):
    """The SQL blocks that are marked to be run on *label*, a database or a database and a purpose."""
    found = []
    for labels, indent, code in re.findall(
        r"<!-- run: ([\w, ]+) -->\n( *)```sql\n(.*?)^ *```$", TABLES, re.M | re.S
    ):
        if label in labels.split(", "):
            found.append(re.sub("^" + indent, "", code, flags=re.M))
    assert found, label
    return found


@pytest.fixture
def kind(request, database_url):
    """The kind of the database, by the label that SQL for it has on the page."""
    return request.node.callspec.params["database_url"].partition("+")[0].replace("mysql", "mariadb")


@pytest.fixture
def tables(engine):
    upgrade(engine)


def moved(engine):
    """Everything that the outbox has is moved; then (channel, type, data) of the log's events."""
    database = Database(engine, Settings())
    log = EventLog(database, Settings())
    sequencer = Sequencer(database, Settings())
    while log.glance().waiting:
        assert not sequencer.move(log.glance()).busy
    batch = log.read_after(None, channels=None, limit=1000, max_bytes=1 << 20)
    database.close()
    return [(event.channel, event.type, event.data) for event in batch.events]


@pytest.mark.usefixtures("tables")
def test_sql_of_the_tables_page_publishes(kind, engine, terminal):
    terminal("CREATE TABLE shop_order (id integer PRIMARY KEY, status varchar(20));")
    for code in sql_of(kind):
        terminal(code)
    terminal("INSERT INTO shop_order VALUES (7, 'new');")
    terminal("UPDATE shop_order SET status = 'ready' WHERE id = 7;")
    found = moved(engine)
    assert ("orders", "message", '{"id": 7}') in found
    assert ("orders", "order.ready", '{"id": 7, "table": null}') in found
    changes = [re.sub(" ", "", data) for _, type_, data in found if type_ == "order.changed"]
    assert '{"id":7,"status":"ready"}' in changes
    if kind == "mariadb":
        assert ("orders", "message", '{"note": "a \\"quoted\\" word"}') in found


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("database_url", ["mariadb", "mysql"], indirect=True)
def test_a_single_backslash_is_lost_on_mysqls_as_the_tables_page_warns(engine, terminal):
    terminal(sql_of("mariadb")[1].replace("\\\\", "\\"))
    assert moved(engine) == []
    assert "JSON" in terminal("SELECT reason FROM legacy_poll_set_aside")


@pytest.fixture
def roles(kind, database_url, database_server):
    """The URLs of a publisher and of a server with the grants of the tables page, and no others."""
    url = make_url(database_url)
    names = ("shop_writer", "poll_server")
    make = "CREATE USER {}@'%'" if kind == "mariadb" else "CREATE ROLE {} LOGIN"
    drop = "DROP USER IF EXISTS {}@'%'" if kind == "mariadb" else "DROP OWNED BY {0}; DROP ROLE {0}"
    [grants] = sql_of(kind + " grants")
    statements = [make.format(name) for name in names]
    statements.append(grants.replace("shop.legacy_poll", url.database + ".legacy_poll"))
    database_server.execute(";\n".join(statements), database_url)
    yield [url.set(username=name) for name in names]
    database_server.execute(";\n".join(drop.format(name) for name in names), database_url)


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("database_url", ["postgresql", "mariadb", "mysql"], indirect=True)
def test_grants_of_the_tables_page_are_enough_and_not_more(engine, roles):
    writer, server = [create_engine(url, future=True) for url in roles]
    statement = "INSERT INTO legacy_poll_outbox (channel, data) VALUES ('orders', '{}')"
    with writer.begin() as connection:
        for data in ('{"id": 7}', "not JSON", "8", "9"):
            connection.exec_driver_sql(statement.format(data))
    for table in ("outbox", "event", "set_aside", "log"):
        with pytest.raises(Exception, match="denied"), writer.begin() as connection:
            connection.exec_driver_sql("SELECT * FROM legacy_poll_" + table)
    writer.dispose()

    assert [data for _, _, data in moved(server)] == ['{"id": 7}', "8", "9"]
    database = Database(server, Settings(retention_events=1))
    log = EventLog(database, Settings(retention_events=1))
    assert log.trim(log.glance().now).deleted == 1  # the last event but one stays for the cursors behind it
    database.close()
    server.dispose()


def test_a_publisher_sqlite_has_what_the_trigger_needs():
    assert sqlite3.sqlite_version_info >= (3, 31)


# wire.md


def test_transcripts_are_what_the_server_says_today():
    transcripts = load("docs_transcripts", ROOT / "docs" / "transcripts" / "__main__.py")
    page = transcripts.PAGE.read_text(encoding="utf-8")
    today = transcripts.made_anew(page)
    changes = "".join(difflib.unified_diff(page.splitlines(True), today.splitlines(True), "wire.md", "today"))
    assert not changes, changes + "\nIf that is right: python docs/transcripts"
