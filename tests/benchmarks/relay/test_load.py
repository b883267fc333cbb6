"""The API and the browsers."""

import pytest

from benchmarks.harness import event_bytes
from benchmarks.relay import load

EVENTS = [
    event_bytes.stamped(123456.789012),
    b'data: {"content": "0000123456.789012"}\r\n\r\n',
    b"id: 7\ndata: 0000123456.789012\n\n",
]


@pytest.mark.parametrize("event", EVENTS)
def test_the_time_is_found_in_every_backend_s_event(event: bytes) -> None:
    assert [float(found) for found in load.STAMP.findall(event)] == [123456.789012]
