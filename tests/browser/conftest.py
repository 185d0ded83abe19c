"""Real Chromium over a real `gunicorn -k gevent demo.app:app`.

`shop` is the demo on PostgreSQL; `corner_shop` is the one that `make run` starts, on SQLite. A module's tests share
them and bring texts and orders of their own; one that stops gunicorn need not start it again. `windows` opens pages.
"""

from __future__ import annotations

import pytest

from tests.browser.shop import Shop
from tests.browser.windows import Windows, launched, started


@pytest.fixture(scope="module")
def _chromium():
    # Not for the session: Playwright's loop would stay in a thread that other suites share.
    with started() as playwright:
        chromium = launched(playwright)
        yield chromium
        chromium.close()


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
