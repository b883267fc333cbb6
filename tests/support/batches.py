"""A service, files and runs for tests of whole batches."""

from __future__ import annotations

import asyncio
import collections
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.servers import KEY, MODEL, Call, ScriptedServer, response, whole
from together_async import AsyncTogether
from together_async.batch import BatchSummary

BUSY = response({"error": {"message": "busy"}}, status=503)
PRICES = [{"id": MODEL, "pricing": {"input": 1_000_000, "output": 1_000_000}}]
"""A dollar for each token."""


def answer(text: str = "Hello", *, prompt: int = 10, completion: int = 5, **changes: Any) -> bytes:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    body = {**whole(text), "usage": usage, **changes}
    return response({name: value for name, value in body.items() if value is not ...})


class Service(ScriptedServer):
    """Answers each prompt with the result of a function of the prompt and of how often it came; None is silence."""

    def __init__(self, reply: Callable[[str, int], bytes | None] | None = None, models: Any = PRICES) -> None:
        super().__init__(self._answer)
        self.reply = reply or (lambda prompt, times: answer(f"answer to {prompt}"))
        self.models = models
        self.asked: collections.Counter[str] = collections.Counter()
        self.at_once = self.most_at_once = 0
        self.gate: asyncio.Event | None = None
        self._change = asyncio.Event()

    async def _answer(self, call: Call) -> None:
        if call.target.endswith("/models"):
            data = response(self.models) if self.models is not None else response({}, status=404)
            await call.send(data)
            return
        prompt = call.json["messages"][-1]["content"]
        self.asked[prompt] += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self._change.set()
        try:
            if self.gate is not None:
                await self.gate.wait()
            data = self.reply(prompt, self.asked[prompt])
            if data is None:
                await call.hang()
            elif data == b"":
                call.reset()
            else:
                await call.send(data)
        finally:
            self.at_once -= 1

    async def busy(self, count: int, *, ever: bool = False) -> None:
        """Waits until `count` requests are in flight, or have ever come."""
        while (self.requests if ever else self.at_once) < count:
            self._change.clear()
            await self._change.wait()

    @property
    def requests(self) -> int:
        """How many chat requests came."""
        return self.asked.total()


class Files:
    """An input, an output, and what is in them."""

    def __init__(self, folder: Path) -> None:
        self.input, self.output = folder / "in.jsonl", folder / "out.jsonl"

    def write(self, count: int, **fields: Any) -> None:
        self.write_lines(*(request(f"r{number}", **fields) for number in range(count)))

    def write_lines(self, *lines: str) -> None:
        self.input.write_text("".join(line + "\n" for line in lines))

    @property
    def results(self) -> dict[str, Any]:
        """The lines of the output by custom_id; each is whole, and no custom_id is there twice."""
        data = self.output.read_bytes()
        assert not data or data.endswith(b"\n")
        lines = [json.loads(line) for line in data.splitlines()]
        found = {line["custom_id"]: line for line in lines}
        assert len(found) == len(lines), "a custom_id stands there twice"
        return found

    @property
    def superseded(self) -> list[dict[str, Any]]:
        path = self.output.with_name("out.jsonl.superseded")
        return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def request(custom_id: str, **fields: Any) -> str:
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"prompt of {custom_id}"}], "max_tokens": 5}
    return json.dumps({"custom_id": custom_id, "body": body | fields})


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def text_of(result: dict[str, Any]) -> str:
    return str(result["response"]["body"]["choices"][0]["message"]["content"])


def connected(server: Any, **options: Any) -> AsyncTogether:
    return AsyncTogether(KEY, base_url=server.base_url, **options)


async def run(client: AsyncTogether, files: Files, **options: Any) -> BatchSummary:
    """A run whose completions are not streamed, unless `options` say so."""
    return await client.run_batch(files.input, files.output, **{"stream": False, **options})


def refused(message: str = "no such thing", status: int = 400) -> bytes:
    return response({"error": {"message": message, "type": "invalid_request_error"}}, status=status)
