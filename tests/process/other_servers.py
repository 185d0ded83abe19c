"""Servers beside `gunicorn -k gevent`, by the names that docs/lanes.md has for them; one process each."""

from __future__ import annotations

from tests.gunicorn import Gunicorn, OneProcess

THREADS = 48


def make(name, settings, **options):
    """A server that is not started yet."""
    if name.startswith("gunicorn -k "):
        _, _, kind, *others = name.split()
        return Gunicorn(settings, workers=1, options=["-k", kind] + others, **options)
    if name.startswith("gevent.pywsgi"):
        command = ["-m", "tests.process.pywsgi", "{port}"] + name.split()[1:]
        return OneProcess(settings, command=command, **options)
    assert name.startswith("flask run")
    environ = {"FLASK_APP": "wsgi:app", **options.pop("environ", {})}
    command = ["-m"] + name.split() + ["--port", "{port}"]
    return OneProcess(settings, command=command, environ=environ, **options)


GTHREAD = "gunicorn -k gthread --threads {}".format(THREADS)
# All that hold polls.
HOLDING = [GTHREAD, "gevent.pywsgi", "flask run"]
# Known to answer one request at a time.
ALONE = [
    "gunicorn -k sync",
    "gunicorn -k gthread --threads 1",
    "gevent.pywsgi unpatched",
    "flask run --without-threads",
]
