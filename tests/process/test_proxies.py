"""Held polls through real proxies: with the configuration that docs/deploy/ gives, and with the usual wrong ones.

Polls are held for ten minutes here unless a test says less. Where a limit of a proxy is the matter, the wrong
configuration says 2 seconds, and the right one is shown by a poll that is held for longer than that.
"""

from __future__ import annotations

import contextlib
import glob
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import zlib

import pytest

from legacy_poll.config import Settings
from tests.gunicorn import AT_ONCE, ROOT, Gunicorn
from tests.process.conftest import SETTINGS, check_log
from tests.process.polls import Client, connect, get, head, publish, stream
from tests.proxies import DEPLOY, PROXIES, Apache, HAProxy, Nginx, Varnish, curl
from tests.servers import find_program
from tests.waiting import until

SECONDS = 30
PREFIX = "/poll"
# Longer than the wrong limits.
LONGER_MS = 3000
FOREIGN = "1-00000000-1-00000000"
GZIP = "gzip on; gzip_types application/json; gzip_min_length 1; gzip_proxied any;"

each_proxy = pytest.mark.parametrize("proxy", PROXIES, indirect=True, ids=lambda kind: kind.name)


def serve(folder, **settings):
    url = "sqlite:///{}".format(folder / "log.db")
    workers = settings.pop("workers", 2)
    settings = dict(SETTINGS, TRUSTED_PROXIES=1, DATABASE_URL=url, **settings)
    return Gunicorn(settings, workers=workers, options=["--access-logfile", "-"])


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """What is behind every proxy here: two workers on SQLite."""
    gunicorn = serve(tmp_path_factory.mktemp("app"))
    try:
        yield gunicorn.start()
        check_log(gunicorn)
    finally:
        gunicorn.destroy()


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """One worker with room for two polls, and for one of each client."""
    gunicorn = serve(tmp_path_factory.mktemp("narrow"), workers=1, MAX_HELD=2, MAX_HELD_PER_CLIENT=1)
    try:
        yield gunicorn.start()
    finally:
        gunicorn.destroy()


@pytest.fixture(scope="module")
def proxy(request, app):
    """A proxy with the recommended configuration, shared by the tests of this file."""
    started = request.param(app.port)
    try:
        started.start()
        yield started
    finally:
        started.destroy()


@pytest.fixture
def put():
    """Starts a proxy for one test: put(Nginx, app, changes)."""
    started = []

    def start(kind, gunicorn, *arguments, **options):
        started.append(kind(gunicorn.port, *arguments, **options))
        started[-1].start()
        return started[-1]

    yield start
    for each in started:
        with open(each.log_path, errors="replace") as log:
            print(each.name, log.read()[-3000:])  # pytest shows it when the test failed
        each.destroy()


def client_of(proxy, app, channel, **parameters):
    """A client behind *proxy* that waits for what comes from now on."""
    return Client(proxy, channel=channel, cursor=head(app), prefix=PREFIX, **parameters)


def held(gunicorn):
    """How many polls all workers hold together."""
    found = {}
    while len(found) < len(gunicorn.workers):
        with contextlib.ExitStack() as opened:
            asked = [opened.enter_context(contextlib.closing(connect(gunicorn))) for _ in range(AT_ONCE)]
            for connection in asked:
                connection.request("GET", "/status")
            for connection in asked:
                worker = json.loads(connection.getresponse().read())["worker"]
                found[worker["pid"]] = worker["held"]
    return sum(found.values())


@contextlib.contextmanager
def until_held(gunicorn, count=1):
    """Waits until what was asked inside is held, and returns that."""
    before = held(gunicorn)
    yield
    until(lambda: held(gunicorn) == before + count, SECONDS, "{} more polls are held".format(count))


def tell(app, channel, data):
    assert publish(app, {"channel": channel, "data": data}).status == 201


class Wire:
    """A request on a plain socket, for those who look at bytes as they come."""

    def __init__(self, port, path, *headers, source="127.0.0.1"):
        self.socket = socket.create_connection(("127.0.0.1", port), SECONDS, (source, 0))
        lines = ["GET {} HTTP/1.1".format(path), "Host: shop.test"] + list(headers) + ["", ""]
        self.socket.sendall("\r\n".join(lines).encode("ascii"))

    def answer(self):
        answer = http.client.HTTPResponse(self.socket)
        answer.begin()
        return answer

    def close(self):
        self.socket.close()


