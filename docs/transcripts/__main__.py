"""Makes the transcripts in wire.md: runs the commands that stand there against real servers.

    python docs/transcripts             rewrites the page
    python docs/transcripts --check     says what differs, and ends with 1 if anything does

The page is the script: below each line ``<!-- transcript: NAME -->`` stands a block whose ``$`` lines are run in order
against the server NAME of ``SERVERS``; what they print replaces what stands below them. A command that ends with ``&``
is held while the others run; its output comes at the end of the block, unless ``kill %1`` ended it.

So that the page does not change with every run, the log's identity and the tokens' key and expiry are always the same,
events have no random mark (a cursor behind one is then checked by its id), and what cannot be (dates, times,
Retry-After, random ids, ports) is replaced by the same value each time.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from sqlalchemy import create_engine, text  # noqa: E402

from legacy_poll import schema  # noqa: E402
from legacy_poll.tokens import Tokens  # noqa: E402
from tests.gunicorn import Gunicorn  # noqa: E402
from tests.servers import find_program  # noqa: E402
from tests.waiting import until  # noqa: E402

PAGE = ROOT / "docs" / "wire.md"
SHOWN_ADDRESS = "127.0.0.1:8000"
LOG_ID = "5f0c9a12-0000-4000-8000-000000000000"
KEY = "a key of at least 16 characters"
COMMAND_SECONDS = 60

SHOP = {"PUBLIC": 1, "PUBLISH_TOKEN": "letmein"}
SERVERS = {
    "shop": SHOP,
    # Keeps so little that a cursor expires at once.
    "forgetful": dict(SHOP, RETENTION_EVENTS=1, TAIL_EVENTS=1, TRIM_INTERVAL_SECONDS=3600),
    "impatient": dict(SHOP, MAX_BACKLOG_EVENTS=2),
    "private": {"SECRET_KEY": KEY},
    "sites": dict(SHOP, CORS_ORIGINS="https://shop.example", JSONP=1),
    "busy": dict(SHOP, MAX_HELD_PER_CLIENT=1),
    "full": dict(SHOP, MAX_HELD=1),
    # Nobody listens on port 1.
    "lost": dict(SHOP, DATABASE_URL="mysql+pymysql://shop@127.0.0.1:1/shop"),
}

# Commands in the page say $TOKEN and $EXPIRED. Neither changes from day to day.
TOKENS = {
    "TOKEN": Tokens(KEY, clock=lambda: 4_000_000_000).make(["orders"], expires_seconds=3600, subject="u7"),
    "EXPIRED": Tokens(KEY, clock=lambda: 1_000_000_000).make(["orders"], expires_seconds=3600),
}

_RANDOM_MARK = "'now'), lower(hex(randomblob(4)))\n"
_BLOCK = re.compile(
    r"(?P<head><!-- transcript: (?P<server>\w+) -->\n```console\n)(?P<body>.*?)(?P<end>^```$)", re.M | re.S
)
_ALWAYS = [
    (re.compile(r"^Date: .*$", re.M), "Date: Sat, 31 Jan 2026 09:30:00 GMT"),
    (re.compile(r"^Retry-After: \d+$", re.M), "Retry-After: 3"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"), "2026-01-31T09:30:00.000Z"),
    (re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "d9a7b1f4-3c52-4f4e-9a3b-6f1c1a526c1b"),
    (re.compile(r"expired \d+ s ago"), "expired 60 s ago"),
    (re.compile(r'"pid": \d+'), '"pid": 4711'),
    # How many heartbeats fit depends on how busy the machine is; some do.
    (re.compile(r"^ +(?=\{\"events)", re.M), "   "),
]


def made_anew(page: str) -> str:
    """*page* with what its commands print today."""
    blocks = list(_BLOCK.finditer(page))
    if not blocks:
        raise AssertionError("no transcripts in the page")
    made = {}
    for name in sorted({block["server"] for block in blocks}):
        with _Server(name) as server:
            for block in blocks:
                if block["server"] == name:
                    made[block.start()] = server.transcript(block["body"])
    return _BLOCK.sub(lambda block: block["head"] + made[block.start()] + block["end"], page)


class _Server:
    def __init__(self, name):
        find_program("curl")
        self._lost = name == "lost"
        self._gunicorn = Gunicorn(SERVERS[name], workers=1)
        if not self._lost:
            url = "sqlite:///{}".format(self._gunicorn.directory / "legacy_poll.db")
            self._gunicorn.settings["DATABASE_URL"] = url
            engine = create_engine(url)
            schema.upgrade(engine)
            with engine.begin() as connection:
                connection.execute(text("UPDATE legacy_poll_log SET log_id = :id"), {"id": LOG_ID})
                name = "legacy_poll_sequence"
                trigger = connection.execute(
                    text("SELECT sql FROM sqlite_master WHERE name = :name"), {"name": name}
                ).scalar()
                assert trigger.count(_RANDOM_MARK) == 1
                connection.exec_driver_sql("DROP TRIGGER " + name)
                connection.exec_driver_sql(trigger.replace(_RANDOM_MARK, "'now'), NULL\n"))
            engine.dispose()

    def __enter__(self):
        self._gunicorn.spawn()
        if self._lost:
            until(lambda: self._answers("/health/live"), 60, "the server answers")
        else:
            self._gunicorn.wait_until_ready()
        return self

    def __exit__(self, *error):
        self._gunicorn.destroy()

    def transcript(self, body):
        lines, held = [], []
        for command in _commands(body):
            lines.append("$ " + command)
            if command.endswith("&"):
                before = self._held()
                held.append(self._start(command[:-1], held=True))
                until(lambda wanted=before + 1: self._held() >= wanted, 30, "the poll is held: " + command)
            elif command == "kill %1":
                killed = held.pop()
                killed.terminate()
                killed.communicate()
            else:
                lines += _shown(self._start(command))
        for process in held:
            lines += _shown(process)
        return "\n".join(lines) + "\n"

    def _start(self, command, *, held=False):
        command = command.replace(SHOWN_ADDRESS, "127.0.0.1:{}".format(self._gunicorn.port))
        command = re.sub(
            r"(?<![\w/-])legacy-poll(?= )", shlex.quote(sys.executable) + " -m legacy_poll", command
        )
        settings = {"LEGACY_POLL_" + name: str(value) for name, value in self._gunicorn.settings.items()}
        environ = dict(os.environ, PYTHONPATH=str(ROOT), **TOKENS, **settings)
        return subprocess.Popen(
            ["sh", "-c", "exec " + command if held else command],
            cwd=str(self._gunicorn.directory),
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def _held(self):
        with urllib.request.urlopen(self._gunicorn.url + "/status", timeout=10) as answer:
            return json.loads(answer.read().decode("utf-8"))["worker"]["held"]

    def _answers(self, path):
        try:
            with urllib.request.urlopen(self._gunicorn.url + path, timeout=10) as answer:
                return answer.status == 200
        except OSError:
            return False


def _commands(body):
    """The commands of a block; one goes on over lines that end with a backslash."""
    commands = []
    lines = iter(body.splitlines())
    for line in lines:
        if line.startswith("$ "):
            command = line[2:]
            while command.endswith("\\"):
                command += "\n" + next(lines)
            commands.append(command)
    return commands


def _shown(process):
    out, _ = process.communicate(timeout=COMMAND_SECONDS)
    printed = out.decode("utf-8").replace("\r\n", "\n")
    for pattern, instead in _ALWAYS:
        printed = pattern.sub(instead, printed)
    return printed.rstrip("\n").split("\n") if printed.strip() else []


def main():
    parser = argparse.ArgumentParser(description="Makes the transcripts in wire.md.")
    parser.add_argument("--check", action="store_true", help="change nothing, say what differs")
    asked = parser.parse_args()
    before = PAGE.read_text(encoding="utf-8")
    after = made_anew(before)
    if not asked.check:
        PAGE.write_text(after, encoding="utf-8")
        return 0
    sys.stdout.writelines(
        difflib.unified_diff(before.splitlines(True), after.splitlines(True), "wire.md", "today")
    )
    return int(after != before)


if __name__ == "__main__":
    sys.exit(main())
