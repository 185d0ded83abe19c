"""A shop's order board: what legacy_poll looks like inside an ordinary Flask/SQLAlchemy application.

The counter writes orders to ``demo_order`` with the ORM and says so in the same transaction; the board shows
them, live, in as many windows as one opens. Three rules carry it, and hold for any application:

* **One transaction.** ``poll.publish(db.session, ...)`` stands between the change and its commit. There is
  no second step that could be forgotten, fail, or tell of something that was rolled back.
* **Page first, events after.** A page reads ``poll.cursor()`` *before* its own query and prints it; its loop
  goes on from there. What commits in between comes twice, never not at all, and ``version`` tells the page
  that it has seen the change already.
* **Write first.** A transaction begins with its INSERT or UPDATE and ends soon after. SQLite has one writer
  at a time, and fails at once where a transaction read first and somebody else committed before it wrote.

What a real shop has and this page has not: accounts (``authorize`` would ask for them) and a CSRF token.
"""

from __future__ import annotations

import os
import re
import shlex
import warnings
from datetime import datetime, timezone
from decimal import Decimal

import xstatic.pkg.jquery
from flask import (
    Blueprint,
    Flask,
    abort,
    current_app,
    redirect,
    render_template,
    request,
    send_from_directory,
    url_for,
)
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import inspect, select, update
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, OperationalError, SAWarning
from sqlalchemy.exc import TimeoutError as PoolTimeout

from legacy_poll import LegacyPoll, StorageUnavailable

CHANNEL = "orders"
STATUSES = ("new", "preparing", "ready", "collected")
AFTER = dict(zip(STATUSES, STATUSES[1:]))

OPEN_SHOWN = 200  # a board with more cards is no longer read by anybody
COLLECTED_SHOWN = 6  # enough to see where an order went
BUSY_SECONDS = 2  # SQLite waits inside one C call that stops this worker's other greenlets: so, not long

SAMPLES = (
    ("Ada", "Flat white, almond croissant", "7.40", "ready"),
    ("Barbara", "Tomato soup, sourdough", "8.90", "ready"),
    ("Grace", "2 × espresso, still water", "6.20", "preparing"),
    ("Margaret", "Lemon tart, earl grey", "9.30", "preparing"),
    ("Dennis", "Club sandwich, iced tea", "12.90", "new"),
)

# Older SQLAlchemy warns that SQLite keeps decimals as floats; eight digits come back from one as they were.
warnings.filterwarnings("ignore", "Dialect sqlite.*Decimal", SAWarning)

db = SQLAlchemy()


def authorize(channels: frozenset) -> frozenset:
    """Anybody may watch the orders, and nobody anything else. A real shop would look at its login here."""
    return channels & {CHANNEL}


poll = LegacyPoll(db=db, authorize=authorize)
shop = Blueprint("shop", __name__)


def now() -> datetime:
    return datetime.now(timezone.utc).replace(tzinfo=None)


class Order(db.Model):
    """An ordinary business table: nothing in it is there for legacy_poll but ``version``."""

    __tablename__ = "demo_order"
    __table_args__ = {"mysql_charset": "utf8mb4", "sqlite_autoincrement": True}

    id = db.Column(db.Integer, primary_key=True)
    customer = db.Column(db.String(80), nullable=False)
    items = db.Column(db.String(200), nullable=False)
    total = db.Column(db.Numeric(8, 2), nullable=False)
    status = db.Column(db.String(20), nullable=False, default=STATUSES[0], index=True)
    placed_at = db.Column(db.DateTime, nullable=False, default=now)
    changed_at = db.Column(db.DateTime, nullable=False, default=now)
    version = db.Column(db.Integer, nullable=False, default=1)

    def snapshot(self) -> dict:
        """The whole order, as pages and events carry it: whoever has the newest one needs no other."""
        return {
            "id": self.id,
            "customer": self.customer,
            "items": self.items,
            "total": "%.2f" % self.total,
            "status": self.status,
            "placed": self.placed_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "version": self.version,
        }


def open_orders() -> list:
    query = select(Order).where(Order.status != STATUSES[-1]).order_by(Order.id.desc()).limit(OPEN_SHOWN)
    return db.session.execute(query).scalars().all()[::-1]


def collected_orders() -> list:
    query = select(Order).where(Order.status == STATUSES[-1])
    query = query.order_by(Order.changed_at.desc(), Order.id.desc()).limit(COLLECTED_SHOWN)
    return db.session.execute(query).scalars().all()


