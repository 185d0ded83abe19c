/* A browser without a browser: tabs, timers, transport, storage, locks and a server, all on one clock that a test
 * turns by hand. ES5, so that the old engines can run the same tests as node.
 *
 *   var world = kit.world({seed: 1});                 the clock, the random numbers, the origin's storage and locks
 *   var tab = world.tab();                            a window, to be given as LegacyPoll.connect(options, tab)
 *   world.requests                                    what was asked, oldest first; world.last() is the newest
 *   world.last().answer(200, body, headers)           arrives a millisecond later
 *   world.run(1000)                                   a second passes
 *   tab.kill(), tab.freeze(), tab.thaw(), tab.close()
 */
var kit = (function () {
  "use strict";

  var node = typeof process === "object";
  var tests = [];

  function test(name, fn) {
    if (node) {
      require("node:test")(name, function () {
        fn();
      });
    } else {
      tests.push({name: name, fn: fn});
    }
  }

  /* Old engines: after all files were read. Returns what to print. */
  function runAll() {
    var failed = [];
    tests.forEach(function (one) {
      try {
        one.fn();
      } catch (error) {
        failed.push("FAILED " + one.name + ": " + error + "\n" + (error.stack || ""));
      }
    });
    return failed.concat(tests.length - failed.length + " passed, " + failed.length + " failed").join("\n");
  }

  function show(value) {
    return typeof value === "string" ? value : JSON.stringify(value);
  }

  function ok(value, message) {
    if (!value) {
      throw new Error(message === undefined ? "expected a true value" : String(message));
    }
  }

  function same(found, wanted, message) {
    if (show(found) !== show(wanted)) {
      throw new Error((message ? message + ": " : "") + "found " + show(found) + ", wanted " + show(wanted));
    }
  }

  function random(seed) { /* mulberry32, without Math.imul */
    function times(a, b) {
      return ((a & 0xffff) * b + (((a >>> 16) * b & 0xffff) << 16)) | 0;
    }
    return function () {
      var t;
      seed = (seed + 0x6d2b79f5) | 0;
      t = times(seed ^ (seed >>> 15), 1 | seed);
      t = (t + times(t ^ (t >>> 7), 61 | t)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
  }

  function world(options) {
    var self = {time: 0, wall: 1769850600000, requests: [], random: random(options && options.seed || 1), store: {}};
    var timers = [], numbers = 0, channels = [], locks = {};

    self.tabs = [];

    self.later = function (ms, fn, tab) {
      var timer = {at: self.time + Math.max(0, ms), number: numbers += 1, fn: fn, tab: tab};
      timers.push(timer);
      return timer.number;
    };

    function due(until) {
      var best = null;
      timers.forEach(function (timer) {
        if (timer.at <= until && !(timer.tab && timer.tab.isFrozen) &&
            (!best || timer.at < best.at || timer.at === best.at && timer.number < best.number)) {
          best = timer;
        }
      });
      return best;
    }

    self.run = function (ms) {
      var until = self.time + ms, timer, steps = 0;
      while ((timer = due(until))) {
        timers.splice(timers.indexOf(timer), 1);
        self.wall += Math.max(0, timer.at - self.time);
        self.time = Math.max(self.time, timer.at);
        if (!(timer.tab && timer.tab.isDead)) {
          timer.fn();
        }
        steps += 1;
        ok(steps < 200000, "a tight loop");
      }
      self.wall += until - self.time;
      self.time = until;
    };

    /* The machine sleeps: no timer runs; the wall clock goes on, the other one only if the browser says so. */
    self.sleep = function (ms, monotonic) {
      self.wall += ms;
      if (monotonic) {
        timers.forEach(function (timer) {
          timer.at = Math.max(timer.at, self.time + ms);
        });
        self.time += ms;
      }
    };

    self.last = function () {
      return self.requests[self.requests.length - 1];
    };

    self.open = function () {
      return self.requests.filter(function (request) {
        return !request.over;
      });
    };

    function Thenable(fn) {
      var state = 0, value, waiting = [];
      function settle(to) {
        return function (result) {
          if (!state) {
            state = to;
            value = result;
            waiting.forEach(function (one) {
              one();
            });
          }
        };
      }
      this.then = function (good, bad) {
        function call() {
          var fn = state === 1 ? good : bad;
          if (fn) {
            fn(value);
          }
        }
        if (state) {
          call();
        } else {
          waiting.push(call);
        }
      };
      fn(settle(1), settle(2));
    }

    function parse(url) {
      var params = {channel: []}, query = url.split("?")[1] || "";
      query.split("&").forEach(function (pair) {
        var parts = pair.split("="), value = decodeURIComponent(parts[1] || "");
        if (parts[0] === "channel") {
          params.channel.push(value);
        } else if (parts[0]) {
          params[parts[0]] = value;
        }
      });
      return params;
    }

    function asked(tab, url, headers, deliver) {
      var request = {url: url, params: parse(url), headers: headers, tab: tab, at: self.time, wall: self.wall, over: false};
      request.path = url.split("?")[0];
      request.end = function () {
        request.over = true;
      };
      request.answer = function (status, body, answerHeaders) {
        self.later(1, function () {
          if (!request.over) {
            request.over = true;
            deliver(status, typeof body === "string" ? body : JSON.stringify(body), answerHeaders || {});
          }
        }, tab);
      };
      request.good = function (events, cursor, more) {
        var body = {events: events, cursor: cursor};
        if (more) {
          body.more = true;
        }
        request.answer(more ? 206 : 200, body);
      };
      request.error = function (status, code, cursor) {
        request.answer(status, {error: {code: code, message: code + "!"}, cursor: cursor});
      };
      request.cut = function () {
        request.answer(0, "");
      };
      self.requests.push(request);
      if (self.server) {
        self.server(request);
      }
      return request;
    }

    function dispatcher(target) {
      var listeners = [];
      target.addEventListener = function (type, fn) {
        listeners.push({type: type, fn: fn});
      };
      target.removeEventListener = function (type, fn) {
        listeners = listeners.filter(function (one) {
          return one.type !== type || one.fn !== fn;
        });
      };
      target.listeners = function () {
        return listeners.length;
      };
      target.emit = function (type, event) {
        listeners.slice().forEach(function (one) {
          if (one.type === type) {
            one.fn(event || {type: type});
          }
        });
      };
    }

    function storage(data, tab, shared) {
      function changed(key, value) {
        if (shared) {
          self.tabs.forEach(function (other) {
            if (other !== tab && other.document) {
              self.later(1, function () {
                other.emit("storage", {key: key, newValue: value});
              }, other);
            }
          });
        }
      }
      return {
        getItem: function (key) {
          return Object.prototype.hasOwnProperty.call(data, key) ? data[key] : null;
        },
        setItem: function (key, value) {
          if (self.full && String(value).length > self.full) {
            throw new Error("QuotaExceededError");
          }
          data[key] = String(value);
          changed(key, data[key]);
        },
        removeItem: function (key) {
          if (Object.prototype.hasOwnProperty.call(data, key)) {
            delete data[key];
            changed(key, null);
          }
        }
      };
    }

    /* without: names of what this browser lacks: locks, BroadcastChannel, localStorage (throws), performance. */
    self.tab = function (without) {
      var tab = {isDead: false, isFrozen: false, errors: [], sessionData: {}};
      var lacks = function (what) {
        return (without || []).indexOf(what) >= 0;
      };
      dispatcher(tab);
      tab.document = {hidden: false, scripts: []};
      dispatcher(tab.document);
      tab.navigator = {onLine: true};
      tab.JSON = JSON;
      tab.Promise = Thenable;
      tab.Math = {random: self.random};
      tab.Date = function () {
        this.getTime = function () {
          return self.wall;
        };
      };
      if (!lacks("performance")) {
        tab.performance = {now: function () {
          return self.time;
        }};
      }
      tab.setTimeout = function (fn, ms) {
        return self.later(ms, function () {
          try {
            fn();
          } catch (error) {
            tab.errors.push(error);
          }
        }, tab);
      };
      tab.clearTimeout = function (number) {
        timers = timers.filter(function (timer) {
          return timer.number !== number;
        });
      };

      tab.XMLHttpRequest = function () {
        var xhr = this, headers = {}, url, request, answerHeaders;
        xhr.open = function (method, to) {
          ok(method === "GET", method);
          url = to;
          xhr.readyState = 1;
        };
        xhr.setRequestHeader = function (name, value) {
          headers[name] = value;
        };
        xhr.getResponseHeader = function (name) {
          return answerHeaders[name] === undefined ? null : String(answerHeaders[name]);
        };
        xhr.send = function () {
          if (tab.refuses) {
            throw new Error("refused");
          }
          request = asked(tab, url, headers, function (status, body, given) {
            answerHeaders = given;
            xhr.status = status;
            xhr.responseText = body;
            xhr.readyState = 4;
            xhr.onreadystatechange();
          });
          request.withCredentials = xhr.withCredentials;
          request.bytes = function () {
            xhr.readyState = 3;
            xhr.onreadystatechange();
          };
        };
        xhr.abort = function () { /* browsers announce the end of what they abort */
          if (!request.over) {
            request.over = request.aborted = true;
            xhr.readyState = 4;
            xhr.status = 0;
            xhr.responseText = "";
            xhr.onreadystatechange();
          }
          answerHeaders = {}; /* also of one that is over */
          xhr.readyState = 0;
        };
      };

      tab.document.createElement = function () {
        return {};
      };
      tab.document.getElementsByTagName = function () {
        return [{appendChild: function (script) {
          var name = parse(script.src).callback, request;
          script.parentNode = {removeChild: function () {
            script.parentNode = null;
            request.over = true;
            tab.document.scripts.splice(tab.document.scripts.indexOf(script), 1);
          }};
          tab.document.scripts.push(script);
          request = asked(tab, script.src, {}, function (status, body) {
            var fine = status >= 200 && status < 300;
            try {
              body = JSON.parse(body);
            } catch (syntax) {
              body = null; /* the script loads all the same */
            }
            if (fine && body) {
              tab[name](body);
            }
            script[fine ? "onload" : "onerror"]();
          });
          request.late = function (body) {
            tab[name](body);
          };
        }}];
      };

      Object.defineProperty(tab, "localStorage", {get: function () {
        if (lacks("localStorage")) {
          throw new Error("SecurityError");
        }
        return tab.local;
      }});
      tab.local = storage(self.store, tab, true);
      tab.sessionStorage = storage(tab.sessionData, tab, false);

      if (!lacks("BroadcastChannel")) {
        tab.BroadcastChannel = function (name) {
          var channel = this;
          channel.name = name;
          channel.tab = tab;
          channels.push(channel);
          channel.close = function () {
            channels.splice(channels.indexOf(channel), 1);
          };
          channel.postMessage = function (message) {
            var text = JSON.stringify(message);
            channels.forEach(function (other) {
              if (other !== channel && other.name === name) {
                self.later(1, function () {
                  if (channels.indexOf(other) >= 0) {
                    other.onmessage({data: JSON.parse(text)});
                  }
                }, other.tab);
              }
            });
          };
        };
      }

      if (!lacks("locks")) {
        tab.navigator.locks = {request: function (name, how, fn) {
          var lock = locks[name] = locks[name] || {holder: null, queue: []};
          return new Thenable(function (resolve, reject) {
            var entry = {tab: tab, fn: fn, resolve: resolve, reject: reject};
            if (self.forbidsLocks) {
              self.later(1, function () {
                reject({name: "SecurityError"});
              }, tab);
              return;
            }
            if (how.steal) {
              if (lock.holder) {
                stolen(lock.holder);
              }
              lock.holder = null;
              lock.queue.unshift(entry);
            } else {
              lock.queue.push(entry);
            }
            grant(lock);
          });
        }};
      }

      function stolen(entry) {
        self.later(1, function () {
          entry.reject({name: "AbortError"});
        }, entry.tab);
      }

      /* As when the tab is closed by the user ... */
      tab.close = function () {
        tab.emit("pagehide", {persisted: false});
        tab.kill();
      };
      /* ... as when its process dies ... */
      tab.kill = function () {
        tab.isDead = true;
        self.requests.forEach(function (request) {
          request.over = request.over || request.tab === tab;
        });
        channels = channels.filter(function (channel) {
          return channel.tab !== tab;
        });
        Object.keys(locks).forEach(function (name) {
          locks[name].queue = locks[name].queue.filter(function (entry) {
            return entry.tab !== tab;
          });
          if (locks[name].holder && locks[name].holder.tab === tab) {
            locks[name].holder = null;
            grant(locks[name]);
          }
        });
        self.tabs.splice(self.tabs.indexOf(tab), 1);
      };
      /* ... as when it is stopped without being told. */
      tab.freeze = function () {
        tab.isFrozen = true;
      };
      tab.thaw = function () {
        tab.isFrozen = false;
      };

      self.tabs.push(tab);
      return tab;
    };

    function grant(lock) {
      var entry;
      if (!lock.holder && lock.queue.length) {
        entry = lock.holder = lock.queue.shift();
        self.later(1, function () {
          var held;
          if (lock.holder === entry) {
            held = entry.fn();
            if (held && held.then) {
              held.then(released);
            } else {
              released();
            }
          }
        }, entry.tab);
      }
      function released() {
        if (lock.holder === entry) {
          lock.holder = null;
          entry.resolve();
          grant(lock);
        }
      }
    }

    return self;
  }

  /* A model of the server: one log, workers that see it with a lag of their own, held polls.
   *   server.publish(type)   an event on the channel "orders"; null: one that nobody here reads
   *   server.down = true     nobody answers */
  function server(world, options) {
    var self = {log: [], down: false, keep: Infinity, most: options && options.most || 3}, held = [];
    var lags = options && options.lags || [0];

    function seen(worker) {
      var n = self.log.length;
      while (n > 0 && self.log[n - 1].at + lags[worker] > world.time) {
        n -= 1;
      }
      return n;
    }

    function look(poll) {
      var upto = seen(poll.worker), found = [], position = poll.from, i, request = poll.request;
      if (request.over) {
        return true;
      }
      if (poll.from < self.log.length - self.keep) {
        request.error(410, "cursor_expired", "c" + self.log.length);
        return true;
      }
      for (i = poll.from; i < upto && found.length < self.most; i += 1) {
        position = i + 1;
        if (self.log[i].type) {
          found.push({id: self.log[i].id, type: self.log[i].type, channel: "orders", data: i, time: ""});
        }
      }
      if (found.length) {
        request.good(found, "c" + position, found.length === self.most);
        return true;
      }
      if (world.time >= poll.until) {
        request.good([], "c" + Math.max(poll.from, upto));
        return true;
      }
    }

    function wake() {
      held = held.filter(function (poll) {
        return !look(poll);
      });
    }

    world.server = function (request) {
      var poll = {request: request, from: +String(request.params.cursor || "c0").slice(1)};
      poll.until = world.time + Number(request.params.timeout);
      poll.worker = Math.floor(world.random() * lags.length);
      if (self.down) {
        request.answer(503, "down");
      } else if (!look(poll)) {
        held.push(poll);
        world.later(poll.until - world.time, wake);
      }
    };

    self.publish = function (type) {
      self.log.push({id: type && "e" + self.log.length, type: type, at: world.time});
      lags.forEach(function (lag) {
        world.later(lag, wake);
      });
    };

    self.ids = function (from) {
      return self.log.slice(from || 0).filter(function (event) {
        return event.type;
      }).map(function (event) {
        return event.id;
      });
    };

    return self;
  }

  return {test: test, runAll: runAll, ok: ok, same: same, random: random, world: world, server: server};
}());

if (typeof module === "object") {
  module.exports = kit;
}
