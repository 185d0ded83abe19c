"""What people and clocks do to a log while real workers serve it: deleted rows, erased events, a log cut back."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import create_engine

from legacy_poll.tokens import Tokens
from tests.process.commands import legacy_poll
from tests.process.conftest import NO_HINTS, each_default_place, everyone, hold_everywhere
from tests.process.kept import metrics
from tests.process.polls import Client, get, head, position, publish, stream
from tests.waiting import until

KEY = "a key of more than 16 characters"
MISSING = "are missing from the log"


def events(count, **more):
    return [dict({"channel": "orders", "data": number}, **more) for number in range(1, count + 1)]


def everywhere(gunicorn, path):
    """The answer of each worker."""
    answers = []
    for worker in gunicorn.workers:
        with gunicorn.only(worker):
            answers.append(get(gunicorn, path))
    return answers


def all_see(gunicorn, path, wanted):
    def they_do():
        return all(each.json is not None and each.data == wanted for each in everywhere(gunicorn, path))

    until(they_do, 30, "each worker has {}".format(wanted))


def reads(gunicorn):
    return int(metrics(gunicorn)["catchup_reads_total"])


@each_default_place
def test_a_hole_among_recent_events_costs_nothing_once_it_was_passed(serve, terminal, lane):
    first = serve(NO_HINTS, workers=1)
    assert publish(first, events(200)).status == 201
    until(lambda: position(head(first)) == 200, 30, "all have a position")
    terminal("DELETE FROM legacy_poll_event WHERE position = 101;")
    first.destroy()

    gunicorn = serve(NO_HINTS, workers=1)
    start = head(gunicorn)
    assert position(start) == 200
    # In memory to its end, from behind the hole on: a poll from there asks no database.
    until(lambda: metrics(gunicorn)["position"] == "200", 30, "the worker has read its log")
    followers = [Client(gunicorn, cursor=start) for _ in range(3)]
    for client in followers:
        client.ask()
    before = reads(gunicorn)
    for number in range(201, 207):
        terminal.publish(str(number))
        for client in followers:
            assert client.hear_until(number - 200)[-1] == number
            client.ask()
    assert reads(gunicorn) == before
    assert gunicorn.logged(MISSING) == 1
    # Who is before it is told, and goes on from the head.
    old = get(gunicorn, stream(cursor=None, limit=50, timeout=0)).cursor
    answer = get(gunicorn, stream(cursor=old, timeout=0))
    assert (answer.status, answer.code) == (410, "cursor_expired")
    assert position(answer.cursor) == 206


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql", "mariadb", "mysql"], indirect=True)
def test_polls_of_a_log_that_was_cut_back_read_it_once_and_wait_for_the_look(serve, terminal):
    """The publisher's own look is 20 s away; until then each of these polls had read hundreds of times a second."""
    gunicorn = serve(dict(NO_HINTS, POLL_INTERVAL_SECONDS=20, TAIL_EVENTS=5), workers=1)
    assert publish(gunicorn, events(50)).status == 201
    until(lambda: metrics(gunicorn)["position"] == "50", 30, "the worker has read its log")
    terminal("DELETE FROM legacy_poll_event WHERE position > 20; UPDATE legacy_poll_log SET head = 20;")
    start = head(gunicorn)
    assert position(start) == 20
    before = reads(gunicorn)
    held = [Client(gunicorn, cursor=start).ask() for _ in range(3)]
    # They made it look, and it says so.
    until(lambda: gunicorn.logged("the log is not the one that was there"), 15, "the worker has noticed")
    assert all(client.held for client in held)
    assert reads(gunicorn) - before <= 12
    assert publish(gunicorn, {"channel": "orders", "data": "after"}).status == 201
    assert [client.hear_until(1) for client in held] == [["after"]] * 3


@each_default_place
def test_erased_events_leave_the_memory_of_every_worker(serve, database_url):
    gunicorn = serve(NO_HINTS)
    start = head(gunicorn)
    rows = (
        events(5) + events(5, channel="user:7") + [{"channel": "orders", "data": "a secret", "id": "leaked"}]
    )
    assert publish(gunicorn, rows).status == 201
    path = stream("orders", cursor=start, timeout=0) + "&channel=user:7"
    wanted = [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, "a secret"]
    all_see(gunicorn, path, wanted)
    behind = Client(gunicorn, cursor=get(gunicorn, path).cursor)
    held = everyone(hold_everywhere(gunicorn, 2, cursor=behind.cursor))

    done = legacy_poll(
        "erase", "--channel", "user:7", "--id", "leaked", "--yes", "--json", DATABASE_URL=database_url
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"events": 6, "waiting": 0, "set_aside": 0}
    all_see(gunicorn, path, [1, 2, 3, 4, 5])
    # Nobody's poll ended for it, and cursors are good.
    assert all(client.held for client in held)
    assert publish(gunicorn, {"channel": "orders", "data": "next"}).status == 201
    assert [client.hear_until(1) for client in held] == [["next"]] * len(held)
    assert behind.hear_until(1) == ["next"]
    assert gunicorn.logged(MISSING) == 0


