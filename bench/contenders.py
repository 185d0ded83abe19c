"""Whom ``python -m bench peers`` compares: ours in both lanes, plain and behind proxies, and what others use instead.

A contender is a context manager that yields a Stage, or raises Unavailable with the reason. All of them answer each of
N polls with the same JSON, and none writes an access log.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import glob
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request

import pytest

from bench.client import CHANNEL
from bench.cpus import on, processors
from bench.stage import ROOT, Child, Gunicorn, descriptor_limit, place
from tests.proxies import HAProxy, Nginx
from tests.servers import Server, find_program

#: Nothing ends during a run but by its event.
SECONDS = 600
SETTINGS = {"HOLD_SECONDS": SECONDS, "MAX_HELD": 20000, "REAUTHORIZE_SECONDS": 3600}
#: For the connections whose clients wait with their next poll until all have their answer.
OPTIONS = ["--keep-alive", "120", "--backlog", "4096", "--graceful-timeout", "2"]
TEXT = "x" * 80
#: What a process needs beside the connections.
OTHER_DESCRIPTORS = 200
#: As `go get` wants it.
GOLONGPOLL = "github.com/jcuga/golongpoll@v1.3.0"


def nginx_connections():
    """More than there are descriptors: with less than a sixteenth left, nginx cuts those that have not asked yet."""
    return 2 * descriptor_limit()


class Unavailable(Exception):
    """A contender that this machine cannot run; says why."""


class Stage:
    """A contender that runs.

    Attributes:
        dialect, target, cursor, ports: For the load generator; the first port is asked.
        roots: Pids whose processes, with those below them, count.
        publish: Publishes message *number*; returns nothing.
        published: Waits for the publisher's own answer; when it began.
    """

    def __init__(self, dialect, target, ports, roots, publisher, cursor="-"):
        self.dialect = dialect
        self.target = target
        self.ports = ports
        self.roots = roots
        self.publish = publisher.publish
        self.published = publisher.published
        self.cursor = cursor


class Commits:
    """poll.publish() in a script beside the workers; begins with its commit."""

    def __init__(self, child):
        self._child = child

    def publish(self, number, channel=CHANNEL):
        self._child.say([channel, number])

    def published(self):
        return self._child.hear()[0]


class Posts:
    """A POST on a kept connection; begins when it is sent."""

    def __init__(self, port, path):
        self._head = "POST %s HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n" % path
        self._port = port
        self._socket = None
        self._began = None

    def publish(self, number):
        body = json.dumps({"n": number, "text": TEXT})
        request = "%sContent-Length: %d\r\n\r\n%s" % (self._head, len(body), body)
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), SECONDS)
        self._began = time.monotonic()
        self._socket.sendall(request.encode("ascii"))

    def published(self):
        answer = self._socket.recv(65536)
        if not answer.startswith(b"HTTP/1.1 20"):
            raise AssertionError("publishing was answered %r" % answer)
        return self._began

    def close(self):
        if self._socket is not None:
            self._socket.close()


@contextlib.contextmanager
def ours(lane, front="none", workers=1, held=0, query="channel=" + CHANNEL):
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(place("sqlite"))
        settings = dict(SETTINGS, **({} if lane == "parked" else {"PARK": 0}))
        server = stack.enter_context(Gunicorn(database, workers, settings=settings, options=OPTIONS))
        with on(processors()[0]):
            child = stack.enter_context(Child("committer", database.url))
        child.hear()
        ports, roots, prefix = [server.port], [server.pid], ""
        if front != "none":
            proxy = started(stack, FRONTS[front], server.port, held)
            ports, roots, prefix = [proxy.port, server.port], [server.pid, proxy.pid], "/poll"
        with urllib.request.urlopen(
            "http://127.0.0.1:%d/cursor?channel=%s" % (server.port, CHANNEL)
        ) as answer:
            cursor = json.load(answer)["cursor"]
        target = "%s/stream?%s" % (prefix, query)
        yield Stage("ours", target, ports, roots, Commits(child), cursor)


def started(stack, server_class, *arguments):
    """A server of tests.servers that ends with *stack*."""
    try:
        server = server_class(*arguments)
    except pytest.skip.Exception as reason:
        raise Unavailable(str(reason)) from None
    stack.callback(server.destroy)
    try:
        server.start()
    except AssertionError as reason:
        raise Unavailable(str(reason)) from None
    return server


class FrontNginx(Nginx):
    """One nginx worker with the file that we recommend, and as many kept connections to the server as polls."""

    def __init__(self, backend_port, held):
        changes = [
            ("keepalive 64;", "keepalive %d; keepalive_requests 1000000;" % held),
            ("keepalive_timeout 1s;", "keepalive_timeout 60s;"),
            ("proxy_read_timeout 60s;", "proxy_read_timeout %ds;" % SECONDS),
        ]
        super().__init__(backend_port, changes, http="keepalive_requests 1000000; keepalive_timeout 600s;")

    def wrapped(self):
        text = (
            super()
            .wrapped()
            .replace("worker_connections 512;", "worker_connections %d;" % nginx_connections())
        )
        text = text.replace("error_log stderr info;", "error_log stderr error;")
        return text.replace("access_log %s/access;" % self.directory, "access_log off;")


class FrontHAProxy(HAProxy):
    """HAProxy with one thread and the file that we recommend, and all connections to the server kept."""

    def __init__(self, backend_port, held):
        self._held = held
        changes = [
            ("timeout client 60s", "timeout client %ds" % SECONDS),
            ("timeout server 60s", "timeout server %ds" % SECONDS),
            ("pool-purge-delay 1s", "pool-purge-delay 60s"),
        ]
        super().__init__(backend_port, changes)

    def wrapped(self):
        limits = "maxconn %d\n    nbthread 1" % (self._held + 20)
        limits += "\n    tune.pool-low-fd-ratio 100\n    tune.pool-high-fd-ratio 100"
        text = super().wrapped().replace("maxconn 500", limits)
        return text.replace("    log stderr format raw local0\n", "").replace("    log global\n", "")


FRONTS = {"nginx": FrontNginx, "haproxy": FrontHAProxy}


class Nchan(Server):
    """nginx with nchan: long polls at /sub, POST /pub.

    It begins as root, where we are root: nchan makes Debian's own folder for bodies, whatever the configuration says.
    """

    name = "nchan"

    def __init__(self, workers):
        self._program = find_program("nginx", folders=["/usr/sbin"])
        found = glob.glob("/usr/lib*/nginx/modules/ngx_nchan_module.so")
        if not found:
            raise Unavailable("not installed: nchan (Debian: libnginx-mod-nchan)")
        self._module = found[0]
        self._workers = workers
        super().__init__()

    def _configuration(self):
        folders = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "".join("%s_temp_path %s/%s; " % (each, self.directory, each) for each in folders)
        return """
