"""The relay in every framework it names, each under a real server in this loop, so that no task can hide.

For each framework: tokens arrive one by one, a visitor that vanishes ends the upstream within 100 ms, an error before
the first token is a status where the framework allows that, and nothing outlives its request.
"""

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest

from support.relay_apps import (
    DEADLINE_S,
    KEY,
    SOON,
    TOKEN,
    TOKEN_MARK,
    Relay,
    Upstream,
    Visitor,
    aiohttp_app,
    leaving,
    serving,
    starlette_app,
)
from together_async import AsyncTogether, RateLimitError, Retry
from together_async.relay import HEADERS, EventSourceResponse, lifespan, sse
from together_async.testing import Cut, EmulatorServer, Reply, Status

# ------------------------------------------------------------------------------------------------------------ the apps


def fastapi_app(relay: Relay) -> Any:
    """As in the README, with the return annotation."""
    from fastapi import FastAPI, Request

    app = FastAPI(lifespan=lifespan(relay.client, relay.narrow, relay.hub))

    @app.get("/{door}")
    async def answer(door: str, request: Request) -> EventSourceResponse:
        stream, options = relay.of(door, request.query_params)
        return EventSourceResponse(stream, **options)

    return app


def fastapi_yielding_app(relay: Relay) -> Any:
    """With a dependency that yields, and ends after the response."""
    from fastapi import Depends, FastAPI, Request

    app = FastAPI(lifespan=lifespan(relay.client, relay.narrow, relay.hub))

    async def session() -> AsyncIterator[str]:
        yield "session"

    @app.get("/{door}")
    async def answer(door: str, request: Request, _: str = Depends(session)) -> EventSourceResponse:
        stream, options = relay.of(door, request.query_params)
        return EventSourceResponse(stream, **options)

    return app


def with_middleware(relay: Relay) -> Any:
    """Starlette's `BaseHTTPMiddleware`, which passes a response on by a task and a queue of its own."""
    from starlette.middleware.base import BaseHTTPMiddleware

    class Nothing(BaseHTTPMiddleware):
        async def dispatch(self, request: Any, call_next: Any) -> Any:
            return await call_next(request)

    return Nothing(Nothing(starlette_app(relay)))


def with_gzip(relay: Relay) -> Any:
    """Starlette's `GZipMiddleware`, which leaves event streams alone."""
    from starlette.middleware.gzip import GZipMiddleware

    return GZipMiddleware(starlette_app(relay), minimum_size=1)


def litestar_app(relay: Relay) -> Any:
    """A handler that returns an ASGI response."""
    from litestar import Litestar, Request, get

    @get("/{door:str}")
    async def answer(request: Request) -> EventSourceResponse:  # type: ignore[type-arg]  # Litestar reads it without
        stream, options = relay.of(request.path_params["door"], request.query_params)
        return EventSourceResponse(stream, **options)

    return Litestar([answer], lifespan=[lifespan(relay.client, relay.narrow, relay.hub)], openapi_config=None)


def quart_app(relay: Relay) -> Any:
    """`sse` as the body. By default Quart cuts responses after a minute."""
    from quart import Quart, Response, request

    app = Quart(__name__)
    app.config["RESPONSE_TIMEOUT"] = None

    @app.get("/<door>")
    async def answer(door: str) -> Any:
        stream, options = relay.of(door, request.args)
        return Response(sse(stream, **options), headers=dict(HEADERS))

    return app


def django_app(relay: Relay) -> Any:
    """Django's own ASGI handler and its `StreamingHttpResponse`."""
    import django
    from django.conf import settings

    if not settings.configured:
        settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="x", LOGGING_CONFIG=None)
        django.setup()
    from django.core.asgi import get_asgi_application
    from django.http import StreamingHttpResponse
    from django.urls import path

    async def answer(request: Any, door: str) -> StreamingHttpResponse:
        stream, options = relay.of(door, request.GET)
        return StreamingHttpResponse(sse(stream, **options), headers=dict(HEADERS))

    urlpatterns[:] = [path("<str:door>", answer)]
    from django.urls import clear_url_caches

    clear_url_caches()
    return get_asgi_application()


urlpatterns: list[Any] = []
"""Django's."""

APPS: dict[str, Callable[[Relay], Any]] = {
    "fastapi": fastapi_app,
    "fastapi-yielding": fastapi_yielding_app,
    "starlette": starlette_app,
    "starlette-middleware": with_middleware,
    "starlette-gzip": with_gzip,
    "litestar": litestar_app,
    "quart": quart_app,
    "django": django_app,
    "aiohttp": aiohttp_app,
}
BY_LOOP = ("quart", "django")
"""Frameworks that take an iterator: they send the head before an error is known."""


