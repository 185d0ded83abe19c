"""`legacy-poll doctor` through every proxy of test_proxies.py, well and badly configured, and at what is no server.

A run takes as long as its holds, so those through proxies run side by side.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from legacy_poll.doctor import FINE, WRONG, Examination, Target
from tests.gunicorn import ROOT
from tests.process.commands import legacy_poll
from tests.process.conftest import check_log
from tests.process.test_proxies import HOLDS_BACK, WRONG_LIMITS, serve
from tests.proxies import PROXIES, Apache, HAProxy, Nginx, Varnish

HOLD_SECONDS = 3.0
FORGETS_HEADERS = "sub vcl_deliver { unset resp.http.Legacy-Poll-Cursor; unset resp.http.Cache-Control; }"
CACHES = "sub vcl_backend_response { set beresp.ttl = 20s; set beresp.grace = 0s; return (deliver); }"
HIDES = "sub vcl_deliver { unset resp.http.X-Varnish; unset resp.http.Age; }"


class Balancer(HAProxy):
    """A balancer that only sees TCP, and ends what is silent for two seconds."""

    name = "a TCP balancer"

    def configuration(self):
        lines = ["listen balancer", "    mode tcp", "    bind 127.0.0.1:{}".format(self.port)]
        lines += ["    timeout {} 2s".format(which) for which in ("connect", "client", "server")]
        return "\n".join(lines + ["    server app 127.0.0.1:{}".format(self.backend_port), ""])

    @property
    def url(self):
        return "http://127.0.0.1:{}".format(self.port)


# What is wrong -> the proxy, its changes, what the finding is about, and what its advice says.
CASES = {
    "nginx, limit": (*WRONG_LIMITS["nginx"][:2], "hold", "nginx: proxy_read_timeout 60s;"),
    "HAProxy, limit": (*WRONG_LIMITS["HAProxy"][:2], "hold", "HAProxy: timeout server 60s"),
    "Apache, limit": (
        *WRONG_LIMITS["Apache"][:2],
        "hold",
        "Apache: timeout=60 in ProxyPass, or ProxyTimeout 60",
    ),
    "Varnish, limit": (*WRONG_LIMITS["Varnish"][:2], "hold", "Varnish: .first_byte_timeout = 60s;"),
    "nginx as it is": (
        *HOLDS_BACK["nginx as it is by itself"],
        "heartbeats",
        "proxy_http_version 1.1; and proxy_buf",
    ),
    "nginx, gzip": (*HOLDS_BACK["nginx that buffers and compresses"], "heartbeats", "proxy_buffering off;"),
    "Varnish, no stream": (*HOLDS_BACK["Varnish that does not stream"], "heartbeats", "beresp.do_stream"),
    "HAProxy, gzip": (
        HAProxy,
        [
            (
                "    option forwardfor\n",
                "    option forwardfor\n    compression algo gzip\n    compression type application/json\n",
            )
        ],
        "heartbeats",
        "HAProxy: no `compression`",
    ),
    "Varnish, cache": (
        Varnish,
        [("vcl 4.1;", "vcl 4.1;\n" + CACHES), ("return (pass);", "return (hash);")],
        "cache",
        "Varnish: return (pass); in vcl_recv",
    ),
    # Known by the times alone.
    "a cache that hides": (
        Varnish,
        [("vcl 4.1;", "vcl 4.1;\n" + CACHES + HIDES), ("return (pass);", "return (hash);")],
        "cache",
        "return (pass); in vcl_recv",
    ),
    "Varnish, headers": (
        Varnish,
        [("vcl 4.1;", "vcl 4.1;\n" + FORGETS_HEADERS)],
        "headers",
        "Legacy-Poll-Cursor",
    ),
    "nginx, error pages": (
        Nginx,
        [("proxy_cache off;", "proxy_intercept_errors on; error_page 410 /gone.html;")],
        "error answers",
        "nginx: proxy_intercept_errors off;",
    ),
    "Apache, error pages": (
        Apache,
        [("ProxyErrorOverride Off", "ProxyErrorOverride On")],
        "error answers",
        "Apache: ProxyErrorOverride Off",
    ),
    "a TCP balancer": (Balancer, [], "hold", "in whatever stands in between."),
}


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    gunicorn = serve(tmp_path_factory.mktemp("app"))
    try:
        yield gunicorn.start()
        check_log(gunicorn)
    finally:
        gunicorn.destroy()


@pytest.fixture(scope="module")
def runs(app):
    """Name -> what came of it, of everything at once: a report, or the command as it ended."""
    proxies = {kind.name: kind(app.port) for kind in PROXIES}
    proxies.update({name: kind(app.port, changes) for name, (kind, changes, _, _) in CASES.items()})
    proxies["tls"] = Nginx(app.port, tls=True)
    # Two in a row: nginx leaves the prefix for HAProxy.
    keep = [("proxy_pass http://legacy_poll/;", "proxy_pass http://legacy_poll;")]
    proxies["two"] = Nginx(proxies["HAProxy, limit"].port, keep)
    redirect = (301, {"Location": app.url + "/cursor?channel=x"}, b"")
    with contextlib.ExitStack() as opened:
        for proxy in proxies.values():
            opened.callback(proxy.destroy)
        for proxy in proxies.values():
            proxy.start()
        urls = {name: proxy.url for name, proxy in proxies.items()}
        urls["no proxy"] = app.url
        urls["relay"] = local(opened.enter_context(relay(app.port, seconds=2.0)))
        urls["redirect"] = local(opened.enter_context(pages(lambda path: redirect))) + "/old"
        jobs = {name: (examine, url) for name, url in urls.items()}
        jobs["tls, insecure"] = (examine, proxies["tls"].tls_url, True)
        bad, good = urls["nginx, limit"], urls["nginx"]
        jobs["text"] = (doctor, bad, "--hold-ms", "3000")
        jobs["json"] = (doctor, bad + "/", "--hold-ms", "3000", "--json")
        jobs["fine"] = (doctor, good, "--hold-ms", "1000", "--channel", "quiet")
        with ThreadPoolExecutor(len(jobs)) as pool:
            started = {name: pool.submit(*job) for name, job in jobs.items()}
            yield dict({name: job.result() for name, job in started.items()}, urls=urls)


def local(port):
    return "http://127.0.0.1:{}".format(port)


def examine(url, insecure=False, **options):
    options.setdefault("hold_seconds", HOLD_SECONDS)
    return Examination(Target.parse(url, insecure=insecure), **options).run()


def wrong(report):
    """About -> finding, of all that is wrong."""
    return {finding.about: finding for finding in report.findings if finding.level == WRONG}


def finding(report, about):
    [found] = [each for each in report.findings if each.about == about]
    return found


def doctor(*arguments):
    return legacy_poll("doctor", *arguments)


@pytest.mark.parametrize("name", [kind.name for kind in PROXIES])
def test_a_recommended_configuration_is_fine_and_its_program_is_named(runs, name):
    report = runs[name]
    assert report.fine and wrong(report) == {}
    assert report.programs == (name,)
    for about in ("answers", "headers", "error answers", "cache", "heartbeats", "hold", "clock"):
        assert finding(report, about).level == FINE, finding(report, about)
    assert finding(report, "keep-alive").level == FINE
    assert finding(report, "hold").what.endswith("its connection goes on")


def test_without_a_proxy_it_says_so(runs):
    report = runs["no proxy"]
    assert report.fine and report.programs == ()
    assert finding(report, "in between").what.startswith("nothing: gunicorn itself")


@pytest.mark.parametrize("name", list(CASES))
def test_a_wrong_configuration_is_named_with_the_directive_that_mends_it(runs, name):
    _, _, about, advice = CASES[name]
    report = runs[name]
    found = wrong(report)
    # That, and nothing else.
    assert list(found) == [about], found
    assert advice in found[about].advice
    assert not report.fine


@pytest.mark.parametrize(
    "name", ["nginx, limit", "HAProxy, limit", "Apache, limit", "Varnish, limit", "a TCP balancer"]
)
def test_a_limit_is_told_with_its_length_and_what_white_space_does_about_it(runs, name):
    report = runs[name]
    assert re.match(r"a silent poll was cut after 2\.\d s: ", wrong(report)["hold"].what)
    beyond = finding(report, "beyond the limit")
    assert beyond.level != WRONG and "heartbeat=1000" in beyond.advice


def test_a_limit_on_the_whole_request_is_one_that_white_space_does_not_help(runs):
    # The proxies' limits start anew with each byte; those of some appliances do not.
    report = runs["relay"]
    assert "closed without an answer" in wrong(report)["hold"].what
    assert "LEGACY_POLL_HOLD_SECONDS below 2." in wrong(report)["beyond the limit"].advice


def test_of_two_proxies_the_one_that_cut_the_poll_is_named(runs):
    report = runs["two"]
    assert report.programs[0] == "nginx"
    assert wrong(report)["hold"].what.endswith(", by HAProxy")
    assert wrong(report)["hold"].advice.startswith("HAProxy: timeout server 60s")


def test_the_command_prints_what_to_set_and_ends_with_1_or_0(runs):
    text, raw, fine = runs["text"], runs["json"], runs["fine"]
    assert (text.returncode, raw.returncode, fine.returncode) == (1, 1, 0), (text, raw, fine)
    assert "\nWRONG hold " in text.stdout and "-> nginx: proxy_read_timeout 60s;" in text.stdout
    assert text.stdout.endswith("1 thing is wrong.\n") and fine.stdout.endswith("All is well.\n")
    # What it waits for goes to the other stream.
    assert "... holding a silent poll for 3 s" in text.stderr and "..." not in text.stdout
    said = json.loads(raw.stdout)
    assert (said["fine"], said["programs"], said["url"]) == (False, ["nginx"], runs["urls"]["nginx, limit"])
    [cut] = [each for each in said["findings"] if each["level"] == "wrong"]
    assert cut["about"] == "hold" and "proxy_read_timeout" in cut["advice"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["shop.example/poll"],
        ["ftp://shop.example/poll"],
        ["http://"],
        ["http://[::1/poll"],
        ["http://shop.example:99999/"],
        ["http://shop.example/a b"],
        ["http://shop.example/poll?channel=orders"],
        [],
        ["http://127.0.0.1:1", "--hold-ms", "soon"],
        ["http://127.0.0.1:1", "--hold-ms", "10"],
        ["http://127.0.0.1:1", "--quick", "--hold-ms", "5000"],
    ],
    ids=" ".join,
)
def test_a_command_line_that_is_wrong_ends_with_2(arguments):
    done = doctor(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert "Error: " in done.stderr and "Traceback" not in done.stderr


def test_where_nobody_listens_it_says_so_and_ends_with_1():
    with socket.socket() as taken:
        # Bound, and not listening.
        taken.bind(("127.0.0.1", 0))
        done = doctor("http://127.0.0.1:{}/poll".format(taken.getsockname()[1]), "--quick")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search(r"WRONG connection +nobody answers at 127\.0\.0\.1:\d+", done.stdout), done.stdout


def test_a_server_that_never_answers_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        report = examine("http://127.0.0.1:{}/poll".format(silent.getsockname()[1]), answer_seconds=0.5)
    assert list(wrong(report)) == ["answers"] and "no byte came" in wrong(report)["answers"].what


def test_tls_that_is_none_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = "https://127.0.0.1:{}/poll".format(silent.getsockname()[1])
        report = examine(url, answer_seconds=0.5)
    assert list(wrong(report)) == ["connection"] and "no TLS with" in wrong(report)["connection"].what


def test_a_bad_certificate_is_named_and_insecure_examines_the_rest(app, runs):
    proxy = Nginx(app.port, tls=True)
    proxy.start()
    try:
        strict = examine(proxy.tls_url)
    finally:
        proxy.destroy()
    assert list(wrong(strict)) == ["certificate"]
    assert "self" in wrong(strict)["certificate"].what and "--insecure" in wrong(strict)["certificate"].advice
    loose = runs["tls, insecure"]
    assert loose.fine and finding(loose, "protocol").what.startswith("HTTP/2 over TLS")


def test_a_redirect_is_followed_and_told(app, runs):
    report = runs["redirect"]
    assert report.fine and report.url == app.url
    assert app.url in finding(report, "redirect").what


def test_a_circle_of_redirects_ends():
    with pages(
        lambda path: (302, {"Location": "/b/cursor" if path.startswith("/a/") else "/a/cursor"}, b"")
    ) as port:
        report = examine(local(port) + "/a")
    [circle] = [each for each in report.findings if each.level == WRONG]
    assert circle.about == "redirect" and "circle" in circle.what


def test_redirects_without_end_end_too():
    with pages(lambda path: (302, {"Location": "/a" + path.partition("?")[0]}, b"")) as port:
        report = examine(local(port) + "/a")
    assert "circle" in [each for each in report.findings if each.level == WRONG][0].what


@pytest.mark.parametrize(
    "answer, seen",
    [
        (
            (200, {"Content-Type": "text/html"}, b"<html>Please log in to the hotel's network</html>"),
            "200 with an HTML page",
        ),
        ((404, {"Content-Type": "text/html"}, b"<html>nothing</html>"), "404 with an HTML page"),
        ((200, {"Content-Type": "application/json"}, b"[1, 2]"), "200 with a body of application/json"),
        ((200, {"Content-Type": "application/json"}, b'{"hello": 1}'), "200 with JSON that is not ours"),
        ((200, {}, b""), "200 with an empty body"),
        ((302, {"Location": "http://[half"}, b""), "leads nowhere"),
    ],
    ids=["a login page", "another site", "a list", "another API", "nothing", "a broken redirect"],
)
def test_what_is_not_the_server_is_recognised(answer, seen):
    with pages(lambda path: answer) as port:
        report = examine(local(port) + "/poll")
    [bad] = [each for each in report.findings if each.level == WRONG]
    assert seen in bad.what and report.findings[-1] is bad


def test_what_is_not_http_is_recognised():
    with socket.create_server(("127.0.0.1", 0)) as mail:

        def greet():
            with contextlib.suppress(OSError):
                connection = mail.accept()[0]
                connection.recv(65536)
                connection.sendall(b"220 mail.example ESMTP\r\n")
                connection.close()

        threading.Thread(target=greet, daemon=True).start()
        report = examine("http://127.0.0.1:{}/poll".format(mail.getsockname()[1]))
    assert "not HTTP" in wrong(report)["answers"].what


def test_a_clock_that_is_wrong_is_told():
    cursor = "1-00000000-0-00000000"
    headers = {"Legacy-Poll-Cursor": cursor, "Cache-Control": "no-store", "Content-Type": "application/json"}
    headers["Date"] = "Sat, 31 Jan 2015 09:30:00 GMT"
    with pages(lambda path: (200, headers, json.dumps({"cursor": cursor, "events": []}).encode())) as port:
        report = examine(local(port) + "/poll")
    assert re.search(r"the server's clock is \d+ s behind this one", finding(report, "clock").what)


def test_rights_that_are_missing_are_told(tmp_path):
    key = "a key of some length"
    gunicorn = serve(tmp_path, workers=1, PUBLIC=0, SECRET_KEY=key)
    token = legacy_poll("token", "--channel", "orders", SECRET_KEY=key).stdout.strip()
    try:
        gunicorn.start()
        without = examine(gunicorn.url)
        allowed = Target.parse(gunicorn.url, token=token)
        other = Examination(allowed, channel="secret").run()
        fine = Examination(allowed, channel="orders", hold_seconds=1.0).run()
    finally:
        gunicorn.destroy()
    assert list(wrong(without)) == list(wrong(other)) == ["rights"]
    assert wrong(without)["rights"].what.startswith("401 ") and "--token" in wrong(without)["rights"].advice
    assert "secret" in wrong(other)["rights"].what
    assert fine.fine


def test_a_server_that_is_full_is_told(tmp_path):
    gunicorn = serve(tmp_path, workers=1, MAX_HELD=0)
    try:
        report = examine(gunicorn.start().url)
    finally:
        gunicorn.destroy()
    [full] = wrong(report).values()
    assert full.about == "polls" and full.what.startswith("503 this worker holds 0 polls")
    assert report.findings[-1] is full


def test_a_limit_shorter_than_the_first_poll_is_told_once(app):
    kind, [(old, new)], _ = WRONG_LIMITS["HAProxy"]
    proxy = kind(app.port, [(old, new.replace("2s", "800ms"))])
    proxy.start()
    try:
        report = examine(proxy.url)
    finally:
        proxy.destroy()
    # Beats come every second at most, so they cannot help here.
    assert list(wrong(report)) == ["heartbeats", "hold", "beyond the limit"]
    assert "cut after 0.8 s" in wrong(report)["hold"].what
    for about in ("heartbeats", "hold"):
        assert wrong(report)[about].advice.startswith("HAProxy: timeout server 60s")


@contextlib.contextmanager
def pages(answer):
    """The port of a server that is not ours: *answer* makes status, headers and body out of a path."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status, headers, body = answer(self.path)
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def relay(backend_port, *, seconds):
    """The port of something that ends every request *seconds* after it began, whatever comes meanwhile."""

    def carry(here):
        with contextlib.suppress(OSError), here, socket.create_connection(
            ("127.0.0.1", backend_port), 10
        ) as there:
            while True:
                request = here.recv(65536)
                if not request:
                    return
                # The end of a request's time is the end of both connections.
                timer = threading.Timer(seconds, _end, [here, there])
                timer.start()
                there.sendall(request)
                _pass_answer(there, here)
                timer.cancel()

    def accept():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=carry, args=[server.accept()[0]], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def _end(*connections):
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def _pass_answer(there, here):
    """Passes one answer on: all of it that Content-Length or the last chunk says."""
    said = b""
    while True:
        piece = there.recv(65536)
        if not piece:
            raise OSError("the server ended the connection")
        here.sendall(piece)
        said += piece
        head, end, body = said.partition(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        if end and (
            len(body) >= int(length.group(1))
            if length
            else body.endswith(b"0\r\n\r\n") or b" 204 " in head[:15]
        ):
            return


def test_the_example_in_the_documentation_is_what_the_command_prints(runs):
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    [shown] = re.findall(r"^\$ legacy-poll doctor \S+ --hold-ms 3000\n(.*?)^```$", page, re.M | re.S)

    def without_figures(text):
        return re.sub(r"\d+\.\d+ s", "N s", text)

    assert without_figures(shown) == without_figures(runs["text"].stdout)
