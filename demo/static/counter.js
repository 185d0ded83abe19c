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
    var config = JSON.parse($("#config").text());
    var line = window.createLine();

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

    window.startPolling({
        stream: config.stream,
        channel: config.channel,
        cursor: config.cursor,
        windows: window.createWindows(),
        show: line.show,
        reload: refresh,
        apply: function (events, done) {
            line.seen(events[events.length - 1]);
            refresh(done);
        }
    });

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
