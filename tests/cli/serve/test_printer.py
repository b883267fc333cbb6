"""The printer of lines, whose reader may leave."""

import asyncio

from support.serving import Serving
from support.terminal import TIMEOUT_S


class TestStopping:
    async def test_a_reader_that_leaves_ends_it_silently(self) -> None:
        """`| head`: the next line finds nobody."""
        async with Serving() as serving:
            serving.process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]  # asyncio's own pipe
            await serving.ask()
            err = await asyncio.wait_for(serving.err.read(), TIMEOUT_S)
            assert (await serving.process.wait(), err) == (0, b"")
