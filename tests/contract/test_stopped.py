"""A sequencing process dies or stands still at any point: all of its move or nothing, and nobody waits for long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from legacy_poll.dialects.base import MOVE_SECONDS
from tests.contract.child import STAGES
from tests.contract.store import one_writer, two_writers
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
WITH_LOCK = ["locked", "deleted", "inserted", "committing"]


@pytest.fixture
def child(database_url):
    """Starts a sequencing process that sends itself a signal at a stage; ends what is left of it."""
    started = []

    def start(stage, name):
        command = [sys.executable, "-m", "tests.contract.child", database_url, stage, name]
        started.append(
            subprocess.Popen(command, cwd=str(ROOT), stdout=subprocess.PIPE, universal_newlines=True)
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def stopped(process):
    """Whether the child has just stopped; it must not have ended."""
    pid, status = os.waitpid(process.pid, os.WUNTRACED | os.WNOHANG)
    assert not pid or os.WIFSTOPPED(status), "the child ended: status %d" % status
    return bool(pid)


@pytest.mark.parametrize("stage", STAGES)
def test_a_sequencer_killed_leaves_all_of_its_move_or_nothing_when_it_has(stage, store, child, leave):
    leave(store, 1, 2, 3)
    before = store.waiting()
    assert child(stage, "SIGKILL").wait(30) == -signal.SIGKILL
    if stage == "committed":
        assert (store.data(), store.waiting()) == ([1, 2, 3], 0)
    else:
        assert (store.data(), store.waiting(), store.set_aside()) == ([], before, [])
    # The lock is gone with the connection, as soon as the server has seen that.
    until(lambda: not store.move().busy, 20, "the lock is free")
    store.publish(4)
    store.drain()
    assert store.data() == [1, 2, 3, 4]


@two_writers
@pytest.mark.parametrize("stage", ["locked", "committing"])
def test_a_sequencer_that_stands_still_with_the_lock_delays_others_for_seconds_only(
    stage, store, child, leave
):
    leave(store, 1, 2)
    standing = child(stage, "SIGSTOP")
    until(lambda: stopped(standing), 30, "the child has the lock")
    assert store.move().busy
    assert store.data() == []
    store.publish(3)
    until(lambda: not store.move().busy, MOVE_SECONDS + 5, "the database has ended the standing move")
    store.drain()
    assert store.data() == [1, 2, 3]
    # It wakes up and finds that its move did not happen.
    os.kill(standing.pid, signal.SIGCONT)
    said = standing.communicate(timeout=30)[0]
    assert said.startswith("failed: "), said
    assert (store.data(), store.waiting()) == ([1, 2, 3], 0)


@one_writer
@pytest.mark.parametrize("stage", ["locked", "committing"])
def test_on_sqlite_a_sequencer_that_stands_still_leaves_the_log_readable_and_loses_nothing(
    stage, store, child, leave
):
    store.publish(0)
    leave(store, 1, 2)
    standing = child(stage, "SIGSTOP")
    until(lambda: stopped(standing), 30, "the child has the lock")
    assert store.move().busy
    assert store.data() == [0]
    os.kill(standing.pid, signal.SIGCONT)
    assert standing.communicate(timeout=30)[0].startswith("moved 2")
    store.publish(3)
    assert store.data() == [0, 1, 2, 3]


@one_writer
def test_on_sqlite_a_sequencer_that_stands_still_and_is_killed_frees_the_lock(store, child, leave):
    leave(store, 1, 2)
    standing = child("committing", "SIGSTOP")
    until(lambda: stopped(standing), 30, "the child has the lock")
    assert store.move().busy
    standing.kill()
    standing.wait(30)
    store.drain()
    assert store.data() == [1, 2]


@two_writers
def test_a_sequencer_that_stands_still_before_the_lock_finds_that_others_were_first(store, child, leave):
    leave(store, 1, 2)
    standing = child("begun", "SIGSTOP")
    until(lambda: stopped(standing), 30, "the child is about to take the lock")
    assert not store.move().busy
    os.kill(standing.pid, signal.SIGCONT)
    # "failed" on a machine so slow that the database has ended the child's transaction already.
    assert standing.communicate(timeout=30)[0].startswith(("busy", "failed"))
    assert store.data() == [1, 2]
