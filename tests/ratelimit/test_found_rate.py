"""The rate of a service that reports none."""

from __future__ import annotations

import math

import pytest

from together_async.ratelimit.found_rate import FELL, FELL_MOST, KEPT, LEAST, MOST, PLATEAU_S, FoundRate


def found(*events: tuple[float, float]) -> FoundRate:
    """A rate after refusals: each with what was accepted per second, and the seconds since the last."""
    rate = FoundRate("requests")
    for accepted, since_last_s in events:
        rate.record_refusals(accepted, since_last_s, again=False, search=True)
    return rate


def used(rate: FoundRate, seconds: float) -> float:
    for _ in range(round(seconds * 10)):
        rate.record_used(0.1)
    assert rate.rate is not None
    return rate.rate


def test_first_refusals_begin_a_search_that_doubles_each_second() -> None:
    """What was accepted includes what the service had saved up."""
    rate = found((10, math.inf))
    assert rate.rate == pytest.approx(10 * KEPT)
    assert rate.searching
    assert used(rate, 2) == pytest.approx(40 * KEPT)
    for _ in range(40):
        rate.record_used(1)
    assert rate.rate is None, f"beyond {MOST} nothing limits"


def test_next_refusals_show_the_limit() -> None:
    """CUBIC: up to the limit, a plateau, and then beyond."""
    rate = found((10, math.inf), (12, 3))
    assert rate.rate == pytest.approx(12 * KEPT)
    assert used(rate, PLATEAU_S * 0.7) == pytest.approx(12, rel=0.01)
    assert used(rate, PLATEAU_S * 0.6) == pytest.approx(12, rel=0.01)
    assert used(rate, PLATEAU_S) > 13


def test_limit_that_fell_is_approached_slowly() -> None:
    """Refusals come again within seconds: the limit itself is lower. It may come back, so the rate rises to just below
    the old one, and stays there."""
    rate = found((10, math.inf), (12, 3), (6, 2))
    assert rate.rate == pytest.approx(6 * FELL)
    assert used(rate, 10) == pytest.approx(6 * FELL * math.exp(0.2), rel=0.01)
    assert used(rate, 49) == pytest.approx(12 * FELL_MOST, rel=0.01)
    assert used(rate, 10) == pytest.approx(12 * FELL_MOST, rel=0.05)


def test_refusals_of_the_same_event_are_judged_anew() -> None:
    rate = found((10, math.inf), (12, 3))
    rate.record_refusals(9, 3, again=True, search=True)
    assert rate.rate == pytest.approx(9 * KEPT)
    rate.undo()
    assert rate.rate == pytest.approx(10 * KEPT)
    assert rate.searching


def test_rate_is_never_lower_than_the_least() -> None:
    """Whatever a service refuses, no call waits for ever."""
    for kind in ("requests", "tokens"):
        rate = FoundRate(kind)
        for since_last_s in (math.inf, 1.0, 1.0, 1.0):
            rate.record_refusals(0.0, since_last_s, again=False, search=False)
            assert rate.rate is not None
            assert rate.rate >= LEAST[kind]


def test_unused_rate_does_not_rise() -> None:
    rate = found((10, math.inf))
    rate.record_used(0.0)
    assert rate.rate == pytest.approx(10 * KEPT)


def test_search_goes_on_from_a_higher_rate_only() -> None:
    """The refusals were by chance; without a rate there is nothing to undo."""
    rate = found((10, math.inf), (2, 3))
    rate.search_from(10)
    assert (rate.rate, rate.searching) == (10, True)
    rate.search_from(5)
    assert rate.rate == 10
    fresh = FoundRate("requests")
    fresh.search_from(10)
    assert fresh.rate is None
