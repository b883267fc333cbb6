"""Scripts for a `ScriptedServer` that several test files use."""

import asyncio
import contextlib
from collections.abc import Callable

from support.servers import LAST_CHUNK, Call, Script, delta, response, sse


def repeats(*pieces: bytes, every: float = 20.0) -> Script:
    """A script that sends the pieces of a stream, then the last of them every so many seconds for ever."""

    async def script(call: Call) -> None:
        await call.head()
        for piece in pieces:
            await call.chunk(piece)
        while not call.left.is_set():
            await call.chunk(pieces[-1])
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(call.left.wait(), every)

    return script


async def slow_ticks(call: Call) -> None:
    """A script that sends a token every 20 seconds for ever."""
    await repeats(sse(delta("t", role="assistant")))(call)


def sends(
    *pieces: bytes, end: str = "end", media_type: str = "text/event-stream", extra: bytes = b"", apart_s: float = 0.0
) -> Script:
    """A script that sends these pieces, one write each.

    Args:
        pieces: Of the body.
        end: Then "end" ends the body, "close" and "reset" the connection, and "hang" sends nothing more.
        media_type: The content type of the response.
        extra: More lines of its head.
        apart_s: Seconds between two pieces; with 0 most arrive together.
    """

    async def script(call: Call) -> None:
        await call.head(media_type=media_type, extra=extra)
        for piece in filter(None, pieces):  # an empty chunk would end the body
            await call.chunk(piece)
            await asyncio.sleep(apart_s)
        if end == "end":
            await call.send(LAST_CHUNK)
        elif end == "close":
            call.close()
        elif end == "reset":
            await asyncio.sleep(0.005)  # else it mostly overtakes what was sent
            call.reset()
        else:
            await call.hang()

    return script


def redirects(location: Callable[[], str], status: int = 307) -> Script:
    async def script(call: Call) -> None:
        await call.send(response(b"", status=status, extra=f"location: {location()}\r\n".encode()))

    return script


def stalls(*pieces: bytes, every: float | None = None) -> Script:
    async def script(call: Call) -> None:
        await call.send(*pieces)
        while every is not None and not call.left.is_set():
            await call.send(b" ")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(call.left.wait(), every)
        await call.hang()

    return script


JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 5000\r\n\r\n"
