"""An event exists if and only if the transaction that published it commits, whatever published it."""

from __future__ import annotations

import json
import re
import subprocess

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Column, Integer, MetaData, String, Table, select, text
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from legacy_poll.errors import EventTooLarge, InvalidEvent
from legacy_poll.eventlog import append
from tests.contract.store import run
from tests.servers import find_program

UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")

shop_order = Table(
    "shop_order",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("note", String(100)),
)


@pytest.fixture
def shop(store):
    """The store, beside an ordinary table of the user's."""
    shop_order.create(store.engine)
    yield store
    shop_order.drop(store.engine)


def notes(store):
    with store.engine.connect() as connection:
        return [row[0] for row in connection.execute(select(shop_order.c.note).order_by(shop_order.c.id))]


@pytest.fixture(params=["session", "scoped_session", "flask_sqlalchemy", "connection"])
def where(request, shop, engine):
    """All four kinds of thing that an application may publish with; each also commits, rolls back, begins_nested."""
    if request.param == "connection":
        with engine.connect() as connection:
            yield connection
    elif request.param == "session":
        with Session(engine, future=True) as session:
            yield session
    elif request.param == "scoped_session":
        session = scoped_session(sessionmaker(engine, future=True))
        yield session
        session.remove()
    else:
        app = Flask(__name__)
        app.config["SQLALCHEMY_DATABASE_URI"] = engine.url.render_as_string(hide_password=False)
        app.config["SQLALCHEMY_TRACK_MODIFICATIONS"] = False
        db = SQLAlchemy(app)
        with app.app_context():
            yield db.session
            db.session.remove()
            db.engine.dispose()


def add(where, number):
    """A business row and its event, as an application would write them."""
    where.execute(shop_order.insert(), {"id": number, "note": "note %d" % number})
    return append(where, "orders", number)


def test_a_commit_brings_the_row_and_its_event(where, shop):
    add(where, 1)
    where.commit()
    shop.drain()
    assert (notes(shop), shop.data()) == (["note 1"], [1])


def test_nothing_is_seen_before_the_commit(where, shop):
    add(where, 1)
    assert not shop.log.glance().waiting
    assert shop.data() == []
    where.commit()
    shop.drain()
    assert shop.data() == [1]


def test_a_rollback_takes_the_row_and_its_event(where, shop):
    add(where, 1)
    where.rollback()
    add(where, 2)
    where.commit()
    shop.drain()
    assert (notes(shop), shop.data()) == (["note 2"], [2])
    assert shop.positions() == [1]


def test_a_savepoint_rolled_back_takes_only_its_own_events(where, shop):
    add(where, 1)
    savepoint = where.begin_nested()
    add(where, 2)
    savepoint.rollback()
    add(where, 3)
    where.commit()
    shop.drain()
    assert (notes(shop), shop.data()) == (["note 1", "note 3"], [1, 3])


def test_a_savepoint_released_keeps_its_events_in_their_place(where, shop):
    add(where, 1)
    savepoint = where.begin_nested()
    add(where, 2)
    savepoint.commit()
    add(where, 3)
    where.commit()
    shop.drain()
    assert (notes(shop), shop.data()) == (["note 1", "note 2", "note 3"], [1, 2, 3])


def test_a_savepoint_released_in_a_transaction_that_is_rolled_back_leaves_nothing(where, shop):
    add(where, 1)
    savepoint = where.begin_nested()
    add(where, 2)
    savepoint.commit()
    where.rollback()
    shop.drain()
    assert (notes(shop), shop.data(), shop.positions()) == ([], [], [])


def test_a_business_row_that_fails_takes_the_event_with_it(shop):
    run(shop.engine, "INSERT INTO shop_order (id, note) VALUES (1, 'there already')")
    with pytest.raises(Exception, match="(?i)duplicate|unique"), shop.engine.begin() as connection:
        append(connection, "orders", 1)
        connection.execute(shop_order.insert(), {"id": 1, "note": "again"})
    shop.drain()
    assert (notes(shop), shop.data()) == (["there already"], [])


def test_a_refused_event_leaves_the_transaction_as_it_was(shop):
    with shop.engine.begin() as connection:
        append(connection, "orders", 1)
        with pytest.raises(InvalidEvent, match="channel is 'no spaces'"):
            append(connection, "no spaces", 2)
        with pytest.raises(InvalidEvent, match="JSON value"):
            append(connection, "orders", float("nan"))
        with pytest.raises(EventTooLarge, match="12 bytes.*at most 10"):
            append(connection, "orders", "x" * 10, max_event_bytes=10)
        append(connection, "orders", 3)
    shop.drain()
    assert shop.data() == [1, 3]
    assert shop.set_aside() == []


def test_an_event_arrives_as_it_was_published(shop):
    with shop.engine.begin() as connection:
        given = append(connection, "orders", {"id": 7, "note": "снег ❄"}, type="order.created", id="order:7")
        made = append(connection, "user:7", None)
    shop.drain()
    first, second = shop.events()
    assert (given, first.id, first.channel, first.type) == ("order:7", "order:7", "orders", "order.created")
    assert first.data == '{"id":7,"note":"\\u0441\\u043d\\u0435\\u0433 \\u2744"}'
    assert (second.id, second.channel, second.type, second.data) == (made, "user:7", "message", "null")
    assert UUID4.fullmatch(made)
    assert TIME.fullmatch(first.time)
    assert first.time <= shop.log.glance().now


