"""A script that publishes: poll.publish() in a Session's transaction, in a process beside the web workers.

Says "ready" once it has started, which takes more time than many a measurement. Commands, one JSON value a line: a
number is one transaction with one event of it, [channel, number] one on another channel. The answer is [before its
commit, when the commit returned]. Its commit wakes the workers of the host by datagram, and nobody waits for that.
"""

from __future__ import annotations

import json
import sys
import time

from flask import Flask
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from bench.client import CHANNEL
from legacy_poll import LegacyPoll


def main(url):
    engine = create_engine(url, future=True)
    poll = LegacyPoll(Flask("bench"), engine=engine)
    print(json.dumps("ready"), flush=True)
    with Session(engine, future=True) as session:
        for line in sys.stdin:
            command = json.loads(line)
            channel, number = command if isinstance(command, list) else (CHANNEL, command)
            poll.publish(session, channel, {"n": number, "text": "x" * 80})
            session.flush()
            before = time.monotonic()
            session.commit()
            print(json.dumps([before, time.monotonic()]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
