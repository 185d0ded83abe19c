"""Commands about events: publish, tail, token."""

from __future__ import annotations

import http.client
import json
import re
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple

import click

from ..cursors import Cursor
from ..database import Database
from ..errors import CursorGone, InvalidEvent, LegacyPollError, StorageUnavailable
from ..eventlog import EventLog, append
from ..events import DEFAULT_CHANNEL, DEFAULT_TYPE, MAX_DEPTH, RESERVED_PREFIX, Event, check_channels
from ..wakeups import HostSender, directory_of
from . import main, say, settled, signer
from .tables import json_option, url_option

_ROWS = 500
_WAIT_SECONDS = 30
_LOOK_SECONDS = 0.2
_HOLD_MS = 25_000
#: Longest pause between two tries, seconds.
_LAST_BACKOFF_SECONDS = 30
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@main.command(
    epilog="""\b
Examples:
  legacy-poll publish orders '{"id": 7}' --type order.created
  jq -c '.[]' orders.json | legacy-poll publish orders --lines"""
)
@url_option
@json_option
@click.option("--type", "type_", default=DEFAULT_TYPE, show_default=True, help="What happened.")
@click.option("--id", "event_id", help="The event's id; default a new UUID.")
@click.option("--lines", is_flag=True, help="One JSON value a line on standard input, each an event's data.")
@click.argument("channel", default=DEFAULT_CHANNEL)
@click.argument("data", required=False)
def publish(
    database_url: Optional[str],
    as_json: bool,
    type_: str,
    event_id: Optional[str],
    lines: bool,
    channel: str,
    data: Optional[str],
) -> None:
    """Publish DATA, a JSON value, to CHANNEL; or one event for each line of standard input.

    With --lines, 500 are committed at a time; after an error, what was committed stays, and the message says how many.
    """
    if lines == (data is not None):
        raise click.UsageError("give DATA, or say --lines and give JSON values on standard input")
    if lines and event_id is not None:
        raise click.UsageError("--id names one event; it does not go with --lines")
    engine, settings = settled(database_url)
    database = Database(engine, settings, wait_seconds=_WAIT_SECONDS)
    sender = HostSender(directory_of(engine.url, configured=settings.wakeup_directory))
    most = settings.max_event_bytes

    def commit(values: List[Any]) -> List[str]:
        def work(connection: Any) -> List[str]:
            return [
                append(connection, channel, value, type=type_, id=event_id, max_event_bytes=most)
                for value in values
            ]

        ids = database.write(work)
        sender.send()
        return ids

    if data is not None:
        event_id = commit([_json(data, "DATA")])[0]
        say({"id": event_id}, event_id, as_json=as_json)
        return
    total = 0
    try:
        for batch in _batches(_standard_input()):
            total += len(commit(batch))
            if sys.stderr.isatty():
                click.echo("\r%d published" % total, err=True, nl=False)
    except LegacyPollError as error:
        raise click.ClickException("%s; %d events before it were published" % (error, total)) from error
    except KeyboardInterrupt:
        raise click.ClickException("interrupted; %d events were published" % total) from None
    say({"published": total}, "%d events published." % total, as_json=as_json)


