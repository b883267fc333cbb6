"""The openai SDK, and this package itself, as clients of a relay: what it sends is the protocol to the last key."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from fastapi import FastAPI, Request

from support.relay_apps import SOON, serving
from together_async import AsyncTogether, ChatCompletion, Retry, StreamAPIError, TogetherError
from together_async.relay import EventSourceResponse, Hub, buffered, lifespan, passthrough
from together_async.testing import (
    Call,
    Cut,
    EmulatorServer,
    ErrorInStream,
    Fault,
    InTurn,
    Reply,
    Stall,
    Status,
)

pytestmark = pytest.mark.usefixtures("no_leaks")

MODEL = "meta-llama/Llama-3.3-70B-Instruct-Turbo"
KEY = "tgp_v1_relay-key-0f1e2d3c4b5a"
TOKENS = ("One", " two", " thrée", "\nfour", " [DONE]", "\u2028five")
TEXT = "".join(TOKENS)
APART = 10
"""Tokens a second: so few that an error never comes in one read with the first token, where it would be a status."""
KINDS = ("decoded", "passed through", "read ahead", "by a hub")


@pytest_asyncio.fixture
async def upstream() -> AsyncIterator[EmulatorServer]:
    async with EmulatorServer(Reply(TOKENS)) as server:
        yield server


@pytest_asyncio.fixture(params=KINDS)
async def base_url(request: pytest.FixtureRequest, upstream: EmulatorServer) -> AsyncIterator[str]:
    """The address of a FastAPI app that relays at the API's own path, in each way."""
    async with relaying(upstream, request.param) as (url, _):
        yield url


@contextlib.asynccontextmanager
async def relaying(
    upstream: EmulatorServer, kind: str, heartbeat: float = 0.02
) -> AsyncIterator[tuple[str, AsyncTogether]]:
    """Yields the address of the app and its client.

    The head goes out with the first comment; tests that expect a status set a heartbeat that does not come in time.
    """
    client = AsyncTogether(KEY, base_url=upstream.base_url, retry=Retry(budget=0, max_retry_after=0))
    hub = Hub(abandon=0)
    app = FastAPI(lifespan=lifespan(client, hub))

    @app.post("/v1/chat/completions")
    async def completions(request: Request) -> EventSourceResponse:
        body: dict[str, Any] = await request.json()
        body.pop("stream")
        stream: Any = client.stream(body.pop("messages"), **body)
        made = {
            "decoded": lambda: stream,
            "passed through": lambda: passthrough(stream),
            "read ahead": lambda: buffered(stream),
            "by a hub": lambda: hub.open(stream),
        }[kind]()
        return EventSourceResponse(made, heartbeat=heartbeat)

    async with serving(app) as port:
        yield f"http://127.0.0.1:{port}/v1", client
        assert client.limits.in_flight == 0


@contextlib.asynccontextmanager
async def sdk(base_url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(api_key="a-visitors", base_url=base_url, max_retries=0) as client:
        yield client


def ask(client: openai.AsyncOpenAI, **options: Any) -> Any:
    messages: Any = [{"role": "user", "content": "Say it."}]
    return client.chat.completions.create(model=MODEL, messages=messages, stream=True, **options)


async def texts_of(stream: Any) -> list[str]:
    return [chunk.choices[0].delta.content async for chunk in stream if chunk.choices[0].delta.content]


async def test_its_stream_is_accepted_and_complete(base_url: str, upstream: EmulatorServer) -> None:
    """Every token, the finish reason and the usage; comments before and between them do no harm."""
    upstream.tokens_per_second, upstream.first_token_s = 20, 0.05
    async with sdk(base_url) as client:
        chunks = [chunk async for chunk in await ask(client)]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens == len(TOKENS)
    assert {chunk.model for chunk in chunks} == {MODEL}
    assert len({chunk.id for chunk in chunks}) == 1


async def test_its_tool_calls_are_complete(base_url: str, upstream: EmulatorServer) -> None:
    """Several calls, with the pieces of their arguments in order."""
    calls = [Call("look", {"city": "Zürich", "days": [1, 2]}, id="call_1"), Call("wait", "{}", id="call_2")]
    upstream.script = Reply(None, tool_calls=calls)
    tools: Any = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("look", "wait")]
    arguments: dict[int, str] = {}
    names: dict[int, str] = {}
    async with sdk(base_url) as client:
        async for chunk in await ask(client, tools=tools):
            for piece in chunk.choices[0].delta.tool_calls or ():
                names.setdefault(piece.index, piece.function.name)
                arguments[piece.index] = arguments.get(piece.index, "") + (piece.function.arguments or "")
    assert names == {0: "look", 1: "wait"}
    assert arguments == {0: '{"city":"Zürich","days":[1,2]}', 1: "{}"}


@pytest.mark.parametrize(
    "fault", [Cut(after_token=2), Cut(after_token=2, how="end"), ErrorInStream(after_token=2)], ids=str
)
async def test_an_error_in_the_midst_is_its_api_error(base_url: str, upstream: EmulatorServer, fault: Fault) -> None:
    """After all texts before it: a stream that was cut off is never taken for a complete one."""
    upstream.faults, upstream.tokens_per_second = fault, APART
    got: list[str] = []
    async with sdk(base_url) as client:
        stream = await ask(client)
        with pytest.raises(openai.APIError) as caught:
            await collect(stream, got)
    assert not isinstance(caught.value, openai.APIConnectionError)
    assert "".join(got) == "One two"
    assert caught.value.message


