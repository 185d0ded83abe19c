"""Keeps the one direction: what a module of legacy_poll may import, read from its source with `ast`.

The map is a list of layers, each a list of rooms, both in the order in which a row becomes a response. A room may
import any room that stands before it in the map, and nothing after it. A room that is a folder (dialects/, wire/) is
one room: its files may import each other. Imports inside functions and under TYPE_CHECKING count like any other,
since knowing the room's types is knowing the room.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = "legacy_poll"
ROOT = Path(__file__).resolve().parents[2] / PACKAGE

LAYERS = {
    "words": ["errors", "config", "cursors", "events"],
    "storage": [
        "tables",
        "dialects",
        "database",
        "storage",
        "schema",
        "backlog",
        "eventlog",
        "sequencer",
        "upkeep",
    ],
    "flow": ["wakeups", "admission", "hub", "catchup", "publisher", "revocations", "hold"],
    "edge": [
        "schemas",
        "tokens",
        "wire",
        "lanes",
        "stopping",
        "capacity",
        "runtime",
        "answers",
        "cross_origin",
        "scripts",
        "publishing",
        "openapi",
        "operators",
        "views",
        "doctor",
        "cli",
        "extension",
        "server",
    ],
}
ORDER = [room for layer in LAYERS.values() for room in layer]

# Rooms that stand beside the map: what each may import, and which layers may import it.
SIDE = {
    # A hook is given one frozen record, so it needs the words and nothing that makes them happen.
    "metrics": {"may_import": LAYERS["words"], "imported_by": ["storage", "flow", "edge"]},
    # For users' tests and our own: sees everything, and nothing shipped depends on it.
    "testing": {"may_import": ORDER + ["metrics"], "imported_by": []},
}
# Doors, not rooms: the package's exports, and `python -m legacy_poll`.
DOORS = ["__init__", "__main__"]

# Frameworks belong to the layer that is named after them. Also when imported late: a cold import is still knowledge.
FRAMEWORKS = {
    "sqlalchemy": ["storage", "flow", "edge"],
    "alembic": ["storage", "flow", "edge"],
    "gevent": ["flow", "edge"],
    "flask": ["edge"],
    "werkzeug": ["edge"],
    "marshmallow": ["edge"],
    "gunicorn": ["edge"],
}


class UnknownRoom(Exception):
    def __init__(self, room):
        super().__init__(
            "{} is not in the map of rooms: add it to LAYERS in tests/unit/test_layers.py, after the rooms "
            "that it needs and before those that need it".format(room)
        )


def room_of(path):
    """The room of a file, given relative to the package: hub.py -> hub, dialects/base.py -> dialects."""
    return path.parts[0] if len(path.parts) > 1 else path.stem


def layer_of(room):
    return next((layer for layer, rooms in LAYERS.items() if room in rooms), None)


def allowed(room):
    """The rooms that *room* may import."""
    if room in DOORS:
        return ORDER + list(SIDE)
    if room in SIDE:
        return SIDE[room]["may_import"]
    if room not in ORDER:
        raise UnknownRoom(room)
    layer = layer_of(room)
    beside = [side for side, rule in SIDE.items() if layer in rule["imported_by"]]
    return ORDER[: ORDER.index(room)] + beside


def imports(source, path, rooms):
    """Every import in *source*, as (line, module): full dotted names, relative ones resolved.

    Args:
        path: The file's place, relative to the package.
        rooms: Names that `from legacy_poll import name` takes from a room, not from the package itself.
    """
    package = [PACKAGE, *path.parts[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join(base + (node.module.split(".") if node.module else []))
            for alias in node.names:
                is_room = module == PACKAGE and alias.name in rooms
                yield node.lineno, module + "." + alias.name if is_room else module


def breaches(source, path, rooms):
    """Sentences that say which imports of *source* break the map."""
    room = room_of(path)
    may = allowed(room)
    for line, module in imports(source, path, rooms):
        top, _, rest = module.partition(".")
        other = rest.partition(".")[0]
        where = "{}:{}: {} imports {}".format(path, line, room, module)
        if top in FRAMEWORKS:
            if layer_of(room) and layer_of(room) not in FRAMEWORKS[top]:
                yield "{}, which belongs to the layers: {}".format(where, ", ".join(FRAMEWORKS[top]))
        elif top != PACKAGE or other == room or room in DOORS:
            continue
        elif not other:
            yield "{}: a room imports rooms, the package imports the room".format(where)
        elif other not in may:
            yield "{}, but may only import: {}".format(where, ", ".join(may) or "nothing of ours")


def files():
    return sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))


ROOMS = {room_of(path) for path in files()}


@pytest.mark.parametrize("path", files(), ids=str)
def test_a_module_imports_only_what_is_upstream_of_it(path):
    source = (ROOT / path).read_text(encoding="utf-8")
    assert list(breaches(source, path, ROOMS)) == []


FORBIDDEN = [
    ("storage that knows the flow", "eventlog.py", "from .hub import Hub"),
    ("a row that imports the row below it", "hub.py", "from .publisher import Publisher"),
    ("words that know anything", "errors.py", "from .config import Settings"),
    ("an absolute import", "tables.py", "import legacy_poll.sequencer"),
    ("a room taken from the package", "tables.py", "from legacy_poll import sequencer"),
    ("a room taken by dots alone", "tables.py", "from . import sequencer"),
    ("a file in a folder", "dialects/sqlite.py", "from ..sequencer import Sequencer"),
    ("a folder below a folder", "dialects/sqlite.py", "from ..wire.json import render"),
    ("an import inside a function", "cursors.py", "def late():\n    from .hub import Hub"),
    ("an import for types only", "cursors.py", "if TYPE_CHECKING:\n    from .hub import Hub"),
    ("the package itself", "views.py", "from legacy_poll import LegacyPoll"),
    ("the package itself, by a dot", "views.py", "from . import LegacyPoll"),
    ("metrics that reach into the flow", "metrics.py", "from .hub import Hub"),
    ("shipped code that needs testing.py", "cli.py", "from .testing import fake"),
    ("Flask below the edge", "hold.py", "import flask"),
    ("Flask below the edge, late", "hold.py", "def late():\n    from flask import current_app"),
    ("gevent below the flow", "sequencer.py", "import gevent.event"),
    ("SQL among the words", "cursors.py", "from sqlalchemy import select"),
]


@pytest.mark.parametrize("what, path, source", FORBIDDEN)
def test_the_checker_rejects(what, path, source):
    assert len(list(breaches(source, Path(path), {*ORDER, *SIDE}))) == 1, what


ALLOWED = [
    ("a layer below", "hub.py", "from .eventlog import EventLog\nfrom .errors import ConfigError"),
    ("a row above", "publisher.py", "from .hub import Hub"),
    ("files of one folder", "dialects/sqlite.py", "from .base import Dialect\nfrom . import base"),
    ("metrics beside the flow", "hub.py", "from .metrics import Record"),
    ("frameworks where they belong", "views.py", "from flask import request\nfrom sqlalchemy import select"),
    ("what is not ours", "errors.py", "import json\nfrom collections import abc"),
    ("the door", "__init__.py", "from .extension import LegacyPoll"),
]


@pytest.mark.parametrize("what, path, source", ALLOWED)
def test_the_checker_lets_pass(what, path, source):
    assert list(breaches(source, Path(path), {*ORDER, *SIDE})) == [], what


def test_an_unknown_module_is_told_where_to_be_added():
    with pytest.raises(UnknownRoom, match="utils is not in the map of rooms: add it to LAYERS"):
        list(breaches("", Path("utils.py"), ROOMS))
