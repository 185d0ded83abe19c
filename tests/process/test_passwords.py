"""MySQL's way to check a password, and a driver that lacks a package for it.

Since 8.0 the default is caching_sha2_password. Without TLS the driver encrypts the password with the server's public
key, unless the server remembers it from before; so it takes a package, or not, by what the server was asked meanwhile.
PyMySQL speaks TLS by itself since 1.2, where the server does; here it may not.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from sqlalchemy import make_url

from tests.gunicorn import ROOT
from tests.process.commands import legacy_poll
from tests.process.conftest import upgrade
from tests.process.polls import get, publish

pytestmark = pytest.mark.parametrize("database_url", ["mysql"], indirect=True)


@pytest.fixture
def forget(database_server):
    """Has the server forget the passwords that it has seen, as it does when it is started anew."""

    def forget():
        database_server.execute("FLUSH PRIVILEGES")

    forget()
    return forget


@pytest.fixture
def url(database_url, database_server):
    """As a user with a password."""
    database_server.execute(
        "CREATE USER 'shop'@'127.0.0.1' IDENTIFIED WITH caching_sha2_password BY 'secret';"
        "GRANT ALL ON *.* TO 'shop'@'127.0.0.1'"
    )
    own = make_url(database_url).set(username="shop", password="secret")
    yield own.update_query_dict({"ssl_disabled": "true"}).render_as_string(hide_password=False)
    database_server.execute("DROP USER 'shop'@'127.0.0.1'")


@pytest.fixture
def bare_environ(tmp_path):
    """An environment in which nobody has installed the package."""
    package = tmp_path / "packages" / "cryptography"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('no module named cryptography')\n")
    return {"PYTHONPATH": os.pathsep.join([str(package.parent), str(ROOT)])}


def test_a_password_that_the_server_has_not_seen_yet_is_taken(url, forget, start_gunicorn):
    for command in ("upgrade", "status"):
        forget()
        done = legacy_poll(command, DATABASE_URL=url)
        assert (done.returncode, done.stderr) == (0, ""), done
    forget()
    gunicorn = start_gunicorn({"DATABASE_URL": url}).start()
    assert publish(gunicorn, [{"data": 1}]).status == 201
    assert get(gunicorn, "/stream?timeout=5000").data == [1]


def test_without_the_package_each_command_says_so_in_one_line(url, forget, bare_environ):
    for command in (["upgrade"], ["status"], ["trim"], ["repair"], ["publish", "orders", "1"]):
        forget()
        done = subprocess.run(
            [sys.executable, "-m", "legacy_poll", *command],
            env={**os.environ, **bare_environ, "LEGACY_POLL_DATABASE_URL": url},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1, done
        assert len(done.stderr.splitlines()) == 1
        assert "cryptography" in done.stderr
        assert "pip install 'PyMySQL[rsa]'" in done.stderr


def test_without_the_package_a_server_answers_503_and_says_so_in_its_log(
    url, forget, start_gunicorn, bare_environ, database_url
):
    upgrade(database_url)
    forget()
    gunicorn = start_gunicorn({"DATABASE_URL": url}, environ=bare_environ, ready="/health/live").start()
    for answer in (
        get(gunicorn, "/stream?timeout=0"),
        publish(gunicorn, [{"data": 1}]),
        get(gunicorn, "/cursor"),
        get(gunicorn, "/health/ready"),
    ):
        assert answer.status == 503, answer
    assert "Traceback" not in gunicorn.log
    assert "pip install 'PyMySQL[rsa]'" in gunicorn.log
