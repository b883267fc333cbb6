"""The bytes that the servers of the benchmarks send."""

import json
import re

from benchmarks.harness import event_bytes


def test_an_event_is_together_s_shape_and_about_320_bytes() -> None:
    event = event_bytes.event(b" the")
    assert 300 <= len(event) <= 340
    chunk = json.loads(event.removeprefix(b"data: "))
    assert chunk["choices"][0]["text"] == chunk["choices"][0]["delta"]["content"] == " the"
    assert json.loads(event_bytes.LAST.removeprefix(b"data: "))["choices"][0]["finish_reason"] == "stop"


def test_a_block_is_a_chunked_body_of_so_many_events() -> None:
    """The server sends it as it is: a wrong length would look like a slow client."""
    block, events = event_bytes.block(100, seed=1, events_per_chunk=16), b""
    while block:
        size, _, following = block.partition(b"\r\n")
        events, block = events + following[: int(size, 16)], following[int(size, 16) :].removeprefix(b"\r\n")
    assert events.count(b"\n\n") == 100
    assert event_bytes.block(100, 1, 16) == event_bytes.block(100, 1, 16)
    assert event_bytes.block(100, 1, 16) != event_bytes.block(100, 2, 16)


def test_stamps_are_all_of_one_length() -> None:
    assert len({len(event_bytes.stamped(seconds)) for seconds in (0.0, 1.5, 123456.789)}) == 1
    stamp = re.search(rb'"content":"([\d.]+)"', event_bytes.stamped(123456.789012))
    assert stamp is not None
    assert float(stamp[1]) == 123456.789012