def board_state() -> list:
    """The snapshots that a board begins with, the last collected last.

    An order that moved on between the two queries is found by both, and is in the answer once.
    """
    opened = open_orders()  # the other way round, such an order would be found by neither
    orders = {order.id: order.snapshot() for order in opened + collected_orders()[::-1]}
    return list(orders.values())


# The counter: writes.


@shop.get("/")
def counter():
    return counter_page({}, {})


@shop.post("/orders")
def place():
    order, errors = read_order(request.form)
    if errors:
        return counter_page(request.form, errors), 422

    db.session.add(order)
    db.session.flush()  # the INSERT: it gives the order its number
    number = order.id
    poll.publish(db.session, CHANNEL, order.snapshot(), type="order.created")
    db.session.commit()
    return redirect(url_for(".counter", placed=number), 303)


@shop.post("/orders/<int(max=2147483647):number>/advance")
def advance(number: int):
    """Move an order on from the status that the person saw; whoever comes second is told, and changes nothing."""
    seen = request.form.get("status")
    if seen not in AFTER:
        abort(400, "status must be one of %s, not %r" % (", ".join(AFTER), seen))

    step = update(Order).where(Order.id == number, Order.status == seen)
    step = step.values(status=AFTER[seen], changed_at=now(), version=Order.version + 1)
    if not db.session.execute(step.execution_options(synchronize_session=False)).rowcount:
        db.session.rollback()
        return redirect(url_for(".counter", stale=number), 303)

    order = db.session.get(Order, number)
    poll.publish(db.session, CHANNEL, order.snapshot(), type="order.changed")
    db.session.commit()
    return redirect(url_for(".counter", moved=number), 303)


@shop.get("/orders/open")
def open_orders_fragment():
    """The counter's list by itself: its page asks for it again when an event says that something changed."""
    return render_template("_open_orders.html", orders=open_orders())


def counter_page(form, errors: dict) -> str:
    cursor = poll.cursor()  # before the query: page first, events after
    return render_template(
        "counter.html",
        form=form,
        errors=errors,
        orders=open_orders(),
        config=page_config(cursor, url_for(".open_orders_fragment")),
        notice={name: request.args.get(name, type=int) for name in ("placed", "moved", "stale")},
    )


def read_order(form) -> tuple:
    """An order that may be stored, or None, and what is wrong with each field: ``(order, {field: message})``."""
    errors = {}
    values = {}
    for field, limit, what in (("customer", 80, "a name for the order"), ("items", 200, "what was ordered")):
        value = " ".join(form.get(field, "").split())
        values[field] = value
        if not value:
            errors[field] = "Enter %s." % what
        elif len(value) > limit:
            errors[field] = "Use at most %d characters: this has %d." % (limit, len(value))
        elif not value.isprintable():
            errors[field] = "Use printable characters only."

    # A pattern and not Decimal(): that one takes "NaN", "1e99" and other digits than ours as well.
    total = form.get("total", "").strip()
    if not total:
        errors["total"] = "Enter the total, 0 if it is free."
    elif not re.match(r"[0-9]{1,5}([.,][0-9]{1,2})?\Z", total):
        errors["total"] = "Enter an amount from 0 to 99999.99, like 12.50."
    if errors:
        return None, errors
    return Order(total=Decimal(total.replace(",", ".")), **values), {}


# The board: reads.


@shop.get("/board")
def board():
    cursor = poll.cursor()  # before the query: page first, events after
    return render_template(
        "board.html",
        statuses=STATUSES,
        config=dict(page_config(cursor, url_for(".state")), orders=board_state(), collected=COLLECTED_SHOWN),
    )


@shop.get("/board/state")
def state():
    """What a board starts again from when its cursor is no longer known (410, which names the new cursor)."""
    return {"orders": board_state()}, 200, {"Cache-Control": "no-store"}


def page_config(cursor: str, reload_url: str) -> dict:
    return {
        "cursor": cursor,
        "channel": CHANNEL,
        "stream": request.script_root + "/poll/stream",
        "reload": reload_url,
    }


# Around both.


@shop.get("/jquery.min.js")
def jquery():
    """jQuery from the package XStatic-jQuery: the demo asks nobody on the internet for anything."""
    return send_from_directory(xstatic.pkg.jquery.BASE_DIR, "jquery.min.js", max_age=86400)