@contextlib.asynccontextmanager
async def running_app(name: str, relay: Relay) -> AsyncIterator[int]:
    """Runs an app in this loop; yields its port."""
    app = APPS[name](relay)
    if name == "aiohttp":
        from aiohttp import web

        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield runner.addresses[0][1]
        finally:
            await runner.cleanup()
    else:
        async with serving(app, lifespan="off" if name == "django" else "on") as port:
            yield port


@contextlib.asynccontextmanager
async def nothing_lives_on() -> AsyncIterator[None]:
    """Fails if a task that was not there before is there afterwards."""
    before = asyncio.all_tasks()
    yield
    for _ in range(400):
        left = asyncio.all_tasks() - before
        if not left:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"tasks left: {left}")


@pytest.mark.parametrize("name", APPS)
async def test_a_framework_relays_and_lets_go(upstream: Upstream, name: str, no_leaks: None) -> None:
    """Whole answers, tokens one by one, and leaving at every stage, with no task left after each."""
    relay = Relay(upstream.emulator.base_url)
    async with running_app(name, relay) as port:
        prompt = upstream.prompt()
        async with nothing_lives_on(), aiohttp.ClientSession() as session:
            query = {"model": "say", "prompt": prompt}
            async with session.get(f"http://127.0.0.1:{port}/chat", params=query) as response:
                body = await response.read()
            assert response.status == 200
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert response.headers["x-accel-buffering"] == "no"
            assert body.count(TOKEN_MARK) == 10
            assert body.endswith(b"data: [DONE]\n\n")
        for stage in ("head", "first", "silence", "tokens"):
            for how in ("close", "reset"):
                async with nothing_lives_on():
                    assert await leaving(port, upstream, stage, how) < SOON, (stage, how)
                assert relay.facts()["in_flight"] == 0
        async with nothing_lives_on():
            with Visitor(port) as visitor:
                await visitor.ask("/chat", model="silence", prompt=upstream.prompt(), heartbeat=60)
                await visitor.until(TOKEN_MARK, 3)  # while the model is silent
    await relay.aclose()
    ended = relay.facts()["ended"]
    assert len(ended) == 10
    assert [line.split()[1] for line in ended] == ["read"] + ["left"] * (len(ended) - 1)


@pytest.mark.parametrize("name", ["starlette", "starlette-middleware"])
async def test_leaving_before_the_first_token_is_no_error_of_the_app(
    upstream: Upstream, name: str, no_leaks: None
) -> None:
    """Nor of middleware that waits for a response: nothing is raised that a server would log."""
    relay = Relay(upstream.emulator.base_url)
    app, failed, requests = APPS[name](relay), list[Exception](), asyncio.Queue[None]()

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        try:
            await app(scope, receive, send)
        except Exception as error:
            failed.append(error)
            raise
        finally:
            if scope["type"] == "http":
                requests.put_nowait(None)

    async with serving(noting) as port:
        for model in ("head", "first"):
            prompt = upstream.prompt()
            with Visitor(port) as visitor:
                await visitor.ask("/chat", model=model, prompt=prompt)
                entry = await upstream.entry(prompt)
            await entry.wait_left(DEADLINE_S)
            await asyncio.wait_for(requests.get(), DEADLINE_S)
    await relay.aclose()
    assert not failed
    assert [line.split()[1:] for line in relay.ended] == [["left"], ["left"]]


# ------------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("name", APPS)
async def test_an_error_before_the_first_token(name: str, no_leaks: None) -> None:
    """A status with a JSON body; an event where the framework had sent the head before."""
    async with EmulatorServer(Reply((TOKEN,)), faults=Status(429, headers={"retry-after": "7"})) as server:
        relay = Relay(server.base_url)
        async with running_app(name, relay) as port, aiohttp.ClientSession() as session:
            query = {"model": "say", "prompt": "x"}
            async with session.get(f"http://127.0.0.1:{port}/chat", params=query) as response:
                body = await response.read()
        await relay.aclose()
    if name in BY_LOOP:
        assert response.status == 200
        assert body.startswith(b"event: error\ndata: ")
        body = body.partition(b"data: ")[2]
    else:
        assert response.status == 429
        assert response.headers["retry-after"] == "7"
    assert json.loads(body)["error"]["type"] == "RateLimitError"


@pytest.mark.parametrize("name", APPS)
async def test_an_error_after_the_first_token(name: str, no_leaks: None) -> None:
    """The last event, in a response that ends regularly."""
    async with EmulatorServer(Reply((TOKEN,) * 5), faults=Cut(after_token=2)) as server:
        relay = Relay(server.base_url)
        async with running_app(name, relay) as port, aiohttp.ClientSession() as session:
            query = {"model": "say", "prompt": "x"}
            async with session.get(f"http://127.0.0.1:{port}/chat", params=query) as response:
                body = await response.read()
        await relay.aclose()
    assert response.status == 200
    assert body.count(TOKEN_MARK) == 2
    assert b"event: error\n" in body
    assert b"[DONE]" not in body


