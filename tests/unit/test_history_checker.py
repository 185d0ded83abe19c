"""The history checker must reject what breaks promise 1, name the facts, and accept all that a true log may do.

Two halves: small histories written down by hand, at least one for each rule; and a simulated log, whose histories
must be accepted as they are and rejected after one change.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.history import (
    ANSWERED,
    COMMITTED,
    NO_ANSWER,
    NOW,
    ROLLED_BACK,
    UNKNOWN,
    Answer,
    History,
    HistoryError,
    Journal,
    Publisher,
    Reader,
    Row,
    Seen,
    Transaction,
    from_line,
    to_line,
)
from tests.history.checker import (
    ALTERED,
    CURSOR,
    DISAGREEMENT,
    DUPLICATE,
    EARLY,
    LOST,
    PHANTOM,
    REAL_TIME_ORDER,
    STRAY,
    TORN,
    TRANSACTION_ORDER,
    UNFINISHED,
    judge,
)


def position_of(cursor):
    return int(cursor[1:])


class Run:
    """A history by hand. Each act takes the next whole second, unless it says `at`."""

    def __init__(self):
        self.clock = 0.0
        self.records = [Publisher("p", 0)]
        self.rows = {}
        self.turns = {}

    def tick(self, at=None):
        self.clock = self.clock + 1 if at is None else at
        return self.clock

    def row(self, key, *, at=None, channel="orders", undone=False, id=None):
        self.rows[key] = Row(key, channel, {"key": key}, at, id=id, undone=undone)
        return self.rows[key]

    def publish(self, *rows, outcome=COMMITTED, sent=None, returned=None):
        """A transaction of *rows*, each a Row or the key of one to make; it is called by its first key in capitals."""
        rows = [self.row(row) if isinstance(row, str) else row for row in rows]
        rows = tuple(replace(row, insert_sent=self.tick(row.insert_sent)) for row in rows)
        sent = self.tick(sent)
        returned = self.tick(returned) if outcome == COMMITTED else None
        self.records.append(Transaction(rows[0].key.upper(), "p", outcome, rows, sent, returned))

    def reader(self, name="r", *, channels=("orders",), complete=True):
        self.records.append(Reader(name, channels, complete))

    def seen(self, name, **changes):
        row = self.rows[name]
        return replace(Seen(row.id or "id-" + name, row.channel, row.type, name, row.data), **changes)

    def ask(self, cursor, *events, to=None, reader="r", status=None, adopted=True, at=None):
        """A request with *cursor*, answered with *events* (Seen, or the keys of such) and the cursor *to*."""
        events = tuple(self.seen(event) if isinstance(event, str) else event for event in events)
        sent = self.tick(at)
        turn = self.turns[reader] = self.turns.get(reader, -1) + 1
        status = (200 if events else 204) if status is None else status
        answer = Answer(reader, turn, cursor, sent, sent + 0.5, status, to, adopted and bool(to), events)
        self.records.append(answer)

    def watch(self, reader, *events, channels=("orders",)):
        """A complete reader that gets *events* in one answer, and then an empty one."""
        self.reader(reader, channels=channels)
        self.ask(None, *events, to="c1", reader=reader)
        self.ask("c1", to="c2", reader=reader)

    def judge(self, **options):
        return judge(History.of(self.records), **options)


def assert_rejected(run, kind, *facts, **options):
    report = run.judge(**options)
    assert not report.held
    assert report.kinds == {kind}, str(report)
    messages = [violation.message for violation in report.violations if violation.kind == kind]
    assert any(all(fact in message for fact in facts) for message in messages), messages
    return report


def assert_accepted(run, **options):
    report = run.judge(**options)
    assert report.held, str(report)
    return report


# What it accepts


def test_what_was_committed_and_seen_by_all_is_accepted_and_counted():
    run = Run()
    run.publish("a", "b")
    run.publish("c")
    run.watch("r1", "a", "b", "c")
    run.watch("r2", "a", "b", "c")
    report = assert_accepted(run)
    assert (report.events, report.readers, report.due, report.missed, report.lost_events) == (3, 2, 6, 0, 0)
    assert report.lost_per_10_000 == 0
    assert report.statuses == {200: 2, 204: 2}
    assert "held: 3 events, 2 readers" in str(report)


def test_rows_that_were_rolled_back_are_owed_to_nobody():
    run = Run()
    run.publish("gone", outcome=ROLLED_BACK)
    run.publish("a", run.row("undone", undone=True), "b")
    run.watch("r", "a", "b")
    assert assert_accepted(run).events == 2


def test_transactions_may_be_mixed_and_a_later_row_of_one_may_come_long_after():
    for seen in (("b", "a1", "a2"), ("a1", "b", "a2")):
        run = Run()
        run.publish(run.row("b", at=2), sent=3, returned=4)
        run.publish(run.row("a1", at=1), run.row("a2", at=10))
        run.watch("r", *seen)
        assert_accepted(run)


@pytest.mark.parametrize("seen", [(), ("u1", "u2")])
def test_a_transaction_of_unknown_outcome_may_be_seen_by_all_or_by_none(seen):
    run = Run()
    run.publish("a")
    run.publish("u1", "u2", outcome=UNKNOWN)
    run.watch("r1", "a", *seen)
    run.watch("r2", "a", *seen)
    assert assert_accepted(run).events == 1 + len(seen)


def test_the_same_cursor_again_gives_the_same_events_again():
    run = Run()
    run.publish("a", "b", "c")
    run.reader()
    run.ask(None, "a", to="c1")
    run.ask("c1", "b", to="c2", adopted=False)
    run.ask("c1", status=NO_ANSWER)
    run.ask("c1", to="c1", adopted=False)
    run.ask("c1", "b", "c", to="c3")
    run.ask("c3", to="c4")
    assert_accepted(run, position_of=position_of)


def test_a_reader_may_go_back_to_a_cursor_that_it_had_before_and_to_the_beginning():
    run = Run()
    run.publish("a", "b", "c")
    run.reader()
    run.ask(None, "a", to="c1")
    run.ask("c1", "b", to="c2")
    run.ask("c1", "b", "c", to="c3")
    run.ask(None, "a", "b", to="c2")
    run.ask("c2", "c", to="c3")
    run.ask("c3", to="c4")
    assert_accepted(run, position_of=position_of)


def test_a_reader_may_hop_to_a_worker_that_is_behind():
    run = Run()
    run.publish("a", "b")
    run.reader()
    run.ask(None, "a", to="c1")
    run.ask("c1", to="c1")
    run.ask("c1", status=503)
    run.ask("c1", "b", to="c2")
    run.ask("c2", to="c2")
    assert_accepted(run, position_of=position_of)


def test_a_reader_that_starts_late_is_owed_what_comes_after_its_start_only():
    run = Run()
    run.publish("a")
    run.reader("late")
    run.ask(NOW, to="c1", reader="late")
    run.publish("b")
    run.ask("c1", "b", to="c2", reader="late")
    run.ask("c2", to="c3", reader="late")
    run.watch("r", "a", "b")
    assert assert_accepted(run).due == 3


def test_a_reader_that_starts_late_may_still_get_what_was_committed_but_had_no_position():
    run = Run()
    run.publish("a")
    run.watch("r", "a")
    run.reader("late")
    run.publish("b")
    run.ask(NOW, to="c1", reader="late")
    run.ask("c1", "b", to="c2", reader="late")
    run.ask("c2", to="c3", reader="late")
    run.ask("c2", "b", to="c3", reader="r")
    run.ask("c3", to="c3", reader="r")
    assert_accepted(run)


def test_a_reader_that_was_killed_is_owed_nothing_after_its_last_event():
    run = Run()
    run.publish("a")
    run.publish("b")
    run.watch("r", "a", "b")
    run.reader("killed", complete=False)
    run.ask(None, "a", to="c1", reader="killed")
    assert assert_accepted(run).due == 3


def test_readers_of_other_channels_agree_on_what_they_have_in_common():
    run = Run()
    run.publish("a", run.row("s", at=2, channel="stock"), run.row("b", at=3))
    run.watch("both", "a", "s", "b", channels=("orders", "stock"))
    run.watch("orders", "a", "b")
    run.watch("stock", "s", channels=("stock",))
    assert assert_accepted(run).due == 6


def test_a_foreign_cursor_is_refused_with_410_and_the_reader_goes_on_from_the_head():
    run = Run()
    run.publish("a")
    run.watch("r", "a")
    run.reader("foreign")
    run.ask("c99", to="c2", status=410, reader="foreign")
    run.publish("b")
    run.ask("c2", "b", to="c3", reader="foreign")
    run.ask("c3", to="c3", reader="foreign")
    run.ask("c2", "b", to="c3", reader="r")
    run.ask("c3", to="c3", reader="r")
    assert_accepted(run)


def test_an_id_that_the_log_gave_is_whatever_it_is_if_all_get_the_same():
    run = Run()
    run.publish(run.row("a", id="given"), "b")
    run.watch("r1", "a", run.seen("b", id="x"))
    run.watch("r2", "a", run.seen("b", id="x"))
    assert_accepted(run)


def test_latency_runs_from_the_commit_to_the_first_answer_of_readers_that_were_there():
    run = Run()
    run.reader("held")
    run.ask(None, to="c0", reader="held", at=0.25)
    run.publish(run.row("a", at=1), sent=2, returned=3)
    run.publish(run.row("b", at=4), sent=5, returned=6)
    run.ask("c0", "a", to="c1", adopted=False, reader="held", at=6)
    run.ask("c0", "a", "b", to="c2", reader="held", at=7)
    run.ask("c2", to="c3", reader="held", at=8)
    run.watch("after", "a", "b")
    latency = assert_accepted(run).latency
    assert (latency.deliveries, latency.p50_seconds, latency.max_seconds) == (2, 1.5, 3.5)
    assert latency.p99_seconds == 3.5


# What it rejects


def test_lost_by_one_reader():
    run = Run()
    run.publish("a")
    run.publish("b")
    run.publish("c")
    run.watch("r1", "a", "b", "c")
    run.watch("r2", "a", "c")
    report = assert_rejected(run, LOST, "'b'", "reader r2", "INSERT sent 4.000000", "returned 6.000000")
    assert (report.due, report.missed, report.lost_events) == (6, 1, 1)
    assert report.lost_per_10_000 == pytest.approx(10_000 / 6)
    assert report.violations[0].readers == ("r2",)
    assert report.violations[0].keys == ("b",)
    assert "BROKEN" in str(report) and "lost: 1" in str(report)


def test_lost_by_all_readers_and_lost_at_the_end():
    run = Run()
    run.publish("a")
    run.publish("b")
    run.watch("r1", "a")
    run.watch("r2", "a")
    report = assert_rejected(run, LOST, "'b'", "2 readers: r1, r2")
    assert (report.missed, report.lost_events) == (2, 1)


def test_lost_by_a_reader_that_got_nothing_at_all():
    run = Run()
    run.publish("a")
    run.watch("r")
    assert_rejected(run, LOST, "'a'", "reader r")


def test_lost_in_an_answer_that_was_not_adopted_and_never_came_again():
    run = Run()
    run.publish("a", "b")
    run.reader()
    run.ask(None, "a", to="c1")
    run.ask("c1", "b", to="c2", adopted=False)
    run.ask("c1", to="c2")
    run.ask("c2", to="c2")
    assert_rejected(run, LOST, "'b'", "reader r")


def test_lost_between_two_events_of_a_reader_that_started_after_their_commit_but_before_their_positions():
    run = Run()
    run.publish("a", "b", "c")
    run.reader("late")
    run.ask(NOW, to="c0", reader="late")
    run.ask("c0", "a", "c", to="c3", reader="late")
    run.ask("c3", to="c3", reader="late")
    run.watch("r", "a", "b", "c")
    assert_rejected(run, LOST, "'b'", "reader late")


def test_lost_after_the_start_of_a_late_reader_that_got_nothing():
    run = Run()
    run.publish("a")
    run.reader("late")
    run.ask(NOW, to="c1", reader="late")
    run.publish("b")
    run.ask("c1", to="c2", reader="late")
    run.watch("r", "a", "b")
    assert_rejected(run, LOST, "'b'", "reader late")


def test_lost_before_the_last_event_of_a_reader_that_was_killed():
    run = Run()
    run.publish("a")
    run.publish("b")
    run.watch("r", "a", "b")
    run.reader("killed", complete=False)
    run.ask(None, "b", to="c1", reader="killed")
    assert_rejected(run, LOST, "'a'", "reader killed")


def test_lost_before_an_event_that_was_inserted_after_the_commit_returned():
    """Nobody else saw the lost one: only real time says that it came before."""
    run = Run()
    run.publish("a")
    run.publish(run.row("s", channel="stock"))
    run.watch("r", "s", channels=("stock",))
    run.reader("killed", channels=("orders", "stock"), complete=False)
    run.ask(None, "s", to="c1", reader="killed")
    assert_rejected(run, LOST, "'a'", "reader killed")


def test_phantom_that_nobody_published():
    run = Run()
    run.publish("a")
    run.watch("r", "a", Seen("id-x", "orders", "message", "x", {"key": "x"}))
    assert_rejected(run, PHANTOM, "'id-x'", "nobody published", "reader r")


@pytest.mark.parametrize("what", ["transaction", "savepoint"])
def test_phantom_that_was_rolled_back(what):
    run = Run()
    run.publish("a")
    if what == "transaction":
        run.publish("gone", outcome=ROLLED_BACK)
    else:
        run.publish("b", run.row("gone", undone=True))
    run.watch("r", "a", *(["b"] if what == "savepoint" else []), "gone")
    assert_rejected(run, PHANTOM, "'gone'", f"{what} was rolled back", "reader r")


def test_phantom_of_a_savepoint_rolled_back_in_a_transaction_of_unknown_outcome():
    run = Run()
    run.publish("a")
    run.publish("u", run.row("gone", undone=True), outcome=UNKNOWN)
    run.watch("r", "a", "gone")
    assert_rejected(run, PHANTOM, "'gone'", "savepoint")


def test_torn_transaction_of_unknown_outcome():
    run = Run()
    run.publish("a")
    run.publish("u1", "u2", outcome=UNKNOWN)
    run.watch("r", "a", "u1")
    assert_rejected(run, TORN, "'u2'", "unknown in U1 of p", "reader r")


def test_torn_when_one_reader_saw_it_and_another_did_not():
    run = Run()
    run.publish("a")
    run.publish("u", outcome=UNKNOWN)
    run.watch("r1", "a", "u")
    run.watch("r2", "a")
    assert_rejected(run, TORN, "'u'", "reader r2")


def test_torn_when_a_killed_reader_alone_saw_it_in_an_answer_that_it_did_not_adopt():
    run = Run()
    run.publish("a")
    run.publish("u", outcome=UNKNOWN)
    run.watch("r", "a")
    run.reader("killed", complete=False)
    run.ask(None, "a", "u", to="c1", adopted=False, reader="killed")
    assert_rejected(run, TORN, "'u'", "reader r")


def test_early_before_the_commit_was_sent():
    run = Run()
    run.reader()
    run.publish(run.row("a", at=1), sent=9, returned=10)
    run.ask(None, "a", to="c1", at=5)
    run.ask("c1", to="c1", at=11)
    assert_rejected(run, EARLY, "'a'", "seen at 5.500000", "commit sent 9.000000", "reader r")


def test_stray_event_of_a_channel_that_was_not_asked_for():
    run = Run()
    run.publish("a", run.row("s", channel="stock"))
    run.watch("r", "a", "s")
    assert_rejected(run, STRAY, "'s'", "stock", "reader r")


@pytest.mark.parametrize(
    "change",
    [{"channel": "orders2"}, {"type": "other"}, {"data": {"key": "a", "n": 1.0}}, {"id": "x"}, {"key": "y"}],
)
def test_altered_content(change):
    run = Run()
    row = replace(run.row("a", id="given"), data={"key": "a", "n": 1})
    run.rows["a"] = row
    run.publish(row)
    run.watch("r", run.seen("a", **change), channels=("orders", "orders2"))
    assert_rejected(run, ALTERED, "'a'", "'given'", "reader r")


def test_altered_id_between_two_readers_and_one_id_for_two_events():
    run = Run()
    run.publish("a", "b")
    run.watch("r1", run.seen("a", id="x"), run.seen("b", id="y"))
    run.watch("r2", run.seen("a", id="z"), run.seen("b", id="y"))
    assert_rejected(run, ALTERED, "'a'", "'x'", "'z'", "reader r2")
    run = Run()
    run.publish("a", "b")
    run.watch("r", run.seen("a", id="x"), run.seen("b", id="x"))
    assert_rejected(run, ALTERED, "'a'", "'b'", "reader r")


def test_duplicate_after_its_cursor_was_adopted():
    run = Run()
    run.publish("a", "b")
    run.reader()
    run.ask(None, "a", to="c1")
    run.ask("c1", "a", "b", to="c2")
    run.ask("c2", to="c3")
    assert_rejected(run, DUPLICATE, "'a'", "reader r (request 1, cursor 'c1'")


def test_duplicate_in_an_answer_that_was_not_adopted():
    run = Run()
    run.publish("a")
    run.reader()
    run.ask(None, "a", to="c1")
    run.ask("c1", "a", to="c2", adopted=False)
    run.ask("c1", to="c3")
    assert_rejected(run, DUPLICATE, "'a'", "request 1")


def test_duplicate_within_one_answer():
    run = Run()
    run.publish("a")
    run.watch("r", "a", "a")
    assert_rejected(run, DUPLICATE, "'a'", "twice in one answer", "reader r")


def concurrent(*keys, channel="orders"):
    """A run with a transaction for each key, all open at once, so that any order is right."""
    run = Run()
    rows = [run.row(key, at=1, channel=channel) for key in keys]
    for row in rows:
        run.publish(row, sent=2, returned=3)
    return run


def test_disagreement_of_two_readers_names_two_neighbours():
    run = concurrent("a", "b", "c", "d")
    run.watch("r1", "a", "b", "c", "d")
    run.watch("r2", "a", "c", "b", "d")
    report = assert_rejected(run, DISAGREEMENT, "reader r2 got 'c'", "before 'b'", "reader r1")
    assert [violation.keys for violation in report.violations] == [("c", "b")]


def test_disagreement_in_the_last_answer_of_a_reader_that_was_killed_before_it_adopted_it():
    run = concurrent("a", "b", "c")
    run.watch("r", "a", "b", "c")
    run.reader("killed", complete=False)
    run.ask(None, "a", to="c1", reader="killed")
    run.ask("c1", "c", "b", to="c2", adopted=False, reader="killed")
    assert_rejected(run, DISAGREEMENT, "reader killed got 'c'", "before 'b'", "reader r")


def test_disagreement_across_channel_sets_that_have_two_events_in_common():
    run = concurrent("a", "b", "c")
    run.publish(run.row("s", at=1, channel="stock"), sent=2, returned=3)
    run.watch("r1", "a", "s", "b", "c", channels=("orders", "stock"))
    run.watch("r2", "c", "a", "b")
    assert_rejected(run, DISAGREEMENT, "'c'", "'a'", "reader r2")


def test_disagreement_in_a_ring_of_three_readers_no_two_of_which_disagree():
    run = Run()
    for key, channel in (("a", "x"), ("b", "y"), ("c", "z")):
        run.publish(run.row(key, at=1, channel=channel), sent=2, returned=3)
    run.watch("r1", "a", "b", channels=("x", "y"))
    run.watch("r2", "b", "c", channels=("y", "z"))
    run.watch("r3", "c", "a", channels=("z", "x"))
    assert_rejected(run, DISAGREEMENT, "no one order", "'a'", "'b'", "'c'", "a reader got them so")


def test_disagreement_with_a_transaction_whose_rows_no_reader_has_both_of():
    """By r1, b came before c, and by r2, c before a: so b before a, but they were published as a, b."""
    run = Run()
    run.publish(run.row("a", at=1, channel="x"), run.row("b", at=2, channel="y"), sent=3, returned=4)
    run.publish(run.row("c", at=1, channel="z"), sent=3, returned=4)
    run.watch("r1", "b", "c", channels=("y", "z"))
    run.watch("r2", "c", "a", channels=("z", "x"))
    assert_rejected(run, DISAGREEMENT, "no one order", "they were published so")


def test_disagreement_with_real_time_between_events_that_no_reader_has_both_of():
    """By r1, b came before c, and by r2, c before a: so b before a, whose commit returned before b's INSERT."""
    run = Run()
    run.publish(run.row("c", at=1, channel="z"), sent=20, returned=21)
    run.publish(run.row("a", at=2, channel="x"), sent=3, returned=4)
    run.publish(run.row("b", at=5, channel="y"), sent=6, returned=7)
    run.clock = 21
    run.watch("r1", "b", "c", channels=("y", "z"))
    run.watch("r2", "c", "a", channels=("z", "x"))
    assert_rejected(run, DISAGREEMENT, "no one order", "commit returned before the other's INSERT was sent")


