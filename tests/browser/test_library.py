"""The browser library in real Chromium, over whatever happens to servers, networks, pages and logins."""

from __future__ import annotations

import pytest

from tests.browser.pages import TAIL_EVENTS, WAIT_SECONDS
from tests.waiting import until

# Keeps at each event what the cursor was, so that a test sees what moved when.
CURSORS = """() => {
    window.cursors = [];
    poll.on("*", function () {
        cursors.push(poll.cursor);
    });
}"""


def test_a_page_goes_on_from_the_cursor_that_it_was_given(site, tabs):
    channel = site.channel()
    first = tabs.live(site, channels=[channel])
    site.publish(channel, 1)
    first.shows(1)
    cursor = first.page.evaluate("() => poll.cursor")
    site.publish(channel, 2, {"text": "</script>\u2028 & é"})
    second = tabs.live(site, channels=[channel], cursor=cursor)
    second.shows(2, {"text": "</script>\u2028 & é"})
    first.shows(1, 2, {"text": "</script>\u2028 & é"})


# Servers


def test_a_killed_server_is_shown_and_what_commits_meanwhile_comes_in_order(site, tabs):
    channel = site.channel()
    tab = tabs.live(site, channels=[channel])
    tab.badge("live")
    site.publish(channel, 1)
    tab.shows(1)
    site.crash()
    tab.badge("reconnecting")
    site.publish(channel, 2, 3)
    site.start()
    tab.badge("live")
    tab.shows(1, 2, 3)
    site.publish(channel, 4)
    tab.shows(1, 2, 3, 4)


def test_a_killed_worker_loses_and_doubles_nothing(site, tabs):
    channel = site.channel()
    tab = tabs.live(site, channels=[channel])
    site.holds(1)
    site.publish(channel, 1)
    for worker in site.workers:
        site.kill(worker)
    site.publish(channel, 2)
    tab.shows(1, 2)
    site.wait_until_ready()
    tab.is_("live")


def test_events_that_come_while_the_page_works_are_each_handled_once(site, tabs):
    channel = site.channel()
    tab = tabs.live(site, channels=[channel], limit=3)
    for number in range(30):
        site.publish(channel, number)
    tab.shows(*range(30))


# The network


def test_a_page_that_was_offline_catches_up(site, tabs):
    browser, channel = tabs.browser(), site.channel()
    # Chromium lets a request that is under way end: so, a short one.
    tab = tabs.live(site, browser, channels=[channel], timeout=2000)
    browser.set_offline(True)
    tab.badge("reconnecting")
    assert tab.reasons()[0] == "network"
    site.publish(channel, 1, 2)
    browser.set_offline(False)
    tab.badge("live")
    tab.shows(1, 2)


def test_a_slow_network_delays_and_does_no_more(site, tabs):
    channel = site.channel()
    tab = tabs.live(site, channels=[channel])
    tab.devtools("Network.enable")
    # 2G: half a second each way, 4 KiB a second.
    tab.devtools(
        "Network.emulateNetworkConditions",
        offline=False,
        latency=500,
        downloadThroughput=4096,
        uploadThroughput=4096,
    )
    large = "x" * 8192
    site.publish(channel, 1, large, 2)
    tab.shows(1, large, 2)
    assert tab.reasons() == []


@pytest.mark.parametrize("kind", ["login", "portal"])
def test_a_page_of_html_instead_of_an_answer_is_no_answer(asked_site, tabs, kind):
    site = asked_site
    channel = site.channel()
    tab = tabs.live(site, channels=[channel])
    site.front(kind)
    site.publish(channel, 1)  # ends the held poll; what is asked next meets the front
    tab.badge("reconnecting")
    tab.waited_for("body")
    site.publish(channel, 2)
    site.front()
    tab.badge("live")
    tab.shows(1, 2)
    assert tab.page.evaluate("() => [resyncs, errors]") == [[], []]


# Pages


def test_a_page_in_the_back_forward_cache_holds_nothing_and_goes_on_when_it_is_back(site, everyday_tabs):
    channel = site.channel()
    tab = everyday_tabs.own_window(site, channels=[channel])
    site.publish(channel, 1)
    tab.shows(1)
    site.holds(1)
    tab.page.goto(site.url + "/hello")
    site.holds(0)
    site.publish(channel, 2)
    tab.back()
    assert tab.page.evaluate("() => shows") == [False, True]
    tab.shows(1, 2)
    tab.is_("live")
    assert tab.reasons() == ["frozen"]


def test_the_cursor_outlives_navigation_in_the_sessions_storage(site, tabs):
    channel = site.channel()
    tab = tabs.live(site, channels=[channel], storage="session")
    site.publish(channel, 1)
    tab.shows(1)
    asked = tab.page.url
    tab.page.goto(site.url + "/hello")
    site.publish(channel, 2)
    tab.page.goto(asked)
    tab.shows(2)
    another = tabs.live(site, tab.page.context, channels=[channel], storage="session")
    site.publish(channel, 3)
    another.shows(3)  # that tab has another session
    tab.shows(2, 3)


def test_a_handler_that_throws_is_reported_and_stops_nothing(site, tabs):
    channel = site.channel()
    tab = tabs.live(site, channels=[channel])
    tab.page.evaluate("""() => {
        poll.on("*", function (event) {
            throw new Error("handler of " + event.data);
        });
        poll.on("*", function (event) {
            got.push("after " + event.data);
        });
    }""")
    site.publish(channel, 1, 2)
    tab.shows(1, "after 1", 2, "after 2")
    assert tab.page.evaluate("() => errors") == ["handler of 1", "handler of 2"]
    tab.is_("live")


