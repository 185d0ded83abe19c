/* Many tabs, one poll. Whoever leads, joins late, dies or hangs: every tab handles every event once, in order. */
var kit = typeof process === "object" ? require("./kit.js") : kit;
var LegacyPoll = typeof process === "object" ? require("../../legacy_poll/static/legacy-poll.js") : LegacyPoll;

(function () {
  "use strict";

  var test = kit.test, same = kit.same, ok = kit.ok;
  var browsers = {
    "locks and channels": [],
    "leases and channels": ["locks"],
    "leases and storage events": ["locks", "BroadcastChannel"]
  };

  function eachBrowser(name, fn) {
    Object.keys(browsers).forEach(function (browser) {
      test(name + " (" + browser + ")", function () {
        fn(browsers[browser]);
      });
    });
  }

  function open(world, without, options) {
    var tab = world.tab(without), one = {tab: tab, got: [], states: []}, all, key;
    all = {channels: ["orders"], cursor: "c0", onstate: function (state) {
      one.states.push(state);
    }};
    for (key in options) {
      all[key] = options[key];
    }
    one.poll = LegacyPoll.connect(all, tab).on("*", function (event) {
      one.got.push(event.id);
    });
    return one;
  }

  function leader(tabs) {
    return tabs.filter(function (one) {
      return one.poll.leads && !one.tab.isDead && !one.tab.isFrozen;
    });
  }

  function three(without, options) {
    var world = kit.world(), server = kit.server(world), tabs = [1, 2, 3].map(function () {
      var one = open(world, without, options);
      world.run(300);
      return one;
    });
    world.run(2000);
    return {world: world, server: server, tabs: tabs};
  }

  eachBrowser("three tabs hold one poll, and all get all", function (without) {
    var at = three(without), asked;
    same([leader(at.tabs).length, at.world.open().length], [1, 1]);
    at.server.publish("a");
    at.world.run(3000);
    asked = at.world.requests.length;
    at.server.publish("b");
    at.server.publish("c");
    at.world.run(100);
    at.tabs.forEach(function (one) {
      same([one.got, one.poll.state, one.poll.cursor], [["e0", "e1", "e2"], "live", "c3"]);
    });
    ok(at.world.requests.length - asked <= 2, "the others asked too");
  });

  eachBrowser("an hour of quiet costs one poll at a time, and no cursor grows old", function (without) {
    var at = three(without), asked = at.world.requests.length, i;
    for (i = 0; i < 360; i += 1) {
      at.server.publish(null);
      at.world.run(10000);
    }
    ok(at.world.requests.length - asked < 3 * 150, at.world.requests.length - asked);
    at.tabs.forEach(function (one) {
      ok(+one.poll.cursor.slice(1) > 350, one.poll.cursor);
      same(one.poll.state, "live");
    });
  });

  ["close", "kill", "freeze"].forEach(function (how) {
    eachBrowser("when the leader is gone by " + how + ", another leads in less than a second", function (without) {
      var at = three(without), old = leader(at.tabs)[0], began = at.world.time, first;
      at.server.publish("a");
      at.world.run(100);
      began = at.world.time;
      old.tab[how]();
      while (!leader(at.tabs).length && at.world.time < began + 5000) {
        at.world.run(10);
      }
      ok(at.world.time - began < 1000, at.world.time - began);
      at.server.publish("b");
      at.world.run(1000);
      at.tabs.forEach(function (one) {
        if (one !== old) {
          same(one.got, ["e0", "e1"]);
        }
      });
      first = leader(at.tabs);
      same(first.length, 1);
      if (how === "freeze") {
        old.tab.thaw();
        at.world.run(3000);
        same([old.got, leader(at.tabs).length, at.world.open().length], [["e0", "e1"], 1, 1]);
      }
    });
  });

  eachBrowser("a leader that is told of its freeze hands over at once", function (without) {
    var at = three(without), old = leader(at.tabs)[0], began = at.world.time;
    old.tab.document.emit("freeze");
    old.tab.freeze();
    while (!leader(at.tabs).length) {
      at.world.run(10);
    }
    ok(at.world.time - began <= 100, at.world.time - began);
    old.tab.thaw();
    old.tab.document.emit("resume");
    at.server.publish("a");
    at.world.run(2000);
    same(old.got, ["e0"]);
  });

  eachBrowser("a tab that joins late with an older cursor gets what it missed", function (without) {
    var at = three(without), late;
    at.server.publish("a");
    at.server.publish("b");
    at.world.run(500);
    late = open(at.world, without, {cursor: "c1"});
    at.world.run(2);
    at.server.publish("c");
    at.world.run(1500);
    same([late.got, leader(at.tabs.concat(late)).length], [["e1", "e2"], 1]);
  });

  eachBrowser("a tab whose worker was behind hears from the leader that there is more", function (without) {
    var at = three(without), honest = at.world.server, late;
    at.server.publish("a");
    at.world.run(500);
    at.world.server = function (request) {
      at.world.server = honest;
      request.good([], "c0"); /* as if nothing had been published */
    };
    late = open(at.world, without);
    at.world.run(1000);
    same([late.got, late.poll.cursor, late.poll.leads], [["e0"], "c1", false]);
  });

  test("an answer that never fits is asked about once", function () {
    var at = three([]), stranger = new (at.world.tab().BroadcastChannel)("legacy-poll:/poll/stream?|orders,,0"), asked;
    stranger.onmessage = function () {};
    asked = at.world.requests.length;
    stranger.postMessage({f: "x1", t: "x2", e: [{id: "strange", type: "a"}], i: "s"});
    at.world.run(20000);
    same(at.world.requests.length - asked, 2, "by each of the two who follow");
    at.tabs.forEach(function (one) {
      same(one.got, []);
    });
  });

  eachBrowser("who leads after a leader in trouble is not live before it knows", function (without) {
    var at = three(without), old = leader(at.tabs)[0], heir;
    at.server.down = true;
    at.world.open()[0].cut();
    at.world.run(1200);
    at.world.server = function () {};
    old.tab.kill();
    at.world.run(1500);
    heir = leader(at.tabs)[0];
    same([heir.poll.state, at.world.open().length, at.world.last().params.timeout], ["connecting", 1, "0"]);
  });

  eachBrowser("followers show the leader's trouble", function (without) {
    var at = three(without);
    at.server.down = true;
    at.world.open()[0].cut();
    at.world.run(5);
    at.tabs.forEach(function (one) {
      ok(one.poll.state !== "live", one.poll.state);
    });
    at.server.down = false;
    at.world.run(3000);
    at.tabs.forEach(function (one) {
      same(one.poll.state, "live");
    });
  });

  eachBrowser("a leader that may not read any more leaves the lead", function (without) {
    var at = three(without), old = leader(at.tabs)[0];
    at.world.open()[0].error(401, "unauthorized");
    at.world.run(100);
    same([old.poll.state, leader(at.tabs).length], ["failed", 2], "the failed one is alone, another leads");
    at.server.publish("a");
    at.world.run(2000);
    at.tabs.forEach(function (one) {
      same(one.got, one === old ? [] : ["e0"]);
    });
  });

  eachBrowser("410 comes to each tab", function (without) {
    var codes = [], at = three(without, {onresync: function (code, cursor) {
      codes.push(code + " " + cursor);
    }});
    at.tabs.forEach(function (one) {
      one.tab.freeze();
    });
    at.server.keep = 0;
    at.server.publish("a");
    at.world.requests.forEach(function (request) {
      request.over = true;
    });
    at.world.run(10);
    at.tabs.forEach(function (one) {
      one.tab.thaw();
      one.tab.emit("online");
    });
    at.world.run(10000);
    same(codes, ["cursor_expired c1", "cursor_expired c1", "cursor_expired c1"]);
    at.server.keep = 100;
    at.server.publish("b");
    at.world.run(3000);
    at.tabs.forEach(function (one) {
      same(one.got, ["e1"]);
    });
  });

  test("other channels, urls, tokens and share: false are polls of their own", function () {
    var world = kit.world();
    kit.server(world);
    [{}, {channels: ["users"]}, {url: "/other"}, {token: "t"}, {token: "u"}, {share: false}, {withCredentials: true},
      {token: function () {
        return "f";
      }}, {share: "me"}].forEach(function (options) {
      open(world, [], options);
    });
    world.run(3000);
    same(world.open().length, 9);
    open(world, [], {channels: "orders"});
    open(world, [], {token: function () {
      return "g";
    }, share: "me"});
    world.run(3000);
    same(world.open().length, 9);
  });

  test("the order of the channels does not matter", function () {
    var world = kit.world();
    kit.server(world);
    open(world, [], {channels: ["a", "b"]});
    open(world, [], {channels: ["b", "a"]});
    world.run(3000);
    same(world.open().length, 1);
  });

  test("no token lies in localStorage", function () {
    var world = kit.world();
    kit.server(world);
    open(world, browsers["leases and storage events"], {token: "secret-token"});
    world.run(3000);
    ok(Object.keys(world.store).length > 0);
    ok(JSON.stringify(world.store).indexOf("secret") < 0);
  });

  test("where nothing can be shared each tab polls", function () {
    [["locks", "localStorage"], ["localStorage", "BroadcastChannel"]].forEach(function (without) {
      var at = three(without);
      same([at.world.open().length, leader(at.tabs).length], [3, 3]);
    });
    var world = kit.world(), tabs;
    world.forbidsLocks = true;
    kit.server(world);
    tabs = [open(world), open(world)];
    world.run(3000);
    same([world.open().length, leader(tabs).length], [2, 2]);
  });

  test("localStorage that is full: each tab polls, or asks for what is too large to be posted", function () {
    var at = three(browsers["leases and storage events"]);
    at.world.full = 60;
    at.server.publish("a");
    at.world.run(10);
    at.tabs.forEach(function (one) {
      same(one.got, ["e0"]);
    });
    at.world.full = 1;
    leader(at.tabs)[0].tab.kill();
    at.world.run(5000);
    at.server.publish("b");
    at.world.run(60000);
    at.tabs.forEach(function (one) {
      same(one.got, one.tab.isDead ? ["e0"] : ["e0", "e1"]);
    });
  });

  /* Tabs come, go, die, hang; events come on three workers that lag; polls are cut. */
  function chaos(without, seed) {
    var world = kit.world({seed: seed}), server = kit.server(world, {lags: [0, 40, 200]}), random = kit.random(seed * 7919);
    var tabs = [], all = [], step, dice, one;
    for (step = 0; step < 60; step += 1) {
      dice = random();
      one = tabs[Math.floor(random() * tabs.length)];
      if (dice < 0.4) {
        server.publish(random() < 0.7 ? "a" : null);
      } else if (dice < 0.55 && tabs.length < 5) {
        one = open(world, without, {cursor: "c" + (random() < 0.5 ? server.log.length : Math.floor(server.log.length / 2))});
        one.from = +one.poll.cursor.slice(1);
        tabs.push(one);
        all.push(one);
      } else if (dice < 0.6 && one) {
        one.tab[random() < 0.5 ? "close" : "kill"]();
        tabs.splice(tabs.indexOf(one), 1);
      } else if (dice < 0.66 && one) {
        one.tab.freeze();
      } else if (dice < 0.75 && one) {
        one.tab.thaw();
      } else if (dice < 0.8 && one && !one.tab.isFrozen) {
        one.tab.emit(random() < 0.5 ? "online" : "pagehide");
        one.tab.emit("pageshow");
      } else if (dice < 0.85 && world.open().length) {
        world.open()[0].cut();
      } else if (dice < 0.88) {
        server.down = !server.down;
      }
      world.run(random() < 0.5 ? random() * 20 : random() * 1500);
    }
    server.down = false;
    tabs.forEach(function (one) {
      one.tab.thaw();
    });
    world.run(40000); /* the longest backoff, and more */
    tabs.forEach(function (one, number) {
      same(one.got.length, server.ids(one.from).length, "tab " + number + " of seed " + seed + " waits for what is there");
    });
    server.publish("last");
    world.run(30000);
    all.forEach(function (one, number) {
      var wanted = server.ids(one.from);
      same(one.got, wanted.slice(0, one.got.length), "tab " + number + " of seed " + seed);
      if (!one.tab.isDead) {
        same(one.got.length, wanted.length, "tab " + number + " of seed " + seed + " has all");
        same(one.poll.state, "live");
      }
      same(one.tab.errors, []);
    });
    if (tabs.length) {
      same([leader(tabs).length, world.open().length], [1, 1], "one poll in the end, seed " + seed);
    }
  }

  eachBrowser("chaos", function (without) {
    var seed, most = typeof process === "object" ? 200 : 5;
    for (seed = 1; seed <= most; seed += 1) {
      chaos(without, seed);
    }
  });
}());
