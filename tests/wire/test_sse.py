"""The event-stream parser: equal to the standard's own text, whatever the network does to the bytes.

`read_slowly` is that text (WHATWG HTML 9.2.5 and 9.2.6) put into code line by line, on whole bodies, without a thought
for speed. Everything else compares the parser with it.
"""

import itertools
import pickle

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from support import paths
from support.sse_oracle import read_slowly
from together_async.wire.sse import _SMALL as SMALL
from together_async.wire.sse import EventStreamParser, EventTooLargeError, ServerSentEvent, encode_event

SAMPLES = sorted(paths.SAMPLES.glob("*.sse"))
ENOUGH = 1 << 30


# ------------------------------------------------------------------------------------------------- the slow reading


def feed_all(pieces, **options) -> list[ServerSentEvent]:
    parser = EventStreamParser(**options)
    return [event for piece in pieces for event in parser.feed(piece)]


def outcome(pieces, *, limit: int, plain: bool = True) -> tuple[list[ServerSentEvent], bool]:
    """The events of the pieces, and whether the cap was hit; `plain=False` never takes the short way."""
    parser = EventStreamParser(max_event_size=limit)
    feed = parser.feed if plain else parser.feed_any
    events = []
    try:
        for piece in pieces:
            events += feed(piece)
    except EventTooLargeError as error:
        return events + error.events, True
    return events, False


def cut(body: bytes, places) -> list[bytes]:
    """The body in pieces, cut at the places; some of them may be empty."""
    edges = [0, *sorted(place % (len(body) + 1) for place in places), len(body)]
    return [body[start:end] for start, end in itertools.pairwise(edges)]


# --------------------------------------------------------------------------------------------------------- samples


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_sample_whole_at_every_split_and_byte_by_byte(sample):
    """Every transcript gives the standard's events for every two-way split, byte by byte, and with bytes after it."""
    body = sample.read_bytes()
    expected = read_slowly(body)
    assert expected
    assert feed_all([body]) == expected
    for place in range(len(body) + 1):
        assert feed_all([body[:place], body[place:]]) == expected, place
    assert feed_all(body[i : i + 1] for i in range(len(body))) == expected
    assert feed_all([body, b": trailing", b"\ndata: unfinished"]) == expected


# ----------------------------------------------------------------------------------------------------- generated bodies

ends = st.sampled_from([b"\n", b"\r", b"\r\n"])
values = st.sampled_from(
    [
        b"",
        b" ",
        b"  two",
        b"x",
        b" x",
        b"a:b",
        b": x",
        b"\0",
        b"1\x002",
        b"12",
        b" 34",
        b"1.5",
        b"-1",
        b"\xd9\xa3",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"data: x",
    ]
)
names = st.sampled_from(
    [
        b"data",
        b"data",
        b"data",
        b"event",
        b"id",
        b"retry",
        b"",
        b"Data",
        b" data",
        b"dat",
        b"\xef\xbb\xbfdata",
        b"unknown",
    ]
)
whole_lines = st.builds(
    lambda name, colon, value: name + colon + value, names, st.sampled_from([b":", b": ", b""]), values
)
odd_bodies = st.builds(
    lambda head, lines, tail: head + b"".join(line + end for line, end in lines) + tail,
    st.sampled_from([b"", b"", b"\xef\xbb\xbf", b"\xef\xbb", b"\xef\xbb\xbf\xef\xbb\xbf"]),
    st.lists(st.tuples(st.one_of(st.just(b""), whole_lines), ends), max_size=12),
    st.one_of(st.just(b""), whole_lines),
)
near_plain = st.lists(
    st.sampled_from(
        [
            b"data: x\n\n",
            b"data: y\n\n",
            b"data: \n\n",
            b"data: \n",
            b"\n",
            b"\n\n",
            b"data:",
            b"data: ",
            b"d",
            b"event: e\n",
            b"data:z\n\n",
            b":c\n",
            b":c\n\n",
            b"\r",
            b"data: w\r\n\r\n",
            b"id: 1\n",
        ]
    ),
    max_size=10,
).map(b"".join)
soups = st.text(alphabet="\r\n: \0\ufeffdatevnid0", max_size=40).map(str.encode)
bodies = st.one_of(odd_bodies, near_plain, soups, st.binary(max_size=30))
places = st.lists(st.integers(0, 400), max_size=8)


