/* The line to the server, as the header shows it: its state, and how old the last event was when it got here. */
(function (window, $) {
    "use strict";

    var WORDS = {
        connecting: "Connecting",
        live: "Live",
        reloading: "Loading anew",
        reconnecting: "Reconnecting",
        refused: "Refused"
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

        /* Beside the text that a screen reader says aloud, which shall not do so every second. */
        function countdown() {
            var left_s = Math.ceil((back_ms - new Date().getTime()) / 1000);
            var waits = $("#badge").attr("data-state") === "reconnecting" && left_s > 1;
            $("#badge-wait").text(waits ? "in " + left_s + " s" : "");
        }

        window.setInterval(countdown, 500);

        return {
            show: function (state, detail) {
                if ($("#badge").attr("data-state") !== state) {
                    $("#badge").attr("data-state", state);
                    $("#badge-text").text(WORDS[state] + (state === "refused" ? ": " + detail.reason : ""));
                }
                $("#badge").attr("title", detail ? detail.reason : "");
                back_ms = new Date().getTime() + (detail && detail.delay_ms ? detail.delay_ms : 0);
                countdown();
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