def test_disagreement_of_two_answers_to_one_cursor():
    run = concurrent("a", "b")
    run.reader()
    run.ask(None, "a", "b", to="c1", adopted=False)
    run.ask(None, "b", "a", to="c1")
    run.ask("c1", to="c2")
    assert_rejected(run, DISAGREEMENT, "reader r asked twice with cursor None", "'a'", "'b'")


def test_disagreement_of_what_came_after_a_cursor_that_the_reader_went_back_to():
    run = concurrent("a", "b", "c")
    run.reader()
    run.ask(None, "a", to="c1")
    run.ask("c1", "b", to="c2")
    run.ask("c1", "c", "b", to="c3")
    run.ask("c3", to="c3")
    assert_rejected(run, DISAGREEMENT, "asked twice with cursor 'c1'", "'b'", "'c'")


def test_rows_of_a_transaction_out_of_their_order():
    run = Run()
    run.publish("a", "b")
    run.watch("r1", "b", "a")
    run.watch("r2", "b", "a")
    report = assert_rejected(run, TRANSACTION_ORDER, "reader r1 got 'b'", "before 'a'", "in A of p")
    assert len(report.violations) == 2


def test_rows_of_a_transaction_out_of_their_order_with_others_between():
    run = Run()
    first, other, last = run.row("a1", at=1), run.row("b", at=2), run.row("a2", at=3)
    run.publish(other, sent=5, returned=6)
    run.publish(first, last, sent=5, returned=6)
    run.watch("r", "a2", "b", "a1")
    assert_rejected(run, TRANSACTION_ORDER, "'a2'", "'a1'")


