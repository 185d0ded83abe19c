"""Many clients that follow one channel, each on a connection of its own: `python -m tests.matrix.followers`.

Arguments: the port, how many clients, the cursor to start from. Each prints a line for what it is told, a JSON list:

    [client, seconds, "events", [data]]   by time.monotonic()
    [client, seconds, "refused", status]  503 or 429: it asks again after Retry-After
    [client, seconds, "wrong", text]      what ends it: another status, a cursor that went back

It ends when its standard input does.
"""

from __future__ import annotations

import gevent.monkey

gevent.monkey.patch_all()

import http.client  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402

import gevent  # noqa: E402

HOLD_SECONDS = 20


def say(*what):
    sys.stdout.write(json.dumps(what) + "\n")


def follow(client, port, cursor):
    connection = None
    while True:
        # The server ends a connection that idles for 2 s, and a client that was busy for so long finds out as it asks:
        # browsers ask again on a new one.
        kept = connection is not None
        try:
            if connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=4 * HOLD_SECONDS)
            path = "/stream?channel=orders&timeout={}&cursor={}".format(HOLD_SECONDS, cursor)
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            if kept and isinstance(error, ConnectionError):
                connection.close()
                connection = None
                continue
            say(client, time.monotonic(), "wrong", repr(error))
            return
        now = time.monotonic()
        if answer.status in (429, 503):
            say(client, now, "refused", answer.status)
            gevent.sleep(float(answer.headers["Retry-After"]))
        elif answer.status in (200, 206, 204):
            cursor = answer.headers["Legacy-Poll-Cursor"]
            if body:
                say(client, now, "events", [event["data"] for event in json.loads(body)["events"]])
                sys.stdout.flush()
        else:
            say(client, now, "wrong", "{} {}".format(answer.status, body.decode("utf-8", "replace")))
            return
        if answer.will_close:
            connection.close()
            connection = None


def main(port, count, cursor):
    for client in range(int(count)):
        gevent.spawn(follow, client, int(port), cursor)
    gevent.get_hub().threadpool.apply(sys.stdin.read)
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
