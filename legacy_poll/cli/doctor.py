"""The command that examines what stands between a client and the server."""

from __future__ import annotations

import sys
import textwrap
from typing import Optional

import click

from ..doctor import Examination, Finding, Report, Target
from . import main, say
from .tables import json_option

_HOLD_MS = 25_000
_QUICK_MS = 5_000
_WIDTH = 110
_ABOUT = 16


@main.command(
    epilog="""\b
Examples:
  legacy-poll doctor https://shop.example/poll
  legacy-poll doctor https://shop.example/poll --channel user:7 --token TOKEN --json"""
)
@json_option
@click.option("--channel", default="", help="A quiet channel that may be read; default one that nobody uses.")
@click.option("--token", default="", help="Channel token.")
@click.option(
    "--hold-ms",
    type=click.IntRange(1000, 3_600_000),
    help="How long a silent poll is held, milliseconds; default %d, the server's own." % _HOLD_MS,
)
@click.option("--quick", is_flag=True, help="Hold for %d ms only: longer limits are not met." % _QUICK_MS)
@click.option("--insecure", is_flag=True, help="Take any certificate.")
@click.argument("url")
def doctor(
    as_json: bool, channel: str, token: str, hold_ms: Optional[int], quick: bool, insecure: bool, url: str
) -> None:
    """Hold polls through URL, the prefix of the routes, and say what stands in their way and what to set.

    Takes about ten seconds more than the hold. Exit code 1 if something is wrong.
    """
    if quick and hold_ms is not None:
        raise click.UsageError("--quick and --hold-ms both say how long: give one")
    try:
        target = Target.parse(url, token=token, insecure=insecure)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="URL") from None
    hold_seconds = (hold_ms or (_QUICK_MS if quick else _HOLD_MS)) / 1000
    examination = Examination(target, channel=channel, hold_seconds=hold_seconds, tell=_progress)
    report = examination.run()
    say(report.as_dict(), _text(report), as_json=as_json)
    sys.exit(0 if report.fine else 1)


def _progress(line: str) -> None:
    click.echo("... " + line, err=True)


def _text(report: Report) -> str:
    lines = [_line(finding) for finding in report.findings]
    wrong = sum(finding.level == "wrong" for finding in report.findings)
    lines.append(
        "All is well." if not wrong else "%d thing%s wrong." % (wrong, " is" if wrong == 1 else "s are")
    )
    return "\n".join(lines)


def _line(finding: Finding) -> str:
    """One finding: level and what was looked at, then text; the advice on lines of its own, behind an arrow."""
    head = "%-6s%-*s " % (
        finding.level.upper() if finding.level == "wrong" else finding.level,
        _ABOUT,
        finding.about,
    )
    indent = " " * len(head)

    def wrapped(text: str, first: str, rest: str) -> str:
        return textwrap.fill(
            text,
            _WIDTH,
            initial_indent=first,
            subsequent_indent=rest,
            break_long_words=False,
            break_on_hyphens=False,
        )

    text = wrapped(finding.what, head, indent)
    return text + ("\n" + wrapped(finding.advice, indent + "-> ", indent + "   ") if finding.advice else "")
