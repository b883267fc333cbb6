"""`together-async serve` from its start to its end, and as a recorder."""

import asyncio
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from support.servers import KEY
from support.serving import Serving
from support.terminal import TIMEOUT_S
from together_async import AsyncTogether
from together_async.testing import (
    EmulatorServer,
    Recording,
)


class TestStart:
    async def test_says_where_it_is_and_how_to_try_it(self) -> None:
        """The two lines to paste are a shell's: the second answers."""
        async with Serving("--say", "Hello there") as serving:
            first, _, variables, *curl = serving.banner.splitlines()
            assert first == f"Emulating at {serving.base_url} (Ctrl-C stops)"
            assert variables == f"  export TOGETHER_BASE_URL={serving.base_url} TOGETHER_API_KEY=none"
            assert curl[0].startswith(f"  curl -N {serving.base_url}/chat/completions ")
            if shutil.which("curl"):
                shell = await asyncio.create_subprocess_shell(
                    "\n".join(curl), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
                )
                answer, _ = await asyncio.wait_for(shell.communicate(), TIMEOUT_S)
                assert answer.endswith(b"data: [DONE]\n\n")
                assert re.fullmatch(
                    r"\d\d:\d\d:\d\d  200 complete       2/2 tokens  first token \d\.\d\d s"
                    r"  meta-llama/Llama-3\.3-70B-Instruct-Turbo\n",
                    await serving.line(),
                )

    async def test_quiet_is_the_address_alone(self) -> None:
        async with Serving("-q") as serving:
            assert serving.banner == serving.base_url + "\n"
            await serving.ask()
            assert await serving.stop() == (143, "", "")

    async def test_no_key_is_shown(self) -> None:
        async with Serving("--api-key", KEY) as serving:
            assert "TOGETHER_API_KEY=...\n" in serving.banner
            assert '-H "authorization: Bearer $TOGETHER_API_KEY"' in serving.banner
            assert [(await serving.ask(key=key))[0] for key in (KEY, "another")] == [200, 401]
            _, out, err = await serving.stop()
        assert KEY not in serving.banner + out + err
        assert "401 refused" in out


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

    async def test_a_reader_that_leaves_ends_it_silently(self) -> None:
        """`| head`: the next line finds nobody."""
        async with Serving() as serving:
            serving.process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]  # asyncio's own pipe
            await serving.ask()
            err = await asyncio.wait_for(serving.err.read(), TIMEOUT_S)
            assert (await serving.process.wait(), err) == (0, b"")
