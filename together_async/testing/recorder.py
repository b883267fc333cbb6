"""`Recorder`, a proxy on loopback that records any client's traffic, whatever SDK or language it uses."""

from __future__ import annotations

import asyncio
import contextlib
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from together_async.testing.exchange import RecordedExchange, json_object
from together_async.testing.privacy import without_private

_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers of one connection, which no proxy passes on (RFC 9110, 7.6.1)."""
_NOT_SENT = _HOP_BY_HOP | {"host", "content-length", "content-encoding", "accept-encoding", "expect"}
"""Request headers that the recorder sets itself: bodies arrive decompressed, and are requested uncompressed."""
_NOT_RECORDED = _HOP_BY_HOP | {"content-encoding", "content-length", "date", "server", "set-cookie"}
"""Response headers that belong to one transfer or one visitor."""
_CREDENTIALS = frozenset({"authorization", "proxy-authorization", "cookie", "api-key", "x-api-key", "x-auth-token"})
"""Request headers whose values must not be in a recording."""
_CHAT = "/chat/completions"
_MAX_REQUEST = 256 * 1024 * 1024
_SHUTDOWN_SECONDS = 0.1


class Recorder:
    """A proxy that passes requests on to a server and records the responses.

    ```python
    async with Recorder("sky.jsonl", upstream="https://api.together.xyz/v1") as recorder:
        client = AsyncTogether(base_url=recorder.base_url)  # the key is passed on, and not recorded
    ```

    Chat completions are recorded; all other requests are only passed on. The server's bytes are passed on as they come.
    Where the server breaks off, so does the proxy; where the client leaves, the proxy leaves the server. The part that
    came until then is recorded as incomplete. A response without a complete head is not recorded.

    No request header is recorded. Prompts are not recorded either, unless `keep_prompts` is set: the request keeps its
    numbers, its flags and the model's name; the response loses the prompt that `echo` asked for, and every verbatim
    copy of the key or of a text of the request. (What the model itself says about the prompt, token by token, is its
    answer and stays.)

    The environment's proxy variables are honoured; redirects are passed on rather than followed; no cookies are kept.

    Args:
        path: The file; exchanges are appended to it.
        upstream: The `base_url` to pass requests on to.
        keep_prompts: Whether whole requests are recorded, so that a replay finds the answer to each.
        host: The address to listen on.
        port: The port to listen on; 0 for a free one.
        on_end: Called with each exchange once it is in the file; None for no call.

    Attributes:
        path: The file.
        recorded: The number of exchanges recorded so far.

    Raises:
        ValueError: The upstream is not an http or https URL.
        OSError: On entering, when the file can't be written or the address is in use; on leaving, when an exchange
            could not be written. After such a failure requests are refused, so that nobody pays for a lost answer.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        upstream: str,
        keep_prompts: bool = False,
        host: str = "127.0.0.1",
        port: int = 0,
        on_end: Callable[[RecordedExchange], None] | None = None,
    ) -> None:
        self.path = Path(path)
        self.recorded = 0
        self._upstream = URL(upstream.rstrip("/"))
        if self._upstream.scheme not in {"http", "https"} or not self._upstream.host or self._upstream.query_string:
            raise ValueError(f"upstream: got {upstream!r}, expected http://... or https://..., ending in /v1")
        self._keep_prompts = keep_prompts
        self._on_end = on_end
        self._host = host
        self._port = port
        self._error: OSError | None = None
        self._under_way: set[asyncio.Task[Any]] = set()
        self._runner: web.AppRunner | None = None
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"<Recorder of {self._upstream.with_user(None)} to {self.path}, {self.recorded} exchanges>"

    @property
    def base_url(self) -> str:
        """The `base_url` for a client; ends in `/v1`.

        Raises:
            RuntimeError: The recorder does not run, and no port was given.
        """
        if not self._port:
            raise RuntimeError("the recorder does not run; enter it with `async with`")
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}/v1"

    # -------------------------------------------------------------------------------------------------------- lifetime

    async def __aenter__(self) -> Self:
        if self._runner is not None:
            raise RuntimeError("the recorder runs already; make another one")
        with self.path.open("ab"):  # fails now rather than after the first answer has been paid for
            pass
        app = web.Application(client_max_size=_MAX_REQUEST)
        app.router.add_route("*", "/v1/{path:.*}", self._handle)
        # A handler is cancelled when its client leaves; that closes the connection to the upstream, too.
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS
        )
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError:
            await self._runner.cleanup()
            self._runner = None
            raise
        self._port = self._runner.addresses[0][1]
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            # The client's headers, and none of aiohttp's.
            skip_auto_headers=("Accept", "Content-Type", "User-Agent"),
            proxy=_proxy_for(self._upstream),
        )
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        runner, self._runner = self._runner, None
        session, self._session = self._session, None
        assert runner is not None and session is not None  # noqa: S101, PT018 - entered
        # aiohttp would wait for open streams, and closing its session does not wake a task that reads from it.
        tasks = tuple(self._under_way)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await runner.cleanup()
        await session.close()
        if self._error is not None and exc is None:
            raise self._error

    # -------------------------------------------------------------------------------------------------------- exchange

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in one
        self._under_way.add(task)
        try:
            return await self._pass_on(request)
        finally:
            self._under_way.discard(task)

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        if self._error is not None:
            return _refusal(500, f"the recording can't be written: {self._error.strerror}")
        body = await request.read()
        clock = asyncio.get_running_loop().time
        started = clock()
        try:
            upstream = await self._request_upstream(request, body)
        except aiohttp.ClientConnectorError as error:
            return _refusal(502, f"no connection to the upstream: {type(error).__name__}")
        except aiohttp.ClientError:
            return _break_off(request)
        exchange = _ForwardedResponse(upstream, lambda: clock() - started)
        try:
            return await exchange.pass_on(request)
        except aiohttp.ClientError:  # the upstream broke off, or the client left
            return _break_off(request)
        finally:
            upstream.close()  # after a complete body, this returns the connection to the pool
            if request.method == "POST" and request.path.endswith(_CHAT):
                self._record(exchange.recorded(json_object(body)), _credentials(request))

    async def _request_upstream(self, request: web.Request, body: bytes) -> aiohttp.ClientResponse:
        assert self._session is not None  # noqa: S101 - entered
        named = {name.strip().lower() for name in request.headers.get("connection", "").split(",")}
        headers = CIMultiDict(
            (name, value) for name, value in request.headers.items() if name.lower() not in _NOT_SENT | named
        )
        headers["Accept-Encoding"] = "identity"  # in a compressed body, prompts would not be found
        target = request.raw_path.removeprefix("/v1")
        return await self._session.request(
            request.method,
            URL(f"{self._upstream}{target}", encoded=True),
            data=body or None,
            headers=headers,
            allow_redirects=False,
        )

    def _record(self, recorded: RecordedExchange, credentials: Sequence[str]) -> None:
        kept = without_private(recorded, credentials, keep_prompts=self._keep_prompts)
        line = kept.to_line()
        try:
            with self.path.open("ab") as file:
                start = file.tell()
                try:
                    file.write(line)
                    file.flush()
                except OSError:
                    with contextlib.suppress(OSError):
                        file.truncate(start)  # half a line would make the whole file unreadable
                    raise
        except OSError as error:
            self._error = error
            return
        self.recorded += 1
        if self._on_end is not None:
            self._on_end(kept)


