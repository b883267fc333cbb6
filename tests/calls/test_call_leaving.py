"""`Call`: cancelled or closed at every suspension, a call leaves nothing behind."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest

from support.calls import QUICK, clocked, do_create, do_text, good, leaves_nothing, refusal, refuses
from support.servers import ScriptedServer, answers, hangs
from support.survival import KEY, KINDS, MODEL, PROMPT, TEXT, Outcome, ask, case, check_discreet
from together_async import APIConnectionError, AsyncTogether, Limits, RateLimiter, StreamError, TogetherError
from together_async.retry import RetryBudget
from together_async.testing import EmulatorServer, InTurn, Stall, Status


class Stepped:
    """Awaits a coroutine, and calls a function at its n-th suspension.

    Args:
        coroutine: What is awaited.
        at: The suspension, 0 for the first.
        act: What is done, while it waits; with `ready` in the moment in which the wait's result is there already.
            None closes the coroutine, as the garbage collector does.
        ready: See `act`.
    """

    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], at: int, act: Callable[[], Any] | None, *, ready: bool = False
    ) -> None:
        self._coroutine = coroutine
        self._at = at
        self.act = act
        self._ready = ready
        self.suspensions = 0

    @property
    def reached(self) -> bool:
        return self.suspensions > self._at

    def __await__(self) -> Iterator[Any]:
        error: BaseException | None = None
        while True:
            try:
                waited = self._coroutine.send(None) if error is None else self._coroutine.throw(error)
            except StopIteration as end:
                return end.value
            now, self.suspensions = self.suspensions == self._at, self.suspensions + 1
            act = self.act
            if now and act is None:
                self._coroutine.close()
                return None
            if now and act is not None:
                if self._ready and waited is not None:
                    # Before the task's own callback, so that the result is there when the task goes on.
                    waited.add_done_callback(lambda _, act=act: act())
                else:
                    act()
            error = None
            try:
                yield waited
            except BaseException as caught:  # noqa: BLE001 - it is the coroutine's
                error = caught


PLACES = ("in the queue", "in the backoff", "in the pause of a 429", "before the head", "before a token", "in an error")


@contextlib.asynccontextmanager
async def waiting_place(place: str) -> AsyncIterator[tuple[EmulatorServer, AsyncTogether, RateLimiter]]:
    """A client whose next call has to wait for a few milliseconds at a place."""
    faults: Any = {
        "in the backoff": InTurn(Status(503)),
        "in the pause of a 429": InTurn(refuses(429, **{"retry-after-ms": "3"})),
        "before the head": Stall(in_head=0, seconds=0.002),
        "before a token": Stall(after_token=0, seconds=0.002),
        "in an error": InTurn(Status(503) + Stall(at_byte=20, seconds=0.002)),
    }.get(place)
    limiter = clocked(Limits(concurrency=1))
    async with (
        EmulatorServer(TEXT, faults=faults) as server,
        AsyncTogether(KEY, base_url=server.base_url, limits=limiter, retry=QUICK) as client,
    ):
        if place == "in the queue":
            held = await limiter.acquire(MODEL)
            asyncio.get_running_loop().call_later(0.002, limiter.driver.release, held)
        yield server, client, limiter


async def check_nothing_left(client: AsyncTogether, limiter: RateLimiter, server_goes_on: bool = True) -> None:
    """No place is taken, no call waits, no timer runs; the next call succeeds."""
    held = limiter.state.in_flight
    assert (held, limiter.state.queued) in ((0, 0), (1, 0))
    if server_goes_on:
        client._budget = RetryBudget(1)
        async with asyncio.timeout(5):
            assert await do_text(client) == TEXT
    assert (limiter.state.in_flight, limiter.state.queued) == (0, 0)
    assert limiter.driver.timer is None


@leaves_nothing
@pytest.mark.parametrize("how", ["pending", "ready", "close"])
@pytest.mark.parametrize("place", PLACES)
async def test_cancelled_at_every_suspension(place: str, how: str) -> None:
    """CancelledError comes out as it is, wherever a call waits, and nothing is left."""
    for make_call in (do_create, do_text):
        for at in itertools.count():
            with case(make_call.__name__, f"suspension {at}"):
                async with waiting_place(place) as (_, client, limiter):
                    reached = await cancelled_at(at, how, make_call(client))
                    await check_nothing_left(client, limiter)
            if not reached:
                break
        assert at >= 2


async def cancelled_at(at: int, how: str, coroutine: Coroutine[Any, Any, str]) -> bool:
    """Cancels (or closes) a coroutine at its n-th suspension; returns whether there was one."""
    steps = Stepped(coroutine, at, None, ready=how == "ready")

    async def run() -> Any:
        return await steps

    task = asyncio.create_task(run())
    if how != "close":
        steps.act = task.cancel
    await asyncio.wait([task], timeout=5)
    assert task.done(), "it hung"
    if how == "close":
        assert task.exception() is None
    else:
        assert task.cancelled() is steps.reached, "cancellation was swallowed or wrapped"
    assert steps.reached or task.result() == TEXT
    return steps.reached


@leaves_nothing
@pytest.mark.parametrize("ready", [False, True], ids=["pending", "ready"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("who", ["stream", "client"])
async def test_closed_at_every_suspension(who: str, place: str, ready: bool) -> None:
    """Closing the stream, or the client, ends a call at once with a typed error, wherever it waits."""
    for at in itertools.count():
        closings: list[asyncio.Task[None]] = []
        async with waiting_place(place) as (server, client, limiter):
            stream = client.stream(PROMPT, model=MODEL)

            def close(
                client: AsyncTogether = client, stream: Any = stream, closings: list[asyncio.Task[None]] = closings
            ) -> None:
                if who == "client":
                    closings.append(asyncio.create_task(client.aclose()))
                    return
                with contextlib.suppress(StopIteration):
                    stream.aclose().send(None)  # it waits for nothing, so this is all of it

            steps = Stepped(do_read(stream), at, close, ready=ready)
            began = time.monotonic()
            with case(f"suspension {at}"):
                outcome = await steps
                if isinstance(outcome, TogetherError):
                    check_discreet(outcome)
                    assert "closed" in str(outcome)
                    assert outcome.attempts <= 2
                    assert len(outcome.retries) <= 1
                    assert time.monotonic() - began < 1
                    assert steps.reached
                    if place == "in the queue" and at == 0:
                        assert not server.journal, "it was sent although it had been closed"
                else:
                    assert outcome == TEXT
                await asyncio.gather(*closings)
                await asyncio.sleep(0)
                assert limiter.state.queued == 0
                await asyncio.sleep(0.003 if limiter.state.in_flight else 0)
                await check_nothing_left(client, limiter, server_goes_on=who == "stream")
        if not steps.reached:
            break
    assert at >= 2


async def do_read(stream: Any) -> str | TogetherError:
    """The text of a stream, or the error that ended it."""
    try:
        async with asyncio.timeout(5):
            return "".join([text async for text in stream.text()])
    except TogetherError as error:
        return error


async def head_alone(call: Any) -> None:
    await call.head()
    await call.hang()


async def error_without_end(call: Any) -> None:
    await call.send(refusal(503)[:-10])
    await call.hang()


CLOSED_WHILE: dict[str, tuple[Any, int]] = {
    "in the queue": (None, 0),
    "in the backoff": (answers(refusal(503, "retry-after: 30")), 1),
    "in the pause of a 429": (answers(refusal(429, "retry-after: 30")), 1),
    "before the head": (hangs, 1),
    "before a token": (head_alone, 1),
    "in an error": (error_without_end, 1),
}


@leaves_nothing
@pytest.mark.parametrize("place", CLOSED_WHILE)
async def test_closing_ends_a_long_wait_at_once(place: str) -> None:
    """Closing the client ends all calls, closing a stream its own; the error knows the attempts and their reasons."""
    script, attempts = CLOSED_WHILE[place]
    async with ScriptedServer(script or good) as server:
        for who in ("client", "stream"):
            for kind in KINDS if who == "client" else ("text",):
                limiter = clocked(Limits(concurrency=1))
                client = AsyncTogether(KEY, base_url=server.base_url, limits=limiter, retry=QUICK)
                held = await limiter.acquire(MODEL) if place == "in the queue" else None
                server.calls.clear()
                stream = client.stream(PROMPT, model=MODEL)
                reading = ask(client, kind, alone=False) if who == "client" else do_read(stream)
                task = asyncio.create_task(reading)
                if attempts:
                    await server.call(0)
                await asyncio.sleep(0.01)
                assert not task.done()
                began = time.monotonic()
                await (client if who == "client" else stream).aclose()
                error = await task
                error = error.error if isinstance(error, Outcome) else error
                with case(who, kind):
                    assert time.monotonic() - began < 1
                    assert isinstance(error, APIConnectionError | StreamError)
                    assert "closed" in str(error)
                    assert error.attempts == attempts
                    retried = place in ("in the backoff", "in the pause of a 429")
                    assert len(error.retries) == retried
                    if held is not None:
                        limiter.driver.release(held)
                    assert (limiter.state.in_flight, limiter.state.queued) == (0, 0)
                    assert limiter.driver.timer is None
                await client.aclose()
