"""The yardstick: the shortest loop that looks correct, with aiohttp and msgspec. It checks nothing.

It decodes into narrow attrs classes of its own (`narrow`). With `read_bytes` it also bounds what asyncio's transport
reads at once, which saves an mmap per read; uvloop has no such attribute.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import msgspec

from benchmarks.clients import MESSAGES, Note, Settings
from benchmarks.clients.narrow import NarrowChunk, NarrowCompletion


class Client:
    def __init__(self, session: aiohttp.ClientSession, settings: Settings) -> None:
        self.session = session
        self.url = f"{settings.base_url}/chat/completions"
        self.read_bytes = settings.read_bytes
        self.decode = msgspec.json.Decoder(NarrowChunk).decode
        self.encode_body = msgspec.json.Encoder().encode
        self.decode_whole = msgspec.json.Decoder(NarrowCompletion).decode


@contextlib.asynccontextmanager
async def connect(settings: Settings) -> AsyncIterator[Client]:
    connector = aiohttp.TCPConnector(limit=0, ssl=settings.tls() or True)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield Client(session, settings)


def bound_reads(resp: aiohttp.ClientResponse, read_bytes: int | None) -> None:
    transport = resp.connection.transport if resp.connection else None
    if read_bytes and hasattr(transport, "max_size"):
        transport.max_size = read_bytes


async def consume(client: Client, model: str, note: Note) -> None:
    body = {"model": model, "messages": MESSAGES, "stream": True}
    decode = client.decode
    async with client.session.post(client.url, json=body, headers={"Authorization": "Bearer x"}) as resp:
        bound_reads(resp, client.read_bytes)
        read = resp.content.readany
        tail = b""
        while data := await read():
            *events, tail = (tail + data).split(b"\n\n")
            for event in events:
                payload = event[6:]
                if payload == b"[DONE]":
                    continue
                if note(decode(payload).choices[0].delta.content):
                    return


async def chunks(
    client: Client, model: str, messages: list[Any], options: dict[str, Any]
) -> AsyncIterator[NarrowChunk]:
    body = {"model": model, "messages": messages, "stream": True, **options}
    async with client.session.post(client.url, json=body) as resp:
        tail = b""
        async for data in resp.content.iter_any():
            *events, tail = (tail + data).split(b"\n\n")
            for event in events:
                if event != b"data: [DONE]":
                    yield client.decode(event[6:])


async def whole(client: Client, messages: list[Any]) -> str | None:
    body = client.encode_body({"model": "m", "messages": messages})
    headers = {"Content-Type": "application/json", "Authorization": "Bearer x"}
    async with client.session.post(client.url, data=body, headers=headers) as resp:
        completion: NarrowCompletion = client.decode_whole(await resp.read())
        return completion.choices[0].message.content


async def slowly(client: Client, model: str, pause: Callable[[], Awaitable[None]]) -> None:
    body = {"model": model, "messages": MESSAGES, "stream": True}
    async with client.session.post(client.url, json=body) as resp:
        bound_reads(resp, client.read_bytes)
        await resp.content.readany()
        await pause()
