"""Flask-SocketIO as its documentation sets it up on gevent, over the polling transport alone."""

from __future__ import annotations

from flask import Flask, request
from flask_socketio import SocketIO

app = Flask(__name__)
# No pings: nobody else's poll ends during a run but by a message.
socketio = SocketIO(
    app, async_mode="gevent", transports=["polling"], allow_upgrades=False, ping_interval=3600
)


@app.route("/publish", methods=["POST"])
def publish():
    socketio.emit("message", request.get_json())
    return "", 201
