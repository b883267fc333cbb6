"""Servers and clients as processes, in one tiny real measurement."""

import pytest

from benchmarks.harness.processes import ChildError, ClientProcess, ServerProcess


def test_a_tiny_run_of_server_and_client() -> None:
    """Both processes, both directions, a second job on the same process, and a job that fails."""
    with ServerProcess() as server, ClientProcess("raw loop") as client:
        blast = client.run("stream.blast", server.base_url, streams=4, tokens=4000, timeout_s=10)
        assert 0 < blast["us"] < 1000
        endurance = client.run("stream.endurance", server.base_url, count=40, seed=1, timeout_s=10)
        assert endurance["tasks"] == 0
        with pytest.raises(ChildError, match="ended with"):
            client.run("stream.blast", "http://127.0.0.1:9/v1", streams=1, tokens=10, timeout_s=10)
