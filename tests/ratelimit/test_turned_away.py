"""The errors for calls of which nothing is sent."""

from __future__ import annotations

import gc
import traceback
import weakref

import pytest

from support.admission import EPOCH, MODEL, ClockedAdmission, paid
from together_async import Limits, PaymentRequiredError, RateLimitError
from together_async.ratelimit.lane import RateLimited
from together_async.ratelimit.turned_away import PaymentStop, paused


def test_a_pause_says_until_when_and_what_to_do() -> None:
    """The time of day in UTC, the seconds, the bound that it exceeds, and the remedy."""
    error = paused(MODEL, RateLimited(600, 30), 60, EPOCH)
    assert str(error) == (
        "429: the service asked for a pause of 600.0 s for m, until 2026-01-01 00:10:00 UTC, and "
        "Retry.max_retry_after is 60 s, so the call does not wait. Call later, or raise Retry.max_retry_after"
    )
    assert (error.status_code, error.retry_after, error.attempts) == (429, 600, 0)
    assert "until" not in str(paused(MODEL, RateLimited(600, 0), 60, None))


def test_a_service_that_refuses_everything_is_called_that() -> None:
    error = paused(MODEL, RateLimited(2, 75), 60, EPOCH)
    assert "the service has refused every request to m for 75.0 s, and Retry.max_retry_after is 60 s" in str(error)
    assert error.retry_after == 2


def test_a_service_that_names_the_times_to_wait_is_given_more() -> None:
    """The text names the bound that applied."""
    limited = RateLimited(5, 901)
    assert "and a service that names the times to wait is given 900 s, so the call" in str(
        paused(MODEL, limited, 60, EPOCH, names_times=True)
    )
    assert "and Retry.max_retry_after is 1000 s" in str(
        paused(MODEL, RateLimited(5, 1_001), 1_000, EPOCH, names_times=True)
    )


def test_waiting_calls_of_a_service_that_names_times_learn_the_bound() -> None:
    """It asks for 5 s again and again, and answers nothing."""
    driver = ClockedAdmission(Limits(concurrency=1))
    refused = driver.asked()
    driver.asked(max_pause_s=60)
    while not driver.turned_away:
        again = driver.ask(number=refused.number)
        driver.limited(refused, 5)
        assert driver.now < 1_000
        driver.to(driver.now + 6)
        refused = again
    assert driver.now > 900
    assert "is given 900 s" in str(driver.turned_away[0][1])


class Prompt:
    """Something that a frame holds while its call fails."""


def fail() -> tuple[PaymentRequiredError, weakref.ref[Prompt]]:
    prompt = Prompt()
    try:
        try:
            raise KeyError("inside")
        except KeyError as error:
            raise paid() from error
    except PaymentRequiredError as error:
        return error, weakref.ref(prompt)


def test_nothing_of_the_call_that_found_out_is_kept_after_a_402() -> None:
    """Its error goes, and with it the traceback and the prompt; the text, the status and the body stay."""
    driver = ClockedAdmission(Limits())
    driver.asked()
    error, prompt = fail()
    assert any(frame.name == "fail" for frame in traceback.extract_tb(error.__traceback__))
    driver.admission.record_payment_required(error, driver.now)
    assert prompt() is not None
    del error
    gc.collect()
    assert prompt() is None
    assert driver.state.stopped == "402: no money"
    with pytest.raises(PaymentRequiredError, match="this one was not sent") as caught:
        driver.ask()
    assert (caught.value.body, caught.value.request_id, caught.value.headers) == ({"a": 1}, "r", {"x": "y"})
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


def test_the_class_of_the_error_is_kept() -> None:
    """A quota that waiting can't mend is refused as what it is."""

    class QuotaError(PaymentRequiredError, RateLimitError):
        pass

    error = PaymentStop.of(QuotaError("429: no quota", status_code=429, retry_after=3)).error()
    assert isinstance(error, QuotaError)
    assert (error.status_code, error.retry_after, error.attempts) == (429, 3, 0)
    assert str(error).startswith("429: the account has no credit or has reached its spending limit")


def test_longer_pause_than_is_kept_is_named_as_it_was_asked_for() -> None:
    """One request tries after 15 minutes, but the service said an hour."""
    error = paused("m", RateLimited(900.0, 0.0), 60, EPOCH, asked_s=3_600.0)
    assert "a pause of 3600.0 s for m, until 2026-01-01 01:00:00 UTC" in str(error)
    assert error.retry_after == 3_600
    driver = ClockedAdmission(Limits())
    driver.limited(driver.asked(), 3_600.0)
    driver.to(10.0)
    with pytest.raises(RateLimitError, match=r"pause of 3590\.0 s"):
        driver.ask(max_pause_s=60)
