"""The settings that matter for held polls, each with its reason. `gunicorn -k gevent wsgi:app` reads this file here.

An application with a configuration of its own copies what it needs; nothing below is required for correctness.
"""

import gc
import os
import resource
import signal

bind = os.environ.get("BIND", "127.0.0.1:8000")

# Greenlets: a held poll costs some KiB, not a thread. gunicorn patches the standard library in each worker.
worker_class = "gevent"

# One for each core; any number works, and no stickiness is needed.
workers = int(os.environ.get("WEB_CONCURRENCY", "2"))

# Every open connection counts, held or idle: gunicorn's default of 1,000 would be the first limit that polls meet, and
# then the application's own requests wait too. What is left of the descriptors is for the database, files and logs.
worker_connections = max(200, min(20000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 200))

# The gap between an answer and the same client's next poll is milliseconds. A stopping worker waits for connections
# that idle, so a longer time here is how long every reload takes. A proxy that keeps connections to us open must give
# them up sooner: nginx, keepalive_timeout 1s in the upstream block.
keepalive = 2

# How long a stopping worker waits for requests under way; held polls end before.
graceful_timeout = 30

# Does not end held polls (a gevent worker reports to the arbiter from a greenlet of its own); it ends a stuck worker.
timeout = 60

# The longest query string of a poll: many channels and a token. gunicorn's default is 4094.
limit_request_line = 8190

# gunicorn 25 and later open a control socket in the home directory; two servers of one user would share it.
control_socket_disable = True


def post_worker_init(worker):
    """Start following the log with the worker, not with its first poll."""
    # Ctrl-c in a terminal reaches the workers as well as the arbiter, which then ends them in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for state in getattr(worker.wsgi, "extensions", {}).get("legacy_poll", {}).values():
        state.runtime().start()
    # Modules and their like live as long as the worker. Python's collector need not go through them again and again
    # while many polls come and go: that was a tenth of a held poll's cost.
    gc.collect()
    gc.freeze()


def worker_exit(server, worker):
    """Let Python end the worker as it would have ended without the above."""
    gc.unfreeze()