def test_an_event_before_one_whose_commit_had_returned_before_its_insert():
    run = Run()
    run.publish("a")
    run.publish("b")
    run.watch("r1", "b", "a")
    run.watch("r2", "b", "a")
    facts = ("reader r1 got 'b'", "INSERT sent 4.000000", "before 'a'", "returned 3.000000")
    assert_rejected(run, REAL_TIME_ORDER, *facts)


def test_the_last_row_of_a_long_transaction_before_one_that_was_committed_in_the_meantime():
    run = Run()
    first, other, last = run.row("a1", at=1), run.row("b", at=2), run.row("a2", at=10)
    run.publish(other, sent=3, returned=4)
    run.publish(first, last, sent=11, returned=12)
    run.watch("r", "a1", "a2", "b")
    assert_rejected(run, REAL_TIME_ORDER, "'a2'", "before 'b'")


def test_real_time_says_nothing_of_a_commit_that_returned_in_the_moment_of_the_insert():
    run = Run()
    run.publish(run.row("a", at=1), sent=2, returned=3)
    run.publish(run.row("b", at=3), sent=4, returned=5)
    run.watch("r", "b", "a")
    assert_accepted(run)


def test_cursor_below_its_requests_by_position():
    run = Run()
    run.publish("a")
    run.reader()
    run.ask(None, "a", to="c7")
    run.ask("c7", to="c6")
    assert_rejected(run, CURSOR, "cursor 'c7'", "'c6'", "reader r", position_of=position_of)
    assert_accepted(run)


