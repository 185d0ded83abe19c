"""Tabs of one browser share one poll: who leads may close, crash, hang or be frozen, and nothing is lost or doubled."""

from __future__ import annotations

from contextlib import suppress

import pytest

from tests.browser.pages import WAIT_SECONDS
from tests.waiting import until


def one_leads(tabs):
    """Waits until exactly one leads; (that one, the others)."""
    until(lambda: sum(tab.leads() for tab in tabs) == 1, WAIT_SECONDS, "one tab leads")
    [leader] = [tab for tab in tabs if tab.leads()]
    return leader, [tab for tab in tabs if tab is not leader]


@pytest.fixture(params=[False, True], ids=["locks", "localStorage"])
def old(request):
    """Whether the browser has neither Web Locks nor BroadcastChannel."""
    return request.param


def all_show(tabs, *data):
    for tab in tabs:
        tab.shows(*data)


def test_two_tabs_share_one_poll_and_each_handles_every_event_once(site, tabs, old):
    browser, channel = tabs.browser(), site.channel()
    both = [tabs.live(site, browser, channels=[channel], old=old) for _ in range(2)]
    one_leads(both)
    site.holds(1)
    site.publish(channel, 1, 2, 3)
    all_show(both, 1, 2, 3)
    site.publish(channel, 4)
    all_show(both, 1, 2, 3, 4)
    for tab in both:
        tab.badge("live")
    site.holds(1)


def test_tabs_that_want_other_things_or_their_own_poll_share_none(site, tabs):
    browser, channel = tabs.browser(), site.channel()
    tabs.live(site, browser, channels=[channel])
    tabs.live(site, browser, channels=[channel], share=False)
    site.holds(2)
    tabs.live(site, browser, channels=[site.channel()])
    site.holds(3)
    tabs.live(site, browser, channels=[channel], share="somebody else's")
    site.holds(4)


def close(tab):
    tab.page.close()


def crash(tab):
    with tab.page.expect_event("crash"), suppress(Exception):
        tab.page.goto("chrome://crash")


def hang(tab):
    # As a script that does not end: timers and messages of this page wait, and those of others do not.
    tab.devtools("Debugger.enable")
    tab.page.evaluate("() => { setTimeout(function () { debugger; }, 0); }")


@pytest.mark.parametrize("ends", [close, crash, hang])
def test_another_tab_takes_over_from_a_leader_that_ends(site, tabs, old, ends):
    browser, channel = tabs.browser(), site.channel()
    three = [tabs.live(site, browser, channels=[channel], old=old) for _ in range(3)]
    leader, others = one_leads(three)
    site.publish(channel, 1)
    all_show(three, 1)
    site.publish(channel, 2)
    ends(leader)
    site.publish(channel, 3)
    one_leads(others)
    all_show(others, 1, 2, 3)
    site.publish(channel, 4)
    all_show(others, 1, 2, 3, 4)
    site.holds(1)
    if ends is hang:  # it comes back, and falls in
        leader.devtools("Debugger.resume")
        all_show(three, 1, 2, 3, 4)
        one_leads(three)
        site.publish(channel, 5)
        all_show(three, 1, 2, 3, 4, 5)


def test_a_hidden_leader_that_the_browser_freezes_gives_way_and_falls_in_again(site, everyday_tabs, old):
    channel = site.channel()
    first = everyday_tabs.own_window(site, channels=[channel], old=old)
    three = [first]
    for _ in range(2):
        three.append(everyday_tabs.live(site, beside=first, channels=[channel], old=old))
    assert first.page.evaluate("() => document.hidden")
    assert one_leads(three)[0] is first
    site.publish(channel, 1)
    all_show(three, 1)
    first.devtools("Page.setWebLifecycleState", state="frozen")
    site.publish(channel, 2)
    one_leads(three[1:])
    all_show(three[1:], 1, 2)
    assert (first.got(), first.reasons()[-1:]) == ([1], ["frozen"])
    site.holds(1)
    first.devtools("Page.setWebLifecycleState", state="active")
    all_show(three, 1, 2)
    site.publish(channel, 3)
    all_show(three, 1, 2, 3)
    one_leads(three)
    site.holds(1)


def test_eight_tabs_leave_connections_for_what_pages_ask_besides(site, tabs):
    # A browser has six connections to a host: eight polls would let nothing else through.
    browser, channel = tabs.browser(), site.channel()
    eight = [tabs.live(site, browser, channels=[channel]) for _ in range(8)]
    site.holds(1)
    for tab in eight:
        assert tab.page.evaluate("() => fetch('/hello').then(answer => answer.text())") == "hello"
    site.publish(channel, 0)
    all_show(eight, 0)
    leader, others = one_leads(eight)
    asked = []
    for tab in others:
        tab.page.on("request", lambda request: asked.append(request.url))
    for number in range(1, 20):
        site.publish(channel, number)
    all_show(eight, *range(20))
    assert asked == []


def test_tabs_lose_nothing_when_the_server_is_killed_and_started_again(site, tabs):
    browser, channel = tabs.browser(), site.channel()
    both = [tabs.live(site, browser, channels=[channel]) for _ in range(2)]
    site.publish(channel, 1)
    all_show(both, 1)
    site.crash()
    for tab in both:
        tab.badge("reconnecting")
    site.publish(channel, 2, 3)
    site.start()
    all_show(both, 1, 2, 3)
    for tab in both:
        tab.badge("live")
    site.publish(channel, 4)
    all_show(both, 1, 2, 3, 4)
    one_leads(both)
    site.holds(1)
