"""`EmulatorServer`: the emulator on a real socket, in the running event loop or in a thread of its own."""

from __future__ import annotations

import asyncio
import math
import ssl as ssl_module
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from together_async.testing.account import Account
from together_async.testing.connection import Connection
from together_async.testing.dialect import TOGETHER, Dialect
from together_async.testing.emulator import Emulator
from together_async.testing.journal import Entry
from together_async.testing.models import Model
from together_async.testing.recording import Recording
from together_async.testing.rules import Chooser, Rule
from together_async.testing.script import Script

START_SECONDS = 10.0
"""How long `with` waits for the thread to listen."""
HANDSHAKE_SECONDS = 3.0
"""How long a TLS handshake may take."""


class EmulatorServer(Emulator):
    """A server on loopback that speaks Together's API, answers by a script, and breaks where a test wants it to.

    ```python
    async with EmulatorServer("Hello there!", faults=Cut(after_token=1)) as server:
        client = AsyncTogether("any-key", base_url=server.base_url)
    ```

    `async with` runs it in the running event loop; a plain `with` runs it in a thread and loop of its own, for tests
    that are not async, or whose loop is blocked by the code under test. Everything but the address can be changed while
    it runs.

    Args:
        script: What the models answer: a text, a `Reply`, a sequence of them (one for each choice), a function of the
            request that returns any of these, `InTurn` (or another chooser) of any of these, or a `Recording`. None
            for generated text, which is the same for the same request and seed.
        faults: What goes wrong: a fault, a rule, a function of the request, or a sequence of these; None for nothing.
        account: Limits of requests and tokens; None for no limits.
        tokens_per_second: The speed of each choice's stream, and of the work on a whole response, above 0; None for no
            wait.
        first_token_s: Seconds to the first token, at least 0.
        jitter: By how much each gap between tokens differs at random, as a fraction of it, 0 to 1.
        seed: The seed of all randomness: generated text, and the requests that `Chance` picks.
        models: The models, as `Model`s or names; requests for others get 404. None for `MODELS` and any other name.
        dialect: The shapes of the answers for names that are not among the models.
        api_key: The only key to accept; None accepts any key, and requests without one.
        replay_speed: The factor by which a `Recording` is replayed faster, above 0; infinite for no wait.
        host: The address to listen on.
        port: The port to listen on, 0 to 65535; 0 for a free one.
        ssl: TLS settings, for `https`; None for `http`.
        journal_size: The number of requests that the journal keeps, at least 1.
        on_end: Called with each entry of the journal when its exchange has ended; must not raise. None for no call.

    Attributes:
        journal: The requests, and what became of them.
        connections: The number of connections accepted so far.

    Raises:
        ValueError: An argument is out of its range.
        OSError: On entering, when the address is in use.
        Exception: On leaving, what a script, rule or fault raised first; its request got status 500.
    """

    def __init__(
        self,
        script: Script | Recording | Chooser = None,
        *,
        faults: Rule = None,
        account: Account | None = None,
        tokens_per_second: float | None = None,
        first_token_s: float = 0.0,
        jitter: float = 0.0,
        seed: int = 0,
        models: Iterable[Model | str] | None = None,
        dialect: Dialect = TOGETHER,
        api_key: str | None = None,
        replay_speed: float = math.inf,
        host: str = "127.0.0.1",
        port: int = 0,
        ssl: ssl_module.SSLContext | None = None,
        journal_size: int = 10_000,
        on_end: Callable[[Entry], None] | None = None,
    ) -> None:
        super().__init__(
            script,
            faults=faults,
            account=account,
            tokens_per_second=tokens_per_second,
            first_token_s=first_token_s,
            jitter=jitter,
            seed=seed,
            models=models,
            dialect=dialect,
            api_key=api_key,
            replay_speed=replay_speed,
            journal_size=journal_size,
            on_end=on_end,
        )
        if not 0 <= port <= 65_535:
            raise ValueError(f"port: got {port!r}, expected 0 to 65535")
        self.connections = 0
        self._host = host
        self._port = port
        self._ssl = ssl
        self._open: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._thread_errors: list[BaseException] = []
        self._stop: asyncio.Event | None = None

    def __repr__(self) -> str:
        state = self.origin if self._server is not None else "not running"
        return f"<EmulatorServer {state}, {self.journal.total} requests>"

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._ssl else 'http'}://{host}:{self.port}"

    @property
    def base_url(self) -> str:
        """The `base_url` for a client; ends in `/v1`."""
        return f"{self.origin}/v1"

    @property
    def port(self) -> int:
        """The port it listens on.

        Raises:
            RuntimeError: The emulator does not run, and no port was given.
        """
        if not self._port:
            raise RuntimeError("the emulator does not run; enter it with `async with` or `with`")
        return self._port

    @property
    def open_connections(self) -> int:
        """The number of connections that are open now."""
        return len(self._open)

    # -------------------------------------------------------------------------------------------------------- lifetime

    async def __aenter__(self) -> Self:
        loop = self._loop = asyncio.get_running_loop()
        if self._server is not None:
            raise RuntimeError("the emulator runs already; make another one")
        handshake = None if self._ssl is None else HANDSHAKE_SECONDS  # an endless handshake must not delay the close
        self._server = await loop.create_server(
            self._connected, self._host, self._port, ssl=self._ssl, backlog=1024, ssl_handshake_timeout=handshake
        )
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._close()
        if self.errors and exc is None:
            raise self.errors[0]

    async def _close(self) -> None:
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        connections = tuple(self._open)
        tasks = [connection.task for connection in connections if connection.task is not None]
        for connection in connections:
            connection.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()

    def __enter__(self) -> Self:
        started = threading.Event()
        failures: list[BaseException] = []

        async def main() -> None:
            self._stop = asyncio.Event()
            try:
                async with self:
                    started.set()
                    await self._stop.wait()
            except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
                failures.append(error)
                started.set()

        self._thread_errors = failures
        self._thread = threading.Thread(target=asyncio.run, args=(main(),), name="together-emulator", daemon=True)
        self._thread.start()
        if not started.wait(START_SECONDS):
            raise RuntimeError(f"the emulator did not start within {START_SECONDS} s")
        if failures:
            self._thread.join()
            raise failures[0]
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._loop is not None and self._stop is not None and self._thread is not None  # noqa: S101, PT018 - entered
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        if self._thread_errors and exc is None:
            raise self._thread_errors[0]

    def _connected(self) -> Connection:
        connection = Connection(self.connections, self, self._open)
        self.connections += 1
        return connection

    # ------------------------------------------------------------------------------------------------ while it runs

    def release(self) -> None:
        """Ends the stalls of all responses that are in one; may be called from any thread."""
        self._on_each(Connection.release)

    def drop_connections(self) -> None:
        """Closes all connections with a RST, as a crash does; may be called from any thread."""
        self._on_each(Connection.abort)

    def _on_each(self, action: Callable[[Connection], None]) -> None:
        def act() -> None:
            for connection in tuple(self._open):
                action(connection)

        if self._loop is None or self._server is None:
            raise RuntimeError("the emulator does not run")
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:  # a thread without a loop
            here = False
        if here:
            act()
        else:
            self._loop.call_soon_threadsafe(act)
