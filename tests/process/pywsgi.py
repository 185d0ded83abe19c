"""`python -m tests.process.pywsgi PORT`: an application on gevent's own server, with the end that docs/lanes.md shows.

With "unpatched" behind the port it forgets what gevent's server needs.
"""

from __future__ import annotations

import sys

from gevent import monkey

if "unpatched" not in sys.argv:
    monkey.patch_all()

import os
import signal

import gevent
from flask import Flask
from gevent.pywsgi import WSGIServer

from legacy_poll import LegacyPoll

app = Flask(__name__)
settings = {name: value for name, value in os.environ.items() if name.startswith("LEGACY_POLL_")}
del settings["LEGACY_POLL_PUBLIC"]  # for the server by itself
app.config.update(settings)
poll = LegacyPoll(app, public=True)
app.register_blueprint(poll.blueprint)
poll.upgrade()

server = WSGIServer(("127.0.0.1", int(sys.argv[1])), app)


def stop():
    poll.drain()
    server.stop(timeout=10)


gevent.signal_handler(signal.SIGTERM, stop)
server.serve_forever()
