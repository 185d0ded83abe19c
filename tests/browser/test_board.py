"""From a commit on PostgreSQL to the page: in many windows, over restarts, and into another log."""

from __future__ import annotations

import signal
from urllib.parse import parse_qs, urlsplit

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
from tests.servers import _alive
from tests.waiting import until

HOLD_MS = "timeout=25000"


def test_a_commit_in_psql_shows_in_two_browsers_that_two_workers_hold(shop, windows):
    boards = []
    for worker in shop.workers:
        # The other worker is stopped until this board's poll is on its way: to this one, as there is no other.
        with shop.only(worker):
            browser = windows.browser()
            with browser.expect_event("request", lambda request: HOLD_MS in request.url):
                boards.append(windows.open(shop, "/board", browser))
    assert len(boards) == 2
    shop.note("Two browsers, one commit")
    for board in boards:
        expect_notice(board, "Two browsers, one commit")


def test_a_commit_in_psql_shows_in_seven_windows_of_one_browser(shop, windows):
    # A browser makes six connections to a host: did each window hold a poll, the seventh would not even load.
    browser = windows.browser()
    boards = [windows.open(shop, "/board", browser) for _ in range(7)]
    shop.note("Seven windows, one commit")
    for board in boards:
        expect_notice(board, "Seven windows, one commit")
    said = ["Another tab polls for this one"] * 6 + ["This tab polls"]
    until(lambda: sorted(board.inner_text("#who") for board in boards) == said, 30, "one of them polls")
    counter = windows.open(shop, "/", browser)
    number = place_order(counter, "Seventh", "Tea", "2")
    for board in boards:
        expect_card(board, number, "new")
        assert notices(board) == ["Seven windows, one commit"]


def test_the_command_on_the_page_publishes_to_it(shop, windows):
    board = windows.open(shop, "/board")
    board.get_by_text("Publish from a terminal").click()
    command = board.locator("#command").inner_text()
    assert command.startswith("psql ")
    shop.shell(command)
    expect_notice(board, "Oat milk is out until noon")


def test_an_order_placed_with_the_keyboard_appears_on_the_board_and_moves(shop, windows):
    board, counter, other = windows.open(shop, "/board"), windows.open(shop, "/"), windows.open(shop, "/")
    number = place_order(counter, "Hedy", "Hopping soup", "4,50")
    card = expect_card(board, number, "new")
    expect(card).to_contain_text("Hedy")
    expect(card).to_contain_text("Hopping soup")
    expect(card.locator(".card-total")).to_have_text("4.50")
    for status in ("preparing", "ready", "collected"):
        row = other.locator("#row-{}".format(number))
        expect(row).to_be_visible()
        move_on(counter, number)
        expect_card(board, number, status)
    expect(row).to_have_count(0)


def test_an_event_older_than_what_the_page_knows_changes_nothing(shop, windows):
    board, counter = windows.open(shop, "/board"), windows.open(shop, "/")
    number = place_order(counter, "Barbara", "Twice", "1")
    move_on(counter, number)
    expect_card(board, number, "preparing")
    old = {"id": number, "version": 1, "status": "ready", "customer": "Old", "items": "Old", "total": "0"}
    shop.sql(insert(old, type="order.changed"))
    shop.note("Behind the old one")
    expect_notice(board, "Behind the old one")
    expect(expect_card(board, number, "preparing")).to_contain_text("Barbara")


def test_the_next_poll_asks_from_the_cursor_of_the_last_answer(shop, windows):
    browser = windows.browser()
    with browser.expect_event("request", lambda request: HOLD_MS in request.url):
        board = windows.open(shop, "/board", browser)
    with board.expect_request(lambda request: HOLD_MS in request.url) as following:
        with board.expect_response(lambda response: HOLD_MS in response.url) as answer:
            shop.note("Moves the cursor")
    asked = parse_qs(urlsplit(following.value.url).query)["cursor"]
    assert asked == [answer.value.headers["legacy-poll-cursor"]]
    assert asked != parse_qs(urlsplit(answer.value.url).query)["cursor"]


def test_a_rolled_back_transaction_shows_nothing(shop, windows):
    board = windows.open(shop, "/board")
    shop.sql("BEGIN; " + insert({"note": "never"}) + " ROLLBACK; " + insert({"note": "Committed"}))
    expect_notice(board, "Committed")
    assert notices(board) == ["Committed"]


def test_an_event_committed_while_gunicorn_was_down_appears_once(shop, windows):
    windows.foreseen = "ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|status of 503"
    board = windows.open(shop, "/board")
    shop.note("Before")
    expect_notice(board, "Before")
    shop.stop()
    expect_state(board, "reconnecting")
    shop.note("While it was down")
    shop.start()
    expect_state(board, "live")
    expect_notice(board, "While it was down")
    shop.note("After")
    expect_notice(board, "After")
    assert notices(board) == ["Before", "While it was down", "After"]


def test_a_reload_of_gunicorn_loses_and_repeats_nothing(shop, windows):
    windows.foreseen = "status of 503"
    board = windows.open(shop, "/board")
    committed = []

    def commit():
        committed.append("Reload {}".format(len(committed)))
        shop.note(committed[-1])

    def reloaded():
        commit()
        return not any(map(_alive, old)) and len(shop.workers) == 2

    commit()
    old = shop.workers
    shop.signal(signal.SIGHUP)
    until(reloaded, 30, "two new workers and none of the old")
    shop.wait_until_ready()
    commit()
    expect_notice(board, committed[-1])
    expect_state(board, "live")
    assert notices(board) == committed


def test_a_board_whose_log_was_replaced_loads_its_state_anew_and_goes_on(shop, windows):
    windows.foreseen = "status of 410"
    board, counter = windows.open(shop, "/board"), windows.open(shop, "/")
    number = place_order(counter, "Restored", "From a backup", "1")
    expect_card(board, number, "new")
    # What a restore does: the tables say something else, and no event tells of it.
    shop.sql("UPDATE demo_order SET status = 'ready' WHERE id = {}".format(number))
    with board.expect_response("**/board/state?*"), board.expect_response("**/poll/stream?*") as told:
        shop.new_log()
    assert told.value.status == 410 and told.value.json()["error"]["code"] == "cursor_unknown"
    expect_card(board, number, "ready")
    expect(counter.locator("#row-{} .tag".format(number))).to_have_text("Ready")
    for page in (board, counter):
        expect_state(page, "live")
    shop.note("The new log goes on")
    expect_notice(board, "The new log goes on")
    assert notices(board) == ["The new log goes on"]
