"""What people write first: a Flask view that waits in its request, on one gevent Event that wakes all of them.

It takes the number of the last message that the client has, so it loses nothing; it has one process, no database, no
authorisation, no timeout and no end.
"""

from __future__ import annotations

from flask import Flask, jsonify, request
from gevent.event import Event

app = Flask(__name__)
messages = []
# Of the next message: each has an Event of its own, so that nobody waits on one that was set before.
arrived = [Event()]


@app.route("/wait")
def wait():
    after = int(request.args["after"]) + 1
    while len(messages) <= after:
        arrived[0].wait()
    return jsonify(messages[after:])


@app.route("/publish", methods=["POST"])
def publish():
    messages.append(request.get_json())
    before, arrived[0] = arrived[0], Event()
    before.set()
    return "", 201