def test_cursor_that_the_reader_had_before_is_below_without_positions():
    run = Run()
    run.publish("a", "b")
    run.reader()
    run.ask(None, "a", to="old")
    run.ask("old", "b", to="new")
    run.ask("new", to="old")
    assert_rejected(run, CURSOR, "cursor 'new'", "'old'", "reader r")


def test_cursor_that_stays_though_events_came():
    run = Run()
    run.publish("a")
    run.reader()
    run.ask(None, to="x")
    run.ask("x", "a", to="x")
    run.ask("x", to="x")
    assert_rejected(run, CURSOR, "cursor 'x'", "reader r")


@pytest.mark.parametrize("status", [400, 410])
def test_cursor_that_the_server_gave_and_then_refused(status):
    run = Run()
    run.publish("a")
    run.watch("r", "a")
    run.ask("c2", status=status, to="c2" if status == 410 else None)
    run.ask("c2", to="c2")
    assert_rejected(run, CURSOR, "cursor 'c2'", f"refused with {status}", "reader r")


def test_cursor_of_a_late_start_that_lies_before_what_others_had_got():
    run = Run()
    run.publish("a")
    run.watch("r", "a")
    run.reader("late")
    run.ask(NOW, to="c0", reader="late")
    run.ask("c0", "a", to="c1", reader="late")
    run.ask("c1", to="c1", reader="late")
    assert_rejected(run, CURSOR, "reader late", "'a'", "seen at 4.500000")


