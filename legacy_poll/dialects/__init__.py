"""What PostgreSQL, MySQL and SQLite do differently, one small class each.

Everything above this room sees one behaviour. A method's docstring states the guarantee; the SQL is how one database
comes to give it.
"""

from __future__ import annotations

from sqlalchemy.engine import Engine

from ..errors import ConfigError
from .base import Dialect, code_of
from .mysql import MySQL
from .postgresql import PostgreSQL
from .sqlite import SQLite

__all__ = ["Dialect", "code_of", "dialect_of"]

_CLASSES = {"postgresql": PostgreSQL, "mysql": MySQL, "mariadb": MySQL, "sqlite": SQLite}


def dialect_of(engine: Engine) -> Dialect:
    """The dialect of *engine*'s database.

    Raises:
        ConfigError: A database that is not supported.
    """
    name = engine.dialect.name
    if name not in _CLASSES:
        raise ConfigError("the database is %s: PostgreSQL, MySQL, MariaDB or SQLite is needed" % name)
    return _CLASSES[name](engine)
