"""A commit in this process, for whatever publish() takes. SQLAlchemy's own events, so its own engine, in memory."""

from __future__ import annotations

import pytest
import sqlalchemy
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import StaticPool

from legacy_poll.wakeups import LocalWakeup

# What SQLAlchemy 1.4 does for an outer transaction by itself has a name since 2.0.
JOINS = {} if sqlalchemy.__version__ < "2" else {"join_transaction_mode": "create_savepoint"}


class Woken:
    def __init__(self):
        self.times = 0
        self.hints = LocalWakeup(self.wake)

    def wake(self):
        self.times += 1


@pytest.fixture
def engine():
    engine = create_engine("sqlite://", poolclass=StaticPool, future=True)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE thing (id INTEGER)"))
    yield engine
    engine.dispose()


@pytest.fixture
def woken(engine):
    woken = Woken()
    woken.hints.watch(engine)
    return woken


def insert(where):
    where.execute(text("INSERT INTO thing VALUES (1)"))


def publish(woken, where):
    insert(where)
    woken.hints.published(where)


def test_a_connections_commit_wakes(woken, engine):
    with engine.connect() as connection, connection.begin():
        publish(woken, connection)
        assert woken.times == 0
    assert woken.times == 1


def test_a_sessions_commit_wakes(woken, engine):
    with Session(engine) as session:
        publish(woken, session)
        assert woken.times == 0
        session.commit()
        assert woken.times == 1


def test_a_scoped_sessions_commit_wakes(woken, engine):
    session = scoped_session(sessionmaker(engine, future=True))
    publish(woken, session)
    session.commit()
    assert woken.times == 1
    session.remove()


def test_a_session_that_has_its_engine_for_some_tables_only_wakes(woken, engine):
    """It finds its connection by what is executed: so do we."""

    class Routed(Session):
        def get_bind(self, mapper=None, clause=None, **options):
            if clause is None:
                raise RuntimeError("which database?")
            return engine

    with Routed() as session:
        publish(woken, session)
        session.commit()
        assert woken.times == 1


def test_many_events_in_one_transaction_wake_once(woken, engine):
    with engine.begin() as connection:
        for _ in range(5):
            publish(woken, connection)
    assert woken.times == 1


def test_a_rollback_does_not_wake(woken, engine):
    with Session(engine) as session:
        publish(woken, session)
        session.rollback()
    assert woken.times == 0


def test_a_transaction_that_published_nothing_does_not_wake(woken, engine):
    with engine.begin() as connection:
        insert(connection)
    assert woken.times == 0


def test_after_it_woke_the_next_transaction_of_the_same_connection_does_not(woken, engine):
    with engine.connect() as connection:
        with connection.begin():
            publish(woken, connection)
        with connection.begin():
            insert(connection)
    assert woken.times == 1


def test_a_savepoints_release_does_not_wake_before_the_commit(woken, engine):
    with Session(engine) as session:
        with session.begin_nested():
            publish(woken, session)
        assert woken.times == 0
        session.commit()
    assert woken.times == 1


def test_a_session_inside_an_outer_transaction_wakes_at_the_outer_commit(woken, engine):
    with engine.connect() as connection:
        with connection.begin():
            session = Session(bind=connection, **JOINS)
            publish(woken, session)
            session.commit()
            session.close()
            assert woken.times == 0
        assert woken.times == 1


@pytest.mark.parametrize("where", ["the engine", "an engine with the option", "a connection with the option"])
def test_where_each_statement_commits_by_itself_it_wakes_without_a_commit(tmp_path, where):
    woken = Woken()
    of_all = {"isolation_level": "AUTOCOMMIT"} if where == "the engine" else {}
    engine = create_engine("sqlite:///{}".format(tmp_path / "log.db"), future=True, **of_all)
    of_some = {"isolation_level": "AUTOCOMMIT"}
    some = engine.execution_options(**of_some) if where == "an engine with the option" else engine
    with some.connect() as connection:
        if where == "a connection with the option":
            connection = connection.execution_options(**of_some)
        connection.execute(text("CREATE TABLE thing (id INTEGER)"))
        publish(woken, connection)
        assert woken.times == 1
    engine.dispose()


def test_watched_twice_it_wakes_once(woken, engine):
    woken.hints.watch(engine)
    with engine.begin() as connection:
        publish(woken, connection)
    assert woken.times == 1


def test_a_connection_opened_before_its_engine_was_watched_wakes(engine):
    woken = Woken()
    with engine.connect() as connection:
        transaction = connection.begin()
        publish(woken, connection)
        assert woken.times == 0
        transaction.commit()
    assert woken.times == 1


def test_an_engine_with_other_options_wakes_as_the_one_it_was_made_of(woken, engine):
    with engine.execution_options(logging_token="x").begin() as connection:
        publish(woken, connection)
    assert woken.times == 1


def test_an_engine_that_is_gone_is_not_kept(woken):
    import gc

    other = create_engine("sqlite://", poolclass=StaticPool, future=True)
    woken.hints.watch(other)
    assert len(woken.hints._engines) == 2
    other.dispose()
    del other
    gc.collect()
    assert len(woken.hints._engines) == 1