@given(bodies, places)
@example(b"data: a\n\nevent: x\ndata:y\n\nd", [])
@example(b"data: a\n\n:c\n\nd", [9])
@example(b"data: x\r\n\r\n", [8])
@example(b"\xef\xbb\xbfdata: x\n\n", [1, 2])
@example(b"data: a\r\r\n\n", [9])
def test_any_bytes_in_any_pieces(body, places):
    """For any bytes and any pieces the events are the standard's: after each piece just those which are complete."""
    parser = EventStreamParser()
    events, fed = [], b""
    for piece in cut(body, places):
        events += parser.feed(piece)
        fed += piece
        assert events == read_slowly(fed)


@given(bodies)
def test_any_bytes_byte_by_byte(body):
    """One byte at a time is a split like any other, and the last event id is the standard's too."""
    parser = EventStreamParser()
    events = [event for i in range(len(body)) for event in parser.feed(body[i : i + 1])]
    assert events == read_slowly(body)
    if events and body.endswith(b"\n\n"):
        whole = EventStreamParser()
        whole.feed(body)
        assert parser.last_event_id == whole.last_event_id


@given(bodies, places)
def test_quick_and_full_path_agree(body, places):
    """`feed_plain` returns what `feed_any` returns for the same bytes, or None and has changed nothing."""
    short, long = EventStreamParser(), EventStreamParser()
    for piece in cut(body, places):
        before = repr(short)
        payloads = short.feed_plain(piece)
        expected = long.feed_any(piece)
        if payloads is None:
            assert repr(short) == before
            assert short.feed_any(piece) == expected
        else:
            assert payloads == [event.data for event in expected]
            assert {event.event for event in expected} <= {"message"}


