"""What every suite shares: the database servers, and a fresh database for each test that asks.

A server is started by the first test that needs it and lives until its pytest process ends; each worker of
pytest-xdist has its own. A test that stops, kills or pauses one need not put it right: the next finds it running.

A test that takes `database_url` (or `engine`) runs once for each database. One that is about some of them says
`@pytest.mark.parametrize("database_url", ["postgresql", "mariadb"], indirect=True)`; a SQLAlchemy driver's name does
as well ("postgresql+psycopg2"). Sub-folders add a conftest.py of their own.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import create_engine

from tests.servers import MariaDBServer, MySQLServer, NewerPostgresServer, PostgresServer

# What takes long comes first, so that no process of pytest-xdist is left with it in the end. The history runs are one
# file, since each of them takes the machine for itself.
ORDER = ["process/test_history.py", "process", "browser", "contract", "http", "unit"]


def pytest_configure(config):
    # Else pytest-xdist begins with the files that have the most tests, which are the quick ones.
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent

    def place(item):
        path = item.path.relative_to(here).as_posix()
        return next((number for number, each in enumerate(ORDER) if path.startswith(each)), len(ORDER))

    items.sort(key=place)


@pytest.fixture(scope="session")
def _postgres():
    server = PostgresServer()
    yield server
    server.destroy()


@pytest.fixture(scope="session")
def _mariadb():
    server = MariaDBServer()
    yield server
    server.destroy()


@pytest.fixture(scope="session")
def _mysql():
    server = MySQLServer()
    yield server
    server.destroy()


@pytest.fixture(scope="session")
def _newer_postgres():
    server = NewerPostgresServer()
    yield server
    server.destroy()


@pytest.fixture
def newer_postgres(_newer_postgres):
    """A running NewerPostgresServer, whatever the test before did to it."""
    return _in_order(_newer_postgres)


@pytest.fixture
def postgres(_postgres):
    """A running PostgresServer, whatever the test before did to it."""
    return _in_order(_postgres)


@pytest.fixture
def mariadb(_mariadb):
    """A running MariaDBServer, whatever the test before did to it."""
    return _in_order(_mariadb)


@pytest.fixture
def mysql(_mysql):
    """A running MySQLServer, whatever the test before did to it."""
    return _in_order(_mysql)


def _in_order(server):
    server.resume()
    server.start()
    return server


# The kind of a server -> the fixture that starts one.
SERVERS = {
    "postgresql": "postgres",
    "postgresql18": "newer_postgres",
    "mariadb": "mariadb",
    "mysql": "mysql",
}


@pytest.fixture(params=["sqlite", "postgresql", "mariadb", "mysql"])
def database_url(request, tmp_path):
    """The URL of an empty database that no other test sees; gone after the test."""
    kind, _, driver = request.param.partition("+")
    if kind == "sqlite":
        yield "sqlite:///{}".format(tmp_path / "test.db")
        return
    server = request.getfixturevalue(SERVERS[kind])
    url = server.create_database(driver=request.param if driver else None)
    yield url
    _in_order(server).drop_database(url)


@pytest.fixture
def database_server(request, database_url):
    """The server behind `database_url`, to stop, kill or pause it; None for SQLite, which has none."""
    if database_url.startswith("sqlite"):
        return None
    kind = request.node.callspec.params["database_url"].partition("+")[0]
    return request.getfixturevalue(SERVERS[kind])


@pytest.fixture
def engine(database_url):
    """A plain SQLAlchemy engine on `database_url`, future style on 1.4 too; disposed of after the test."""
    engine = create_engine(database_url, future=True)
    yield engine
    engine.dispose()
