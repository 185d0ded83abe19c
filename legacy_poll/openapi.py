"""The wire's description for generators and validators, served as it was written: docs/openapi.yaml.

It is a file of the documentation, and inside the installed package the one file of ``legacy_poll.docs``.
"""

from __future__ import annotations

import functools
import importlib.util
import os

from .errors import ConfigError

__all__ = ["document"]

_NAME = "openapi.yaml"


@functools.lru_cache(maxsize=None)
def document() -> bytes:
    """The file; read once.

    Raises:
        ConfigError: The installation lacks it.
    """
    spec = importlib.util.find_spec("legacy_poll.docs")
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    here = os.path.dirname(os.path.abspath(__file__))
    places += [os.path.join(here, "docs"), os.path.join(os.path.dirname(here), "docs")]
    for place in places:
        path = os.path.join(place, _NAME)
        if os.path.isfile(path):
            with open(path, "rb") as file:
                return file.read()
    raise ConfigError("%s is missing; looked in: %s" % (_NAME, ", ".join(places)))
