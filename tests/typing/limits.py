"""What type checkers say about limits and retries. Never run: mypy and pyright read it.

Each suppression marks a mistake that mypy and pyright must report; mypy fails for one that is not needed.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Literal, assert_type

from together_async import (
    APIStatusError,
    AsyncTogether,
    ChatCompletion,
    ChatCompletionStream,
    Limits,
    LimitsState,
    ModelState,
    PaymentRequiredError,
    QueueFullError,
    RateLimiter,
    RateLimitError,
    Retried,
    Retry,
    StreamError,
    Timeouts,
    TogetherError,
)
from together_async.ratelimit import Priority


def made() -> None:
    limits = Limits(concurrency=8, requests_per_minute=600, tokens_per_minute=6e4, max_queued=100, shared=None)
    assert_type(limits.concurrency, int | Literal["auto"] | None)
    assert_type(limits.requests_per_minute, float | None)
    assert_type(limits.max_queued, int | None)
    assert_type(limits.models, Mapping[str, Limits])
    Limits("auto", 600.5)
    Limits("most")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Limits(concurrency=1.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(Limits.per_model({"m": Limits(requests_per_minute=60)}, concurrency=100), Limits)
    assert_type(limits.of("m"), Limits)
    limits.concurrency = 9  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]

    retry = Retry(attempts=2, budget=0.1, base_delay=1, max_delay=20, max_retry_after=5)
    assert_type(retry.attempts, int)
    assert_type(retry.budget, float)
    assert_type(retry.max_retry_after, float)
    Retry(attempts=2.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    retry.attempts = 3  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]

    limiter = RateLimiter(limits)
    assert_type(limiter.limits, Limits)
    AsyncTogether(limits=limits, retry=retry, timeouts=Timeouts(queue=1.5))
    AsyncTogether(limits=limiter)
    AsyncTogether(limits=None, retry=None)
    AsyncTogether(limits=8)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AsyncTogether(retry=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def asked(client: AsyncTogether, priority: Priority) -> None:
    assert_type(priority, Literal["interactive", "batch"])
    assert_type(client.stream("hi", model="m", priority="batch", retry=Retry(attempts=1)), ChatCompletionStream)
    assert_type(await client.create("hi", model="m", priority=priority, retry=None), ChatCompletion)
    assert_type((await client.parse("hi", model="m", response_type=Retried, priority="interactive")).parsed, Retried)
    client.stream("hi", model="m", priority="urgent")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.stream("hi", model="m", retry=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.limits = LimitsState()  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def looked_at(client: AsyncTogether, limiter: RateLimiter) -> None:
    assert_type(limiter.state, LimitsState)
    state = client.limits
    assert_type(state, LimitsState)
    for number in (state.in_flight, state.queued, state.sent, state.rate_limited, state.overloaded):
        assert_type(number, int)
    assert_type(state.concurrency, int | None)
    assert_type(state.paused_until, datetime | None)
    assert_type(state.stopped, str | None)
    assert_type(state.models, Mapping[str, ModelState])
    model = state.models["m"]
    assert_type(model.model, str)
    for rate in (
        model.requests_per_minute,
        model.tokens_per_minute,
        model.server_requests_per_minute,
        model.server_tokens_per_minute,
    ):
        assert_type(rate, float | None)
    assert_type(model.paused_for_s, float)
    assert_type(model.paused_until, datetime | None)
    state.queued = 0  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


async def reserved(limiter: RateLimiter) -> None:
    async with limiter.reserve("m", tokens=500, priority="batch", timeout=2) as reservation:
        assert_type(reservation.tokens_used, float | None)
        reservation.tokens_used = 420
    limiter.reserve("m", priority="urgent")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def attempts(stream: ChatCompletionStream, completion: ChatCompletion, error: TogetherError | StreamError) -> None:
    assert_type(error.attempts, int)
    assert_type(error.retries, tuple[Retried, ...])
    assert_type(stream.attempts, int)
    assert_type(stream.retries, tuple[Retried, ...])
    assert_type(completion.attempts, int)
    assert_type(completion.retries, tuple[Retried, ...])
    for retried in error.retries:
        assert_type(retried.reason, str)
        assert_type(retried.waited_s, float)
        reason, waited_s = retried
        assert_type((reason, waited_s), tuple[str, float])
    assert_type(stream.stats.total_tokens, int | None)
    assert_type(stream.stats.estimated, bool)


def refused(error: Exception) -> None:
    match error:
        case RateLimitError() | PaymentRequiredError():
            assert_type(error.retry_after, float | None)
            assert_type(error.status_code, int)
            status: APIStatusError = error
            assert_type(status.attempts, int)
        case QueueFullError():
            assert_type(error.attempts, int)
        case _:
            pass
