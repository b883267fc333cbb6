"""Which failures are retried, when, and how often."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from together_async import (
    APIConnectionError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    ChatCompletion,
    IncompleteStreamError,
    InsufficientQuotaError,
    InternalServerError,
    QueueFullError,
    RateLimitError,
    Retried,
    Retry,
    StreamAPIError,
    StreamConnectionError,
    StreamProtocolError,
    StreamTimeoutError,
    TogetherError,
)
from together_async.errors import status_error_class
from together_async.ratelimit.lane import MOST_PAUSE_S
from together_async.retry import (
    BATCH_WAIT_S,
    FREE_RETRIES,
    RECENT_S,
    REFUSING_S,
    RETRIED_STATUSES,
    RetryBudget,
    backoff,
    for_batch,
    is_retryable,
    note,
    reason,
    reason_not_to_wait,
    reason_to_end,
    retry_after_s,
    until,
)
from together_async.wire.error_bodies import status_error

PARTIAL = ChatCompletion(choices=[])


def status(code: int, **facts: Any) -> APIStatusError:
    return status_error_class(code)("no", status_code=code, **facts)


def stream_error(code: int | None) -> StreamAPIError:
    return StreamAPIError("no", partial=PARTIAL, status_code=code)


def lost(cause: BaseException | None = None) -> StreamConnectionError:
    error = StreamConnectionError("lost", partial=PARTIAL)
    error.__cause__ = cause
    return error


def final(error: APIConnectionError) -> APIConnectionError:
    error.transient = False
    return error


# ------------------------------------------------------------------------------------------------------------ the table


def test_statuses_that_are_asked_again() -> None:
    """The statuses of the API's error page, and no others: not 402, and above 500 only those that may pass."""
    expected = {408, 409, 429, 500, 502, 503, 504, 520, 524, 529}
    assert {code for code in range(300, 600) if is_retryable(status(code))} == expected
    assert {code for code in range(300, 600) if is_retryable(stream_error(code))} == expected
    assert expected == RETRIED_STATUSES


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (APIConnectionError("refused"), True),
        (final(APIConnectionError("the client is closed")), False),
        (APITimeoutError(phase="connect", seconds=1), True),
        (APITimeoutError(phase="first_token", seconds=1), False),
        (APITimeoutError(phase="idle", seconds=1), False),
        (APITimeoutError(phase="total", seconds=1), False),
        (APITimeoutError(phase="queue", seconds=1), False),
        (lost(), True),
        (lost(APIConnectionError("reset")), True),
        (lost(final(APIConnectionError("closed by its caller"))), False),
        (lost(ValueError("odd")), True),
        (IncompleteStreamError("no end", partial=PARTIAL), True),
        (stream_error(None), False),
        (InsufficientQuotaError("no credit", status_code=429), False),
        (StreamTimeoutError(phase="idle", seconds=1, partial=PARTIAL), False),
        (StreamProtocolError("html", partial=PARTIAL), False),
        (APIResponseValidationError("html"), False),
        (QueueFullError("full"), False),
        (TogetherError("else"), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, TogetherError) else str(value),
)
def test_other_errors_that_are_asked_again(error: TogetherError, again: bool) -> None:
    assert is_retryable(error) is again


# --------------------------------------------------------------------------------------------------------------- delays


def test_delay_doubles_up_to_its_most_and_is_chosen_from_zero_on() -> None:
    """Full jitter: anything from 0 to the exponential, so that calls that failed together don't come back together."""
    rules = Retry(base_delay=0.5, max_delay=6)
    assert [backoff(rules, attempt, lambda: 1.0) for attempt in range(1, 7)] == [0.5, 1, 2, 4, 6, 6]
    assert [backoff(rules, attempt, lambda: 0.5) for attempt in range(1, 7)] == [0.25, 0.5, 1, 2, 3, 3]
    assert backoff(rules, 3, lambda: 0.0) == 0


