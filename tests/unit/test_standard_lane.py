"""The lazy response, called as a WSGI server calls it, with a wait that the test controls."""

from __future__ import annotations

import gevent
import pytest
from flask import Response
from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Response as WerkzeugResponse

from legacy_poll.errors import ClientGone
from legacy_poll.lanes import HeldResponse, held_response
from legacy_poll.wire import Answer

JSON = Answer(
    200, (("Legacy-Poll-Cursor", "c"), ("Content-Type", "application/json"), ("Content-Length", "2")), b"{}"
)
EMPTY = Answer(204, (("Legacy-Poll-Cursor", "c"),), b"")


class AfterABeat:
    """What a group waits on; set once a heartbeat was sent."""

    def __init__(self, connection):
        self._connection = connection

    def wait(self, seconds):
        return self._connection.beaten


class Server:
    """Calls one response. What has happened so far, in order, is in `happened`."""

    def __init__(self, outcome=JSON, kind=HeldResponse, **options):
        self.outcome = outcome
        self.happened = []
        self.status = None
        self.headers = None
        self.response = kind(self._wait, lambda: self.happened.append("release"), **options)

    def _wait(self, connection):
        self.happened.append("wait")
        if self.response.heartbeat_seconds:
            connection.wait(AfterABeat(connection), 10)
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome

    def call(self):
        environ = EnvironBuilder("/stream").get_environ()
        return self.response(environ, self._start_response)

    def _start_response(self, status, headers, exc_info=None):
        self.happened.append("start")
        self.status, self.headers = status, headers
        return self.happened.append

    def serve(self):
        """Everything, as PEP 3333 has it; returns the body."""
        body = self.call()
        try:
            return b"".join(body)
        finally:
            body.close()

    def header(self, name):
        return [value for key, value in self.headers if key.lower() == name.lower()]


def test_the_wait_begins_with_the_iteration_and_not_with_the_call():
    server = Server()
    body = server.call()
    iterator = iter(body)
    assert server.happened == []
    assert next(iterator) == b"{}"
    assert server.happened == ["wait", "start"]
    body.close()


def test_the_answers_status_and_headers_are_those_that_are_sent():
    server = Server()
    assert server.serve() == b"{}"
    assert server.status == "200 OK"
    assert server.header("Content-Type") == ["application/json"]
    assert server.header("Content-Length") == ["2"]
    assert server.header("Legacy-Poll-Cursor") == ["c"]


@pytest.mark.parametrize(
    "status, line", [(206, "206 PARTIAL CONTENT"), (410, "410 GONE"), (299, "299 UNKNOWN")]
)
def test_any_status_has_a_status_line(status, line):
    server = Server(Answer(status, JSON.headers, b"{}"))
    server.serve()
    assert server.status == line


def test_a_204_has_no_content_type_and_no_body():
    server = Server(EMPTY)
    assert server.serve() == b""
    assert server.status == "204 NO CONTENT"
    assert server.header("Content-Type") == server.header("Content-Length") == []
    assert server.header("Legacy-Poll-Cursor") == ["c"]


def test_what_after_request_functions_set_is_sent():
    server = Server()
    server.response.headers["X-Theirs"] = "yes"
    server.response.set_cookie("one", "1")
    server.response.set_cookie("two", "2")
    server.serve()
    assert server.header("X-Theirs") == ["yes"]
    assert len(server.header("Set-Cookie")) == 2


def test_what_they_say_about_the_body_is_not():
    server = Server(EMPTY)
    server.response.headers["Content-Type"] = "text/html"
    server.response.headers["Content-Length"] = "0"
    server.serve()
    assert server.header("Content-Type") == server.header("Content-Length") == []


# The place.


def test_the_place_is_given_back_when_the_server_closes():
    server = Server()
    body = server.call()
    next(body)
    assert "release" not in server.happened
    body.close()
    assert server.happened[-1] == "release"


def test_the_place_is_given_back_even_if_nobody_iterates():
    server = Server()
    server.call().close()
    assert server.happened == ["release"]


@pytest.mark.parametrize("outcome", [JSON, EMPTY])
def test_the_place_is_given_back_at_the_end_of_the_body_by_itself(outcome):
    """A test client may never close."""
    server = Server(outcome)
    assert len(list(server.call())) <= 1
    assert server.happened[-1] == "release"


