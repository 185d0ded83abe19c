"""A commit in the application's own process, in every way that SQLAlchemy has: the hint may come early, the event may
not come late.

The interval is a minute here: only a hint can bring an event within a test's bound. The pauses between a hint and its
commit are the publisher's own looks, which find nothing yet.
"""

from __future__ import annotations

import pytest
import sqlalchemy
from sqlalchemy import create_engine, event, text
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from tests.waiting import until

ORDERS = {"channel": "orders"}
JOINS = {} if sqlalchemy.__version__ < "2" else {"join_transaction_mode": "create_savepoint"}


def begin_as_sqlalchemy_says(engine):
    """By itself Python's driver begins at the first INSERT, and a savepoint before that commits at its release."""

    @event.listens_for(engine, "connect")
    def connected(connection, record):
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begun(connection):
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql("BEGIN")


def core(site, engine, look):
    with engine.connect() as connection, connection.begin():
        site.poll.publish(connection, "orders", 1)
        look()


def commit_as_you_go(site, engine, look):
    other = create_engine(engine.url, future=True)
    with other.connect() as connection:
        site.poll.publish(connection, "orders", 1)
        look()
        connection.commit()
    other.dispose()


def autocommit(site, engine, look):
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        site.poll.publish(connection, "orders", 1)


def session(site, engine, look):
    with Session(engine) as session:
        site.poll.publish(session, "orders", 1)
        look()
        session.commit()


def scoped(site, engine, look):
    registry = scoped_session(sessionmaker(bind=engine))
    site.poll.publish(registry, "orders", 1)
    look()
    registry.commit()
    registry.remove()


def savepoint(site, engine, look):
    with Session(engine) as session:
        with session.begin_nested():
            site.poll.publish(session, "orders", 1)
        look()
        session.commit()


def savepoint_of_core(site, engine, look):
    with engine.begin() as connection:
        with connection.begin_nested():
            site.poll.publish(connection, "orders", 1)
        look()


def outer_connection(site, engine, look):
    with engine.connect() as connection, connection.begin():
        session = Session(bind=connection, **JOINS)
        site.poll.publish(session, "orders", 1)
        session.commit()
        session.close()
        look()


def engine_of_another(site, engine, look):
    """A connection of an engine that this LegacyPoll has never seen."""
    other = create_engine(engine.url, future=True)
    core(site, other, look)
    other.dispose()


@pytest.mark.parametrize(
    "publish",
    [
        core,
        commit_as_you_go,
        autocommit,
        session,
        scoped,
        savepoint,
        savepoint_of_core,
        outer_connection,
        engine_of_another,
    ],
)
def test_however_it_commits_the_event_comes_at_once(make_site, publish):
    site = make_site(poll_interval_seconds=60)
    begin_as_sqlalchemy_says(site.engine)
    site.settle()
    poll = site.hold(ORDERS)
    publisher = site.runtime.publisher

    def look():
        """As after a hint that came too early: the publisher has looked, and found nothing."""
        publisher.wake()
        until(lambda: not publisher._looks and not publisher._woken.is_set())
        assert not poll.over

    publish(site, site.engine, look)
    assert poll.reply().data == [1]


def test_a_commit_that_takes_longer_than_the_looks_is_found_by_the_interval(make_site):
    site = make_site(poll_interval_seconds=0.05)
    site.settle()
    poll = site.hold(ORDERS)
    site.poll._wakeup._wake = lambda: None  # the hint is lost
    with site.engine.begin() as connection:
        connection.execute(text("SELECT 1"))
        site.poll.publish(connection, "orders", 1)
    assert poll.reply().data == [1]
