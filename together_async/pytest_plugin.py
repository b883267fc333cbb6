"""pytest's fixtures for apps that talk to chat completions; there as soon as the package is installed.

    async def test_a_stall(together_server, together_client):
        together_server.faults = Stall(after_token=2)
        ...  # your app, with together_client

All of them are plain functions, so they serve tests under pytest-asyncio and anyio, tests with a framework's
synchronous test client, and `asyncio.run` in the middle of a test. `-p no:together_async` switches the plugin off.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

# pytest imports this module in every run of everybody who has the package installed: the rest waits for a fixture.
if TYPE_CHECKING:
    from together_async import AsyncTogether, Retry, Timeouts
    from together_async.testing import EmulatorServer

_KEY = "together-test-key"
_CLOSE_SECONDS = 5.0


@pytest.fixture
def together_server() -> Iterator[EmulatorServer]:
    """An emulator of the API on a free port of loopback, in a thread of its own, which is new for each test.

    Set its `script`, `faults`, `account`, `tokens_per_second` and so on in the test; its `journal` says what it saw.
    One that lasts longer, or speaks TLS, is one line: `with EmulatorServer(...) as server:`.

    Raises:
        Exception: After the test, what a script or rule of yours raised; the app got a status 500 for it.
    """
    from together_async.testing import EmulatorServer  # noqa: PLC0415 - see above

    with EmulatorServer() as server:
        yield server


@pytest.fixture
def together_timeouts() -> Timeouts:
    """The limits of `together_client`: a second for the first token and for each silence. Override it for others.

    Short, because a test of a stall takes as long, and finite, because a stall does not end.
    """
    from together_async import Timeouts  # noqa: PLC0415 - see above

    return Timeouts(connect=5.0, first_token=1.0, idle=1.0)


@pytest.fixture
def together_retry() -> Retry:
    """How `together_client` retries: as often as any client, but without the long waits in between.

    Override it: `Retry(attempts=1)` never retries.
    """
    from together_async import Retry  # noqa: PLC0415 - see above

    return Retry(base_delay=0.01, max_delay=0.1)


@pytest.fixture
def together_client(
    together_server: EmulatorServer, together_timeouts: Timeouts, together_retry: Retry
) -> Iterator[AsyncTogether]:
    """A client of `together_server`, closed after the test in whatever event loop it was used."""
    from together_async import AsyncTogether  # noqa: PLC0415 - see above

    # An empty proxy is none: a proxy of the environment could not reach this machine's loopback.
    client = AsyncTogether(
        _KEY, base_url=together_server.base_url, timeouts=together_timeouts, retry=together_retry, proxy=""
    )
    yield client
    _close(client)


@pytest.fixture
def together_env(together_server: EmulatorServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points TOGETHER_BASE_URL and TOGETHER_API_KEY at `together_server`, for apps that make their own client.

    It is not part of `together_server`: the environment is the whole process's, and a test may need the emulator beside
    a client of the real API (to record it, say). A client made before the test, as a module's global, does not see it.
    NO_PROXY gets the server's address too, or a proxy of the environment would be asked for it.
    """
    monkeypatch.setenv("TOGETHER_BASE_URL", together_server.base_url)
    monkeypatch.setenv("TOGETHER_API_KEY", _KEY)
    exempt = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, f"{exempt},127.0.0.1" if exempt else "127.0.0.1")


@pytest.fixture
def together_aioresponses(together_aioresponses_patch: None) -> Iterator[Any]:  # noqa: ARG001 - is to be in force
    """An `aioresponses()` that works with the installed aiohttp: mocks of whole responses, without a socket.

    A stream it hands over in one piece; streams that arrive, stall or break are the business of `together_server`.
    """
    from aioresponses import aioresponses  # noqa: PLC0415 - of the user's, if any

    with aioresponses() as mock:
        yield mock


@pytest.fixture
def together_aioresponses_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes aioresponses work with the installed aiohttp while a test runs; for tests that call `aioresponses()`.

    aioresponses 0.7.9 makes a `ClientResponse` without the argument that aiohttp 3.14 began to require. It gets a
    default: aiohttp itself always passes one, so nothing else changes. Where aioresponses needs no help, nothing does.
    """
    if _lacks_stream_writer():
        from aiohttp import ClientResponse  # noqa: PLC0415 - see above

        # Of a request that has been sent, as all mocked ones have, only the size is asked.
        init = ClientResponse.__init__
        defaults = {**(init.__kwdefaults__ or {}), "stream_writer": SimpleNamespace(output_size=0)}
        monkeypatch.setattr(init, "__kwdefaults__", defaults)


def _lacks_stream_writer() -> bool:
    """Whether the installed aioresponses can't make a response of the installed aiohttp; found out by making one."""
    from aioresponses.core import RequestMatch  # noqa: PLC0415 - see above
    from yarl import URL  # noqa: PLC0415 - see above

    url = URL("http://localhost")
    making = RequestMatch(url).build_response(url)
    try:
        making.send(None)  # it awaits nothing
    except StopIteration:
        return False
    except TypeError as error:
        if "stream_writer" in str(error):
            return True
        raise
    finally:
        making.close()
    return False


def _close(client: AsyncTogether) -> None:
    """Closes a client from outside of its event loop: there, if it can still run, else without it."""
    import asyncio  # noqa: PLC0415 - see above

    connections = client._connections
    if connections.current is None:
        return
    loop = connections.current.loop
    try:
        here = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    if loop.is_running() and loop is not here:  # in another thread, as that of a server which outlives the test
        asyncio.run_coroutine_threadsafe(client.aclose(), loop).result(_CLOSE_SECONDS)
    elif here is None and not loop.is_closed():
        loop.run_until_complete(client.aclose())
    else:
        connections.discard()
