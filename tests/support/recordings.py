"""A plain HTTP client of a recorder or a replay."""

import itertools
import math
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import attrs

from support.servers import KEY, chunked
from together_async.testing import (
    EmulatorServer,
    Recorder,
    Recording,
)
from together_async.testing.exchange import RecordedExchange

TIMEOUT_S = 10.0
TEXT = "The sky is blue."
RAINBOW = "Grüße 🌈 größer"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@attrs.frozen
class Got:
    """A response as a plain HTTP client saw it; `broken` when the body did not end in good order."""

    status: int
    headers: dict[str, str]
    body: bytes
    times: list[float]
    broken: bool


def asking(prompt: str = "Why?", **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": prompt}], "stream": True, **fields}


async def post(base_url: str, body: dict[str, Any], **headers: str) -> Got:
    pieces: list[bytes] = []
    times: list[float] = []
    broken = False
    headers = {"authorization": f"Bearer {KEY}", **headers}
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(TIMEOUT_S)) as session,
        session.post(f"{base_url}/chat/completions", json=body, headers=headers, allow_redirects=False) as response,
    ):
        try:
            async for data in response.content.iter_any():
                pieces.append(data)
                times.append(time.monotonic())
        except aiohttp.ClientError:
            broken = True
        return Got(
            response.status, {k.lower(): v for k, v in response.headers.items()}, b"".join(pieces), times, broken
        )


@asynccontextmanager
async def recording(path: Path, *args: Any, keep_prompts: bool = False, **kwargs: Any) -> AsyncIterator[Any]:
    """An emulator and a recorder before it."""
    async with (
        EmulatorServer(*args, **kwargs) as server,
        Recorder(path, upstream=server.base_url, keep_prompts=keep_prompts) as recorder,
    ):
        yield server, recorder


async def recorded_once(path: Path, *args: Any, ask: dict[str, Any] | None = None, **kwargs: Any) -> Got:
    async with recording(path, *args, **kwargs) as (_, recorder):
        return await post(recorder.base_url, ask or asking())


def only(path: Path) -> RecordedExchange:
    (exchange,) = Recording.load(path).exchanges
    return exchange


def body_of(exchange: RecordedExchange) -> bytes:
    return b"".join(data for _, data in exchange.pieces)


async def replayed(source: Path | Recording, speed: float = math.inf, **kwargs: Any) -> Got:
    loaded = source if isinstance(source, Recording) else Recording.load(source)
    async with EmulatorServer(loaded, replay_speed=speed, **kwargs) as server:
        return await post(server.base_url, asking())


def gaps(times: Iterable[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise(times)]


def chunked_body(*pieces: bytes) -> bytes:
    """A whole chunked body."""
    return b"".join(chunked(piece) for piece in (*pieces, b""))
