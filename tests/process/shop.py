"""An application as users have it: Flask-SQLAlchemy with the smallest pool there is, and LegacyPoll inside.

Served by test_embedded.py, which names the database in SHOP_DATABASE_URL.
"""

from __future__ import annotations

import os

from flask import Flask, jsonify, request
from flask_sqlalchemy import SQLAlchemy

from legacy_poll import LegacyPoll

app = Flask(__name__)
app.config.update(
    SQLALCHEMY_DATABASE_URI=os.environ["SHOP_DATABASE_URL"],
    SQLALCHEMY_TRACK_MODIFICATIONS=False,
    # One connection, and a short wait for it: who keeps it makes everybody else fail.
    SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 1, "max_overflow": 0, "pool_timeout": 20},
)
db = SQLAlchemy(app)


class Order(db.Model):
    __tablename__ = "shop_order"
    id = db.Column(db.Integer, primary_key=True)
    article = db.Column(db.String(100), nullable=False)


def may_read(channels):
    # By the session, as an application does: the connection is in use until the request's context is popped.
    if request.args.get("as") == "nobody":
        return []
    return channels if db.session.query(Order).count() >= 0 else []


poll = LegacyPoll(app, db=db, authorize=may_read)
app.register_blueprint(poll.blueprint, url_prefix="/poll")

with app.app_context():
    db.create_all()
    poll.upgrade()


@app.route("/orders", methods=["POST"])
def order():
    placed = Order(article=request.form["article"])
    db.session.add(placed)
    db.session.flush()
    poll.publish(db.session, "orders", {"id": placed.id, "article": placed.article}, type="order.placed")
    if "undo" in request.form:
        db.session.rollback()
        return jsonify(placed=False)
    db.session.commit()
    return jsonify(placed=True)


@app.route("/orders/count")
def count():
    return jsonify(count=db.session.query(Order).count(), in_use=db.engine.pool.checkedout())


@app.route("/pool")
def pool():
    return jsonify(in_use=db.engine.pool.checkedout())
