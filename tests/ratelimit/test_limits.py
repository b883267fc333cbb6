"""`Limits` and `LimitsState`: the values that callers set and see."""

from __future__ import annotations

import math
import pickle
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest

from together_async import Limits, LimitsState
from together_async.ratelimit import ModelState


def test_limits_are_values() -> None:
    """Equal, hashable, picklable, frozen, with everything optional."""
    assert Limits() == Limits(None, None, None)
    limits = Limits(5, 600, 60_000.5, max_queued=0)
    assert (limits.concurrency, limits.requests_per_minute, limits.tokens_per_minute) == (5, 600, 60_000.5)
    assert hash(limits) == hash(Limits(5, 600, 60_000.5, max_queued=0))
    assert pickle.loads(pickle.dumps(limits)) == limits  # noqa: S301 - made here
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        limits.concurrency = 3  # type: ignore[misc]  # the error is the test


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("concurrency", 0),
        ("concurrency", -1),
        ("concurrency", 1.5),
        ("concurrency", True),
        ("concurrency", "many"),
        ("concurrency", 10**400),
        ("requests_per_minute", 0),
        ("requests_per_minute", -1),
        ("requests_per_minute", math.nan),
        ("requests_per_minute", math.inf),
        ("requests_per_minute", "600"),
        ("requests_per_minute", True),
        ("requests_per_minute", 10**400),
        ("tokens_per_minute", 0),
        ("tokens_per_minute", 1e13),
        ("tokens_per_minute", [1]),
        ("max_queued", -1),
        ("max_queued", 0.5),
        ("max_queued", False),
        ("shared", "redis://localhost"),
    ],
)
def test_limits_out_of_range(field: str, value: Any) -> None:
    """The text names field, value and range."""
    with pytest.raises(ValueError, match=rf"^Limits\.{field}: got .+, expected .+") as caught:
        Limits(**{field: value})
    assert len(str(caught.value)) < 300


def test_limits_by_model() -> None:
    own = Limits(requests_per_minute=60)
    limits = Limits.per_model({"a": own}, requests_per_minute=600, concurrency=9)
    assert limits.of("a") is own
    assert limits.of("b") is limits
    assert limits.requests_per_minute == 600
    assert limits != Limits(requests_per_minute=600, concurrency=9)
    assert pickle.loads(pickle.dumps(limits)) == limits  # noqa: S301 - made here


@pytest.mark.parametrize(
    "models", [{"a": 5}, {5: Limits()}, {"a": {"requests_per_minute": 5}}, {"a": Limits.per_model({"b": Limits()})}]
)
def test_limits_by_model_that_are_refused(models: Any) -> None:
    with pytest.raises(ValueError, match=r"^Limits\.per_model: "):
        Limits.per_model(models)


def test_state_adds_up_its_models() -> None:
    later = datetime(2026, 1, 1, tzinfo=UTC)
    models = {
        "a": ModelState("a", sent=5, rate_limited=2, overloaded=1, paused_for_s=3.0, paused_until=later),
        "b": ModelState("b", sent=1, rate_limited=1, paused_for_s=1.0, paused_until=later - timedelta(seconds=2)),
        "c": ModelState("c"),
    }
    state = LimitsState(in_flight=3, queued=7, models=models)
    assert (state.sent, state.rate_limited, state.overloaded, state.paused_until) == (6, 3, 1, later)
    assert LimitsState().paused_until is None
    assert LimitsState() == LimitsState()


def test_state_can_be_read() -> None:
    """One line for all, one for each model."""
    state = LimitsState(
        in_flight=3,
        queued=7,
        concurrency=5,
        models={
            "a": ModelState("a", in_flight=3, queued=7, requests_per_minute=600.0, paused_for_s=2.0, rate_limited=4)
        },
    )
    first, second = repr(state).splitlines()
    assert first == "<LimitsState 3 of 5 in flight, 7 queued"
    assert "a: 3 of - in flight, 7 queued, paused for 2.0 s, 600 requests/min, - tokens/min" in second
    assert "4 x 429, 0 x 503" in second
    assert "stopped: no money" in repr(LimitsState(stopped="no money"))
