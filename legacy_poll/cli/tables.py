"""Commands about the tables: upgrade, new-log, repair, status, trim, erase, set-aside."""

from __future__ import annotations

import sys
from typing import Any, Callable, List, Optional, Tuple

import click

from .. import schema, upkeep
from ..cursors import MAX_POSITION
from ..database import Database
from ..errors import LogDamaged
from ..eventlog import EventLog
from ..storage.ages import SteadyClock
from ..storage.erasing import What
from ..storage.erasing import erase as erase_from
from ..wakeups import HostSender, directory_of
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


@main.command(epilog="Example: legacy-poll repair")
@url_option
@json_option
def repair(database_url: Optional[str], as_json: bool) -> None:
    """Make the row of legacy_poll_log fit the events, after one of the two was emptied, loaded or restored alone.

    Events stay. The log gets another identity, as by new-log, if there was anything to repair.
    """
    done = schema.repair(settled(database_url)[0])
    if done.damage is None:
        text = "There is nothing to repair."
    else:
        was = done.damage.rpartition(";")[0]
        text = "Repaired: %s.\nThe log is now %s: it begins at position %d and ends at %d." % (
            was,
            done.log_id,
            done.oldest,
            done.head,
        )
    say(
        {"damage": done.damage, "log_id": done.log_id, "head": done.head, "oldest": done.oldest},
        text,
        as_json=as_json,
    )


@main.command(epilog="Example: legacy-poll status --json")
@url_option
@json_option
def status(database_url: Optional[str], as_json: bool) -> None:
    """How many events there are, wait, or were set aside."""
    engine, settings = settled(database_url)
    database = Database(engine, settings)
    try:
        found = upkeep.status(database, EventLog(database, settings))
    except LogDamaged as error:
        # Nothing can be counted; but who asks is told in the same way as of any other damage.
        say({"wrong": [str(error)]}, "WRONG         %s" % error, as_json=as_json)
        return
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
    wrong = schema.faults(database)
    lines += ["WRONG         %s" % fault for fault in wrong]
    say(dict(found.as_dict(), wrong=wrong), "\n".join(lines), as_json=as_json)


@main.command(epilog="Example: LEGACY_POLL_RETENTION_SECONDS=3600 legacy-poll trim")
@url_option
@json_option
def trim(database_url: Optional[str], as_json: bool) -> None:
    """Delete now what the retention settings do not keep. The servers do so by themselves from time to time."""
    engine, settings = settled(database_url)
    database = Database(engine, settings, wait_seconds=_WAIT_SECONDS)
    schema.check_log(database)
    log = EventLog(database, settings)
    total = 0
    steady = SteadyClock()
    while True:
        trimmed = log.trim(steady(log.glance().now), batches=20)
        total += trimmed.deleted
        if not trimmed.more:
            break
        click.echo("%d events deleted so far" % total, err=True)
    if steady.ahead_seconds:
        click.echo(
            "the database's clock is %d s ahead of this host's; events were trimmed by the earlier time"
            % steady.ahead_seconds,
            err=True,
        )
    say({"deleted": total}, "%d events deleted." % total, as_json=as_json)


class _Positions(click.ParamType):
    """7, or 7-9."""

    name = "positions"

    def convert(self, value: Any, param: Any, ctx: Any) -> Tuple[int, int]:
        first, _, last = str(value).partition("-")
        numbers = [first, last or first]
        if all(each.isascii() and each.isdigit() and 0 < int(each) <= MAX_POSITION for each in numbers):
            if int(numbers[0]) <= int(numbers[1]):
                return int(numbers[0]), int(numbers[1])
        return self.fail(
            "%r: a position from 1 on is needed, such as 17, or a range, such as 17-20" % (value,), param, ctx
        )


@main.command(
    epilog="""\b
Examples:
  legacy-poll erase --channel user:7
  legacy-poll erase --id 6f1c0d9e-0b57-4b1c-8a39-0c6f5d0e7a11 --position 1200-1210 --yes"""
)
@url_option
@json_option
@click.option("--id", "ids", multiple=True, help="An event's id; repeatable.")
@click.option("--position", "positions", multiple=True, type=_Positions(), help="One, or a range: 17-20.")
@click.option("--channel", "channels", multiple=True, help="All events of a channel; repeatable.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def erase(
    database_url: Optional[str],
    as_json: bool,
    ids: Tuple[str, ...],
    positions: Tuple[Tuple[int, int], ...],
    channels: Tuple[str, ...],
    yes: bool,
) -> None:
    """Erase events for good: from the log, the outbox, what was set aside, and every server's memory.

    An empty row stays where each was, so that clients go on past it without being told to reload. What clients have
    received, and backups, are not touched.
    """
    if not (ids or positions or channels):
        raise click.UsageError("say what: --id, --position or --channel")
    what = What(frozenset(ids), positions, frozenset(channels))
    if not yes:
        named: List[str] = ["id %s" % each for each in ids] + ["channel %s" % each for each in channels]
        named += ["position %d to %d" % each for each in positions]
        click.confirm("Erase the events of %s for good?" % ", ".join(named), abort=True)
    engine, settings = settled(database_url)
    database = Database(engine, settings, wait_seconds=_WAIT_SECONDS)
    schema.check_log(database)

    def progress(events: int) -> None:
        if sys.stderr.isatty():
            click.echo("\r%d events erased" % events, err=True, nl=False)

    try:
        done = erase_from(database, what, progress=progress)
    finally:
        # What was erased is to leave the servers' memory, also if the rest failed.
        HostSender(directory_of(engine.url, configured=settings.wakeup_directory)).send()
    say(
        {"events": done.events, "waiting": done.waiting, "set_aside": done.set_aside},
        "%d events erased, %d rows that waited, and %d that were set aside."
        % (done.events, done.waiting, done.set_aside),
        as_json=as_json,
    )


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
        some = "1 row" if len(ids) == 1 else "%d rows" % len(ids)
        click.confirm("Delete %s?" % ("all rows that were set aside" if everything else some), abort=True)
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
