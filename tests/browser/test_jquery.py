"""The jQuery plugin, and a page of 2010 without the library, in real Chromium with the jQuery that pages still have."""

from __future__ import annotations

import pytest

from tests.browser.jqueries import VERSIONS, jquery
from tests.browser.pages import WAIT_SECONDS
from tests.waiting import until

LISTEN = """options => {
    var seen = [], bound = [], states = [], errors = [];
    $(document).bind("legacypoll", function (e, event) {
        seen.push(event.data);
    });
    $(document).bind("legacypoll:order:created", function (e, event) {
        bound.push([event.type, event.data]);
    });
    $(document).bind("legacypollstate.badge", function (e, state) {
        states.push(state);
    });
    $(document).bind("legacypollresync", function (e, code) {
        states.push(code);
    });
    $(document).bind("legacypollerror", function (e, error) {
        errors.push(error.message);
    });
    window.jq = {seen: seen, bound: bound, states: states, errors: errors};
    window.poll = $.legacyPoll(options);
}"""

# The loop as the wire asks for it, in the words of jQuery 1.4.
BY_HAND = """channel => {
    window.seen = [];
    function next(cursor) {
        $.ajax({
            url: "/poll/stream", data: {channel: channel, cursor: cursor}, dataType: "text", cache: false,
            timeout: 40000,
            complete: function (xhr) {
                var from = xhr.getResponseHeader("Legacy-Poll-Cursor");
                if (!from) {
                    return setTimeout(function () { next(cursor); }, 1000 * Math.random());
                }
                if (xhr.status === 200 || xhr.status === 206) {
                    $.each($.parseJSON(xhr.responseText).events, function (i, event) { seen.push(event.data); });
                }
                next(from);
            }
        });
    }
    $.ajax({url: "/poll/cursor", data: {channel: channel}, dataType: "json", cache: false, success: function (answer) {
        window.began = answer.cursor;
        next(answer.cursor);
    }});
}"""


@pytest.fixture(scope="session")
def jqueries(tmp_path_factory):
    folder, texts = tmp_path_factory.mktemp("jquery"), {}

    def text(version):
        if version not in texts:
            texts[version] = jquery(version, folder / version)
        return texts[version]

    return text


@pytest.fixture(params=VERSIONS)
def tab(request, site, tabs, jqueries):
    """A page that has jQuery and the plugin, and no connection yet."""
    text = jqueries(request.param)
    tab = tabs.blank(site)
    tab.page.add_script_tag(content=text)
    tab.page.add_script_tag(url="/poll/jquery.legacy-poll.js")
    assert tab.page.evaluate("() => $.fn.jquery") == request.param
    return tab


def test_events_arrive_as_jquery_events_until_they_are_unbound(site, tabs, tab):
    channel = site.channel()
    tabs.foreseen = "handler of"  # the plugin lets the console know too

    def has(name, *values):
        until(lambda: len(tab.page.evaluate("() => jq." + name)) >= len(values), WAIT_SECONDS, name)
        assert tab.page.evaluate("() => jq." + name) == list(values)

    tab.page.evaluate(LISTEN, {"url": "/poll", "channels": [channel], "cursor": "now"})
    tab.is_("live")
    site.publish(channel, 1, type="order.created")
    site.publish(channel, 2, type="order.changed")
    has("seen", 1, 2)
    has("bound", ["order.created", 1])
    has("states", "connecting", "live")

    tab.page.evaluate('() => { $(document).unbind("legacypoll:order:created"); }')
    tab.page.evaluate('() => { $(document).unbind(".badge"); }')
    tab.page.evaluate("""() => {
        $(document).bind("legacypoll", function (e, event) {
            throw new Error("handler of " + event.data);
        });
    }""")
    site.publish(channel, 3, type="order.created")
    site.operator("new-log", "--yes")
    until(
        lambda: "cursor_unknown" in tab.page.evaluate("() => jq.states"), WAIT_SECONDS, "the event of a 410"
    )
    site.publish(channel, 4, type="order.created")
    has("seen", 1, 2, 3, 4)
    has("bound", ["order.created", 1])
    has("states", "connecting", "live", "cursor_unknown")
    has("errors", "handler of 3", "handler of 4")

    tab.page.evaluate("() => { poll.stop(); }")
    site.holds(0)


def test_a_loop_by_hand_in_jquery_1_4_needs_no_library(site, tabs, jqueries):
    channel, tab = site.channel(), tabs.blank(site)
    tab.page.add_script_tag(content=jqueries("1.4.4"))
    tab.page.evaluate("() => { delete window.LegacyPoll; }")
    tab.page.evaluate(BY_HAND, channel)
    until(lambda: tab.page.evaluate("() => window.began"), WAIT_SECONDS, "the page has a cursor")
    site.holds(1)
    site.publish(channel, 1, 2)
    until(lambda: tab.page.evaluate("() => seen.length") == 2, WAIT_SECONDS, "events")
    site.crash()
    site.publish(channel, 3)
    site.start()
    until(lambda: tab.page.evaluate("() => seen.length") >= 3, WAIT_SECONDS, "what came while it was down")
    site.publish(channel, 4)
    until(lambda: tab.page.evaluate("() => seen.length") >= 4, WAIT_SECONDS, "what came behind it")
    assert tab.page.evaluate("() => seen") == [1, 2, 3, 4]