def test_cursor_now_that_is_answered_with_events():
    run = Run()
    run.publish("a")
    run.watch("r", "a")
    run.reader("late")
    run.ask(NOW, "a", to="c1", reader="late")
    run.ask("c1", to="c1", reader="late")
    assert_rejected(run, CURSOR, "reader late", "where the log ends")


def test_unfinished_reader_that_stopped_asking_before_the_last_commit():
    run = Run()
    run.publish("a")
    run.watch("r", "a")
    run.publish(run.row("s", channel="stock"))
    run.watch("other", "s", channels=("stock",))
    assert_rejected(run, UNFINISHED, "reader r", "last commit at 8.000000", "at 5.000000")


@pytest.mark.parametrize("end", ["events", "lost", "refused", "now", "nothing"])
def test_unfinished_reader_whose_last_answer_says_not_that_it_is_quiet(end):
    run = Run()
    run.publish("a")
    run.watch("r", "a")
    run.reader("stopped")
    if end != "nothing":
        run.ask(None, "a", to="c1", reader="stopped")
    if end == "lost":
        run.ask("c1", status=NO_ANSWER, reader="stopped")
    elif end == "refused":
        run.ask("c1", status=503, reader="stopped")
    elif end == "now":
        run.ask(NOW, to="c1", reader="stopped")
    assert_rejected(run, UNFINISHED, "reader stopped")


def test_unfinished_publisher():
    run = Run()
    run.publish("a", "b")
    run.publish("c", outcome=ROLLED_BACK)
    run.watch("r", "a", "b")
    run.records.append(Publisher("p", 3))
    assert_accepted(run)
    run.records.append(Publisher("p", 4))
    assert_rejected(run, UNFINISHED, "publisher p", "3 rows of 4")


# What it cannot judge


def without(kind):
    run = Run()
    run.publish("a")
    run.watch("r", "a")
    return [record for record in run.records if type(record) is not kind]


@pytest.mark.parametrize("kind", [Publisher, Transaction, Reader, Answer])
def test_a_history_without_one_of_its_kinds_is_nothing_to_judge(kind):
    with pytest.raises(HistoryError, match="nothing to judge"):
        History.of(without(kind))


def test_an_empty_history_is_nothing_to_judge():
    with pytest.raises(HistoryError, match="nothing to judge"):
        History.of([])


def test_no_complete_reader_or_no_row_is_nothing_to_judge():
    run = Run()
    run.publish("a")
    run.reader(complete=False)
    run.ask(None, "a", to="c1")
    with pytest.raises(HistoryError, match="nothing to judge: no reader is complete"):
        run.judge()
    with pytest.raises(HistoryError, match="nothing to judge: no row"):
        History.of([*without(Transaction), Transaction("t", "p", COMMITTED, (), 1.0, 2.0)])


