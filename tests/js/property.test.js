/* Random answers, good and bad, to one tab. Whatever comes:
 *   - the cursor never passes an event that was not handled; each is handled once, in order;
 *   - no more than 12 requests in 8 seconds, but for one after each answer that brought something new;
 *   - one request at a time; every change of state is one of docs/browser.md; in the end it is live.
 */
var kit = typeof process === "object" ? require("./kit.js") : kit;
var LegacyPoll = typeof process === "object" ? require("../../legacy_poll/static/legacy-poll.js") : LegacyPoll;

(function () {
  "use strict";

  var same = kit.same, ok = kit.ok;
  var MOST = 12, WINDOW = 8000;
  var legal = {
    stopped: ["connecting", "waiting"],
    connecting: ["live", "waiting", "stale", "failed", "stopped"],
    live: ["connecting", "waiting", "stale", "failed", "stopped"],
    waiting: ["connecting", "live", "stopped"],
    stale: ["connecting", "waiting", "stopped"],
    failed: ["connecting", "waiting", "stopped"]
  };
  var HTML = "<!DOCTYPE html><title>Sign in</title>";

  function position(cursor) {
    return +String(cursor || "c0").slice(1);
  }

  function play(seed) {
    var world = kit.world({seed: seed}), tab = world.tab(seed % 3 ? [] : ["performance"]), random = kit.random(seed * 104729);
    var server = kit.server(world, {lags: [0, 50], most: 1 + seed % 4}), honest = world.server;
    var handled = [], floor = 0, state = "stopped", trouble = true, lastPosition = 0, earned = {}, step, poll;

    function check() {
      var now = position(poll && poll.cursor);
      if (now !== lastPosition) {
        same(handled.slice(-1000).join(), server.ids(floor).slice(0, handled.length).join(), "order, seed " + seed);
        ok(handled.length >= server.log.slice(floor, now).filter(function (event) {
          return event.type;
        }).length, "the cursor passed an event, seed " + seed);
        lastPosition = now;
      }
      ok(world.open().length <= 1, "one request at a time, seed " + seed);
    }

    /* What the answer brings, as the tab will see it. */
    function bringsNews(request, events, cursor) {
      return cursor !== request.params.cursor && events.some(function (event) {
        return handled.indexOf(event.id) < 0;
      });
    }

    world.server = function (request) {
      var dice = random(), known = server.log.slice(floor, Math.max(floor, position(request.params.cursor))).filter(function (event) {
        return event.type;
      }).slice(-3).map(function (event) {
        return {id: event.id, type: event.type, channel: "orders", data: 0, time: ""};
      }), good = request.good;
      request.good = function (events, cursor, more) {
        request.news = bringsNews(request, events, cursor);
        if (trouble && random() < 0.2) {
          events = known.concat(events); /* a replay */
        }
        if (more && random() < 0.3) {
          request.answer(200, "   " + JSON.stringify({events: events, cursor: cursor, more: true}));
        } else {
          good(events, cursor, more);
        }
      };
      check();
      if (!trouble || dice < 0.55) {
        honest(request);
      } else if (dice < 0.6) {
        request.cut();
      } else if (dice < 0.64) {
        request.answer(200, [HTML, "", "{\"events\": [{", "[]", "null", "7", "{\"events\": [null], \"cursor\": \"\"}"][Math.floor(random() * 7)]);
      } else if (dice < 0.68) {
        request.answer([404, 408, 500, 502, 504][Math.floor(random() * 5)], HTML);
      } else if (dice < 0.72) {
        request.answer(random() < 0.5 ? 429 : 503, "", {"Retry-After": [0, 1, 3, "x"][Math.floor(random() * 4)]});
      } else if (dice < 0.76) {
        request.answer(200, {error: {code: "draining", message: ""}, cursor: request.params.cursor});
      } else if (dice < 0.8) {
        request.good([], request.params.cursor || "c0");
      } else if (dice < 0.84) {
        request.good(known, request.params.cursor || "c0", true);
      } else if (dice < 0.88) {
        request.error(401, "unauthorized");
      } else if (dice < 0.92) {
        request.error(410, "cursor_unknown", "c" + server.log.length);
      } else if (dice < 0.95) {
        world.later(random() * 20000, function () {
          request.cut();
        });
      } /* else silence */
    };

    poll = LegacyPoll.connect({
      share: false, cursor: "c0", storage: seed % 2 ? "session" : undefined, jsonp: seed % 7 === 0,
      token: function (done) {
        world.later(5, function () {
          done(random() < 0.9 && "t");
        });
      },
      onresync: function (code, cursor, done) {
        world.later(random() * 3000, function () {
          var fine = random() < 0.8;
          if (fine && poll.state === "stale") {
            floor = position(cursor);
            handled = [];
          }
          done(fine);
        });
      },
      onstate: function (next) {
        ok(legal[state].indexOf(next) >= 0, state + " -> " + next + ", seed " + seed);
        state = next;
      },
      onerror: function (error) {
        ok(error === "mine", error);
      }
    }, tab).on("*", function (event) {
      handled.push(event.id);
      if (random() < 0.05) {
        throw "mine";
      }
      if (random() < 0.03) {
        poll.stop();
        world.later(random() * 3000, function () {
          poll.start();
        });
      }
    });

    for (step = 0; step < 80; step += 1) {
      if (random() < 0.6) {
        server.publish(random() < 0.8 ? "a" : null);
      }
      if (random() < 0.05) {
        tab.emit("online");
      } else if (random() < 0.03) {
        world.sleep(random() * 7200000, seed % 2);
      } else if (random() < 0.03) {
        tab.emit("pagehide");
        world.run(random() * 100);
        tab.emit("pageshow");
      }
      world.run(random() < 0.5 ? random() * 50 : random() * 6000);
      check();
      if (state === "failed") {
        poll.start();
      }
    }
    trouble = false;
    if (state === "failed") {
      poll.start();
    }
    world.run(120000);
    server.publish("last");
    world.run(60000);
    check();
    same([state, handled], ["live", server.ids(floor)], "seed " + seed);
    same(tab.errors.map(String), [], "seed " + seed);

    world.requests.forEach(function (request, i) {
      earned[i] = i > 0 && world.requests[i - 1].news;
    });
    var unearned = world.requests.filter(function (request, i) {
      return !earned[i];
    });
    unearned.forEach(function (request, i) {
      if (i >= MOST) {
        ok(request.wall - unearned[i - MOST].wall >= WINDOW - 1, "rate, seed " + seed + " at " + request.at);
      }
    });
  }

  kit.test("whatever is answered", function () {
    var most = typeof process === "object" ? 400 : 10, seed;
    for (seed = 1; seed <= most; seed += 1) {
      play(seed);
    }
  });
}());
