"""An application whose users log out: who asks is in the query (`as=u7`), and POST /logout revokes.

Served by test_revocation.py. With `gate=NAME` a poll's authorisation stands still until the file NAME.open is there,
and says that it has begun by the file NAME.asked, both in GATES.
"""

from __future__ import annotations

import os
import time

from flask import Flask, jsonify, request
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from legacy_poll import LegacyPoll

SECONDS = 60

app = Flask(__name__)
# The tests' own default; an application says who may read.
settings = {name: value for name, value in os.environ.items() if name.startswith("LEGACY_POLL_")}
app.config.update({name: value for name, value in settings.items() if name != "LEGACY_POLL_PUBLIC"})
engine = create_engine(os.environ["LEGACY_POLL_DATABASE_URL"], future=True)


def authorize(channels):
    gate = request.args.get("gate")
    if gate:
        path = os.path.join(os.environ["GATES"], gate)
        with open(path + ".asked", "w"):
            pass
        deadline = time.monotonic() + SECONDS
        while not os.path.exists(path + ".open"):
            assert time.monotonic() < deadline, "nobody opens the gate"
            time.sleep(0.005)  # gevent's
    return channels


poll = LegacyPoll(app, engine=engine, authorize=authorize, subject=lambda: request.args.get("as"))
poll.upgrade()
app.register_blueprint(poll.blueprint)


@app.route("/logout", methods=["POST"])
def logout():
    with Session(engine, future=True) as session:
        poll.revoke(request.args["as"], session)
        if "undo" in request.args:
            session.rollback()
        session.commit()
    return jsonify(undone="undo" in request.args)
