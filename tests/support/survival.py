"""The survival tests' one function that makes a call, in each way users do, and judges the outcome."""

from __future__ import annotations

import asyncio
import contextlib
import time
import traceback
from collections.abc import AsyncIterator, Iterator
from typing import Any

import attrs

from together_async import (
    AsyncTogether,
    ChatCompletion,
    ChatCompletionStream,
    Choice,
    IncompleteStreamError,
    RateLimiter,
    StreamAPIError,
    StreamConnectionError,
    StreamError,
    StreamProtocolError,
    StreamTimeoutError,
    Timeouts,
    TogetherError,
)
from together_async.testing import EmulatorServer

MODEL = "meta-llama/Llama-3.3-70B-Instruct-Turbo"
# All in lower case: what comes back as a host's name or a media type is lowered on the way.
KEY = "tgp_v1_survival-key-0f1e2d3c4b5a"
PROMPT = "zanzibar-penguins whisper about turbines"
TOKENS = ("One", " two", " thrée", " four")
TEXT = "".join(TOKENS)
SOON = 5.0
"""Seconds within which everything without a limit of its own must have happened; nothing comes near it."""
LIMIT = 0.1
"""Seconds of a limit that is meant to run out."""

STREAMED = ("chunks", "text", "completion", "block")
"""The ways to read a stream: a loop over chunks, over texts, `.completion()`, and texts inside `async with`."""
KINDS = ("create", *STREAMED)
STREAM_ERRORS = (
    IncompleteStreamError,
    StreamAPIError,
    StreamConnectionError,
    StreamProtocolError,
    StreamTimeoutError,
)


@attrs.frozen
class Outcome:
    """What a user got: the texts that were delivered, then a completion or an error."""

    delivered: tuple[str, ...]
    completion: Any  # a ChatCompletion, or None
    error: Any  # a TogetherError, or None; the tests look at what the class at hand has
    seconds: float

    @property
    def text(self) -> str | None:
        """The text of a whole answer; None without one."""
        return None if self.completion is None else self.completion.text or ""

    @property
    def partial(self) -> str | None:
        """The text of the error's partial; None when it has none."""
        return self.error.partial.text or "" if isinstance(self.error, StreamError) else None

    @property
    def choices(self) -> tuple[Choice, ...]:
        """The choices of the error's partial."""
        choices: tuple[Choice, ...] = self.error.partial.choices
        return choices


async def _create(client: AsyncTogether, got: list[str], **options: Any) -> ChatCompletion:
    completion = await client.create(PROMPT, **options)
    got.append(completion.text or "")
    return completion


async def _chunks(client: AsyncTogether, got: list[str], **options: Any) -> ChatCompletion:
    stream = client.stream(PROMPT, **options)
    async for chunk in stream:
        got += [choice.delta.content or "" for choice in chunk.choices if not choice.index]
    return await stream.completion()


async def _text(client: AsyncTogether, got: list[str], **options: Any) -> ChatCompletion:
    stream = client.stream(PROMPT, **options)
    async for text in stream.text():
        got.append(text)  # noqa: PERF401 - what was delivered before an error counts
    return await stream.completion()


async def _completion(client: AsyncTogether, got: list[str], **options: Any) -> ChatCompletion:
    completion = await client.stream(PROMPT, **options).completion()
    got.append(completion.text or "")
    return completion


async def _block(client: AsyncTogether, got: list[str], **options: Any) -> ChatCompletion:
    async with client.stream(PROMPT, **options) as stream:
        async for text in stream.text():
            got.append(text)  # noqa: PERF401 - as above
        return await stream.completion()


_ASK = {"create": _create, "chunks": _chunks, "text": _text, "completion": _completion, "block": _block}


