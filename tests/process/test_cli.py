"""`legacy-poll` in a process of its own, and what it does to a server that runs meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from sqlalchemy import create_engine, text

from tests.gunicorn import ROOT
from tests.process.commands import legacy_poll
from tests.process.conftest import DEFAULTS, everyone, hold_everywhere
from tests.process.polls import Client, get, head, position, stream
from tests.servers import free_port
from tests.waiting import until

KEY = "a key of some length"
NOWHERE = "postgresql+psycopg2://nobody@127.0.0.1:{}/nothing"


def fails(done, code):
    """It ended with *code* and one line that says why, and printed nothing else; returns the line."""
    assert done.returncode == code, done
    assert done.stdout == "" and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done.stderr


def test_a_name_is_for_an_application():
    done = legacy_poll("--name", "chat", "status")
    assert (done.returncode, done.stdout) == (1, "")
    assert "--name is for `flask legacy-poll`" in done.stderr


def test_help_names_every_command_and_needs_no_database(tmp_path):
    done = legacy_poll("--help", cwd=tmp_path, anew=True)
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
        ["publish", "orders", "1", "2"],
        ["publish", "--typ", "x"],
        ["tail", "--count", "0"],
        ["tail", "--count", "many"],
        ["tail", "one", "two"],
        ["new-log", "--yes", "now"],
        ["trim", "all"],
        ["status", "--json", "x"],
        ["set-aside", "shred"],
        ["set-aside", "drop", "--yes", "9" * 23],
        ["set-aside", "retry", "0"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_end_with_2_and_touch_nothing(tmp_path, arguments):
    done = legacy_poll(*arguments, cwd=tmp_path, SECRET_KEY=KEY)
    assert done.returncode == 2
    assert done.stdout == "" and "Error: " in done.stderr and "Traceback" not in done.stderr
    assert os.listdir(str(tmp_path)) == []


COMMANDS = [
    ["upgrade"],
    ["new-log", "--yes"],
    ["status"],
    ["status", "--json"],
    ["trim"],
    ["publish", "orders", "1"],
    ["tail", "--since", "1h", "--count", "1"],
    ["set-aside", "list"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
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


@pytest.fixture
def written(tmp_path):
    """An SQLite file with our tables."""
    url = "sqlite:///{}".format(tmp_path / "written.db")
    assert legacy_poll("upgrade", DATABASE_URL=url).returncode == 0
    return url


def published(url):
    """The data of all events, in order."""
    done = legacy_poll("tail", "--since", "1h", "--count", "2", "--json", DATABASE_URL=url)
    return [json.loads(line)["data"] for line in done.stdout.splitlines()]


NOT_UTF8 = '"\udcff"'
DEEP = "[" * 5000


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:surrogateescape", "latin-1"])
def test_lines_are_utf_8_whatever_the_terminal_speaks(written, monkeypatch, encoding):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    runs(legacy_poll("publish", "--lines", given='"\u00fc"\n\r\n1\n', DATABASE_URL=written))
    assert published(written) == ["\u00fc", 1]


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:surrogateescape"])
@pytest.mark.parametrize("line, rule", [(NOT_UTF8, "UTF-8"), (DEEP, "200 levels")])
def test_a_line_that_is_none_of_ours_is_named_and_nothing_is_published(
    written, monkeypatch, encoding, line, rule
):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    said = fails(legacy_poll("publish", "--lines", given="1\n" + line + "\n", DATABASE_URL=written), 1)
    assert "line 2 is" in said and rule in said and "0 events before it were published" in said
    assert legacy_poll("status", "--json", DATABASE_URL=written).stdout.count('"head": 0') == 1


@pytest.mark.parametrize("data, rule", [(NOT_UTF8, "UTF-8"), (DEEP, "200 levels")])
def test_data_that_is_none_of_ours_is_refused_in_one_line(written, data, rule):
    assert rule in fails(legacy_poll("publish", "orders", data, DATABASE_URL=written), 1)


def test_a_subject_that_is_no_text_is_refused_in_one_line():
    done = legacy_poll("token", "--channel", "orders", "--subject", "\udcff", SECRET_KEY=KEY)
    assert "UTF-8" in fails(done, 1)


def test_a_closed_standard_input_is_told(written):
    command = [sys.executable, "-m", "legacy_poll", "publish", "--lines", "--database-url", written]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh"] + command,
        capture_output=True,
        text=True,
        cwd=str(ROOT),
        timeout=60,
    )
    assert done.returncode == 2 and "it is closed" in done.stderr and "Traceback" not in done.stderr


def test_who_interrupts_it_is_told_how_many_were_published(written):
    command = [sys.executable, "-m", "legacy_poll", "publish", "--lines", "--database-url", written]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # Whoever runs the tests in the background may have it ignored.
    wanted = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    with subprocess.Popen(command, cwd=str(ROOT), text=True, **pipes, **wanted) as process:
        process.stdin.write("1\n" * 600)
        process.stdin.flush()
        engine = create_engine(written)
        with engine.connect() as connection:
            count = text("SELECT count(*) FROM legacy_poll_event")
            until(lambda: connection.execute(count).scalar() == 500, what="the first batch is committed")
        engine.dispose()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert "500 events were published" in err and "Traceback" not in err


def runs(done):
    assert done.returncode == 0 and "Traceback" not in done.stderr, done


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_without_a_right_it_ends_with_1_and_one_line_that_names_the_table(database_url, terminal):
    runs(legacy_poll("upgrade", DATABASE_URL=database_url))
    runs(legacy_poll("publish", "orders", "1", DATABASE_URL=database_url))
    suffix = database_url.rpartition("/")[2]
    reader, writer, nobody = ("{}_{}".format(kind, suffix) for kind in ("reader", "writer", "nobody"))
    tables = (
        "legacy_poll_outbox, legacy_poll_event, legacy_poll_log, legacy_poll_set_aside, legacy_poll_setting"
    )
    terminal(
        "CREATE ROLE {r} LOGIN; CREATE ROLE {w} LOGIN; CREATE ROLE {n} LOGIN;"
        "GRANT SELECT ON {t}, legacy_poll_version TO {r}; GRANT INSERT ON legacy_poll_outbox TO {w};".format(
            r=reader, w=writer, n=nobody, t=tables
        )
    )

    def as_role(role, *command):
        return legacy_poll(*command, DATABASE_URL=database_url.replace("postgres@", role + "@"))

    try:
        # Who may not INSERT: reads, and is told about the rest.
        for command in (["status"], ["status", "--json"], ["set-aside", "list"]):
            runs(as_role(reader, *command))
        for command in (["publish", "orders", "3"], ["new-log", "--yes"]):
            assert "permission denied for table legacy_poll_" in fails(as_role(reader, *command), 1)
        # Who may not SELECT: publishes, and is told about the rest.
        runs(as_role(writer, "publish", "orders", "3"))
        for role in (writer, nobody):
            for command in (
                ["status"],
                ["tail", "--since", "1h", "--count", "1"],
                ["new-log", "--yes"],
                ["trim"],
            ):
                assert "permission denied for table legacy_poll_" in fails(as_role(role, *command), 1)
        assert "permission denied for table legacy_poll_outbox" in fails(
            as_role(nobody, "publish", "a", "1"), 1
        )
        count = "SELECT (SELECT count(*) FROM legacy_poll_outbox) + (SELECT count(*) FROM legacy_poll_event);"
        assert int(terminal(count)) == 2
    finally:
        for role in (reader, writer, nobody):
            terminal("DROP OWNED BY {0}; DROP ROLE {0};".format(role))


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_sqlite_file_that_may_not_be_written_can_be_read(database_url, terminal):
    """By a URL that says so, since root may write every file."""
    runs(legacy_poll("upgrade", DATABASE_URL=database_url))
    terminal.publish("1", "2")
    url = "sqlite:///file:{}?mode=ro&uri=true".format(terminal.path)
    status = legacy_poll("status", "--json", DATABASE_URL=url)
    runs(status)
    assert json.loads(status.stdout)["head"] == 2
    for command in (["publish", "orders", "3"], ["new-log", "--yes"]):
        assert "readonly" in fails(legacy_poll(*command, DATABASE_URL=url), 1)
    runs(legacy_poll("upgrade", DATABASE_URL=url))  # nothing to do
    assert json.loads(legacy_poll("status", "--json", DATABASE_URL=url).stdout)["head"] == 2


@pytest.mark.parametrize("database_url", DEFAULTS, indirect=True)
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
    # Not its last character: not all bits of that one say anything.
    says, dot, signature = token.rpartition(".")
    forged = says + dot + ("B" if signature[0] == "A" else "A") + signature[1:]
    for wrong in [None, foreign, forged]:
        answer = get(gunicorn, stream(token=wrong))
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql", "mariadb", "mysql"], indirect=True)
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
    assert [each.hear().data for each in held + [client]] == [[2]] * (len(held) + 1)
