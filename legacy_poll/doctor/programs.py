"""The programs that stand in between: how each shows itself, and what to set in it.

The directives are those of docs/deploy/, where the sources of the limits stand too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Dict, Iterable, Pattern, Tuple

__all__ = [
    "LIMIT",
    "BUFFERS",
    "CACHES",
    "ERRORS",
    "CONNECTION",
    "HTTP2",
    "PAGE",
    "Program",
    "advice",
    "recognise",
]

PAGE = "docs/deploy/proxies.md"

#: What may be wrong with a program.
LIMIT = "limit"
BUFFERS = "buffers"
CACHES = "caches"
ERRORS = "errors"
CONNECTION = "connection"
HTTP2 = "http2"


@dataclass(frozen=True)
class Program:
    """One program or service.

    Attributes:
        signs: Pattern for status, headers and body of an answer that it wrote or passed on.
        settings: What is wrong -> what to set; `{seconds}` is a limit that is long enough.
    """

    name: str
    signs: Pattern[str]
    settings: Dict[str, str] = field(default_factory=dict)


def _program(name: str, signs: str, **settings: str) -> Program:
    return Program(name, re.compile(signs, re.IGNORECASE | re.MULTILINE), settings)


_PROGRAMS = (
    _program(
        "Cloudflare",
        r"^server: cloudflare|^cf-ray:|\A52[0-7] ",
        limit="Proxy Read Timeout can be raised by Enterprise customers only: keep the hold "
        "(LEGACY_POLL_HOLD_SECONDS) below it, or let clients ask with heartbeat=15000",
        buffers='a Configuration Rule with "response_body_buffering": "none" for the path of the polls',
        caches="a Cache Rule that bypasses the cache for the path of the polls",
        errors="no custom error pages for the path of the polls",
    ),
    _program(
        "Heroku",
        r"^via:.*(vegur|heroku-router)|^server: heroku|herokucdn\.com/error-pages",
        limit="the router waits 30 s for the first byte and 55 s for each other, and cannot be told: keep the hold "
        "(LEGACY_POLL_HOLD_SECONDS) at 25, or let clients ask with heartbeat=15000",
    ),
    _program(
        "AWS ALB",
        r"^server: awselb",
        limit="the load balancer's attribute idle_timeout.timeout_seconds = {seconds}",
    ),
    _program(
        "Varnish",
        r"^x-varnish:|^via:.*varnish|Guru Meditation|\A400 Bad Request\s*\Z",
        limit=".first_byte_timeout = {seconds}s; and .between_bytes_timeout = {seconds}s; in the backend",
        buffers="leave beresp.do_stream at true in vcl_backend_response",
        caches="return (pass); in vcl_recv for the path of the polls",
        errors="leave answers of the server alone in vcl_backend_response and vcl_deliver",
        connection="the parameter timeout_idle; piped connections are never kept",
    ),
    _program(
        "HAProxy",
        r"Your browser sent an invalid request\.|The server didn't respond in time\."
        r"|The server returned an invalid or incomplete response\."
        r"|No server is available to handle this request\.",
        limit="timeout server {seconds}s and timeout client {seconds}s",
        buffers="no `compression` for the path of the polls",
        caches="no `http-request cache-use` for the path of the polls",
        errors="no `http-response return` and no `errorfile` for answers of the server",
        connection="timeout http-keep-alive 60s, and no `option httpclose`",
        http2="bind :443 ssl crt ... alpn h2,http/1.1",
    ),
    _program(
        "Apache",
        r"^server: apache\b|^via:.*\(apache|<address>Apache|The proxy server received an invalid"
        r"|The gateway did not receive a timely response",
        limit="timeout={seconds} in ProxyPass, or ProxyTimeout {seconds}",
        buffers="flushpackets=on in ProxyPass, and no output filter for the path of the polls",
        caches="CacheDisable for the path of the polls",
        errors="ProxyErrorOverride Off",
        connection="KeepAlive On",
        http2="Protocols h2 http/1.1",
    ),
    _program(
        "nginx",
        r"^server: (nginx|openresty)|<center>(nginx|openresty)",
        limit="proxy_read_timeout {seconds}s; "
        "(ingress-nginx: the annotation nginx.ingress.kubernetes.io/proxy-read-timeout)",
        buffers="proxy_http_version 1.1; and proxy_buffering off;",
        caches="proxy_cache off;",
        errors="proxy_intercept_errors off;",
        connection="keepalive_timeout 75s; and keepalive_requests 1000;",
        http2="listen 443 ssl http2;",
    ),
    # Not in between: it is the server. Who meets it at once has no proxy in front.
    _program("gunicorn", r"<h1><p>Bad Request</p></h1>"),
)


def recognise(text: str) -> Tuple[str, ...]:
    """Names of the programs that show themselves in an answer."""
    return tuple(program.name for program in _PROGRAMS if program.signs.search(text))


def authors(text: str) -> Tuple[str, ...]:
    """Names of the programs that may have written an answer: by its body, else by its headers.

    Whoever passes an answer on leaves the body alone, and puts its name into the headers all the same.
    """
    return recognise(text.partition("\n\n")[2]) or recognise(text)


def advice(trouble: str, names: Iterable[str], *, seconds: int = 60) -> str:
    """What to set, in each of the programs; in all that may hide where nobody is known.

    Args:
        trouble: LIMIT, BUFFERS and so on.
        names: Of the programs that may be at fault.
        seconds: A limit that is long enough.
    """
    known = [program for program in _PROGRAMS if program.name in set(names) and trouble in program.settings]
    # Some balancers, and TCP proxies of every kind, never show themselves.
    told = known or [program for program in _PROGRAMS if trouble in program.settings]
    text = "; ".join("%s: %s" % (each.name, each.settings[trouble].format(seconds=seconds)) for each in told)
    return text if known else "in whatever stands in between. " + text
