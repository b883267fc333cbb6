"""What a batch may spend, and when the next request may begin."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from together_async.batch.budget import Budget
from together_async.pricing import Price

PRICES = {"m": Price(1.0, 10.0), "free": Price(0, 0)}


def budget_of(max_tokens: float | None = None, max_cost: float | None = None) -> Budget:
    budget = Budget(max_tokens, max_cost)
    budget.prices = PRICES
    return budget


def test_without_limits_there_is_always_room() -> None:
    budget = budget_of()
    budget.reserve(0, "m", 10**12, 10**12)
    budget.spend("m", 10**12, 10**12)
    assert budget.room("m", 10**12, 10**12) == "now"
    assert not budget.is_set


def test_what_is_under_way_counts_as_it_is_expected() -> None:
    """A request that does not fit next to it waits; when the first turns out cheaper there is room."""
    budget = budget_of(max_tokens=100)
    assert budget.room("m", 40, 20) == "now"
    budget.reserve(0, "m", 40, 20)
    assert budget.room("m", 30, 10) == "now"
    assert budget.room("m", 30, 11) == "later"
    budget.release(0)
    budget.spend("m", 10, 5)
    assert budget.room("m", 80, 5) == "now"
    assert budget.room("m", 80, 6) == "never"


def test_dollars_are_kept_by_the_prices_of_models() -> None:
    budget = budget_of(max_cost=1.0)
    assert budget.room("m", 0, 100_000) == "now"
    assert budget.room("m", 1, 100_000) == "never"
    budget.spend("free", 10**9, 10**9)
    assert budget.room("m", 0, 100_000) == "now"
    budget.spend("m", 0, 50_000)
    assert budget.cost == pytest.approx(0.5)
    assert budget.room("m", 0, 50_001) == "never"
    assert budget.room("free", 10**9, 10**9) == "now"


@pytest.mark.parametrize(
    ("max_tokens", "max_cost", "names"),
    [(1, None, "max_tokens_total"), (None, 1, "max_cost"), (1, 1, "max_tokens_total or max_cost")],
)
def test_it_says_which_limits_there_are(max_tokens: Any, max_cost: Any, names: str) -> None:
    assert budget_of(max_tokens, max_cost).limits == names


def test_a_cost_that_is_not_known_is_not_reported() -> None:
    budget = budget_of()
    assert budget.known_cost == 0
    budget.spend("m", 1_000_000, 0)
    assert budget.known_cost == pytest.approx(1.0)
    budget.spend("other", 5, 5)
    assert budget.known_cost is None
    assert budget.tokens == 1_000_010
    assert Budget(None, None).known_cost is None


def test_releasing_what_was_not_reserved_changes_nothing() -> None:
    budget = budget_of(max_tokens=10)
    budget.release(5)
    assert budget.room("m", 10, 0) == "now"


STEP = st.tuples(
    st.sampled_from(["begin", "end", "fail"]),
    st.integers(0, 60),
    st.integers(0, 60),
    st.floats(0, 1),
    st.sampled_from("mn"),
)


@given(steps=st.lists(STEP, max_size=60), most=st.integers(1, 300), most_cost=st.floats(0.0001, 0.005))
def test_never_more_is_spent_than_allowed(steps: list[Any], most: int, most_cost: float) -> None:
    """As long as no completion uses more than expected; and no request waits when nothing is in flight."""
    budget = Budget(most, most_cost)
    budget.prices = {"m": Price(1.0, 10.0), "n": Price(3.0, 4.0)}
    under_way: list[tuple[int, str, int, int]] = []
    for key, (step, prompt, completion, used, model) in enumerate(steps):
        if step == "begin":
            room = budget.room(model, prompt, completion)
            assert room != "later" or under_way
            assert room != "never" or not under_way
            if room == "now":
                budget.reserve(key, model, prompt, completion)
                under_way.append((key, model, prompt, completion))
        elif under_way:
            number, name, expected_prompt, expected_completion = under_way.pop(len(under_way) // 2)
            budget.release(number)
            if step == "end":
                budget.spend(name, expected_prompt, round(expected_completion * used))
        assert budget.tokens <= most
        assert budget.cost <= most_cost * (1 + 1e-9)
        assert budget._reserved_tokens >= 0
        assert budget._reserved_cost >= -1e-12
