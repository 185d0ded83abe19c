"""The server by itself: ``gunicorn -k gevent wsgi:app``, configured by environment variables."""

from __future__ import annotations

import os
from typing import Mapping

from flask import Flask

from .answers import register_error_shape
from .config import Settings
from .database import make_engine
from .errors import ConfigError
from .extension import LegacyPoll

__all__ = ["create_app"]


def create_app(environ: Mapping[str, str] = os.environ) -> Flask:
    """The application that serves the wire at the root.

    An SQLite schema is made or upgraded here; other databases by ``legacy-poll upgrade``.

    Args:
        environ: Where the ``LEGACY_POLL_*`` variables are.

    Raises:
        ConfigError: A bad or unknown variable, or neither a public server nor a key for tokens.
    """
    settings = Settings.from_environ(environ)
    if not settings.public and not settings.secret_key:
        raise ConfigError(
            "who may read what? Set LEGACY_POLL_SECRET_KEY, and give readers channel tokens, "
            "or set LEGACY_POLL_PUBLIC=1 if anybody may read everything"
        )
    app = Flask("legacy_poll", static_folder=None)
    app.config.update({name: value for name, value in environ.items() if name.startswith("LEGACY_POLL_")})
    engine = make_engine(settings.database_url)
    poll = LegacyPoll(
        engine=engine,
        public=settings.public,
        authorize=None if settings.public else lambda channels: poll.allowed_by_token(channels),
    )
    poll.init_app(app)
    if engine.dialect.name == "sqlite":
        poll.upgrade()
    app.register_blueprint(poll.blueprint)
    register_error_shape(app)
    return app
