"""A server whose user may not use one of the tables says what to grant, and works once it is granted."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import make_url

from tests.process.conftest import upgrade
from tests.process.polls import get, stream
from tests.waiting import until

TABLES = ["outbox", "event", "log", "set_aside", "version", "apart", "setting"]
ADVICE = "(grant SELECT, INSERT, UPDATE, DELETE on the legacy_poll_ tables to this user)"


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


@pytest.mark.parametrize("database_url", ["postgresql", "mariadb", "mysql"], indirect=True)
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


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("table", ["outbox", "log", "version"])
def test_a_server_whose_user_sees_no_row_is_not_ready_and_says_why(limited, terminal, start_gunicorn, table):
    security = "ALTER TABLE legacy_poll_{} {} ROW LEVEL SECURITY"
    terminal(security.format(table, "ENABLE"))
    gunicorn = start_gunicorn({"DATABASE_URL": limited.url}, workers=1, ready="/health/live").start()
    line = "row level security hides every row of legacy_poll_{} from this user".format(table)
    until(lambda: line in gunicorn.log, what="the log tells")
    assert get(gunicorn, "/health/ready").status == 503
    assert "legacy-poll upgrade" not in gunicorn.log
    # As the line says.
    terminal(re.search("run: (ALTER TABLE .* SECURITY),", gunicorn.log).group(1))
    until(lambda: get(gunicorn, "/health/ready").status == 200, 30, "the server is ready")


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_policy_that_may_hide_rows_is_a_warning(limited, terminal, start_gunicorn):
    terminal("ALTER TABLE legacy_poll_outbox ENABLE ROW LEVEL SECURITY")
    terminal("CREATE POLICY everything ON legacy_poll_outbox USING (true)")
    gunicorn = start_gunicorn({"DATABASE_URL": limited.url}, workers=1).start()
    assert "row level security may hide rows of legacy_poll_outbox from this user" in gunicorn.log
    terminal.publish("1")
    until(lambda: get(gunicorn, stream(timeout=0)).data == [1], what="the event is there")
