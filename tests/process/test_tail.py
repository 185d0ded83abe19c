"""`legacy-poll tail`: a live client in the terminal, which outlives what it listens to."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading

import pytest

from tests.gunicorn import ROOT
from tests.process.commands import legacy_poll
from tests.process.polls import get
from tests.servers import free_port
from tests.waiting import until


class Tail:
    """A running `legacy-poll tail`; its lines as they come."""

    def __init__(self, arguments, tmp_path, **settings):
        environ = {name: value for name, value in os.environ.items() if not name.startswith("LEGACY_POLL_")}
        environ.update({"LEGACY_POLL_" + name: str(value) for name, value in settings.items()})
        environ.update(PYTHONPATH=str(ROOT), PYTHONUNBUFFERED="1")
        self._paths = [tmp_path / "out", tmp_path / "err"]
        with open(self._paths[0], "wb") as out, open(self._paths[1], "wb") as err:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "legacy_poll", "tail"] + arguments,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    @property
    def out(self):
        return self._paths[0].read_text().splitlines()

    @property
    def err(self):
        return self._paths[1].read_text().splitlines()

    def until_out(self, count):
        until(lambda: len(self.out) >= count or not self.running, 30, "{} lines".format(count))
        assert len(self.out) == count, (self.out, self.err)
        return self.out

    @property
    def running(self):
        return self._child.poll() is None

    def end(self):
        self._child.kill()
        self._child.wait()


@pytest.fixture
def tail(tmp_path):
    started = []

    def start(*arguments, **settings):
        started.append(Tail(list(arguments), tmp_path, **settings))
        return started[-1]

    yield start
    for each in started:
        each.end()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_over_http_it_outlives_its_server(serve, terminal, tail):
    gunicorn = serve(workers=1)
    watched = tail(gunicorn.url, "--channel", "orders", "--json")
    until(lambda: get(gunicorn, "/status").json["worker"]["held"] == 1, 20)
    terminal.publish('{"id": 7}')
    assert json.loads(watched.until_out(1)[0])["data"] == {"id": 7}
    gunicorn.destroy()
    until(lambda: len(watched.err) == 1, 30)
    assert "does not answer, trying again: " in watched.err[0]
    terminal.publish("8", "9")
    gunicorn.directory.mkdir()
    gunicorn.start()
    assert [json.loads(line)["data"] for line in watched.until_out(3)] == [{"id": 7}, 8, 9]
    assert watched.err[1:] == [gunicorn.url + " answers again"]
    # What it was told to go on from is gone: it says so, and goes on from the end.
    until(lambda: get(gunicorn, "/status").json["worker"]["held"] == 1, 20)
    assert legacy_poll("new-log", "--yes", DATABASE_URL=terminal.url).returncode == 0
    until(lambda: len(watched.err) == 3, 30)
    assert watched.err[2].endswith("; going on from the end of the log")
    until(lambda: get(gunicorn, "/status").json["worker"]["held"] == 1, 20)
    terminal.publish("10")
    assert json.loads(watched.until_out(4)[3])["data"] == 10


@pytest.mark.parametrize("database_url", ["postgresql", "mariadb", "mysql"], indirect=True)
def test_from_the_log_it_outlives_its_database(serve, terminal, tail, database_server):
    gunicorn = serve(workers=1)
    terminal.publish("0")
    watched = tail("--since", "1h", DATABASE_URL=terminal.url)
    assert watched.until_out(1)[0].endswith(" orders message 0")
    database_server.kill()
    until(lambda: len(watched.err) == 1, 30)
    database_server.start()
    gunicorn.wait_until_ready()
    terminal.publish("1")
    assert watched.until_out(2)[1].endswith(" orders message 1")
    assert watched.err[1:] == ["the database answers again"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_it_starts_where_it_is_told_and_stops_after_so_many(serve, terminal, database_url):
    serve(workers=1)
    terminal.publish("1", "2", "3")
    done = legacy_poll("tail", "--since", "2h", "--count", "2", "--json", DATABASE_URL=database_url)
    assert [json.loads(line)["data"] for line in done.stdout.splitlines()] == [1, 2]
    assert (done.returncode, done.stderr) == (0, "")


def test_who_never_answered_is_given_up_at_once():
    done = legacy_poll("tail", "http://127.0.0.1:{}".format(free_port()))
    assert (done.returncode, done.stdout) == (1, "")
    assert "does not answer" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("url", ["http://[", "http://", "ftp://127.0.0.1", "127.0.0.1:8000"])
def test_what_is_no_url_of_ours_is_a_wrong_command_line(url):
    done = legacy_poll("tail", url)
    assert (done.returncode, done.stdout) == (2, "")
    assert "starts with http://" in done.stderr and "Traceback" not in done.stderr


class Wrong(http.server.BaseHTTPRequestHandler):
    """Not ours: a page for whatever is asked."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<html>please log in</html>")

    def log_message(self, *arguments):
        pass


def test_a_page_that_is_not_ours_is_told_in_one_line():
    with http.server.HTTPServer(("127.0.0.1", 0), Wrong) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = legacy_poll("tail", "http://127.0.0.1:{}".format(server.server_port))
        server.shutdown()
    assert (done.returncode, done.stdout) == (1, "")
    assert "does not answer" in done.stderr and "Traceback" not in done.stderr