@pytest.mark.parametrize("outcome", [ROLLED_BACK, UNKNOWN, COMMITTED])
def test_events_that_are_owed_to_nobody_are_nothing_to_judge(outcome):
    run = Run()
    run.publish(run.row("a", channel="stock" if outcome == COMMITTED else "orders"), outcome=outcome)
    run.watch("r")
    with pytest.raises(HistoryError, match="nothing to judge: no event was owed"):
        run.judge()


def bad(change):
    run = Run()
    run.publish("a", "b")
    run.watch("r", "a", "b")
    change(run)
    return run


BAD = {
    "nobody declared publisher q": lambda run: run.records.append(Transaction("t", "q", ROLLED_BACK, ())),
    "nobody declared reader q": lambda run: run.ask(None, reader="q"),
    "asks for no channel": lambda run: run.reader("q", channels=()),
    "reader r: answer 1 is missing, then comes 2": lambda run: run.records.pop() and run.ask("c2"),
    "before the one before it returned": lambda run: run.ask("c2", at=0.0),
    "'key', 'a'.* again in A2": lambda run: run.records.append(
        Transaction("A2", "p", ROLLED_BACK, (run.row("a", at=1),))
    ),
    "'id', 'same'.* again in X": lambda run: run.publish(run.row("x", id="same"), run.row("y", id="same")),
    "two different transactions are called A": lambda run: run.publish("A"),
    "though it never adopted that cursor": lambda run: run.ask("c99"),
    "outcome 'perhaps'": lambda run: run.publish("x", outcome="perhaps"),
    "when was its commit sent": lambda run: Transaction("t", "p", UNKNOWN, ()),
    "when did its commit return": lambda run: Transaction("t", "p", COMMITTED, (), 1.0),
    "not in order": lambda run: run.publish("x", sent=0.0),
    "returned before it was sent": lambda run: run.publish(Row("x", "orders", 1, 5.0, 4.0), sent=6.0),
    "returned before it was asked for": lambda run: Answer("r", 0, None, 2.0, 1.0, 204),
    "has events and status 503": lambda run: run.ask("c2", "a", status=503),
    "has no cursor to adopt": lambda run: Answer("r", 0, None, 1.0, 2.0, 503, "c1", True),
}


@pytest.mark.parametrize("message", BAD)
def test_a_history_that_contradicts_itself_is_an_error_that_says_why(message):
    with pytest.raises(HistoryError, match=message):
        bad(BAD[message]).judge()


# Its files


def test_journals_are_read_back_without_a_last_line_that_was_cut(tmp_path):
    run = Run()
    run.publish("a", run.row("undone", undone=True, id="given"))
    run.watch("r", "a")
    journal = Journal(tmp_path / "1")
    for record in run.records[:2]:
        journal.write(record)
    journal.close()
    (tmp_path / "2").write_text(
        "".join(to_line(record) + "\n" for record in run.records[2:]) + '{"record": "ans'
    )
    assert History.read([tmp_path / "1", tmp_path / "2"]) == History.of(run.records)


def test_of_two_lines_about_a_transaction_or_a_reader_the_later_counts():
    run = Run()
    run.reader("r", complete=False)
    run.publish("a", outcome=UNKNOWN)
    run.records.append(replace(run.records[-1], outcome=COMMITTED, commit_returned=run.tick()))
    run.watch("r", "a")
    history = History.of(run.records)
    assert history.transactions["A"].outcome == COMMITTED
    assert history.readers["r"].complete


@pytest.mark.parametrize(
    "line", ["", "[]", '{"record": "x"}', '{"record": "reader", "name": "r", "extra": 1}', "{"]
)
def test_a_line_that_is_no_record_is_an_error_that_shows_it(line, tmp_path):
    with pytest.raises(HistoryError, match="not a record of a history"):
        from_line(line)
    (tmp_path / "1").write_text(line + "\n")
    with pytest.raises(HistoryError):
        History.read([tmp_path / "1"])


# A simulated log