@main.command(
    epilog="""\b
Examples:
  legacy-poll tail --channel orders --since 2h
  legacy-poll tail http://127.0.0.1:8000 --channel orders --token TOKEN"""
)
@url_option
@json_option
@click.option(
    "--channel", "channels", multiple=True, help="Repeatable; default: all (log), or `default` (HTTP)."
)
@click.option("--since", help="Start this long ago: 30s, 5m, 2h, 1d. Default: now.")
@click.option("--cursor", "cursor_text", help="Start from this cursor.")
@click.option("--count", type=click.IntRange(min=1), help="Stop after so many events.")
@click.option("--token", help="Channel token, for HTTP.")
@click.argument("url", required=False)
def tail(
    database_url: Optional[str],
    as_json: bool,
    channels: Tuple[str, ...],
    since: Optional[str],
    cursor_text: Optional[str],
    count: Optional[int],
    token: Optional[str],
    url: Optional[str],
) -> None:
    """Print events as they come: over HTTP from URL, the prefix of the routes, or straight from the log.

    Goes on through restarts of the server or the database, from where it was.
    """
    if url is not None and since is not None:
        raise click.UsageError("--since reads the log; over HTTP use --cursor")
    if since is not None and cursor_text is not None:
        raise click.UsageError("--since and --cursor both say where to start: give one")
    seconds = None if since is None else _seconds(since)
    if url is not None:
        found = _over_http(url, channels, cursor_text, token)
    else:
        engine, settings = settled(database_url)
        found = _from_log(EventLog(Database(engine, settings), settings), channels, seconds, cursor_text)
    try:
        for number, event in enumerate(found, 1):
            click.echo(
                json.dumps(event)
                if as_json
                else "%(time)s %(channel)s %(type)s " % event + json.dumps(event["data"])
            )
            if number == count:
                return
    except KeyboardInterrupt:
        return


@main.command(epilog="Example: legacy-poll token --channel orders --channel user:7 --expires 3600")
@click.option("--channel", "channels", multiple=True, required=True, help="May be read; repeatable.")
@click.option(
    "--expires", default=3600, show_default=True, type=click.IntRange(min=1), help="Seconds from now."
)
@click.option("--subject", help="Who it is for.")
@json_option
def token(channels: Tuple[str, ...], expires: int, subject: Optional[str], as_json: bool) -> None:
    """Print a channel token, signed with LEGACY_POLL_SECRET_KEY."""
    text = signer().make(channels, expires_seconds=expires, subject=subject)
    say({"token": text}, text, as_json=as_json)


def _json(text: str, what: str) -> Any:
    try:
        text.encode("utf-8")  # bytes that are no text would be published as something else
        return json.loads(text)
    except UnicodeEncodeError:
        raise InvalidEvent(what, text, "text in UTF-8 is needed") from None
    except RecursionError:
        raise InvalidEvent(what, text, "at most %d levels of nesting" % MAX_DEPTH) from None
    except ValueError as error:
        raise InvalidEvent(what, text, "a JSON value is needed: %s" % error) from None


def _standard_input() -> Iterable[bytes]:
    if sys.stdin is None:
        raise click.UsageError("--lines reads standard input, and it is closed")
    return sys.stdin.buffer


def _batches(lines: Iterable[bytes]) -> Iterator[List[Any]]:
    batch = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            # JSON is UTF-8, whatever the terminal speaks.
            batch.append(_json(line.decode("utf-8", "surrogateescape"), "line %d" % number))
        if len(batch) >= _ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def _seconds(text: str) -> float:
    match = re.fullmatch(r"([0-9]+)([smhd])", text)
    if match is None:
        raise click.BadParameter(
            "%r: a number and s, m, h or d is needed, such as 2h" % text, param_hint="--since"
        )
    return float(match.group(1)) * _UNITS[match.group(2)]


def _from_log(
    log: EventLog, channels: Tuple[str, ...], seconds: Optional[float], cursor_text: Optional[str]
) -> Iterator[Dict[str, Any]]:
    names = check_channels(channels) if channels else None
    if cursor_text is not None and cursor_text != "now":
        cursor = Cursor.parse(cursor_text)
    else:
        cursor = log.bounds().cursor if seconds is None else log.cursor_since(seconds)
    pause, patience = threading.Event(), _Patience("the database")
    patience.works()
    # Who asks by the time wants what there is; who follows is to know that something is missing.
    past_holes = seconds is not None
    while True:
        try:
            try:
                batch = log.read_after(
                    cursor, channels=names, limit=_ROWS, max_bytes=1 << 23, past_holes=past_holes
                )
            except CursorGone as gone:
                cursor, past_holes = _go_on(log, cursor, gone, past_holes=past_holes)
                continue
        except StorageUnavailable as error:
            patience.wait(str(error))
            continue
        patience.works()
        for event in batch.events:
            if names is not None or not event.channel.startswith(RESERVED_PREFIX):
                yield _as_dict(event)
        cursor = batch.cursor
        if not batch.more:
            past_holes = False
            pause.wait(_LOOK_SECONDS)


