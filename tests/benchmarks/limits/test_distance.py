"""The proxy that holds everything back."""

import asyncio
from typing import cast

from benchmarks.limits.distance import ClientEnd, Later


async def test_what_is_held_back_comes_in_order_and_so_does_the_end() -> None:
    sent: list[str] = []
    closed = asyncio.Event()

    class Receiver:
        def is_closing(self) -> bool:
            return closed.is_set()

        def write(self, data: bytes) -> None:
            sent.append(data.decode())

        def close(self) -> None:
            closed.set()

    later = Later(asyncio.get_running_loop(), 0.0)
    for data in (b"a", b"b", b""):
        later.add(data)
    await asyncio.sleep(0)  # some of it may be due before anybody takes it
    later.connect(cast("asyncio.Transport", Receiver()))
    await closed.wait()
    assert sent == ["a", "b"]


async def test_a_connection_passes_both_ways_until_either_end_leaves() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(5))
        await writer.drain()
        writer.close()

    loop = asyncio.get_running_loop()
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    proxy = await loop.create_server(lambda: ClientEnd(port, 0.002), "127.0.0.1", 0)
    async with server, proxy:
        reader, writer = await asyncio.open_connection(*proxy.sockets[0].getsockname()[:2])
        writer.write(b"hello")
        assert await reader.read() == b"hello"
        writer.close()
        await writer.wait_closed()


async def test_what_is_sent_first_waits_for_the_handshake_too() -> None:
    loop = asyncio.get_running_loop()
    later = Later(loop, 0.5)
    later.not_before = loop.time() + 1.5
    later.add(b"hello")
    assert later.not_before - loop.time() > 1.4
