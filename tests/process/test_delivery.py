"""A commit becomes an answer: from a terminal or over HTTP, to every poll on every worker, wherever the client hops.

Three workers, and a fresh connection for each request. All hints are switched off in the house, so that what is
promised holds by the interval poll alone.
"""

from __future__ import annotations

import http.client

import pytest

from tests.process.conftest import NO_HINTS, ask_worker, each_place, everyone, hold_everywhere
from tests.process.polls import Client, Request, connect, head, position, publish, stream
from tests.waiting import until


def test_the_interval_poll_alone_brings_a_commit_in_a_terminal_to_every_held_poll(house):
    start = head(house)
    held = hold_everywhere(house, 20, cursor=start)
    clients = everyone(held)
    assert len(held) == 3 and all(client.held for client in clients)
    house.terminal.publish('{"n": 1}', '{"n": 2}')
    house.terminal.publish('{"n": 3}', channel="elsewhere")
    house.terminal.publish('{"n": 4}')
    expected = [{"n": 1}, {"n": 2}, {"n": 4}]
    assert [client.hear_until(3) for client in clients] == [expected] * 60
    assert len({tuple(client.ids) for client in clients}) == 1
    assert {position(client.cursor) - position(start) for client in clients} <= {4, 3}
    # Whoever comes later from the same place is given the same, by every worker.
    for worker in house.workers:
        with house.only(worker):
            late = Client(house, cursor=start)
            assert late.hear_until(3) == expected and late.ids == clients[0].ids


def test_an_event_posted_to_one_worker_answers_the_polls_on_all(house):
    clients = everyone(hold_everywhere(house, 3, channel=["posted", "orders"], cursor=head(house)))
    answer = publish(
        house, [{"channel": "posted", "data": None, "id": "post-1"}, {"channel": "posted", "data": "ü"}]
    )
    assert answer.status == 201, answer
    assert answer.json["events"][0] == {"id": "post-1", "duplicate": False}
    ids = [event["id"] for event in answer.json["events"]]
    for client in clients:
        assert client.hear_until(2) == [None, "ü"]
        assert client.ids == ids
    again = publish(house, {"channel": "posted", "data": None, "id": "post-1"})
    assert (again.status, again.json) == (200, {"events": [{"id": "post-1", "duplicate": True}]})


def test_clients_that_hop_between_workers_get_everything_once_and_in_order(house):
    start = head(house)
    clients = [Client(house, channel="hop", cursor=start) for _ in range(12)]
    workers = house.workers
    expected = []
    for turn in range(6):
        for place, worker in enumerate(workers):
            with house.only(worker):
                for client in clients[(place + turn) % 3 :: 3]:
                    client.ask()
                    until(lambda asked=client.request: asked.answered or house.worker_of(asked.worker_socket))
        house.terminal.publish(*["[{}, {}]".format(turn, n) for n in range(3)], channel="hop")
        posted = publish(house, {"channel": "hop", "data": [turn, 3]})
        assert posted.status == 201, posted
        expected += [[turn, n] for n in range(4)]
        for client in clients:
            client.hear()
    assert [client.hear_until(len(expected)) for client in clients] == [expected] * 12
    assert len({tuple(client.ids) for client in clients}) == 1


def test_a_worker_that_was_stopped_refuses_no_cursor_of_the_others(house):
    late = house.workers[0]
    start = head(house)
    # Accepted before the stop, so that the question is there the moment the worker goes on.
    connections = []
    with house.only(late):
        for _ in range(5):
            connections.append(connect(house))
            assert Request(house, "/health/live", connection=connections[-1]).answer().status == 200
    assert {house.worker_of(connection.sock) for connection in connections} == {late}
    clients = [Client(house, channel="late", cursor=start, timeout=2000) for _ in connections]
    with house.paused(late):
        house.terminal.publish("1", "2", "3", channel="late")
        assert [client.hear_until(3) for client in clients] == [[1, 2, 3]] * 5
        ahead = [position(client.cursor) for client in clients]
        for client, connection in zip(clients, connections):
            client.ask(connection)
    house.terminal.publish("4", channel="late")
    for client in clients:
        answer = client.hear()
        assert answer.status in (200, 204), answer
    assert [client.hear_until(4) for client in clients] == [[1, 2, 3, 4]] * 5
    assert all(position(client.cursor) > before for client, before in zip(clients, ahead))


def test_kill_9_of_a_worker_loses_nothing_for_those_who_come_back(house):
    held = hold_everywhere(house, 10, channel="killed", cursor=head(house))
    before = house.workers
    victim = before[1]
    house.kill(victim)
    house.terminal.publish("1", "2", channel="killed")
    orphans = held.pop(victim)
    # The polls of the other workers never noticed.
    assert [client.hear_until(2) for client in everyone(held)] == [[1, 2]] * 20
    for client in orphans:
        with pytest.raises((OSError, http.client.HTTPException)):
            client.hear()
        client.drop()
    house.terminal.publish("3", channel="killed")
    assert [client.hear_until(3) for client in orphans + everyone(held)] == [[1, 2, 3]] * 30
    house.wait_until_ready()
    after = house.workers
    assert len(after) == 3 and len(set(after) - set(before)) == 1
    # The new worker serves like the others.
    [new] = set(after) - set(before)
    request = ask_worker(house, new, stream("killed", cursor=orphans[0].cursor))
    house.terminal.publish("4", channel="killed")
    assert request.answer().data == [4]


@each_place
def test_a_worker_that_has_not_looked_yet_holds_cursors_that_are_ahead_of_it(serve):
    # Half a minute between two looks, and no hints: a worker knows only what it did itself.
    gunicorn = serve(dict(NO_HINTS, POLL_INTERVAL_SECONDS=30), workers=3)
    client = Client(gunicorn, cursor=head(gunicorn))
    for turn, worker in enumerate(gunicorn.workers):
        with gunicorn.only(worker):
            if turn:
                # One that has never heard of the client's last event: it neither refuses nor sends it back.
                brief = Client(gunicorn, cursor=client.cursor, timeout=300)
                assert brief.ask().hear().status == 204
                assert brief.cursor == client.cursor
            # And it holds, for the event that comes next.
            client.ask()
            assert publish(gunicorn, {"channel": "orders", "data": turn}).status == 201
            assert client.hear().data == [turn]
    # Nobody else misses anything.
    assert Client(gunicorn).hear_until(3) == [0, 1, 2]


@pytest.mark.parametrize("database_url", ["sqlite", "mariadb", "mysql"], indirect=True)
def test_workers_of_one_host_tell_each_other_at_once(serve):
    # Neither database has notifications: it is the workers' own datagrams that tell.
    gunicorn = serve({"POLL_INTERVAL_SECONDS": 60})
    clients = everyone(hold_everywhere(gunicorn, 2, cursor=head(gunicorn)))
    assert publish(gunicorn, {"channel": "orders", "data": 1}).status == 201
    # The answers would come with the interval poll too, but far beyond the bound.
    assert [client.hear().data for client in clients] == [[1]] * len(clients)
