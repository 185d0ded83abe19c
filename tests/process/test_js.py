"""The browser library: its logic tests under node and in two old engines, its syntax, its size, its npm package."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.servers import find_program, missing

ROOT = Path(__file__).resolve().parents[2]
STATIC = ROOT / "legacy_poll" / "static"
CLIENT = STATIC / "legacy-poll.js"
PLUGIN = STATIC / "jquery.legacy-poll.js"
TESTS = sorted((ROOT / "tests" / "js").glob("*.test.js"))
MOST_BYTES = 6 * 1024
ACORN = Path("/usr/share/nodejs/acorn")  # Debian's node-acorn
# Parsed as Internet Explorer 8 would: no reserved word behind a dot, no trailing comma anywhere.
CHECK = """
const acorn = require(process.env.ACORN);
const words = {ecmaVersion: 3, allowReserved: "never", onTrailingComma: at => { throw Error("comma at " + at); }};
const trees = process.argv.slice(1).map(text => {
  const tree = acorn.parse(text, words);
  JSON.stringify(tree, (key, node) => {
    const last = node && node.type === "ArrayExpression" && text.slice(node.start, node.end);
    if (last && /,\\s*\\]$/.test(last)) throw Error("comma in " + last);
    return node;
  });
});
"""


def run(*command, timeout=300, **options):
    """Runs *command*; what it printed is the failure's text."""
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
        timeout=timeout,
        **options,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def node():
    found = find_program("node", "nodejs")
    major = int(run(found, "--version").lstrip("v").partition(".")[0])
    return found if major >= 18 else missing("node 18 or newer")


@pytest.fixture(scope="module")
def parse(node):
    """Parses a text as CHECK says; fails where that fails."""
    if not ACORN.exists():
        missing("node-acorn")

    def parse(text, **options):
        return run(node, "-e", CHECK, "--", text, env=dict(os.environ, ACORN=str(ACORN)), **options)

    return parse


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_the_logic_holds_under_node(node, path):
    printed = run(node, "--test", path)
    assert int(re.search(r"pass (\d+)", printed).group(1)) > 0


@pytest.mark.parametrize("engine", ["mujs", "duk"])
def test_the_same_tests_hold_in_old_engines(engine, tmp_path):
    found = find_program(engine)
    whole = tmp_path / "all.js"
    files = [CLIENT, ROOT / "tests" / "js" / "kit.js", *TESTS]
    whole.write_text("\n".join(path.read_text() for path in files) + "\nprint(kit.runAll());\n")
    printed = run(found, whole, timeout=600)
    passed, failed = map(int, re.search(r"(\d+) passed, (\d+) failed", printed).groups())
    assert failed == 0 and passed > 100, printed


@pytest.mark.parametrize("path", [CLIENT, PLUGIN], ids=lambda path: path.name)
def test_the_syntax_is_es3(parse, path):
    parse(path.read_text())


@pytest.mark.parametrize(
    "newer",
    ["p.catch(f)", "a = {default: 1}", "a = {b: 1,}", "a = [1,]", "a = {get b() {}}", "let a", "f(a => a)"],
)
def test_the_check_refuses_what_is_newer(parse, newer):
    parse("a = {b: [1, 2]}")
    with pytest.raises(AssertionError, match="(?i)error"):
        parse(newer)


def test_the_client_is_small():
    size = len(gzip.compress(CLIENT.read_bytes(), 9))
    assert size < MOST_BYTES, size


def test_the_client_asks_for_nothing_newer_than_es3():
    # What a parser cannot see: methods that came later. JSON is the page's to bring (docs/browser.md).
    code = re.sub(r"/\*.*?\*/", "", CLIENT.read_text(), flags=re.S)
    later = r"\.(forEach|map|filter|indexOf|lastIndexOf|some|every|reduce|bind|trim|keys|create|isArray|includes)\("
    assert not re.findall(later, code)
    assert not re.findall(r"\bDate\.now|\b(eval|Function)\(", code)


def test_the_folder_is_the_npm_package(node):
    package = json.loads((STATIC / "package.json").read_text())
    files = {path.name for path in STATIC.iterdir()} - {"package.json"}
    assert set(package["files"]) == files
    assert {package["main"], package["types"]} <= files
    assert run(node, "-p", "typeof require({!r}).connect".format(str(STATIC))).strip() == "function"


def test_the_package_has_our_version():
    declared = re.search(r"^version = (.*)$", (ROOT / "setup.cfg").read_text(), re.M).group(1)
    assert json.loads((STATIC / "package.json").read_text())["version"] == declared


def declared(interface):
    """The names of *interface* in the .d.ts."""
    text = (STATIC / "legacy-poll.d.ts").read_text()
    body = re.search(r"interface %s[^{]*\{\n(.*?)\n\}" % interface, text, re.S).group(1)
    return set(re.findall(r"^  (?:readonly )?(\w+)[?:(<]", body, re.M))


def test_what_is_built_is_declared_and_documented():
    code, page = CLIENT.read_text(), (ROOT / "docs" / "browser.md").read_text()
    options = set(re.findall(r"\boptions\.(\w+)", code))
    members = set(re.findall(r"\bself\.(\w+)(?= =)", code)) | {"state", "leads"}
    reasons = set(re.findall(r'reason: "(\w+)"|fail\("(\w+)"|"(timeout|network|body|status)"', code))
    assert options == declared("LegacyPollOptions")
    assert members == declared("LegacyPollConnection")
    states = re.findall(r"LegacyPollState = (.*);", (STATIC / "legacy-poll.d.ts").read_text())[0]
    words = {word for found in reasons for word in found if word} | set(re.findall(r'"(\w+)"', states))
    for word in options | members | words | {"cut"}:
        assert re.search(r"`{0}[`(]|\*\*`{0}`\*\*".format(word), page), word


def test_the_page_has_the_numbers_of_the_code():
    # One place changes, the other follows: each constant with the words of docs/browser.md that it stands for.
    constants = dict(re.findall(r"\b([A-Z_]+) = ([\de]+)", CLIENT.read_text()))
    assert constants == {
        "HOLD": "25000",  # timeout, left out
        "SPARE": "10000",  # 10 s after the hold should have ended
        "DOWNLOAD": "120000",  # two minutes more
        "QUICK": "750",  # within 0.75 s
        "WORD": "2000",  # for two seconds if the leader has an event
        "BURST": "12",  # never more than 12 ...
        "BURST_MS": "8000",  # ... in 8 seconds
        "BACKOFF": "500",
        "BACKOFF_MOST": "30000",
        "RETRY_MOST": "300000",  # at most five minutes are believed
        "CUT_LEAST": "2000",
        "CUT_KEPT": "864e5",  # a day
        "BEAT": "200",  # four of these: 0.8 s
        "TICK": "5000",
        "MEMORY": "1000",
    }
