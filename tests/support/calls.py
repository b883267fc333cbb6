"""Calls in tests: clients that retry quickly, five ways to call, and what became of the attempts."""

import asyncio
import contextlib
import pickle
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from support.servers import answers, delta, response, sse, streams, whole
from support.survival import KEY, MODEL, PROMPT, TEXT, Outcome, ask
from together_async import AsyncTogether, Limits, RateLimiter, Retry, Timeouts
from together_async.retry import RetryBudget
from together_async.testing import EmulatorServer, Status

leaves_nothing = pytest.mark.usefixtures("no_leaks")
QUICK = Retry(attempts=3, base_delay=0.001, max_delay=0.002)
GENEROUS = {"x-ratelimit-limit": "1000", "retry-after": "0.001"}
"""Headers of a 429 after which the next attempt waits neither for an unknown rate nor for long."""
UNTIMED = Timeouts(connect=None, first_token=None, idle=None)


def refuses(status: int, **headers: str) -> Status:
    """A refusal; a 429 reports a generous limit."""
    return Status(status, headers={**(GENEROUS if status == 429 else {}), **headers})


def refusal(status: int, *headers: str) -> bytes:
    """The same as bytes, for a scripted server."""
    extra = "".join(f"{header}\r\n" for header in headers).encode()
    return response({"error": {"message": "no", "type": "t", "code": None}}, status=status, extra=extra)


def counted(client: AsyncTogether) -> tuple[int, int]:
    """How many calls are in flight and queued now."""
    state = client.limits
    return state.in_flight, state.queued


@contextlib.asynccontextmanager
async def emulated(script: Any = TEXT, **options: Any) -> AsyncIterator[tuple[EmulatorServer, AsyncTogether]]:
    """An emulator, and a client that retries quickly; at the end no place is taken and no timer is left."""
    wanted = {name: options.pop(name) for name in ("limits", "retry", "timeouts") if name in options}
    async with EmulatorServer(script, **options) as server, retrying_client(server, **wanted) as client:
        yield server, client


@contextlib.asynccontextmanager
async def retrying_client(server: Any, **options: Any) -> AsyncIterator[AsyncTogether]:
    """A client that retries quickly; its limiter has the clock of the running event loop, which may be virtual."""
    limits = options.pop("limits", None)
    limiter = limits if isinstance(limits, RateLimiter) else clocked(limits)
    async with AsyncTogether(KEY, base_url=server.base_url, limits=limiter, **{"retry": QUICK, **options}) as client:
        yield client
    assert counted(client) == (0, 0), "a place is taken"
    assert limiter.driver.timer is None, "a timer is left"


def clocked(limits: Limits | None = None) -> RateLimiter:
    """A limiter on the clock of the running event loop."""
    return RateLimiter(limits, clock=lambda: asyncio.get_running_loop().time())


def reasons(result: Any) -> tuple[str, ...]:
    """Why a completion, an error or a stream needed more attempts."""
    return tuple(retried.reason for retried in result.retries)


def notes(error: BaseException) -> list[str]:
    """The notes that were added to an error."""
    return list(getattr(error, "__notes__", ()))


def check_attempts(outcome: Outcome, requests: int, reason: str) -> None:
    """An outcome knows how many requests were made for it, and why."""
    result = outcome.completion if outcome.error is None else outcome.error
    assert result.attempts == requests
    # What a pooled connection fails with may be that it was stale, and then it is replaced at once.
    also = {reason, "stale connection"} if reason == "no connection" else {reason}
    assert len(result.retries) == requests - 1
    assert set(reasons(result)) <= also
    assert all(0 <= retried.waited_s < 5 for retried in result.retries)
    if outcome.error is not None and requests > 1:
        (note,) = notes(outcome.error)
        first = result.retries[0].reason
        count = reasons(result).count(first)
        assert note.startswith(f"{requests} attempts ({first}{f' x {count}' if count > 1 else ''}, waited ")
        assert note.endswith("; Retry.attempts allows no more")


def unpickled(value: Any) -> Any:
    """A copy, made by pickling."""
    return pickle.loads(pickle.dumps(value))  # noqa: S301 - our own


async def ask_with_faults(
    server: EmulatorServer, client: AsyncTogether, kind: str, faults: Any, **options: Any
) -> Outcome:
    """Asks the emulator with these faults; the attempts of the outcome are those in the journal."""
    server.journal.clear()
    server.faults = faults
    client._budget = RetryBudget(1)  # each of these calls is its client's first
    outcome = await ask(client, kind, **options)
    result = outcome.completion if outcome.error is None else outcome.error
    assert result.attempts == len(server.journal)
    return outcome


async def good(call: Any) -> None:
    """A script that answers with a stream if one is asked for, else with a whole response."""
    await (streams(TEXT) if call.json.get("stream") else answers(response(whole(TEXT))))(call)


async def starts_only(call: Any) -> None:
    """A script that sends the head and one token, and nothing more."""
    await call.head()
    await call.chunk(sse(delta("a", role="assistant")))
    await call.hang()


async def do_create(client: AsyncTogether) -> str:
    return (await client.create(PROMPT, model=MODEL)).text


async def do_completion(client: AsyncTogether) -> str:
    return (await client.stream(PROMPT, model=MODEL).completion()).text


async def do_chunks(client: AsyncTogether) -> str:
    return "".join([chunk.choices[0].delta.content or "" async for chunk in client.stream(PROMPT, model=MODEL)])


async def do_text(client: AsyncTogether) -> str:
    return "".join([text async for text in client.stream(PROMPT, model=MODEL).text()])


async def do_block(client: AsyncTogether) -> str:
    async with client.stream(PROMPT, model=MODEL) as stream:
        return "".join([text async for text in stream.text()])


MakeCall = Callable[[AsyncTogether], Coroutine[Any, Any, str]]
CALLS: tuple[MakeCall, ...] = (do_create, do_chunks, do_text, do_completion, do_block)
"""The five ways to call, each of which returns the text of the answer."""
