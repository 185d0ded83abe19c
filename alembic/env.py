"""Where alembic meets legacy_poll's tables.

The application's own migrations may live in the same database, run by the same alembic. So this environment
keeps its own version table, `legacy_poll_version`, and never looks at a table that is not named `legacy_poll_*`:
an autogenerate run can neither drop nor describe what is not ours.

The connection is the caller's, when `config.attributes["connection"]` has one (`legacy_poll.schema.upgrade`),
and then so is its transaction. Otherwise the database is LEGACY_POLL_DATABASE_URL, with the server's own default.
Loggers are the caller's too: no fileConfig, which would silence those that exist.
"""

from __future__ import annotations

import logging
import os

from alembic import context
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from legacy_poll.tables import metadata

PREFIX = "legacy_poll_"


def include_name(name, kind, parent_names):
    """Whether to reflect *name*: keeps alembic from reading the application's tables at all."""
    return kind != "table" or name.startswith(PREFIX)


def include_object(thing, name, kind, reflected, compare_to):
    """Whether to compare *thing*: the same rule for tables that are in the metadata."""
    return kind != "table" or name.startswith(PREFIX)


def configure(**where):
    context.configure(
        target_metadata=metadata,
        version_table=PREFIX + "version",
        include_name=include_name,
        include_object=include_object,
        compare_type=True,
        **where,
    )


def run(connection):
    configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()


def database_url():
    return os.environ.get("LEGACY_POLL_DATABASE_URL") or "sqlite:///legacy_poll.db"


def main():
    if context.config.cmd_opts is not None:
        # Run by the alembic command, which has no logging of its own; adds nothing where handlers exist.
        logging.basicConfig(format="%(message)s")
        logging.getLogger("alembic.runtime.migration").setLevel(logging.INFO)

    connection = context.config.attributes.get("connection")
    if context.is_offline_mode():
        if connection is not None:
            configure(dialect_name=connection.dialect.name, literal_binds=True)
        else:
            configure(url=database_url(), literal_binds=True)
        with context.begin_transaction():
            context.run_migrations()
    elif connection is not None:
        run(connection)
    else:
        engine = create_engine(database_url(), poolclass=NullPool)
        with engine.connect() as connection:
            run(connection)


main()