@pytest.mark.parametrize("name", BY_LOOP)
async def test_who_opens_the_stream_first_has_a_status(name: str, no_leaks: None) -> None:
    """The recipe for frameworks that take an iterator: an error of the request is raised in the handler."""
    async with EmulatorServer(faults=Status(429)) as server, AsyncTogether(KEY, base_url=server.base_url) as client:
        stream = client.stream("x", model="say")
        with pytest.raises(RateLimitError):
            await stream.__aenter__()
        server.faults = None
        stream = client.stream("x", model="say", max_tokens=3, retry=Retry())  # waits until the 429's pause is over
        await stream.__aenter__()
        body = b"".join([data async for data in sse(stream)])
    assert body.endswith(b"data: [DONE]\n\n")


# ------------------------------------------------------------------------------------ what is Starlette's and FastAPI's


async def test_what_starlettes_responses_have(upstream: Upstream, no_leaks: None) -> None:
    """Headers and cookies can be set, and background tasks run at the end, also when the client has left."""
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    done = asyncio.Queue[str]()

    async def answer(request: Request) -> Response:
        stream = client.stream(request.query_params["prompt"], model=request.query_params["model"])
        made = EventSourceResponse(stream, background=BackgroundTask(done.put, request.query_params["prompt"]))
        assert isinstance(made, Response)
        made.headers["x-later"] = "yes"
        made.set_cookie("session", "s1")
        return made

    async with (
        AsyncTogether(KEY, base_url=upstream.emulator.base_url) as client,
        serving(Starlette(routes=[Route("/chat", answer)])) as port,
        aiohttp.ClientSession() as session,
    ):
        query = {"model": "say", "prompt": upstream.prompt()}
        async with session.get(f"http://127.0.0.1:{port}/chat", params=query) as response:
            assert (await response.read()).endswith(b"[DONE]\n\n")
        assert response.headers["x-later"] == "yes"
        assert response.cookies["session"].value == "s1"
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert await asyncio.wait_for(done.get(), 5) == query["prompt"]
        left = upstream.prompt()
        with Visitor(port) as visitor:
            await visitor.ask("/chat", model="silence", prompt=left)
            await visitor.until(TOKEN_MARK, 3)
        assert await asyncio.wait_for(done.get(), 5) == left


async def test_fastapi_injected_background_tasks_run(upstream: Upstream, no_leaks: None) -> None:
    """FastAPI adds a handler's background tasks to its response."""
    from fastapi import BackgroundTasks, FastAPI

    app, done = FastAPI(), asyncio.Queue[str]()

    @app.get("/chat")
    async def answer(prompt: str, tasks: BackgroundTasks) -> EventSourceResponse:
        tasks.add_task(done.put, prompt)
        return EventSourceResponse(client.stream(prompt, model="say"))

    async with (
        AsyncTogether(KEY, base_url=upstream.emulator.base_url) as client,
        serving(app) as port,
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/chat", params={"prompt": upstream.prompt()}) as response,
    ):
        await response.read()
        assert await asyncio.wait_for(done.get(), 5)


FASTAPI = """
{imports}
app = FastAPI()
client = AsyncTogether("k", base_url="http://127.0.0.1:9/v1")

@app.get("/")
async def answer() -> EventSourceResponse:
    return EventSourceResponse(client.stream("x", model="y"))

@app.get("/declared", response_class=EventSourceResponse)
async def declared() -> None: ...

paths = app.openapi()["paths"]
assert paths["/"]["get"]["responses"]["200"]
assert list(paths["/declared"]["get"]["responses"]["200"]["content"]) == ["text/event-stream"]
from starlette.responses import Response
import asyncio
assert isinstance(asyncio.run(answer()), Response)
"""
IMPORTS = {
    "fastapi first": "from fastapi import FastAPI\nfrom together_async.relay import EventSourceResponse",
    "the relay first": "from together_async.relay import EventSourceResponse\nfrom fastapi import FastAPI",
    "its module first": "from together_async.relay.asgi import EventSourceResponse\nfrom fastapi import FastAPI",
}


@pytest.mark.parametrize("order", IMPORTS)
def test_fastapi_takes_the_return_annotation(order: str) -> None:
    """Whichever was imported first: `-> EventSourceResponse` is no model of a JSON body; nor as a `response_class`."""
    code = FASTAPI.format(imports="from together_async import AsyncTogether\n" + IMPORTS[order])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