def _go_on(log: EventLog, cursor: Cursor, gone: CursorGone, *, past_holes: bool) -> Tuple[Cursor, bool]:
    """Where to read on and whether past holes, since *cursor* is *gone*; says so."""
    bounds, behind = log.bounds(), gone.facts.get("oldest")
    if behind is None:
        cursor, where = bounds.cursor, "from the end of the log"
    elif not past_holes and bounds.oldest <= cursor.position + 1:
        past_holes, where = True, "with what there is"
    else:
        cursor, where = log.cursor_at(behind - 1), "from there"
    click.echo("%s; going on %s" % (gone, where), err=True)
    return cursor, past_holes


def _as_dict(event: Event) -> Dict[str, Any]:
    data = None
    try:
        data = json.loads(event.data)
    except (ValueError, RecursionError):
        click.echo("the event at position %d has data that are not JSON" % event.position, err=True)
    return {"id": event.id, "channel": event.channel, "type": event.type, "data": data, "time": event.time}


def _over_http(
    url: str, channels: Tuple[str, ...], cursor: Optional[str], token: Optional[str]
) -> Iterator[Dict[str, Any]]:
    if not _is_http(url):
        raise click.BadParameter(
            "%r: a URL that starts with http:// or https:// is needed" % url, param_hint="URL"
        )
    cursor, patience = cursor or "now", _Patience(url)
    while True:
        query = [("channel", name) for name in channels] + [("cursor", cursor), ("timeout", str(_HOLD_MS))]
        request = urllib.request.Request("%s/stream?%s" % (url.rstrip("/"), urllib.parse.urlencode(query)))
        if token:
            request.add_header("Authorization", "Bearer " + token)
        try:
            with urllib.request.urlopen(request, timeout=_HOLD_MS / 1000 + 15) as answer:
                body, next_cursor = answer.read(), answer.headers["Legacy-Poll-Cursor"]
            events = json.loads(body)["events"] if body.strip() else []
            if next_cursor is None:
                raise ValueError("the answer has no cursor; is this the prefix of the routes?")
        except urllib.error.HTTPError as error:
            says = _error_of(error)
            if error.code == 410 and error.headers["Legacy-Poll-Cursor"]:
                click.echo("%s; going on from the end of the log" % says, err=True)
                cursor = error.headers["Legacy-Poll-Cursor"]
            elif error.code in (429, 502, 503, 504):
                patience.wait("%d: %s" % (error.code, says), error.headers.get("Retry-After"))
            else:
                raise click.ClickException("%d: %s" % (error.code, says)) from error
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            if not patience.proven:
                raise click.ClickException("%s does not answer: %s" % (url, error)) from error
            patience.wait(str(error) or type(error).__name__)
        else:
            patience.works()
            cursor = next_cursor
            yield from events


def _is_http(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:  # a bracket too many
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc)


class _Patience:
    """What to do about *what*, which worked or may yet work: say once that it does not, wait, and try again."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._failures = 0
        self._pause = threading.Event()
        #: Whether it ever worked.
        self.proven = False

    def works(self) -> None:
        if self._failures and self.proven:
            click.echo("%s answers again" % self._what, err=True)
        self._failures, self.proven = 0, True

    def wait(self, why: str, retry_after: Optional[str] = None) -> None:
        if not self._failures:
            click.echo("%s does not answer, trying again: %s" % (self._what, why), err=True)
        self._failures += 1
        asked = int(retry_after) if retry_after and re.fullmatch("[0-9]{1,9}", retry_after) else 0
        self._pause.wait(min(_LAST_BACKOFF_SECONDS, max(asked, 0.1 * 2 ** min(self._failures, 10))))


def _error_of(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read())["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return str(error.reason)
