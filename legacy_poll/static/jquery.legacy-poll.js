/* $.legacyPoll(options): LegacyPoll.connect(options), whose news are jQuery events as well; jQuery 1.4 to 4.
 *
 *   $.legacyPoll({url: "/poll", channels: ["orders"]});
 *   $(document).bind("legacypoll:order:created", function (e, event) {});    event.type is "order.created"
 *
 * To jQuery a dot begins a namespace, so a type's dots are colons in the name. Beside these: legacypoll (every event),
 * legacypollstate (state, detail), legacypollerror (error, event), legacypollresync (code, cursor). All are triggered
 * on options.target, the document if there is none. A page that must reload after a resync gives options.onresync.
 */
(function (factory) {
  if (typeof module === "object" && module.exports) {
    module.exports = factory;
  } else {
    factory(jQuery, LegacyPoll);
  }
}(function ($, LegacyPoll) {
  $.legacyPoll = function (options, win) {
    var target = $(options.target || document);

    function forward(name, own) {
      return function (a, b) {
        target.trigger(name, [a, b]);
        if (own) {
          own.call(this, a, b);
        }
      };
    }

    return LegacyPoll.connect($.extend({}, options, {
      onstate: forward("legacypollstate", options.onstate),
      onerror: forward("legacypollerror", options.onerror || function (error) {
        throw error; /* to the console: perhaps nobody listens */
      }),
      onresync: options.onresync || forward("legacypollresync")
    }), win).on("*", function (event) {
      target.trigger("legacypoll", [event]);
      target.trigger("legacypoll:" + event.type.replace(/\./g, ":"), [event]);
    });
  };
}));