@pytest.mark.parametrize("database_url", ["mariadb", "mysql"], indirect=True)
def test_a_report_that_copies_the_log_stops_nobodys_events(serve, terminal, database_url):
    """INSERT ... SELECT at REPEATABLE READ, open for as long as it likes."""
    gunicorn = serve(NO_HINTS)
    start = head(gunicorn)
    held = everyone(hold_everywhere(gunicorn, 1, cursor=start))
    assert publish(gunicorn, events(50)).status == 201
    for client in held:
        assert client.hear_until(50)[-1] == 50
        client.ask()
    engine = create_engine(database_url, future=True)
    try:
        with engine.connect() as report:
            report.exec_driver_sql("CREATE TABLE archive LIKE legacy_poll_event")
            report.exec_driver_sql("INSERT INTO archive SELECT * FROM legacy_poll_event")
            for number in range(51, 81):
                terminal.publish(str(number))
                for client in held:
                    assert client.hear_until(number)[-1] == number
                    client.ask()
            assert Client(gunicorn, cursor=start).hear_until(80) == list(range(1, 81))
            assert terminal("SELECT count(*) FROM legacy_poll_apart;").strip() == "30"
            until(lambda: gunicorn.logged("events go to legacy_poll_apart meanwhile"), 30, "it is said")
            report.rollback()
        left = "SELECT count(*) FROM legacy_poll_apart;"
        until(lambda: terminal(left).strip() == "0", 30, "they are brought back")
        assert publish(gunicorn, {"channel": "orders", "data": 81}).status == 201
        assert [client.hear_until(81)[-1] for client in held] == [81] * len(held)
        assert Client(gunicorn, cursor=start).hear_until(81) == list(range(1, 82))
        assert gunicorn.logged(MISSING) == 0
    finally:
        engine.dispose()