def client_of(store, server):
    """The argv of the database's own command-line client."""
    if server is None:
        return [find_program("sqlite3"), "-bail", str(store.engine.url.database)]
    return server.client(store.engine.url.database)


def type_in(store, server, sql):
    done = subprocess.run(
        client_of(store, server),
        input=sql.encode("utf-8"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
    )
    assert (done.returncode, done.stdout.decode()) == (0, "")


def test_an_insert_by_the_databases_own_client_publishes(shop, database_server):
    type_in(
        shop,
        database_server,
        "INSERT INTO legacy_poll_outbox (channel, data) VALUES ('orders', '{\"id\": 7}');",
    )
    shop.drain()
    (event,) = shop.events()
    assert (event.channel, event.type, event.data) == ("orders", "message", '{"id": 7}')
    assert UUID4.fullmatch(event.id)
    assert TIME.fullmatch(event.time)


def test_transactions_of_the_databases_own_client_count_too(shop, database_server):
    insert = "INSERT INTO legacy_poll_outbox (channel, data) VALUES ('orders', '%s');\n"
    script = [
        "BEGIN;\n",
        insert % 1,
        insert % '"снег"',
        "COMMIT;\n",
        "BEGIN;\n",
        insert % 3,
        "ROLLBACK;\n",
        insert % 4,
    ]
    type_in(shop, database_server, "".join(script))
    shop.drain()
    assert [event.data for event in shop.events()] == ["1", '"снег"', "4"]


def test_every_column_of_the_outbox_may_be_given(shop):
    sql = "INSERT INTO legacy_poll_outbox (id, event_id, channel, type, data, created_at) VALUES (%s)"
    run(shop.engine, sql % "70, 'a', 'orders', 'order.created', '1', NULL")
    run(shop.engine, sql % "80, NULL, 'orders', NULL, '2', NULL")
    shop.drain()
    first, second = shop.events()
    assert (first.id, first.type, first.data) == ("a", "order.created", "1")
    assert (second.type, second.data) == ("message", "2")
    assert UUID4.fullmatch(second.id)
    assert shop.positions() == [1, 2]


def test_one_statement_may_publish_many_rows(shop):
    run(
        shop.engine,
        "INSERT INTO legacy_poll_outbox (channel, data) VALUES ('orders', '1'), ('users', '2'), ('orders', '3')",
    )
    shop.drain()
    assert shop.data() == [1, 2, 3]
    assert shop.data(channels=["orders"]) == [1, 3]


TRIGGERS = {
    "sqlite": """
        CREATE TRIGGER tell AFTER INSERT ON shop_order BEGIN
            INSERT INTO legacy_poll_outbox (channel, data) VALUES ('orders', json_object('id', NEW.id));
        END""",
    "mysql": """
        CREATE TRIGGER tell AFTER INSERT ON shop_order FOR EACH ROW
            INSERT INTO legacy_poll_outbox (channel, data) VALUES ('orders', JSON_OBJECT('id', NEW.id))""",
    "postgresql": """
        CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $body$ BEGIN
            INSERT INTO legacy_poll_outbox (channel, data) VALUES ('orders', json_build_object('id', NEW.id));
            RETURN NULL;
        END $body$;
        CREATE TRIGGER tell AFTER INSERT ON shop_order FOR EACH ROW EXECUTE PROCEDURE tell()""",
}


@pytest.mark.own_database
def test_a_trigger_of_the_users_may_publish(shop):
    with shop.engine.begin() as connection:
        connection.exec_driver_sql(TRIGGERS[shop.engine.dialect.name])
    with shop.engine.begin() as connection:
        connection.execute(shop_order.insert(), [{"id": 7, "note": "a"}, {"id": 8, "note": "b"}])
    with shop.engine.connect() as connection:
        connection.execute(shop_order.insert(), {"id": 9, "note": "c"})
        connection.rollback()
    shop.drain()
    assert shop.data() == [{"id": 7}, {"id": 8}]


def test_text_is_whole_whatever_character_set_the_users_connection_has(shop, make_store, database_url):
    run(
        shop.engine,
        "INSERT INTO legacy_poll_outbox (channel, data) VALUES ('orders', :data)",
        data='"снег ❄"',
    )
    encodings = {"mysql": {"charset": "latin1"}, "postgresql": {"client_encoding": "latin1"}}
    from sqlalchemy import create_engine

    latin = create_engine(shop.engine.url.set(query=encodings.get(shop.engine.dialect.name, {})), future=True)
    other = make_store(latin)
    other.drain()
    with latin.begin() as connection:
        append(connection, "orders", "снег ❄")
    other.drain()
    assert other.data() == shop.data() == ["снег ❄", "снег ❄"]
    latin.dispose()


def test_ids_returned_are_the_ids_delivered(shop):
    ids = shop.publish(1, 2, 3)
    shop.drain()
    assert [event.id for event in shop.events()] == ids
    assert json.dumps(ids) == json.dumps(sorted(set(ids), key=ids.index))


def test_a_row_inserted_while_the_tables_were_young_has_its_time(shop, is_sqlite):
    shop.insert({"channel": "no spaces", "data": "1"})
    shop.drain()
    with shop.engine.connect() as connection:
        row = connection.execute(text("SELECT created_at, set_aside_at FROM legacy_poll_set_aside")).first()
    assert None not in tuple(row)
