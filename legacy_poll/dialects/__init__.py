"""What PostgreSQL, MySQL and SQLite do differently, one small class each.

Everything above this room sees one behaviour. A method's docstring states the guarantee; the SQL is how one database
comes to give it.
"""

from __future__ import annotations

from typing import Dict, Optional, Type

from sqlalchemy.engine import Engine

from ..errors import ConfigError
from .base import Dialect, Purpose, code_of
from .mysql import MySQL
from .postgresql import PostgreSQL
from .sqlite import SQLite

__all__ = ["Dialect", "Purpose", "check_names", "code_of", "dialect_of"]

_CLASSES: Dict[str, Type[Dialect]] = {
    "postgresql": PostgreSQL,
    "mysql": MySQL,
    "mariadb": MySQL,
    "sqlite": SQLite,
}


def dialect_of(engine: Engine) -> Dialect:
    """The dialect of *engine*'s database.

    Raises:
        ConfigError: A database that is not supported.
    """
    return _class_of(engine.dialect.name)(engine)


def check_names(name: str, driver: Optional[str] = None) -> None:
    """Looks whether a database and its driver, by SQLAlchemy's names, are among ours; before anything is imported.

    Raises:
        ConfigError: They are not.
    """
    found = _class_of(name)
    if driver is not None:
        found.check_driver(driver)


def _class_of(name: str) -> Type[Dialect]:
    if name == "postgres":
        raise ConfigError("SQLAlchemy's name for it is postgresql, not postgres")
    if name not in _CLASSES:
        raise ConfigError("the database is %s: PostgreSQL, MySQL, MariaDB or SQLite is needed" % name)
    return _CLASSES[name]