@pytest.mark.parametrize("hours", [-1, 24])
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_revocation_counts_whatever_the_databases_clock_says(serve, terminal, hours):
    """A database whose clock is off by hours, as a function of its own says."""
    terminal(
        "CREATE FUNCTION clock_timestamp() RETURNS timestamptz LANGUAGE sql AS"
        " $$ SELECT pg_catalog.clock_timestamp() + interval '{} hours' $$;".format(hours)
        + "DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || quote_ident(current_database())"
        " || ' SET search_path = public, pg_catalog'; END $$;"
    )
    gunicorn = serve(dict(NO_HINTS, PUBLIC=None, SECRET_KEY=KEY))
    tokens = Tokens(KEY)
    before = tokens.make(["orders"], expires_seconds=3600, subject="u7")

    def answers(token):
        path = "/cursor?channel=orders&token=" + token
        return {answer.status for answer in everywhere(gunicorn, path)}

    assert answers(before) == {200}
    held = everyone(hold_everywhere(gunicorn, 1, token=before))
    terminal.publish('{"subject": "u7"}', channel="$revoke")
    assert [client.hear().status for client in held] == [401] * len(held)
    after = tokens.make(["orders"], expires_seconds=3600, subject="u7")
    assert answers(before) == {401}
    assert answers(after) == {200}
    # A worker that starts afterwards knows as much.
    late = serve(dict(NO_HINTS, PUBLIC=None, SECRET_KEY=KEY), workers=1)
    assert get(late, "/cursor?channel=orders&token=" + before).status == 401
    assert get(late, "/cursor?channel=orders&token=" + after).status == 200


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql", "mariadb", "mysql"], indirect=True)
def test_a_log_without_its_row_serves_again_after_the_command_that_is_named(serve, terminal, database_url):
    gunicorn = serve(NO_HINTS)
    start = head(gunicorn)
    assert publish(gunicorn, events(3)).status == 201
    until(lambda: position(head(gunicorn)) == position(start) + 3, 30, "all have a position")
    terminal("DELETE FROM legacy_poll_log;")
    until(
        lambda: gunicorn.logged("legacy_poll_log is empty") >= len(gunicorn.workers),
        30,
        "each worker says so",
    )
    answer = get(gunicorn, "/cursor")
    assert (answer.status, answer.code) == (503, "schema_missing")
    terminal.publish('"meanwhile"')
    assert legacy_poll("new-log", "--yes", DATABASE_URL=database_url).returncode == 1
    done = legacy_poll("repair", DATABASE_URL=database_url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Repaired: legacy_poll_log is empty")
    until(lambda: get(gunicorn, "/health/ready").status == 200, 30, "it serves again")
    assert Client(gunicorn).hear_until(4) == [1, 2, 3, "meanwhile"]
    # As soon as each worker has looked.
    until(lambda: all(each.status == 410 for each in everywhere(gunicorn, stream(cursor=start, timeout=0))))
    assert get(gunicorn, stream(cursor=start, timeout=0)).code == "cursor_unknown"
    assert legacy_poll("repair", DATABASE_URL=database_url).stdout == "There is nothing to repair.\n"


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_a_log_that_is_to_be_repaired_is_neither_renamed_nor_trimmed_and_status_says_so(
    serve, terminal, database_url
):
    """`new-log` had said that all is well now, and `trim` had gone by a beginning that cannot be."""
    gunicorn = serve(NO_HINTS, workers=1)
    assert publish(gunicorn, events(5)).status == 201
    until(lambda: position(head(gunicorn)) == 5, 30, "all have a position")
    gunicorn.destroy()

    def run(*command):
        return legacy_poll(*command, DATABASE_URL=database_url, RETENTION_SECONDS=1)

    def status():
        done = run("status", "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    whole = status()
    assert whole["wrong"] == []
    terminal("UPDATE legacy_poll_log SET head = 3;")
    assert terminal("SELECT count(*) FROM legacy_poll_log;").strip() == "1"
    advice = "there are events up to 5: one of the two tables was loaded or restored without the other; run: "
    assert [advice + "legacy-poll repair" in fault for fault in status()["wrong"]] == [True]
    assert "WRONG         legacy_poll_log says" in run("status").stdout
    for command in (["new-log", "--yes"], ["trim"], ["erase", "--id", "x", "--yes"]):
        done = run(*command)
        assert (done.returncode, done.stdout) == (1, "")
        assert advice + "legacy-poll repair" in done.stderr
    assert status()["log_id"] == whole["log_id"]
    assert terminal("SELECT count(*) FROM legacy_poll_event;").strip() == "5"
    # In the same way where nothing can be counted.
    terminal("UPDATE legacy_poll_log SET oldest = 5000;")
    assert "begins at 5000; run: legacy-poll repair" in status()["wrong"][0]
    assert run("status").stdout.startswith("WRONG         legacy_poll_log says")
    assert run("repair").returncode == 0
    assert status()["wrong"] == []
    assert run("new-log", "--yes").returncode == 0
    assert status()["log_id"] != whole["log_id"]


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_tail_since_a_time_prints_what_there_is_and_from_a_cursor_says_what_is_missing(
    serve, terminal, database_url
):
    """`tail --since` had begun behind the last hole: what came before it was not printed."""
    gunicorn = serve(NO_HINTS, workers=1)
    assert publish(gunicorn, events(20)).status == 201
    until(lambda: position(head(gunicorn)) == 20, 30, "all have a position")
    terminal("DELETE FROM legacy_poll_event WHERE position IN (1, 7, 8, 15);")
    wanted = [number for number in range(1, 21) if number not in (1, 7, 8, 15)]

    def tail(*options):
        count = str(len(wanted))
        done = legacy_poll("tail", "--json", "--count", count, *options, DATABASE_URL=database_url)
        assert done.returncode == 0, done.stderr
        return [json.loads(line)["data"] for line in done.stdout.splitlines()], done.stderr

    assert tail("--since", "1h") == (wanted, "")
    assert tail("--since", "1h", "--channel", "orders") == (wanted, "")
    # Who follows is told, once, and is given what there is.
    before = get(gunicorn, stream(cursor=None, limit=1, timeout=0))
    wanted = wanted[1:]
    seen, told = tail("--cursor", before.cursor)
    assert (before.data, seen) == ([2], wanted)
    assert told.count("missing from the log; going on with what there is") == len(told.splitlines()) == 1
