"""Real proxies that the tests start in front of a gunicorn: nginx, HAProxy, Apache, Varnish.

Each runs the very file that docs/deploy/ gives to users, with its two ports replaced. What a user has around it
(where logs go, which modules are loaded) is wrapped around it here. A usual mistake is a change to that file:

    proxy = Nginx(gunicorn.port)                                          the recommended configuration
    proxy = Nginx(gunicorn.port, [("proxy_read_timeout 60s;", "proxy_read_timeout 2s;")])
    proxy.start(), .stop(), .kill(), .destroy(), .port                    as tests.servers has it

A change whose old text does not stand in the file exactly once fails, so that a mistake stays one when the file is
edited.
"""

from __future__ import annotations

import contextlib
import glob
import os
import socket
import subprocess
from pathlib import Path

from tests.servers import Server, find_program, missing

DEPLOY = Path(__file__).resolve().parents[1] / "docs" / "deploy"


class Proxy(Server):
    """What the proxies share.

    Args:
        backend_port: Of the gunicorn behind it, on 127.0.0.1.
        changes: Pairs of texts, old and new, that make another configuration out of the recommended one.
    """

    # The file in docs/deploy/.
    file = ""

    def __init__(self, backend_port, changes=()):
        super().__init__()
        self.backend_port = backend_port
        self._changes = list(changes)

    @property
    def url(self):
        """The prefix of the routes."""
        return "http://127.0.0.1:{}/poll".format(self.port)

    @property
    def config_path(self):
        return os.path.join(self.directory, self.file)

    def ports(self):
        """Pairs of texts: what the file says of ports, and what is run."""
        raise NotImplementedError

    def configuration(self):
        """The file, changed, with our ports."""
        text = (DEPLOY / self.file).read_text(encoding="utf-8")
        for old, new in self._changes + self.ports():
            if text.count(old) != 1:
                raise AssertionError("{!r} stands {} times in {}".format(old, text.count(old), self.file))
            text = text.replace(old, new)
        return text

    def wrapped(self):
        """The whole configuration."""
        return self.configuration()

    def answers(self):
        # Apache listens before it knows whether it can run, so a connection is not enough.
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 10) as asked:
            asked.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return asked.recv(1) != b""
        return False

    def _make_command(self):
        return ["sh", "-c", 'printf "%s" "$1" > "$0"', self.config_path, self.wrapped()]


class Nginx(Proxy):
    """nginx.

    Args:
        http: Lines for the http context, in front of the file.
        tls: Also listens for HTTPS, HTTP/2 as well, on `tls_port`, with a certificate that nobody signed.
    """

    name = "nginx"
    users = ("www-data", "nginx", "nobody")
    file = "nginx.conf"

    def __init__(self, backend_port, changes=(), *, http="", tls=False):
        self._program = find_program("nginx", folders=["/usr/sbin"])
        super().__init__(backend_port, changes)
        self._http = http
        self.tls_port = None
        if tls:
            # The next port is as free as this one; a port that is taken is a start that fails, and says so.
            self.tls_port = self.port + 1
            self._openssl = find_program("openssl")

    @property
    def tls_url(self):
        return "https://127.0.0.1:{}/poll".format(self.tls_port)

    def ports(self):
        listens = "listen 127.0.0.1:{};".format(self.port)
        if self.tls_port:
            listens += " listen 127.0.0.1:{} ssl http2;".format(self.tls_port)
        return [("listen 80;", listens), ("server 127.0.0.1:8000;", self._server("127.0.0.1"))]

    def _server(self, host):
        return "server {}:{};".format(host, self.backend_port)

    def wrapped(self):
        lines = ["pid {}/pid;".format(self.directory), "worker_processes 1;", "error_log stderr info;"]
        lines += ["events { worker_connections 512; }", "http {"]
        for folder in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):
            lines.append("{0}_temp_path {1}/{0};".format(folder, self.directory))
        lines.append("access_log {}/access;".format(self.directory))
        if self.tls_port:
            lines += ["ssl_certificate {}/certificate;".format(self.directory)]
            lines += ["ssl_certificate_key {}/key;".format(self.directory)]
        return "\n".join(lines + [self._http, self.configuration(), "}", ""])

    def _make_command(self):
        command = super()._make_command()
        if self.tls_port:
            # For another name than the address that it is asked by, and of nobody whom anybody trusts.
            make = '{} req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=elsewhere.test -keyout "{}/key" -out "{}"'
            certificate = os.path.join(self.directory, "certificate")
            command[2] += " && " + make.format(self._openssl, self.directory, certificate)
        return command

    def _serve_command(self):
        return [self._program, "-p", self.directory, "-c", self.config_path, "-g", "daemon off;"]


