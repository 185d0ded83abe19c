"""What may be held again without being parsed: the one form of a request, what is cut out of it, and for how long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legacy_poll.cursors import Cursor
from legacy_poll.hold import Question
from legacy_poll.lanes.approvals import MOST_BYTES, Approvals, Parking, Requests, Terms, _cursor

HEADERS = b"Host: here\r\nCookie: a=1; cursor=2\r\nX: ?cursor=1-00000000-1-00000000 \r\n"
ONE, TWO = b"1-0123abcd-9-76543210", b"1-0123abcd-10-00000000"


def request(target=b"/stream?channel=a&cursor=" + ONE, headers=HEADERS, version=b" HTTP/1.1"):
    return b"GET " + target + version + b"\r\n" + headers + b"\r\n"


def recognise(data, varying=()):
    """What is left, and the cursor; the same from one that has seen other requests before."""
    known = Requests(varying).recognise(data)
    experienced = Requests(varying)
    for other in (request(), request(b"/stream?cursor=" + ONE + b"&_=7"), data):
        experienced.glance(other)
    assert experienced.recognise(data) == known
    if known is not None:
        assert experienced.glance(data) == known
    return known


def test_the_cursor_is_cut_out_and_nothing_else():
    left, cursor = recognise(request())
    assert cursor == Cursor("0123abcd", 9, "76543210")
    assert recognise(request(b"/stream?channel=a&cursor=" + TWO)) == (
        left,
        Cursor("0123abcd", 10, "00000000"),
    )
    first = recognise(request(b"/stream?cursor=" + ONE + b"&channel=a"))
    assert first[1] == cursor and first[0] != left


def test_the_stamp_of_jquery_is_cut_out_where_it_is_one():
    left = [
        recognise(request(b"/stream?cursor=" + ONE + b"&_=" + stamp))[0]
        for stamp in (b"1", b"1790000000000", b"", b"1x", b"1&_=2", b"1&_=3", b"%31")
    ]
    assert left[0] == left[1]
    assert len(set(left)) == len(left) - 1


def test_what_stands_in_another_parameters_value_is_not_cut_out():
    # An application may read `who`, and a question mark is a letter there.
    targets = [b"/stream?cursor=%s&who=a?_=%d" % (ONE, number) for number in (1, 2)]
    left = [recognise(request(target))[0] for target in targets]
    assert left[0] != left[1]
    assert recognise(request(b"/stream?who=a?cursor=" + ONE)) is None
    assert recognise(request(b"/stream?_=1&cursor=" + ONE)) == recognise(
        request(b"/stream?_=2&cursor=" + ONE)
    )


def test_long_lines_are_not_remembered():
    requests, cursors = Requests(), _cursor.cache_info().currsize

    def size():
        remembered = (requests._lines, requests._unstamped)
        return sum(len(text) + len(line.kept) for each in remembered for text, line in each.items())

    for number in range(300):
        target = b"/stream?cursor=%s&a=%d%s" % (ONE, number, b"x" * 10_000)
        for data in (request(target), request(target + b"&_=1")):
            assert requests.recognise(data) is not None
        # What no cursor is as long as is none, and is not remembered either.
        assert requests.recognise(request(b"/stream?cursor=%d%s" % (number, b"1" * 10_000))) is None
    assert size() == 0 and _cursor.cache_info().currsize <= cursors + 1
    assert requests.recognise(request()) and size() > 0


VARYING = ("X-Request-Id", "traceparent")


def test_headers_that_were_declared_may_vary_and_no_others():
    def left(*lines, varying=VARYING):
        return recognise(request(headers=HEADERS + b"".join(line + b"\r\n" for line in lines)), varying)[0]

    one = left(b"X-Request-Id: abc-1", b"Traceparent: 00-aa-bb-01", b"X-Other: 1")
    assert left(b"X-Request-Id: def-22/=", b"Traceparent: 00-cc-dd-00", b"X-Other: 1") == one
    others = [
        (b"X-Request-Id: abc-1", b"Traceparent: 00-aa-bb-01", b"X-Other: 2"),
        (b"X-Request-Id: abc-1", b"X-Other: 1", b"Traceparent: 00-aa-bb-01"),
        (b"X-Request-Id: abc-1", b"X-Other: 1"),
        (b"X-Request-Id: abc-1", b"X-Request-Id: abc-1", b"Traceparent: 00-aa-bb-01", b"X-Other: 1"),
        # Not of the characters, or too long: compared as it is.
        (b"X-Request-Id: ab c", b"Traceparent: 00-aa-bb-01", b"X-Other: 1"),
        (b"X-Request-Id: " + b"a" * 201, b"Traceparent: 00-aa-bb-01", b"X-Other: 1"),
        (b"X-Request-Id:", b"Traceparent: 00-aa-bb-01", b"X-Other: 1"),
        # Only looks like one.
        (b"XX-Request-Id: abc-1", b"Traceparent: 00-aa-bb-01", b"X-Other: 1"),
        (b"X-Request-Id : abc-1", b"Traceparent: 00-aa-bb-01", b"X-Other: 1"),
        (b"X-Other: X-Request-Id: abc-1", b"Traceparent: 00-aa-bb-01", b"X-Other: 1"),
    ]
    assert len({one, *(left(*lines) for lines in others)}) == len(others) + 1
    assert left(b"X-Request-Id: a", varying=()) != left(b"X-Request-Id: b", varying=())


def test_a_request_that_holds_the_mark_of_a_cut_is_not_recognised():
    data = request(headers=HEADERS + b"X-Request-Id:\0\r\n")
    for varying in ((), VARYING):
        assert recognise(data, varying) is None
    # What is only compared, too: else it would equal one that had a request id.
    assert Requests(VARYING).glance(data) is None


@pytest.mark.parametrize(
    "target",
    [
        b"/x&_=%s?cursor=" + ONE,
        b"/x?_=1&cursor=" + ONE + b"&a_=%s",
        b"/x?cursor=" + ONE + b"&b=c_=%s",
        b"/x?cursor=" + ONE + b"&amp;_=%s",
        b"/x?cursor=" + ONE + b"&a=?_=%sz",
    ],
)
def test_what_only_looks_like_a_stamp_stays(target):
    first, second = (recognise(request(target.replace(b"%s", each))) for each in (b"1", b"2"))
    assert first[0] != second[0]


REFUSED = {
    "not whole": request()[:-1],
    "headers that go on": request()[:-2],
    "a second request behind": request() * 2,
    "a body behind": request() + b"x",
    "an empty line first": b"\r\n" + request(),
    "another method": request().replace(b"GET ", b"HEAD ", 1),
    "a small method": request().replace(b"GET ", b"get ", 1),
    "HTTP/1.0": request(version=b" HTTP/1.0"),
    "no version": request(version=b""),
    "two spaces": request(version=b"  HTTP/1.1"),
    "a fragment": request(b"/stream?cursor=" + ONE + b"#x"),
    "no query": request(b"/stream"),
    "no cursor": request(b"/stream?channel=a"),
    "an empty cursor": request(b"/stream?cursor="),
    "now": request(b"/stream?cursor=now"),
    "two cursors": request(b"/stream?cursor=" + ONE + b"&cursor=" + ONE),
    "a second cursor that is empty": request(b"/stream?cursor=" + ONE + b"&cursor="),
    "a cursor in the path": request(b"/stream&cursor=" + ONE + b"?channel=a"),
    "a cursor in another's value": request(b"/stream?channel=a?cursor=" + ONE + b"&cursor=" + ONE),
    "another parameter's end": request(b"/stream?xcursor=" + ONE),
    "escapes": request(b"/stream?cursor=" + ONE.replace(b"-", b"%2d")),
    "a name with escapes": request(b"/stream?%63ursor=" + ONE),
    "something behind": request(b"/stream?cursor=" + ONE + b"x"),
    "a sign": request(b"/stream?cursor=1-0123abcd-+9-76543210"),
    "too many digits": request(b"/stream?cursor=1-0123abcd-" + b"9" * 19 + b"-76543210"),
    "too long": request(headers=b"X: " + b"x" * MOST_BYTES + b"\r\n"),
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_anything_else_is_not_recognised(data):
    assert recognise(data) is None


@given(
    st.integers(min_value=0, max_value=len(request()) - 1),
    st.binary(max_size=3),
    st.integers(min_value=0, max_value=3),
)
def test_one_byte_that_differs_elsewhere_is_another_request(place, put, cut):
    data = request()
    changed = data[:place] + put + data[place + cut :]
    known, other = recognise(data), recognise(changed)
    if other is not None and other[0] == known[0]:
        text = str(other[1]).encode("ascii")
        assert changed == data.replace(b"&cursor=" + ONE, b"&cursor=" + text, 1)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


TERMS = Terms(
    Parking(
        Question(frozenset("a"), None, False, 1, 25.0), 25.0, 204, "anne", 1000.0, lambda error: (None, "")
    ),
    None,
    "",
)
ONE_KEY = b"one"


def test_an_approval_ends_with_its_time(clock):
    approvals = Approvals(reauthorize_seconds=60, clock=clock)
    approvals.add(ONE_KEY, TERMS, authorised=clock())
    assert approvals.find(ONE_KEY, clock.now + 58.9).until == 1060.0
    assert approvals.find(ONE_KEY, clock.now + 59.1) is None and len(approvals) == 0


def test_an_approval_that_is_made_again_lives_longer(clock):
    approvals = Approvals(reauthorize_seconds=60, clock=clock)
    approvals.add(ONE_KEY, TERMS, authorised=clock())
    clock.now += 50
    approvals.add(ONE_KEY, TERMS, authorised=clock())
    clock.now += 50
    assert approvals.find(ONE_KEY, clock()).until == 1110.0 and len(approvals) == 1


def test_the_oldest_is_forgotten_first_and_what_is_over_makes_room(clock):
    approvals = Approvals(reauthorize_seconds=60, most=3, clock=clock)
    for key in (b"a", b"b", b"c"):
        approvals.add(key, TERMS, authorised=clock())
        clock.now += 1
    approvals.add(b"a", TERMS, authorised=clock())
    approvals.add(b"d", TERMS, authorised=clock())
    assert [key for key in (b"a", b"b", b"c", b"d") if approvals.find(key, clock())] == [b"a", b"c", b"d"]
    clock.now += 70
    approvals.add(b"e", TERMS, authorised=clock())
    assert len(approvals) == 1


def test_approvals_are_bounded_in_bytes(clock):
    approvals = Approvals(reauthorize_seconds=60, most_bytes=100, clock=clock)
    for key in (b"a" * 40, b"b" * 40, b"a" * 40, b"c" * 40):
        approvals.add(key, TERMS, authorised=clock())
    assert approvals.find(b"b" * 40, clock()) is None and len(approvals) == 2
    assert approvals.find(b"a" * 40, clock()) and approvals.find(b"c" * 40, clock())
    approvals.add(b"d" * 101, TERMS, authorised=clock())
    assert len(approvals) == 0


def test_without_a_time_nothing_is_approved(clock):
    approvals = Approvals(reauthorize_seconds=0, clock=clock)
    approvals.add(ONE_KEY, TERMS, authorised=clock())
    assert len(approvals) == 0


def test_terms_are_equal_where_nothing_tells_the_polls_apart():
    def key(client="", empty_status=204, hold_seconds=25.0, **question):
        asked = dict(channels=frozenset("a"), cursor=None, now=False, limit=1, hold_seconds=20.0, **question)
        parking = Parking(Question(**asked), hold_seconds, empty_status, "", 0.0, lambda error: (None, ""))
        return Terms(parking, None, client).key

    # How long this one was to wait, and who asked it, says nothing of the next: rights are noted by connection.
    assert key() == key(authorised_at=3) == key(subject="anne") == key(subject="anne", authorised_at=3)
    others = [
        key(),
        key("anne"),
        key(empty_status=200),
        key(hold_seconds=5.0),
    ]
    assert len(set(others)) == len(others)


def test_terms_that_came_from_a_poll_for_the_present_cursor_are_good_for_those_with_one():
    asked = Question(frozenset("a"), None, True, 1, 25.0, subject="anne", authorised_at=3)
    terms = Terms(Parking(asked, 25.0, 204, "anne", 0.0, lambda error: (None, "")), None, "")
    assert terms.key == TERMS.key and terms.question == TERMS.question
