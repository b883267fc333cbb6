"""`RawEventDecoder`: the bytes unchanged, whole events at a time, and the end known all the same."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.event_bytes import cut, is_whole
from support.servers import (
    DONE,
    delta,
    sse,
)
from together_async.wire.chunks import ProtocolError
from together_async.wire.raw_events import RawEventDecoder

pytestmark = pytest.mark.usefixtures("no_leaks")

ROLE = sse(delta("", role="assistant"))
FIRST = sse(delta("a", role="assistant"))
WORDS = [sse(delta(f" word{i}")) for i in range(40)]
USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
FINISH = sse({**delta(finish="stop"), "usage": USAGE})
STREAM = ROLE + FIRST + b"".join(WORDS) + FINISH + DONE


def fed(decoder: RawEventDecoder, pieces: Sequence[bytes]) -> list[bytes]:
    """Feeds the pieces as a body; returns what was passed on, piece by piece."""
    passed: list[bytes] = []
    for piece in pieces:
        for payload in decoder.feed(piece):
            decoder.decode(payload)
        passed += decoder.passed
        decoder.passed = []
    for payload in decoder.end():
        decoder.decode(payload)
    return passed + decoder.passed


lines = st.sampled_from(["data: a", "data", ": ping", "id: 7", "event: x", "retry: 10", "data: [DONE", "data: é"])
line_ends = st.sampled_from(["\n", "\r\n", "\r"])


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """An event stream: events of some lines; one kind of line end, or any after any."""
    line_end = draw(line_ends)
    mixed = draw(st.booleans())
    body = json.dumps(delta("a"))
    text = ""
    for block in [[f"data: {body}"], *draw(st.lists(st.lists(lines, min_size=1, max_size=3), max_size=8))]:
        for line in [*block, ""]:
            end = draw(line_ends) if mixed else line_end
            # An LF after a CR is no line of its own.
            text += line + (end if line or end != "\n" or not text.endswith("\r") else "\r\n")
    return text.encode()


@given(bodies(), st.lists(st.integers(0, 1000), max_size=8), st.booleans())
@settings(max_examples=250)
def test_bytes_come_out_as_they_went_in_whole_events_at_a_time(body: bytes, places: list[int], tiny: bool) -> None:
    """However the body is cut: what is passed on is the body, and ends with an event each time."""
    pieces = [body[i : i + 1] for i in range(len(body))] if tiny else cut(body, places)
    decoder, passed = RawEventDecoder(), b""
    for piece in pieces:
        decoder.feed(piece)
        for data in decoder.passed:
            passed += data
            assert is_whole(passed)
        decoder.passed = []
    # The last empty line's own LF comes after the event, and with the next one.
    assert passed == body or passed + b"\n" == body.removesuffix(b"\r\n") + b"\r\n"


@given(st.lists(st.integers(0, len(STREAM)), max_size=10), st.booleans())
@settings(max_examples=100)
def test_the_end_is_known_whatever_the_split(places: list[int], tiny: bool) -> None:
    """`[DONE]` is seen where it is, also when it comes in pieces; every event but those decoded is counted."""
    decoder = RawEventDecoder()
    pieces = [STREAM[i : i + 1] for i in range(len(STREAM))] if tiny else cut(STREAM, places)
    assert b"".join(fed(decoder, pieces)) == STREAM
    assert decoder.done


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def test_nothing_waits_for_the_next_event(end: bytes) -> None:
    """An event is passed on with its own last byte, or a byte before it: no token comes late."""
    decoder = RawEventDecoder()
    for block in STREAM.split(b"\n\n")[:-1]:
        event = block + end + end
        decoder.feed(event[:-2])
        assert decoder.passed == []
        decoder.feed(event[-2:-1])
        decoder.feed(event[-1:])
        assert b"".join(decoder.passed).lstrip(b"\n") in (event, event.removesuffix(b"\n"))
        decoder.passed = []


@pytest.mark.parametrize(
    ("last", "is_looked_at"),
    [
        (WORDS[1], False),
        (b": ping\n\n", False),
        (DONE, True),
        (WORDS[1] + DONE, True),
        (DONE + WORDS[1], True),
        (b"event: x\n" + WORDS[1], True),
        (WORDS[1][:-1] + b"event: x\n\n", True),
        (b'data: {"error": "x"}\n\n', True),
        (b'data: {"choices": [], "error"\n\n', True),
    ],
)
@pytest.mark.parametrize("places", [[], [1], [7], [-1], [-2], [3, -3]])
def test_events_that_come_alone_are_passed_on_and_looked_at_if_they_matter(
    last: bytes, is_looked_at: bool, places: list[int]
) -> None:
    """Wherever the sign of an error or of the end stands in it, and in however many pieces it comes."""
    decoder = RawEventDecoder()
    for event in (FIRST, WORDS[0]):
        decoder.feed(event)
    assert decoder.passed == [FIRST, WORDS[0]]
    decoder.passed = []
    payloads = [
        payload for piece in cut(last, [place % len(last) for place in places]) for payload in decoder.feed(piece)
    ]
    assert b"".join(decoder.passed) == last
    assert bool(payloads) is is_looked_at


def test_what_lies_in_the_middle_is_not_decoded() -> None:
    """So broken JSON in the middle is passed on, for the client to find."""
    decoder = RawEventDecoder()
    assert len(decoder.feed(FIRST)) == 1
    for i in range(1000):
        assert decoder.feed(b'data: {"choices": nonsense %d}\n\n' % i) == []
    assert decoder.events == 1000
    assert decoder.end()


def test_the_end_is_kept_and_no_more() -> None:
    """Of a long stream the last 8 KiB and a bit, for the usage and the reasons that stand there."""
    decoder = RawEventDecoder()
    decoder.feed(FIRST)
    for _ in range(1000):
        decoder.feed(WORDS[0])
    assert 8192 <= sum(map(len, decoder._kept)) < 8192 + len(WORDS[0])
    payloads = decoder.end()
    assert 8192 // len(WORDS[0]) <= len(payloads) <= 8192 // len(WORDS[0]) + 1


def test_an_event_above_the_cap_is_refused() -> None:
    """It is refused before it is whole; an event of the cap's size is passed on."""
    decoder = RawEventDecoder(max_event_size=1000)
    decoder.feed(FIRST)
    decoder.feed(b"data: " + b"x" * 990)
    with pytest.raises(ProtocolError, match="at least 1006 bytes, expected at most 1000"):
        decoder.feed(b"x" * 10)


@pytest.mark.parametrize("size", [4096, 65_536])
def test_the_cost_of_a_long_event_is_linear(size: int) -> None:
    """Its length and the pieces it comes in do not multiply: eight times the bytes, about eight times the time.

    (Copied again for every piece it would be sixty-four times; of this thread's time, and the best of three.)
    """

    def cost(length: int) -> float:
        event, decoder = b"data: " + b"x" * length + b"\n\n", RawEventDecoder()
        decoder.feed(FIRST)
        began = time.thread_time()
        for i in range(0, len(event), size):
            decoder.feed(event[i : i + size])
        taken = time.thread_time() - began
        assert len(b"".join(decoder.passed)) == len(event) + len(FIRST)
        return taken

    few, many = (min(cost(length) for _ in range(3)) for length in (1 << 20, 8 << 20 if size < 10_000 else 7 << 20))
    assert many < 30 * few + 0.01
