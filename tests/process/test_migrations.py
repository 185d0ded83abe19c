"""Beside an application's own migrations, by Flask-Migrate and by alembic, in one database: neither meets the other.

The application is a folder of the test's own. Its commands run one after the other in one process, started for the
test, since alembic keeps what runs in globals; each `flask` command gets an application made anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from sqlalchemy import inspect, text

from legacy_poll.schema import REVISION, VERSION_TABLE
from tests.gunicorn import ROOT

OURS = {
    "legacy_poll_" + name for name in ("outbox", "event", "apart", "log", "set_aside", "setting", "version")
}

SHOP = """
import os

from flask import Flask
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy

from legacy_poll import LegacyPoll
from legacy_poll.schema import include_name

db = SQLAlchemy()
migrate = Migrate()
poll = LegacyPoll(db=db, public=True)


class Order(db.Model):
    __tablename__ = "shop_order"
    id = db.Column(db.Integer, primary_key=True)
    item = db.Column(db.String(80), nullable=False, index=True)


def create_app():
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["SHOP_DATABASE_URL"]
    app.config["SQLALCHEMY_TRACK_MODIFICATIONS"] = False
    db.init_app(app)
    if os.environ.get("NAIVE"):
        migrate.init_app(app, db)
    else:
        migrate.init_app(app, db, include_name=include_name)
    poll.init_app(app)
    if os.environ.get("UPGRADES_AT_START"):
        with app.app_context():
            poll.upgrade()
    return app
"""

# Flask-Migrate's own env.py stays as `flask db init` made it; this one is as docs/operations.md says.
ENV = """
from alembic import context
from legacy_poll.schema import include_name
from shop import create_app, db

app = create_app()
with app.app_context(), db.engine.connect() as connection:
    context.configure(connection=connection, target_metadata=db.metadata, include_name=include_name)
    with context.begin_transaction():
        context.run_migrations()
"""

DRIVER = """
import json, os, sys
from flask.cli import FlaskGroup
from alembic.config import main

def flask(arguments):
    from shop import create_app
    app = create_app()
    done = app.test_cli_runner().invoke(cli=FlaskGroup(create_app=lambda: app), args=arguments)
    assert done.exit_code == 0, (arguments, done.output, done.exception)

for kind, arguments, environ in json.loads(sys.argv[1]):
    print("+", kind, *arguments, file=sys.stderr)
    os.environ.update(environ)
    if kind == "flask":
        flask(arguments)
    else:
        main(arguments)
    for name in environ:
        del os.environ[name]
"""


class Shop:
    """An application with migrations of its own, in *folder*, on the database of *engine*."""

    def __init__(self, folder, engine):
        self.folder = folder
        self.engine = engine
        (folder / "shop.py").write_text(SHOP)
        (folder / "driver.py").write_text(DRIVER)

    def run(self, *commands):
        """Runs each, "flask db migrate" or ("alembic check", {environment}), in this order; a failure is the test's."""
        told = []
        for command in commands:
            line, environ = command if isinstance(command, tuple) else (command, {})
            kind, *arguments = line.split()
            told.append((kind, arguments, environ))
        environ = {name: value for name, value in os.environ.items() if not name.startswith("LEGACY_POLL_")}
        environ.update(
            SHOP_DATABASE_URL=self.engine.url.render_as_string(hide_password=False),
            PYTHONPATH=os.pathsep.join([str(self.folder), str(ROOT)]),
        )
        done = subprocess.run(
            [sys.executable, "driver.py", json.dumps(told)],
            cwd=str(self.folder),
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def migrations(self):
        """Their texts, oldest first."""
        found = sorted(self.folder.glob("migrations/versions/*.py"), key=lambda path: path.stat().st_mtime_ns)
        return [path.read_text() for path in found]

    def tables(self):
        return set(inspect(self.engine).get_table_names()) - {"sqlite_sequence"}

    def version(self, table):
        with self.engine.connect() as connection:
            return connection.execute(text("SELECT version_num FROM {}".format(table))).scalars().all()


@pytest.fixture
def shop(tmp_path, engine):
    return Shop(tmp_path, engine)


def is_whole(shop):
    """Our tables are as we made them, and theirs as they did; each version table has its own version."""
    assert shop.tables() == OURS | {"shop_order", "alembic_version"}
    assert shop.version(VERSION_TABLE) == [REVISION]
    [theirs] = shop.version("alembic_version")
    assert len(theirs) == 12 and theirs != REVISION


def test_flask_migrate_looks_past_our_tables_and_without_the_hook_would_drop_them(shop):
    shop.run("flask legacy-poll upgrade", "flask db init", "flask db migrate", "flask db upgrade")
    is_whole(shop)
    [first] = shop.migrations()
    assert "create_table('shop_order'" in first and "legacy_poll" not in first
    # Nothing more to do, for either; and the other order of the two commands changes nothing.
    shop.run("flask db migrate", "flask legacy-poll upgrade", "flask db upgrade")
    assert shop.migrations() == [first]
    is_whole(shop)
    # What docs/operations.md warns of is so.
    shop.run(("flask db migrate", {"NAIVE": "1"}))
    first, naive = shop.migrations()
    for name in OURS:
        assert "op.drop_table('{}')".format(name) in naive
    assert "shop_order" not in naive


def test_alembic_by_itself_looks_past_our_tables_and_takes_back_its_own_alone(shop):
    # The application upgrades our tables as it starts, so in the middle of alembic's run: env.py imports it.
    at_start = {"UPGRADES_AT_START": "1"}
    shop.run("alembic init migrations")
    (shop.folder / "migrations" / "env.py").write_text(ENV)
    shop.run(
        ("alembic revision --autogenerate -m orders", at_start),
        "alembic upgrade head",
        "alembic revision --autogenerate -m nothing",
    )
    is_whole(shop)
    first, nothing = shop.migrations()
    assert " op." not in nothing  # as `alembic check` finds, which came with 1.9
    assert "create_table('shop_order'" in first and "legacy_poll" not in first
    shop.run("alembic downgrade base", "flask legacy-poll upgrade")
    assert shop.tables() == OURS | {"alembic_version"}
    assert (shop.version(VERSION_TABLE), shop.version("alembic_version")) == ([REVISION], [])


def test_their_tables_first_and_a_migration_of_theirs_that_makes_ours(shop):
    shop.run("flask db init", "flask db migrate", "flask db upgrade")
    assert shop.tables() == {"shop_order", "alembic_version"}
    [before] = shop.version("alembic_version")
    [path] = shop.folder.glob("migrations/versions/*.py")
    path.with_name("second.py").write_text(
        "from alembic import op\n"
        "import sqlalchemy as sa\n"
        "revision, down_revision = '0123456789ab', '{}'\n"
        "def upgrade():\n"
        "    from shop import poll\n"
        "    poll.upgrade()\n"
        "    op.add_column('shop_order', sa.Column('note', sa.String(80)))\n".format(before)
    )
    shop.run("flask db upgrade")
    is_whole(shop)
    assert "note" in {column["name"] for column in inspect(shop.engine).get_columns("shop_order")}