async def collect(stream: Any, got: list[str]) -> None:
    async for chunk in stream:
        got.append(chunk.choices[0].delta.content or "")  # noqa: PERF401 - what came before an error counts


@pytest.mark.parametrize("kind", ["decoded", "passed through"])
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
async def test_a_status_is_its_class(
    upstream: EmulatorServer, kind: str, status: int, error: type[openai.APIStatusError]
) -> None:
    """With our body, which has the `code` and `type` that the SDK looks for."""
    upstream.faults = Status(status)
    async with relaying(upstream, kind, heartbeat=60) as (url, _), sdk(url) as client:
        with pytest.raises(error) as caught:
            await ask(client)
    assert caught.value.status_code == status
    assert caught.value.type is not None
    assert KEY not in str(caught.value)


async def test_its_own_retries_find_a_status(upstream: EmulatorServer) -> None:
    """It asks again, and gets its answer."""
    upstream.faults = InTurn(Status(503))
    async with (
        relaying(upstream, "decoded", heartbeat=60) as (url, _),
        openai.AsyncOpenAI(api_key="a-visitors", base_url=url, max_retries=1) as client,
    ):
        assert "".join(await texts_of(await ask(client))) == TEXT
    assert upstream.journal.total == 2


@pytest.mark.parametrize("stage", ["first", "tokens", "silence"])
async def test_closing_its_response_leaves_our_upstream(base_url: str, upstream: EmulatorServer, stage: str) -> None:
    """`await response.close()`, or the end of its `async with`, stops the model at once."""
    upstream.script = Reply(("tok ",) * 1_000)
    upstream.tokens_per_second = 200
    upstream.faults = {"first": Stall(after_token=0), "tokens": None, "silence": Stall(after_token=2)}[stage]
    loop = asyncio.get_running_loop()
    async with sdk(base_url) as client:
        stream = await ask(client)  # the head comes with the first comment
        entry = await upstream.journal.wait(1)
        if stage != "first":
            await anext(stream)
        at = loop.time()
        await stream.close()
        assert await entry.wait_left() - at < 5 * SOON  # three parties share this loop


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["cancelled", "given up"])
async def test_an_sdk_that_gives_up_before_the_head_leaves_our_upstream(
    upstream: EmulatorServer, kind: str, how: str
) -> None:
    """Its caller's cancellation, or its own timeout."""
    upstream.faults = Stall()
    async with relaying(upstream, kind, heartbeat=60) as (url, _), sdk(url) as client:
        asking = asyncio.ensure_future(ask(client, timeout=0.5 if how == "given up" else 60))
        entry = await upstream.journal.wait(1)
        if how == "cancelled":
            asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled() or isinstance(asking.exception(), openai.APITimeoutError)
        await entry.wait_left()


# ------------------------------------------------------------------------------------------------------- this package


@contextlib.asynccontextmanager
async def ours(base_url: str) -> AsyncIterator[AsyncTogether]:
    async with AsyncTogether("a-visitors", base_url=base_url, retry=Retry(budget=0, max_retry_after=0)) as client:
        yield client


async def test_this_package_reads_its_own_relay(base_url: str, upstream: EmulatorServer) -> None:
    """The completion at the end of the chain is the one at its beginning."""
    async with ours(base_url) as client, AsyncTogether(KEY, base_url=upstream.base_url) as direct:
        stream = client.stream("Say it.", model=MODEL, seed=1)
        texts = [text async for text in stream.text()]
        relayed = await stream.completion()
        original = await direct.stream("Say it.", model=MODEL, seed=1).completion()
    assert texts == list(TOKENS)
    assert without_id_and_time(relayed) == without_id_and_time(original)


def without_id_and_time(completion: ChatCompletion) -> dict[str, Any]:
    return {name: value for name, value in completion.to_dict().items() if name not in ("id", "created")}


@pytest.mark.parametrize(
    "fault", [Cut(after_token=2), Cut(after_token=2, how="end"), ErrorInStream(after_token=2)], ids=str
)
async def test_an_error_event_is_its_stream_api_error(base_url: str, upstream: EmulatorServer, fault: Fault) -> None:
    """With what had come as its partial."""
    upstream.faults, upstream.tokens_per_second = fault, APART
    async with ours(base_url) as client:
        with pytest.raises(StreamAPIError) as caught:
            await client.stream("Say it.", model=MODEL).completion()
    assert caught.value.partial.text == "One two"


@pytest.mark.parametrize("kind", ["decoded", "passed through"])
@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 422, 429, 500, 503])
async def test_a_status_is_the_same_class_at_both_ends(upstream: EmulatorServer, kind: str, status: int) -> None:
    """The relay's client gets the error that the relay got."""
    upstream.faults = Status(status)
    async with (
        relaying(upstream, kind, heartbeat=60) as (url, _),
        ours(url) as client,
        AsyncTogether(KEY, base_url=upstream.base_url, retry=Retry(budget=0, max_retry_after=0)) as direct,
    ):
        with pytest.raises(TogetherError) as relayed:
            await client.stream("Say it.", model=MODEL).completion()
        with pytest.raises(TogetherError) as original:
            await direct.stream("Say it.", model=MODEL).completion()
    assert type(relayed.value) is type(original.value)


async def test_leaving_one_end_of_a_chain_leaves_the_other(base_url: str, upstream: EmulatorServer) -> None:
    """A relay of a relay: `break` in the last client stops the model behind the first."""
    upstream.faults = Stall(after_token=2)
    async with ours(base_url) as client:
        async for _ in client.stream("Say it.", model=MODEL):
            break
        entry = await upstream.journal.wait(1)
        await entry.wait_left()
