"""Connections that went stale, proxies, many calls at once, and event loops one after the other or side by side."""

import asyncio
import contextlib
import gc
import socket
import threading
from typing import Any

import pytest

from support.survival import (
    KEY,
    KINDS,
    MODEL,
    PROMPT,
    STREAMED,
    TEXT,
    TOKENS,
    Outcome,
    ask,
    case,
    check_discreet,
    listening,
    open_stream,
    scene,
)
from support.virtual_time import virtual
from together_async import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AsyncTogether,
    IncompleteStreamError,
    RateLimiter,
    RateLimitError,
    StreamAPIError,
    StreamConnectionError,
    StreamProtocolError,
    StreamTimeoutError,
    Timeouts,
    TogetherError,
)
from together_async.testing import (
    CloseAfter,
    Cut,
    Drip,
    EmulatorServer,
    ErrorInStream,
    Fault,
    Garbage,
    Gzip,
    InTurn,
    Reply,
    Split,
    Stall,
    Status,
    WithoutDone,
    WithoutFinishReason,
)

no_leaks = pytest.mark.usefixtures("no_leaks")


# --------------------------------------------------------------------------------------------------- stale connections


@no_leaks
@pytest.mark.parametrize("fault", [CloseAfter(), CloseAfter(0.001), CloseAfter(announce=True)], ids=str)
async def test_a_connection_closed_after_each_response(fault: Fault) -> None:
    """With and without a word, at once or a moment later: the next call works."""
    async with scene(faults=fault) as s:
        for number in range(20):
            with case(number):
                assert (await s.ask(KINDS[number % len(KINDS)])).text == s.truth


@no_leaks
@pytest.mark.parametrize("kind", KINDS)
async def test_connections_dropped_between_requests(kind: str) -> None:
    """A server that was restarted costs no call."""
    async with scene() as s:
        for _ in range(10):
            s.server.drop_connections()
            assert (await s.ask(kind)).text == s.truth


@no_leaks
@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_pooled_connection_that_fails_at_once(kind: str, how: Any) -> None:
    """Such a connection counts as stale: the request is sent once more, on a new connection, and not a third time."""
    async with scene() as s:
        s.server.faults = InTurn(Cut(how=how))
        assert (await s.ask(kind)).text == s.truth
        assert s.server.journal.total == 2
        assert s.server.journal[0].connection != s.server.journal[1].connection
        await s.check_usable()
        s.server.journal.clear()
        s.server.faults = Cut(how=how)
        error = (await s.ask(kind)).error
        assert type(error) is APIConnectionError
        assert error.attempts == s.server.journal.total == 2


@no_leaks
@pytest.mark.parametrize("kind", KINDS)
async def test_a_broken_answer_is_not_asked_for_again(kind: str) -> None:
    """Once anything of a response has come, the request is not repeated behind the caller's back."""
    async with scene() as s:
        for fault in (Cut(in_head=9, how="close"), Cut(at_byte=0), Cut(at_byte=100), Status(503), Status(429)):
            s.server.journal.clear()
            s.server.faults = fault
            with case(fault):
                outcome = await s.ask(kind)
                assert outcome.error is not None
                assert outcome.error.attempts == s.server.journal.total == 1


# ------------------------------------------------------------------------------------------------------------- proxies