class Simulation:
    """Publishers, a sequencer and readers taking turns at random over one log in memory, which is correct.

    With `positions_are_ids` it is the home-made one instead: a row's position is the id that its INSERT got.
    """

    CHANNELS = ("x", "y", "z")

    def __init__(self, seed, *, positions_are_ids=False):
        self.random = random.Random(seed)
        self.positions_are_ids = positions_are_ids
        self.clock = 0
        self.records = []
        self.inserted = 0
        self.committed = []
        self.log = []
        self.publishing = 3
        actors = [self.publish(f"p{number}") for number in range(self.publishing)]
        actors += [
            self.sequence(),
            self.read("w1", self.CHANNELS, None),
            self.read("w2", self.CHANNELS, None),
        ]
        for number in range(3):
            channels = tuple(self.random.sample(self.CHANNELS, self.random.randint(1, 3)))
            start = self.random.choice([None, NOW])
            actors.append(self.read(f"r{number}", channels, start, complete=self.chance(0.7)))
        while actors:
            actor = self.random.choice(actors)
            if next(actor, self) is self:
                actors.remove(actor)

    def chance(self, share):
        return self.random.random() < share

    def tick(self):
        self.clock += 1
        return float(self.clock)

    @property
    def quiet(self):
        return not self.publishing and not self.committed

    def publish(self, name):
        count = 0
        for number in range(self.random.randint(2, 5)):
            rows = []
            for _ in range(self.random.randint(1, 4)):
                key = f"{name}-{count}"
                count += 1
                self.inserted += 1
                given = f"given-{key}" if self.chance(0.5) else None
                row = Row(
                    key,
                    self.random.choice(self.CHANNELS),
                    {"key": key, "n": self.inserted},
                    self.tick(),
                    None,
                )
                rows.append((self.inserted, replace(row, id=given, undone=self.chance(0.2))))
                yield
            transaction = Transaction(f"{name}/{number}", name, ROLLED_BACK, tuple(row for _, row in rows))
            if self.chance(0.8):
                transaction = replace(transaction, outcome=UNKNOWN, commit_sent=self.tick())
                self.records.append(transaction)
                yield
                lost_answer = self.chance(0.2)
                if not lost_answer or self.chance(0.5):
                    self.committed += [entry for entry in rows if not entry[1].undone]
                    yield
                if not lost_answer:
                    transaction = replace(transaction, outcome=COMMITTED, commit_returned=self.tick())
            self.records.append(transaction)
            yield
        self.records.append(Publisher(name, count))
        self.publishing -= 1

    def sequence(self):
        while not self.quiet:
            self.committed.sort(key=lambda entry: entry[0])
            moved = (
                len(self.committed) if self.positions_are_ids else self.random.randint(0, len(self.committed))
            )
            self.log += self.committed[:moved]
            del self.committed[:moved]
            if self.positions_are_ids:
                self.log.sort(key=lambda entry: entry[0])
            yield

    def after(self, position, channels):
        """Positions and rows after *position*, and how far a worker that may be behind has read."""
        if self.positions_are_ids:
            behind = [entry for entry in self.log if entry[0] > position]
            end = max([position] + [number for number, _ in behind])
        else:
            end = len(self.log) if self.quiet else self.random.randint(position, len(self.log))
            behind = [(number + 1, self.log[number][1]) for number in range(position, end)]
        return [entry for entry in behind if entry[1].channel in channels], end

    def read(self, name, channels, cursor, complete=True):
        self.records.append(Reader(name, channels, False))
        turn, kept = 0, [cursor]
        while complete or self.chance(0.9):
            sent, late = self.tick(), self.quiet
            if self.chance(0.5):
                yield
            position = 0 if cursor is None else position_of(cursor) if cursor != NOW else self.head()
            found, end = self.after(position, channels)
            limit = 0 if cursor == NOW else self.random.randint(1, 5)
            more = len(found) > limit
            reached = position if cursor == NOW else found[limit - 1][0] if more else end
            events = tuple(self.seen(row) for _, row in found[:limit])
            status = 206 if more and events else 200 if events else 204
            if self.chance(0.1):
                answer = Answer(name, turn, cursor, sent, self.tick(), NO_ANSWER)
            else:
                adopted = self.chance(0.8)
                answer = Answer(name, turn, cursor, sent, self.tick(), status, f"c{reached}", adopted, events)
            self.records.append(answer)
            turn += 1
            if answer.adopted:
                kept = [answer.cursor] if cursor == NOW else [*kept, answer.cursor]
                cursor = answer.cursor
                if late and not events and kept[0] != NOW and complete and answer.request_cursor != NOW:
                    break
                if self.chance(0.05):
                    del kept[self.random.randint(1, len(kept)) :]
                    cursor = kept[-1]
            yield
        self.records.append(Reader(name, channels, complete))

    def head(self):
        return max([number for number, _ in self.log], default=0) if self.positions_are_ids else len(self.log)

    @staticmethod
    def seen(row):
        return Seen(row.id or "log-" + row.key, row.channel, row.type, row.key, row.data)


def transactions_of(records):
    """The last word on each transaction."""
    return list({record.name: record for record in records if isinstance(record, Transaction)}.values())


def kept_rows(records, outcome=COMMITTED):
    """Pairs of a transaction and a row of it that was not rolled back."""
    found = [transaction for transaction in transactions_of(records) if transaction.outcome == outcome]
    return [(transaction, row) for transaction in found for row in transaction.rows if not row.undone]


def answers_of(records, *readers):
    """The places in *records* of what *readers*, or all of them, were answered."""
    answers = [(at, record) for at, record in enumerate(records) if isinstance(record, Answer)]
    return [
        at
        for at, answer in answers
        if answer.status in ANSWERED and answer.reader in (readers or answer.reader)
    ]


def keys_seen(records):
    return {event.key for at in answers_of(records) for event in records[at].events}


def change(records, at, **changes):
    return [*records[:at], replace(records[at], **changes), *records[at + 1 :]]


def change_events(records, function, *readers):
    """*records* with `function(event)` for each event that *readers*, or all of them, got; None takes it out."""
    for at in answers_of(records, *readers):
        events = [function(event) for event in records[at].events]
        records = change(records, at, events=tuple(event for event in events if event is not None))
    return records


def choose(chance, things):
    things = sorted(things, key=repr)
    assume(things)
    return chance.choice(things)


def show(records, chance, row, reader="w1"):
    """*records* in which *reader* got an event for *row* in some answer."""
    at = choose(chance, [at for at in answers_of(records, reader) if records[at].adopted])
    events = list(records[at].events)
    events.insert(chance.randint(0, len(events)), Simulation.seen(row))
    return change(records, at, status=200, events=tuple(events))


def hide(records, key, *readers):
    return change_events(records, lambda event: None if event.key == key else event, *readers)


def swap(records, pair):
    """*records* in which every reader got one of *pair* in the place of the other."""
    turned = {one.key: Simulation.seen(other) for one, other in (pair, pair[::-1])}
    return change_events(records, lambda event: turned.get(event.key, event))


def pairs_of_one_channel(records):
    rows = kept_rows(records)
    return [(one, other) for one in rows for other in rows if one[1].channel == other[1].channel]


def drop_from_one_reader(records, chance):
    return hide(records, choose(chance, kept_rows(records))[1].key, "w1")


def drop_from_all_readers(records, chance):
    return hide(records, choose(chance, kept_rows(records))[1].key)


