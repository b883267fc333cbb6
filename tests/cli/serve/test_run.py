"""`together-async serve` from its start to its end, and as a recorder."""

import re
import signal
import time
from pathlib import Path

import pytest

from support.servers import KEY
from support.serving import Serving
from together_async import AsyncTogether
from together_async.testing import (
    EmulatorServer,
    Recording,
)


class TestRecord:
    async def test_recorded_and_replayed(self, tmp_path: Path) -> None:
        """One command is the proxy, the other answers from its file, without key and prompt in it."""
        path = tmp_path / "day.jsonl"
        async with (
            EmulatorServer("A fine answer.", tokens_per_second=100) as upstream,
            Serving("--record", str(path), "--upstream", upstream.base_url) as serving,
        ):
            assert serving.banner.startswith(
                f"Recording at {serving.base_url}, what {upstream.base_url} answers, to {path} (Ctrl-C stops)\n"
            )
            assert f"  export TOGETHER_BASE_URL={serving.base_url}\n" in serving.banner
            status, first = await serving.ask("a secret prompt")
            assert status == 200
            assert upstream.journal[0].headers["authorization"] == f"Bearer {KEY}"
            assert re.search(
                r"200 complete +4 tokens  first token 0\.\d\d s  [\d.]+ tokens/s  m\n", await serving.line()
            )
            code, _, err = await serving.stop()
        assert (code, err) == (143, "Stopped after 1 exchange.\n")
        assert b"secret" not in path.read_bytes()
        assert KEY.encode() not in path.read_bytes()
        elapsed = Recording.load(path).exchanges[0].pieces[-1][0]
        for speed, least, most in (((), elapsed, 5.0), (("--replay-speed", "inf"), 0.0, elapsed)):
            async with Serving("--replay", str(path), *speed) as serving:
                started = time.monotonic()
                assert await serving.ask("another") == (200, first)
                assert least - 0.005 <= time.monotonic() - started < most + 0.1

    async def test_prompts_on_demand(self, tmp_path: Path) -> None:
        path = tmp_path / "day.jsonl"
        async with (
            EmulatorServer("Fine.") as upstream,
            Serving("--record", str(path), "--upstream", upstream.base_url, "--keep-prompts", "-q") as serving,
        ):
            await serving.ask("a public prompt")
            assert (await serving.stop())[0] == 143
        assert b"a public prompt" in path.read_bytes()

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    async def test_a_full_disk(self) -> None:
        async with (
            EmulatorServer("Fine.") as upstream,
            Serving("--record", "/dev/full", "--upstream", upstream.base_url) as serving,
        ):
            assert [(await serving.ask())[0] for _ in range(2)] == [200, 500]
            code, _, err = await serving.stop()
        assert (code, err) == (1, "Error: the recording can't be written: No space left on device\n")


class TestStopping:
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    async def test_with_a_stream_under_way(self, number: signal.Signals, code: int) -> None:
        """At once, with a line for the stream, and without a traceback."""
        async with (
            Serving("--fault", "stall:after_token=1", "--say", "one two") as serving,
            AsyncTogether(KEY, base_url=serving.base_url) as client,
            client.stream("Why?", model="m") as stream,
        ):
            await anext(aiter(stream))
            ended, out, err = await serving.stop(number)
        assert ended == code
        assert "200 broken off     1/2 tokens" in out
        assert err == "Stopped after 1 request.\n"
