"""`legacy-poll` as an operator runs it: in a process of its own, with an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.gunicorn import ROOT


def legacy_poll(*arguments, cwd=None, given=None, **settings):
    """Runs `python -m legacy_poll`; *settings* are LEGACY_POLL_* variables without the prefix.

    Args:
        given: Text on standard input, which is empty without; "\\udcff" is the byte 255.

    Returns:
        subprocess.CompletedProcess: with returncode, and stdout and stderr as text.
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LEGACY_POLL_")}
    environ.update({"LEGACY_POLL_" + name: str(value) for name, value in settings.items()})
    environ["PYTHONPATH"] = str(ROOT)
    return subprocess.run(
        [sys.executable, "-m", "legacy_poll"] + list(arguments),
        cwd=None if cwd is None else str(cwd),
        env=environ,
        input=given or "",
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=60,
    )