def turn_two_neighbours(records, chance):
    answers = [at for at in answers_of(records, "w1") if records[at].adopted and len(records[at].events) > 1]
    at = choose(chance, answers)
    events = list(records[at].events)
    place = chance.randrange(len(events) - 1)
    events[place : place + 2] = reversed(events[place : place + 2])
    return change(records, at, events=tuple(events))


def repeat_at_the_end(records, chance):
    answers = answers_of(records, "w1")
    event = choose(chance, [event for at in answers if records[at].adopted for event in records[at].events])
    return change(records, answers[-1], status=200, events=(event,))


def repeat_in_one_answer(records, chance):
    at = choose(chance, [at for at in answers_of(records) if records[at].events])
    return change(records, at, events=(*records[at].events, chance.choice(records[at].events)))


def alter(records, chance):
    row = choose(chance, kept_rows(records))[1]
    changes = [{"type": "t"}, {"id": "x"}, {"channel": "v"}, {"data": None}] + (
        [{"key": None}] if row.id else []
    )
    altered = chance.choice(changes)
    reader = chance.choice(["w1", "w2"])
    return change_events(
        records, lambda event: replace(event, **altered) if event.key == row.key else event, reader
    )


def resurrect(records, chance):
    gone = [row for transaction in transactions_of(records) for row in transaction.rows if row.undone]
    gone += [row for _, row in kept_rows(records, ROLLED_BACK)]
    return show(records, chance, choose(chance, gone))


def invent(records, chance):
    return show(records, chance, Row("never published", "x", None, 0.0))


def show_an_unknown_transaction_to_one_reader(records, chance):
    seen = keys_seen(records)
    hidden = [
        row
        for transaction, row in kept_rows(records, UNKNOWN)
        if seen.isdisjoint(row.key for row in transaction.rows)
    ]
    return show(records, chance, choose(chance, hidden))


def hide_an_unknown_transaction_from_one_reader(records, chance):
    seen = keys_seen(records) & {row.key for _, row in kept_rows(records, UNKNOWN)}
    return hide(records, choose(chance, seen), "w1")


def turn_a_transaction_for_all(records, chance):
    pairs = pairs_of_one_channel(records)
    turned = [(one[1], other[1]) for one, other in pairs if one[0] is other[0] and one[1] is not other[1]]
    return swap(records, choose(chance, turned))


def turn_real_time_for_all(records, chance):
    pairs = pairs_of_one_channel(records)
    turned = [(one[1], other[1]) for one, other in pairs if one[0].commit_returned < other[1].insert_sent]
    return swap(records, choose(chance, turned))


def lose_the_last_answer(records, chance):
    at = answers_of(records, chance.choice(["w1", "w2"]))[-1]
    return change(records, at, status=NO_ANSWER, cursor=None, adopted=False)


def refuse_the_last_cursor(records, chance):
    return change(records, answers_of(records, chance.choice(["w1", "w2"]))[-1], status=410)


def put_the_last_cursor_back(records, chance):
    at = answers_of(records, chance.choice(["w1", "w2"]))[-1]
    assume(records[at].request_cursor not in (None, "c0"))
    return change(records, at, cursor=f"c{position_of(records[at].request_cursor) - 1}")


def forget_a_transaction(records, chance):
    assume(len({transaction.name for transaction, _ in kept_rows(records)}) > 1)
    gone = choose(chance, transactions_of(records)).name
    return [record for record in records if not (isinstance(record, Transaction) and record.name == gone)]


CHANGES = {
    drop_from_one_reader: LOST,
    drop_from_all_readers: LOST,
    turn_two_neighbours: DISAGREEMENT,
    repeat_at_the_end: DUPLICATE,
    repeat_in_one_answer: DUPLICATE,
    alter: ALTERED,
    resurrect: PHANTOM,
    invent: PHANTOM,
    show_an_unknown_transaction_to_one_reader: TORN,
    hide_an_unknown_transaction_from_one_reader: TORN,
    turn_a_transaction_for_all: TRANSACTION_ORDER,
    turn_real_time_for_all: REAL_TIME_ORDER,
    lose_the_last_answer: UNFINISHED,
    refuse_the_last_cursor: CURSOR,
    put_the_last_cursor_back: CURSOR,
    forget_a_transaction: UNFINISHED,
}

SEEDS = st.integers(min_value=0, max_value=2**32)


@settings(deadline=None)
@given(seed=SEEDS)
def test_what_a_correct_log_did_is_accepted(seed):
    records = Simulation(seed).records
    assume(kept_rows(records))
    report = judge(History.of(from_line(to_line(record)) for record in records), position_of=position_of)
    assert report.held, str(report)


@settings(deadline=None)
@given(seed=SEEDS)
@pytest.mark.parametrize("mutate", CHANGES, ids=lambda mutate: mutate.__name__)
def test_one_change_to_what_a_correct_log_did_is_rejected(mutate, seed):
    records = Simulation(seed).records
    assume(kept_rows(records))
    report = judge(History.of(mutate(records, random.Random(seed))), position_of=position_of)
    assert CHANGES[mutate] in report.kinds, str(report)


@settings(deadline=None)
@given(seed=SEEDS)
def test_a_log_whose_positions_are_ids_is_rejected_when_a_reader_missed_an_event(seed):
    records = Simulation(seed, positions_are_ids=True).records
    owed = {row.key for _, row in kept_rows(records)}
    missed = {}
    for reader in ("w1", "w2"):
        got = {event.key for at in answers_of(records, reader) for event in records[at].events}
        missed.update((key, [*missed.get(key, []), reader]) for key in owed - got)
    assume(missed)
    report = judge(History.of(records))
    told = {violation.keys[0]: violation.readers for violation in report.violations if violation.kind == LOST}
    for key, readers in missed.items():
        assert set(readers) <= set(told[key])
