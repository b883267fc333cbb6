"""`RateLimiter`: `reserve`, `acquire`, and what it shows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from support.admission import MODEL
from support.limiters import limiter_of, turns
from support.virtual_time import now, run_in_fake_time
from together_async import (
    APITimeoutError,
    Limits,
    RateLimiter,
)


@contextlib.asynccontextmanager
async def level_of(limiter: RateLimiter) -> AsyncIterator[list[float]]:
    """Yields a list that gets the change of the tokens' level within the block."""
    lane = limiter.driver.admission.lane(MODEL, now())
    limiter.state  # noqa: B018 - brings it up to date
    found: list[float] = []
    before = lane.tokens.level
    yield found
    found.append(lane.tokens.level - before)


@pytest.mark.parametrize(
    ("used", "error", "spent"),
    [(None, None, 50), (40, None, 40), (60, None, 60), (0, None, 0), (None, ValueError, 0), (30, ValueError, 30)],
)
def test_block_settles_the_tokens_it_used(used: float | None, error: type[Exception] | None, spent: float) -> None:
    """Without `tokens_used`: the expected tokens, or 0 if the block failed."""

    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=1, tokens_per_minute=600_000))
        async with limiter.reserve(MODEL, 50):
            pass
        await asyncio.sleep(10)
        async with level_of(limiter) as change:
            with contextlib.suppress(ValueError):
                async with limiter.reserve(MODEL, 50) as reservation:
                    assert limiter.state.in_flight == 1
                    if used is not None:
                        reservation.tokens_used = used
                    if error is not None:
                        raise error
        assert change == [pytest.approx(-spent)]
        assert limiter.state.in_flight == 0

    run_in_fake_time(main())


def test_block_waits_as_long_as_it_may() -> None:
    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=1))
        started = now()
        async with limiter.reserve(MODEL):
            with pytest.raises(APITimeoutError) as caught:
                async with limiter.reserve(MODEL, timeout=3):
                    raise AssertionError("entered")
            assert caught.value.phase == "queue"
            assert now() - started == pytest.approx(3)
        assert (limiter.state.in_flight, limiter.state.queued) == (0, 0)

    run_in_fake_time(main())


def test_block_that_is_cancelled_frees_its_place() -> None:
    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=1))

        async def hold() -> None:
            async with limiter.reserve(MODEL, 10):
                await asyncio.sleep(1_000)

        task = asyncio.create_task(hold())
        await turns()
        assert limiter.state.in_flight == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert limiter.state.in_flight == 0

    run_in_fake_time(main())


def test_acquired_place_is_given_back_by_hand() -> None:
    """`acquire` waits as long as it may, and its reservation is released by hand."""

    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=1))
        reservation = await limiter.acquire(MODEL, 10)
        with pytest.raises(APITimeoutError):
            await limiter.acquire(MODEL, timeout=3)
        assert (limiter.state.in_flight, limiter.state.queued) == (1, 0)
        limiter.release(reservation, 5)
        assert limiter.state.in_flight == 0

    run_in_fake_time(main())


@pytest.mark.parametrize("priority", ["urgent", "", None, 5])
def test_unknown_priority(priority: Any) -> None:
    with pytest.raises(ValueError, match=r"priority: got .*, expected one of '"):
        RateLimiter().reserve(MODEL, priority=priority)


@pytest.mark.parametrize("limits", [{}, 5, "auto"])
def test_limits_of_another_type(limits: Any) -> None:
    with pytest.raises(ValueError, match="expected Limits"):
        RateLimiter(limits)


def test_repr_shows_the_state() -> None:
    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=2, requests_per_minute=600))
        async with limiter.reserve(MODEL):
            shown = repr(limiter)
        assert "1 of 2 in flight, 0 queued" in shown
        assert "600 requests/min" in shown

    run_in_fake_time(main())


# --------------------------------------------------------------------------------------------------------- wrong values

WRONG_TOKENS = [-1, -1e9, float("nan"), float("inf"), 1e13, "5", None, True, 10**400, [1]]


@pytest.mark.parametrize("tokens", WRONG_TOKENS, ids=repr)
def test_tokens_out_of_range_are_refused_before_anything_changes(tokens: Any) -> None:
    """A negative number would switch the limit off, an infinite one stop the model for ever."""

    async def main() -> None:
        limiter = limiter_of(Limits(1, tokens_per_minute=600))
        expected = r"tokens: got .+, expected a finite number from 0 to 1e\+12"
        with pytest.raises(ValueError, match=expected):
            limiter.reserve(MODEL, tokens)
        with pytest.raises(ValueError, match=expected):
            await limiter.acquire(MODEL, tokens)
        assert (limiter.state.in_flight, limiter.state.queued) == (0, 0)

    run_in_fake_time(main())


@pytest.mark.parametrize("tokens", [tokens for tokens in WRONG_TOKENS if tokens is not None], ids=repr)
def test_tokens_used_out_of_range_are_refused(tokens: Any) -> None:
    """The block ends with the error, and its place is free again; what `acquire` returned is kept for another try."""

    async def main() -> None:
        limiter = limiter_of(Limits(1, tokens_per_minute=60_000))
        expected = r"tokens_used: got .+, expected a finite number from 0 to 1e\+12"
        with pytest.raises(ValueError, match=expected):
            async with limiter.reserve(MODEL, 5) as block:
                block.tokens_used = tokens
        assert limiter.state.in_flight == 0
        reservation = await limiter.acquire(MODEL, 5)
        with pytest.raises(ValueError, match=expected):
            limiter.release(reservation, tokens)
        limiter.release(reservation, 5)
        assert limiter.state.in_flight == 0

    run_in_fake_time(main())


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan"), float("inf"), "5", True], ids=repr)
def test_timeout_out_of_range_is_refused(timeout: Any) -> None:
    """Also where the turn would have been granted at once."""

    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=1))
        expected = "timeout: got .+, expected a finite number, at least 0"
        with pytest.raises(ValueError, match=expected):
            limiter.reserve(MODEL, timeout=timeout)
        with pytest.raises(ValueError, match=expected):
            await limiter.acquire(MODEL, timeout=timeout)
        assert (limiter.state.in_flight, limiter.state.queued) == (0, 0)

    run_in_fake_time(main())


def test_timeout_of_0_takes_a_turn_that_is_free_and_waits_for_no_other() -> None:
    async def main() -> None:
        limiter = limiter_of(Limits(concurrency=1))
        reservation = await limiter.acquire(MODEL, timeout=0)
        with pytest.raises(APITimeoutError):
            await limiter.acquire(MODEL, timeout=0)
        limiter.release(reservation)
        assert (limiter.state.in_flight, limiter.state.queued) == (0, 0)

    run_in_fake_time(main())


@pytest.mark.parametrize("model", [None, 5, b"m", "", ["m"]], ids=repr)
def test_model_that_is_no_name_is_refused(model: Any) -> None:
    async def main() -> None:
        limiter = RateLimiter()
        with pytest.raises(ValueError, match=r"model: got .+, expected the model's name"):
            limiter.reserve(model)
        with pytest.raises(ValueError, match=r"model: got .+, expected the model's name"):
            await limiter.acquire(model)
        with pytest.raises(ValueError, match="priority: got 'urgent'"):
            await limiter.acquire(MODEL, priority="urgent")  # type: ignore[arg-type]  # that is the case
        assert limiter.state.models == {}

    run_in_fake_time(main())
