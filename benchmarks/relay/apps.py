"""The backends: an answer of the API on its way to a browser, in each way in which people write it.

A function for each: it gets the API's address and returns an app whose `GET /chat?model=...` streams. The others' apps
are written as their documentation shows. An ASGI app is served by uvicorn, an `aiohttp.web` app by aiohttp, and a
protocol class by the event loop.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

QUESTION = "Why is the sky blue?"
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
KEY = "key-of-the-benchmarks"
SSE = "text/event-stream"

# ---------------------------------------------------------------------------------------------------------------- ours


def _ours(base_url: str, respond: Callable[[Any], Any]) -> Any:
    from fastapi import FastAPI, Response

    from together_async import AsyncTogether
    from together_async.relay import lifespan

    client = AsyncTogether(KEY, base_url=base_url)
    app = FastAPI(lifespan=lifespan(client))

    @app.get("/chat")
    async def chat(model: str) -> Response:
        response: Response = respond(client.stream(QUESTION, model=model))
        return response

    return app


def ours_chunks(base_url: str) -> Any:
    from together_async import relay

    return _ours(base_url, relay.EventSourceResponse)


def ours_text(base_url: str) -> Any:
    from together_async import relay

    return _ours(base_url, lambda stream: relay.EventSourceResponse(stream, format="text"))


def ours_passthrough(base_url: str) -> Any:
    from together_async import relay

    return _ours(base_url, lambda stream: relay.EventSourceResponse(relay.passthrough(stream)))


def ours_coalesce(base_url: str) -> Any:
    from together_async import relay

    def respond(stream: Any) -> Any:
        return relay.EventSourceResponse(relay.buffered(stream, relay.Buffer(64, on_full="coalesce")))

    return _ours(base_url, respond)


def ours_aiohttp(base_url: str) -> Any:
    from aiohttp import web

    from together_async import AsyncTogether
    from together_async.relay import aiohttp_response, lifespan

    client = AsyncTogether(KEY, base_url=base_url)

    async def chat(request: web.Request) -> web.StreamResponse:
        return await aiohttp_response(request, client.stream(QUESTION, model=request.query["model"]))

    app = web.Application()
    app.cleanup_ctx.append(lifespan(client))
    app.router.add_get("/chat", chat)
    return app


# -------------------------------------------------------------------------------------------------------------- others


def _openai(base_url: str) -> Callable[[str], Awaitable[AsyncIterator[Any]]]:
    from openai import AsyncOpenAI

    client = AsyncOpenAI(api_key=KEY, base_url=base_url)

    async def ask(model: str) -> AsyncIterator[Any]:
        stream: Any = await client.chat.completions.create(model=model, messages=MESSAGES, stream=True)
        return stream  # type: ignore[no-any-return]  # the SDK returns a union

    return ask


def sse_starlette_chunks(base_url: str) -> Any:
    from fastapi import FastAPI
    from sse_starlette import EventSourceResponse

    ask, app = _openai(base_url), FastAPI()

    @app.get("/chat")
    async def chat(model: str) -> EventSourceResponse:
        async def events() -> AsyncIterator[dict[str, str]]:
            async for chunk in await ask(model):
                yield {"data": chunk.model_dump_json()}
            yield {"data": "[DONE]"}

        return EventSourceResponse(events())

    return app


def sse_starlette_text(base_url: str) -> Any:
    from fastapi import FastAPI
    from sse_starlette import EventSourceResponse

    ask, app = _openai(base_url), FastAPI()

    @app.get("/chat")
    async def chat(model: str) -> EventSourceResponse:
        async def events() -> AsyncIterator[dict[str, str]]:
            async for chunk in await ask(model):
                if chunk.choices and chunk.choices[0].delta.content:
                    yield {"data": chunk.choices[0].delta.content}
            yield {"data": "[DONE]"}

        return EventSourceResponse(events())

    return app


def sse_starlette_break(base_url: str) -> Any:
    """The loop that asks whether the client is still connected, and ends if it is not."""
    from fastapi import FastAPI, Request
    from sse_starlette import EventSourceResponse

    ask, app = _openai(base_url), FastAPI()

    @app.get("/chat")
    async def chat(model: str, request: Request) -> EventSourceResponse:
        async def events() -> AsyncIterator[dict[str, str]]:
            async for chunk in await ask(model):
                if await request.is_disconnected():
                    break
                yield {"data": chunk.model_dump_json()}
            yield {"data": "[DONE]"}

        return EventSourceResponse(events())

    return app


def streaming_response(base_url: str) -> Any:
    from fastapi import FastAPI
    from fastapi.responses import StreamingResponse

    ask, app = _openai(base_url), FastAPI()

    @app.get("/chat")
    async def chat(model: str) -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            async for chunk in await ask(model):
                yield f"data: {chunk.model_dump_json()}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type=SSE)

    return app


def fastapi_sse(base_url: str) -> Any:
    from fastapi import FastAPI
    from fastapi.sse import EventSourceResponse, ServerSentEvent

    ask, app = _openai(base_url), FastAPI()

    @app.get("/chat", response_class=EventSourceResponse)
    async def chat(model: str) -> AsyncIterator[ServerSentEvent]:
        async for chunk in await ask(model):
            yield ServerSentEvent(data=chunk)
        yield ServerSentEvent(raw_data="[DONE]")

    return app


def openai_aiohttp_web(base_url: str) -> Any:
    from aiohttp import web

    ask = _openai(base_url)

    async def chat(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": SSE})
        await response.prepare(request)
        async for chunk in await ask(request.query["model"]):
            await response.write(f"data: {chunk.model_dump_json()}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    app = web.Application()
    app.router.add_get("/chat", chat)
    return app


def by_hand(base_url: str) -> Any:
    """The yardstick: bytes in, bytes out, without looking at them."""
    import contextlib

    import aiohttp
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import StreamingResponse
    from starlette.routing import Route

    sessions: list[aiohttp.ClientSession] = []

    @contextlib.asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout()
        ) as session:
            sessions.append(session)
            yield

    async def chat(request: Request) -> StreamingResponse:
        body = {"model": request.query_params["model"], "messages": MESSAGES, "stream": True}

        async def data() -> AsyncIterator[bytes]:
            async with sessions[0].post(f"{base_url}/chat/completions", json=body) as response:
                async for piece in response.content.iter_any():
                    yield piece

        return StreamingResponse(data(), media_type=SSE)

    return Starlette(routes=[Route("/chat", chat)], lifespan=lifespan)


def sockets(base_url: str) -> type[asyncio.Protocol]:
    """The floor for any backend in Python: data from one socket is written to the other, HTTP included."""
    from urllib.parse import urlsplit

    api = urlsplit(base_url)
    host, port = str(api.hostname), int(api.port or 80)

    class Upstream(asyncio.Protocol):
        def __init__(self, browser: asyncio.Transport, model: str) -> None:
            self.browser = browser
            self.body = json.dumps({"model": model, "messages": MESSAGES, "stream": True}).encode()

        def connection_made(self, transport: Any) -> None:
            head = f"POST {api.path}/chat/completions HTTP/1.1\r\nHost: api\r\nContent-Length: {len(self.body)}\r\n\r\n"
            transport.write(head.encode() + self.body)

        def data_received(self, data: bytes) -> None:
            self.browser.write(data)
            if data.endswith(b"0\r\n\r\n"):
                self.browser.close()

    class Browser(asyncio.Protocol):
        opening: asyncio.Task[Any]
        upstream: asyncio.BaseTransport | None = None

        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            match = re.search(rb"model=([^ ]+)", data)
            assert match is not None
            self.opening = asyncio.ensure_future(self.open(match[1].decode()))

        async def open(self, model: str) -> None:
            loop = asyncio.get_running_loop()
            protocol = Upstream(self.transport, model)
            self.upstream, _ = await loop.create_connection(lambda: protocol, host, port)

        def connection_lost(self, _exc: Exception | None) -> None:
            if self.upstream is not None:
                self.upstream.close()

    return Browser