async def refuses(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 6\r\n\r\nnobody")
    await writer.drain()
    await reader.read()


async def hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")


async def is_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


@virtual
@no_leaks
@pytest.mark.parametrize("kind", ["create", "text"])
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("proxy", [refuses, hangs_up, is_silent, None])
async def test_a_proxy_that_does_not_help(proxy: Any, scheme: str, kind: str) -> None:
    """The proxy refuses, hangs up, is silent or does not exist; its password is in no text."""
    async with contextlib.AsyncExitStack() as stack:
        if proxy is None:
            taken = stack.enter_context(socket.socket())
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
        else:
            port = await stack.enter_async_context(listening(proxy))
        client = await stack.enter_async_context(
            AsyncTogether(
                KEY,
                base_url=f"{scheme}://somewhere.invalid/v1",
                proxy=f"http://user:secret-of-the-proxy@127.0.0.1:{port}",
                timeouts=Timeouts(connect=4, first_token=100),
            )
        )
        outcome = await ask(client, kind, within=1_000)
        error = outcome.error
        assert error is not None
        check_discreet(error, "secret-of-the-proxy")
        if proxy is refuses and scheme == "http":
            assert isinstance(error, APIStatusError)
            assert error.status_code == 407
        elif proxy is is_silent:
            assert isinstance(error, APITimeoutError)
            assert error.phase == ("connect" if scheme == "https" else "first_token")
        else:
            assert type(error) is APIConnectionError
        assert error.attempts == 1


# -------------------------------------------------------------------------------------------------------- many at once


def words(model: str) -> tuple[str, ...]:
    """The text of a model: its own name, over and over, in 30 tokens."""
    return tuple(f"{model}:{number} " for number in range(30))


FATES: dict[str, tuple[Any, type[TogetherError] | None, int | None]] = {
    "well": (None, None, None),
    "split": (Split(every=3), None, None),
    "gzip": (Gzip(), None, None),
    "drip": (Drip(size=50, every_s=0.001), None, None),
    "undone": (WithoutDone(), None, None),
    "unfinished": (WithoutFinishReason(), None, None),
    "neither": (WithoutDone() + WithoutFinishReason(), IncompleteStreamError, 30),
    "reset": (Cut(after_token=11), StreamConnectionError, 11),
    "close": (Cut(after_token=12, how="close"), StreamConnectionError, 12),
    "chunk": (Cut(after_token=13, how="chunk"), StreamConnectionError, 13),
    "end": (Cut(after_token=14, how="end"), IncompleteStreamError, 14),
    "garbage": (Garbage(after_token=15), StreamProtocolError, 15),
    "error": (ErrorInStream(after_token=16), StreamAPIError, 16),
    "stall": (Stall(after_token=17), StreamTimeoutError, 17),
    "late": (Stall(), APITimeoutError, None),
    "limited": (Status(429), RateLimitError, None),
    "left": (Stall(after_token=18), None, 18),
}


async def leave(client: AsyncTogether, model: str) -> Outcome:
    """Reads 18 tokens and leaves the loop."""
    got: list[str] = []
    async for text in client.stream(PROMPT, model=model).text():
        got.append(text)
        if len(got) == 18:
            break
    return Outcome(tuple(got), None, None, 0)


@virtual
@no_leaks
async def test_forty_mixed_streams_at_once() -> None:
    """Each gets its own text, or its own error with its own partial, whatever happens to the others."""
    models = [f"{name}-{number}" for number in range(3) for name in FATES][:48]

    async def ask_or_leave(model: str, client: AsyncTogether, number: int) -> Outcome:
        if model.startswith("left"):
            return await leave(client, model)
        kind = STREAMED[number % len(STREAMED)]
        timeouts = Timeouts(first_token=5, idle=5)
        return await ask(client, kind, within=1_000, alone=False, model=model, timeouts=timeouts)

    limiter = RateLimiter(clock=asyncio.get_running_loop().time)
    async with (
        EmulatorServer(
            lambda request: Reply(words(request.model)),
            faults=lambda request: FATES[request.model.partition("-")[0]][0],
            tokens_per_second=500,
            jitter=0.9,
        ) as server,
        AsyncTogether(KEY, base_url=server.base_url, limits=limiter) as client,
    ):
        for _ in range(2):  # the second time on connections of the first
            outcomes = await asyncio.gather(
                *(ask_or_leave(model, client, number) for number, model in enumerate(models))
            )
            for model, outcome in zip(models, outcomes, strict=True):
                _, error, tokens = FATES[model.partition("-")[0]]
                with case(model):
                    if model.startswith("left"):
                        assert outcome.delivered == words(model)[:18]
                    elif error is None:
                        assert outcome.text == "".join(words(model))
                    else:
                        assert type(outcome.error) is error
                        if tokens is not None:
                            assert outcome.partial == "".join(words(model)[:tokens])
        for entry in server.journal:
            await entry.wait_ended(1)


# --------------------------------------------------------------------------------------------------------------- loops


def end_well(client: AsyncTogether) -> None:
    assert asyncio.run(ask(client, "text")).text == TEXT


async def leave_open(client: AsyncTogether, held: list[Any]) -> None:
    stream = open_stream(client, timeouts=Timeouts(first_token=5))
    held.append(stream)
    assert await anext(stream.text()) == TOKENS[0]


async def break_one(client: AsyncTogether, held: list[Any]) -> None:
    outcome = await ask(client, "text", timeouts=Timeouts(first_token=5, idle=0.5))
    assert outcome.partial == "".join(TOKENS[:2])


async def finish_one(client: AsyncTogether, held: list[Any]) -> None:
    outcome = await ask(client, "text", model="other")
    assert outcome.text == TEXT


async def leave_reading(client: AsyncTogether, held: list[Any]) -> None:
    stream = open_stream(client)
    held.append(asyncio.create_task(stream.completion()))
    while not client._connections.current or not client._connections.current.responses:  # noqa: ASYNC110 - it has begun to read
        await asyncio.sleep(0.001)


async def leave_opening(client: AsyncTogether, held: list[Any]) -> None:
    held.append(asyncio.create_task(client.create(PROMPT, model=MODEL)))
    await asyncio.sleep(0.02)


@pytest.mark.parametrize("first", [finish_one, break_one, leave_open, leave_reading, leave_opening])
def test_one_client_in_one_loop_after_the_other(first: Any) -> None:
    """Whatever the first loop left behind, the second works, and using a leftover raises one clear error."""
    rule = Stall(after_token=2) if first is not leave_opening else Stall()
    with EmulatorServer(TEXT, faults=lambda request: rule if request.model == MODEL else None) as server:
        client = AsyncTogether(KEY, base_url=server.base_url)
        held: list[Any] = []
        for _ in range(3):
            asyncio.run(first(client, held))

            async def second() -> Outcome:
                return await ask(client, "text", model="other")

            assert asyncio.run(second()).text == TEXT

            async def go_on() -> None:
                if not isinstance(held[-1], asyncio.Task):
                    with pytest.raises(TogetherError) as caught:
                        await held[-1].completion()
                    check_discreet(caught.value)

            if held:
                asyncio.run(go_on())
        held.clear()
        gc.collect()
        asyncio.run(client.aclose())


def test_a_loop_and_a_client_for_each_thread() -> None:
    """Eight threads, eight clients, one server: no thread sees another's text."""
    failures: list[BaseException] = []

    def work(name: str, url: str) -> None:
        async def main() -> None:
            async with AsyncTogether(KEY, base_url=url) as client:
                for number in range(8):
                    outcome = await ask(client, KINDS[number % len(KINDS)], model=name)
                    assert outcome.text == "".join(words(name))

        try:
            asyncio.run(main())
        except BaseException as error:  # noqa: BLE001 - raised in the test's own thread
            failures.append(error)

    with EmulatorServer(lambda request: Reply(words(request.model))) as server:
        threads = [threading.Thread(target=work, args=(f"m{number}", server.base_url)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert server.journal.total == 64
    if failures:
        raise failures[0]


def test_one_client_in_two_threads_says_so() -> None:
    """A client belongs to its loop: another thread's call gets one clear error, and the first call goes on."""
    outcomes: list[Outcome] = []

    with EmulatorServer(TEXT) as server:

        async def main() -> None:
            async with AsyncTogether(KEY, base_url=server.base_url) as client:
                assert (await ask(client, "text")).text == TEXT
                await asyncio.to_thread(lambda: outcomes.append(asyncio.run(ask(client, "text"))))
                assert (await ask(client, "text")).text == TEXT

        asyncio.run(main())
    assert type(outcomes[0].error) is APIConnectionError
    assert outcomes[0].error.attempts == 0
    assert "another event loop" in str(outcomes[0].error)
