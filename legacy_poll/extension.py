"""``LegacyPoll``: how a Flask application meets all of this."""

from __future__ import annotations

import hmac
import math
import os
import threading
import time
import weakref
from typing import Any, Callable, Dict, FrozenSet, Iterable, List, Optional, Union

from flask import Blueprint, Flask, current_app, has_app_context, has_request_context, request, url_for
from sqlalchemy import select
from sqlalchemy.engine import Engine

from . import schema
from .config import PREFIX, Settings
from .database import make_engine
from .errors import ConfigError, Forbidden, InvalidEvent, StorageBusy, StorageUnavailable, Unauthorized
from .eventlog import append, append_revocation
from .events import DEFAULT_CHANNEL, check_channels, check_event_id
from .runtime import Runtime
from .scripts import NAMES as SCRIPTS
from .scripts import digest_of
from .storage.apart import tables_of
from .tables import log
from .tokens import Tokens
from .views import make_blueprint
from .wakeups import HostSender, LocalWakeup, directory_of

__all__ = ["LegacyPoll"]

#: Where a request keeps the subject of its channel token.
_SUBJECT = "legacy_poll.subject"
_EXPIRES = "legacy_poll.expires"

Authorize = Callable[[FrozenSet[str]], Iterable[str]]


class LegacyPoll:
    """Long polling for a Flask application.

    Args:
        app: The application; or call :meth:`init_app` later.
        engine: Where the tables are; or
        url: an SQLAlchemy URL; or
        db: a Flask-SQLAlchemy object. By default ``LEGACY_POLL_DATABASE_URL`` of ``app.config``, else the
            application's Flask-SQLAlchemy.
        authorize: Called with the channels of a poll, inside its request context; returns those that may be read,
            or aborts.
        public: Whether anybody may read every channel. Exactly one of *authorize* and *public* is needed to serve.
        channels: What a poll reads that names no channel: an iterable, or a function called inside its request
            context. By default the channel ``default``.
        client_key: Called inside a poll's request context; returns whom the limit for one client counts it for. By
            default the client's address.
        subject: Called inside a poll's request context, after *authorize*; returns who asks, such as the id of the user
            who is logged in, for :meth:`revoke`. By default the subject of the channel token, if there is one.
        name: Of the blueprint; another one for a second log in the same application.

    Settings come from the keys ``LEGACY_POLL_...`` of ``app.config``.
    """

    def __init__(
        self,
        app: Optional[Flask] = None,
        *,
        engine: Optional[Engine] = None,
        url: Optional[str] = None,
        db: Any = None,
        authorize: Optional[Authorize] = None,
        public: bool = False,
        channels: Union[Iterable[str], Callable[[], Iterable[str]], None] = None,
        client_key: Optional[Callable[[], str]] = None,
        subject: Optional[Callable[[], Optional[str]]] = None,
        name: str = "legacy_poll",
    ) -> None:
        if sum(each is not None for each in (engine, url, db)) > 1:
            raise ConfigError("LegacyPoll takes one of engine=, url= and db=")
        if authorize is not None and public:
            raise ConfigError("LegacyPoll takes authorize= or public=True, not both")
        self._engine = engine
        self._url = url
        self._db = db
        self._authorize = authorize
        self._public = public
        # A generator would be empty at the second poll.
        self._channels = channels if channels is None or callable(channels) else _checked(channels)
        self._client_key = client_key
        self._subject = subject
        self._name = name
        self._app: Optional[Flask] = None
        # Not kept alive here: a test suite makes an application for each test.
        self._joined: "weakref.WeakSet[_State]" = weakref.WeakSet()
        self._blueprint: Optional[Blueprint] = None
        self._wakeup = LocalWakeup(self._wake)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Joins *app*: its settings are read and checked now, its database is not touched.

        Any number of applications may be joined. Calls then mean the current one, and outside every application
        context the one that was joined last.

        Raises:
            ConfigError: An unknown or bad setting, or a second LegacyPoll of the same name.
        """
        states = app.extensions.setdefault("legacy_poll", {})
        if self._name in states:
            raise ConfigError(
                "this application has a LegacyPoll named %r already: give one a name=" % self._name
            )
        settings = Settings.from_mapping(app.config)
        if settings.public and not self._public:
            raise ConfigError(
                "LEGACY_POLL_PUBLIC is for the server by itself: inside an application say LegacyPoll(public=True)"
            )
        states[self._name] = state = _State(app, self, settings)
        self._joined.add(state)
        self._app = app
        if self._engine is not None:
            self._wakeup.watch(self._engine)
        if "legacy-poll" not in app.cli.commands:
            from .cli import main

            app.cli.add_command(main)

    @property
    def blueprint(self) -> Blueprint:
        """The routes, to be registered under a prefix of the application's choice.

        Raises:
            ConfigError: Neither ``authorize=`` nor ``public=True`` was given.
        """
        if self._authorize is None and not self._public:
            raise ConfigError(
                "who may read what? Give LegacyPoll authorize=, a function from the channels asked for to those "
                "allowed, or public=True if anybody may read everything"
            )
        if self._blueprint is None:
            self._blueprint = make_blueprint(self, self._name)
        return self._blueprint

    def publish(
        self,
        where: Any,
        channel: str = DEFAULT_CHANNEL,
        data: Any = None,
        *,
        type: str = "message",
        id: Optional[str] = None,
    ) -> str:
        """Adds an event to the transaction that is open on *where*: it exists if and only if that one commits.

        Args:
            where: A Session, a scoped session, Flask-SQLAlchemy's ``db.session``, or a Connection.
            channel: 1 to 200 characters of ``A-Z a-z 0-9 _ . : / @ ~ + = -``.
            data: Any JSON value, at most ``LEGACY_POLL_MAX_EVENT_BYTES`` as text.
            type: What happened, such as ``order.created``; like a channel's name.
            id: The client's key for deduplication, at most 100 characters like a channel's; by default a new UUID.
                An id that the log already retains is not delivered again.

        Returns:
            The event's id.

        Raises:
            InvalidEvent: A name or the data breaks its rule; nothing was added.
            EventTooLarge: *data* is too large; nothing was added.
        """
        if not hasattr(where, "execute"):
            raise TypeError("publish takes a Session, such as db.session, or a Connection, not %r" % (where,))
        event_id = append(
            where, channel, data, type=type, id=id, max_event_bytes=self._state.settings.max_event_bytes
        )
        self._wakeup.published(where)
        return event_id

    def revoke(self, subject: str, where: Any = None) -> None:
        """Ends what *subject* may read, in every worker: at a logout, say.

        Held polls of the subject are answered with 401 at once, and channel tokens made for it before are refused.
        The next poll is authorised anew.

        Args:
            subject: As ``subject=`` or the channel token names it.
            where: A Session or Connection, to revoke if and when its transaction commits; by default at once.

        Raises:
            StorageUnavailable: The database failed; nothing was revoked.
        """
        if where is not None:
            append_revocation(where, subject)
            self._wakeup.published(where)
            return
        self.runtime.patient.write(lambda connection: append_revocation(connection, subject, at=time.time()))
        self._state.wake()

    def cursor(self) -> str:
        """The cursor behind everything committed and sequenced so far, for a page to start from.

        Read it *before* the page's own data: an event between the two is then delivered, not lost.

        Raises:
            StorageUnavailable: The database failed.
        """
        return str(self.runtime.catchup.head())

    def script_url(self, name: str = "legacy-poll.js") -> str:
        """The URL of the browser library, for a page of the current application: it may be kept for a year.

        Args:
            name: ``legacy-poll.js``, or ``jquery.legacy-poll.js``, which needs the first.

        Raises:
            ConfigError: No such file, or the application has not registered the blueprint.
        """
        if name not in SCRIPTS:
            raise ConfigError("there is no script %r: one of %s is needed" % (name, ", ".join(SCRIPTS)))
        for endpoint, view in current_app.view_functions.items():
            if getattr(view, "serves", None) == (self, "/" + name):
                return url_for(endpoint, v=digest_of(name))
        raise ConfigError("this application has not registered the blueprint of this LegacyPoll")

    def upgrade(self) -> None:
        """Creates the tables, or brings them to this version; nothing to do is no error.

        Raises:
            SchemaError: The tables are newer than this code, and not made for it.
            StorageUnavailable: The database failed.
        """
        schema.upgrade(self._state.engine())

    def drain(self) -> None:
        """Answers every poll that this process holds, as at its timeout, and holds no more: the process is to end.

        gunicorn's workers are noticed by themselves; any other server's handler of SIGTERM calls this first.
        """
        self.runtime.drain()

    def stop(self) -> None:
        """Ends what serves the current application's log in this process: its thread, connections and held polls.

        For a test that ends, or before a fork; the next request starts it anew.
        """
        self._state.stop()

    def token(
        self, channels: Iterable[str], *, expires_seconds: float = 3600, subject: Optional[str] = None
    ) -> str:
        """A channel token: who has it may read *channels* until it expires.

        Raises:
            ConfigError: ``LEGACY_POLL_SECRET_KEY`` is not set.
            InvalidEvent: A bad channel name.
        """
        return self._state.tokens().make(channels, expires_seconds=expires_seconds, subject=subject)

    @property
    def settings(self) -> Settings:
        """Of the current application."""
        return self._state.settings

    @property
    def runtime(self) -> Runtime:
        """What serves the current application's log in this process; made at first use, never before a fork."""
        return self._state.runtime()

    # What the views ask of the application.

    def channels_for_request(self) -> FrozenSet[str]:
        """The channels of a poll that names none.

        Raises:
            Forbidden: The application has none for it.
        """
        named: Any = self._channels() if callable(self._channels) else self._channels
        channels = frozenset((DEFAULT_CHANNEL,)) if named is None else _checked(named)
        if not channels:
            raise Forbidden("there is no channel for this request; it may name some: channel=...")
        return channels

    def allowed(self, channels: FrozenSet[str], token: Optional[str]) -> FrozenSet[str]:
        """Which of *channels* the request may read."""
        if self._authorize is None:
            return channels
        allowed = self._authorize(channels)
        if allowed is None or isinstance(allowed, (str, bool)):
            raise TypeError(
                "authorize returned %r: it must return the channels that may be read, or abort" % (allowed,)
            )
        return frozenset(allowed)

    def allowed_by_token(self, channels: FrozenSet[str]) -> Iterable[str]:
        """An ``authorize`` for readers with a channel token."""
        scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
        text = request.args.get("token") or (bearer.strip() if scheme.lower() == "bearer" else None)
        token = self._state.tokens().read(text)
        runtime = self.runtime
        if token.subject is not None and not runtime.revocations.loaded:
            runtime.await_revocations()
            if not runtime.revocations.loaded:
                raise StorageUnavailable("whether the token was revoked is not known yet")
        if runtime.revocations.outdates(token.subject, token.issued):
            raise Unauthorized("the channel token was revoked")
        request.environ[_SUBJECT] = token.subject
        request.environ[_EXPIRES] = token.expires
        return token.channels & channels

    @property
    def names_subjects(self) -> bool:
        """Whether a poll may have a subject."""
        return self._subject is not None or self._authorize is not None

    def subject_of_request(self) -> Optional[str]:
        """Who asks, for :meth:`revoke`: as the application says, or the channel token."""
        if self._subject is not None:
            named: Any = self._subject()
            # Often a number, the key of a row; a revocation names it as text.
            return None if named is None else str(named)
        found: Optional[str] = request.environ.get(_SUBJECT)
        return found

    def seconds_of_request(self) -> float:
        """How long what :meth:`allowed` said is good for: the rest of a channel token's time, else for ever."""
        expires: Optional[float] = request.environ.get(_EXPIRES)
        return math.inf if expires is None else max(0.0, expires - time.time())

    def check_publish_token(self, token: Optional[str]) -> None:
        """Raises Unauthorized unless *token* is the one that the settings name."""
        expected = self.settings.publish_token.encode("utf-8")
        if token is None or not hmac.compare_digest(token.encode("utf-8", "replace"), expected):
            raise Unauthorized("a valid publish token is needed: Authorization: Bearer ...")

    def client_of(self, request: Any) -> str:
        """Who the limits count a request for: an address, or the application's own key."""
        return self.address_of(request) if self._client_key is None else str(self._client_key())

    def address_of(self, request: Any) -> str:
        """The peer's address, or the one that our own proxies vouch for; ``unknown`` where there is none."""
        proxies = self.settings.trusted_proxies
        if proxies:
            forwarded = ",".join(request.headers.getlist("X-Forwarded-For")).split(",")
            if len(forwarded) >= proxies and forwarded[-proxies].strip():
                return str(forwarded[-proxies].strip())
        return request.remote_addr or "unknown"

    def publish_rows(self, rows: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
        """Publishes *rows* in one transaction of our own: all of them, or none.

        Returns:
            For each its id, and whether the log, or an earlier row, has it already.
        """
        runtime, most = self.runtime, self.settings.max_event_bytes

        def work(connection: Any) -> List[Dict[str, Any]]:
            # Asked before the rows are there: SQLite moves them into the log as they are inserted.
            given = [check_event_id(row["id"]) for row in rows if row["id"] is not None]
            known = set()
            for start in range(0, len(given), 500):
                # Those apart first: one that is brought back meanwhile is then found in the other table.
                for table in reversed(tables_of(runtime.database.dialect.keeps_apart)):
                    query = select(table.c.id).where(
                        table.c.id.in_(given[start : start + 500]),
                        table.c.position >= select(log.c.oldest).scalar_subquery(),
                    )
                    known.update(connection.execute(query).scalars())
            published = []
            for row in rows:
                event_id = append(
                    connection,
                    row["channel"],
                    row["data"],
                    type=row["type"],
                    id=row["id"],
                    max_event_bytes=most,
                )
                published.append({"id": event_id, "duplicate": event_id in known})
                known.add(event_id)
            return published

        try:
            published = runtime.patient.write(work)
        except StorageBusy as error:
            raise StorageUnavailable("another transaction writes: %s" % error) from error
        self._state.wake()
        return published

    def _wake(self) -> None:
        # Of every application: the engine that committed may be the database of any.
        for state in list(self._joined):
            state.wake()

    @property
    def _state(self) -> "_State":
        app = current_app if has_app_context() else self._app
        state = app.extensions.get("legacy_poll", {}).get(self._name) if app is not None else None
        if state is None and self._app is not None and not has_request_context():
            state = self._app.extensions["legacy_poll"][self._name]
        if state is None:
            raise ConfigError("this LegacyPoll has no application: call init_app(app) first")
        return state


class _State:
    """What one LegacyPoll keeps for one application."""

    def __init__(self, app: Flask, poll: LegacyPoll, settings: Settings) -> None:
        self.settings = settings
        self._app = app
        self._poll = poll
        self._engine: Optional[Engine] = poll._engine
        self._building = threading.Lock()
        self._runtime: Optional[Runtime] = None
        self._sender: Optional[HostSender] = None

    def engine(self) -> Engine:
        with self._building:
            return self._found_engine()

    def runtime(self) -> Runtime:
        runtime = self._runtime
        if runtime is not None and runtime.pid == os.getpid():
            return runtime
        # Two threads with the first two requests must not start two publishers.
        with self._building:
            if self._runtime is None or self._runtime.pid != os.getpid():
                self._runtime = Runtime(self._found_engine(), self.settings)
            return self._runtime

    def stop(self) -> None:
        with self._building:
            runtime, self._runtime = self._runtime, None
        if runtime is not None and runtime.pid == os.getpid():
            runtime.end()

    def wake(self) -> None:
        """Tells this process's publisher, if it has one, and the other processes of this host."""
        if self._runtime is not None and self._runtime.pid == os.getpid():
            self._runtime.publisher.wake()
        if self._sender is None and self.settings.wakeup_directory != "off":
            self._sender = HostSender(
                directory_of(self.engine().url, configured=self.settings.wakeup_directory)
            )
        if self._sender is not None:
            self._sender.send()

    def tokens(self) -> Tokens:
        return Tokens(self.settings.secret_key or self._app.secret_key or "")  # type: ignore[arg-type]

    def _found_engine(self) -> Engine:
        if self._engine is None:
            self._engine = self._find_engine()
            self._poll._wakeup.watch(self._engine)
        return self._engine

    def _find_engine(self) -> Engine:
        url = self._poll._url or self._app.config.get(PREFIX + "DATABASE_URL")
        if url is not None and self._poll._db is None:
            return make_engine(url)
        db = self._poll._db
        if db is None:
            db = self._app.extensions.get("sqlalchemy")
            db = getattr(db, "db", db)  # Flask-SQLAlchemy 2 keeps a state object there
        if db is None:
            raise ConfigError(
                "no database: give LegacyPoll engine=, url= or db=, or set LEGACY_POLL_DATABASE_URL, or use "
                "Flask-SQLAlchemy"
            )
        with self._app.app_context():
            return db.engine


def _checked(channels: Any) -> FrozenSet[str]:
    """The application's own *channels*; a bad one is the deployer's to mend, and not the client's."""
    if isinstance(channels, (str, bytes)):
        raise ConfigError("channels= is %r: an iterable of names is needed" % (channels,))
    try:
        return check_channels(channels)
    except InvalidEvent as error:
        raise ConfigError("channels=: %s" % error) from None
