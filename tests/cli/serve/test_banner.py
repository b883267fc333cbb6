"""What `together-async serve` prints at the start."""

import asyncio
import re
import shutil

from support.servers import KEY
from support.serving import Serving
from support.terminal import TIMEOUT_S


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
