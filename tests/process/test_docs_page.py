"""The pages of the documentation in a real Chromium: the README's against its own application, and the client by hand
of docs/wire.md against answers that come as one pleases.
"""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.browser.windows import expect, launched, started
from tests.gunicorn import Gunicorn
from tests.process.commands import legacy_poll
from tests.servers import missing

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
WIRE = (ROOT / "docs" / "wire.md").read_text(encoding="utf-8")
ORIGIN = "http://shop.test"

# Says each order that the page adds, in order; also those of a page that was loaded anew since.
RECORDER = """
new MutationObserver(function (changes) {
    changes.forEach(function (change) {
        change.addedNodes.forEach(function (node) {
            if (node.nodeName === "LI") {
                console.log(node.textContent);
            }
        });
    });
}).observe(document, { childList: true, subtree: true });
"""


def example(name, page=README):
    """The code block of *page* that is marked as the file *name*."""
    [code] = re.findall(r"<!-- example: %s -->\n```\w+\n(.*?)^```$" % re.escape(name), page, re.M | re.S)
    return code


def jquery(package, *path):
    """The jQuery in a Python package's folder."""
    found = find_spec(package)
    if found is None:
        missing("the package " + package)
    return Path(list(found.submodule_search_locations)[0]).joinpath(*path).read_text(encoding="utf-8")


JQUERIES = {
    "1.7": lambda: jquery("jquery", "static", "js", "jquery.js"),  # of django-jquery
    "3.7.1": lambda: jquery("xstatic.pkg.jquery", "data", "jquery.min.js"),
}


@pytest.fixture(scope="module")
def chromium():
    with started() as playwright:
        browser = launched(playwright)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium):
    context = chromium.new_context()
    page = context.new_page()
    page.set_default_timeout(20000)
    failed = []
    page.on("pageerror", lambda error: failed.append(str(error)))
    yield page
    context.close()
    assert not failed


@pytest.fixture
def shop():
    """The README's application under gunicorn with two workers."""
    gunicorn = Gunicorn(workers=2, app="app:app", ready="/poll/health/ready")
    (gunicorn.directory / "templates").mkdir()
    for name in ("app.py", "templates/board.html"):
        (gunicorn.directory / name).write_text(example(name), encoding="utf-8")
    yield gunicorn.start()
    assert "Traceback" not in gunicorn.log, gunicorn.log
    gunicorn.destroy()


def test_page_of_the_readme_shows_what_is_committed_while_it_is_open(shop, page):
    page.goto(shop.url)
    with page.expect_request(re.compile("/poll/stream")):
        page.context.request.post(shop.url + "/orders", form={"item": "Flat white"})
    expect(page.locator("#orders li")).to_have_text(["Flat white"])
    page.context.request.post(shop.url + "/orders", form={"item": "Espresso"})
    expect(page.locator("#orders li")).to_have_text(["Flat white", "Espresso"])
    expect(page.locator("#badge")).to_have_text("live")
    assert page.locator("#orders li").evaluate_all("items => items.map(item => item.id)") == [
        "order-1",
        "order-2",
    ]


def test_page_of_the_readme_shows_once_what_commits_between_its_cursor_and_its_query(shop, page):
    request, cursor = page.context.request, re.compile('cursor: ".*?"')
    early = cursor.search(request.get(shop.url).text()).group()
    request.post(shop.url + "/orders", form={"item": "Flat white"})
    page.route(
        shop.url + "/",
        lambda route: route.fulfill(body=cursor.sub(early, route.fetch().text()), content_type="text/html"),
    )
    page.goto(shop.url)
    request.post(shop.url + "/orders", form={"item": "Espresso"})
    expect(page.locator("#orders li")).to_have_text(["Flat white", "Espresso"])


def test_page_of_the_readme_loads_anew_when_it_missed_something(shop, page):
    page.goto(shop.url)
    page.context.request.post(shop.url + "/orders", form={"item": "Flat white"})
    expect(page.locator("#orders li")).to_have_text(["Flat white"])
    with page.expect_navigation():
        [database] = shop.directory.rglob("shop.db")
        done = legacy_poll("new-log", "--yes", DATABASE_URL="sqlite:///{}".format(database))
        assert done.returncode == 0, done.stderr
    page.context.request.post(shop.url + "/orders", form={"item": "Espresso"})
    expect(page.locator("#orders li")).to_have_text(["Flat white", "Espresso"])


class Answers:
    """Answers the page's polls with a script, and keeps the cursors that it asked with."""

    def __init__(self, page, jquery, *script):
        self.asked = []
        self._jquery = jquery
        self._script = list(script)
        page.route("**/*", lambda route: self._answer(route))

    def _answer(self, route):
        url = urlsplit(route.request.url)
        if url.path == "/static/jquery.min.js":
            return route.fulfill(body=self._jquery, content_type="text/javascript")
        if url.path == "/":
            return route.fulfill(
                body=rendered("before" if not self.asked else "again"), content_type="text/html"
            )
        if url.path != "/poll/stream":
            return route.fulfill(status=404)
        self.asked.append(parse_qs(url.query)["cursor"][0])
        status, cursor, body, headers = self._script.pop(0)
        if cursor is not None:
            headers = dict(headers, **{"Legacy-Poll-Cursor": cursor})
        return route.fulfill(status=status, headers=headers, body=body)


def rendered(cursor):
    from flask import Flask, render_template_string

    with Flask(__name__).app_context():
        return render_template_string(example("by_hand.html", WIRE), cursor=cursor, orders=[])


def events(*numbers):
    return json.dumps({"events": [{"data": {"id": n, "item": "item %d" % n}} for n in numbers]})


@pytest.mark.parametrize("version", JQUERIES)
def test_client_by_hand_goes_on_from_every_answer_as_the_wire_says(page, version):
    answers = Answers(
        page,
        JQUERIES[version](),
        (206, "c1", events(1), {}),
        (204, "c2", "", {}),
        (503, None, '{"error": {}}', {"Retry-After": "1"}),
        (200, "c3", events(1, 2), {}),
        (200, None, "<html>pay for this network first</html>", {"Content-Type": "text/html"}),
        (200, "c4", events(3), {}),
        (410, "c5", '{"error": {}}', {}),
        (200, "c6", events(4), {}),
        (403, None, '{"error": {}}', {}),
    )
    shown = []
    page.on("console", lambda message: message.text.startswith("item") and shown.append(message.text))
    page.add_init_script(RECORDER)
    with page.expect_response(lambda answer: answer.status == 403, timeout=30000):
        page.goto(ORIGIN)
    page.evaluate(
        "() => new Promise(function (after) { setTimeout(after, 0); })"
    )  # would have asked again by now
    assert page.evaluate("() => window.jQuery.fn.jquery") == version
    assert answers.asked == ["before", "c1", "c2", "c2", "c3", "c3", "c4", "again", "c6"]
    assert shown == ["item 1", "item 2", "item 3", "item 4"]
    expect(page.locator("#orders li")).to_have_text(["item 4"])  # loaded anew after the 410