@shop.app_context_processor
def terminal() -> dict:
    return {"command": terminal_command(db.engine.url), "library": poll.script_url()}


@shop.app_errorhandler(OperationalError)
@shop.app_errorhandler(PoolTimeout)
@shop.app_errorhandler(StorageUnavailable)
def database_away(error):
    """The transaction did not commit, so there is no event either; the person may simply try again."""
    db.session.rollback()
    current_app.logger.warning("%s %s: the database did not answer: %s", request.method, request.path, error)
    return render_template("error.html"), 503, {"Retry-After": "2"}


@shop.after_app_request
def only_our_own(response):
    """Text from customers and terminals is shown on these pages: should it ever become markup, it runs nothing."""
    if response.mimetype == "text/html":
        response.headers["Content-Security-Policy"] = "default-src 'self'; frame-ancestors 'self'"
        response.headers["Cache-Control"] = "no-store"
    return response


def database_url(text: str) -> URL:
    """*text* as a URL; a relative SQLite file is looked for where the program was started.

    Flask-SQLAlchemy would put it into the instance folder, where the command on the page does not find it.
    """
    url = make_url(text)
    if url.get_backend_name() == "sqlite" and url.database and not url.database.startswith((":", "file:")):
        url = url.set(database=os.path.abspath(url.database))
    return url


def terminal_command(url: URL) -> str:
    """A line for a POSIX shell that publishes to the board with the database's own client, password left out."""
    sql = (
        "INSERT INTO legacy_poll_outbox (channel, data)"
        """ VALUES ('orders', '{\\"note\\": \\"Oat milk is out until noon\\"}')"""
    )
    backend = url.get_backend_name()
    if backend == "sqlite":
        path = url.database or ""
        near = os.path.relpath(path)
        client = "sqlite3 " + shlex.quote(path if near.startswith("..") else near)
    elif backend == "postgresql":
        plain = URL.create("postgresql", url.username, None, url.host, url.port, url.database, url.query)
        client = "psql %s -c" % shlex.quote(str(plain))
    else:
        words = ["mysql"]
        for flag, value in (("-h", url.host), ("-P", url.port), ("-S", url.query.get("unix_socket"))):
            words += [flag, str(value)] if value else []
        words += ["-u", url.username] if url.username else []
        words += ["-p"] if url.password else []
        words += [url.database or ""]
        client = " ".join(shlex.quote(word) for word in words) + " -e"
    return '%s "%s"' % (client, sql)


def prepare() -> None:
    """Create what is missing; several workers may do it at the same moment.

    Only one of them can succeed in creating ``demo_order``: that one adds the samples, so they are there once.
    """
    poll.upgrade()
    if inspect(db.engine).has_table(Order.__tablename__):
        return
    try:
        Order.__table__.create(db.engine, checkfirst=False)
    except DBAPIError:
        if not inspect(db.engine).has_table(Order.__tablename__):
            raise
        return
    for customer, items, total, status in SAMPLES:
        order = Order(customer=customer, items=items, total=Decimal(total), status=status)
        db.session.add(order)
        db.session.flush()
        poll.publish(db.session, CHANNEL, order.snapshot(), type="order.created")
    db.session.commit()


def create_app(url: str = "") -> Flask:
    """The application over *url*, or ``DEMO_DATABASE_URL``, or the server's own variable, or ``demo.db`` right here."""
    app = Flask(__name__)
    named = [os.environ.get(name) for name in ("DEMO_DATABASE_URL", "LEGACY_POLL_DATABASE_URL")]
    address = database_url(url or named[0] or named[1] or "sqlite:///demo.db")
    app.config["SQLALCHEMY_DATABASE_URI"] = address
    app.config["SQLALCHEMY_TRACK_MODIFICATIONS"] = False  # the default since Flask-SQLAlchemy 3
    if address.get_backend_name() == "sqlite":
        app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"connect_args": {"timeout": BUSY_SECONDS}}

    db.init_app(app)
    poll.init_app(app)
    app.register_blueprint(shop)
    app.register_blueprint(poll.blueprint, url_prefix="/poll")
    with app.app_context():
        prepare()
        db.session.remove()
        db.engine.dispose()  # with `gunicorn --preload` this is the parent: its connections must not be inherited
    return app


app = create_app()
