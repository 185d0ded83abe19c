"""The storage layer by itself, on each database: no Flask, no gevent, no HTTP.

A test's own work goes through `engine`, which is the user's; what is under test runs on `store`, which has connections
of its own. What `store` made is checked when the test ends: the log's promises hold after every test, whatever it was
about.

Most tests share one database for each kind of server, emptied after each test, since a database for every one would
take most of the time. A test that wants it bare, or does to it what an emptying does not undo, is marked
`own_database`.
"""

from __future__ import annotations

import shutil

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from legacy_poll.schema import upgrade
from legacy_poll.tables import apart, event, log, outbox, set_aside, setting
from tests.conftest import SERVERS
from tests.contract.store import Store


def pytest_configure(config):
    config.addinivalue_line("markers", "own_database: the test has a database of its own, without our tables")


class Shared:
    """Databases that have our tables, by the kind of their server; what is in them goes after each test."""

    def __init__(self, directory):
        self._directory = directory
        self._urls = {}

    def file(self):
        """An SQLite file to copy."""
        path = str(self._directory / "empty.db")
        if "sqlite" not in self._urls:
            self._urls["sqlite"] = "sqlite:///" + path
            engine = create_engine(self._urls["sqlite"], future=True)
            upgrade(engine)
            engine.dispose()
        return path

    def database(self, server):
        if server.name not in self._urls:
            url = server.create_database()
            engine = create_engine(url, future=True, poolclass=NullPool)
            upgrade(engine)
            self._urls[server.name] = url
        return self._urls[server.name]

    def empty(self, server):
        url = self._urls.pop(server.name)
        try:
            with create_engine(url, future=True, poolclass=NullPool).begin() as connection:
                if server.name == "PostgreSQL":
                    connection.execute(text("SET LOCAL lock_timeout = '2s'"))
                for table in (outbox, event, apart, set_aside, setting):
                    connection.execute(table.delete())
                connection.execute(log.update().values(head=0, oldest=1))
        except Exception:
            # A test that failed may have left anything there.
            server.drop_database(url)
        else:
            self._urls[server.name] = url


@pytest.fixture(scope="session")
def _shared(tmp_path_factory):
    return Shared(tmp_path_factory.mktemp("shared"))


@pytest.fixture(params=["sqlite", "postgresql", "mariadb", "mysql"])
def database_url(request, tmp_path, _shared):
    """The URL of a database that no other test uses meanwhile: with our tables, unless it is marked own_database."""
    own = request.node.get_closest_marker("own_database")
    if request.param == "sqlite":
        path = str(tmp_path / "test.db")
        if not own:
            shutil.copyfile(_shared.file(), path)
        yield "sqlite:///" + path
        return
    server = request.getfixturevalue(SERVERS[request.param])
    if own:
        url = server.create_database()
        yield url
        server.resume()
        server.start()
        server.drop_database(url)
    else:
        yield _shared.database(server)
        _shared.empty(server)


@pytest.fixture
def make_store(engine, tables):
    """Makes stores with settings, on the test's own engine unless another is named."""
    made = []

    def make(with_engine=None, **settings):
        made.append(Store(engine if with_engine is None else with_engine, **settings))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(make_store):
    """A store with the default settings; the log's promises are checked after the test."""
    store = make_store()
    yield store
    store.check()


@pytest.fixture
def tables(request, engine):
    """The tables, in the test's database."""
    if request.node.get_closest_marker("own_database"):
        upgrade(engine)


@pytest.fixture
def is_sqlite(engine):
    return engine.dialect.name == "sqlite"


@pytest.fixture
def second_engine(database_url):
    """An engine that shares nothing with `engine` but the database."""
    engine = create_engine(database_url, future=True)
    yield engine
    engine.dispose()


@pytest.fixture
def leave(is_sqlite):
    """Makes rows wait for the sequencer: on SQLite the trigger would take them, were it not for a row before them."""

    def leave(store, *data):
        if is_sqlite:
            store.insert({"channel": "no spaces", "data": "0"})
        store.insert(*[{"channel": "orders", "data": str(each)} for each in data])

    return leave


@pytest.fixture
def begin(engine):
    """Opens transactions of the user's, as many at once as a test likes."""
    opened = []

    def begin():
        opened.append(engine.connect())
        opened[-1].begin()
        return opened[-1]

    yield begin
    for connection in opened:
        connection.close()


@pytest.fixture
def set_global(database_server):
    """Sets a variable of the MariaDB or MySQL server for the connections made from then on, until the test ends."""
    before = {}

    def set_global(name, value):
        before.setdefault(name, database_server.execute("SELECT @@GLOBAL.{}".format(name)).strip())
        database_server.execute("SET GLOBAL {} = {!r}".format(name, value))

    yield set_global
    for name, value in before.items():
        database_server.execute("SET GLOBAL {} = {}".format(name, value if value.isdigit() else repr(value)))
