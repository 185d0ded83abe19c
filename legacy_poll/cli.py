"""``legacy-poll``: prints and asks; computes nothing."""

from __future__ import annotations

import json
import sys
from typing import Any, Optional, Tuple

import click
from sqlalchemy import create_engine

from . import schema
from .config import Settings
from .errors import LegacyPollError
from .tokens import Tokens

__all__ = ["main"]


class _Group(click.Group):
    """Our errors as one line and exit code 1, not as a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LegacyPollError as error:
            raise click.ClickException(str(error)) from error


@click.group(
    cls=_Group, epilog="Settings are read from the environment: LEGACY_POLL_DATABASE_URL and others."
)
@click.version_option(package_name="legacy_poll", prog_name="legacy-poll")
def main() -> None:
    """Long polling for Flask and SQLAlchemy: tables, tokens and the log's identity."""


@main.command(epilog="Example: LEGACY_POLL_DATABASE_URL=postgresql+psycopg://app@db/app legacy-poll upgrade")
@click.option("--database-url", help="SQLAlchemy URL; default LEGACY_POLL_DATABASE_URL.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def upgrade(database_url: Optional[str], as_json: bool) -> None:
    """Create the tables, or bring them to this version. Safe to run again."""
    before = schema.upgrade(_engine(database_url))
    now = schema.REVISION if before is None or before < schema.REVISION else before
    if as_json:
        click.echo(json.dumps({"before": before, "now": now}))
    elif before == now:
        click.echo("The tables are at version %s; nothing to do." % now)
    else:
        click.echo(
            "The tables were %s and are now at version %s."
            % ("missing" if before is None else "at " + before, now)
        )


@main.command("new-log", epilog="Example: legacy-poll new-log --yes")
@click.option("--database-url", help="SQLAlchemy URL; default LEGACY_POLL_DATABASE_URL.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def new_log(database_url: Optional[str], as_json: bool, yes: bool) -> None:
    """Give the log another identity, after a backup was restored.

    Every client is told once to reload its state (410 cursor_unknown) and goes on from the present end of the log.
    """
    if not yes:
        click.confirm("Every client will reload its state. Go on?", abort=True)
    log_id = schema.new_log(_engine(database_url))
    click.echo(json.dumps({"log_id": log_id}) if as_json else "The log is now %s." % log_id)


@main.command(epilog="Example: legacy-poll token --channel orders --channel user:7 --expires 3600")
@click.option("--channel", "channels", multiple=True, required=True, help="May be read; repeatable.")
@click.option(
    "--expires", default=3600, show_default=True, type=click.IntRange(min=1), help="Seconds from now."
)
@click.option("--subject", help="Who it is for.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def token(channels: Tuple[str, ...], expires: int, subject: Optional[str], as_json: bool) -> None:
    """Print a channel token, signed with LEGACY_POLL_SECRET_KEY."""
    text = Tokens(Settings.from_environ().secret_key).make(channels, expires_seconds=expires, subject=subject)
    click.echo(json.dumps({"token": text}) if as_json else text)


def _engine(database_url: Optional[str]) -> Any:
    return create_engine(database_url or Settings.from_environ().database_url)


if __name__ == "__main__":
    sys.exit(main())
