"""Leaving a stream in every way and at every await; cancelling and closing; what the server sees of each."""

import asyncio
import contextlib
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

import pytest

from support.calls import do_block, do_chunks, do_completion, do_create, do_text
from support.leaving import (
    ENDLESS,
    WAYS,
)
from support.survival import KEY, MODEL, PROMPT, STREAM_ERRORS, TEXT, ask, case, check_discreet, open_stream, scene
from support.virtual_time import virtual
from together_async import (
    APIConnectionError,
    AsyncTogether,
    ChatCompletionStream,
    TogetherError,
)
from together_async.testing import Cut, EmulatorServer, InTurn, Redirect, Stall, Status

pytestmark = pytest.mark.usefixtures("no_leaks")


# ------------------------------------------------------------------------------------------------------ ways to leave


@pytest.mark.parametrize("way", WAYS)
async def test_the_server_sees_that_a_reader_left(way: Callable[[AsyncTogether], Awaitable[None]]) -> None:
    """However a loop over a stream is left, the connection ends at once and no more tokens are generated."""
    async with (
        EmulatorServer(ENDLESS.strip(), tokens_per_second=100) as server,
        AsyncTogether(KEY, base_url=server.base_url) as client,
    ):
        await way(client)
        entry = server.journal[0]
        await entry.wait_left(5)
        assert entry.outcome == "client left"
        written = entry.tokens_written
        assert 0 < written < 1000
        server.script, server.tokens_per_second = TEXT, None
        assert (await ask(client, "text")).text == TEXT
        assert entry.tokens_written == written
        assert server.open_connections <= 1


@virtual
@pytest.mark.parametrize("tokens", [None, 0, 2], ids=["before the head", "before a token", "after tokens"])
@pytest.mark.parametrize("kind", ["create", "chunks", "text", "completion", "block"])
async def test_closing_the_client_while_somebody_waits(kind: str, tokens: int | None) -> None:
    """A waiting call raises one error of the tree; the client's next call says that the client is closed."""
    async with EmulatorServer(TEXT, faults=Stall(after_token=tokens)) as server:
        client = AsyncTogether(KEY, base_url=server.base_url)
        task = asyncio.create_task(ask(client, kind))
        entry = await server.journal.wait()
        await asyncio.sleep(1)  # what was sent has arrived
        await client.aclose()
        outcome = await task
        broken = kind != "create" and tokens is not None
        assert type(outcome.error) in STREAM_ERRORS if broken else isinstance(outcome.error, APIConnectionError)
        if broken:
            assert outcome.partial == {0: "", 2: "One two"}[tokens or 0]
        assert "closed" in str(outcome.error)
        await entry.wait_left(1)
        late = await ask(client, kind)
        assert isinstance(late.error, APIConnectionError)
        assert late.error.attempts == 0


# ---------------------------------------------------------------------------------------------- at every suspension


