"""GET /status and /metrics: for loopback, or with the admin token."""

from __future__ import annotations

import pytest

TOKEN = "the operators' own token"
PATHS = ["/status", "/metrics"]


def bearer(token):
    return {"Authorization": "Bearer " + token}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", ""])
def test_loopback_may_look(site, path, address):
    assert site.get(path, address=address).status == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("address", ["10.0.0.1", "2001:db8::1", "nonsense"])
def test_from_elsewhere_nobody_may(make_site, path, address):
    for settings in ({}, {"admin_token": TOKEN}):
        reply = make_site(**settings).get(path, address=address)
        assert (reply.status, reply.code) == (403, "forbidden")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"])
def test_what_a_proxy_on_this_host_forwards_comes_from_elsewhere(site, path, name):
    assert site.get(path, headers={name: "127.0.0.1"}).status == 403


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["Forwarded", "X-Real-IP", "Via"])
def test_behind_our_own_proxies_too_another_header_vouches_for_nobody(make_site, path, name):
    site = make_site(trusted_proxies=1)
    assert site.get(path, headers={name: "127.0.0.1"}).status == 403
    assert site.get(path).status == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("text", ["203.0.113.7", "127.0.0.1", ", 10.0.0.1", "unknown, 10.0.0.1"])
def test_who_came_around_one_of_our_own_proxies_may_not_look(make_site, path, text):
    """The request comes from loopback, where the last proxy is, and the client's own address is in no place of ours."""
    assert make_site(trusted_proxies=2).get(path, headers={"X-Forwarded-For": text}).status == 403


@pytest.mark.parametrize("path", PATHS)
def test_an_address_that_our_own_proxies_vouch_for_counts(make_site, path):
    site = make_site(trusted_proxies=1)
    assert site.get(path, headers={"X-Forwarded-For": "127.0.0.1, 10.0.0.1"}).status == 403
    assert site.get(path, headers={"X-Forwarded-For": "10.0.0.1, 127.0.0.1"}).status == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("key", ["", "unknown", "127.0.0.1"])
def test_the_key_that_limits_go_by_opens_nothing(make_site, path, key):
    """An application may count its users by any text, also the empty one."""
    site = make_site(options={"client_key": lambda: key})
    assert site.get(path, address="10.0.0.1").status == 403


@pytest.mark.parametrize("path", PATHS)
def test_the_admin_token_opens_from_anywhere_and_another_does_not(make_site, path):
    site = make_site(admin_token=TOKEN)
    assert site.get(path, address="10.0.0.1", headers=bearer(TOKEN)).status == 200
    reply = site.get(path, address="10.0.0.1", headers=bearer(TOKEN + "x"))
    assert (reply.status, reply.code) == (401, "unauthorized")


def test_status_says_how_it_is(site):
    site.publish(1)
    site.settle()
    poll = site.hold({"channel": "quiet"})
    says = site.get("/status").json
    assert says["worker"]["held"] == says["worker"]["groups"] == 1
    assert says["worker"]["failure"] is None
    assert says["worker"]["cursor"] == site.get("/cursor").json["cursor"]
    site.publish(2, channel="quiet")
    poll.reply()


def test_metrics_count_the_answers(site):
    site.publish(1)
    site.settle()
    site.get("/stream", {"channel": "orders"})
    site.get("/stream", {"channel": "quiet", "timeout": 1})
    site.get("/stream", {"cursor": "1-00000000-0-00000000"})
    text = site.get("/metrics").body.decode()
    for line in (
        'legacy_poll_answers_total{status="200",outcome="events"} 1',
        'legacy_poll_answers_total{status="204",outcome="empty"} 1',
        'legacy_poll_answers_total{status="410",outcome="cursor_unknown"} 1',
        "legacy_poll_held 0",
        "legacy_poll_up 1",
    ):
        name, _, value = line.rpartition(" ")
        found = [each for each in text.splitlines() if each.startswith(name.split("{")[0])]
        assert any(_labels(name) <= _labels(each) and each.endswith(" " + value) for each in found), line


def _labels(line):
    return set(line.partition("{")[2].partition("}")[0].split(",")) - {""}


def test_what_clients_say_about_cut_polls_is_kept_and_told_once(make_site, caplog):
    site = make_site()
    for cut in ["0", "999", "5100", "4900", "30000", "1000", "99999999", "-1", "5e3", "", "a", "\u0665"]:
        assert site.get("/stream", {"channel": "orders", "timeout": 0, "cut": cut}).status == 204
    assert site.get("/status").json["cut_after_seconds"] == {"1": 1, "5": 2, "30": 1}
    (line,) = [
        each for each in site.get("/metrics").body.decode().splitlines() if "intermediary_cuts_total{" in each
    ]
    assert line.endswith(" 4")
    (told,) = [record.getMessage() for record in caplog.records if "cuts polls after" in record.getMessage()]
    assert "about 5 s" in told and "legacy-poll doctor" in told