# The recommended configuration


@each_proxy
def test_an_event_ends_a_held_poll_at_once(proxy, app):
    client = client_of(proxy, app, "at-once")
    with until_held(app):
        client.ask()
    tell(app, "at-once", 1)
    # Held for ten minutes: whatever comes within the bound came by the event.
    answer = client.hear()
    assert (answer.status, answer.data) == (200, [1])


def test_a_hold_beyond_the_wrong_limits_is_not_cut(put, app):
    clients = [client_of(put(kind, app), app, "quiet", timeout=LONGER_MS).ask() for kind in PROXIES]
    for client in clients:
        assert client.hear().status == 204
    tell(app, "quiet", 1)
    for client in clients:
        assert client.hear_until(1) == [1]


def test_every_limit_in_the_files_is_above_the_hold():
    limits = {
        "nginx.conf": [r"proxy_read_timeout (\d+)s;"],
        "haproxy.cfg": [r"timeout server (\d+)s", r"timeout client (\d+)s"],
        "apache.conf": [r"\btimeout=(\d+)\b"],
        "varnish.vcl": [r"first_byte_timeout = (\d+)s", r"between_bytes_timeout = (\d+)s"],
    }
    for name, patterns in limits.items():
        text = (DEPLOY / name).read_text(encoding="utf-8")
        for pattern in patterns:
            [seconds] = re.findall(pattern, text)
            assert int(seconds) >= 2 * Settings().hold_seconds, (name, pattern)


@each_proxy
def test_white_space_comes_while_the_poll_is_held(proxy, app):
    client = client_of(proxy, app, "beats", heartbeat=1000)
    wire = Wire(proxy.port, client.path)
    answer = wire.answer()
    assert (answer.status, answer.read(1)) == (200, b" ")
    # Only now is there anything to tell.
    tell(app, "beats", 1)
    assert [event["data"] for event in json.loads(answer.read())["events"]] == [1]
    wire.close()


@each_proxy
def test_answers_pass_as_they_are(proxy, app):
    for number in range(3):
        tell(app, "many", number)
    for path, status in (
        (stream("many"), 200),
        (stream("many", limit=1), 206),
        (stream("nothing", timeout=0), 204),
        (stream("nothing", timeout=0, empty=200), 200),
        (stream("many", cursor=FOREIGN), 410),
        (stream("many", limit="x"), 400),
        ("/nothing", 404),
    ):
        direct, through = get(app, path), get(proxy, PREFIX + path)
        assert direct.status == through.status == status, (direct, through)
        assert through.text == direct.text
        for name in (
            "Legacy-Poll-Cursor",
            "Cache-Control",
            "Content-Type",
            "X-Content-Type-Options",
            "Retry-After",
        ):
            assert through.headers[name] == direct.headers[name], name
        assert through.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("kind", PROXIES, ids=lambda kind: kind.name)
def test_refusals_pass_and_a_client_is_who_the_proxy_says_it_is(put, narrow, kind):
    proxy = put(kind, narrow)
    path = PREFIX + stream("a", cursor=head(narrow))
    with until_held(narrow):
        first = Wire(proxy.port, path, source="127.0.0.2")
    # What a client says of itself does not make it another.
    forged = Wire(proxy.port, path, "X-Forwarded-For: 192.0.2.1", source="127.0.0.2")
    answer = forged.answer()
    assert (answer.status, json.loads(answer.read())["error"]["code"]) == (429, "too_many_polls")
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    with until_held(narrow):
        second = Wire(proxy.port, path, source="127.0.0.3")
    third = Wire(proxy.port, path, source="127.0.0.4")
    answer = third.answer()
    assert (answer.status, json.loads(answer.read())["error"]["code"]) == (503, "server_full")
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    tell(narrow, "a", 1)
    for wire in (first, second):
        assert wire.answer().status == 200
    for wire in (first, forged, second, third):
        wire.close()


@each_proxy
def test_the_connection_of_a_client_serves_poll_after_poll(proxy, app):
    connection = connect(proxy)
    ours = connection.sock.getsockname()
    client = client_of(proxy, app, "one-connection")
    for number in range(3):
        with until_held(app):
            client.ask(connection)
        tell(app, "one-connection", number)
        assert client.hear().data == [number]
        assert connection.sock.getsockname() == ours
    connection.close()


