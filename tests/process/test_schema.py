"""The description of the wire against the server of today.

schemathesis reads docs/openapi.yaml as it is served, and asks a real gunicorn whatever it allows, and what it does not.
It says what an answer is that the description does not have: a status, a type, a header, a body; a bad request that
is not refused, a good one that is, a method, a token.
"""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from importlib.util import find_spec

import pytest
import yaml

from legacy_poll.tokens import Tokens
from tests.gunicorn import Gunicorn
from tests.process.conftest import SETTINGS, check_log
from tests.process.polls import publish
from tests.servers import missing

KEY = "a key of more than 16 characters"
EXAMPLES = 25
# What a run may take before it counts as hung; it takes a fraction of this.
SECONDS = 170
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "positive_data_acceptance",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
]

# A list that is too long is too large, as is a request line; a cursor that was made up is right, and gone.
CONFIG = """
[checks]
positive_data_acceptance.expected-statuses = ["2xx", 401, 403, 404, 410, 429]
negative_data_rejection.expected-statuses = [400, 401, 403, 404, 405, 413, 414, 415]
"""

if sys.version_info < (3, 11):
    pytest.skip("schemathesis needs Python 3.11", allow_module_level=True)
if find_spec("schemathesis") is None:
    missing("the package schemathesis")


def schemathesis(gunicorn, *options, checks=CHECKS, schema=None):
    """What `schemathesis run` said, and whether all was well."""
    config = gunicorn.directory / "schemathesis.toml"
    config.write_text(CONFIG)
    command = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        "--config-file",
        str(config),
        "run",
        schema or gunicorn.url + "/openapi.yaml",
    ]
    command += ["--url", gunicorn.url, "--checks", ",".join(checks), "--phases", "examples,coverage,fuzzing"]
    command += ["--max-examples", str(EXAMPLES), "--generation-deterministic", "--seed", "1", "--no-color"]
    command += ["--suppress-health-check", "all", "--request-timeout", "20", "--continue-on-failure"]
    command += ["--warnings", "off", *options]
    done = subprocess.run(
        command,
        cwd=str(gunicorn.directory),
        env=dict(os.environ, PYTHONUNBUFFERED="1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )
    return done.returncode == 0, done.stdout


def started(folder, **settings):
    """Two workers with short holds, and events in their log."""
    url = "sqlite:///{}".format(folder / "log.db")
    gunicorn = Gunicorn(dict(SETTINGS, HOLD_SECONDS=0.05, DATABASE_URL=url, **settings), workers=2)
    try:
        gunicorn.start()
        rows = [{"channel": "orders", "data": {"id": n}} for n in range(5)] + [{"data": None}]
        assert publish(gunicorn, rows).status == 201
        yield gunicorn
        check_log(gunicorn)
    finally:
        gunicorn.destroy()


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    yield from started(tmp_path_factory.mktemp("public"))


@pytest.fixture(scope="module")
def private(tmp_path_factory):
    yield from started(tmp_path_factory.mktemp("private"), PUBLIC=0, SECRET_KEY=KEY, MAX_HELD_PER_CLIENT=1)


def bearer(token):
    return ["--header", "Authorization: Bearer " + token]


def test_what_anybody_may_ask_is_answered_as_described(public):
    right, said = schemathesis(public, *bearer("publish-token"))
    assert right, said


def test_what_a_token_lets_in_is_answered_as_described(private):
    token = Tokens(KEY).make(["orders", "default"], expires_seconds=3600, subject="u7")
    right, said = schemathesis(private, *bearer(token), "--exclude-path", "/publish")
    assert right, said


def test_without_a_token_it_is_refused_as_described(private):
    """With none, and with those that schemathesis makes up."""
    right, said = schemathesis(private, checks=CHECKS + ["ignored_auth"])
    assert right, said


def without_a_status(spec):
    del spec["paths"]["/stream"]["get"]["responses"]["204"]


def with_another_name_in_a_body(spec):
    event = spec["components"]["schemas"]["Event"]
    event["properties"]["when"] = event["properties"].pop("time")
    event["required"][-1] = "when"


def with_a_header_that_is_not_sent(spec):
    spec["paths"]["/stream"]["get"]["responses"]["204"]["headers"]["Legacy-Poll-Head"] = {
        "required": True,
        "schema": {"type": "string"},
    }


def with_a_bound_that_is_not_kept(spec):
    for parameter in spec["paths"]["/stream"]["get"]["parameters"]:
        if parameter["name"] == "limit":
            parameter["schema"]["maximum"] = 500  # it is clamped, not refused


BROKEN = {
    without_a_status: "Undocumented status code",
    with_another_name_in_a_body: "Response violates schema",
    with_a_header_that_is_not_sent: "Missing required response headers",
    with_a_bound_that_is_not_kept: "Schema-violating request accepted",
}


@pytest.mark.parametrize("break_it", list(BROKEN), ids=lambda each: each.__name__)
def test_a_description_that_is_wrong_is_found_out(public, break_it):
    spec = yaml.safe_load(get_text(public, "/openapi.yaml"))
    break_it(spec)
    path = public.directory / (break_it.__name__ + ".yaml")
    path.write_text(yaml.safe_dump(spec))
    right, said = schemathesis(public, "--include-path", "/stream", schema=str(path))
    assert not right and BROKEN[break_it] in said, said


def get_text(gunicorn, path):
    with urllib.request.urlopen(gunicorn.url + path, timeout=30) as answer:
        return answer.read().decode("utf-8")
