"""Pages that use the browser library, over a site of two workers on SQLite: tests.browser.site.

tab = tabs.open(site, channels=["a"])     options of LegacyPoll.connect(); the cursor is "now" unless given
site.publish("a", 1)                      by a plain INSERT, so also while the site is down
tab.shows(1)                              waits until the page handled these, in order, and nothing else
"""

from __future__ import annotations

import itertools
import json
import re
import signal
import sqlite3
import urllib.request
from contextlib import closing, suppress
from urllib.parse import quote

try:
    from playwright.sync_api import Error
except ImportError:  # the fixture that needs it says so, see tests.browser.windows
    Error = Exception

from tests.gunicorn import Gunicorn
from tests.process.commands import legacy_poll
from tests.servers import free_port
from tests.waiting import until

# Beyond the 30 s that the library pauses at most.
WAIT_SECONDS = 45
WAIT_MS = 1000 * WAIT_SECONDS
SECRET = "a key of the browser tests"
# Few, so that what was trimmed is soon gone from the workers' memory too.
TAIL_EVENTS = 50


class Site(Gunicorn):
    """The application of tests.browser.site. `other` is another origin of it, whose pages its setting allows;
    `stranger` one that it does not know.
    """

    def __init__(self, **settings):
        port = free_port()
        self.other = "http://127.0.0.1:{}".format(port)
        self.stranger = "http://localhost:{}".format(port)
        super().__init__(
            {"SECRET_KEY": SECRET, "JSONP": 1, "CORS_ORIGINS": self.other, "TAIL_EVENTS": TAIL_EVENTS},
            workers=2,
            app="tests.browser.site:app",
            options=["-b", "127.0.0.1:{}".format(port)],
            ready="/poll/health/ready",
        )
        self.settings.update(settings)
        self._database = str(self.directory / "site.db")
        self.settings["DATABASE_URL"] = self.database_url = "sqlite:///" + self._database
        self._channels = itertools.count(1)

    def channel(self, kind="channel"):
        """A channel that no other test has."""
        return "{}-{}".format(kind, next(self._channels))

    def publish(self, channel, *data, type="message"):
        """Commits events, all in one transaction."""
        insert = "INSERT INTO legacy_poll_outbox (channel, type, data) VALUES (?, ?, ?)"
        with closing(sqlite3.connect(self._database, timeout=20)) as connection, connection:
            connection.executemany(insert, [(channel, type, json.dumps(each)) for each in data])

    def get(self, path):
        """What the site answers to a plain request."""
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return answer.read().decode("utf-8")

    def crash(self):
        """SIGKILL of gunicorn and its workers, all at once."""
        everyone = [self.pid, *self.workers]
        self.signal(signal.SIGSTOP)  # so that it starts no new workers
        for pid in everyone:
            self.signal(signal.SIGKILL, pid)
        until(lambda: not self.running, WAIT_SECONDS, "gunicorn is gone")

    def held(self):
        """How many polls are held, by all workers."""
        held = 0
        for worker in self.workers:
            with self.only(worker):
                held += json.loads(self.get("/poll/status"))["worker"]["held"]
        return held

    def holds(self, count):
        """Waits until *count* polls are held."""
        until(lambda: self.held() == count, WAIT_SECONDS, "{} polls are held".format(count))

    def operator(self, *arguments, **settings):
        """`legacy-poll ...` on the site's database."""
        done = legacy_poll(*arguments, DATABASE_URL=self.database_url, **settings)
        assert done.returncode == 0, done.stderr

    def front(self, kind=None):
        """Puts a "login" or a "portal" in front of the polls; nothing if left out."""
        path = self.directory / "front"
        if kind is None:
            with suppress(FileNotFoundError):
                path.unlink()
        else:
            path.with_name("front.new").write_text(kind)
            path.with_name("front.new").rename(path)


