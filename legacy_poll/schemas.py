"""What may stand in a query and in a published body, as marshmallow schemas.

One small shim hides what differs between marshmallow 2, 3 and 4: how ``load`` reports errors. Everything else here
is of the kind that all of them understand. Defaults and clamping are the wire's: the schemas only say what is right.
"""

from __future__ import annotations

import re
from typing import Any, Dict, List, Mapping

from marshmallow import Schema, ValidationError, fields

from .errors import BadParameter, RequestError

__all__ = ["StreamQuery", "EventBody", "load", "single_values"]

_NUMBER = re.compile(r"[0-9]+")
_DIGITS = 18


class Count(fields.Field):
    """A non-negative decimal integer; one that is too large for any clock becomes one that is merely large."""

    def __init__(self, rule: str, *, least: int = 0, zero: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.rule = rule
        self.least = least
        self.zero = zero

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> int:
        if not isinstance(value, str) or _NUMBER.fullmatch(value) is None:
            raise ValidationError(self.rule)
        digits = value.lstrip("0") or "0"
        number = int(digits) if len(digits) <= _DIGITS else 10**_DIGITS
        if (number == 0 and not self.zero) or 0 < number < self.least:
            raise ValidationError(self.rule)
        return number


class Choice(fields.Field):
    """One of a few words."""

    def __init__(self, *words: str, **options: Any) -> None:
        super().__init__(**options)
        self.words = words

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        if value not in self.words:
            raise ValidationError("one of %s is needed" % ", ".join(self.words))
        return value


class Anything(fields.Field):
    """A value that another room judges."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        return value


class StreamQuery(Schema):
    """The parameters of GET /stream that are not channels."""

    cursor = Anything()
    timeout = Count("a whole number of milliseconds is needed")
    limit = Count("a whole number, at least 1, is needed", zero=False)
    heartbeat = Count("a whole number of milliseconds is needed: 0, or at least 1000", least=1000)
    empty = Choice("200", "204")
    token = Anything()


class EventBody(Schema):
    """One event in the body of POST /publish."""

    channel = Anything(allow_none=True)
    data = Anything(required=True, allow_none=True)
    type = Anything(allow_none=True)
    id = Anything(allow_none=True)


def load(schema: Schema, values: Mapping[str, Any]) -> Dict[str, Any]:
    """*values* as *schema* says.

    Raises:
        BadParameter: The first that breaks its rule, in the schema's order.
    """
    try:
        loaded = schema.load(dict(values))
        errors: Any = {}
        if isinstance(loaded, tuple):  # marshmallow 2 returns a pair, and raises only when told to be strict
            loaded, errors = loaded
    except ValidationError as error:
        loaded, errors = {}, error.messages
    for name in list(schema.declared_fields) + sorted(errors):
        if name in errors:
            rules = errors[name]
            rule = str(rules[0] if isinstance(rules, list) else rules)
            if name not in values:
                raise RequestError("%s is missing: %s" % (name, rule[:1].lower() + rule[1:]), field=name)
            raise BadParameter(name, values[name], rule)
    return dict(loaded)


def single_values(arguments: Any, names: List[str]) -> Dict[str, str]:
    """The query parameters *names* that are in *arguments*, a werkzeug MultiDict.

    Raises:
        BadParameter: One is there twice.
    """
    found = {}
    for name in names:
        values = arguments.getlist(name)
        if len(values) > 1:
            raise BadParameter(name, values, "may be given once")
        if values:
            found[name] = values[0]
    return found
