"""What a batch may spend, and when the next request may begin."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from together_async.batch.budget import Budget
from together_async.pricing import Price

PRICES = {"m": Price(1.0, 10.0), "free": Price(0, 0)}


def budget(max_tokens: float | None = None, max_cost: float | None = None) -> Budget:
    made = Budget(max_tokens, max_cost)
    made.prices = PRICES
    return made


def test_without_limits_there_is_always_room() -> None:
    one = budget()
    one.reserve(0, "m", 10**12, 10**12)
    one.spend("m", 10**12, 10**12)
    assert one.room("m", 10**12, 10**12) == "now"
    assert not one.is_set


def test_what_is_under_way_counts_as_it_is_expected() -> None:
    """Who does not fit beside it waits; when it turns out cheaper there is room."""
    one = budget(max_tokens=100)
    assert one.room("m", 40, 20) == "now"
    one.reserve(0, "m", 40, 20)
    assert one.room("m", 30, 10) == "now"
    assert one.room("m", 30, 11) == "later"
    one.release(0)
    one.spend("m", 10, 5)
    assert one.room("m", 80, 5) == "now"
    assert one.room("m", 80, 6) == "never"


def test_dollars_are_kept_by_the_prices_of_models() -> None:
    one = budget(max_cost=1.0)
    assert one.room("m", 0, 100_000) == "now"
    assert one.room("m", 1, 100_000) == "never"
    one.spend("free", 10**9, 10**9)
    assert one.room("m", 0, 100_000) == "now"
    one.spend("m", 0, 50_000)
    assert one.cost == pytest.approx(0.5)
    assert one.room("m", 0, 50_001) == "never"
    assert one.room("free", 10**9, 10**9) == "now"


@pytest.mark.parametrize(
    ("max_tokens", "max_cost", "names"),
    [(1, None, "max_tokens_total"), (None, 1, "max_cost"), (1, 1, "max_tokens_total or max_cost")],
)
def test_it_says_which_limits_there_are(max_tokens: Any, max_cost: Any, names: str) -> None:
    assert budget(max_tokens, max_cost).limits == names


def test_a_cost_that_is_not_known_is_not_told() -> None:
    one = budget()
    assert one.known_cost == 0
    one.spend("m", 1_000_000, 0)
    assert one.known_cost == pytest.approx(1.0)
    one.spend("other", 5, 5)
    assert one.known_cost is None
    assert one.tokens == 1_000_010
    assert Budget(None, None).known_cost is None


def test_settling_what_was_not_reserved_changes_nothing() -> None:
    one = budget(max_tokens=10)
    one.release(5)
    assert one.room("m", 10, 0) == "now"


STEP = st.tuples(
    st.sampled_from(["begin", "end", "fail"]),
    st.integers(0, 60),
    st.integers(0, 60),
    st.floats(0, 1),
    st.sampled_from("mn"),
)


@given(steps=st.lists(STEP, max_size=60), most=st.integers(1, 300), most_cost=st.floats(0.0001, 0.005))
def test_never_more_is_spent_than_allowed(steps: list[Any], most: int, most_cost: float) -> None:
    """As long as no answer uses more than was expected of it; and nobody waits when nothing is under way."""
    one = Budget(most, most_cost)
    one.prices = {"m": Price(1.0, 10.0), "n": Price(3.0, 4.0)}
    under_way: list[tuple[int, str, int, int]] = []
    for key, (step, prompt, completion, used, model) in enumerate(steps):
        if step == "begin":
            room = one.room(model, prompt, completion)
            assert room != "later" or under_way
            assert room != "never" or not under_way
            if room == "now":
                one.reserve(key, model, prompt, completion)
                under_way.append((key, model, prompt, completion))
        elif under_way:
            number, name, expected_prompt, expected_completion = under_way.pop(len(under_way) // 2)
            one.release(number)
            if step == "end":
                one.spend(name, expected_prompt, round(expected_completion * used))
        assert one.tokens <= most
        assert one.cost <= most_cost * (1 + 1e-9)
        assert one._reserved_tokens >= 0
        assert one._reserved_cost >= -1e-12
