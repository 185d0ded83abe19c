/* The loop: asks, hands over what came, asks again.
 *
 *   startPolling({
 *       stream, channel, cursor,      where to ask, for what, and from where
 *       windows,                      from createWindows()
 *       apply(events, done),          show these events; done(false) if that failed: they come again
 *       reload(done),                 forget what is shown and load it anew; done(false) if that failed
 *       show(state, detail)           "connecting" | "live" | "reloading" | "reconnecting" | "refused"
 *   });
 *
 * Its rules:
 * - One request at a time, and schedule() is the one place that starts the next.
 * - The cursor moves after the events were applied, so what was not shown is asked for again. What was shown
 *   and comes again all the same (an answer that was lost on its way) is told by its id.
 * - The first request after a start, a failure or a reload does not hold: its prompt answer is what "live" stands on.
 */
(function (window, $) {
    "use strict";

    var HOLD_MS = 25000;
    var SPARE_MS = 10000; /* a held request without any answer that much later is lost: half-open, or black-holed */
    var FOLLOW_MS = 2000; /* how often a window asks whose browser holds its poll in another window ... */
    var WORD_MS = 300; /* ... and how long it holds after a word from there: its worker may hear later than that one's */
    var QUICK_MS = 500; /* an empty answer to a held poll that came faster was not waited for ... */
    var QUICK_ANSWERS = 3; /* ... which a restarting server does once, and a broken proxy every time */
    var BACKOFF_MS = 500;
    var BACKOFF_MOST_MS = 30000;
    var REFUSED_MS = 60000;
    var REMEMBERED = 1000;

    function now() {
        return new Date().getTime();
    }

    function parsed(text) {
        try {
            return JSON.parse(text);
        } catch (malformed) {
            return null;
        }
    }

    function isArray(value) {
        return Object.prototype.toString.call(value) === "[object Array]";
    }

    window.startPolling = function (options) {
        var cursor = options.cursor;
        var proven = false; /* the last request was answered */
        var failures = 0; /* since the last good answer */
        var reloads = 0; /* in a row */
        var quick = 0; /* empty answers in a row that nobody had waited for */
        var heard = false; /* another window said that something came, after our last request had left */
        var impatient = false; /* the present pause may be cut short */
        var timer = null;
        var known = {};
        var order = [];

        function schedule(delay_ms, may_be_cut_short) {
            impatient = may_be_cut_short;
            if (delay_ms > 0) {
                timer = window.setTimeout(ask, delay_ms);
            } else {
                ask(); /* not by a timer of 0 ms: in a window that nobody sees, that would be a second or more */
            }
        }

        function hurry() {
            if (timer !== null && impatient) {
                window.clearTimeout(timer);
                schedule(0, false);
            }
        }

        function ask() {
            var asked = { at_ms: now(), holds: proven && options.windows.holds(), hold_ms: 0 };
            if (asked.holds) {
                asked.hold_ms = HOLD_MS;
            } else if (proven && heard) {
                asked.hold_ms = WORD_MS;
            }
            timer = null;
            heard = false;
            $.ajax({
                url: options.stream,
                data: { channel: options.channel, cursor: cursor, timeout: asked.hold_ms },
                dataType: "text",
                cache: false,
                timeout: asked.hold_ms + SPARE_MS,
                complete: function (xhr) {
                    answered(xhr, asked);
                }
            });
        }

        function answered(xhr, asked) {
            var body = parsed(xhr.responseText) || {};
            var given = xhr.getResponseHeader("Legacy-Poll-Cursor");

            switch (xhr.status) {
            case 200: /* events, or none where an empty answer was asked for as 200 */
            case 206: /* events, and more of them are waiting */
                if (isArray(body.events) && typeof body.cursor === "string") {
                    deliver(body.events, body.cursor, xhr.status === 206, asked);
                } else {
                    failed("The answer was not from the server"); /* a captive portal answers 200 to anything */
                }
                break;
            case 204: /* none; the cursor moved all the same, and only the header can say where to */
                deliver([], given || cursor, false, asked);
                break;
            case 410: /* the log goes on without us */
                restart(typeof body.cursor === "string" ? body.cursor : given);
                break;
            case 429:
            case 503:
                failed("The server is busy", Number(xhr.getResponseHeader("Retry-After")) * 1000);
                break;
            case 400:
            case 401:
            case 403:
            case 404:
            case 405:
                refused(body.error && body.error.message ? String(body.error.message) : "Status " + xhr.status);
                break;
            default: /* 0: no answer at all */
                failed(xhr.status ? "The server answered " + xhr.status : "The server does not answer");
            }
        }

        function deliver(events, next, more, asked) {
            var fresh = $.grep(events, function (event) {
                return !known["id " + event.id];
            });

            function done(applied) {
                if (applied === false) {
                    return failed("The page could not show what came");
                }
                remember(fresh);
                if (fresh.length && asked.holds) {
                    options.windows.tell();
                }
                moved(next, more, events.length === 0, asked);
            }

            if (fresh.length) {
                options.apply(fresh, done);
            } else {
                done(true);
            }
        }

        function remember(events) {
            $.each(events, function (index, event) {
                known["id " + event.id] = true;
                order.push("id " + event.id);
            });
            while (order.length > REMEMBERED) {
                delete known[order.shift()];
            }
        }

        function moved(next, more, empty, asked) {
            var first = !proven;
            cursor = next;
            proven = true;
            failures = 0;
            reloads = 0;
            quick = empty && asked.holds && now() - asked.at_ms < QUICK_MS ? quick + 1 : 0;
            options.show("live");
            if (quick > QUICK_ANSWERS) {
                schedule(pause(quick - QUICK_ANSWERS), true);
            } else if (asked.holds || more || first || heard) {
                schedule(0, false);
            } else {
                schedule(FOLLOW_MS, true);
            }
        }

        function restart(next) {
            if (!next) {
                return failed("The server named no cursor to go on from");
            }
            options.show("reloading");
            options.reload(function (reloaded) {
                if (reloaded === false) {
                    return failed("The page could not load its orders");
                }
                cursor = next;
                proven = false;
                reloads += 1;
                schedule(reloads > 1 ? pause(reloads) : 0, false);
            });
        }

        function failed(reason, retry_after_ms) {
            var told_when = retry_after_ms > 0; /* no if the header is missing, or is a date */
            var delay_ms = told_when ? retry_after_ms + Math.random() * BACKOFF_MS : pause(failures);
            failures += 1;
            proven = false;
            options.show("reconnecting", { reason: reason, delay_ms: delay_ms });
            schedule(delay_ms, !told_when);
        }

        function refused(reason) {
            proven = false;
            options.show("refused", { reason: reason });
            schedule(REFUSED_MS * (0.5 + Math.random()), false);
        }

        /* Full jitter: anything up to the bound, so that a thousand windows do not come back in one second. */
        function pause(attempt) {
            return Math.random() * Math.min(BACKOFF_MOST_MS, BACKOFF_MS * Math.pow(2, attempt));
        }

        options.windows.onWord(function () {
            heard = true;
            if (proven) {
                hurry();
            }
        });
        $(window).on("online", hurry);
        $(window.document).on("visibilitychange", function () {
            if (!window.document.hidden) {
                hurry();
            }
        });

        options.show("connecting");
        schedule(0, false);
    };
}(window, window.jQuery));
