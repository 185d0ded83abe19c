"""The tables' version: upgrade to this code's, or say what is wrong.

A revision is ``<line>_<number>``. Within a line every change is one that older code of the line works with, so that a
live system can be upgraded while both serve; a schema of another line is refused.
"""

from __future__ import annotations

import importlib.util
import os
import uuid
from typing import Any, Optional

from sqlalchemy import inspect, text
from sqlalchemy.engine import Connection, Engine

from .config import Settings
from .database import Database
from .errors import ConfigError, SchemaError, SchemaMissing
from .tables import log

__all__ = ["upgrade", "check", "version", "new_log", "migrations", "VERSION_TABLE", "REVISION"]

#: The newest revision in the migrations.
REVISION = "1_0001"
VERSION_TABLE = "legacy_poll_version"
_UPGRADE_WAIT_SECONDS = 60


def migrations() -> str:
    """The folder of the migrations: inside the installed package, or beside it in a checkout."""
    spec = importlib.util.find_spec("legacy_poll.migrations")
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    here = os.path.dirname(os.path.abspath(__file__))
    places += [os.path.join(here, "migrations"), os.path.join(os.path.dirname(here), "alembic")]
    for place in places:
        if os.path.isfile(os.path.join(place, "env.py")):
            return place
    raise ConfigError("the migrations are missing; looked in: %s" % ", ".join(places))


def upgrade(engine: Engine, revision: str = "head") -> Optional[str]:
    """Creates the tables, or brings them to this code's version; nothing to do is no error.

    Any number of processes may call it at once; each but the first waits.

    Args:
        engine: Where; the user needs the right to create tables.
        revision: Alembic's name of where to go.

    Returns:
        The revision before; None when there was none.

    Raises:
        SchemaError: The schema is newer than this code, and of another line.
        StorageUnavailable: The database failed.
    """
    database = Database(engine, Settings(), wait_seconds=_UPGRADE_WAIT_SECONDS)
    try:
        # A look first: with nothing to do, a worker that starts must not wait for anybody's open transaction.
        before = database.read(_version)
        if before is not None and _same_line(before) and before >= REVISION:
            return before
        return database.write(lambda connection: _upgrade(database, connection, revision))
    finally:
        database.close()


def _upgrade(database: Database, connection: Connection, revision: str) -> Optional[str]:
    from alembic import command
    from alembic.config import Config

    with database.dialect.upgrade_lock(connection):
        before = _version(connection)
        if before is not None and not _same_line(before):
            raise SchemaError(_other_line(before))
        if before == REVISION or (before is not None and before > REVISION):
            return before
        config = Config()
        config.set_main_option("script_location", migrations().replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    return before


def new_log(engine: Engine) -> str:
    """Gives the log another identity: every cursor given out so far answers ``cursor_unknown``.

    The operator's step after a backup was restored or a lagging replica took over.

    Returns:
        The new log id.

    Raises:
        StorageUnavailable: The database failed.
    """
    log_id = str(uuid.uuid4())
    database = Database(engine, Settings(), wait_seconds=_UPGRADE_WAIT_SECONDS)
    try:
        database.write(lambda connection: connection.execute(log.update().values(log_id=log_id)))
    finally:
        database.close()
    return log_id


def check(database: Database) -> Optional[str]:
    """Looks whether this code can work with the tables.

    Returns:
        A warning for the operator, or None.

    Raises:
        SchemaMissing: There are no tables, or they are older than this code needs.
        SchemaError: They are of another line.
        StorageUnavailable: The database failed.
    """
    found = database.read(_version)
    if found is None:
        raise SchemaMissing("the tables of legacy_poll are missing; run: legacy-poll upgrade")
    if not _same_line(found):
        raise SchemaError(_other_line(found))
    if found < REVISION:
        raise SchemaMissing(
            "the tables of legacy_poll are at version %s and this code needs %s; run: legacy-poll upgrade"
            % (found, REVISION)
        )
    if found > REVISION:
        return (
            "the tables of legacy_poll are at version %s, newer than this code's %s: upgrade the package soon"
            % (
                found,
                REVISION,
            )
        )
    return None


def version(database: Database) -> str:
    """The schema's version; empty when there is none.

    Raises:
        StorageUnavailable: The database failed.
    """
    return database.read(_version) or ""


def _version(connection: Connection) -> Optional[str]:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    value: Any = connection.execute(text("SELECT version_num FROM %s" % VERSION_TABLE)).scalar()
    return value


def _same_line(version: str) -> bool:
    return version.split("_")[0] == REVISION.split("_")[0]


def _other_line(version: str) -> str:
    return (
        "the tables of legacy_poll are at version %s and this code works with line %s only; install the package that "
        "made them" % (version, REVISION.split("_")[0])
    )
