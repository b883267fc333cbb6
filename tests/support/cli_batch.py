"""Files of requests and results, and `together-async batch` against an emulator."""

import json
from pathlib import Path
from typing import Any

from support.terminal import environment, run
from together_async.testing import EmulatorServer, Entry

MODEL = "meta-llama/Llama-3.3-70B-Instruct-Turbo"


def write(path: Path, count: int, **fields: Any) -> Path:
    body = {"model": MODEL, "max_tokens": 20, **fields}
    lines = (
        {"custom_id": f"r{i}", "body": {**body, "messages": [{"role": "user", "content": f"Say {i}"}]}}
        for i in range(count)
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def results(path: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    by_name = {line["custom_id"]: line for line in lines}
    assert len(by_name) == len(lines), "a custom_id twice"
    return by_name


def env(server: EmulatorServer) -> dict[str, str]:
    return environment(TOGETHER_BASE_URL=server.base_url, TOGETHER_API_KEY="key")


def chats(server: EmulatorServer) -> list[Entry]:
    """What was asked, but for the prices."""
    return [entry for entry in server.journal if "chat" in entry.path]


async def ask(server: EmulatorServer, *arguments: object) -> tuple[int, str, str]:
    return await run("batch", *map(str, arguments), env=env(server))