def test_the_cursor_moves_behind_the_handlers_and_what_one_stopped_before_comes_again(site, tabs):
    channel = site.channel()
    tab = tabs.live(site, channels=[channel])
    before = tab.page.evaluate("() => poll.cursor")
    tab.page.evaluate(CURSORS)
    tab.page.evaluate('() => { poll.on("*", function (event) { if (event.data === 2) { poll.stop(); } }); }')
    site.publish(channel, 1)
    tab.shows(1)
    site.publish(channel, 2, 3)
    tab.is_("stopped")
    tab.shows(1, 2)
    tab.page.evaluate("() => { poll.start(); }")
    tab.shows(1, 2, 3)
    first, second, third = tab.page.evaluate("() => cursors")
    assert first == before and second == third != before


# 410


def test_a_new_log_calls_onresync_and_polling_goes_on(site, tabs):
    channel = site.channel()
    tab = tabs.live(site, channels=[channel])
    site.publish(channel, 1)
    tab.shows(1)
    site.operator("new-log", "--yes")
    tab.resynced("cursor_unknown")
    tab.is_("live")
    site.publish(channel, 2)
    tab.shows(1, 2)


def test_a_cursor_whose_events_were_trimmed_calls_onresync_and_waits_for_it(site, tabs):
    channel = site.channel()
    tab = tabs.live(site, channels=[channel])
    tab.page.evaluate("""() => {
        poll.stop();
        poll.onresync = function (code, cursor, done) {
            resyncs.push(code);
            window.reloaded = done;
        };
    }""")
    site.publish(channel, *range(TAIL_EVENTS + 10))
    site.operator("trim", RETENTION_EVENTS=1)
    tab.page.evaluate("() => { poll.start(); }")
    tab.is_("stale")
    tab.badge("reconnecting")
    tab.resynced("cursor_expired")
    site.publish(channel, "after")
    assert tab.got() == []
    tab.page.evaluate("() => { reloaded(); }")
    tab.is_("live")
    until(lambda: tab.got()[-1:] == ["after"], WAIT_SECONDS, "polling goes on")


# Logins


def test_a_refused_page_says_so_and_goes_on_with_a_new_token(site, tabs):
    channel = site.channel("staff")
    tab = tabs.open(site, channels=[channel], token="not a token")
    tab.badge("log in")
    assert tab.page.evaluate("() => states.slice(-1)[0][0]") == "failed"
    token = site.get("/token?channel=" + channel)
    elsewhere = site.get("/token?channel=staff-elsewhere")
    tab.page.evaluate("token => { poll.start({token: token}); }", elsewhere)  # 403: good, and not for this
    until(lambda: len(tab.reasons("failed")) == 2, WAIT_SECONDS, "refused again")
    assert tab.reasons("failed")[1] == "forbidden"
    tab.page.evaluate("token => { poll.start({token: token}); }", token)
    tab.badge("live")
    site.publish(channel, 1)
    tab.shows(1)


@pytest.mark.parametrize("where", ["query", "header"])
def test_a_page_fetches_its_token_itself(site, tabs, where):
    channel = site.channel("staff")
    tab = tabs.live(site, channels=[channel], tokens="/token?channel=" + channel, tokenIn=where)
    site.publish(channel, 1)
    tab.shows(1)


# Pages of other sites


@pytest.mark.parametrize("where", ["query", "header"])
def test_a_page_of_an_allowed_origin_polls_across(site, tabs, where):
    channel = site.channel("staff")
    token = site.get("/token?channel=" + channel)
    options = {"url": site.url + "/poll", "token": token, "tokenIn": where}
    tab = tabs.live(site, origin=site.other, channels=[channel], **options)
    site.publish(channel, 1)
    tab.shows(1)
    site.operator("new-log", "--yes")  # a 410 may be read as well
    tab.resynced("cursor_unknown")
    site.publish(channel, 2)
    tab.shows(1, 2)


def test_cookies_go_to_another_origin_only_when_asked(site, tabs):
    browser, channel = tabs.browser(), site.channel("members")
    browser.add_cookies([{"name": "member", "value": "yes", "url": site.url}])
    options = {"origin": site.other, "channels": [channel], "url": site.url + "/poll"}
    stranger = tabs.open(site, browser, **options).is_("failed")
    member = tabs.live(site, browser, withCredentials=True, **options)
    site.publish(channel, 1)
    member.shows(1)
    assert stranger.got() == []


def test_a_page_of_an_origin_that_is_not_allowed_polls_by_jsonp_alone(site, tabs):
    browser, channel = tabs.browser(), site.channel()
    options = {"origin": site.stranger, "channels": [channel], "url": site.url + "/poll"}
    hidden = tabs.open(site, browser, share=False, **options)
    hidden.waited_for("network")
    tab = tabs.live(site, browser, jsonp=True, **options)
    site.publish(channel, 1, 2)
    tab.shows(1, 2)
    site.operator("new-log", "--yes")
    tab.resynced("cursor_unknown")
    site.publish(channel, 3)
    tab.shows(1, 2, 3)
    assert tab.page.evaluate("() => document.readyState") == "complete"
    assert hidden.got() == [] and set(hidden.reasons()) == {"network"}
    assert tab.page.evaluate("() => document.scripts.length") < 5  # answered ones are taken away