def test_delays_are_spread_evenly() -> None:
    rng = random.Random(1)
    delays = sorted(backoff(Retry(), 3, rng.random) for _ in range(10_000))
    assert delays[0] < 0.01
    assert delays[5_000] == pytest.approx(1.0, abs=0.05)
    assert 1.99 < delays[-1] <= 2


@given(st.integers(1, 100), st.floats(0, 86_400), st.floats(0, 86_400), st.floats(0, 1))
def test_delay_of_any_attempt_is_within_its_bounds(
    attempt: int, base: float, most: float, random_number: float
) -> None:
    delay = backoff(Retry(attempts=100, base_delay=base, max_delay=most), attempt, lambda: random_number)
    assert 0 <= delay <= most


def headers_error(code: int, **headers: str) -> APIStatusError:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status_error(code, named, b"{}", now=lambda: 1_767_225_600.0)


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (headers_error(429), None),
        (headers_error(429, retry_after="3"), 3),
        (headers_error(429, retry_after="0.25"), 0.25),
        (headers_error(429, retry_after_ms="1500"), 1.5),
        (headers_error(429, retry_after="Thu, 01 Jan 2026 00:00:07 GMT"), 7),
        (headers_error(429, retry_after="Thu, 01 Jan 1970 00:00:07 GMT"), None),
        (headers_error(429, x_ratelimit_reset="0.5"), 0.5),
        (headers_error(429, retry_after="2", x_ratelimit_reset="0.5"), 2),
        (headers_error(429, retry_after="soon", x_ratelimit_reset="0.5"), 0.5),
        (headers_error(429, retry_after="nan"), None),
        (headers_error(503, retry_after="4"), 4),
        (headers_error(503, x_ratelimit_reset="0.5"), None),  # this header comes with every response
        (APIConnectionError("refused"), None),
        (lost(), None),
    ],
    ids=lambda value: str(dict(value.headers)) if isinstance(value, APIStatusError) else str(value)[:20],
)
def test_told_seconds(error: TogetherError, seconds: float | None) -> None:
    assert retry_after_s(error) == (None if seconds is None else pytest.approx(seconds))


# ---------------------------------------------------------------------------------------------------- to end or to wait

NOW = 1_767_225_600.0


def test_a_failed_call_is_tried_again_as_often_and_as_late_as_its_rules_allow() -> None:
    rules = Retry(attempts=3, max_retry_after=60)
    assert reason_to_end(rules, 2, 60, too_late=None, now=NOW) is None
    assert reason_to_end(rules, 3, 0, too_late=None, now=NOW) == "Retry.attempts allows no more"
    assert reason_to_end(rules, 1, 90, too_late="total", now=NOW) == (
        "the service asks for a wait of 90 s, until 2026-01-01 00:01:30 UTC, and Retry.max_retry_after is 60 s"
    )
    assert reason_to_end(rules, 1, 3, too_late="total", now=NOW) == "Timeouts.total leaves no time for another attempt"


@pytest.mark.parametrize(
    ("most_s", "pause_s", "refusing_s", "names_times", "ending"),
    [
        (60, 60, 60, False, None),
        (60, 61, 61, True, "the model is paused for 61 s, until 2026-01-01 00:01:01 UTC, and Retry.max_retry_after is"),
        (60, 5, 61, False, "the service has refused everything for 61 s, and Retry.max_retry_after is 60 s"),
        (60, 5, 900, True, None),
        (60, 5, 905, True, "for 905 s, and a service that names the times to wait is given 900 s"),
        (5_000, 5, 5_000, True, None),
        (5_000, 5, 5_001, True, "for 5001 s, and Retry.max_retry_after is 5000 s"),
        (0, 5, 0, True, ""),
    ],
)
def test_a_429_is_waited_for_up_to_the_bound_that_its_ending_names(
    most_s: float, pause_s: float, refusing_s: float, names_times: bool, ending: str | None
) -> None:
    """A service that names the times to wait has 15 minutes, or as long as the caller allows; another has only that."""
    rules = Retry(attempts=1, max_retry_after=most_s)
    facts: dict[str, Any] = {"refusing_s": refusing_s, "names_times": names_times, "now": NOW}
    found = reason_not_to_wait(rules, pause_s, too_late=None, **facts)
    if not ending:
        assert found == ending
    else:
        assert found is not None
        assert ending in found
    if ending is None:
        late = reason_not_to_wait(rules, pause_s, too_late="queue", **facts)
        assert late is not None
        assert late.startswith(f"the model is paused for {pause_s:g} s, until 2026")
        assert late.endswith("UTC, and Timeouts.queue leaves no time for that")


