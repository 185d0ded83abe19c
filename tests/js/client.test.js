/* One tab, answered by hand. The rules are in docs/browser.md. */
var kit = typeof process === "object" ? require("./kit.js") : kit;
var LegacyPoll = typeof process === "object" ? require("../../legacy_poll/static/legacy-poll.js") : LegacyPoll;

(function () {
  "use strict";

  var test = kit.test, same = kit.same, ok = kit.ok;
  var HTML = "<!DOCTYPE html><title>Log in</title>";

  function event(id, type) {
    return {id: id, channel: "orders", type: type || "order.created", data: {n: id}, time: "2026-01-31T09:30:00.000Z"};
  }

  /* A connection that does not share, its states and what it handled. */
  function opened(options, without) {
    var at = {world: kit.world(), states: [], details: [], got: [], errors: []}, key, all;
    at.tab = at.world.tab(without);
    all = {
      url: "/poll", channels: ["orders"], cursor: "c0", share: false,
      onstate: function (state, detail) {
        at.states.push(state);
        at.details.push(detail);
      },
      onerror: function (error) {
        at.errors.push(String(error.message || error));
      }
    };
    for (key in options) {
      all[key] = options[key];
    }
    at.poll = LegacyPoll.connect(all, at.tab).on("*", function (event) {
      at.got.push(event.id);
    });
    return at;
  }

  /* The same, with its first answer in: a poll is held. */
  function live(options, without) {
    var at = opened(options, without);
    at.world.last().good([], "c1");
    at.world.run(1);
    same(at.poll.state, "live");
    same(at.world.last().params.timeout, options && options.timeout ? String(options.timeout) : "25000");
    return at;
  }

  function asks(at) {
    return at.world.requests.length;
  }

  /* ---- what is asked */

  test("the url is the prefix or the whole", function () {
    [["/poll", "/poll/stream"], ["/poll/", "/poll/stream"], ["/poll/stream", "/poll/stream"], ["", "/poll/stream"],
      ["/", "/stream"], ["https://x.example/a/stream/", "https://x.example/a/stream"],
      ["/streams", "/streams/stream"], ["/upstream", "/upstream/stream"]].forEach(function (pair) {
      same(opened({url: pair[0]}).world.last().path, pair[1], pair[0]);
    });
    same(opened({url: "/poll?a=1"}).world.last().url.slice(0, 22), "/poll/stream?a=1&timeo");
  });

  test("a poll says what it wants, and ends with what varies", function () {
    var at = live({channels: "orders,user:7", limit: 5, heartbeat: 15000, token: "a b"});
    ok(/^\/poll\/stream\?timeout=25000&empty=200&channel=orders&channel=user%3A7&limit=5&heartbeat=15000&token=a%20b&cursor=c1&_=\d+$/
      .test(at.world.last().url), at.world.last().url);
  });

  test("polls of one hold differ in cursor and _ alone", function () {
    var at = live(), first = at.world.last().url.replace(/&cursor=.*/, "");
    at.world.last().good([event("a")], "c2");
    at.world.run(10);
    same(at.world.last().url.replace(/&cursor=.*/, ""), first);
    ok(at.world.requests[0].params._ !== at.world.last().params._);
  });

  test("no channels, no cursor: the server decides", function () {
    var params = opened({channels: undefined, cursor: undefined}).world.last().params;
    same([params.channel, params.cursor === undefined], [[], true]);
  });

  test("the token travels in a header if told so", function () {
    var at = opened({token: "t", tokenIn: "header"});
    same([at.world.last().headers.Authorization, at.world.last().params.token === undefined], ["Bearer t", true]);
  });

  test("credentials are sent if told so", function () {
    same(opened({withCredentials: true}).world.last().withCredentials, true);
    ok(!opened().world.last().withCredentials);
  });

  /* ---- handlers */

  test("handlers get what they asked for, in order, and the cursor moves after them", function () {
    var at = live(), log = [];
    at.poll.on("order.created", function (event) {
      log.push("created " + event.id + " at " + at.poll.cursor);
    });
    at.world.last().good([event("a"), event("b", "other"), event("c")], "c4");
    at.world.run(1);
    same(log, ["created a at c1", "created c at c1"]);
    same([at.got, at.poll.cursor, at.world.last().params.cursor], [["a", "b", "c"], "c4", "c4"]);
  });

  test("a handler that throws stops nothing and is reported", function () {
    var at = live();
    at.poll.on("order.created", function () {
      throw new Error("mine");
    });
    at.world.last().good([event("a"), event("b")], "c3");
    at.world.run(1);
    same([at.got, at.errors, at.poll.cursor], [["a", "b"], ["mine", "mine"], "c3"]);
  });

  test("without onerror what a handler throws reaches the window", function () {
    var at = live({onerror: undefined});
    at.poll.on("*", function () {
      throw new Error("mine");
    });
    at.world.last().good([event("a")], "c3");
    at.world.run(1);
    same([at.tab.errors.length, at.tab.errors[0].message], [1, "mine"]);
    same(at.poll.cursor, "c3");
  });

  test("an onerror or onstate that throws stops nothing", function () {
    var at = live();
    at.poll.onerror = at.poll.onstate = function () {
      throw new Error("worse");
    };
    at.poll.on("*", function () {
      throw new Error("mine");
    });
    at.world.last().good([event("a")], "c3");
    at.world.run(1);
    at.world.last().cut();
    at.world.run(2000);
    same([at.poll.cursor, asks(at) > 3, at.tab.errors.length > 1], ["c3", true, true]);
  });

  test("the same id is handled once", function () {
    var at = live();
    at.world.last().good([event("a"), event("a"), event("b")], "c3");
    at.world.run(1);
    at.world.last().good([event("b"), event("c")], "c4");
    at.world.run(1);
    same(at.got, ["a", "b", "c"]);
  });

  test("an id may have the name of what objects have", function () {
    var at = live();
    at.world.last().good([event("constructor"), event("__proto__"), event("hasOwnProperty", "constructor")], "c3");
    at.world.run(1);
    same(at.got, ["constructor", "__proto__", "hasOwnProperty"]);
  });

  test("events that are none do no harm", function () {
    var at = live();
    at.world.last().good([null, 7, {}, event("a")], "c3");
    at.world.run(1);
    same([at.got.slice(-1), at.poll.cursor, at.world.open().length], [["a"], "c3", 1]);
  });

  test("off takes away one, one type, or all", function () {
    var at = live(), log = [];
    function one() {
      log.push("one");
    }
    function two() {
      log.push("two");
    }
    at.poll.on("t", one).on("t", two).on("u", one);
    at.poll.off("t", one);
    at.world.last().good([event("a", "t"), event("b", "u")], "c3");
    at.world.run(1);
    same(log, ["two", "one"]);
    at.poll.off("t");
    at.world.last().good([event("c", "t"), event("d", "u")], "c4");
    at.world.run(1);
    same(log, ["two", "one", "one"]);
    at.poll.off();
    at.world.last().good([event("e", "t")], "c5");
    at.world.run(1);
    same([log.length, at.got, at.poll.cursor], [3, ["a", "b", "c", "d"], "c5"]);
  });

  test("handlers may come and go during an event", function () {
    var at = live(), log = [];
    function last() {
      log.push("removed before its turn");
    }
    function once(event) {
      log.push("once " + event.id);
      at.poll.off("*", once).off("*", last).on("*", function (event) {
        log.push("late " + event.id);
      });
    }
    at.poll.on("*", once).on("*", last);
    at.world.last().good([event("a"), event("b")], "c3");
    at.world.run(1);
    same(log, ["once a", "late b"]);
  });

  test("a handler that stops keeps the rest for the next start", function () {
    var at = live();
    at.poll.on("*", function (event) {
      if (event.id === "b") {
        at.poll.stop();
      }
    });
    at.world.last().good([event("a"), event("b"), event("c")], "c4");
    at.world.run(60000);
    same([at.got, at.poll.cursor, at.poll.state, at.world.open().length], [["a", "b"], "c1", "stopped", 0]);
    at.poll.start();
    same(at.world.last().params.cursor, "c1");
    at.world.last().good([event("a"), event("b"), event("c")], "c4");
    at.world.run(1);
    same([at.got, at.poll.cursor], [["a", "b", "c"], "c4"]);
  });

  test("a handler that restarts with another cursor is obeyed", function () {
    var at = live();
    at.poll.on("*", function (event) {
      if (event.id === "a") {
        at.poll.start({cursor: "c90"});
      }
    });
    at.world.last().good([event("a"), event("b")], "c4");
    at.world.run(1);
    same([at.got, at.world.last().params.cursor, at.world.open().length], [["a"], "c90", 1]);
  });

  test("ids are forgotten in the end, never those of the answer at hand", function () {
    var at = live(), events = [], i;
    for (i = 0; i < 1500; i += 1) {
      events.push(event("e" + i));
    }
    at.world.last().good(events.concat(events), "c3");
    at.world.run(1);
    same(at.got.length, 1500);
    at.world.last().good([event("e0"), event("e1499")], "c4");
    at.world.run(1);
    same(at.got.length, 1501);
  });

  /* ---- states: each way from one to another */

  function hurt(status, headers) {
    return function (at) {
      at.world.last().answer(status, {error: {code: "x", message: ""}}, headers);
      at.world.run(1);
    };
  }

  function coded(status, code, cursor) {
    return function (at) {
      at.world.last().error(status, code, cursor);
      at.world.run(1);
    };
  }

  function good(at) {
    at.world.last().good([], at.world.last().params.cursor === "now" ? "c1" : at.world.last().params.cursor + "1");
    at.world.run(1);
  }

  function forget() {
    /* onresync that never says done */
  }

  function waited(at) {
    at.world.run(500);
  }

  function method(name, argument) {
    return function (at) {
      at.poll[name](argument);
    };
  }

  function emitted(name) {
    return function (at) {
      at.tab.emit(name);
    };
  }

  var to = {
    connecting: [],
    live: [good],
    waiting: [hurt(500)],
    stale: [coded(410, "cursor_expired", "c9")],
    stopped: [method("stop")],
    failed: [coded(403, "forbidden")]
  };
  var hang = {onresync: function (code, cursor, done) {
    forget(done);
  }};

  [
    ["connecting", [good], ["live"]],
    ["connecting", [hurt(500)], ["waiting"]],
    ["connecting", [coded(410, "cursor_unknown", "c9")], ["stale"]],
    ["connecting", [coded(401, "unauthorized")], ["failed"]],
    ["connecting", [method("stop")], ["stopped"]],
    ["connecting", [method("start")], []],
    ["connecting", [emitted("pagehide")], ["waiting"]],
    ["live", [good], []],
    ["live", [hurt(503, {"Retry-After": 2})], ["waiting"]],
    ["live", [coded(410, "cursor_expired", "c9")], ["stale"]],
    ["live", [coded(403, "forbidden")], ["failed"]],
    ["live", [coded(400, "bad_parameter")], ["failed"]],
    ["live", [method("stop")], ["stopped"]],
    ["live", [emitted("online")], ["connecting"]],
    ["live", [emitted("pagehide")], ["waiting"]],
    ["live", [emitted("pagehide"), emitted("pageshow")], ["waiting", "connecting"]],
    ["live", [good, good, good], ["waiting"]],
    ["live", [good, good, good, function (at) {
      at.world.run(1100);
    }], ["waiting", "live"]],
    ["waiting", [waited], ["connecting"]],
    ["waiting", [emitted("online")], ["connecting"]],
    ["waiting", [method("start")], ["connecting"]],
    ["waiting", [method("stop")], ["stopped"]],
    ["waiting", [waited, good], ["connecting", "live"]],
    ["waiting", [waited, hurt(500)], ["connecting", "waiting"]],
    ["stale", [emitted("online")], []],
    ["stale", [method("start")], []],
    ["stale", [method("stop")], ["stopped"]],
    ["stale", [emitted("pagehide")], ["waiting"]],
    ["stopped", [method("start")], ["connecting"]],
    ["stopped", [method("stop")], []],
    ["stopped", [emitted("online")], []],
    ["stopped", [emitted("pageshow")], []],
    ["failed", [method("start")], ["connecting"]],
    ["failed", [method("start", {token: "new"})], ["stopped", "connecting"]],
    ["failed", [method("stop")], ["stopped"]],
    ["failed", [emitted("online")], []],
    ["failed", [emitted("pagehide"), emitted("pageshow")], []],
    ["failed", [function (at) {
      at.world.run(3600000);
    }], []]
  ].forEach(function (row, number) {
    test("state " + row[0] + " -> " + (row[2].join(", ") || "itself") + ", row " + number, function () {
      var at = opened(hang);
      to[row[0]].forEach(function (step) {
        step(at);
      });
      same(at.poll.state, row[0]);
      at.states.length = 0;
      row[1].forEach(function (step) {
        step(at);
      });
      same(at.states, row[2]);
      ok(at.world.open().length === (/connecting|live/.test(at.poll.state) ? 1 : 0), "one poll, or none");
    });
  });

  test("the table has every way", function () {
    var names = ["connecting", "live", "waiting", "stale", "stopped", "failed"];
    names.forEach(function (name) {
      ok(to[name], name);
    });
  });

  /* ---- answers */

  test("206 is asked again at once, from its cursor", function () {
    var at = live();
    at.world.last().good([event("a")], "c2", true);
    at.world.run(1);
    same([at.world.last().params.cursor, at.world.last().at, at.got], ["c2", at.world.time, ["a"]]);
  });

  test("more in the body counts as 206", function () {
    var at = opened();
    at.world.last().answer(200, "  \n " + JSON.stringify({events: [event("a")], cursor: "c2", more: true}));
    at.world.run(1);
    same([at.got, at.poll.state, asks(at)], [["a"], "live", 2]);
  });

  test("after a heartbeat the body tells: 410, 401, 403, 503", function () {
    [["cursor_expired", "stale"], ["unauthorized", "failed"], ["forbidden", "failed"], ["refused", "failed"],
      ["draining", "waiting"], ["storage_unavailable", "waiting"]].forEach(function (pair) {
      var at = live(hang);
      at.world.last().answer(200, {error: {code: pair[0], message: ""}, cursor: "c9"});
      at.world.run(1);
      same(at.poll.state, pair[1], pair[0]);
      same(at.poll.cursor, "c1", pair[0]);
    });
  });

  test("a held poll that ends empty is asked again at once, with the cursor that moved", function () {
    var at = live();
    at.world.run(25000);
    at.world.last().good([], "c7");
    at.world.run(1);
    same([at.world.last().params.cursor, at.poll.state, asks(at)], ["c7", "live", 3]);
  });

  test("bad answers are retried, with a reason", function () {
    [[200, HTML, "body"], [200, "", "body"], [200, "{\"events\": [{\"id\"", "body"], [200, "[]", "body"], [200, "null", "body"],
      [200, "{\"events\": [], \"cursor\": \"\"}", "body"], [200, "{\"cursor\": \"c2\"}", "body"], [302, HTML, "body"],
      [204, "", "body"], [410, HTML, "status"], [404, HTML, "status"], [429, HTML, "status"], [500, HTML, "status"],
      [502, HTML, "status"], [504, HTML, "status"], [400, HTML, "status"], [0, "", "network"]].forEach(function (row) {
      var at = live();
      at.world.last().answer(row[0], row[1]);
      at.world.run(1);
      same([at.poll.state, at.details[2].reason, at.details[2].status], ["waiting", row[2], row[0]], show(row));
      ok(at.details[2].delay > 0 && at.details[2].delay <= 501, "delay");
      at.world.run(501);
      same([at.world.last().params.timeout, at.world.last().params.cursor], ["0", "c1"], show(row));
      at.world.last().good([], "c1");
      at.world.run(1);
      same(at.poll.state, "live");
    });
  });

  function show(value) {
    return JSON.stringify(value);
  }

  test("a transport that throws is retried", function () {
    var at = live();
    at.tab.refuses = true;
    at.world.last().good([event("a")], "c2");
    at.world.run(1);
    same([at.poll.state, at.got], ["waiting", ["a"]]);
    at.tab.refuses = false;
    at.world.run(20000);
    same(at.poll.state, "connecting");
  });

  test("5 MB arrive", function () {
    var at = live(), big = event("a");
    big.data = new Array(5 * 1024 * 1024).join("x");
    at.poll.on("*", function (event) {
      at.size = event.data.length;
    });
    at.world.last().good([big], "c2");
    at.world.run(1);
    same(at.size, 5 * 1024 * 1024 - 1);
  });

  test("a poll without answer is given up ten seconds after its hold", function () {
    var at = live();
    at.world.run(34998);
    same(at.poll.state, "live");
    at.world.run(2);
    same([at.world.requests[1].aborted, at.poll.state, at.details[2].reason], [true, "waiting", "timeout"]);
  });

  test("while bytes come it is not given up, but not for ever", function () {
    var at = live(), seconds = 0, poll = at.world.last();
    while (!poll.over && seconds < 1000) {
      at.world.run(1000);
      seconds += 1;
      if (!poll.over) {
        poll.bytes();
      }
    }
    same(seconds, 154);
  });

  test("what comes after the end is not heard", function () {
    var at = live(), poll = at.world.last();
    poll.good([event("a")], "c2");
    at.poll.stop();
    at.world.run(10);
    same([at.got, at.poll.cursor], [[], "c1"]);
  });

  /* ---- pace */

  test("backoff doubles to 30 seconds, with full jitter", function () {
    var at = opened(), most = 0, least = Infinity, i, bound;
    at.tab.Math.random = function () {
      return i % 2 ? 0.999999 : 0;
    };
    for (i = 0; i < 40; i += 1) {
      at.world.last().answer(500, "");
      at.world.run(1);
      bound = Math.min(30000, 500 * Math.pow(2, i));
      if (i % 2) {
        same(Math.round((at.details[at.details.length - 1].delay - 1) / 10), Math.round(bound / 10), "attempt " + i);
        most = Math.max(most, at.details[at.details.length - 1].delay);
      } else {
        least = Math.min(least, at.details[at.details.length - 1].delay);
      }
      at.world.run(Math.max(at.details[at.details.length - 1].delay, 8000) + 1);
    }
    same([least, most], [1, 30001]);
  });

  test("Retry-After in seconds, in dates, capped, and nonsense", function () {
    var at0 = kit.world().wall, rows = [
      ["7", {}, 7000], ["0", {}, 0], [String(365 * 86400), {}, 300000], ["-5", {}, 0], ["soon", {}, 0], ["1e9", {}, 300000],
      [new Date(at0 + 9000).toUTCString(), {}, 9000],
      [new Date(at0 + 3600000 + 9000).toUTCString(), {Date: new Date(at0 + 3600000).toUTCString()}, 9000],
      [new Date(at0 - 9000).toUTCString(), {}, 0],
      [new Date(at0 + 365 * 864e5).toUTCString(), {}, 300000]
    ];
    rows.forEach(function (row) {
      [429, 503].forEach(function (status) {
        var at = opened(), delay, headers = {"Retry-After": row[0]};
        headers.Date = row[1].Date;
        at.world.last().answer(status, "", headers);
        at.world.run(1);
        delay = at.details[1].delay;
        ok(delay >= row[2] - 1 && delay <= row[2] + 501, row[0] + ": " + delay);
        same(at.poll.state, "waiting");
      });
    });
  });

  test("online and start cut a pause short, but not a Retry-After", function () {
    var at = opened(), asked;
    at.world.last().answer(500, "");
    at.world.run(1);
    asked = asks(at);
    at.tab.emit("online");
    same(asks(at), asked + 1);
    at.world.last().answer(503, "", {"Retry-After": 60});
    at.world.run(1);
    at.tab.emit("online");
    at.poll.start();
    at.tab.document.emit("visibilitychange");
    same([asks(at), at.poll.state], [asked + 1, "waiting"]);
    at.world.run(61000);
    same(asks(at), asked + 2);
  });

  test("a network that flaps does not make it ask more than 12 times in 8 seconds", function () {
    var at = live(), i;
    for (i = 0; i < 1000; i += 1) {
      at.tab.emit("online");
      at.world.run(10);
    }
    ok(asks(at) <= 26, asks(at));
    at.world.run(8000);
    same(at.poll.state, "connecting");
  });

  test("a flood of events leaves room for a retry", function () {
    var at = live(), i;
    for (i = 2; i < 40; i += 1) {
      at.world.last().good([event("e" + i)], "c" + i);
      at.world.run(1);
    }
    same([asks(at), at.poll.state], [40, "live"]);
    at.world.last().cut();
    at.world.run(502);
    same([asks(at), at.poll.state], [41, "connecting"]);
  });

  test("empty answers that nobody waited for are free twice, then they are failures", function () {
    var at = live();
    at.world.server = function (request) {
      request.good([], "c1");
    };
    at.world.last().good([], "c1");
    at.world.run(600000);
    ok(asks(at) < 70, asks(at));
    ok(at.details[2].reason === "early", at.details[2].reason);
  });

  test("206 without progress is no tight loop", function () {
    [[[], "same"], [[], "moves"], [[event("a")], "same"]].forEach(function (row) {
      var at = live(), n = 0;
      at.world.server = function (request) {
        request.good(row[0], row[1] === "same" ? "c1" : "c" + (n += 1), true);
      };
      at.world.last().good(row[0], "c1", true);
      at.world.run(600000);
      ok(asks(at) < 70, asks(at));
    });
  });

  test("after an outage the first good answer is followed by a hold at once", function () {
    var at = live(), i;
    for (i = 0; i < 6; i += 1) {
      at.world.last().answer(503, "");
      at.world.run(1);
      at.world.run(Math.max(8000, at.details[at.details.length - 1].delay + 1));
    }
    same(at.poll.state, "connecting");
    at.world.last().good([], "c1");
    at.world.run(1);
    same([at.poll.state, at.world.open().length, at.world.last().params.timeout], ["live", 1, "25000"]);
    at.world.last().good([], "c1"); /* a server that is about to stop, say */
    at.world.run(1);
    same([at.poll.state, at.world.open().length], ["live", 1]);
  });

  test("to catch up over events that were handled is no failure", function () {
    var at = live(), i;
    at.world.last().good([event("a")], "c2", true);
    at.world.run(1);
    for (i = 3; i < 9; i += 1) {
      at.world.last().good([event("a")], "c" + i, true);
      at.world.run(1);
    }
    same([at.poll.state, at.poll.cursor, at.got], ["live", "c8", ["a"]]);
  });

  test("a server that holds for a second is no failure", function () {
    var at = live();
    at.world.server = function (request) {
      at.world.later(request.params.timeout === "0" ? 0 : 1000, function () {
        request.good([], "c1");
      });
    };
    at.world.last().good([], "c1");
    at.world.run(60000);
    ok(asks(at) > 50 && asks(at) < 64, String(asks(at)));
    ok(at.states.filter(function (state, i) {
      return state === "waiting" && at.details[i].reason !== "rate";
    }).length === 0);
  });

  test("after sleep it asks again at once; a busy minute of a hidden tab is no sleep", function () {
    [true, false].forEach(function (monotonic) {
      var at = live();
      at.world.sleep(3 * 3600000, monotonic);
      at.world.run(6000);
      same([at.poll.state, at.world.last().params.timeout, at.world.open().length], ["connecting", "0", 1]);
      at.world.last().good([event("a")], "c2");
      at.world.run(1);
      same([at.poll.state, at.got], ["live", ["a"]]);
      at.tab.document.hidden = true;
      at.world.sleep(60000, false);
      at.world.run(6000);
      same(at.poll.state, "live");
    });
  });

  test("clock jumps do no harm", function () {
    [-864e5, 864e5].forEach(function (jump) {
      [[], ["performance"]].forEach(function (without) {
        var at = live({}, without);
        at.world.wall += jump;
        at.world.run(6000);
        at.world.open()[0].good([event("a")], "c2");
        at.world.run(1);
        same([at.poll.state, at.got, at.world.open().length], ["live", ["a"], 1]);
        at.world.last().answer(500, "");
        at.world.run(9000);
        same([at.poll.state, at.world.open().length], ["connecting", 1]);
      });
    });
  });

  /* ---- 410 */

  test("410: the page reloads, then it goes on from the answer's cursor", function () {
    var seen, at = live({onresync: function (code, cursor, done) {
      seen = [code, cursor, done];
    }});
    at.world.last().error(410, "cursor_expired", "c9");
    at.world.run(60000);
    same([seen[0], seen[1], at.poll.state, at.poll.cursor, at.world.open().length], ["cursor_expired", "c9", "stale", "c1", 0]);
    seen[2]();
    seen[2]();
    same([at.poll.cursor, at.poll.state, at.world.last().params.cursor, at.world.open().length], ["c9", "connecting", "c9", 1]);
    at.world.last().good([event("a")], "c10");
    at.world.run(1);
    same([at.got, at.poll.state], [["a"], "live"]);
  });

  [
    ["done(false)", function (code, cursor, done) {
      done(false);
    }],
    ["an exception", function () {
      throw new Error("no");
    }],
    ["a rejection", function () {
      return {then: function (good, bad) {
        bad(new Error("no"));
      }};
    }],
    ["false", function () {
      return false;
    }]
  ].forEach(function (row) {
    test("410: " + row[0] + " means not reloaded: the old cursor, after a pause", function () {
      var at = live({onresync: row[1]});
      at.world.last().error(410, "cursor_expired", "c9");
      at.world.run(1);
      same([at.poll.state, at.poll.cursor, at.details[3].reason], ["waiting", "c1", "resync"]);
      at.world.run(501);
      same(at.world.last().params.cursor, "c1");
    });
  });

  [
    ["a plain return", function () {}],
    ["a thenable", function () {
      return {then: function (good) {
        good();
      }};
    }]
  ].forEach(function (row) {
    test("410: " + row[0] + " means reloaded", function () {
      var at = live({onresync: row[1]});
      at.world.last().error(410, "cursor_expired", "c9");
      at.world.run(1);
      same([at.poll.cursor, at.poll.state], ["c9", "connecting"]);
    });
  });

  test("410 without onresync goes on and is reported", function () {
    var at = live();
    at.world.last().error(410, "cursor_expired", "c9");
    at.world.run(1);
    same([at.poll.cursor, at.errors.length], ["c9", 1]);
  });

  test("410 over and over is no tight loop", function () {
    var times = 0, at = live({onresync: function () {
      times += 1;
    }});
    at.world.server = function (request) {
      request.error(410, "cursor_unknown", "c" + asks(at));
    };
    at.world.last().error(410, "cursor_unknown", "c2");
    at.world.run(600000);
    ok(times > 10 && times < 70, times);
  });

  test("done after stop is not heard", function () {
    var late, at = live({onresync: function (code, cursor, done) {
      late = done;
    }});
    at.world.last().error(410, "cursor_expired", "c9");
    at.world.run(1);
    at.poll.stop();
    late();
    same([at.poll.state, at.poll.cursor, at.world.open().length], ["stopped", "c1", 0]);
  });

  test("after 410 an id that was seen may come again", function () {
    var at = live({onresync: function () {}});
    at.world.last().good([event("a")], "c2");
    at.world.run(1);
    at.world.last().error(410, "cursor_unknown", "c1");
    at.world.run(1);
    at.world.last().good([event("a")], "c2");
    at.world.run(1);
    same(at.got, ["a", "a"]);
  });

  /* ---- tokens */

  function tokens(list) {
    return function (done) {
      done(list.shift());
    };
  }

  test("401: a token that is fetched is fetched once more", function () {
    var at = live({token: tokens(["one", "two", "three"])});
    same(at.world.last().params.token, "one");
    at.world.last().error(401, "unauthorized");
    at.world.run(1);
    same([at.world.last().params.token, at.poll.state], ["two", "connecting"]);
    at.world.last().good([], "c1");
    at.world.run(1);
    at.world.last().error(401, "unauthorized");
    at.world.run(1);
    same(at.world.last().params.token, "three");
    at.world.last().error(401, "unauthorized");
    at.world.run(1);
    same([at.poll.state, at.details[at.details.length - 1]], ["failed", {status: 401, code: "unauthorized", message: "unauthorized!"}]);
  });

  test("a token may be returned, or promised", function () {
    same(opened({token: function () {
      return "t";
    }}).world.last().params.token, "t");
    same(opened({token: function () {
      return {then: function (good) {
        good("u");
      }};
    }}).world.last().params.token, "u");
  });

  test("a token that does not come is asked for again", function () {
    [function (done) {
      done(false);
    }, function () {
      throw new Error("no");
    }, function () {
      return null;
    }].forEach(function (token) {
      var at = opened({token: token});
      same([at.poll.state, at.details[0].reason, asks(at)], ["waiting", "token", 0]);
    });
    var at = opened({token: function (done) {
      at && done.never;
    }});
    same(at.poll.state, "connecting");
    at.world.run(10001);
    same(at.poll.state, "waiting");
  });

  test("after failed a new token starts again", function () {
    var at = live({token: "old"});
    at.world.last().error(401, "unauthorized");
    at.world.run(1);
    same(at.poll.state, "failed");
    at.poll.start({token: "new"});
    same([at.world.last().params.token, at.world.last().params.cursor], ["new", "c1"]);
  });

  /* ---- what something in between allows */

  function cutAfter(at, ms) {
    at.world.server = function (request) {
      var wait = Number(request.params.timeout);
      at.world.later(Math.min(wait, ms), function () {
        if (wait > ms) {
          request.cut();
        } else {
          request.good([], "c1");
        }
      });
    };
  }

  test("polls that are cut twice after the same time become shorter, and the server is told once", function () {
    var at = live(), told;
    cutAfter(at, 10000);
    at.world.run(10000);
    at.world.last().cut();
    at.world.run(30000);
    same(at.world.last().params.timeout, "8001");
    told = at.world.requests.filter(function (request) {
      return request.params.cut;
    });
    same(told.length >= 1 && told.length <= 2, true);
    same(told[0].params.cut, "10001");
    at.world.run(60000);
    same([at.poll.state, at.world.last().params.cut === undefined], ["live", true]);
    same(LegacyPoll.connect({url: "/poll", share: false, onstate: null}, at.world.tab()).state, "connecting");
    at.world.run(10);
    same(at.world.last().params.timeout, "8001", "remembered");
  });

  test("each kind of cut counts: 502, 504, HTML, silence; a 500 does not", function () {
    [[502, HTML, 8000], [504, HTML, 8000], [408, "", 8000], [200, HTML, 8000], [500, HTML, 25000], [503, HTML, 25000]].forEach(function (row) {
      var at = live(), i;
      for (i = 0; i < 2; i += 1) {
        at.world.run(10000);
        at.world.last().answer(row[0], row[1]);
        at.world.run(1500);
        at.world.last().good([], "c1");
        at.world.run(1);
      }
      ok(Math.abs(at.world.last().params.timeout - row[2]) < 10, row[0] + ": " + at.world.last().params.timeout);
    });
  });

  test("silence makes the hold shorter step by step", function () {
    var at = live();
    at.world.server = function (request) {
      if (request.params.timeout < 8000) {
        at.world.later(+request.params.timeout, function () {
          request.good([], "c1");
        });
      }
    };
    at.world.run(300000);
    same(at.poll.state, "live");
    ok(at.world.last().params.timeout >= 2000 && at.world.last().params.timeout < 8000);
  });

  test("cuts after different times, offline, or soon, teach nothing", function () {
    [[10000, 15000], [1000, 1000], [10000, 10000]].forEach(function (row, number) {
      var at = live();
      at.tab.navigator.onLine = number !== 2;
      row.forEach(function (ms) {
        at.world.run(ms);
        at.world.last().cut();
        at.world.run(1500);
        at.world.last().good([], "c1");
        at.world.run(1);
      });
      same(at.world.last().params.timeout, "25000");
    });
  });

  test("a poll that was held longer shows that the first cut was chance", function () {
    var at = live();
    function cut() {
      at.world.run(10000);
      at.world.last().cut();
      at.world.run(1500);
      at.world.last().good([], "c1");
      at.world.run(1);
    }
    cut();
    at.world.run(24000);
    at.world.last().good([], "c1");
    at.world.run(1);
    cut();
    same(at.world.last().params.timeout, "25000");
  });

  test("what was learnt is forgotten after a day, and not believed from the future", function () {
    [[864e5 + 1, "25000"], [1000, "4000"], [-1000, "25000"]].forEach(function (row) {
      var world = kit.world();
      world.store["legacy-poll:hold:/poll/stream?"] = "4000 " + (world.wall - row[0]);
      LegacyPoll.connect({share: false}, world.tab());
      world.last().good([], "c1");
      world.run(1);
      same(world.last().params.timeout, row[1]);
    });
  });

  /* ---- storage */

  test("storage: session goes on where the page before ended", function () {
    var world = kit.world(), tab = world.tab(), poll;
    function open(cursor) {
      return LegacyPoll.connect({channels: "orders", cursor: cursor, storage: "session", share: false}, tab);
    }
    poll = open();
    world.last().good([event("a")], "c5");
    world.run(1);
    poll.stop();
    [[undefined, "c5"], ["now", "c5"], ["c2", "c2"]].forEach(function (row) {
      open(row[0]).stop();
      same(world.last().params.cursor, row[1]);
    });
    open();
    world.last().error(400, "bad_cursor");
    world.run(1);
    open();
    ok(world.last().params.cursor === undefined, "a cursor that the server does not take is not kept");
  });

  test("storage that is full or forbidden does no harm", function () {
    var at = live({storage: "session"}, ["localStorage"]);
    at.tab.sessionStorage.setItem = function () {
      throw new Error("QuotaExceededError");
    };
    at.world.last().good([event("a")], "c2");
    at.world.run(1);
    same([at.got, at.poll.cursor, at.errors], [["a"], "c2", []]);
  });

  /* ---- the page's life */

  test("a page that is put away asks for nothing, and goes on where it was", function () {
    [["pagehide", "pageshow", "tab"], ["freeze", "resume", "document"]].forEach(function (row) {
      var at = live(), target = row[2] === "tab" ? at.tab : at.tab.document;
      target.emit(row[0]);
      same([at.world.open().length, at.details[2].reason], [0, "frozen"]);
      at.tab.emit("online");
      at.poll.start();
      at.world.run(3600000);
      same(at.world.open().length, 0);
      target.emit(row[1]);
      target.emit(row[1]);
      same([at.world.open().length, at.world.last().params.cursor], [1, "c1"]);
    });
  });

  test("stop leaves nothing behind", function () {
    var at = live({share: true});
    ok(at.tab.listeners() > 0);
    at.poll.stop();
    at.world.run(60000);
    same([at.tab.listeners(), at.tab.document.listeners(), at.world.open().length, asks(at)], [0, 0, 0, 2]);
  });

  test("onstate may stop or start at any state", function () {
    ["connecting", "live", "waiting", "stale", "failed"].forEach(function (state) {
      ["stop", "start"].forEach(function (act) {
        var at, done = 0;
        at = opened({onresync: function () {}, onstate: function (now) {
          if (now === state && at && done < 3) {
            done += 1;
            at.poll[act]();
          }
        }});
        if (state === "connecting") {
          at.tab.emit("online");
        }
        to[state].forEach(function (step) {
          step(at);
        });
        at.world.run(30000);
        ok(at.world.open().length <= 1, "one poll at most");
        if (act === "stop" && done) {
          same([at.poll.state, at.world.open().length], ["stopped", 0], state);
        }
      });
    });
  });

  /* ---- JSONP */

  test("JSONP asks by script tags and cleans up", function () {
    var at = opened({jsonp: true, token: "t"}), first = at.world.last();
    ok(/^legacyPoll\d+$/.test(first.params.callback));
    same([at.tab.document.scripts.length, first.params.token], [1, "t"]);
    first.good([event("a")], "c2");
    at.world.run(1);
    same([at.got, at.tab.document.scripts.length, at.poll.state], [["a"], 1, "live"]);
    first.late({events: [event("b")], cursor: "c1"});
    same([at.got, at.poll.cursor], [["a"], "c2"]);
    at.world.last().answer(200, HTML);
    at.world.run(1);
    same([at.poll.state, at.details[2].reason, at.tab.document.scripts.length], ["waiting", "network", 0]);
    at.world.run(600);
    at.world.run(10001);
    same([at.poll.state, at.tab.document.scripts.length], ["waiting", 0]);
  });

  test("JSONP waits until the page has loaded, since its scripts would hold that up", function () {
    var world = kit.world(), tab = world.tab(), states = [], poll;
    tab.document.readyState = "loading";
    poll = LegacyPoll.connect({jsonp: true, share: false, onstate: function (state) {
      states.push(state);
    }}, tab);
    world.run(20000);
    same([states, world.requests.length], [["connecting"], 0]);
    tab.document.readyState = "interactive";
    world.run(20000);
    same(world.requests.length, 0);
    tab.document.readyState = "complete";
    world.run(60);
    world.last().good([], "c1");
    world.run(1);
    same([states, world.requests.length, world.open().length], [["connecting", "live"], 2, 1]);
    poll.stop();
    tab.document.readyState = "loading";
    poll.start();
    poll.stop();
    tab.document.readyState = "complete";
    world.run(1000);
    same([poll.state, world.requests.length], ["stopped", 2]);
  });

  test("JSONP takes its status from the body", function () {
    [["cursor_expired", "stale"], ["unauthorized", "failed"], ["server_full", "waiting"]].forEach(function (row) {
      var at = opened({jsonp: true, onresync: hang.onresync});
      at.world.last().answer(200, {error: {code: row[0], message: ""}, cursor: "c9"});
      at.world.run(1);
      same([at.poll.state, at.tab.document.scripts.length], [row[1], 0]);
    });
  });
}());
