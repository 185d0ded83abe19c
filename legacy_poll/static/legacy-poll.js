/* legacy_poll in a browser, ES3: docs/browser.md */
(function (root, factory) {
	if (typeof module === "object" && module.exports) {
		module.exports = factory();
	} else if (typeof define === "function" && define.amd) {
		define(factory);
	} else {
		root.LegacyPoll = factory();
	}
}(this, function () {
	var HOLD = 25000, SPARE = 10000, DOWNLOAD = 120000, QUICK = 750, WORD = 2000;
	var BURST = 12, BURST_MS = 8000, BACKOFF = 500, BACKOFF_MOST = 30000, RETRY_MOST = 300000;
	var CUT_LEAST = 2000, CUT_KEPT = 864e5, BEAT = 200, TICK = 5000, MEMORY = 1000;

	function noop() {}

	/* fn calls done, or returns. */
	function settle(fn, args, done) {
		var result, waits = fn.length > args.length;
		function broken(error) {
			done(false, error);
		}
		try {
			result = fn.apply(null, args.concat(done));
			if (result && result.then) {
				result.then(done, broken);
			} else if (!waits) {
				done(result);
			}
		} catch (thrown) {
			broken(thrown);
		}
	}

	function sendXhr(win, url, token, credentials, done, progress) {
		var xhr = new win.XMLHttpRequest();
		xhr.open("GET", url, true);
		if (credentials) {
			xhr.withCredentials = true;
		}
		if (token) {
			xhr.setRequestHeader("Authorization", "Bearer " + token);
		}
		xhr.onreadystatechange = function () {
			if (xhr.readyState === 3) {
				progress();
			} else if (xhr.readyState === 4) {
				done(xhr.status, xhr.responseText, xhr);
			}
		};
		xhr.send(null);
		return function () {
			xhr.onreadystatechange = noop;
			if (xhr.readyState < 4) { /* or its headers go */
				xhr.abort();
			}
		};
	}

	function sendJsonp(win, url, done) {
		var script = win.document.createElement("script");
		var name = "legacyPoll" + String(win.Math.random()).slice(2);
		win[name] = function (body) {
			done(200, body);
		};
		script.onload = script.onerror = function () {
			done(0);
		};
		script.src = url + "&callback=" + name;
		win.document.getElementsByTagName("head")[0].appendChild(script);
		return function () {
			if (script.parentNode) {
				script.parentNode.removeChild(script);
			}
			win[name] = noop;
		};
	}

	function connect(given, win) {
		var self = {state: "stopped", leads: true};
		var options = {}, base, name, key;
		var secret, renewed;
		var run = 0, busy, abort = noop, limit;
		var timer = null, due = 0;
		var proven, failures, early = 0, earned, spent = [];
		var serial, learnt, cut = 0, lastCut = 0;
		var known = {}, order = [], handlers = [];
		var listeners, frozen = true, beat, ticked;
		var bus, lock, id, misses, queue, word, seen;

		function now() {
			return new win.Date().getTime();
		}

		function keep(storage, key, value) {
			try {
				return win[storage][value === undefined ? "getItem" : "setItem"]("legacy-poll:" + key, value);
			} catch (forbidden) {}
		}

		function guarded(fn, a, b) {
			try {
				fn.call(self, a, b);
			} catch (thrown) {
				report(thrown, a);
			}
		}

		function report(error, event) {
			try {
				self.onerror(error, event);
			} catch (missing) {
				win.setTimeout(function () {
					throw error;
				}, 0);
			}
		}

		function become(state, detail) {
			if (state !== self.state) {
				self.state = state;
				say();
				if (self.onstate) {
					guarded(self.onstate, state, detail || {});
				}
			}
		}

		/* Ends what is under way ... */
		function halt() {
			var cancel = abort;
			run += 1;
			busy = false;
			abort = noop;
			win.clearTimeout(timer);
			win.clearTimeout(limit);
			timer = null;
			cancel();
		}

		/* ... and begins what halt() would end. */
		function once(fn) {
			var mine;
			halt();
			mine = run;
			busy = true;
			return function (a, b, c) {
				if (mine === run) {
					halt();
					fn(a, b, c);
				}
			};
		}

		/* The one place that starts the next request. */
		function plan(ms, detail) {
			var room = earned || spent.length < BURST ? 0 : spent[0] + BURST_MS - now();
			halt();
			if (room <= BURST_MS) { /* or the clock went back */
				ms = Math.max(ms, room);
			}
			if (ms > 0) {
				timer = win.setTimeout(ask, ms);
				become("waiting", detail || {reason: "rate", delay: ms});
			} else {
				ask(); /* timers may be slow */
			}
		}

		function ask() {
			var hold = !proven ? 0 : self.leads ? Math.min(options.timeout || HOLD, learnt) : word;
			var asked = {hold: hold, at: now()}, done, mine;

			function watch() {
				win.clearTimeout(limit);
				limit = win.setTimeout(function () {
					asked.late = true;
					done(0);
				}, hold + SPARE);
			}

			due = 0;
			if (options.jsonp && /ing|ive/.test(win.document.readyState)) { /* load waits for scripts */
				timer = win.setTimeout(ask, 50);
				return become("connecting");
			}
			timer = null;
			done = once(function (status, body, xhr) {
				if (secret !== null) {
					answered(asked, status, body, xhr);
				} else if (status && typeof status === "string") {
					secret = status;
					ask();
				} else {
					fail("token");
				}
			});
			mine = run;
			watch();
			if (!earned) {
				spent = spent.concat(asked.at).slice(-BURST);
			}
			earned = false;
			if (secret === null) {
				settle(options.token, [], done);
			} else {
				try {
					abort = options.jsonp ? sendJsonp(win, address(hold), done) :
						sendXhr(win, address(hold), options.tokenIn === "header" && secret, options.withCredentials, done, function () {
							if (mine === run && now() - asked.at < DOWNLOAD) {
								watch();
							}
						});
				} catch (refused) {
					done(0);
				}
			}
			if (mine === run) {
				become(proven ? "live" : "connecting");
			}
		}

		/* Only cursor and _ change. */
		function address(hold) {
			var channels = options.channels, i;
			var url = base + "timeout=" + hold + "&empty=200&"; /* old IE loses a 204's headers */
			function add(key, value) {
				if (value) {
					url += key + "=" + encodeURIComponent(value) + "&";
				}
			}
			for (i = 0; i < channels.length; i += 1) {
				add("channel", channels[i]);
			}
			add("limit", options.limit);
			add("heartbeat", options.heartbeat);
			add("token", options.tokenIn !== "header" && secret);
			add("cut", cut);
			add("cursor", self.cursor);
			return url + "_=" + (serial += 1);
		}

		function answered(asked, status, body, xhr) {
			var code, retry = 0, took = now() - asked.at;
			if (typeof body === "string") {
				try {
					body = win.JSON.parse(body);
				} catch (malformed) {
					body = 0;
				}
			}
			body = body || {};
			code = body.error ? String(body.error.code) : "";

			/* The status may be 200: trust the code. */
			if ((status === 200 || status === 206) && body.events instanceof Array && body.cursor) {
				accept(asked, body, took, status === 206 || body.more);
			} else if (/^(cursor|backlog)_/.test(code) && body.cursor) {
				resync(code, body.cursor);
			} else if ((status === 401 || code === "unauthorized") && typeof options.token === "function" && !renewed) {
				renewed = true;
				proven = false;
				secret = null;
				plan(0);
			} else if (status === 401 || status === 403 || /^(bad_|unauthorized|forbidden|refused)/.test(code)) {
				if (code === "bad_cursor") {
					save("");
				}
				end("failed", {status: status, code: code, message: code && body.error.message});
			} else {
				if (asked.hold && !code && (status < 400 || /408|502|504/.test(status))) {
					learn(asked, took);
				}
				if (status >= 400) {
					retry = xhr.getResponseHeader("Retry-After");
					retry = retry > 0 ? retry * 1000 :
						Date.parse(retry) - (Date.parse(xhr.getResponseHeader("Date")) || now());
					retry = retry > 0 ? Math.min(retry, RETRY_MOST) : 0;
				}
				fail(asked.late ? "timeout" : !status ? "network" : status < 400 ? "body" : "status", retry, status, code);
			}
		}

		function accept(asked, body, took, more) {
			var mine = run, moved = body.cursor !== self.cursor, ms = 0, fresh;
			proven = true;
			renewed = false;
			cut = 0;
			if (took > lastCut * 1.2) {
				lastCut = 0;
			}
			if (self.leads) {
				post({f: self.cursor, t: body.cursor, e: body.events});
			}
			become("live");
			fresh = mine === run ? take(body.events, body.cursor) : -1;
			earned = moved && fresh > 0;
			if (moved && body.events.length || asked.hold && took >= Math.min(QUICK, asked.hold / 2)) {
				failures = early = 0;
			} else if (asked.hold || more) {
				early += 1;
				if (early > 2) {
					ms = pause();
					failures += 1;
				}
			}
			if (fresh >= 0) {
				if (self.leads || more) {
					plan(ms, ms && {reason: "early", delay: ms});
				} else {
					follow();
				}
			}
		}

		/* How many events were new; -1: a handler ended the run. */
		function take(events, next) {
			var mine = run, fresh = 0, i, j, event, key, list;
			busy = true;
			for (i = 0; i < events.length; i += 1) {
				event = events[i] || {};
				key = "$" + event.id;
				if (!known[key]) {
					known[key] = true;
					order.push(key);
					fresh += 1;
					list = handlers;
					for (j = 0; j < list.length; j += 1) {
						if (list[j].on && (list[j].type === "*" || list[j].type === event.type)) {
							guarded(list[j].fn, event);
						}
					}
					if (mine !== run) {
						return -1;
					}
				}
			}
			busy = false;
			while (order.length > MEMORY) {
				delete known[order.shift()];
			}
			save(self.cursor = next);
			return fresh;
		}

		function save(cursor) {
			if (options.storage === "session") {
				keep("sessionStorage", name, cursor);
			}
		}

		/* Full jitter. */
		function pause() {
			return 1 + Math.round(win.Math.random() * Math.min(BACKOFF_MOST, BACKOFF * Math.pow(2, failures)));
		}

		function fail(reason, retry, status, code) {
			var ms = pause() + (retry || 0);
			proven = false;
			failures += 1;
			due = retry ? now() + retry : 0;
			plan(ms, {reason: reason, delay: ms, status: status, code: code});
		}

		/* Cut twice after about the same time. */
		function learn(asked, took) {
			var at = asked.late ? asked.hold * 0.6 : took;
			if (at >= CUT_LEAST && at < asked.hold + SPARE && win.navigator.onLine !== false) {
				if (lastCut && Math.abs(at - lastCut) < 1000 + 0.1 * at) {
					cut = Math.round(Math.min(at, lastCut));
					learnt = Math.max(CUT_LEAST, Math.round(0.8 * cut));
					keep("localStorage", "hold:" + base, learnt + " " + now());
					at = 0;
				}
				lastCut = at;
			}
		}

		function resync(code, cursor) {
			var again = failures, mine, done = once(function (result, error) {
				join();
				if (error) {
					report(error);
				}
				if (result !== false) {
					known = {};
					order = [];
					save(self.cursor = cursor);
					failures += 1;
				}
				if (result === false || again) {
					fail("resync");
				} else {
					plan(0);
				}
			});
			mine = run;
			leave();
			proven = false;
			become("stale", {code: code, cursor: cursor});
			if (mine === run) {
				settle(self.onresync || function () {
					report(new Error(code));
				}, [code, cursor], done);
			}
		}

		/* anew: what is held may be dead. */
		function hurry(anew) {
			if (!frozen && self.state !== "stale" && due <= now()) {
				if (timer !== null || anew === true) {
					proven = proven && anew !== true;
					plan(0);
				}
			}
		}

		function tick() {
			var gap = now() - ticked, follows = bus && !self.leads;
			ticked += gap;
			beat = win.setTimeout(tick, follows ? BEAT : TICK);
			if (gap > TICK * (win.document.hidden ? 24 : 3)) {
				hurry(true);
			} else if (follows) {
				misses += 1;
				if (misses > 3) {
					misses = 0;
					lock.steal();
				} else if (misses > 1) {
					post({p: 1});
				}
			}
		}

		/* The leader of the tabs polls. Others take its answers if these go on from their cursor
		   or overlap with what they handled; else they ask. */
		function join() {
			var who = typeof options.share === "string" ? options.share : secret;
			id = String(win.Math.random());
			queue = [];
			misses = word = 0;
			if (options.share !== false && who !== null && win.addEventListener) {
				key = "legacy-poll:" + [name, options.withCredentials, hash(who)];
				try {
					bus = openBus();
					self.leads = false;
					lock = win.navigator.locks && win.BroadcastChannel ? webLock() : lease();
				} catch (forbidden) {
					leave();
				}
			}
		}

		function leave() {
			if (lock) {
				lock.release();
			}
			if (bus) {
				bus.close();
			}
			lock = bus = null;
			self.leads = true;
		}

		function hash(text) {
			for (var sum = 0, i = 0; i < text.length; i += 1) {
				sum = sum * 31 + text.charCodeAt(i) | 0;
			}
			return sum;
		}

		function webLock() {
			var mine = bus, free;
			function request(how) {
				win.navigator.locks.request(key, how, function () {
					return mine === bus && !free && new win.Promise(function (resolve) {
						free = resolve;
						crowned();
					});
				}).then(noop, function (error) {
					if (error.name === "AbortError") { /* stolen */
						free = null;
						request({});
						deposed();
					} else {
						crowned();
					}
				});
			}
			request({});
			return {
				steal: function () {
					request({steal: true});
				},
				release: function () {
					if (free) {
						free();
					}
				}
			};
		}

		function lease() {
			var store = win.localStorage, mine = bus, held;
			function claim(force) {
				if (mine === bus && !held) {
					try {
						if (force || !store.getItem(key)) {
							store.setItem(key, id);
							win.setTimeout(function () {
								if (mine === bus && !held && store.getItem(key) === id) {
									held = true;
									crowned();
								}
							}, 50);
						}
					} catch (full) {
						held = true;
						crowned();
					}
				}
			}
			claim();
			return {
				heard: function (value) {
					if (held && value !== id) {
						held = false;
						deposed();
					}
					if (!value) {
						claim();
					}
				},
				steal: function () {
					claim(true);
				},
				release: function () {
					if (store.getItem(key) === id) {
						store.removeItem(key);
					}
				}
			};
		}

		function openBus() {
			var channel, store;
			if (win.BroadcastChannel) {
				channel = new win.BroadcastChannel(key);
				channel.onmessage = function (event) {
					hear(event.data);
				};
				return channel;
			}
			store = win.localStorage;
			store.removeItem(key + "|");
			return {
				close: noop,
				postMessage: function (message) {
					store.setItem(key + "|", win.JSON.stringify(message));
					store.removeItem(key + "|");
				}
			};
		}

		function stored(event) {
			if (bus && event.key === key && lock.heard) {
				lock.heard(event.newValue);
			} else if (bus && event.key === key + "|" && event.newValue) {
				hear(win.JSON.parse(event.newValue));
			}
		}

		function post(message) {
			message.i = id;
			try {
				if (bus) {
					bus.postMessage(message);
				}
			} catch (full) {
				if (message.e && message.e.length) {
					post({e: []});
				}
			}
		}

		function say() {
			if (self.leads) {
				post({s: self.state, t: self.cursor});
			}
		}

		function hear(message) {
			if (!bus || message.i === id) {
				return;
			}
			if (message.p) {
				return say();
			}
			misses = 0;
			if (message.e) {
				queue = queue.concat(message).slice(-50);
			}
			if (!self.leads && proven && !busy && timer === null) {
				if (message.e) {
					follow();
				} else if (message.t !== seen && message.t !== self.cursor) {
					seen = message.t;
					plan(0);
				} else if (/live|waiting|connecting/.test(message.s)) {
					become(message.s, {reason: "leader"});
				}
			}
		}

		/* How many events come before what is new here. */
		function overlap(events) {
			var i = events.length;
			while (i && !known["$" + events[i - 1].id]) {
				i -= 1;
			}
			return i;
		}

		function follow() {
			var kept = [], message, old;
			word = 0;
			while ((message = queue.shift())) {
				seen = message.t;
				old = overlap(message.e);
				if (old || message.f && message.f === self.cursor) {
					if (take(message.e.slice(old), message.t) < 0) {
						return;
					}
					kept = [];
				} else if (!message.tried) {
					message.tried = true;
					kept.push(message);
					word = message.e.length ? WORD : word;
				}
			}
			queue = kept;
			if (kept.length) {
				plan(0);
			}
		}

		function crowned() {
			if (bus) {
				self.leads = true;
				say();
				if (!busy && timer === null) {
					proven = self.state === "live";
					plan(0);
				}
			}
		}

		function deposed() {
			if (bus) {
				self.leads = false;
				if (timer === null) {
					plan(0);
				}
			}
		}

		function sleep() {
			halt();
			leave();
			win.clearTimeout(beat);
			frozen = true;
		}

		function freeze() {
			sleep();
			become("waiting", {reason: "frozen"});
		}

		function end(state, detail) {
			sleep();
			each("removeEventListener");
			become(state, detail);
		}

		function wake() {
			if (frozen) {
				frozen = proven = false;
				join();
				ticked = now();
				tick();
				plan(0);
			}
		}

		function each(method) {
			for (var i = 0; i < listeners.length; i += 3) {
				if (listeners[i][method]) {
					listeners[i][method](listeners[i + 1], listeners[i + 2], false);
				}
			}
		}

		self.on = function (type, fn) {
			handlers = handlers.concat({type: type, fn: fn, on: true});
			return self;
		};

		self.off = function (type, fn) {
			var kept = [], i, one;
			for (i = 0; i < handlers.length; i += 1) {
				one = handlers[i];
				if (type && one.type !== type || fn && one.fn !== fn) {
					kept.push(one);
				} else {
					one.on = false;
				}
			}
			handlers = kept;
			return self;
		};

		self.start = function (changes) {
			if (changes) {
				self.stop();
				options.token = changes.token || options.token;
				self.cursor = changes.cursor || self.cursor;
			}
			if (/stopped|failed/.test(self.state)) {
				secret = typeof options.token === "function" ? null : options.token || "";
				failures = 0;
				renewed = false;
				each("addEventListener");
				wake();
			} else {
				hurry();
			}
			return self;
		};

		self.stop = function () {
			end("stopped");
			return self;
		};

		(function () {
			var kept, age;
			for (key in given) {
				options[key] = given[key];
			}
			win = win || window;
			kept = (options.url || "/poll").split("?");
			base = kept[0].replace(/\/*(\/stream)?\/*$/, "/stream?") + (kept[1] ? kept[1] + "&" : "");
			kept = options.channels || [];
			options.channels = typeof kept === "string" ? kept.split(",") : kept;
			name = base + "|" + options.channels.slice().sort();
			serial = now();
			self.onstate = options.onstate;
			self.onerror = options.onerror;
			self.onresync = options.onresync;
			self.cursor = options.cursor;
			if (options.storage === "session" && (!self.cursor || self.cursor === "now")) {
				self.cursor = keep("sessionStorage", name) || self.cursor;
			}
			kept = String(keep("localStorage", "hold:" + base)).split(" ");
			age = now() - kept[1];
			learnt = age >= 0 && age < CUT_KEPT ? +kept[0] : Infinity;
			listeners = [
				win, "storage", stored,
				win, "pagehide", freeze,
				win, "pageshow", wake,
				win.document, "freeze", freeze,
				win.document, "resume", wake,
				win.document, "visibilitychange", hurry,
				win, "online", function () {
					hurry(true);
				}
			];
		}());
		return self.start();
	}

	return {connect: connect};
}));