def test_batch_calls_wait_for_the_longest_pause_that_a_header_makes() -> None:
    assert BATCH_WAIT_S == MOST_PAUSE_S == REFUSING_S
    assert for_batch(Retry(attempts=2, max_retry_after=5)) == Retry(attempts=2, max_retry_after=BATCH_WAIT_S)
    assert for_batch(Retry(max_retry_after=5_000)).max_retry_after == 5_000


# --------------------------------------------------------------------------------------------------------------- values


def test_retry_is_a_value() -> None:
    assert Retry() == Retry(4, 0.2, 0.5, 30.0, 60.0)
    assert hash(Retry()) == hash(Retry())
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Retry().attempts = 5  # type: ignore[misc]  # the error is the test
    Retry(attempts=1, budget=0, base_delay=0, max_delay=0, max_retry_after=0)
    Retry(attempts=100, budget=1, base_delay=86_400, max_delay=86_400, max_retry_after=1e300)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attempts", 0),
        ("attempts", 101),
        ("attempts", 2.0),
        ("attempts", True),
        ("attempts", None),
        ("attempts", 10**5_000),
        ("budget", -0.1),
        ("budget", 1.1),
        ("budget", math.nan),
        ("budget", "0.2"),
        ("budget", True),
        ("base_delay", -1),
        ("base_delay", math.inf),
        ("base_delay", None),
        ("max_delay", 86_401),
        ("max_delay", 10**400),
        ("max_retry_after", -1),
        ("max_retry_after", math.inf),
        ("max_retry_after", math.nan),
    ],
    ids=lambda value: repr(value)[:12] if not isinstance(value, int) or value < 10**9 else "huge",
)
def test_retry_out_of_range(field: str, value: Any) -> None:
    """The text names field, value and range, and is of a readable length."""
    with pytest.raises(ValueError, match=rf"^Retry\.{field}: got .+, expected ") as caught:
        Retry(**{field: value})
    assert len(str(caught.value)) < 200


# --------------------------------------------------------------------------------------------------------------- budget


class Calls:
    """Calls whose attempts all fail; each is retried as long as it may be."""

    def __init__(self, attempts: int = 4, fraction: float = 0.2) -> None:
        self.budget = RetryBudget(fraction)
        self.attempts = attempts
        self.calls = self.requests = 0
        self.open: list[int] = []  # attempts that each call made

    def begin(self, now: float = 0.0) -> None:
        self.budget.record_call(now)
        self.calls += 1
        self.requests += 1
        self.open.append(1)

    def fail(self, place: int) -> None:
        if self.open[place] < self.attempts and self.budget.spend():
            self.open[place] += 1
            self.requests += 1
        else:
            self.open[place] = self.open[-1]
            self.open.pop()


def test_thousand_calls_that_begin_together_and_all_fail_cost_1200_requests() -> None:
    """And not fewer: calls that come at once have earned their retries too."""
    calls = Calls()
    for _ in range(1_000):
        calls.begin()
    while calls.open:
        calls.fail(0)
    assert 1_199 <= calls.requests <= 1_200


def test_thousand_calls_one_after_the_other_cost_1200_requests() -> None:
    calls = Calls()
    for second in range(1_000):
        calls.begin(float(second))
        while calls.open:
            calls.fail(0)
    assert 1_190 <= calls.requests <= 1_200


