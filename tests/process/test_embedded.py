"""Inside an application: a poll that is held holds nothing of the app's, so one connection is enough for everybody."""

from __future__ import annotations

import pytest

from tests.process.conftest import SERVERS, everyone, hold_everywhere
from tests.process.polls import Client, Request, get, head, stream

SESSIONS = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database();",
    "mysql": "SELECT count(*) FROM information_schema.processlist WHERE db = database();",
}


def place(gunicorn, article, **form):
    fields = "&".join("{}={}".format(*field) for field in dict(form, article=article).items())
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    return Request(gunicorn, "/orders", method="POST", body=fields, headers=headers).answer().json


@pytest.mark.parametrize("database_url", SERVERS, indirect=True)
def test_200_held_polls_leave_an_app_its_pool_of_one(start_gunicorn, database_url, terminal):
    gunicorn = start_gunicorn(
        workers=1,
        app="tests.process.shop:app",
        environ={"SHOP_DATABASE_URL": database_url},
        ready="/poll/health/ready",
    ).start()
    start = head(gunicorn, "/poll")
    held = hold_everywhere(gunicorn, 200, live="/poll/health/live", cursor=start, prefix="/poll")
    clients = everyone(held)
    assert len(clients) == 200 and all(client.held for client in clients)

    # The app's routes find the one connection free, again and again; the only one in use is their own.
    for _ in range(20):
        assert get(gunicorn, "/orders/count").json == {"count": 0, "in_use": 1}
    assert get(gunicorn, "/pool").json == {"in_use": 0}
    # As the server sees it: the app's one, a handful of ours, the terminal's; none for each poll.
    sessions = int(terminal(SESSIONS[database_url.partition("+")[0]]))
    assert 2 <= sessions <= 16

    assert place(gunicorn, "undone", undo=1) == {"placed": False}
    assert place(gunicorn, "tea") == {"placed": True}
    for client in clients:
        [event] = client.hear().json["events"]
        assert event["data"]["article"] == "tea" and event["type"] == "order.placed"
    assert get(gunicorn, "/orders/count").json == {"count": 1, "in_use": 1}
    assert get(gunicorn, "/pool").json == {"in_use": 0}
    assert "Traceback" not in gunicorn.log

    # Refused in the request's own context, and that holds nothing either.
    refused = get(gunicorn, stream(prefix="/poll", **{"as": "nobody"}))
    assert (refused.status, refused.code) == (403, "forbidden")
    assert Client(gunicorn, prefix="/poll", timeout=0).hear_until(1)[0]["article"] == "tea"
