"""pytest fixtures for apps that use chat completions, available as soon as the package is installed.

    async def test_a_stall(together_server, together_client):
        together_server.faults = Stall(after_token=2)
        ...  # your app, with together_client

All of them are synchronous, so they work under pytest-asyncio and anyio, with a framework's synchronous test client,
and with `asyncio.run` in the middle of a test. `-p no:together_async` switches the plugin off.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

# Wherever the package is installed, every run of pytest imports this module: all other imports wait for a fixture.
if TYPE_CHECKING:
    from together_async import AsyncTogether, Retry, Timeouts
    from together_async.testing import EmulatorServer

_KEY = "together-test-key"
_CLOSE_SECONDS = 5.0


@pytest.fixture
def together_server() -> Iterator[EmulatorServer]:
    """An emulator of the API on a free port of loopback, in a thread of its own, new for each test.

    Set its `script`, `faults`, `account`, `tokens_per_second` and so on in the test; its `journal` has the requests.
    For one that lasts longer, or uses TLS, write `with EmulatorServer(...) as server:`.

    Raises:
        Exception: After the test, what a script or rule of yours raised; the app got status 500 for it.
    """
    from together_async.testing import EmulatorServer  # noqa: PLC0415 - see above

    with EmulatorServer() as server:
        yield server


@pytest.fixture
def together_timeouts() -> Timeouts:
    """The timeouts of `together_client`: a second for the first token and for each silence. Override it for others.

    They are short, because the test of a stall takes as long, and finite, because a stall does not end.
    """
    from together_async import Timeouts  # noqa: PLC0415 - see above

    return Timeouts(connect=5.0, first_token=1.0, idle=1.0)


@pytest.fixture
def together_retry() -> Retry:
    """The retries of `together_client`: as many as any client's, but without the long delays.

    A server that refuses everything with 429 is waited for no longer than 5 seconds. Override it for others:
    `Retry(attempts=1, max_retry_after=0)` never sends a request twice.
    """
    from together_async import Retry  # noqa: PLC0415 - see above

    return Retry(base_delay=0.01, max_delay=0.1, max_retry_after=5)


@pytest.fixture
def together_client(
    together_server: EmulatorServer, together_timeouts: Timeouts, together_retry: Retry
) -> Iterator[AsyncTogether]:
    """A client of `together_server`, closed after the test in the event loop where it was used."""
    from together_async import AsyncTogether  # noqa: PLC0415 - see above

    # An empty `proxy` means no proxy: one from the environment could not reach this machine's loopback.
    client = AsyncTogether(
        _KEY, base_url=together_server.base_url, timeouts=together_timeouts, retry=together_retry, proxy=""
    )
    yield client
    _close(client)


@pytest.fixture
def together_env(together_server: EmulatorServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points TOGETHER_BASE_URL and TOGETHER_API_KEY at `together_server`, for apps that make their own client.

    It is not part of `together_server`: the environment belongs to the whole process, and a test may need the emulator
    next to a client of the real API, for instance to record it. A client made before the test, such as a module's
    global, does not see it. NO_PROXY gets the server's address, so that no proxy from the environment is used.
    """
    monkeypatch.setenv("TOGETHER_BASE_URL", together_server.base_url)
    monkeypatch.setenv("TOGETHER_API_KEY", _KEY)
    exempt = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, f"{exempt},127.0.0.1" if exempt else "127.0.0.1")


@pytest.fixture
def together_aioresponses(together_aioresponses_patch: None) -> Iterator[Any]:  # noqa: ARG001 - in force while the test runs
    """An `aioresponses()` that works with the installed aiohttp: mocks of whole responses, without a socket.

    It delivers a stream in one piece; for streams that arrive, stall or break, use `together_server`.
    """
    from aioresponses import aioresponses  # noqa: PLC0415 - optional

    with aioresponses() as mock:
        yield mock


@pytest.fixture
def together_aioresponses_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes aioresponses work with the installed aiohttp while a test runs; for tests that call `aioresponses()`.

    aioresponses 0.7.9 makes a `ClientResponse` without an argument that aiohttp requires since 3.14. This gives it a
    default; aiohttp itself always passes the argument, so nothing else changes. Where aioresponses needs no help, this
    does nothing.
    """
    if _lacks_stream_writer():
        from aiohttp import ClientResponse  # noqa: PLC0415 - see above

        # Mocked requests count as sent; of such a request, only the size is read.
        init = ClientResponse.__init__
        defaults = {**(init.__kwdefaults__ or {}), "stream_writer": SimpleNamespace(output_size=0)}
        monkeypatch.setattr(init, "__kwdefaults__", defaults)


def _lacks_stream_writer() -> bool:
    """Whether the installed aioresponses can't make a response of the installed aiohttp; tried out by making one."""
    from aioresponses.core import RequestMatch  # noqa: PLC0415 - see above
    from yarl import URL  # noqa: PLC0415 - see above

    url = URL("http://localhost")
    building = RequestMatch(url).build_response(url)
    try:
        building.send(None)  # it awaits nothing
    except StopIteration:
        return False
    except TypeError as error:
        if "stream_writer" in str(error):
            return True
        raise
    finally:
        building.close()
    return False


def _close(client: AsyncTogether) -> None:
    """Closes a client from outside of its event loop: in the loop if that can still run, else without it."""
    import asyncio  # noqa: PLC0415 - see above

    connections = client._connections  # noqa: SLF001 - a client can't be closed from outside of its loop in public
    if connections.current is None:
        return
    loop = connections.current.loop
    try:
        here = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    if loop.is_running() and loop is not here:  # in another thread, such as that of a server that outlives the test
        asyncio.run_coroutine_threadsafe(client.aclose(), loop).result(_CLOSE_SECONDS)
    elif here is None and not loop.is_closed():
        loop.run_until_complete(client.aclose())
    else:
        connections.discard()
