"""Pages in a real Chromium, and what they showed.

A page is opened in a browser of its own (a context: its own storage, cookies and connections), or in the browser of a
page that is open already. What nobody foresaw fails the test that met it: an error in a page's console, a dialog.
The demo's pages forbid eval (`default-src 'self'`), so what evaluate() is given is a function.
"""

from __future__ import annotations

import contextlib
import re

try:
    from playwright.sync_api import expect, sync_playwright
except ImportError:  # the fixture that needs it says so, see missing()
    expect = sync_playwright = None

from tests.servers import find_program, free_port, missing

# A bound on failure, beyond the 30 s that a page pauses at most before it tries again.
WAIT_MS = 45000

FLAGS = [
    "--headless",
    "--no-sandbox",  # as root, which CI is, Chromium does not start with one
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# Playwright's own flags that keep hidden pages awake and make every page load.
UNUSUAL = [
    "--disable-back-forward-cache",
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
]

# The board keeps the last few notices; these are all that it ever showed, in order.
RECORDER = """
window.everyNotice = [];
new MutationObserver(function (changes) {
    changes.forEach(function (change) {
        change.addedNodes.forEach(function (node) {
            if (node.nodeType === 1 && node.matches(".notice")) {
                window.everyNotice.push(node.querySelector(".notice-text").textContent);
            }
        });
    });
}).observe(document, { childList: true, subtree: true });
"""


def launched(playwright):
    """Debian's Chromium, or whatever the machine has, with a new profile that goes when it is closed."""
    program = find_program("chromium", "chromium-browser", "google-chrome")
    return playwright.chromium.launch(executable_path=program, args=FLAGS)


@contextlib.contextmanager
def everyday(playwright):
    """The same without what Playwright sets for tests: who opens a tab hides the one before, which has slow timers then
    and may be frozen; pages go to the back/forward cache.
    """
    program = find_program("chromium", "chromium-browser", "google-chrome")
    port = free_port()
    whole = playwright.chromium.launch(
        executable_path=program,
        args=[*FLAGS, "--remote-debugging-port={}".format(port)],
        ignore_default_args=UNUSUAL,
    )
    yield playwright.chromium.connect_over_cdp("http://127.0.0.1:{}".format(port), no_defaults=True)
    whole.close()


def started():
    """Playwright, ready for `with`."""
    if sync_playwright is None:
        missing("playwright")
    expect.set_options(timeout=WAIT_MS)
    return sync_playwright()


class Windows:
    """Opens pages and listens to them; close() ends them all and says what nobody foresaw."""

    def __init__(self, chromium):
        #: A pattern: the console's errors that the test brings about itself.
        self.foreseen = None
        self._chromium = chromium
        self._browsers = []
        self._met = []

    def browser(self, **options):
        """Another browser, as far as pages and servers can tell; *options* are new_context()'s."""
        options.setdefault("viewport", {"width": 1280, "height": 800})
        # Eight windows of software-drawn animation would leave the servers no processor.
        options.setdefault("reduced_motion", "reduce")
        browser = self._chromium.new_context(**options)
        browser.set_default_timeout(WAIT_MS)
        browser.add_init_script(RECORDER)
        self._browsers.append(browser)
        return browser

    def open(self, shop, path, browser=None):
        """A page that is live, in *browser* or in another one."""
        page = (browser or self.browser()).new_page()
        page.on("console", lambda message: message.type == "error" and self._note(page, message.text))
        page.on("pageerror", lambda error: self._note(page, str(error)))
        page.on("crash", lambda: self._note(page, "crashed"))
        page.on("dialog", lambda dialog: (self._note(page, "dialog: " + dialog.message), dialog.dismiss()))
        page.goto(shop.url + path)
        expect_state(page, "live")
        return page

    def close(self):
        for browser in self._browsers:
            browser.close()
        unforeseen = [text for text in self._met if not (self.foreseen and re.search(self.foreseen, text))]
        assert not unforeseen, "\n".join(unforeseen)

    def _note(self, page, text):
        self._met.append("{}: {}".format(page.url, text))


def expect_state(page, state):
    """Waits until the badge says *state*."""
    expect(page.locator("#badge")).to_have_attribute("data-state", state)


def expect_notice(page, text):
    """Waits until the board shows the kitchen notice *text*."""
    expect(page.locator(".notice-text").get_by_text(text, exact=True)).to_be_visible()


def expect_card(page, number, status):
    """Waits until the board has the order in the column *status*, and nowhere else; returns its card."""
    expect(page.locator("#column-{} > #order-{}".format(status, number))).to_be_visible()
    card = page.locator("[id='order-{}']".format(number))
    expect(card).to_have_count(1)
    return card


def notices(page):
    """The texts of all notices that the page showed since it was loaded, oldest first."""
    return page.evaluate("() => window.everyNotice")


def place_order(page, customer, items, total):
    """Places an order at the counter with the keyboard alone; returns its number."""
    customers = page.locator("#customer")
    for _ in range(10):
        page.keyboard.press("Tab")
        if customers.evaluate("element => element === document.activeElement"):
            break
    expect(customers).to_be_focused()
    page.keyboard.type(customer)
    page.keyboard.press("Tab")
    page.keyboard.type(items)
    page.keyboard.press("Tab")
    page.keyboard.type(total)
    _enter(page)
    done = page.locator(".message.good")
    expect(done).to_have_text(re.compile(r"Order \d+ is on the board\."))
    return int(re.search(r"\d+", done.inner_text()).group())


def move_on(page, number):
    """Presses the order's button at the counter with the keyboard."""
    page.locator("#advance-{}".format(number)).focus()
    _enter(page)
    expect(page.locator(".message.good")).to_have_text("Order {} was moved on.".format(number))


def _enter(page):
    # The page before may say the same as the one that comes.
    with page.expect_navigation():
        page.keyboard.press("Enter")