load_module %s;
pid %s/pid;
worker_processes %d;
error_log stderr error;
events { worker_connections %d; }
http {
    %s
    access_log off;
    keepalive_timeout 600s;
    keepalive_requests 1000000;
    server {
        listen 127.0.0.1:%d backlog=4096;
        location = /sub {
            nchan_subscriber longpoll;
            nchan_channel_id $arg_id;
            nchan_subscriber_first_message newest;
        }
        location = /pub {
            nchan_publisher http;
            nchan_channel_id $arg_id;
            nchan_message_buffer_length 100;
            nchan_message_timeout 1h;
        }
    }
}
""" % (self._module, self.directory, self._workers, nginx_connections(), temporary, self.port)

    def _make_command(self):
        return ["sh", "-c", 'printf "%s" "$1" > "$0"', self.directory + "/nginx.conf", self._configuration()]

    def _serve_command(self):
        return [
            self._program,
            "-p",
            self.directory,
            "-c",
            self.directory + "/nginx.conf",
            "-g",
            "daemon off;",
        ]

    def answers(self):
        return accepts(self.port)


def accepts(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 10) as asked:
        asked.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return asked.recv(1) != b""
    return False


@contextlib.contextmanager
def nchan(workers, held):
    with contextlib.ExitStack() as stack:
        server = started(stack, Nchan, workers)
        posts = Posts(server.port, "/pub?id=" + CHANNEL)
        stack.callback(posts.close)
        yield Stage("nchan", "/sub?id=" + CHANNEL, [server.port], [server.pid], posts)


@contextlib.contextmanager
def application(dialect, target, module):
    """A peer that is a WSGI application, on the same server as ours."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(
            Gunicorn(None, 1, app="bench.%s:app" % module, options=OPTIONS, ready="/")
        )
        posts = Posts(server.port, "/publish")
        stack.callback(posts.close)
        yield Stage(dialect, target, [server.port], [server.pid], posts)


def flask_view(workers, held):
    return application("view", "/wait", "peers_flask_view")


def socketio(workers, held):
    if importlib.util.find_spec("flask_socketio") is None:
        raise Unavailable("not installed: Flask-SocketIO (pip install '.[bench]')")
    return application("socketio", "/socket.io/?EIO=4&transport=polling", "peers_socketio")


class GoLongpoll(Server):
    """A Go program with golongpoll in it, on one thread at a time."""

    name = "golongpoll"

    def __init__(self):
        self._program = golongpoll_program()
        super().__init__()

    def _make_command(self):
        return ["true"]

    def _environ(self):
        return dict(super()._environ(), GOMAXPROCS="1")

    def _serve_command(self):
        return [self._program, str(self.port)]

    def answers(self):
        return accepts(self.port)


@functools.lru_cache(maxsize=None)
def golongpoll_program():
    """The path of the program, built once a run; Go gets the module as it is set up to."""
    compiler = shutil.which("go")
    if compiler is None:
        raise Unavailable("not installed: go (Debian: golang-go)")
    folder = tempfile.mkdtemp(prefix="legacy_poll-golongpoll-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    shutil.copy(os.path.join(ROOT, "bench", "golongpoll", "main.go"), folder)
    for command in (["mod", "init", "peers"], ["get", GOLONGPOLL], ["build", "-o", "peers", "."]):
        done = subprocess.run([compiler] + command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise Unavailable("not installed: %s (%s)" % (GOLONGPOLL, done.stderr.strip()[-200:]))
    return os.path.join(folder, "peers")


@contextlib.contextmanager
def golongpoll(workers, held):
    with contextlib.ExitStack() as stack:
        server = started(stack, GoLongpoll)
        posts = Posts(server.port, "/publish")
        stack.callback(posts.close)
        target = "/events?timeout=%d&category=%s" % (SECONDS, CHANNEL)
        yield Stage("golongpoll", target, [server.port], [server.pid], posts)


PEERS = {"nchan": nchan, "view": flask_view, "socketio": socketio, "golongpoll": golongpoll}
LANES = ("parked", "standard")


def contender(name, front, workers, held):
    """The context manager of one; only ours has something in front, or a *front* that is not ``none``."""
    if name in LANES:
        return ours(name, front, workers, held)
    return PEERS[name](workers, held)
