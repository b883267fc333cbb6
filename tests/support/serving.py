"""`together-async serve` as a process on a free port."""

import asyncio
import contextlib
import re
import signal
from typing import Any, Self

import aiohttp

from support.servers import KEY
from support.terminal import TIMEOUT_S, environment, start


class Serving:
    """The command on a free port, with its output line by line."""

    def __init__(self, *arguments: str, banner: str = "out", **variables: str) -> None:
        self._arguments = ("serve", "--port", "0", *arguments)
        self._banner = banner
        self._env = environment(**variables)
        self.errors = ""

    async def __aenter__(self) -> Self:
        self.process = await start(*self._arguments, env=self._env)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.out, self.err = self.process.stdout, self.process.stderr
        shown = self.out if self._banner == "out" else self.err
        first = await self.line(shown)
        found = re.search(r"http://\S+/v1", first)
        assert found is not None, first + (await self.err.read()).decode()
        self.base_url = found[0]
        self.banner = first
        while not self.banner.endswith("'\n\n") and "-q" not in self._arguments:
            self.banner += await self.line(shown)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.communicate()

    async def line(self, stream: asyncio.StreamReader | None = None) -> str:
        return (await asyncio.wait_for((stream or self.out).readline(), TIMEOUT_S)).decode()

    async def stop(self, signal_number: signal.Signals = signal.SIGTERM) -> tuple[int | None, str, str]:
        self.process.send_signal(signal_number)
        out, err = await asyncio.wait_for(self.process.communicate(), TIMEOUT_S)
        return self.process.returncode, out.decode(), err.decode()

    async def ask(self, prompt: str = "Why?", *, key: str = KEY, **fields: Any) -> tuple[int, bytes]:
        body = {"model": "m", "messages": [{"role": "user", "content": prompt}], "stream": True, **fields}
        headers = {"authorization": f"Bearer {key}"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.base_url}/chat/completions", json=body, headers=headers) as response,
        ):
            try:
                return response.status, await response.read()
            except aiohttp.ClientError:
                return response.status, b"broken"