class Tab:
    """A page; what its connection got and said."""

    def __init__(self, page):
        self.page = page
        self._devtools = None

    def got(self):
        return self.page.evaluate("() => got")

    def shows(self, *data):
        """Waits until the page handled that many events; they must be these."""
        try:
            until(lambda: len(self.got()) >= len(data), WAIT_SECONDS, "events")
        finally:
            got, states = self.page.evaluate("() => [got, states.slice(-9)]")
            assert got == list(data), states

    def is_(self, state):
        """Waits until the connection's state is *state*."""
        until(lambda: self.page.evaluate("() => poll && poll.state") == state, WAIT_SECONDS, state)
        return self

    def badge(self, text):
        """Waits until the page's badge says *text*."""
        until(lambda: self.page.inner_text("#badge") == text, WAIT_SECONDS, "the badge says " + text)

    def resynced(self, *codes):
        """Waits until onresync() was called that often; with these codes."""
        until(lambda: len(self.page.evaluate("() => resyncs")) >= len(codes), WAIT_SECONDS, "onresync")
        assert self.page.evaluate("() => resyncs") == list(codes)

    def back(self):
        """Presses the button; returns when the page is there again, loaded anew or not."""
        url = self.page.url

        def back():
            with suppress(Error):  # asked in the middle of it
                return self.page.evaluate("url => location.href !== url && window.shows", url)

        self.page.evaluate("() => { history.back(); }")
        until(back, WAIT_SECONDS, "the page is back")

    def leads(self):
        return self.page.evaluate("() => poll.leads")

    def reasons(self, state="waiting"):
        """What was said of each *state* so far."""
        return [reason for each, reason in self.page.evaluate("() => states") if each == state]

    def waited_for(self, *reasons):
        """Waits until the connection has waited for one of *reasons*."""
        until(lambda: set(self.reasons()) & set(reasons), WAIT_SECONDS, " or ".join(reasons))

    def devtools(self, method, **parameters):
        """Has Chromium do what DevTools can."""
        if self._devtools is None:
            self._devtools = self.page.context.new_cdp_session(self.page)
        return self._devtools.send(method, parameters)


class Tabs:
    """Opens pages, each in a new browser (a context) unless it is given one; close() ends them all."""

    def __init__(self, chromium):
        #: A pattern: the pages' errors that the test brings about itself.
        self.foreseen = None
        self._chromium = chromium
        self._browsers = []
        self._pages = []
        self._met = []

    def browser(self):
        """Another browser, as far as pages and servers can tell."""
        browser = self._chromium.new_context()
        self._browsers.append(browser)
        return browser

    def open(self, site, browser=None, *, origin="", beside=None, **options):
        """A page whose connection has these *options*; a tab *beside* another page hides that one."""
        options.setdefault("cursor", "now")
        return self._open((origin or site.url) + "/page?" + quote(json.dumps(options)), browser, beside)

    def blank(self, site):
        """A page that has the library, and no connection yet."""
        return self._open(site.url + "/page")

    def _open(self, url, browser=None, beside=None):
        if beside is None:
            page = (browser or self.browser()).new_page()
        else:
            with beside.page.context.expect_page() as opened:
                beside.page.evaluate("() => { open('about:blank', '_blank', 'noopener'); }")
            page = opened.value
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: self._met.append(str(error)))
        self._pages.append(page)
        page.goto(url)
        return Tab(page)

    def live(self, site, browser=None, **options):
        """The same, and it is live."""
        return self.open(site, browser, **options).is_("live")

    def own_window(self, site, **options):
        """A live page in a window of the browser that Chromium starts with, where tabs may be opened beside it."""
        return self.live(site, self._chromium.contexts[0], **options)

    def close(self):
        for page in self._pages:
            page.close()
        for browser in self._browsers:
            browser.close()
        unforeseen = [text for text in self._met if not (self.foreseen and re.search(self.foreseen, text))]
        assert not unforeseen, unforeseen
