/* The board: one card an order, moved by events.
 *
 * Whatever an event says is shown by text(), never as markup: anybody who can INSERT can write it. What is not
 * the snapshot of an order is shown as a notice, so that a typing mistake in a terminal is seen and not guessed at.
 */
(function (window, $) {
    "use strict";

    var NOTICES = 4;
    var LONGEST = 240;
    var AGES_MS = 15000;
    var STATUSES = ["new", "preparing", "ready", "collected"];
    var SAID = { "new": "is new", preparing: "is being prepared", ready: "is ready", collected: "was collected" };

    var document = window.document;
    var config = JSON.parse($("#config").text());
    var line = window.createLine();
    var versions = {}; /* by order number: the newest that this page knows, also of orders no longer shown */

    function isOrder(data) {
        return data !== null && typeof data === "object" && typeof data.id === "number" && data.id > 0 &&
            data.id % 1 === 0 && typeof data.version === "number" && $.inArray(data.status, STATUSES) >= 0;
    }

    function shortened(value) {
        var text = value === undefined || value === null ? "" : String(value);
        return text.length > LONGEST ? text.slice(0, LONGEST) + "…" : text;
    }

    function element(tag, name, value) {
        return $(document.createElement(tag)).addClass(name).text(shortened(value));
    }

    function age(placed) {
        var minutes = Math.floor((new Date().getTime() - window.parseTime(placed)) / 60000);
        if (!(minutes >= 1)) {
            return "just now";
        }
        return minutes < 120 ? minutes + " min" : Math.floor(minutes / 60) + " h";
    }

    /* Cards */

    function card(order) {
        var item = element("li", "card").attr({ id: "order-" + order.id, "data-status": order.status });
        item.append(
            element("span", "card-number", order.id),
            element("span", "card-customer", order.customer),
            element("span", "card-items", order.items),
            element("span", "card-total", order.total),
            element("span", "card-age", age(order.placed)).attr("data-placed", shortened(order.placed))
        );
        return item;
    }

    function place(order) {
        var column = $("#column-" + order.status);
        var after = null;
        var item = card(order).data("number", order.id);

        $("#order-" + order.id).remove();
        if (order.status === "collected") {
            column.prepend(item); /* the latest first: the others are on their way out */
            column.children().slice(config.collected).remove();
            return item;
        }
        column.children().each(function () {
            if ($(this).data("number") < order.id) {
                after = this;
            }
        });
        if (after) {
            item.insertAfter(after);
        } else {
            column.prepend(item);
        }
        return item;
    }

    /* The page may know more than the event says: it was read after the cursor with which its loop began. */
    function isNews(order) {
        return !(versions[order.id] >= order.version);
    }

    function count() {
        var all = 0;
        $.each(STATUSES, function (index, status) {
            var cards = $("#column-" + status).children().length;
            all += cards;
            $("#count-" + status).text(cards);
        });
        $("#nothing").prop("hidden", all > 0);
        $(".columns").prop("hidden", all === 0);
    }

    /* Each card starts where it was, and glides to where it is now. */
    function glide(change) {
        var before = {};
        $(".card").each(function () {
            before[this.id] = this.getBoundingClientRect();
        });
        change();
        $(".card").each(function () {
            var was = before[this.id];
            var is = this.getBoundingClientRect();
            if (was && (was.left !== is.left || was.top !== is.top)) {
                this.style.transition = "none";
                this.style.transform = "translate(" + (was.left - is.left) + "px, " + (was.top - is.top) + "px)";
            }
        });
        document.body.getBoundingClientRect(); /* makes the browser see the old places before the new ones */
        $(".card").each(function () {
            this.style.transition = "";
            this.style.transform = "";
        });
    }

    /* Notices */

    function notice(label, value) {
        var item = element("div", "notice");
        item.append(
            element("span", "notice-label", label),
            element("span", "notice-text", value),
            element("span", "notice-time", window.clockTime(new Date().getTime())),
            $(document.createElement("button")).addClass("notice-close").text("×")
                .attr({ type: "button", "aria-label": "Dismiss this notice" })
        );
        $("#notices").prepend(item);
        $("#notices").children().slice(NOTICES).remove();
    }

    $("#notices").on("click", ".notice-close", function () {
        $(this).parent().remove();
    });

    /* Events */

    function applyOne(event) {
        var data = event.data;
        var arrived;

        if (/^order\./.test(event.type) && isOrder(data)) {
            if (isNews(data)) {
                arrived = !$("#order-" + data.id).length;
                versions[data.id] = data.version;
                place(data).addClass(arrived ? "arrived" : "changed");
                $("#announce").text("Order " + data.id + " " + SAID[data.status]);
            }
        } else if (event.type === "message" && data !== null && typeof data === "object" && typeof data.note === "string") {
            notice("Kitchen", data.note);
        } else {
            notice("Not understood: " + shortened(event.type), JSON.stringify(data));
        }
    }

    function restart(list) {
        versions = {};
        $(".cards").empty();
        $.each(list, function (index, order) {
            versions[order.id] = order.version;
            place(order);
        });
        count();
    }

    window.setInterval(function () {
        $(".card-age").each(function () {
            $(this).text(age($(this).attr("data-placed")));
        });
    }, AGES_MS);

    restart(config.orders);

    line.follow(window.LegacyPoll.connect({
        url: config.stream,
        channels: [config.channel],
        cursor: config.cursor,
        onstate: line.show,
        onresync: function (code, cursor, done) {
            $.ajax({ url: config.reload, dataType: "json", cache: false, timeout: 10000 }).done(function (state) {
                restart(state.orders);
                done();
            }).fail(function () {
                done(false); /* asked again after a pause */
            });
        }
    }).on("*", function (event) {
        glide(function () {
            applyOne(event);
            count();
        });
        line.seen(event);
    }));
}(window, window.jQuery));