class _ForwardedResponse:
    """One response on its way from the upstream to the client, recorded as it passes."""

    def __init__(self, upstream: aiohttp.ClientResponse, clock: Callable[[], float]) -> None:
        self._upstream = upstream
        self._clock = clock
        self._began = clock()
        self._pieces: list[tuple[float, bytes]] = []
        self._complete = False

    async def pass_on(self, request: web.Request) -> web.StreamResponse:
        """Passes the response on, each piece as it comes."""
        upstream = self._upstream
        decoded = "Content-Encoding" in upstream.headers  # by aiohttp, although the request did not allow it
        removed = _HOP_BY_HOP | ({"content-encoding", "content-length"} if decoded else set[str]())
        headers = CIMultiDict((name, value) for name, value in upstream.headers.items() if name.lower() not in removed)
        response = web.StreamResponse(status=upstream.status, reason=upstream.reason, headers=headers)
        await response.prepare(request)
        async for data in upstream.content.iter_any():
            self._pieces.append((self._clock(), data))
            await response.write(data)
        self._complete = True
        await response.write_eof()
        return response

    def recorded(self, request: Mapping[str, Any]) -> RecordedExchange:
        """Returns the part that has come so far."""
        kept = {
            name.lower(): value for name, value in self._upstream.headers.items() if name.lower() not in _NOT_RECORDED
        }
        pieces, ended = tuple(self._pieces), self._clock()
        return RecordedExchange(self._upstream.status, kept, pieces, request, self._complete, self._began, ended)


def _refusal(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": f"recorder: {message}", "type": "recorder_error"}}, status=status)


def _break_off(request: web.Request) -> web.StreamResponse:
    """Closes the client's connection after the bytes already written, so that the response stays unfinished."""
    if request.transport is not None:
        request.transport.close()
    return web.Response()  # never sent


def _proxy_for(url: URL) -> str | None:
    """Returns the environment's proxy for a URL. With aiohttp's `trust_env`, credentials from .netrc would be added."""
    if url.host is None or urllib.request.proxy_bypass(f"{url.host}:{url.port}"):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"


def _credentials(request: web.Request) -> list[str]:
    """Returns the credentials of a request, as they stand in the headers and without their scheme."""
    found: list[str] = []
    for name, value in request.headers.items():
        if name.lower() in _CREDENTIALS:
            found += (value, value.rpartition(" ")[2])
    return found
