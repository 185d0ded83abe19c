"""The bare server, which also tells at /statements how often its database was asked for old events: see test_storm.py.

A read of the log is one statement on the table of events, whichever room it comes from.
"""

from __future__ import annotations

from flask import jsonify
from sqlalchemy import event
from sqlalchemy.engine import Engine

from legacy_poll.server import create_app

statements = []


@event.listens_for(Engine, "before_cursor_execute")
def note(connection, cursor, statement, parameters, context, executemany):
    if statement.lstrip().upper().startswith("SELECT") and "legacy_poll_event" in statement:
        statements.append(statement)


app = create_app()


@app.route("/statements")
def how_many():
    return jsonify(statements)
