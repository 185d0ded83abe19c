"""What a read gives, where its cursor stands, and which cursors are refused."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest
from sqlalchemy import event as listening
from sqlalchemy.engine import Engine

from legacy_poll import schema
from legacy_poll.cursors import Cursor, check_of, short_log
from legacy_poll.errors import BacklogTooLarge, CursorExpired, CursorUnknown, LogDamaged
from tests.contract.store import run, series

FAR = "2999-01-01T00:00:00.000Z"


@pytest.fixture
def filled(store):
    """A store whose log has 1 to 6: odd numbers on `odd`, even ones on `even`."""
    for number in range(1, 7):
        store.publish(number, channel="odd" if number % 2 else "even")
    store.drain()
    return store


def at(store, position):
    return store.log.cursor_at(position)


def numbers(batch):
    return [json.loads(event.data) for event in batch.events]


def test_no_cursor_reads_from_the_oldest_and_ends_at_the_head(filled):
    batch = filled.read()
    assert numbers(batch) == [1, 2, 3, 4, 5, 6]
    assert (batch.cursor, batch.more) == (filled.log.bounds().cursor, False)


def test_a_read_goes_on_behind_its_cursor(filled):
    assert numbers(filled.read(at(filled, 0))) == [1, 2, 3, 4, 5, 6]
    assert numbers(filled.read(at(filled, 4))) == [5, 6]


def test_a_read_at_the_head_is_empty_and_stays_there(filled):
    head = filled.log.bounds().cursor
    batch = filled.read(head)
    assert (batch.events, batch.cursor, batch.more) == ((), head, False)


def test_an_empty_log_reads_as_empty_from_its_start(store):
    batch = store.read()
    assert (batch.events, batch.cursor.position, batch.more) == ((), 0, False)
    assert store.read(batch.cursor) == batch
    store.publish(1)
    store.drain()
    assert numbers(store.read(batch.cursor)) == [1]


def test_only_the_channels_asked_for_are_read(filled):
    assert numbers(filled.read(channels=["odd"])) == [1, 3, 5]
    assert numbers(filled.read(channels=["odd", "even", "other"])) == [1, 2, 3, 4, 5, 6]
    assert numbers(filled.read(at(filled, 3), channels=["even"])) == [4, 6]


def test_an_empty_read_of_a_quiet_channel_moves_the_cursor_to_the_head(filled):
    batch = filled.read(at(filled, 2), channels=["quiet"])
    assert (batch.events, batch.cursor, batch.more) == ((), filled.log.bounds().cursor, False)


def test_a_read_of_a_channel_ends_at_the_head_not_at_its_last_event(filled):
    batch = filled.read(channels=["odd"])
    assert batch.events[-1].position == 5
    assert batch.cursor.position == 6


def test_a_read_that_is_cut_by_count_goes_on_behind_its_last_event(filled):
    batch = filled.read(channels=["odd"], limit=2)
    assert (numbers(batch), batch.more) == ([1, 3], True)
    assert batch.cursor == at(filled, 3)
    rest = filled.read(batch.cursor, channels=["odd"], limit=2)
    assert (numbers(rest), rest.more) == ([5], False)


def test_a_read_of_exactly_the_limit_is_not_cut(filled):
    batch = filled.read(limit=6)
    assert (len(batch.events), batch.more) == (6, False)
    batch = filled.read(limit=5)
    assert (len(batch.events), batch.more) == (5, True)


def test_a_read_is_cut_by_bytes(store):
    store.publish("x" * 98, "x" * 98, "x" * 98)
    store.drain()
    for most, count in ((300, 3), (299, 2), (200, 2), (199, 1), (100, 1)):
        batch = store.read(max_bytes=most)
        assert (len(batch.events), batch.more) == (count, count < 3)
        assert batch.cursor == at(store, count)


def test_bytes_are_counted_as_they_travel_not_as_characters(store):
    store.insert(*[{"channel": "orders", "data": '"%s"' % ("é" * 49)}] * 3)
    store.drain()
    assert [len(store.read(max_bytes=most).events) for most in (300, 299, 199)] == [3, 2, 1]


def test_one_event_larger_than_the_limit_comes_alone(store):
    store.publish("small", "x" * 1000, "small")
    store.drain()
    sizes, cursor, more = [], None, True
    while more:
        batch = store.read(cursor, max_bytes=100)
        sizes.append([event.size for event in batch.events])
        cursor, more = batch.cursor, batch.more
    assert sizes == [[7], [1002], [7]]


def test_a_long_read_is_the_same_in_one_piece_and_in_many(store):
    store.insert(*[{"channel": "ab"[n % 2], "data": str(n)} for n in range(450)])
    store.drain()
    whole = numbers(store.read())
    assert whole == list(range(450))
    for limit in (1, 99, 100, 101, 200, 449, 450):
        pieces, cursor, more = [], at(store, 0 if limit > 1 else 440), True
        while more:
            batch = store.read(cursor, limit=limit)
            pieces += numbers(batch)
            assert len(batch.events) <= limit
            cursor, more = batch.cursor, batch.more
        assert pieces == whole[0 if limit > 1 else 440 :]
    assert numbers(store.read(channels=["a"], limit=226)) == list(range(0, 450, 2))


def test_events_that_come_while_a_read_is_under_way_are_left_to_the_next(filled, make_store):
    other = make_store()

    def publish():
        other.publish(7)
        other.drain()

    with before_statement(filled, 2, publish):
        batch = filled.read()
    assert numbers(batch) == [1, 2, 3, 4, 5, 6]
    assert batch.cursor == at(filled, 6)
    assert numbers(filled.read(batch.cursor)) == [7]


def test_a_publisher_reads_what_follows_its_position_and_the_check_of_the_event_there(filled):
    def read(position, **options):
        there, events = filled.log.read_new(position, **options)
        assert (there or check_of(None)) == at(filled, position).check
        return [event.position for event in events]

    assert read(3, upto=5, limit=100, max_bytes=1 << 20) == [4, 5]
    assert read(0, upto=6, limit=2, max_bytes=1 << 20) == [1, 2]
    assert read(6, upto=6, limit=100, max_bytes=1 << 20) == []
    # However large it is, one comes: without it nothing would ever come again.
    assert read(3, upto=5, limit=100, max_bytes=0) == [4]


# Cursors that are refused.


def test_a_cursor_as_text_leads_to_the_same_place(filled):
    cursor = Cursor.parse(str(at(filled, 4)))
    assert numbers(filled.read(cursor)) == [5, 6]


def test_a_cursor_of_another_log_is_unknown(filled):
    cursor = Cursor(short_log("another"), 3, at(filled, 3).check)
    with pytest.raises(CursorUnknown, match="is of another log"):
        filled.read(cursor)


def test_a_cursor_from_the_future_is_unknown(filled):
    cursor = Cursor(at(filled, 0).log, 7, check_of("x"))
    with pytest.raises(CursorUnknown, match="beyond the end of the log, position 6"):
        filled.read(cursor)


def test_the_largest_cursor_is_unknown_and_breaks_nothing(filled):
    cursor = Cursor.parse("1-%s-9223372036854775807-00000000" % at(filled, 0).log)
    with pytest.raises(CursorUnknown):
        filled.read(cursor)


@pytest.mark.parametrize("position", [0, 1, 3, 6])
def test_a_cursor_whose_check_fails_is_unknown(filled, position):
    cursor = Cursor(at(filled, 0).log, position, check_of("another event"))
    with pytest.raises(CursorUnknown, match="another event there"):
        filled.read(cursor)


def test_a_cursor_before_what_is_retained_is_expired(make_store):
    store = make_store(retention_events=2)
    store.publish(1, 2, 3, 4, 5)
    store.drain()
    cursors = [at(store, position) for position in range(6)]
    store.log.trim(store.log.glance().now)
    for cursor in cursors[:3]:
        with pytest.raises(CursorExpired, match="before position 4 have been trimmed") as caught:
            store.read(cursor)
        assert caught.value.facts == {"oldest": 4}
    assert [store.data(cursor=cursor) for cursor in cursors[3:]] == [[4, 5], [5], []]


def test_a_new_log_makes_every_cursor_unknown_and_keeps_the_events(filled, engine):
    cursors = [at(filled, position) for position in (0, 3, 6)]
    schema.new_log(engine)
    for cursor in cursors:
        with pytest.raises(CursorUnknown, match="another log"):
            filled.read(cursor)
    assert filled.data() == [1, 2, 3, 4, 5, 6]


def cut_back(store, position):
    """Makes the log as it was at *position*: what a restored backup or a lagging replica does."""
    run(store.engine, "DELETE FROM legacy_poll_event WHERE position > :position", position=position)
    run(store.engine, "UPDATE legacy_poll_log SET head = :position", position=position)


def test_a_log_that_was_cut_back_makes_later_cursors_unknown(filled):
    cursors = [at(filled, position) for position in range(7)]
    cut_back(filled, 3)
    for cursor in cursors[4:]:
        with pytest.raises(CursorUnknown, match="beyond the end"):
            filled.read(cursor)
    assert [filled.data(cursor=cursor) for cursor in cursors[:4]] == [[1, 2, 3], [2, 3], [3], []]


def test_a_log_that_was_cut_back_and_filled_again_makes_later_cursors_unknown(filled):
    cursors = [at(filled, position) for position in range(7)]
    cut_back(filled, 3)
    filled.publish("a", "b", "c", "d")
    filled.drain()
    for cursor in cursors[4:]:
        with pytest.raises(CursorUnknown, match="another event there"):
            filled.read(cursor)
    assert filled.data(cursor=cursors[3]) == ["a", "b", "c", "d"]
    assert filled.data(cursor=cursors[2]) == [3, "a", "b", "c", "d"]


def test_the_same_events_published_again_after_a_restore_are_other_events(filled):
    cursor = at(filled, 6)
    cut_back(filled, 3)
    for number in (4, 5, 6):
        filled.publish(number, channel="odd" if number % 2 else "even")
    filled.drain()
    with pytest.raises(CursorUnknown):
        filled.read(cursor)


def test_a_log_without_its_row_says_what_to_run(filled):
    (log_id, head), *_ = filled.database.read(
        lambda connection: connection.exec_driver_sql("SELECT log_id, head FROM legacy_poll_log").all()
    )
    run(filled.engine, "DELETE FROM legacy_poll_log")
    for ask in (filled.log.glance, filled.log.bounds, filled.read):
        with pytest.raises(LogDamaged, match="legacy_poll_log is empty.*run: legacy-poll repair"):
            ask()
    insert = "INSERT INTO legacy_poll_log (log_id, head, oldest) VALUES (:log_id, :head, 1)"
    run(filled.engine, insert, log_id=log_id, head=head)


# A limit to how far behind a cursor may be.


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 6, 500])
def test_a_backlog_of_exactly_the_limit_is_read_and_one_more_is_refused(filled, limit):
    for position in range(7):
        cursor = at(filled, position)
        for most in range(1, 8):
            if 6 - position <= most:
                batch = filled.read(cursor, limit=limit, max_backlog=most)
                assert batch == filled.read(cursor, limit=limit)
            else:
                with pytest.raises(BacklogTooLarge, match="more than %d events follow" % most) as caught:
                    filled.read(cursor, limit=limit, max_backlog=most)
                assert caught.value.facts == {"most": most}


@pytest.mark.parametrize("limit", [1, 2, 500])
def test_only_the_channels_of_the_poll_are_a_backlog(filled, limit):
    assert numbers(filled.read(at(filled, 0), channels=["odd"], limit=3, max_backlog=3)) == [1, 3, 5]
    assert filled.read(at(filled, 0), channels=["quiet"], limit=limit, max_backlog=1).events == ()
    for names in (["odd"], ["odd", "quiet"], ["odd", "even"]):
        with pytest.raises(BacklogTooLarge):
            filled.read(at(filled, 0), channels=names, limit=limit, max_backlog=2)


@pytest.mark.parametrize("limit", [1, 500])
def test_without_a_cursor_everything_that_is_retained_is_a_backlog(make_store, limit):
    store = make_store(retention_events=3)
    store.publish(1, 2, 3, 4, 5)
    store.drain()
    with pytest.raises(BacklogTooLarge, match="the oldest event that is kept"):
        store.read(limit=limit, max_backlog=3)
    store.log.trim(store.log.glance().now)
    assert numbers(store.read(limit=limit, max_backlog=3)) == [3, 4, 5][:limit]


def test_a_cursor_that_is_expired_too_is_told_that(make_store):
    store = make_store(retention_events=3)
    store.publish(1, 2, 3, 4, 5)
    store.drain()
    cursor = at(store, 0)
    store.log.trim(store.log.glance().now)
    with pytest.raises(CursorExpired):
        store.read(cursor, max_backlog=1)


def test_a_backlog_is_counted_by_key_and_no_further_than_the_limit(make_store, engine):
    """Few events among many others: a count must not walk over those."""
    store = make_store()
    store.publish(1, 2, 3, 4, 5, channel="rare")
    run(engine, series(engine, 5000))
    store.drain()
    run(engine, "ANALYZE TABLE legacy_poll_event" if engine.dialect.name == "mysql" else "ANALYZE")
    with watched_statements() as seen, pytest.raises(BacklogTooLarge):
        store.read(at(store, 0), channels=["rare", "other"], limit=1, max_backlog=3)
    ((statement, parameters),) = [each for each in seen if "count(" in each[0].lower()]
    assert 3 in (parameters.values() if isinstance(parameters, dict) else parameters)
    explain = {"sqlite": "EXPLAIN QUERY PLAN ", "mysql": "EXPLAIN FORMAT=TRADITIONAL "}
    prefix = explain.get(engine.dialect.name, "EXPLAIN ")
    with engine.connect() as connection:
        plan = str(connection.exec_driver_sql(prefix + statement, parameters).all())
    assert "legacy_poll_event_channel" in plan.replace("PRIMARY,legacy_poll_event_channel", ""), plan


@contextmanager
def watched_statements():
    """What is sent to databases meanwhile: [(statement, parameters)]."""
    seen = []

    def note(connection, cursor, statement, parameters, context, executemany):
        seen.append((statement, parameters))

    listening.listen(Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        listening.remove(Engine, "before_cursor_execute", note)


# A trim, or a new log, between two statements of one read.


@contextmanager
def before_statement(store, number, action):
    """Runs *action* before the *number*th statement that *store* sends, once."""
    ours = store.database._engine(False)
    sent = []

    def count(connection, *rest):
        if connection.engine is ours:
            sent.append(rest)
            if len(sent) == number:
                action()

    listening.listen(Engine, "before_cursor_execute", count)
    try:
        yield sent
    finally:
        listening.remove(Engine, "before_cursor_execute", count)


@pytest.fixture
def long(make_store):
    """A log of 250 events, read by three pages, and another process that will trim it to one."""
    store = make_store()
    store.insert(*[{"channel": "orders", "data": str(n)} for n in range(1, 251)])
    store.drain()
    trimmer = make_store(retention_events=1)
    return store, lambda: trimmer.log.trim(trimmer.log.glance().now)


def test_a_read_takes_five_statements_in_the_tests_below(long):
    store, _ = long
    with before_statement(store, 0, None) as sent:
        assert len(store.events(at(store, 0))) == 250
    # The cursor; the bounds; three pages; what is still there.
    assert len(sent) == 1 + 1 + 3 + 1


@pytest.mark.parametrize("statement", [2, 3, 4, 5])
def test_a_trim_during_a_read_is_never_missed(long, statement):
    store, trim = long
    cursor = at(store, 0)
    with before_statement(store, statement, trim), pytest.raises(CursorExpired):
        store.read(cursor)
    store.check()


@pytest.mark.parametrize("statement", [2, 3, 4, 5])
def test_a_trim_during_a_read_without_a_cursor_makes_it_read_again(long, statement):
    store, trim = long
    with before_statement(store, statement, trim):
        batch = store.read()
    assert (numbers(batch), batch.cursor.position) == ([250], 250)


def test_a_trim_before_a_read_and_one_after_it_change_nothing_about_it(long):
    store, trim = long
    cursor = at(store, 249)
    with before_statement(store, 1, trim):
        assert numbers(store.read(cursor)) == [250]
    assert numbers(store.read(cursor)) == [250]


def test_a_trim_of_what_a_read_has_behind_it_does_not_disturb_it(long):
    store, trim = long
    cursor = at(store, 249)
    for statement in (2, 3):
        with before_statement(store, statement, trim):
            assert numbers(store.read(cursor)) == [250]


@pytest.mark.parametrize("statement", [2, 4, 5])
def test_a_log_that_is_replaced_during_a_read_is_not_missed(long, engine, statement):
    store, _ = long
    cursor = at(store, 0)
    with before_statement(store, statement, lambda: schema.new_log(engine)), pytest.raises(CursorUnknown):
        store.read(cursor)
