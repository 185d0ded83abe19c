"""`legacy-poll` as an operator runs it: in a process of its own, with an environment of its own.

Most of a command's time is Python's start and its imports. So one process imports what commands import and does nothing
else, and each command is a fork of it (multiprocessing's fork server). What hangs on the start itself is started anew:
`anew=True`, and whatever is said of the encoding of the standard streams.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile

from tests.gunicorn import ROOT

SECONDS = 60
IMPORTED = ["legacy_poll.cli", "legacy_poll.schema", "alembic.command", "psycopg", "psycopg2", "pymysql"]


def legacy_poll(*arguments, cwd=None, given=None, anew=False, **settings):
    """Runs `python -m legacy_poll`; *settings* are LEGACY_POLL_* variables without the prefix.

    Args:
        given: Text on standard input, which is empty without; "\\udcff" is the byte 255.
        anew: Start a Python for it.

    Returns:
        subprocess.CompletedProcess: with returncode, and stdout and stderr as text.
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LEGACY_POLL_")}
    environ.update({"LEGACY_POLL_" + name: str(value) for name, value in settings.items()})
    environ["PYTHONPATH"] = str(ROOT)
    cwd = None if cwd is None else str(cwd)
    if anew or "PYTHONIOENCODING" in environ:
        return subprocess.run(
            [sys.executable, "-m", "legacy_poll"] + list(arguments),
            cwd=cwd,
            env=environ,
            input=given or "",
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=SECONDS,
        )
    return _forked(list(arguments), cwd or os.getcwd(), environ, given or "")


def _forked(arguments, cwd, environ, given):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with tempfile.TemporaryDirectory(prefix="legacy_poll-command-", dir="/tmp") as folder:
        paths = [os.path.join(folder, name) for name in ("stdin", "stdout", "stderr")]
        with open(paths[0], "wb") as stdin:
            stdin.write(given.encode("utf-8", "surrogateescape"))
        process = context.Process(target=_command, args=(arguments, cwd, environ, paths))
        process.start()
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(arguments, SECONDS)
        out, err = (_text(path) for path in paths[1:])
        return subprocess.CompletedProcess(arguments, process.exitcode, out, err)


def _text(path):
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def _command(arguments, cwd, environ, paths):
    """In the fork: what `python -m legacy_poll` does from there on."""
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    for number, path in enumerate(paths):
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, "w" if number else "r", encoding="utf-8", errors=errors, closefd=False)
        for number, errors in enumerate(("surrogateescape", "strict", "backslashreplace"))
    )
    sys.argv = ["legacy_poll"] + arguments
    try:
        runpy.run_module("legacy_poll", run_name="__main__", alter_sys=True)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