@pytest.mark.parametrize("proxy", [Nginx, HAProxy], indirect=True, ids=lambda kind: kind.name)
def test_a_client_that_hangs_up_frees_its_place_at_once(proxy, app):
    for parameters in ({}, {"heartbeat": 60000}):
        path = client_of(proxy, app, "hangs-up", **parameters).path
        with until_held(app):
            wire = Wire(proxy.port, path)
        with until_held(app, -1):
            wire.close()


@pytest.mark.parametrize("proxy", [Apache, Varnish], indirect=True, ids=lambda kind: kind.name)
def test_where_the_proxy_does_not_notice_a_hang_up_heartbeats_do(proxy, app):
    path = client_of(proxy, app, "hangs-up", heartbeat=1000).path
    with until_held(app):
        wire = Wire(proxy.port, path)
    # Nobody's time is up for ten minutes.
    with until_held(app, -1):
        wire.close()


def test_varnish_notices_a_hang_up_at_once_where_it_pipes(put, app):
    proxy = put(Varnish, app, [("return (pass);", "return (pipe);")])
    client = client_of(proxy, app, "piped")
    with until_held(app):
        wire = Wire(proxy.port, client.path)
    with until_held(app, -1):
        wire.close()
    client.ask()
    tell(app, "piped", 1)
    answer = client.hear()
    assert answer.data == [1]
    # A connection that is piped never serves a second request, which would pass by the rules of the VCL.
    wire = Wire(proxy.port, PREFIX + "/health/live")
    assert wire.answer().headers["Connection"] == "close"
    wire.close()


class Follower(threading.Thread):
    """Follows a channel over one connection that is kept, as a browser does, until it has seen *count* events."""

    def __init__(self, proxy, cursor, channel, count):
        super().__init__(daemon=True)
        self.name = proxy.name
        self.refused = []
        self.broken = []
        self._client = Client(proxy, channel=channel, cursor=cursor, prefix=PREFIX)
        self._connection = connect(proxy)
        self._count = count

    def run(self):
        while len(self._client.seen) < self._count:
            try:
                answer = self._client.ask(self._connection).hear()
            except (OSError, http.client.HTTPException) as error:
                self.broken.append(repr(error))
                self._connection.close()
            except ValueError as error:  # a body that is not JSON: a page of the proxy's own
                self.broken.append(repr(error))
            else:
                if answer.status >= 400:
                    self.refused.append((answer.status, answer.code))
        self._connection.close()

    @property
    def seen(self):
        return self._client.seen


def test_a_reload_of_gunicorn_loses_nothing_and_shows_no_client_a_502(put, app):
    proxies = [put(kind, app) for kind in PROXIES]
    count = 200
    followers = [Follower(proxy, head(app), "reload", count) for proxy in proxies for _ in range(3)]
    for follower in followers:
        follower.start()
    old = set(app.workers)
    for number in range(count):
        if number == 20:
            app.signal(signal.SIGHUP)
        if number == count - 1:
            # The last is published when nobody of before the reload is left.
            until(
                lambda: len(app.workers) == 2 and not old & set(app.workers),
                SECONDS,
                "the old workers are gone",
            )
        assert _until_published(app, number)
    for follower in followers:
        follower.join(SECONDS)
        assert follower.seen == list(range(count)), follower.name
        assert follower.broken == [], follower.name
        # A worker that is about to stop says so, in our own words.
        assert set(follower.refused) <= {(503, "draining")}, follower.name
    app.wait_until_ready()


def _until_published(app, number):
    """POST is not repeated by anybody on the way; who publishes does, with the id that makes it one event."""
    event = {"channel": "reload", "data": number, "id": "reload-{}".format(number)}

    def published():
        with contextlib.suppress(OSError, http.client.HTTPException):
            return publish(app, event).status in (200, 201)
        return False

    return until(published, SECONDS, "the event is published")


def test_nginx_that_ends_a_connection_after_some_requests_costs_nothing(put, app):
    proxy = put(Nginx, app, http="keepalive_requests 2;")
    client = client_of(proxy, app, "few-requests")
    connection = connect(proxy)
    ports = set()
    for number in range(5):
        # http.client opens another connection when the answer said that this one ends.
        if connection.sock is None:
            connection.connect()
        ports.add(connection.sock.getsockname()[1])
        with until_held(app):
            client.ask(connection)
        tell(app, "few-requests", number)
        assert client.hear().data == [number]
    assert len(ports) == 3
    connection.close()


