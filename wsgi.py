"""``gunicorn -k gevent wsgi:app``: the server by itself; see README.md and docs/settings.md."""

from legacy_poll.server import create_app

app = create_app()
