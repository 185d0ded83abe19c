"""What each server has room for: known by gunicorn's worker, or by what a request brings along."""

from __future__ import annotations

from types import SimpleNamespace

import gevent.monkey
import pytest
from gunicorn.workers.gthread import ThreadWorker
from gunicorn.workers.sync import SyncWorker
from werkzeug.test import EnvironBuilder

from legacy_poll.capacity import most_held, why_none_is_held


def worker_of(kind, threads=1):
    worker = kind.__new__(kind)
    worker.cfg = SimpleNamespace(threads=threads)
    return worker


@pytest.mark.parametrize(
    "threads, most", [(1, 0), (2, 1), (3, 2), (4, 3), (7, 6), (8, 6), (16, 12), (100, 75)]
)
def test_a_worker_with_threads_keeps_one_in_four_for_others(threads, most):
    assert most_held(worker_of(ThreadWorker, threads)) == most


def test_a_worker_that_answers_one_request_at_a_time_holds_none():
    assert most_held(worker_of(SyncWorker)) == 0


def test_of_other_workers_and_where_there_is_none_nothing_is_known():
    assert most_held(None) is None
    assert most_held(SimpleNamespace(cfg=SimpleNamespace(threads=1))) is None


def environ(**more):
    return dict({"wsgi.multithread": False, "SERVER_SOFTWARE": "x/1"}, **more)


@pytest.mark.parametrize("name", ["gunicorn.socket", "werkzeug.socket"])
def test_a_request_tells_a_server_without_threads(name, monkeypatch):
    assert "one request at a time" in why_none_is_held(environ(**{name: object()}))
    assert why_none_is_held(environ(**{name: object(), "wsgi.multithread": True})) == ""
    monkeypatch.setattr(gevent.monkey, "is_module_patched", lambda module: True)
    assert why_none_is_held(environ(**{name: object()})) == ""


def test_a_request_tells_gevents_server_without_its_patches(monkeypatch):
    asked = environ(SERVER_SOFTWARE="gevent/24.2 Python/3.8")
    assert "patch_all" in why_none_is_held(asked)
    monkeypatch.setattr(gevent.monkey, "is_module_patched", lambda module: True)
    assert why_none_is_held(asked) == ""


def test_the_test_client_and_servers_that_we_do_not_know_hold():
    assert why_none_is_held(EnvironBuilder("/stream").get_environ()) == ""
    assert why_none_is_held(environ()) == ""
