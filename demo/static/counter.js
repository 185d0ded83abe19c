/* The counter: its list is the server's own HTML, fetched again when an event says that something changed. */
(function (window, $) {
    "use strict";

    var EXAMPLES = [
        ["Alan", "Apple pie, oat cappuccino", "8.10"],
        ["Edsger", "Toastie by the shortest path", "6.50"],
        ["Frances", "Ramen, green tea", "13.20"],
        ["Joan", "Black coffee", "2.80"],
        ["Ken", "2 × bagel, fresh orange juice", "11.60"],
        ["Radia", "Garden salad, lemonade", "10.40"]
    ];
    var RETRY_MS = 2000;
    var config = JSON.parse($("#config").text());
    var line = window.createLine();
    var busy = false;
    var wanted = false;

    function refresh(done) {
        $.ajax({ url: config.reload, dataType: "html", cache: false, timeout: 10000 }).done(function (html) {
            var focused = window.document.activeElement ? window.document.activeElement.id : "";
            $("#open").html(html);
            if (/^advance-\d+$/.test(focused)) {
                $("#" + focused).trigger("focus"); /* who works by keyboard stays on the order */
            }
            done(true);
        }).fail(function () {
            done(false);
        });
    }

    /* One request at a time, and one more if something came meanwhile; what failed is tried again. */
    function renew() {
        wanted = true;
        if (!busy) {
            wanted = false;
            busy = true;
            refresh(function (done) {
                busy = false;
                if (!done) {
                    window.setTimeout(renew, RETRY_MS);
                } else if (wanted) {
                    renew();
                }
            });
        }
    }

    line.follow(window.LegacyPoll.connect({
        url: config.stream,
        channels: [config.channel],
        cursor: config.cursor,
        onstate: line.show,
        onresync: function (code, cursor, done) {
            refresh(done);
        }
    }).on("*", function (event) {
        line.seen(event);
        renew();
    }));

    $("#example").prop("hidden", false).on("click", function () {
        var example = EXAMPLES[Math.floor(Math.random() * EXAMPLES.length)];
        $("#customer").val(example[0]);
        $("#items").val(example[1]);
        $("#total").val(example[2]);
        $("#new-order .primary").trigger("focus");
    });

    /* A double click is one order. The browser may bring the page back as it was left: with the button off. */
    $("#new-order").on("submit", function () {
        $(this).find(".primary").prop("disabled", true);
    });
    $(window).on("pageshow", function () {
        $("#new-order .primary").prop("disabled", false);
    });

    $("[aria-invalid]").first().trigger("focus");
}(window, window.jQuery));
