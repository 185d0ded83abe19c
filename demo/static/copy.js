/* The copy button beside a command. */
(function (window, $) {
    "use strict";

    var document = window.document;

    function selected(element) {
        var range = document.createRange();
        range.selectNodeContents(element);
        window.getSelection().removeAllRanges();
        window.getSelection().addRange(range);
        return document.execCommand("copy");
    }

    $(document).on("click", "[data-copy]", function () {
        var button = $(this);
        var element = document.getElementById(button.attr("data-copy"));

        function say(text) {
            button.text(text);
            window.setTimeout(function () {
                button.text("Copy");
            }, 1500);
        }

        function fallback() {
            say(selected(element) ? "Copied" : "Press Ctrl+C");
        }

        if (window.navigator.clipboard) {
            window.navigator.clipboard.writeText($(element).text()).then(function () {
                say("Copied");
            }, fallback);
        } else {
            fallback();
        }
    });
}(window, window.jQuery));
