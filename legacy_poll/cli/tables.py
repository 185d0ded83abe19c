"""Commands about the tables: upgrade, new-log, status, trim, set-aside."""

from __future__ import annotations

from typing import Any, Callable, Optional, Tuple

import click

from .. import schema, upkeep
from ..database import Database
from ..eventlog import EventLog
from . import main, say, settled

_WAIT_SECONDS = 30

url_option = click.option("--database-url", help="SQLAlchemy URL; default LEGACY_POLL_DATABASE_URL.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

#: What fits the column in every database.
_ID = click.IntRange(1, 2**63 - 1)


@main.command(epilog="Example: LEGACY_POLL_DATABASE_URL=postgresql+psycopg://app@db/app legacy-poll upgrade")
@url_option
@json_option
def upgrade(database_url: Optional[str], as_json: bool) -> None:
    """Create the tables, or bring them to this version. Safe to run again."""
    before = schema.upgrade(settled(database_url)[0])
    now = schema.REVISION if before is None or before < schema.REVISION else before
    if before == now:
        text = "The tables are at version %s; nothing to do." % now
    else:
        text = "The tables were %s and are now at version %s." % (
            "missing" if before is None else "at " + before,
            now,
        )
    say({"before": before, "now": now}, text, as_json=as_json)


@main.command("new-log", epilog="Example: legacy-poll new-log --yes")
@url_option
@json_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def new_log(database_url: Optional[str], as_json: bool, yes: bool) -> None:
    """Give the log another identity, after a backup was restored.

    Every client is told once to reload its state (410 cursor_unknown) and goes on from the present end of the log.
    """
    engine = settled(database_url)[0]
    if not yes:
        click.confirm("Every client will reload its state. Go on?", abort=True)
    log_id = schema.new_log(engine)
    say({"log_id": log_id}, "The log is now %s." % log_id, as_json=as_json)


@main.command(epilog="Example: legacy-poll status --json")
@url_option
@json_option
def status(database_url: Optional[str], as_json: bool) -> None:
    """How many events there are, wait, or were set aside."""
    engine, settings = settled(database_url)
    database = Database(engine, settings)
    found = upkeep.status(database, EventLog(database, settings))
    lines = [
        "schema        %s" % found.version,
        "log           %s" % found.log_id,
        "head          %d" % found.head,
        "retained      %d events, from position %d%s"
        % (found.events, found.oldest, " of " + found.oldest_time if found.oldest_time else ""),
        "waiting       %d rows in the outbox" % found.waiting,
        "set aside     %d rows%s"
        % (found.set_aside, "; see: legacy-poll set-aside list" if found.set_aside else ""),
        "database time %s" % found.now,
    ]
    say(found.as_dict(), "\n".join(lines), as_json=as_json)


@main.command(epilog="Example: LEGACY_POLL_RETENTION_SECONDS=3600 legacy-poll trim")
@url_option
@json_option
def trim(database_url: Optional[str], as_json: bool) -> None:
    """Delete now what the retention settings do not keep. The servers do so by themselves from time to time."""
    engine, settings = settled(database_url)
    database = Database(engine, settings, wait_seconds=_WAIT_SECONDS)
    log = EventLog(database, settings)
    total = 0
    while True:
        deleted = log.trim(log.glance().now, batches=20)
        total += deleted
        if deleted < 20 * log.trim_rows:
            break
        click.echo("%d events deleted so far" % total, err=True)
    say({"deleted": total}, "%d events deleted." % total, as_json=as_json)


@main.group("set-aside")
def set_aside() -> None:
    """Rows of the outbox that broke a rule, with their reasons."""


@set_aside.command("list", epilog="Example: legacy-poll set-aside list --limit 20")
@url_option
@json_option
@click.option("--limit", default=100, show_default=True, type=click.IntRange(min=1), help="Most rows.")
def list_(database_url: Optional[str], as_json: bool, limit: int) -> None:
    """Show them, the last first."""
    engine, settings = settled(database_url)
    rows = upkeep.set_aside_rows(Database(engine, settings), limit=limit)
    lines = ["%(id)s  %(set_aside_at)s  %(channel)s  %(reason)s" % row for row in rows]
    say(rows, "\n".join(lines) or "None.", as_json=as_json)


@set_aside.command(epilog="Example: legacy-poll set-aside retry 17 18")
@url_option
@json_option
@click.option("--all", "everything", is_flag=True, help="All of them.")
@click.argument("ids", nargs=-1, type=_ID)
def retry(database_url: Optional[str], as_json: bool, everything: bool, ids: Tuple[int, ...]) -> None:
    """Put rows back into the outbox, to be judged again."""
    _each(upkeep.retry, "put back", database_url, as_json, everything, ids)


@set_aside.command(epilog="Example: legacy-poll set-aside drop --all --yes")
@url_option
@json_option
@click.option("--all", "everything", is_flag=True, help="All of them.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.argument("ids", nargs=-1, type=_ID)
def drop(
    database_url: Optional[str], as_json: bool, everything: bool, yes: bool, ids: Tuple[int, ...]
) -> None:
    """Delete rows for good."""
    if not yes and (ids or everything):
        click.confirm(
            "Delete %s?" % ("all rows that were set aside" if everything else "%d rows" % len(ids)),
            abort=True,
        )
    _each(upkeep.drop, "deleted", database_url, as_json, everything, ids)


def _each(
    work: Callable[..., int],
    done: str,
    database_url: Optional[str],
    as_json: bool,
    everything: bool,
    ids: Any,
) -> None:
    if bool(ids) == everything:
        raise click.UsageError("name the rows by their ids, or say --all")
    engine, settings = settled(database_url)
    count = work(Database(engine, settings, wait_seconds=_WAIT_SECONDS), None if everything else ids)
    say({"rows": count}, "%d rows %s." % (count, done), as_json=as_json)
