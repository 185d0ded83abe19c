/* One held request for all windows of one browser.
 *
 * A browser opens six HTTP/1.1 connections to one host and shares them between its windows: were each to hold a
 * poll, the sixth window would hang, and the counter's form with it. So one window holds, and tells the others
 * through localStorage when something came; they then ask for themselves, each from its own cursor, and are
 * answered at once. A word that is lost costs a moment (they also ask from time to time), never an event; and two
 * windows that hold at once, because a lease ran out under one of them, do no harm.
 */
(function (window, $) {
    "use strict";

    var HOLDER = "demo-orders-holder";
    var WORD = "demo-orders-word";
    var LEASE_MS = 4000;
    var RENEW_MS = 1000;

    function now() {
        return new Date().getTime();
    }

    window.createWindows = function () {
        var me = String(Math.random()).slice(2) + "." + now();
        var storage = null;

        try {
            storage = window.localStorage;
            storage.setItem("demo-orders-probe", me);
        } catch (refused) {
            storage = null; /* switched off or full: then each window holds a poll of its own */
        }

        function holder() {
            var parts = (storage.getItem(HOLDER) || "").split("|");
            var left_ms = Number(parts[1]) - now();
            /* More than a whole lease left means that the clock was set back: nobody renews that one. */
            return left_ms > 0 && left_ms <= LEASE_MS ? parts[0] : "";
        }

        function take() {
            storage.setItem(HOLDER, me + "|" + (now() + LEASE_MS));
        }

        function holds() {
            var present = storage ? holder() : me;
            if (present && present !== me) {
                return false;
            }
            if (storage) {
                take();
            }
            return true;
        }

        function tell() {
            if (storage) {
                storage.setItem(WORD, me + "|" + Math.random());
            }
        }

        function onWord(callback) {
            $(window).on("storage", function (event) {
                if (event.originalEvent.key === WORD) {
                    callback();
                }
            });
        }

        if (storage) {
            window.setInterval(function () {
                if (holder() === me) {
                    take();
                }
            }, RENEW_MS);
            $(window).on("pagehide", function () {
                if (holder() === me) {
                    storage.removeItem(HOLDER);
                    tell(); /* so that another window takes over now, not when the lease runs out */
                }
            });
        }

        return { holds: holds, tell: tell, onWord: onWord };
    };
}(window, window.jQuery));
