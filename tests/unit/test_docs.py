"""The documentation says what is so: links, commands, settings, codes and lines of the log exist, code compiles."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import math
import re
import shlex
import sys
from pathlib import Path

import click
import pytest

from legacy_poll import LegacyPoll, errors
from legacy_poll.cli import main
from legacy_poll.config import PREFIX, Settings
from legacy_poll.doctor import programs
from tests.proxies import PROXIES

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGES.md"] + sorted((ROOT / "docs").rglob("*.md"))
WIDTH = 120

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.M | re.S)
_CODE_SPAN = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def read(page):
    return page.read_text(encoding="utf-8")


def fences(text, language):
    """The code blocks of *language* without their indentation."""
    return [
        re.sub("^" + indent, "", code, flags=re.M)
        for indent, kind, code in _FENCE.findall(text)
        if kind == language
    ]


def prose(text):
    return _FENCE.sub("", text)


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def anchors(text):
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page):
    for link in _LINK.findall(prose(read(page))):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert ROOT in target.parents, link
        if anchor:
            assert anchor in anchors(read(target)), link


@each_page
def test_lines_are_wrapped(page):
    for line in prose(read(page)).splitlines():
        assert len(line) <= WIDTH or line.lstrip().startswith("|"), line


@each_page
def test_python_compiles(page):
    for code in fences(read(page), "python"):
        compile(code, str(page), "exec")


@each_page
def test_settings_that_are_named_exist(page):
    for name in re.findall(r"\bLEGACY_POLL_[A-Z_]+", read(page)):
        assert name in Settings.described() or name == PREFIX, name


def shell_lines(text):
    """What stands in code, in blocks and in the running text, one command a line."""
    for kind in ("sh", "console", "ini", "nginx"):
        for code in fences(text, kind):
            for line in code.replace("\\\n", " ").splitlines():
                yield line
    for span in _CODE_SPAN.findall(prose(text)):
        yield " ".join(span.split())


def commands_of_ours(text):
    """The arguments of each `legacy-poll` in *text*."""
    for line in shell_lines(text):
        for match in re.finditer(r"(?<![\w/.-])legacy-poll((?: [^|;&)\n]*)?)", line):
            try:
                yield shlex.split(match.group(1), comments=True)
            except ValueError:
                raise AssertionError("not a command line: %s" % line) from None


@each_page
def test_commands_of_ours_exist(page):
    for arguments in commands_of_ours(read(page)):
        command, options = main, {"--help"}.union(*[parameter.opts for parameter in main.params])
        for argument in arguments:
            if argument == "...":
                break
            if argument.startswith("-"):
                assert argument.partition("=")[0] in options, arguments
            elif isinstance(command, click.Group):
                assert argument in command.commands, arguments
                command = command.commands[argument]
                options = {"--help"}.union(*[parameter.opts for parameter in command.params])


def test_commands_of_ours_are_documented():
    told = {" ".join(arguments[:2]) for page in PAGES for arguments in commands_of_ours(read(page))}
    told |= {name.split()[0] for name in told if name}
    for name, command in main.commands.items():
        assert name in told, name
        if isinstance(command, click.Group):
            for below in command.commands:
                assert "%s %s" % (name, below) in told, below


# settings.md


def test_settings_page_has_every_setting_with_its_default_bounds_and_meaning():
    """One row a setting: | `LEGACY_POLL_X` | default | from | to | meaning |."""
    rows = {}
    for line in read(ROOT / "docs" / "settings.md").splitlines():
        if line.startswith("| `" + PREFIX):
            name, *others = cells(line)
            assert name not in rows, name
            rows[name.strip("`")] = others
    assert list(rows) == list(Settings.described())
    for setting in dataclasses.fields(Settings):
        name = PREFIX + setting.name.upper()
        default, bounds, meaning = rows[name]
        assert (default, bounds) == (shown_default(setting), shown_bounds(setting)), name
        assert meaning.startswith(setting.metadata["help"]), name


def shown_default(setting):
    if setting.default is dataclasses.MISSING:
        return "see right"  # of this machine
    if setting.type == "bool":
        return "`1`" if setting.default else "`0`"
    if setting.type == "str":
        return "`%s`" % setting.default if setting.default else "empty"
    return "`{}`".format(
        str(setting.default)[:-2] if str(setting.default).endswith(".0") else setting.default
    )


def shown_bounds(setting):
    if setting.type in ("str", "bool"):
        return ""
    least, most = setting.metadata["least"], setting.metadata["most"]
    return "from %s" % plain(least) if math.isinf(most) else "%s to %s" % (plain(least), plain(most))


def plain(number):
    return "%d" % number if number == int(number) else "%g" % number


# wire.md


def codes():
    found = {}
    for kind in vars(errors).values():
        if inspect.isclass(kind) and "code" in vars(kind):
            found[kind.code] = kind.status
    return found


def test_wire_page_has_every_code_with_its_status():
    told = {}
    for line in read(ROOT / "docs" / "wire.md").splitlines():
        match = re.match(r"\| (\d{3}) \| `(\w+)` \|", line)
        if match:
            told[match.group(2)] = int(match.group(1))
    assert {code: told.get(code) for code in codes()} == codes()


# operations.md


def log_lines():
    """The constant beginning of each line of the log for an operator, without the name in front."""
    for path in sorted((ROOT / "legacy_poll").rglob("*.py")):
        for call in ast.walk(ast.parse(read(path))):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            if getattr(call.func.value, "id", "") != "logger" or call.func.attr not in LEVELS:
                continue
            [told] = [each for each in call.args[:1] if isinstance(each, ast.Constant)]
            beginning = re.split(r"%| \(|: ", told.value.replace("legacy_poll: ", ""))[0].strip(" :;,")
            if beginning:
                yield beginning


LEVELS = ("warning", "error", "exception")


def test_operations_page_has_every_line_of_the_log():
    page = re.sub(r"\s+", " ", read(ROOT / "docs" / "operations.md"))
    lines = list(log_lines())
    assert lines
    for line in lines:
        assert line in page, line


# flask.md


def test_flask_page_has_every_argument_and_call():
    page = read(ROOT / "docs" / "flask.md")
    for name in inspect.signature(LegacyPoll).parameters:
        assert re.search(r"\| .*`%s(=|`)" % name, page), name
    for name in ("publish", "cursor", "revoke", "token", "upgrade", "drain", "stop", "blueprint", "settings"):
        assert hasattr(LegacyPoll, name)
        assert re.search(r"\| `poll\.%s[`(]" % name, page), name


def test_the_flask_pages_application_tells_a_stranger_that_he_is_one(tmp_path, monkeypatch):
    """Also for a poll that names no channel: what it reads is asked for before who may."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "page_of_the_docs", raising=False)
    [code] = re.findall(r"^```python\n(from flask .*?)^```$", read(ROOT / "docs" / "flask.md"), re.M | re.S)[
        :1
    ]
    (tmp_path / "page_of_the_docs.py").write_text(code, encoding="utf-8")
    page = importlib.import_module("page_of_the_docs")
    page.poll._url = "sqlite:///{}".format(tmp_path / "page.db")
    app = page.create_app()
    app.config["SECRET_KEY"] = "a key of some length"
    with app.app_context():
        page.poll.upgrade()
        for query in ("", "&channel=orders"):
            assert app.test_client().get("/poll/stream?timeout=0" + query).status_code == 401
        page.poll.stop()


# deploy/


def test_configurations_of_proxies_are_the_files_that_the_tests_run():
    folder = ROOT / "docs" / "deploy"
    files = {path.name for path in folder.iterdir() if path.suffix != ".md"}
    assert files == {kind.file for kind in PROXIES}
    page = read(folder / "proxies.md")
    for name in files:
        assert "[{0}]({0})".format(name) in page, name


@each_page
def test_excerpts_of_proxies_configurations_stand_in_those_files(page):
    for kind in PROXIES:
        text = read(ROOT / "docs" / "deploy" / kind.file)
        for language in (kind.name.lower(), kind.file.rpartition(".")[2]):
            for code in re.findall(r"^```%s\n(.*?)^```$" % language, read(page), re.M | re.S):
                assert code in text, code


def test_directives_of_the_doctor_stand_in_the_files_that_the_tests_run():
    for name, kind in {kind.name: kind for kind in PROXIES}.items():
        said = programs.advice(programs.LIMIT, [name], seconds=60)
        assert said.startswith(name + ": ")
        directive = re.split(r";| in | and |,", said[len(name) + 2 :])[0]
        assert directive in read(ROOT / "docs" / "deploy" / kind.file), said