class Interrupted:
    """Awaits a coroutine and interrupts it at its n-th suspension.

    Args:
        coroutine: What is awaited.
        at: The suspension, 0 for the first.
        how: `pending` cancels the task while it waits, `ready` in the moment in which the wait's result is there
            already, `close` closes the coroutine as the garbage collector does.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], at: int, how: str) -> None:
        self._coroutine = coroutine
        self._at = at
        self._how = how
        self.suspensions = 0

    @property
    def reached(self) -> bool:
        return self.suspensions > self._at

    def __await__(self) -> Generator[Any, Any, Any]:
        error: BaseException | None = None
        result: Any = None
        task = asyncio.current_task()
        assert task is not None
        cancel = task.cancel
        while True:
            try:
                waited = self._coroutine.send(result) if error is None else self._coroutine.throw(error)
            except StopIteration as end:
                return end.value
            now, self.suspensions = self.suspensions == self._at, self.suspensions + 1
            if now and self._how == "close":
                self._coroutine.close()
                return None
            if now and self._how == "ready" and waited is not None:
                # Before the task's own callback, so that the task finds itself cancelled and the result there.
                waited.add_done_callback(lambda _: cancel())
            elif now:
                cancel()
            error, result = None, None
            try:
                result = yield waited
            except BaseException as caught:  # noqa: BLE001 - it is the coroutine's
                error = caught


async def do_aclose_stream(client: AsyncTogether) -> Any:
    stream = open_stream(client)
    await anext(stream)
    await stream.aclose()
    return TEXT


async def do_follow(client: AsyncTogether) -> Any:
    return (await client.create(PROMPT, model="moved")).text


async def do_fail(client: AsyncTogether) -> Any:
    with contextlib.suppress(TogetherError):
        await client.create(PROMPT, model="refused")
    return TEXT


DEEDS = [do_create, do_chunks, do_text, do_block, do_completion, do_aclose_stream, do_follow, do_fail]


async def interrupted(
    deed: Callable[[AsyncTogether], Coroutine[Any, Any, Any]], client: AsyncTogether, at: int, how: str
) -> tuple[bool, asyncio.Task[Any]]:
    """Runs a deed in a task of its own; returns whether the suspension was reached, and the task."""
    steps = Interrupted(deed(client), at, how)

    async def run() -> Any:
        return await steps

    task = asyncio.create_task(run())
    async with asyncio.timeout(5):
        await asyncio.wait([task])
    return steps.reached, task


def refused_sometimes(request: Any) -> Any:
    if request.model == "moved":
        return Redirect()
    if request.model == "refused":
        return Status(500, "x" * 2000) + Stall(at_byte=1000, seconds=0.001)
    return Stall(after_token=2, seconds=0.001) if request.model == MODEL else None


@pytest.mark.parametrize("how", ["pending", "ready", "close"])
@pytest.mark.parametrize("pooled", [False, True], ids=["connecting", "pooled"])
@pytest.mark.parametrize("deed", DEEDS)
async def test_interrupted_at_every_suspension(
    deed: Callable[[AsyncTogether], Coroutine[Any, Any, Any]], pooled: bool, how: str
) -> None:
    """CancelledError is raised unchanged, at the first await and at the last; the next call succeeds each time."""
    async with EmulatorServer(TEXT, faults=refused_sometimes) as server:
        at, reached = 0, True
        for at in range(200):
            async with AsyncTogether(KEY, base_url=server.base_url) as client:
                if pooled:
                    await client.create(PROMPT, model="warm")
                reached, task = await interrupted(deed, client, at, how)
                with case(f"suspension {at}"):
                    if reached and how != "close":
                        assert task.cancelled(), "cancellation was swallowed or wrapped"
                    elif not reached:
                        assert task.result() == TEXT
                    assert await do_text(client) == TEXT
                    assert await do_create(client) == TEXT
            if not reached:
                break
        assert not reached
        assert at >= (1 if pooled else 2)


@pytest.mark.parametrize("how", ["pending", "ready"])
async def test_a_block_cancelled_at_every_suspension_can_be_read_on(how: str) -> None:
    """Inside `async with` a cancelled read loses nothing: the block reads on, each token once."""
    async with EmulatorServer(TEXT, faults=Stall(after_token=2, seconds=0.001)) as server:
        at, reached = 0, True
        for at in range(200):
            async with AsyncTogether(KEY, base_url=server.base_url) as client, open_stream(client) as stream:
                got: list[str] = []

                async def read(_: Any, stream: ChatCompletionStream = stream, got: list[str] = got) -> None:
                    async for text in stream.text():
                        got.append(text)  # noqa: PERF401 - what came before the cancellation counts

                reached, task = await interrupted(read, client, at, how)
                assert task.cancelled() is reached
                await read(client)
                assert "".join(got) == TEXT
                assert (await stream.completion()).text == TEXT
            if not reached:
                break
        assert at >= 1


@pytest.mark.parametrize("how", ["pending", "ready", "close"])
@pytest.mark.parametrize("deed", [do_create, do_text, do_completion])
async def test_a_second_try_interrupted_at_every_suspension(
    deed: Callable[[AsyncTogether], Coroutine[Any, Any, Any]], how: str
) -> None:
    """The same while a request is sent again after a stale connection."""
    async with EmulatorServer(TEXT) as server:
        at, reached = 0, True
        for at in range(200):
            async with AsyncTogether(KEY, base_url=server.base_url) as client:
                await client.create(PROMPT, model=MODEL)
                server.faults = InTurn(Cut())
                reached, task = await interrupted(deed, client, at, how)
                server.faults = None
                with case(f"suspension {at}"):
                    assert how == "close" or task.cancelled() is reached
                    assert reached or task.result() == TEXT
                    assert await do_text(client) == TEXT
            if not reached:
                break
        assert at >= 4


@pytest.mark.parametrize("how", ["pending", "ready", "close"])
@pytest.mark.parametrize("under_way", ["nothing", "a stream", "two sessions"])
async def test_closing_the_client_interrupted_at_every_suspension(under_way: str, how: str) -> None:
    """A client whose closing is cancelled is closed all the same: nothing is left open."""
    at = 0
    for at in range(100):
        async with EmulatorServer(TEXT) as server:
            client = AsyncTogether(KEY, base_url=server.base_url)
            await client.create(PROMPT, model=MODEL)
            if under_way == "a stream":
                server.faults = Stall(after_token=1)
                await anext(open_stream(client))
            elif under_way == "two sessions":
                server.faults = InTurn(Cut())  # taken for a stale connection, and sent again by the other session
                await client.create(PROMPT, model=MODEL)
                assert server.journal.total == 3
            sessions = list(client._connections.current._own_sessions())  # type: ignore[union-attr] # set once a request was sent
            assert len(sessions) == 1 + (under_way == "two sessions")
            reached, task = await interrupted(lambda client: client.aclose(), client, at, how)
            with case(f"suspension {at}"):
                assert how == "close" or task.cancelled() is reached
                await client.aclose()
                closed = [session.closed for session in sessions]
                for session in sessions:
                    await session.close()
                assert all(closed), "a session is left open"
        if not reached:
            break
    assert at > 0


@pytest.mark.parametrize("first", ["reader", "closer"])
@pytest.mark.parametrize("deed", [do_create, do_chunks, do_text, do_block, do_completion])
async def test_closing_the_client_at_every_turn(
    deed: Callable[[AsyncTogether], Coroutine[Any, Any, Any]], first: str
) -> None:
    """Whenever the client is closed, a call ends at once, with its answer or one error of the tree."""
    async with EmulatorServer(TEXT, faults=Stall(after_token=2, seconds=0.001)) as server:
        for turns in range(30):
            client = AsyncTogether(KEY, base_url=server.base_url)

            async def close(client: AsyncTogether = client, turns: int = turns) -> None:
                for _ in range(turns):
                    await asyncio.sleep(0)
                await client.aclose()

            closing = asyncio.create_task(close()) if first == "closer" else None
            task = asyncio.create_task(deed(client))
            closing = closing or asyncio.create_task(close())
            with case(f"turn {turns}"):
                _, waiting = await asyncio.wait([task, closing], timeout=10)
                assert not waiting, "it hangs"
                await closing
                error = task.exception()
                assert error is None or isinstance(error, TogetherError)
                if error is not None:
                    check_discreet(error)


@pytest.mark.parametrize("deed", [do_create, do_text, do_completion])
async def test_closing_the_client_in_the_turn_in_which_the_head_comes(
    deed: Callable[[AsyncTogether], Coroutine[Any, Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing after the head has come, but before the caller has run, must not leave that caller reading for ever."""
    from aiohttp.client_proto import ResponseHandler

    async with EmulatorServer(TEXT, faults=Stall(after_token=2)) as server:
        client = AsyncTogether(KEY, base_url=server.base_url)
        closing: list[asyncio.Task[None]] = []
        received = ResponseHandler.data_received

        def close_first(self: ResponseHandler, data: bytes) -> None:
            if not closing:
                closing.append(asyncio.create_task(client.aclose()))
            received(self, data)

        monkeypatch.setattr(ResponseHandler, "data_received", close_first)
        task = asyncio.create_task(deed(client))
        done, _ = await asyncio.wait([task], timeout=5)
        if not done:
            task.cancel()
            await asyncio.wait([task])
        assert done, "it hangs"
        await closing[0]
        assert isinstance(task.exception(), TogetherError)


def test_interrupted_counts_what_is_awaited() -> None:
    """The harness itself: three suspensions, then the result."""

    async def three(_: Any) -> int:
        for _ in range(3):
            await asyncio.sleep(0)
        return 7

    async def main() -> None:
        for at in range(3):
            reached, task = await interrupted(three, None, at, "pending")  # type: ignore[arg-type] # `three` needs no client
            assert reached
            assert task.cancelled()
        reached, task = await interrupted(three, None, 3, "pending")  # type: ignore[arg-type] # `three` needs no client
        assert not reached
        assert task.result() == 7

    assert inspect.iscoroutinefunction(three)
    asyncio.run(main())


@virtual
@pytest.mark.parametrize("kind", ["create", "chunks", "text", "completion", "block"])
async def test_the_callers_own_timeout_is_its_own(kind: str) -> None:
    """`asyncio.timeout` around a call gives a plain TimeoutError, and the client goes on."""
    async with scene(faults=Stall(after_token=1)) as s:
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(2):
                await ask(s.client, kind)
        assert type(caught.value) is TimeoutError
        await s.server.journal[0].wait_left(1)
