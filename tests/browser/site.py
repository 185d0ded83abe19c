"""An application whose pages use the browser library; served by tests.browser.pages.Site.

Channels that begin with `members` need a cookie, those that begin with `staff` a channel token (`/token` makes one);
anybody may read the others. A file `front` where the server was started puts something in front of the polls: a login
page or a captive portal.
"""

from __future__ import annotations

import os

from flask import Flask, abort, render_template_string, request

from legacy_poll import LegacyPoll

# options: JSON in the query; what comes is kept for the test.
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>A page</title>
<link rel="icon" href="data:,">
<p id="badge">no connection</p>
<script src="{{ library or poll.script_url() }}"></script>
<script>
var got = [], states = [], resyncs = [], errors = [], shows = [], poll;
function open_line(options) {
    if (options.old) { /* as over plain HTTP, or in an old browser: what is left is localStorage */
        delete Navigator.prototype.locks;
        delete window.BroadcastChannel;
    }
    options.onstate = function (state, detail) {
        states.push([state, detail.reason || detail.code || ""]);
        var text = state === "live" ? "live" : state === "failed" ? "log in" : "reconnecting";
        document.getElementById("badge").innerHTML = text;
    };
    options.onresync = options.onresync || function (code) {
        resyncs.push(code);
    };
    options.onerror = function (error) {
        errors.push(String(error.message));
    };
    if (options.tokens) {
        options.token = function () {
            return fetch(options.tokens).then(function (answer) {
                return answer.text();
            });
        };
    }
    poll = LegacyPoll.connect(options).on("*", function (event) {
        got.push(event.data);
    });
}
addEventListener("pageshow", function (event) {
    shows.push(event.persisted);
});
if (location.search) {
    open_line(JSON.parse(decodeURIComponent(location.search.slice(1))));
}
</script>
"""


class Front:
    """What stands between pages and polls, while the file `front` says so."""

    def __init__(self, app):
        self._app = app

    def __call__(self, environ, start_response):
        kind = ""
        if environ["PATH_INFO"] == "/poll/stream" and os.path.exists("front"):
            with open("front") as front:
                kind = front.read()
        if kind == "login":  # a proxy that wants a login, whose page is HTML
            start_response("302 Found", [("Location", "/login"), ("Content-Length", "0")])
            return [b""]
        if kind == "portal":  # a hotel's, which answers for everybody
            body = b"<!doctype html><title>Room number?</title>"
            start_response("200 OK", [("Content-Type", "text/html"), ("Content-Length", str(len(body)))])
            return [body]
        return self._app(environ, start_response)


def authorize(channels):
    if any(channel.startswith("staff") for channel in channels):
        return poll.allowed_by_token(channels)
    if any(channel.startswith("members") for channel in channels) and request.cookies.get("member") != "yes":
        abort(401)
    return channels


app = Flask(__name__)
app.config.update({name: value for name, value in os.environ.items() if name.startswith("LEGACY_POLL_")})
poll = LegacyPoll(app, url=app.config["LEGACY_POLL_DATABASE_URL"], authorize=authorize)
app.register_blueprint(poll.blueprint, url_prefix="/poll")
with app.app_context():
    poll.upgrade()


@app.route("/page")
def page():
    return render_template_string(PAGE, poll=poll, library="")


@app.route("/login")
def login():
    return "<!doctype html><title>Log in</title><form></form>"


@app.route("/token")
def token():
    return poll.token([request.args["channel"]])


@app.route("/hello")
def hello():
    return "hello"


app.wsgi_app = Front(app.wsgi_app)
