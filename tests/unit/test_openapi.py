"""docs/openapi.yaml says what the code says: codes and their statuses, parameters, names, bounds and defaults."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest
import yaml

from legacy_poll import answers, errors, events, publishing, schemas
from legacy_poll.config import Settings
from legacy_poll.cursors import MAX_POSITION, Cursor
from legacy_poll.openapi import document
from legacy_poll.wire import longpoll

FILE = Path(__file__).resolve().parents[2] / "docs" / "openapi.yaml"
# Codes without a class of their own, and where they arise.
OTHERS = {
    "internal_error": 500,
    "starting": 503,
    "schema_mismatch": 503,
    # What an application's authorize() aborted with: whatever status that was.
    "refused": 400,
}


@pytest.fixture(scope="module")
def spec():
    return yaml.safe_load(document().decode("utf-8"))


def resolved(spec, node):
    """*node*, or what it refers to."""
    while isinstance(node, dict) and "$ref" in node:
        found = spec
        for name in node["$ref"].split("/")[1:]:
            found = found[name]
        node = found
    return node


def nodes(node):
    """Every mapping in *node*."""
    if isinstance(node, dict):
        yield node
    for each in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from nodes(each)


def operations(spec):
    for path, item in spec["paths"].items():
        for method, operation in item.items():
            yield method.upper() + " " + path, operation


def responses(spec):
    """(status, response) of every answer there may be."""
    for _, operation in operations(spec):
        for status, response in operation["responses"].items():
            yield int(status), resolved(spec, response)
    yield 405, spec["components"]["responses"]["MethodNotAllowed"]


def codes_in_code():
    found = dict(OTHERS)
    for _, kind in inspect.getmembers(errors, inspect.isclass):
        if "code" in vars(kind):
            found[kind.code] = kind.status
    return found


def codes_of(response):
    return {code for node in nodes(response) for code in node.get("code", {}).get("enum", ())}


def test_what_is_served_is_the_file():
    assert document() == FILE.read_bytes()


def test_every_reference_leads_somewhere(spec):
    for node in nodes(spec):
        assert resolved(spec, node) is not None


def test_the_server_is_where_the_file_is_whatever_the_prefix(spec):
    assert spec["servers"] == [{"url": "."}]


def test_the_codes_are_those_of_the_code(spec):
    assert spec["components"]["schemas"]["Code"]["enum"] == sorted(codes_in_code())


def test_each_code_stands_under_its_status_and_nowhere_else(spec):
    stands = {(code, status) for status, response in responses(spec) for code in codes_of(response)}
    assert stands == set(codes_in_code().items())


def test_every_error_says_which_codes_it_may_have(spec):
    for status, response in responses(spec):
        if status >= 400:
            if status == 414:
                assert list(response["content"]) == ["text/html"]  # gunicorn's
                continue
            schema = json.dumps(response["content"]["application/json"])
            assert "#/components/schemas/Error" in schema and codes_of(response), response


def test_every_answer_says_its_headers(spec):
    for status, response in responses(spec):
        headers = response.get("headers", {})
        assert "Cache-Control" in headers or status in (414, 500), response
        assert ("Legacy-Poll-Cursor" in headers) or status not in (204, 206, 410)
        assert ("Retry-After" in headers) == (status in (429, 503)), status
        assert ("WWW-Authenticate" in headers) == (status == 401)
        assert ("Allow" in headers) == (status == 405)


def test_the_paths_and_methods_are_those_of_the_blueprint(spec, tmp_path):
    from flask import Flask

    from legacy_poll import LegacyPoll

    app = Flask("app")
    poll = LegacyPoll(app, url="sqlite:///{}".format(tmp_path / "log.db"), public=True)
    app.register_blueprint(poll.blueprint)
    app.testing = True
    served = {str(rule) for rule in app.url_map.iter_rules() if rule.endpoint.startswith("legacy_poll.")}
    # The browser library is a file, and no part of the wire.
    assert set(spec["paths"]) == served - {"/legacy-poll.js", "/jquery.legacy-poll.js"}
    for operation, _ in operations(spec):
        method, path = operation.split()
        refused = app.test_client().put(path)
        assert refused.status_code == 405
        assert method in refused.headers["Allow"].split(", ")


def parameters(spec, path):
    return {each["name"]: each for each in spec["paths"][path]["get"]["parameters"]}


def test_the_parameters_are_those_that_are_known(spec):
    stream = parameters(spec, "/stream")
    # JSONP is switched off: its parameter is known only to be refused.
    assert set(stream) == set(longpoll._SINGLE) - {"callback"} | {"channel", "channels"}
    assert set(schemas.StreamQuery().declared_fields) <= set(stream)
    assert "callback" in spec["paths"]["/stream"]["get"]["description"]
    assert set(parameters(spec, "/cursor")) == {"channel", "channels", "token"}
    assert not any(each.get("required") for each in stream.values())


def test_the_parameters_bounds_and_defaults_are_those_of_the_code(spec):
    stream = parameters(spec, "/stream")
    settings = Settings()
    schema = {name: each["schema"] for name, each in stream.items()}
    assert schema["timeout"]["default"] == settings.hold_seconds * 1000
    assert schema["limit"]["default"] == settings.max_events
    # As many different ones in both together: that no schema can say.
    said = " ".join(stream["channel"]["description"].split())
    assert "At most %d different names" % settings.max_channels in said
    assert schema["empty"]["enum"] == list(schemas.StreamQuery().declared_fields["empty"].words)
    query = schemas.StreamQuery()
    for name in ("timeout", "limit", "heartbeat"):
        rule = schema[name]
        for value in (0, 1, 2, 999, 1000, 1001, 10**30):
            right = value >= rule.get("minimum", 0)
            if "anyOf" in rule:
                right = any(
                    value in each.get("enum", ()) or value >= each.get("minimum", 1e99)
                    for each in rule["anyOf"]
                )
            try:
                schemas.load(query, {name: str(value)})
                assert right, (name, value)
            except errors.BadParameter:
                assert not right, (name, value)


@pytest.mark.parametrize("name, longest", [("Channel", 200), ("Type", 200), ("EventId", 100)])
def test_the_names_are_those_of_the_code(spec, name, longest):
    rule = spec["components"]["schemas"][name]
    assert (rule["minLength"], rule["maxLength"]) == (1, longest)
    assert longest in (events.MAX_NAME, events.MAX_ID)
    for number in range(0x180):
        character = chr(number)
        try:
            events.check_name("channel", character)
            right = True
        except errors.InvalidEvent:
            right = False
        # Without \n behind, which `$` would let pass in Python and does not in JavaScript.
        assert (re.search(rule["pattern"][:-1] + r"\Z", character) is not None) == right, character


def test_the_cursors_are_those_of_the_code(spec):
    pattern = spec["components"]["schemas"]["Cursor"]["pattern"]
    asked = parameters(spec, "/stream")["cursor"]["schema"]["pattern"]
    for position in (0, 1, 10**17, MAX_POSITION):
        text = str(Cursor.at("log", position, "id"))
        assert re.search(pattern, text)
        # What is asked with may be forged: of 18 digits nobody is told 400.
        assert (re.search(asked, text) is not None) == (position != MAX_POSITION)
    for text in ("now", ""):
        assert re.search(asked, text)
    for text in ("1-00000000-01-00000000", "2-00000000-1-00000000", "17"):
        assert not re.search(pattern, text) and not re.search(asked, text)


def test_the_body_of_publish_is_that_of_the_code(spec):
    body = spec["paths"]["/publish"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    one, many = body["oneOf"]
    entry = resolved(spec, one)
    assert set(entry["properties"]) == publishing._EVENT_KEYS == set(schemas.EventBody().declared_fields)
    assert entry["required"] == [
        name for name, field in schemas.EventBody().declared_fields.items() if field.required
    ]
    assert (many["minItems"], many["maxItems"]) == (1, publishing._MAX_EVENTS)
    assert entry["properties"]["channel"]["default"] == events.DEFAULT_CHANNEL
    assert entry["properties"]["type"]["default"] == events.DEFAULT_TYPE


def test_the_limits_that_are_quoted_are_those_of_the_code(spec):
    text = FILE.read_text(encoding="utf-8")
    assert publishing._MAX_BYTES == 8 << 20 and "8 MiB" in text
    assert Settings().max_event_bytes == 256 << 10 and "256 KiB" in text
    assert events.MAX_DEPTH == 200 and "200 levels" in text
    retry = spec["components"]["responses"]["Later"]["headers"]["Retry-After"]["schema"]
    assert (retry["minimum"], retry["maximum"]) == (1, answers._LONGEST_RETRY_SECONDS)
    for name in re.findall(r"LEGACY_POLL_[A-Z_]+", text):
        assert name in Settings.described(), name
