"""The floor: the bytes of the body through aiohttp, without looking at them."""

from benchmarks.clients import MESSAGES, Note
from benchmarks.clients.raw import Client, bound_reads, connect

__all__ = ["connect", "consume"]


async def consume(client: Client, model: str, note: Note) -> None:
    """Calls `note` per piece of data, not per token: counting tokens would already be parsing."""
    body = {"model": model, "messages": MESSAGES, "stream": True}
    async with client.session.post(client.url, json=body, headers={"Authorization": "Bearer x"}) as resp:
        bound_reads(resp, client.read_bytes)
        read = resp.content.readany
        while await read():
            note("")
