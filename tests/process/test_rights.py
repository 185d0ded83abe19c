"""A server whose user may not use one of the tables says what to grant, and works once it is granted."""

from __future__ import annotations

import pytest
from sqlalchemy import make_url

from tests.process.conftest import upgrade
from tests.process.polls import get
from tests.waiting import until

TABLES = ["outbox", "event", "log", "set_aside", "version", "apart", "setting"]
ADVICE = "(grant SELECT, INSERT, UPDATE, DELETE on the legacy_poll_ tables to this user)"

pytestmark = pytest.mark.parametrize("database_url", ["postgresql", "mariadb", "mysql"], indirect=True)


class LimitedUser:
    """Who has every right on our tables, but on those that are taken from him."""

    def __init__(self, url, server):
        parsed = make_url(url)
        self.url = parsed.set(username="limited").render_as_string(hide_password=False)
        self._all_url = url
        self._server = server
        self._postgres = parsed.get_backend_name() == "postgresql"
        self._where = "legacy_poll_{}" if self._postgres else parsed.database + ".legacy_poll_{}"
        self._name = "limited" if self._postgres else "limited@'%'"
        self._run("CREATE ROLE limited LOGIN" if self._postgres else "CREATE USER " + self._name)
        if self._postgres:
            self._run("GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO limited")
        for table in TABLES:
            self.give(table)

    def give(self, table):
        rights = "GRANT SELECT, INSERT, UPDATE, DELETE ON {} TO {}"
        self._run(rights.format(self._where.format(table), self._name))

    def take(self, table):
        rights = "REVOKE SELECT, INSERT, UPDATE, DELETE ON {} FROM {}"
        self._run(rights.format(self._where.format(table), self._name))

    def drop(self):
        self._run("DROP OWNED BY limited; DROP ROLE limited" if self._postgres else "DROP USER " + self._name)

    def _run(self, sql):
        self._server.execute(sql, self._all_url)


@pytest.fixture
def limited(database_url, database_server):
    upgrade(database_url)
    user = LimitedUser(database_url, database_server)
    yield user
    user.drop()


def test_a_server_names_the_table_and_is_ready_once_the_right_is_given(limited, start_gunicorn):
    limited.take("log")
    gunicorn = start_gunicorn({"DATABASE_URL": limited.url}, workers=1, ready="/health/live").start()
    for path in ("/stream?channel=orders&timeout=0", "/cursor", "/health/ready"):
        assert get(gunicorn, path).status == 503
    until(lambda: ADVICE in gunicorn.log, what="the log tells")
    assert "Traceback" not in gunicorn.log
    limited.give("log")
    until(lambda: get(gunicorn, "/health/ready").status == 200, 30, "the server is ready")
    assert get(gunicorn, "/stream?channel=orders&timeout=0").status == 204
