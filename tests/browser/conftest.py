"""Real Chromium over a real `gunicorn -k gevent demo.app:app`.

`shop` is the demo on PostgreSQL; `corner_shop` is the one that `make run` starts, on SQLite. A module's tests share
them and bring texts and orders of their own; one that stops gunicorn need not start it again. `windows` opens pages.
`site` is an application whose pages use the browser library; `tabs` opens these, and `everyday_tabs` does in a Chromium
that is as people have it.
"""

from __future__ import annotations

import pytest

from tests.browser.pages import Site, Tabs
from tests.browser.shop import Shop
from tests.browser.windows import Windows, everyday, launched, started


@pytest.fixture(scope="module")
def _playwright():
    # Not for the session: Playwright's loop would stay in a thread that other suites share.
    with started() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def _chromium(_playwright):
    chromium = launched(_playwright)
    yield chromium
    chromium.close()


@pytest.fixture(scope="module")
def _everyday_chromium(_playwright):
    with everyday(_playwright) as chromium:
        yield chromium


@pytest.fixture
def windows(_chromium):
    windows = Windows(_chromium)
    yield windows
    windows.close()


@pytest.fixture(scope="module")
def _postgres_shop(_chromium, _postgres):
    _postgres.resume()
    url = _postgres.create_database()
    shop = Shop(url, _postgres)
    try:
        yield shop.start()
        shop.check_log()
    finally:
        shop.destroy()
        _postgres.drop_database(url)


@pytest.fixture(scope="module")
def _sqlite_shop(_chromium):
    shop = Shop()
    try:
        yield shop.start()
        shop.check_log()
    finally:
        shop.destroy()


@pytest.fixture
def shop(_postgres_shop):
    """The demo on PostgreSQL, running, whatever the test before did to it."""
    return _running(_postgres_shop)


@pytest.fixture
def corner_shop(_sqlite_shop):
    """The demo on SQLite, running, whatever the test before did to it."""
    return _running(_sqlite_shop)


def _running(shop):
    return shop if shop.running else shop.start()


@pytest.fixture(scope="module")
def _site():
    site = Site()
    try:
        yield site.start()
        assert "Traceback" not in site.log, site.log
    finally:
        site.destroy()


@pytest.fixture
def site(_site):
    """Pages with the browser library, running, whatever the test before did to it."""
    _site.front()
    return _running(_site)


@pytest.fixture
def asked_site():
    """A site that is asked at every poll, middleware and all."""
    site = Site(PARK=0)
    try:
        yield site.start()
    finally:
        site.destroy()


@pytest.fixture
def tabs(_chromium):
    tabs = Tabs(_chromium)
    yield tabs
    tabs.close()


@pytest.fixture
def everyday_tabs(_everyday_chromium):
    tabs = Tabs(_everyday_chromium)
    yield tabs
    tabs.close()
