"""A long poll as it is usually written at home: one table, and the auto-increment id is the cursor.

Nothing is wrong with it that a test with one writer would find. But ids are handed out before the commit: a reader
that has been given id 10 asks for what is above 10, and when the transaction with id 9 commits after that, nobody asks
for it any more. The history checker must reject this log; its figures stand beside ours in the README.

    HOME_MADE_DATABASE_URL=... gunicorn -k gevent 'tests.history.home_made:create_app()'
"""

from __future__ import annotations

import json
import os
import time

from flask import Flask, jsonify, request
from sqlalchemy import (
    BigInteger,
    Column,
    Identity,
    MetaData,
    String,
    Table,
    Text,
    bindparam,
    create_engine,
    select,
)

INTERVAL_SECONDS = 0.02

metadata = MetaData()
event = Table(
    "home_made_event",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True, autoincrement=True),
    Column("channel", String(200), nullable=False),
    Column("type", String(200), nullable=False),
    Column("data", Text, nullable=False),
    mysql_charset="utf8mb4",
    mariadb_charset="utf8mb4",
)


def create_app() -> Flask:
    app = Flask(__name__)
    url = os.environ["HOME_MADE_DATABASE_URL"]
    engine = create_engine(url, isolation_level="AUTOCOMMIT", pool_size=30, future=True)
    query = (
        select(event.c.id, event.c.channel, event.c.type, event.c.data)
        .where(event.c.id > bindparam("cursor"), event.c.channel.in_(bindparam("channels", expanding=True)))
        .order_by(event.c.id)
        .limit(bindparam("most"))
    )

    @app.get("/stream")
    def stream():
        if request.args.get("cursor") == "now":
            return head()
        channels = request.args.getlist("channel") or request.args["channels"].split(",")
        asked = {
            "cursor": int(request.args.get("cursor", 0)),
            "channels": channels,
            "most": request.args.get("limit", 500, type=int),
        }
        deadline = time.monotonic() + request.args.get("timeout", 25000, type=int) / 1000
        while True:
            with engine.connect() as connection:
                rows = connection.execute(query, asked).all()
            if rows or time.monotonic() >= deadline:
                break
            time.sleep(INTERVAL_SECONDS)
        events = [
            {"id": str(row.id), "channel": row.channel, "type": row.type, "data": json.loads(row.data)}
            for row in rows
        ]
        return jsonify(events=events, cursor=str(rows[-1].id if rows else asked["cursor"]))

    @app.get("/cursor")
    def head():
        with engine.connect() as connection:
            last = connection.execute(select(event.c.id).order_by(event.c.id.desc()).limit(1)).scalar()
        return jsonify(events=[], cursor=str(last or 0))

    @app.get("/health/ready")
    def ready():
        return jsonify(status="ready")

    return app
