/* The plugin forwards. A jQuery of our own, of which it needs three things. */
var kit = typeof process === "object" ? require("./kit.js") : kit;

(function () {
  "use strict";

  if (typeof process !== "object") {
    return; /* the plugin wants its globals */
  }

  var LegacyPoll = require("../../legacy_poll/static/legacy-poll.js");
  var factory = require("../../legacy_poll/static/jquery.legacy-poll.js");

  kit.test("$.legacyPoll triggers what happens", function () {
    var world = kit.world(), tab = world.tab(), said = [], own = [], connection, target = {};
    function $(found) {
      kit.same(found === target, true);
      return {trigger: function (name, extra) {
        said.push([name, extra[0].id || extra[0].message || extra[0]].join(" "));
      }};
    }
    $.extend = Object.assign;
    factory($, LegacyPoll);
    connection = $.legacyPoll({share: false, cursor: "c0", target: target, onstate: function (state) {
      own.push(state);
    }}, tab).on("*", function () {
      throw new Error("mine");
    });
    world.last().good([{id: "a", type: "order.paid.late"}], "c1");
    world.run(1);
    world.last().error(410, "cursor_expired", "c9");
    world.run(1);
    kit.same(said, ["legacypollstate connecting", "legacypollstate live", "legacypoll a",
      "legacypoll:order:paid:late a", "legacypollerror mine", "legacypollstate stale", "legacypollresync cursor_expired",
      "legacypollstate connecting"]);
    kit.same(tab.errors.length, 1, "an error that only jQuery heard of reaches the window too");
    kit.same([own, connection.cursor], [["connecting", "live", "stale", "connecting"], "c9"]);
  });
}());
