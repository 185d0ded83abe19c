"""What docs/lanes.md says of each server: how a hang-up, a stop and a heartbeat go there, and who holds nothing.

Polls are held for ten minutes here, so that whatever ends within a test's bound was ended, and did not run out.
"""

from __future__ import annotations

import http.client
import json
import signal

import pytest
import sqlalchemy

from tests.process import other_servers
from tests.process.conftest import everyone, hold_everywhere
from tests.process.other_servers import ALONE, GTHREAD, HOLDING
from tests.process.polls import Client, get, head, publish
from tests.process.test_endings import SECONDS, SETTINGS, House, close, half_close, read, reset
from tests.waiting import until

on_holding = pytest.mark.parametrize("name", HOLDING)
on_stopping = pytest.mark.parametrize("name", [GTHREAD, "gevent.pywsgi"])
NOT_HELD = "polls are not held, since"


@pytest.fixture
def house(tmp_path):
    made = []

    def make(name, *, environ=(), **settings):
        url = "sqlite:///{}".format(tmp_path / "log.db")
        server = other_servers.make(name, dict(SETTINGS, DATABASE_URL=url, **settings), environ=dict(environ))
        made.append(server)
        return House(server.start())

    yield make
    try:
        for server in made:
            assert "Traceback" not in server.log, server.log
    finally:
        for server in made:
            print(server.log)
            server.destroy()


@on_holding
def test_a_client_that_hangs_up_frees_its_place(house, name):
    house = house(name)
    cursor = house.cursor()
    stays = house.poll(cursor)
    for hang_up in (close, half_close, reset):
        goes = house.poll(cursor)
        house.until_held(2)
        hang_up(goes)
        house.until_held(1)
    assert json.loads(house.ask("GET", "/status")[2])["answers"] == {"hangup": 3}
    house.publish("for who stayed")
    assert json.loads(read(stays)[2])["events"][0]["data"] == "for who stayed"


@on_holding
def test_a_heartbeat_is_white_space_before_the_body(house, name):
    house = house(name)
    poll = house.poll(house.cursor(), query="&heartbeat=1000")
    answer = http.client.HTTPResponse(poll)
    answer.begin()
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.read(1) == b" "
    house.publish("behind it")
    assert json.loads(answer.read())["events"][0]["data"] == "behind it"


@on_stopping
def test_a_server_that_stops_answers_its_held_polls_at_once_and_ends(house, name):
    house = house(name)
    cursor = house.cursor()
    polls = [house.poll(cursor) for _ in range(20)]
    house.until_held(20)
    house.gunicorn.signal(signal.SIGTERM)
    for poll in polls:
        status, headers, body = read(poll)
        assert (status, headers["Legacy-Poll-Cursor"], body) == (204, cursor, b"")
        poll.close()
    until(lambda: not house.gunicorn.running, SECONDS, "the server has ended")
    assert house.gunicorn.exit_code == 0


def test_flasks_own_server_cuts_its_held_polls_and_the_next_one_has_their_events(house):
    first = house("flask run")
    poll = first.poll(first.cursor())
    cursor = first.cursor()
    first.until_held(1)
    first.gunicorn.signal(signal.SIGTERM)
    until(lambda: not first.gunicorn.running, SECONDS, "the server has ended")
    assert poll.recv(1) == b""
    second = house("flask run")
    second.publish("after it")
    assert json.loads(read(second.poll(cursor))[2])["events"][0]["data"] == "after it"


# Those that answer one request at a time.


@pytest.mark.parametrize("name", ALONE)
def test_where_one_poll_would_keep_everybody_out_none_is_held_and_the_log_says_so_once(house, name):
    house = house(name)
    cursor = house.cursor()
    for _ in range(3):
        status, headers, body = read(house.poll(cursor))
        assert (status, json.loads(body)["error"]["code"]) == (503, "cannot_hold")
        assert 1 <= int(headers["Retry-After"]) <= 60
        # A loop that takes the cursor of whatever comes would ask again at once.
        assert "Legacy-Poll-Cursor" not in headers
    assert house.ask("GET", "/health/live")[0] == 200
    # What is there is answered, and who does not want to wait is answered as anywhere.
    assert read(house.poll(cursor, query="&timeout=0"))[0] == 204
    house.publish("late")

    def came():
        status, _, body = read(house.poll(cursor))
        return status == 200 and json.loads(body)["events"][0]["data"] == "late"

    until(came, SECONDS, "the event comes")
    assert house.gunicorn.logged(NOT_HELD) == 1
    assert json.loads(house.ask("GET", "/status")[2])["worker"]["held"] == 0


def test_gunicorns_sync_worker_says_so_before_anybody_polls(house):
    assert house("gunicorn -k sync").gunicorn.logged(NOT_HELD) == 1


@pytest.mark.parametrize("name", HOLDING + ["gunicorn -k gevent"])
def test_no_such_warning_where_polls_are_held(house, name):
    house = house(name)
    poll = house.poll(house.cursor())
    house.until_held(1)
    assert house.gunicorn.logged(NOT_HELD) == 0
    poll.close()


