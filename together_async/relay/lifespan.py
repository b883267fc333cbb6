"""`lifespan`: closes clients and hubs at the end of an app, in one line for each framework."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol


class Closable(Protocol):
    """A client, a hub, or anything else with an `aclose`."""

    async def aclose(self) -> None:
        """Closes it."""
        ...


def lifespan(*closables: Closable) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    """Returns a lifespan for a framework's app: at its end all closables are closed, the last one first.

    ```python
    client = AsyncTogether()
    app = FastAPI(lifespan=lifespan(client))  # Starlette too; Litestar(lifespan=[lifespan(client)])
    app.cleanup_ctx.append(lifespan(client))  # aiohttp.web
    ```

    A client makes its connections on first use, in the app's event loop, so nothing has to be done when the app starts.

    Args:
        *closables: Clients, hubs, and anything else with an `aclose`.

    Raises:
        TypeError: An argument has no `aclose`.
    """
    for closable in closables:
        if isinstance(closable, type) or not callable(getattr(closable, "aclose", None)):
            raise TypeError(
                f"lifespan: got a {type(closable).__name__}, expected clients, hubs, and what else has an aclose"
            )

    @contextlib.asynccontextmanager
    async def run(_app: Any = None) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for closable in closables:
                stack.push_async_callback(closable.aclose)
            yield

    return run