@given(st.integers(0, 2**32), st.integers(1, 5), st.sampled_from([0.0, 0.05, 0.2, 0.3, 1 / 3, 1.0]))
def test_retries_never_exceed_their_fraction_whatever_the_interleaving(seed: int, burst: int, fraction: float) -> None:
    """At no time: not at the beginning, not after a pause, not when failures come in bursts."""
    rng, now = random.Random(seed), 0.0
    calls = Calls(attempts=rng.choice([2, 4, 100]), fraction=fraction)
    while calls.calls < 300:
        now += rng.choice([0.0, 0.01, 1.0, 50.0, 1_000.0])
        for _ in range(rng.randrange(4**burst)):
            calls.begin(now)
        for _ in range(rng.randrange(4**burst)):
            if calls.open:
                calls.fail(rng.randrange(len(calls.open)))
        most = max(FREE_RETRIES if fraction else 0, fraction * calls.calls)
        assert calls.requests - calls.calls <= most + 1e-6


@pytest.mark.parametrize("count", [1, 5, 49])
def test_few_calls_may_make_ten_retries(count: int) -> None:
    """A client's first call can be retried too."""
    calls = Calls(attempts=100)
    for _ in range(count):
        calls.begin()
    while calls.open:
        calls.fail(0)
    assert calls.requests == count + FREE_RETRIES


def test_no_budget_is_no_retry() -> None:
    budget = RetryBudget(0)
    for _ in range(1_000):
        budget.record_call(0.0)
    assert not budget.spend()


def test_day_that_went_well_is_not_made_up_for_in_a_minute() -> None:
    """Only the retries that calls of the last minute or two have earned are kept."""
    budget, now = RetryBudget(0.2), 0.0
    for _ in range(86_400):
        now += 1
        budget.record_call(now)
    spent = sum(budget.spend() for _ in range(10_000))
    assert spent <= 0.2 * 2 * RECENT_S + 1


def test_client_that_was_busy_and_then_quiet_has_ten_left() -> None:
    budget = RetryBudget(0.2)
    for _ in range(100_000):
        budget.record_call(0.0)
    budget.record_call(10 * RECENT_S)
    assert sum(budget.spend() for _ in range(1_000)) <= FREE_RETRIES


def test_budget_comes_back_with_calls() -> None:
    """Five calls earn one retry, once the first ten are paid for."""
    budget = RetryBudget(0.2)
    for _ in range(50):
        budget.record_call(0.0)
    while budget.spend():
        pass
    spent = 0
    for _ in range(100):
        budget.record_call(0.0)
        spent += budget.spend()
    assert 19 <= spent <= 20
    assert repr(budget).startswith("<RetryBudget ")


# ---------------------------------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (status(503), "503"),
        (stream_error(429), "error 429 in the stream"),
        (APITimeoutError(phase="connect", seconds=3), "timeout: connect"),
        (APIConnectionError("secret-host refused"), "no connection"),
        (lost(), "connection lost"),
        (IncompleteStreamError("secret", partial=PARTIAL), "connection lost"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, TogetherError) else "",
)
def test_reason_says_why_without_anybodys_text(error: TogetherError, text: str) -> None:
    assert reason(error) == text


def test_note_counts_the_attempts() -> None:
    calls = [InternalServerError("no", status_code=503), RateLimitError("no", status_code=429)]
    retries = tuple(Retried(reason(error), waited) for error, waited in zip(calls, itertools.count(1), strict=False))
    assert note(retries, "no more") == "3 attempts (503, waited 1.0 s; 429, waited 2.0 s); no more"
    assert note((), "no more") == "no more"
    many = (Retried("429", 0.5),) * 400 + (Retried("503", 1.0), Retried("429", 0.5))
    assert note(many, "") == "403 attempts (429 x 401, waited 200.5 s; 503, waited 1.0 s)"


def test_until_says_how_long_and_when() -> None:
    """In whole seconds, rounded up; a time far beyond any calendar has no date."""
    now = 1_767_225_600.0
    assert until(90, now) == "90 s, until 2026-01-01 00:01:30 UTC"
    assert until(0.2, now + 0.5) == "1 s, until 2026-01-01 00:00:00 UTC"
    assert until(40_000, now) == "40000 s, until 2026-01-01 11:06:40 UTC"
    assert until(1e300, now) == "1e+300 s"