sizes = st.sampled_from([0, 1, 100, SMALL - 9, SMALL - 8, SMALL - 7, SMALL, 2 * SMALL])
long_events = st.lists(
    st.builds(
        lambda start, size, inside, end: start + b"x" * (size // 2) + inside + b"y" * (size - size // 2) + end,
        st.sampled_from([b"data: ", b"data: ", b"data: ", b"data:", b":", b""]),
        sizes,
        st.sampled_from([b"", b"", b"", b"\n", b"\r", b"\n\n", b"\n\ndata: ", b"\ndata: "]),
        st.sampled_from([b"\n\n", b"\n\n", b"\n\n", b"\n", b"\n\n\n", b"\r\n\r\n", b""]),
    ),
    max_size=4,
)


@given(long_events, places, st.sampled_from([SMALL // 2, SMALL - 1, SMALL, ENOUGH]))
@example([b"data: " + b"x" * (SMALL - 8) + b"\n\n"], [], SMALL)
@example([b"data: " + b"x" * (SMALL - 9) + b"\n\n"], [], SMALL)
@example([b"data: x\ny\n\n", b"data: z\n\n"], [], ENOUGH)
def test_quick_and_full_path_agree_on_events_of_any_size(events, places, limit):
    """Events that come alone, cut or together, below and above the sizes that the quick path treats differently."""
    body = b"".join(events)
    for pieces in (events, cut(body, places), [body]):
        assert outcome(pieces, limit=limit) == outcome(pieces, limit=limit, plain=False)
    if limit == ENOUGH:
        assert feed_all(events) == feed_all([body]) == read_slowly(body)


@pytest.mark.parametrize(
    "event",
    [
        b"data: x\ry\n\n",
        b"data: x\r\n\r\n",
        b"data: x\ndata: y\n\n",
        b"data: x\n\n\n\n",
        b"data: x\n\n\n",
        b"data: \n\n",
        b"data:  \n\n",
        b"data: data: x\n\n",
        b"\xef\xbb\xbfdata: x\n\n",
        b"\ndata: x\n\n",
        b"data:x\n\n",
        b"data: x\n",
        b"data: \n",
        b"data: x\0y\n\n",
    ],
)
def test_a_lone_event_at_every_split_with_plain_ones_about_it(event):
    """A nearly plain event that comes alone is read by the standard, and so are the plain ones before and after it."""
    plain = b"data: plain\n\n"
    for before, after in itertools.product([b"", plain, b": comment\n"], [b"", plain, b"\ndata: z\n\n"]):
        expected = read_slowly(before + event + after)
        for place in range(len(event) + 1):
            assert feed_all([before, event[:place], event[place:], after]) == expected


# -------------------------------------------------------------------------------------------------------- single rules


def test_bom_once_and_only_at_the_start():
    """One byte order mark is dropped; a second, or one further on, belongs to the field's name (9.2.5)."""
    assert feed_all([b"\xef\xbb\xbfdata: x\n\n"]) == [ServerSentEvent(b"x")]
    assert feed_all([b"\xef\xbb\xbf\xef\xbb\xbfdata: x\n\n"]) == []
    assert feed_all([b"data: x\n\n\xef\xbb\xbfdata: y\n\n"]) == [ServerSentEvent(b"x")]


def test_lone_cr_ends_the_line_at_once():
    """An event ended by CR CR is there before the next byte, and an LF that follows is no line of its own."""
    parser = EventStreamParser()
    assert parser.feed(b"data: x\r\r") == [ServerSentEvent(b"x")]
    assert parser.feed(b"\ndata: y\n\n") == [ServerSentEvent(b"y")]


def test_event_without_data_is_not_dispatched_and_its_type_forgotten():
    """A block with a type and no data is no event, and does not name the next one (9.2.6)."""
    assert feed_all([b"event: ping\n\ndata: x\n\n"]) == [ServerSentEvent(b"x")]
    assert feed_all([b"data\n\n"]) == [ServerSentEvent(b"")]


def test_id_lasts_and_nul_is_refused():
    """An id holds for later events; one with NUL is ignored; an empty one clears it."""
    events = feed_all([b"id: 1\ndata: a\n\ndata: b\n\nid: 2\0\ndata: c\n\nid\ndata: d\n\ndata: e\n\n"])
    assert [event.id for event in events] == ["1", "1", "1", "", ""]


def test_retry_is_digits_only():
    """`retry` counts when it is ASCII digits; 5,000 of them are no crash."""
    for value, retry in ((b"10", 10), (b"1.5", None), (b"-1", None), (b"", None), (b"\xd9\xa3", None)):
        assert feed_all([b"retry: " + value + b"\ndata: x\n\n"])[0].retry == retry
    assert feed_all([b"retry: " + b"9" * 5000 + b"\ndata: x\n\n"])[0].retry is not None


def test_repr_shows_state_and_no_bytes():
    """The repr has the size of the pending bytes, and not the bytes."""
    parser = EventStreamParser(max_event_size=100)
    parser.feed(b"data: secret")
    assert repr(parser) == "<EventStreamParser 12 bytes pending of at most 100>"


# ------------------------------------------------------------------------------------------------------------- the cap


@given(bodies, places, st.integers(3, 60))  # 3: a byte order mark in pieces waits, and has to fit
@example(b"data: x\n:cccccccccc\n:cccccccccc\nabc", [9, 20], 32)
@example(b"data: x\n\ndata: " + b"y" * 40 + b"\n\n", [], 30)
def test_cap_has_one_outcome_for_every_split(body, places, limit):
    """Events before the oversize one, and whether there is one, depend on the bytes alone: no split changes them."""
    expected = outcome([body], limit=limit, plain=False)
    assert outcome([body], limit=limit) == expected
    assert outcome(cut(body, places), limit=limit) == expected
    assert outcome([body[i : i + 1] for i in range(len(body))], limit=limit) == expected
    if not expected[1]:
        assert expected[0] == read_slowly(body)


@pytest.mark.parametrize("step", [1, 7, ENOUGH])
def test_cap_counts_one_event_not_the_stream(step):
    """An event of the cap's size passes any number of times; a byte more is refused, with both numbers in the error."""
    fits = b"data: " + b"x" * 23 + b"\n\n"
    pieces = [fits * 50][:1] if step == ENOUGH else [(fits * 50)[i : i + step] for i in range(0, len(fits) * 50, step)]
    assert len(feed_all(pieces, max_event_size=30)) == 50
    parser = EventStreamParser(max_event_size=30)
    with pytest.raises(EventTooLargeError, match=r"at least 31 bytes, expected at most 30") as caught:
        parser.feed(fits + b"data: " + b"x" * 24 + b"\n\n")
    assert caught.value.events == [ServerSentEvent(b"x" * 23)]
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - made here
    assert (copy.size, copy.limit, copy.events, str(copy)) == (31, 30, caught.value.events, str(caught.value))


def test_cap_must_be_a_size():
    """A cap below one byte is a mistake."""
    with pytest.raises(ValueError, match="max_event_size: got 0"):
        EventStreamParser(max_event_size=0)


def test_work_is_linear_in_a_long_line():
    """A line in 64 KiB pieces is not copied again with each: the pending data is joined once, however long the line."""

    def waiting(size: int) -> tuple[int, int]:
        parser = EventStreamParser(max_event_size=ENOUGH)
        joined = 0
        piece = b"x" * 65536
        parser.feed(b"data: ")
        for _ in range(size // len(piece)):
            before = parser._tail
            parser.feed(piece)
            # Either the list of pieces has grown by one, or all that waited has been joined with the new piece.
            joined += len(piece) if parser._tail is before else parser._tail_size
        (event,) = parser.feed(b"\n\n")
        return joined, len(event.data)

    small, large = waiting(2**20), waiting(64 * 2**20)
    assert (small[1], large[1]) == (2**20, 64 * 2**20)
    assert large[0] <= 65 * small[0]


# ------------------------------------------------------------------------------------------------------------- encoding

one_line = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), min_size=1)


@given(
    st.one_of(st.binary(max_size=40), st.text(st.characters(codec="utf-8"), max_size=40), soups),
    st.none() | one_line,
    st.none() | one_line,
    st.none() | st.integers(0, 10**17),
)
def test_what_is_encoded_is_read_back(data, event, id, retry):
    """Data (its line endings as LF), type, id and retry survive the wire."""
    raw = data.encode() if isinstance(data, str) else data
    body = encode_event(data, event=event, id=id, retry=retry)
    expected = ServerSentEvent(
        raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n"), event=event or "message", id=id or "", retry=retry
    )
    assert feed_all([body]) == read_slowly(body) == [expected]
    assert feed_all([body, body]) == [expected, expected]


def test_plain_events_are_encoded_as_servers_write_them():
    """The form that the short way reads."""
    assert encode_event("x") == b"data: x\n\n"
    assert encode_event(b"a\nb", event="e", id="", retry=0) == b"event: e\nid: \nretry: 0\ndata: a\ndata: b\n\n"


@pytest.mark.parametrize("field", [{"event": "a\nb"}, {"event": "a\rb"}, {"id": "a\nb"}, {"id": "a\0b"}, {"retry": -1}])
def test_what_would_forge_a_field_is_refused(field):
    """A line break in a field would be another field."""
    with pytest.raises(ValueError, match=next(iter(field))):
        encode_event("x", **field)
