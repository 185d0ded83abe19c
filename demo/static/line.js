/* The line to the server, as the header shows it: its state, and how old the last event was when it got here. */
(function (window, $) {
    "use strict";

    /* What the library calls its states (docs/browser.md), and what people read. */
    var SHOWN = {
        connecting: "connecting",
        live: "live",
        waiting: "reconnecting",
        stale: "reloading",
        stopped: "reconnecting",
        failed: "refused"
    };
    var WORDS = {
        connecting: "Connecting",
        live: "Live",
        reloading: "Loading anew",
        reconnecting: "Reconnecting",
        refused: "Refused"
    };
    var REASONS = {
        network: "The server does not answer",
        timeout: "The server does not answer",
        body: "The answer was not from the server",
        frozen: "The browser put this page away",
        leader: "The tab that polls does not reach the server"
    };

    /* Date.parse() does not know this form in the oldest browsers. */
    window.parseTime = function (text) {
        var part = /^(\d+)-(\d+)-(\d+)T(\d+):(\d+):(\d+)(?:\.(\d+))?Z$/.exec(String(text));
        if (!part) {
            return NaN;
        }
        return Date.UTC(part[1], part[2] - 1, part[3], part[4], part[5], part[6]) + Number("0." + (part[7] || 0)) * 1000;
    };

    function clock(time_ms) {
        function two(number) {
            return (number < 10 ? "0" : "") + number;
        }
        var date = new Date(time_ms);
        return two(date.getHours()) + ":" + two(date.getMinutes()) + ":" + two(date.getSeconds());
    }

    function span(ms) {
        if (ms < 1000) {
            return Math.round(ms) + " ms";
        }
        return ms < 90000 ? (ms / 1000).toFixed(1) + " s" : Math.round(ms / 60000) + " min";
    }

    window.clockTime = clock;

    window.createLine = function () {
        var back_ms = 0; /* when the next attempt begins */
        var shown = "connecting";
        var poll = null;

        /* Beside the text that a screen reader says aloud, which shall not do so every second. */
        function tick() {
            var left_s = Math.ceil((back_ms - new Date().getTime()) / 1000);
            $("#badge-wait").text(shown === "reconnecting" && left_s > 1 ? "in " + left_s + " s" : "");
            if (poll) {
                $("#who").text(shown !== "live" ? "" : poll.leads ? "This tab polls" : "Another tab polls for this one");
            }
        }

        window.setInterval(tick, 500);

        return {
            show: function (state, detail) {
                var reason = detail.message || REASONS[detail.reason] || detail.code || detail.reason || "";
                /* Each new attempt is short: the badge does not flicker with them. */
                shown = state === "connecting" && shown !== "connecting" ? "reconnecting" : SHOWN[state];
                if ($("#badge").attr("data-state") !== shown) {
                    $("#badge").attr("data-state", shown);
                    $("#badge-text").text(WORDS[shown] + (shown === "refused" ? ": " + reason : ""));
                }
                $("#badge").attr("title", reason);
                back_ms = new Date().getTime() + (detail.delay || 0);
                tick();
            },

            /* The connection, to show which tab polls. */
            follow: function (connection) {
                poll = connection;
                tick();
            },

            /* Both clocks are one in this demo. Where they are not, the number says more about them than about us. */
            seen: function (event) {
                var now_ms = new Date().getTime();
                var age_ms = now_ms - window.parseTime(event.time);
                var text = "Last event " + clock(now_ms);
                if (age_ms >= 0) {
                    text += " · seen after " + span(age_ms);
                }
                $("#last").text(text).attr("title", String(event.type) + ", " + String(event.id));
            }
        };
    };
}(window, window.jQuery));
