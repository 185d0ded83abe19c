"""An application whose users have a cookie `who`, and which counts the polls that it is asked about: see kept.py.

A channel `user:NAME` is for NAME alone, and each answer says with whose cookies it was asked. POST /withdraw takes a
user's right away without a word to anybody, POST /logout revokes it. POST /echo gives back what it was given, GET
/where tells of the listener. A poll with `mark=1` is answered with a cookie; one with `odd=1` cannot be, since a header
of its answer is no Latin-1. What runs when the response of a poll with `closing=1` is closed fails once POST /open was
asked, and waits until then. With HIDE in the environment, middleware puts a response of its own around every other. A
second log is at /other.
"""

from __future__ import annotations

import logging
import os
import threading

from flask import Flask, abort, jsonify, request
from sqlalchemy import create_engine

from legacy_poll import LegacyPoll

logging.basicConfig()
logging.getLogger("legacy_poll").setLevel(logging.INFO)

app = Flask(__name__)
settings = {name: value for name, value in os.environ.items() if name.startswith("LEGACY_POLL_")}
app.config.update({name: value for name, value in settings.items() if name != "LEGACY_POLL_PUBLIC"})
engine = create_engine(os.environ["LEGACY_POLL_DATABASE_URL"], future=True)
asked = []
withdrawn = set()
opened = threading.Event()


def authorize(channels):
    if request.path == "/stream":
        asked.append(request.cookies.get("who"))
    if request.cookies.get("who") in withdrawn:
        abort(403)
    own = "user:{}".format(request.cookies.get("who"))
    return [each for each in channels if each != "secret" and (each == own or not each.startswith("user:"))]


poll = LegacyPoll(app, engine=engine, authorize=authorize, subject=lambda: request.cookies.get("who"))
poll.upgrade()
app.register_blueprint(poll.blueprint)

# Another log in the same process, at /other.
other = LegacyPoll(
    app, engine=create_engine(os.environ["LEGACY_POLL_DATABASE_URL"] + "-other"), public=True, name="other"
)
other.upgrade()
app.register_blueprint(other.blueprint, url_prefix="/other")


@app.after_request
def mark(response):
    if "mark" in request.args:
        response.set_cookie("mark", "1")
    if "odd" in request.args:
        response.headers["X-Odd"] = "\u0142"
    if "closing" in request.args:
        response.call_on_close(fail_once_opened)
    response.headers["X-Shop"] = "open"
    response.headers["X-Who"] = request.cookies.get("who", "nobody")
    response.headers["X-Theme"] = request.cookies.get("theme", "none")
    return response


def fail_once_opened():
    opened.wait(60)  # gevent's
    raise ValueError("a function of call_on_close failed")


@app.route("/open", methods=["POST"])
def let_through():
    opened.set()
    return jsonify(True)


@app.route("/asked")
def how_often():
    return jsonify(asked)


@app.route("/echo", methods=["POST"])
def echo():
    return request.get_data()


@app.route("/where")
def where():
    names = ("SERVER_NAME", "SERVER_PORT", "REMOTE_ADDR")
    return jsonify([request.environ.get(name) for name in names])


@app.route("/withdraw", methods=["POST"])
def withdraw():
    withdrawn.add(request.args["who"])
    return jsonify(True)


@app.route("/logout", methods=["POST"])
def logout():
    poll.revoke(request.args["who"])
    return jsonify(True)


class Hiding:
    """What monitoring does: a response of its own, which gives what the other gives."""

    def __init__(self, inner):
        self._inner = inner

    def __call__(self, environ, start_response):
        body = self._inner(environ, start_response)
        try:
            yield from body
        finally:
            body.close()


if os.environ.get("HIDE"):
    app.wsgi_app = Hiding(app.wsgi_app)