class HAProxy(Proxy):
    """HAProxy; `tell()` talks to its runtime API."""

    name = "HAProxy"
    users = ("haproxy", "nobody")
    file = "haproxy.cfg"

    def __init__(self, backend_port, changes=()):
        self._program = find_program("haproxy", folders=["/usr/sbin"])
        super().__init__(backend_port, changes)

    def ports(self):
        server = "server app 127.0.0.1:{} "
        return [
            ("bind :80\n", "bind 127.0.0.1:{}\n".format(self.port)),
            (server.format(8000), server.format(self.backend_port)),
        ]

    def tell(self, command):
        """What HAProxy answers to *command*."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(os.path.join(self.directory, "admin"))
            connection.sendall(command.encode("ascii") + b"\n")
            with connection.makefile(encoding="ascii") as answer:
                return answer.read()

    def wrapped(self):
        lines = ["global", "    stats socket {}/admin level admin".format(self.directory), "    maxconn 500"]
        lines += ["    log stderr format raw local0", "defaults", "    log global", "    option httplog"]
        return "\n".join(lines + ["", self.configuration()])

    def _serve_command(self):
        return [self._program, "-db", "-f", self.config_path]


class Apache(Proxy):
    """Apache with the event MPM, and few modules beside those that the file needs."""

    name = "Apache"
    users = ("www-data", "apache", "nobody")
    file = "apache.conf"
    modules = ("mpm_event", "authz_core", "proxy", "proxy_http", "headers", "filter", "deflate")

    def __init__(self, backend_port, changes=()):
        self._program = find_program("apache2", "httpd", folders=["/usr/sbin"])
        folders = glob.glob("/usr/lib/apache2/modules") + glob.glob("/usr/lib*/httpd/modules")
        self._modules = folders[0] if folders else missing("the modules of Apache")
        super().__init__(backend_port, changes)

    def ports(self):
        backend = '"http://127.0.0.1:{}/"'
        return [(backend.format(8000), backend.format(self.backend_port))]

    def wrapped(self):
        lines = [
            "ServerName shop.test",
            "ServerRoot " + self.directory,
            "Listen 127.0.0.1:{}".format(self.port),
        ]
        lines += ["PidFile {}/pid".format(self.directory), "DefaultRuntimeDir " + self.directory]
        lines += [
            "Mutex file:{}".format(self.directory),
            "ErrorLog {}/error".format(self.directory),
            "LogLevel info",
        ]
        module = "LoadModule {0}_module {1}/mod_{0}.so"
        lines = [module.format(name, self._modules) for name in self.modules] + lines
        lines += ["StartServers 1", "ThreadsPerChild 25", "MaxRequestWorkers 50", "MinSpareThreads 5"]
        return "\n".join(lines + ["", self.configuration()])

    def _serve_command(self):
        return [self._program, "-d", self.directory, "-f", self.config_path, "-DFOREGROUND"]


class Varnish(Proxy):
    """Varnish, which compiles its configuration: it wants a C compiler."""

    name = "Varnish"
    users = ("varnish", "nobody")
    file = "varnish.vcl"

    def __init__(self, backend_port, changes=()):
        self._program = find_program("varnishd", folders=["/usr/sbin"])
        super().__init__(backend_port, changes)

    def ports(self):
        return [('.port = "8000";', '.port = "{}";'.format(self.backend_port))]

    def _serve_command(self):
        # No jail: that wants root. Few threads: each would take its stack on a small machine.
        command = [self._program, "-F", "-j", "none", "-n", os.path.join(self.directory, "work")]
        command += [
            "-f",
            self.config_path,
            "-a",
            "127.0.0.1:{}".format(self.port),
            "-s",
            "malloc,16m",
            "-T",
            "none",
        ]
        return command + ["-p", "thread_pools=1", "-p", "thread_pool_min=20", "-p", "vcc_allow_inline_c=off"]


PROXIES = [Nginx, HAProxy, Apache, Varnish]


def curl(*arguments):
    """What curl printed; curl is the client that also speaks HTTP/2."""
    command = [find_program("curl"), "--silent", "--show-error", "--max-time", "30"] + list(arguments)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done
    return done.stdout
