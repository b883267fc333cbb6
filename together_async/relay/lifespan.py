"""A client as long as its app: one line for each framework."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol


class Closable(Protocol):
    """A client, a hub, or whatever else has to be closed."""

    async def aclose(self) -> None:
        """Closes it."""
        ...


def lifespan(*closables: Closable) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    """Returns what a framework takes as the lifetime of an app: at its end all are closed, the last first.

    ```python
    client = AsyncTogether()
    app = FastAPI(lifespan=lifespan(client))  # Starlette too; Litestar(lifespan=[lifespan(client)])
    app.cleanup_ctx.append(lifespan(client))  # aiohttp.web
    ```

    A client makes its connections on first use, in the app's event loop, so nothing has to be done when the app starts.

    Args:
        *closables: Clients, hubs, and all else with an `aclose`.

    Raises:
        TypeError: Something has none.
    """
    for one in closables:
        if isinstance(one, type) or not callable(getattr(one, "aclose", None)):
            raise TypeError(
                f"lifespan: got a {type(one).__name__}, expected clients, hubs, and what else has an aclose"
            )

    @contextlib.asynccontextmanager
    async def run(_app: Any = None) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for one in closables:
                stack.push_async_callback(one.aclose)
            yield

    return run
