"""The server of canned event streams."""

import pytest

from benchmarks.harness.event_server import MODEL, SCENARIOS


@pytest.mark.parametrize("model", [b"bench.blast.100.64", b"together_ai/bench.blast.100.64"])
def test_the_model_names_the_scenario(model: bytes) -> None:
    match = MODEL.search(b'{"model": "%b", "stream": true}' % model)
    assert match is not None
    assert match[1] in SCENARIOS
    assert match[2].split(b".")[1:] == [b"100", b"64"]
