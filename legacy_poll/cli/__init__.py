"""``legacy-poll``, and ``flask legacy-poll`` inside an application: prints and asks; computes nothing.

Exit codes: 0 done; 1 it could not be done, with one line that says why; 2 the command line is wrong.
"""

from __future__ import annotations

import json
from typing import Any, Optional, Tuple

import click
from flask import current_app, has_app_context
from sqlalchemy.engine import Engine

from ..config import Settings
from ..database import make_engine
from ..errors import ConfigError, LegacyPollError
from ..tokens import Tokens

__all__ = ["main", "settled", "signer", "say"]

#: Where the command's context keeps --name.
_NAME = "legacy_poll.name"


class _Group(click.Group):
    """Our errors as one line and exit code 1, not as a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LegacyPollError as error:
            raise click.ClickException(str(error)) from error


@click.group(
    "legacy-poll",
    cls=_Group,
    epilog="Settings are read from the environment (LEGACY_POLL_DATABASE_URL and others), or, as `flask legacy-poll`, "
    "from the application.",
)
@click.version_option(package_name="legacy_poll", prog_name="legacy-poll")
@click.option("--name", metavar="NAME", help="Which LegacyPoll of the application, where it has several.")
@click.pass_context
def main(context: click.Context, name: Optional[str]) -> None:
    """Long polling for Flask and SQLAlchemy: the tables, the events, the tokens."""
    context.meta[_NAME] = name


def settled(database_url: Optional[str] = None) -> Tuple[Engine, Settings]:
    """Where to work, and the settings: of the application around the command, else of the environment.

    Raises:
        ConfigError: A bad setting, or a URL that names no driver of ours.
    """
    if database_url is None and _find_application():
        state = _chosen()
        return state.engine(), state.settings
    _is_alone()
    settings = Settings.from_environ()
    return make_engine(database_url or settings.database_url), settings


def signer() -> Tokens:
    """What signs channel tokens: with the application's key, if there is one around the command.

    Raises:
        ConfigError: There is no key.
    """
    if _find_application():
        tokens: Tokens = _chosen().tokens()
        return tokens
    return Tokens(Settings.from_environ().secret_key)


def say(value: Any, text: str, *, as_json: bool) -> None:
    """Prints *text*, or *value* as JSON."""
    click.echo(json.dumps(value, sort_keys=True) if as_json else text)


def _chosen() -> Any:
    states = current_app.extensions["legacy_poll"]
    name = click.get_current_context().meta.get(_NAME)
    if name is None and len(states) == 1:
        return next(iter(states.values()))
    if name not in states:
        found = "has several logs" if name is None else "has no log named %r" % name
        raise ConfigError("this application %s; --name is one of: %s" % (found, ", ".join(sorted(states))))
    return states[name]


def _find_application() -> bool:
    if not has_app_context():
        # `flask legacy-poll` on a Flask that pushes no context for commands of extensions.
        from flask.cli import ScriptInfo

        found = click.get_current_context().find_object(ScriptInfo)
        if found is None:
            return False
        click.get_current_context().with_resource(found.load_app().app_context())
    return bool(current_app.extensions.get("legacy_poll"))


def _is_alone() -> None:
    if click.get_current_context().meta.get(_NAME) is not None:
        raise ConfigError("--name is for `flask legacy-poll`, inside an application that has several logs")


from . import doctor, events, tables  # noqa: E402, F401  (they add their commands)
