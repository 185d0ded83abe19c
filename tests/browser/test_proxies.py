"""The browser library behind real proxies that cut its polls: nothing is lost, and it finds out what passes."""

from __future__ import annotations

import json
import urllib.request

import pytest

from tests.browser.pages import WAIT_SECONDS
from tests.gunicorn import Gunicorn
from tests.proxies import Apache, HAProxy, Nginx, Varnish
from tests.waiting import until

# Each proxy with the usual mistake: an idle limit below the hold. The browser is not told by 504 from another origin:
# it sees a failed request, as with a balancer that drops connections.
MISTAKES = [
    (Nginx, [("proxy_read_timeout 60s;", "proxy_read_timeout 3s;")]),
    (HAProxy, [("timeout server 60s", "timeout server 3s")]),
    (Apache, [("timeout=60", "timeout=3")]),
    (Varnish, [(".first_byte_timeout = 60s;", ".first_byte_timeout = 3s;")]),
]
CUT_SECONDS = 3


@pytest.fixture
def server(site, tmp_path):
    """The server by itself, which lets the pages of `site` read."""
    settings = {
        "PUBLIC": 1,
        "PUBLISH_TOKEN": "publish-token",
        "CORS_ORIGINS": site.url,
        "DATABASE_URL": "sqlite:///{}".format(tmp_path / "log.db"),
    }
    gunicorn = Gunicorn(settings, workers=1)
    try:
        yield gunicorn.start()
    finally:
        gunicorn.destroy()


@pytest.fixture
def proxies(server):
    started = []
    try:
        for kind, changes in MISTAKES:
            started.append(kind(server.port, changes))
            started[-1].start()
        yield started
    finally:
        for proxy in started:
            proxy.destroy()


def publish(server, *data):
    body = json.dumps([{"channel": "orders", "data": each} for each in data]).encode("ascii")
    headers = {"Content-Type": "application/json", "Authorization": "Bearer publish-token"}
    urllib.request.urlopen(urllib.request.Request(server.url + "/publish", body, headers)).close()


def cuts(server):
    """What the server was told: seconds -> how often."""
    with urllib.request.urlopen(server.url + "/status") as answer:
        return json.loads(answer.read())["cut_after_seconds"]


def test_a_proxy_that_cuts_polls_costs_no_event_and_the_page_asks_for_less(site, tabs, server, proxies):
    opened = [tabs.open(site, url=proxy.url, channels=["orders"]).is_("live") for proxy in proxies]
    publish(server, 1)
    for tab in opened:
        tab.shows(1)
    # Cut twice after the same time, each asks for less from then on, and says what it has learnt.
    holds = "() => Object.keys(localStorage).filter(key => /hold:/.test(key)).map(key => localStorage[key])"
    for tab in opened:
        until(lambda page=tab.page: page.evaluate(holds), WAIT_SECONDS, "it has learnt")
        (learnt,) = tab.page.evaluate(holds)
        assert 0.6 * CUT_SECONDS * 1000 <= int(learnt.split()[0]) < CUT_SECONDS * 1000
    until(lambda: sum(cuts(server).values()) >= len(proxies), WAIT_SECONDS, "the server was told by all")
    assert set(cuts(server)) <= {str(CUT_SECONDS), str(CUT_SECONDS + 1)}, cuts(server)
    assert server.logged("cuts polls after about") == 1
    publish(server, 2, 3)
    for tab in opened:
        tab.shows(1, 2, 3)
        tab.is_("live")
