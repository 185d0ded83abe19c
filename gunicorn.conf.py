"""The settings that matter for held polls, each with its reason. `gunicorn -k gevent wsgi:app` reads this file here.

An application with a configuration of its own copies what it needs; nothing below is required for correctness.
"""

import os
import resource

bind = os.environ.get("BIND", "127.0.0.1:8000")

# Greenlets: a held poll costs some KiB, not a thread. gunicorn patches the standard library in each worker.
worker_class = "gevent"

# One for each core; any number works, and no stickiness is needed.
workers = int(os.environ.get("WEB_CONCURRENCY", "2"))

# Every open connection counts, held or idle: gunicorn's default of 1,000 would be the first limit that polls meet, and
# then the application's own requests wait too. What is left of the descriptors is for the database, files and logs.
worker_connections = max(200, min(20000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 200))

# More than the gap between an answer and the same client's next poll; less than graceful_timeout, or idle connections
# stall every stop. Behind a proxy with keep-alive upstreams, keep it above the proxy's own idle time.
keepalive = 15

# How long a stopping worker waits for requests under way; held polls end before.
graceful_timeout = 30

# Does not end held polls (a gevent worker reports to the arbiter from a greenlet of its own); it ends a stuck worker.
timeout = 60

# The longest query string of a poll: many channels and a token. gunicorn's default is 4094.
limit_request_line = 8190


def post_worker_init(worker):
    """Start following the log with the worker, not with its first poll."""
    for state in getattr(worker.wsgi, "extensions", {}).get("legacy_poll", {}).values():
        state.runtime().start()