async def ask(client: AsyncTogether, kind: str, *, within: float = SOON, alone: bool = True, **options: Any) -> Outcome:
    """Asks in one of the `KINDS` and judges what is true of every outcome.

    An error is one of the tree, shows neither key nor prompt, and has for its partial what was delivered.
    Whatever else is raised, and what takes longer than `within` seconds, is a failure. Afterwards no place is taken.

    Each call that is `alone` is the first of its account: after a 429 or a 402 the next one would wait, or be refused.
    """
    limiter = RateLimiter() if alone else client._limiter
    client._limiter = limiter
    got: list[str] = []
    completion: ChatCompletion | None = None
    error: TogetherError | None = None
    began = time.monotonic()
    scope = asyncio.timeout(within)
    try:
        async with scope:
            completion = await _ASK[kind](client, got, **{"model": MODEL, **options})
    except TogetherError as caught:
        assert not scope.expired(), "it hung"
        error = caught
        check_discreet(caught)
    assert not alone or (limiter.state.in_flight, limiter.state.queued) == (0, 0), "a place is still taken"
    outcome = Outcome(tuple(got), completion, error, time.monotonic() - began)
    if kind not in ("create", "completion"):
        whole = outcome.text if completion is not None else outcome.partial
        assert "".join(got) == (whole or ""), "the answer or the partial is not what was delivered"
    return outcome


def chain(error: BaseException) -> list[BaseException]:
    """An error and what a traceback shows of where it came from; fails on a circle."""
    found: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        assert not any(cause is seen for seen in found), "the chain of causes is a circle"
        found.append(cause)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return found


def check_discreet(error: BaseException, *secrets: str) -> None:
    """No text of an error and its causes shows the key or the prompt."""
    texts = ["".join(traceback.format_exception(error))]
    for link in chain(error):
        texts += [str(link), repr(link), repr(link.args)]
    for text in texts:
        for secret in (KEY, PROMPT, *secrets):
            assert secret.lower() not in text.lower(), f"{type(error).__name__} shows a secret"


@contextlib.contextmanager
def case(*facts: object) -> Iterator[None]:
    """Names the case of a table that a failure is about."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"case: {', '.join(map(str, facts))}")
        raise


@attrs.frozen
class Scene:
    """An emulator, a client of it, and what the emulator says to `PROMPT` when nothing goes wrong."""

    server: EmulatorServer
    client: AsyncTogether
    truth: str

    async def ask(self, kind: str, **options: Any) -> Outcome:
        """`ask`, and what was delivered is a prefix of the truth."""
        outcome = await ask(self.client, kind, **options)
        text = outcome.text if outcome.error is None else outcome.partial
        assert self.truth.startswith(text or ""), "something was delivered that the model never generated"
        return outcome

    async def check_usable(self) -> None:
        """The client goes on as if nothing had been."""
        self.server.faults = None
        for kind in ("create", "text"):
            assert (await ask(self.client, kind)).text == self.truth


@contextlib.asynccontextmanager
async def scene(
    script: Any = TEXT, *, faults: Any = None, timeouts: Timeouts | None = None, usable: bool = True, **options: Any
) -> AsyncIterator[Scene]:
    """Sets a scene; at its end the client must be usable and idle."""
    async with (
        EmulatorServer(script, **options) as server,
        AsyncTogether(KEY, base_url=server.base_url, timeouts=timeouts) as client,
    ):
        truth = (await client.create(PROMPT, model=MODEL)).text or ""
        server.journal.clear()
        server.faults = faults
        yield Scene(server, client, truth)
        if usable:
            await Scene(server, client, truth).check_usable()


async def events_of(server: EmulatorServer, **options: Any) -> list[bytes]:
    """The bytes of each event of the stream which the emulator sends for `PROMPT`."""
    import aiohttp  # the wire itself, as nothing of ours has read it

    body = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}], "stream": True, **options}
    async with aiohttp.ClientSession() as session, session.post(f"{server.base_url}/chat/completions", json=body) as r:
        data = await r.read()
    server.journal.clear()
    return [event + b"\n\n" for event in data.split(b"\n\n")[:-1]]


@contextlib.asynccontextmanager
async def listening(on_connect: Any) -> AsyncIterator[int]:
    """A port on which `on_connect(reader, writer)` is all that happens."""
    tasks: set[asyncio.Task[Any]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await on_connect(reader, writer)
        writer.transport.abort()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(3):
            await asyncio.sleep(0)


def is_prefix_of_tokens(text: str) -> bool:
    """Whether a text is some first tokens of `TEXT`."""
    return any(text == "".join(TOKENS[:count]) for count in range(len(TOKENS) + 1))


def open_stream(client: AsyncTogether, **options: Any) -> ChatCompletionStream:
    """A stream that asks `PROMPT`."""
    return client.stream(PROMPT, model=MODEL, **options)