def test_nginx_speaks_http_2_to_the_client(put, app):
    proxy = put(Nginx, app, tls=True)
    client = client_of(proxy, app, "http-2")
    url = "https://127.0.0.1:{}{}".format(proxy.tls_port, client.path)
    command = [find_program("curl"), "-s", "-k", "--http2", "--max-time", str(SECONDS)]
    command += ["-w", "\n%{http_version} %{http_code}", url]
    with until_held(app):
        asked = subprocess.Popen(command, stdout=subprocess.PIPE, universal_newlines=True)
    tell(app, "http-2", 1)
    body, _, said = asked.communicate(timeout=SECONDS)[0].partition("\n")
    assert [event["data"] for event in json.loads(body)["events"]] == [1]
    assert said == "2 200"
    said = curl(
        "-k",
        "--http2",
        "-o",
        "/dev/null",
        "-w",
        "%{http_version} %{http_code}",
        url.replace(client.path, PREFIX + stream("http-2", cursor=FOREIGN)),
    )
    assert said == "2 410"


def test_nginx_that_compresses_passes_white_space_on_all_the_same(put, app):
    proxy = put(Nginx, app, http=GZIP)
    client = client_of(proxy, app, "gzip", heartbeat=1000)
    wire = Wire(proxy.port, client.path, "Accept-Encoding: gzip")
    answer = wire.answer()
    assert answer.headers["Content-Encoding"] == "gzip"
    unpack = zlib.decompressobj(31)
    beat = b""
    while not beat:
        beat = unpack.decompress(answer.read(1))
    assert beat == b" "
    tell(app, "gzip", 1)
    assert [event["data"] for event in json.loads(unpack.decompress(answer.read()))["events"]] == [1]
    wire.close()


def test_haproxy_drains_a_server_without_ending_what_it_holds(put, app):
    line = "    server app 127.0.0.1:8000 pool-purge-delay 1s\n"
    other = "    server other 127.0.0.1:{} pool-purge-delay 1s\n".format(app.port)
    proxy = put(HAProxy, app, [(line, line + other)])
    assert proxy.tell("set server legacy_poll/other state drain").strip() == ""
    cursor = head(app)
    before, after = (Client(proxy, channel="drain", cursor=cursor, prefix=PREFIX) for _ in range(2))
    with until_held(app):
        before.ask()
    proxy.tell("set server legacy_poll/app state drain")
    proxy.tell("set server legacy_poll/other state ready")
    with until_held(app):
        after.ask()
    assert _sessions(proxy) == {"app": 1, "other": 1}
    tell(app, "drain", 1)
    assert before.hear().data == after.hear().data == [1]
    until(lambda: _sessions(proxy) == {"app": 0, "other": 0}, SECONDS, "both are idle")
    # From now on all goes to the other.
    assert before.ask().held
    until(lambda: _sessions(proxy) == {"app": 0, "other": 1}, SECONDS, "the other has the next poll")
    before.drop()


def _sessions(proxy):
    """Server -> sessions that it serves now."""
    rows = [row.split(",") for row in proxy.tell("show stat").splitlines()]
    return {row[1]: int(row[4]) for row in rows if row[0] == "legacy_poll" and row[1] != "BACKEND"}


# The usual wrong ones


WRONG_LIMITS = {
    "nginx": (Nginx, [("proxy_read_timeout 60s;", "proxy_read_timeout 2s;")], 504),
    "HAProxy": (HAProxy, [("timeout server 60s", "timeout server 2s")], 504),
    "Apache": (Apache, [(" timeout=60 ", " "), ("ProxyRequests Off", "ProxyTimeout 2")], 502),
    "Varnish": (Varnish, [(".first_byte_timeout = 60s;", ".first_byte_timeout = 2s;")], 503),
}


@pytest.mark.parametrize("name", list(WRONG_LIMITS))
def test_a_limit_below_the_hold_cuts_the_poll_and_the_old_cursor_loses_nothing(put, app, name):
    kind, changes, status = WRONG_LIMITS[name]
    proxy = put(kind, app, changes)
    client = client_of(proxy, app, "cut")
    answer = Wire(proxy.port, client.path).answer()
    # A page of the proxy's, not an answer of ours.
    assert answer.status == status
    assert answer.headers["Legacy-Poll-Cursor"] is None and b"<html" in answer.read().lower()
    tell(app, "cut", 1)
    assert client.ask().hear().data == [1]


