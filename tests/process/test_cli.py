"""`legacy-poll` in a process of its own, and what it does to a server that runs meanwhile."""

from __future__ import annotations

import json
import os

import pytest

from tests.process.commands import legacy_poll
from tests.process.conftest import DATABASES, everyone, hold_everywhere
from tests.process.polls import Client, get, head, position, stream
from tests.servers import free_port

KEY = "a key of some length"
NOWHERE = "postgresql+psycopg2://nobody@127.0.0.1:{}/nothing"


def fails(done, code):
    """It ended with *code* and one line that says why, and printed nothing else; returns the line."""
    assert done.returncode == code, done
    assert done.stdout == "" and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done.stderr


def test_help_names_every_command_and_needs_no_database(tmp_path):
    done = legacy_poll("--help", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    for command in ["upgrade", "new-log", "token"]:
        assert command in done.stdout
        detail = legacy_poll(command, "--help", cwd=tmp_path)
        assert detail.returncode == 0 and "Usage: legacy-poll " + command in detail.stdout
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["upgarde"],
        ["upgrade", "now"],
        ["upgrade", "--jsn"],
        ["token"],
        ["token", "--channel", "orders", "--expires", "0"],
        ["token", "--channel", "orders", "--expires", "soon"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_end_with_2_and_touch_nothing(tmp_path, arguments):
    done = legacy_poll(*arguments, cwd=tmp_path, SECRET_KEY=KEY)
    assert done.returncode == 2
    assert done.stdout == "" and "Error: " in done.stderr and "Traceback" not in done.stderr
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize("command", [["upgrade"], ["new-log", "--yes"]], ids=" ".join)
def test_no_database_ends_with_1_and_one_clear_line(command):
    port = free_port()
    line = fails(legacy_poll(*command, DATABASE_URL=NOWHERE.format(port)), 1)
    assert str(port) in line and "refused" in line


def test_what_cannot_be_done_ends_with_1_and_one_line_that_says_what_to_do(tmp_path):
    empty = "sqlite:///{}".format(tmp_path / "empty.db")
    assert "run: legacy-poll upgrade" in fails(legacy_poll("new-log", "--yes", DATABASE_URL=empty), 1)
    assert "LEGACY_POLL_SECRET_KEY" in fails(legacy_poll("token", "--channel", "orders"), 1)
    assert "reserved" in fails(legacy_poll("token", "--channel", "$ours", SECRET_KEY=KEY), 1)
    assert "LEGACY_POLL_DATABASE_URL" in fails(legacy_poll("upgrade", DATABASE_URL="orders.db"), 1)
    assert "LEGACY_POLL_DATABASE_URL" in fails(legacy_poll("upgrade", DATABASE_URL="oracle://db/x"), 1)
    assert "LEGACY_POLL_PUBLICK" in fails(legacy_poll("upgrade", PUBLICK=1, DATABASE_URL=empty), 1)
    # Nobody is there to be asked.
    assert legacy_poll("new-log", DATABASE_URL=empty).returncode == 1


@pytest.mark.parametrize("database_url", DATABASES, indirect=True)
def test_upgrade_makes_the_tables_once_and_says_what_it_did(database_url, terminal):
    first = legacy_poll("upgrade", "--json", DATABASE_URL=database_url)
    assert (first.returncode, json.loads(first.stdout)["before"]) == (0, None)
    now = json.loads(first.stdout)["now"]
    log_id = terminal("SELECT log_id FROM legacy_poll_log;")
    again = legacy_poll("upgrade", "--database-url", database_url)
    assert again.returncode == 0 and "version {}; nothing to do".format(now) in again.stdout
    assert json.loads(legacy_poll("upgrade", "--json", DATABASE_URL=database_url).stdout) == {
        "before": now,
        "now": now,
    }
    # The log is the one that was there.
    assert log_id.strip() and terminal("SELECT log_id FROM legacy_poll_log;") == log_id


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_token_of_the_command_line_opens_its_channels_and_no_others(serve, database_url, terminal):
    gunicorn = serve({"PUBLIC": 0, "SECRET_KEY": KEY}, workers=2)
    made = legacy_poll(
        "token", "--channel", "orders", "--channel", "user:7", "--subject", "u7", SECRET_KEY=KEY
    )
    token = made.stdout.strip()
    same = json.loads(legacy_poll("token", "--json", "--channel", "orders", SECRET_KEY=KEY).stdout)["token"]
    foreign = legacy_poll(
        "token", "--channel", "orders", SECRET_KEY="another key of some length"
    ).stdout.strip()

    client = Client(gunicorn, channel=["orders", "user:7"], token=token).ask()
    terminal.publish("1")
    assert client.hear().data == [1]
    bearer = {"Authorization": "Bearer " + same}
    assert get(gunicorn, stream(timeout=0), headers=bearer).data == [1]
    refused = get(gunicorn, stream(["orders", "secret"], token=token))
    assert (refused.status, refused.code) == (403, "forbidden") and "secret" in refused.text
    for wrong in [None, foreign, token[:-1] + ("A" if token[-1] != "A" else "B")]:
        answer = get(gunicorn, stream(token=wrong))
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql", "mariadb"], indirect=True)
def test_new_log_tells_every_client_of_a_running_server_once(serve, database_url, terminal):
    gunicorn = serve()
    terminal.publish("1")
    client = Client(gunicorn)
    assert client.hear_until(1) == [1]
    held = everyone(hold_everywhere(gunicorn, 2, cursor=client.cursor))

    done = legacy_poll("new-log", "--yes", "--json", DATABASE_URL=database_url)
    assert json.loads(done.stdout)["log_id"] == terminal("SELECT log_id FROM legacy_poll_log;").strip()

    for each in held + [client.ask()]:
        before = each.cursor or client.cursor
        answer = each.hear()
        assert (answer.status, answer.code) == (410, "cursor_unknown"), answer
        assert answer.cursor != before and position(answer.cursor) == 1
        each.cursor = answer.cursor
        each.ask()
    assert head(gunicorn) == client.cursor
    terminal.publish("2")
    assert [each.hear().data for each in held + [client]] == [[2]] * 7