def test_gthread_leaves_a_thread_to_the_application_and_says_so_once(house):
    house = house("gunicorn -k gthread --threads 4")
    cursor = house.cursor()
    polls = [house.poll(cursor) for _ in range(3)]
    house.until_held(3)
    for _ in range(3):
        status, headers, body = read(house.poll(cursor))
        assert (status, json.loads(body)["error"]["code"]) == (503, "server_full")
    assert house.ask("GET", "/health/live")[0] == 200
    assert "legacy_poll_held_limit{" in house.ask("GET", "/metrics")[2].decode()
    assert house.gunicorn.logged("held polls take threads here: at most 3 at once") == 1
    house.publish("for all")
    assert [json.loads(read(poll)[2])["events"][0]["data"] for poll in polls] == ["for all"] * 3


# gunicorn's --preload: everything is imported, and the application made, before the fork and before gevent patches.


@pytest.mark.parametrize("kind", ["gevent", "gthread"])
@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_preload_starts_nothing_before_the_fork(serve, terminal, kind, database_url):
    gunicorn = serve(workers=2, options=["-k", kind, "--threads", "24", "--preload"])
    start = head(gunicorn)
    held = everyone(hold_everywhere(gunicorn, 4, cursor=start))
    terminal.publish('"by INSERT"')
    assert [client.hear().data for client in held] == [["by INSERT"]] * 8
    assert publish(gunicorn, {"channel": "orders", "data": "by POST"}).status == 201
    assert [client.ask().hear().data for client in held] == [["by POST"]] * 8
    assert gunicorn.logged(NOT_HELD) == 0
    held = everyone(hold_everywhere(gunicorn, 4, cursor=head(gunicorn)))
    gunicorn.signal(signal.SIGTERM)
    assert [client.hear().status for client in held] == [204] * 8
    until(lambda: not gunicorn.running, SECONDS, "gunicorn has ended")


# Flask's debugger keeps what a request had, for its console.


def test_flasks_debugger_keeps_no_connection_of_the_application_during_a_hold(tmp_path):
    """The application has one connection: whoever kept it would make the others fail."""
    if sqlalchemy.__version__.startswith("1."):
        pytest.skip("with SQLAlchemy 1.4 a file of SQLite has no pool that could be small")
    url = "sqlite:///{}".format(tmp_path / "shop.db")
    environ = {"SHOP_DATABASE_URL": url, "FLASK_APP": "tests.process.shop:app", "FLASK_DEBUG": "1"}
    server = other_servers.make("flask run --no-reload", {}, environ=environ, ready="/poll/health/ready")
    try:
        server.start()
        assert "Debug mode: on" in server.log
        clients = [Client(server, cursor=head(server, "/poll"), prefix="/poll").ask() for _ in range(4)]
        until(lambda: get(server, "/poll/status").json["worker"]["held"] == 4, SECONDS, "all are held")
        for _ in range(3):
            assert get(server, "/orders/count").json == {"count": 0, "in_use": 1}
        assert get(server, "/pool").json == {"in_use": 0}
        assert all(client.held for client in clients)
    finally:
        server.destroy()


RELOADED = """
from flask import Flask
from legacy_poll import LegacyPoll

app = Flask(__name__)
app.config["LEGACY_POLL_DATABASE_URL"] = {url!r}
app.config["LEGACY_POLL_PUBLISH_TOKEN"] = "publish-token"
poll = LegacyPoll(app, public=True)
app.register_blueprint(poll.blueprint)
poll.upgrade()
"""


def test_flasks_reloader_does_not_wait_for_held_polls_and_nothing_is_lost(tmp_path):
    code = tmp_path / "reloaded.py"
    code.write_text(RELOADED.format(url="sqlite:///{}".format(tmp_path / "log.db")))
    environ = {"FLASK_APP": str(code), "FLASK_DEBUG": "1"}
    server = other_servers.make("flask run", {}, environ=environ)
    try:
        server.start()
        client = Client(server, cursor=head(server)).ask()
        until(lambda: get(server, "/status").json["worker"]["held"] == 1, SECONDS, "it is held")
        old = get(server, "/status").json["worker"]["pid"]
        code.write_text(code.read_text() + "\n# changed\n")
        until(lambda: client.request.answered, SECONDS, "the poll is cut")
        client.drop()
        server.wait_until_ready()
        assert get(server, "/status").json["worker"]["pid"] != old
        assert publish(server, {"channel": "orders", "data": "after it"}).status == 201
        assert client.hear_until(1) == ["after it"]
        assert "Traceback" not in server.log, server.log
    finally:
        server.destroy()


def test_the_servers_own_configuration_wins_over_ours(start_gunicorn):
    """LEGACY_POLL_MAX_HELD below what the threads allow is kept, and needs no warning."""
    options = ["-k", "gthread", "--threads", "8"]
    gunicorn = start_gunicorn({"MAX_HELD": 1}, workers=1, options=options).start()
    cursor = head(gunicorn)
    held = Client(gunicorn, cursor=cursor).ask()
    until(lambda: get(gunicorn, "/status").json["worker"]["held"] == 1, SECONDS, "one is held")
    assert Client(gunicorn, cursor=cursor).ask().hear().code == "server_full"
    assert gunicorn.logged("held polls take threads here") == 0
    assert held.held