def test_white_space_keeps_a_poll_alive_beyond_a_limit_that_is_too_short(put, app):
    between = [(".between_bytes_timeout = 60s;", ".between_bytes_timeout = 2s;")]
    wires = []
    for kind, changes, _ in WRONG_LIMITS.values():
        proxy = put(kind, app, changes + (between if kind is Varnish else []))
        client = client_of(proxy, app, "kept", heartbeat=1000, timeout=LONGER_MS + 500, empty=200)
        wires.append(Wire(proxy.port, client.path))
    for wire in wires:
        answer = wire.answer()
        assert answer.status == 200 and json.loads(answer.read())["events"] == []
        wire.close()


# nginx speaks HTTP/1.0 to the server unless it is told, and then it cannot tell one piece of an answer from the next.
# Over HTTP/1.1 it passes the pieces on as they come, buffering or not, unless it compresses.
HOLDS_BACK = {
    "nginx as it is by itself": (
        Nginx,
        [("proxy_http_version 1.1;", ""), ("proxy_buffering off;", "")],
    ),
    "nginx that buffers and compresses": (
        Nginx,
        [("proxy_buffering off;", "proxy_buffering on; " + GZIP)],
    ),
    "Varnish that does not stream": (
        Varnish,
        [("vcl 4.1;", "vcl 4.1;\nsub vcl_backend_response { set beresp.do_stream = false; }")],
    ),
}


@pytest.mark.parametrize("name", list(HOLDS_BACK))
def test_what_buffers_holds_white_space_back_and_loses_nothing(put, app, name):
    kind, changes = HOLDS_BACK[name]
    proxy = put(kind, app, changes)
    client = client_of(proxy, app, name.replace(" ", "-"), heartbeat=1000, timeout=LONGER_MS)
    wire = Wire(proxy.port, client.path, "Accept-Encoding: gzip")
    answer = wire.answer()
    unpack = zlib.decompressobj(31).decompress if answer.headers["Content-Encoding"] else bytes
    # The beats that should have come one by one come in one piece.
    assert unpack(answer.read1(65536)).startswith(b"  ")
    wire.close()
    client = client_of(proxy, app, name.replace(" ", "-"))
    with until_held(app):
        client.ask()
    # Without beats nothing is lost or late.
    tell(app, name.replace(" ", "-"), 2)
    assert client.hear().data == [2]


def test_varnish_that_caches_answers_from_memory_until_it_forgets(put, app):
    keep = "sub vcl_backend_response { set beresp.ttl = 2s; set beresp.grace = 0s; return (deliver); }"
    proxy = put(Varnish, app, [("vcl 4.1;", "vcl 4.1;\n" + keep), ("return (pass);", "return (hash);")])
    client = client_of(proxy, app, "cached", timeout=0, empty=200)
    assert client.ask().hear().data == []
    tell(app, "cached", 1)
    # The same URL, and so the answer of before: at once, and without the event. A client would spin.
    stale = client.ask().hear()
    assert stale.data == [] and int(stale.headers["Age"]) >= 0
    # Nothing is lost: the cursor stays, and once Varnish has forgotten, or is asked by another URL, the event comes.
    other = Client(proxy, channel="cached", cursor=client.cursor, prefix=PREFIX, _=1)
    assert other.ask().hear().data == [1]

    def comes():
        return client.ask().hear().data

    assert until(comes, SECONDS, "the event comes") == [1]


def test_a_proxy_dies_with_the_process_that_started_it():
    code = "\n".join(
        [
            "from tests.proxies import PROXIES",
            "started = [kind(9) for kind in PROXIES]",
            "for proxy in started: proxy.start()",
            "print(*[proxy.directory for proxy in started], flush=True)",
            "input()",
        ]
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=str(ROOT),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        universal_newlines=True,
    )
    with owner:
        folders = owner.stdout.readline().split()
        assert len(folders) == len(PROXIES) and all(_processes_in(folder) for folder in folders)
        owner.kill()
    gone = "the proxies and their directories are gone"
    until(lambda: not any(_processes_in(each) or os.path.exists(each) for each in folders), SECONDS, gone)


def _processes_in(folder):
    found = []
    for entry in glob.glob("/proc/[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if (os.readlink(entry) + "/").startswith(folder + "/"):
                found.append(entry)
    return found
