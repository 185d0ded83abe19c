"""Channel tokens, for readers that no Flask session vouches for: signed, with an expiry and a list of channels.

A token says which channels its bearer may read, until when, and optionally who that is. Nobody can widen or prolong
one without the key. It is signed, not encrypted: whoever holds it can read what it says.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Callable, FrozenSet, Iterable, Optional

from itsdangerous import BadSignature, URLSafeSerializer

from .errors import ConfigError, Unauthorized
from .events import check_channels, check_subject

__all__ = ["Tokens", "Token"]

_SALT = "legacy_poll.channels"


@dataclass(frozen=True)
class Token:
    """What a token says.

    Attributes:
        channels: That may be read.
        expires: Seconds since 1970.
        issued: Seconds since 1970.
        subject: Who it was made for, or None.
    """

    channels: FrozenSet[str]
    expires: float
    issued: float
    subject: Optional[str] = None


class Tokens:
    """Makes and reads tokens with one key.

    Args:
        secret_key: At least 16 characters.
        clock: Seconds since 1970.
    """

    def __init__(self, secret_key: str, *, clock: Callable[[], float] = time.time) -> None:
        if not secret_key:
            raise ConfigError(
                "LEGACY_POLL_SECRET_KEY is not set: channel tokens need a key to be signed with"
            )
        self._serializer = URLSafeSerializer(secret_key, salt=_SALT)
        self._clock = clock

    def make(self, channels: Iterable[str], *, expires_seconds: float, subject: Optional[str] = None) -> str:
        """A token for *channels*, good for *expires_seconds* from now.

        Raises:
            InvalidEvent: A bad channel name, or a *subject* that is no text.
        """
        if subject is not None:
            check_subject(subject)
        names = sorted(check_channels(channels))
        now = self._clock()
        says = {"c": names, "e": int(now + expires_seconds), "i": round(now, 3)}
        if subject is not None:
            says["s"] = subject
        return str(self._serializer.dumps(says))

    def read(self, text: Optional[str]) -> Token:
        """What the token *text* says.

        Raises:
            Unauthorized: Missing, not ours, or expired.
        """
        if not text:
            raise Unauthorized("a channel token is needed: token=... or the header Authorization: Bearer ...")
        try:
            says = self._serializer.loads(text)
            token = Token(frozenset(says["c"]), float(says["e"]), float(says["i"]), says.get("s"))
        except (BadSignature, KeyError, TypeError, ValueError, AttributeError):
            raise Unauthorized("the channel token is not one of ours") from None
        if self._clock() >= token.expires:
            raise Unauthorized("the channel token expired %d s ago" % (self._clock() - token.expires))
        return token
