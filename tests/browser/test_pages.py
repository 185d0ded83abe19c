"""The pages themselves, over the demo as `make run` starts it: SQLite, its command line client, and what pages show."""

from __future__ import annotations

import os
import struct
from importlib.util import find_spec

import pytest

from tests.browser.shop import insert
from tests.browser.windows import (
    expect,
    expect_card,
    expect_notice,
    expect_state,
    move_on,
    notices,
    place_order,
)
from tests.servers import missing

MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script></script><b>bold</b> & 'quoted' \"twice\""
UNBREAKABLE = "W" * 70
WIDTH, HEIGHT = 390, 844  # a telephone


def test_sqlite3_publishes_with_the_command_on_the_page_typed_where_the_demo_runs(corner_shop, windows):
    boards = [windows.open(corner_shop, "/board") for _ in range(2)]
    boards[0].get_by_text("Publish from a terminal").click()
    command = boards[0].locator("#command").inner_text()
    assert command.startswith("sqlite3 demo.db ")
    corner_shop.shell(command)
    for board in boards:
        expect_notice(board, "Oat milk is out until noon")


def test_an_order_placed_on_sqlite_appears_on_the_board_and_moves(corner_shop, windows):
    board, counter = windows.open(corner_shop, "/board"), windows.open(corner_shop, "/")
    number = place_order(counter, "Annie", "Scones", "5.10")
    expect(expect_card(board, number, "new")).to_contain_text("Annie")
    move_on(counter, number)
    expect_card(board, number, "preparing")


def test_markup_in_orders_and_notices_is_shown_as_text(corner_shop, windows):
    # Without the pages' own Content-Security-Policy, which would hide a mistake.
    browser = windows.browser(bypass_csp=True)
    board, counter = windows.open(corner_shop, "/board", browser), windows.open(corner_shop, "/", browser)
    customer = MARKUP[:80]
    number = place_order(counter, customer, MARKUP, "1")
    card = expect_card(board, number, "new")
    corner_shop.sql(insert({"note": MARKUP}) + insert({MARKUP: [MARKUP]}))
    expect_notice(board, MARKUP)
    expect(board.locator(".notice")).to_have_count(2)
    expect(board.locator(".notice").first).to_contain_text("Not understood")
    expect(board.locator(".notice").first).to_contain_text("<b>bold</b>")

    # What the page was loaded with takes another way than what came to it later.
    loaded = windows.open(corner_shop, "/board", browser)
    for shown in (card, expect_card(loaded, number, "new"), counter.locator("#row-{}".format(number))):
        expect(shown).to_contain_text(customer)
        expect(shown).to_contain_text(MARKUP)
    for page in (board, loaded, counter):
        expect(page.locator("img, b, main script")).to_have_count(0)


@pytest.mark.parametrize("path", ["/", "/board"])
def test_a_page_fits_a_telephone(corner_shop, windows, tmp_path, path):
    page = windows.open(corner_shop, path, windows.browser(viewport={"width": WIDTH, "height": HEIGHT}))
    counter = windows.open(corner_shop, "/")
    number = place_order(counter, UNBREAKABLE, UNBREAKABLE, "99999.99")
    if path == "/board":
        expect_card(page, number, "new")
        corner_shop.note(UNBREAKABLE)
        expect_notice(page, UNBREAKABLE)
        page.get_by_text("Publish from a terminal").click()
    else:
        expect(page.locator("#row-{}".format(number))).to_be_visible()
    expect(page.locator("#command")).to_be_visible()
    assert page.evaluate("() => document.documentElement.scrollWidth") == WIDTH
    assert photographed(page, tmp_path / "page.png")[0] == WIDTH


@pytest.mark.parametrize("path", ["/", "/board"])
def test_a_page_has_no_errors_in_its_console(corner_shop, windows, tmp_path, path):
    page = windows.open(corner_shop, path)
    corner_shop.sql(insert({"note": "Seen on " + path}))
    expect(page.locator("#last")).to_contain_text("seen after")
    page.reload()
    expect_state(page, "live")
    assert page.evaluate("() => document.documentElement.scrollWidth") == 1280
    assert photographed(page, tmp_path / "page.png")[0] == 1280
    # `windows` fails this test if the console said anything.


def test_the_pages_run_on_jquery_1_7(corner_shop, windows):
    # jQuery 1.x tries out inline styles when it starts; the pages' Content-Security-Policy refuses, and says so.
    windows.foreseen = "status of 410|Applying inline style"
    browser = windows.browser()
    path = old_jquery()
    browser.route("**/jquery.min.js", lambda route: route.fulfill(path=path, content_type="text/javascript"))
    board, counter = windows.open(corner_shop, "/board", browser), windows.open(corner_shop, "/", browser)
    for page in (board, counter):
        assert page.evaluate("() => window.jQuery.fn.jquery") == "1.7"
    corner_shop.note("From a terminal")
    expect_notice(board, "From a terminal")
    number = place_order(counter, "Old browser", "Old fashioned", "7")
    expect_card(board, number, "new")
    move_on(counter, number)
    expect_card(board, number, "preparing")
    with board.expect_response("**/board/state?*"):
        corner_shop.new_log()
    corner_shop.note("In the new log")
    expect_notice(board, "In the new log")
    assert notices(board) == ["From a terminal", "In the new log"]


def old_jquery():
    """jQuery 1.7 from the package django-jquery: the oldest with on(), which the pages need."""
    package = find_spec("jquery")
    if package is None:
        missing("django-jquery")
    return os.path.join(list(package.submodule_search_locations)[0], "static", "js", "jquery.js")


def photographed(page, path):
    """Width and height of the whole page's picture, kept at *path* for whoever wants to look."""
    page.screenshot(path=str(path), full_page=True, animations="disabled")
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    return struct.unpack(">II", header[16:])