@pytest.mark.parametrize("error", [ValueError("a fault"), gevent.GreenletExit(), gevent.Timeout(1)])
def test_the_place_is_given_back_when_the_wait_is_killed(error):
    server = Server(error)
    with pytest.raises(type(error)):
        server.serve()
    assert server.happened == ["wait", "release"]


def test_closed_twice_it_is_given_back_once():
    server = Server()
    body = server.call()
    body.close()
    body.close()
    assert server.happened == ["release"]


def test_after_close_there_is_no_wait():
    server = Server()
    body = server.call()
    body.close()
    assert list(body) == []
    assert "wait" not in server.happened


def test_iterated_again_it_does_not_wait_again():
    server = Server()
    body = server.call()
    assert list(body) == [b"{}"]
    assert list(body) == []
    assert server.happened.count("wait") == server.happened.count("start") == 1
    body.close()


def test_the_applications_functions_for_the_close_are_called():
    server = Server()
    server.response.call_on_close(lambda: server.happened.append("theirs"))
    body = server.call()
    next(body)
    assert "theirs" not in server.happened
    body.close()
    assert server.happened[-2:] == ["release", "theirs"]


def test_it_is_known_whether_a_server_has_it():
    server = Server()
    assert not server.response.taken
    server.call().close()
    assert server.response.taken


# What is sent before the answer, and instead of one.


def test_a_heartbeat_starts_the_response_and_the_body_follows():
    server = Server(heartbeat_seconds=0.0001)
    server.response.headers["X-Theirs"] = "yes"
    assert server.serve() == b"{}"
    assert server.happened[:3] == ["wait", "start", b" "] and server.happened[-1] == "release"
    assert server.status == "200 OK"
    assert server.header("Content-Type") == ["application/json"]
    assert server.header("Content-Length") == []
    assert server.header("X-Theirs") == ["yes"]


def test_a_client_that_hung_up_gets_nothing_and_its_place_is_given_back():
    server = Server(ClientGone("the client hung up"))
    with pytest.raises(ConnectionResetError):
        next(server.call())
    assert "release" in server.happened


def test_the_last_answer_of_a_connection_is_not_another():
    """At a drain the connection is closed, where the server lets us; elsewhere the answer is sent all the same."""
    assert Server(is_last=lambda: True).serve() == b"{}"


# Code that wants the body now.


@pytest.mark.parametrize(
    "read",
    [
        lambda response: response.get_data(),
        lambda response: response.get_data(as_text=True),
        lambda response: response.data,
        lambda response: response.set_data(b"x"),
        lambda response: setattr(response, "data", b""),
        lambda response: response.get_json(),
        lambda response: response.json,
        lambda response: list(response.iter_encoded()),
        lambda response: response.make_sequence(),
        lambda response: response.freeze(),
        lambda response: response.add_etag(),
        lambda response: response.make_conditional(EnvironBuilder("/").get_environ()),
    ],
)
def test_code_that_reads_or_writes_the_body_is_told_and_never_waits(read):
    server = Server()
    with pytest.raises(RuntimeError, match="the body of a held poll is not known yet"):
        read(server.response)
    assert server.happened == []


def test_code_that_is_careful_can_tell_a_held_poll():
    assert Server().response.is_held
    assert not getattr(Response(), "is_held", False)


def test_its_length_is_unknown():
    response = Server().response
    assert response.content_length is None
    assert response.calculate_content_length() is None


# Applications with a response class of their own.


class Theirs(Response):
    default_mimetype = "text/x-theirs"

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.headers["X-Theirs"] = "yes"


def test_flasks_own_class_needs_no_other():
    assert held_response(Response) is HeldResponse
    assert held_response(WerkzeugResponse) is HeldResponse


def test_a_response_is_one_of_the_applications_class():
    kind = held_response(Theirs)
    assert issubclass(kind, Theirs)
    assert held_response(Theirs) is kind
    server = Server(kind=kind)
    assert server.serve() == b"{}"
    assert server.header("X-Theirs") == ["yes"]
    assert server.header("Content-Type") == ["application/json"]


def test_flasks_conversion_would_take_the_wait_away():
    """Why there are such classes: this is what Flask does with a response of another class than the application's."""
    server = Server()
    assert Theirs.force_type(server.response) is server.response
    assert type(server.response) is Theirs
