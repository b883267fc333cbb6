"""How many tokens a request will use."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from together_async.ratelimit.estimator import NOT_COUNTED, OUTPUT_TOKENS, Estimator, Size, believed_counts, size_of


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        ([], 0),
        ([{"role": "user", "content": "x" * 400}], 104),
        ([{"role": "system", "content": "abc"}, {"role": "user", "content": "d"}], 9),
        ([{"role": "assistant", "content": None, "tool_calls": [{}]}], 4),
        ([{"role": "user"}], 4),
        (
            [{"role": "user", "content": [{"type": "text", "text": "x" * 40}, {"type": "image_url", "image_url": {}}]}],
            1_014,
        ),
        ([{"role": "user", "content": ({"type": "text", "text": "x" * 40},)}], 14),
        ([{"role": "user", "content": ["text", 5]}], 2_004),
    ],
)
def test_size_of_a_prompt(messages: list[dict[str, Any]], prompt: int) -> None:
    """A token for every four characters, four for each message, a thousand for a part that is not text."""
    assert size_of(messages, None, None) == Size(prompt, None, 1)


def test_first_estimate_is_the_rule_alone() -> None:
    estimator = Estimator()
    assert estimator.total(Size(100, 50, 1)) == 150
    assert estimator.total(Size(100, 50, 3)) == 250
    assert estimator.total(Size(100, None, 1)) == 100 + OUTPUT_TOKENS
    assert estimator.prompt(Size(100, 50, 3)) == 100


def test_estimate_follows_what_the_server_counts() -> None:
    """Prompts have 1.5 times the rule's tokens here, and a tenth of `max_tokens` is generated."""
    estimator = Estimator()
    for _ in range(200):
        estimator.learn(Size(100, 1_000, 2), 150, 200)
    assert estimator.total(Size(200, 500, 1)) == pytest.approx(300 + 50, abs=2)
    assert estimator.total(Size(200, None, 2)) == pytest.approx(300 + 200, abs=2)
    assert estimator.prompt(Size(10, 1, 1)) == 15


def test_first_samples_count_fully_and_later_ones_a_twentieth() -> None:
    """The current work is known after one response, and forgotten within some dozens."""
    estimator = Estimator()
    estimator.learn(Size(100, None, 1), 100, 10)
    assert 10 <= estimator.total(Size(0, None, 1)) <= 30
    for _ in range(200):
        estimator.learn(Size(100, None, 1), 100, 10)
    for _ in range(150):
        estimator.learn(Size(100, None, 1), 100, 1_000)
    assert estimator.total(Size(0, None, 1)) == pytest.approx(1_000, rel=0.05)


def test_estimate_is_rarely_exceeded_where_answers_differ() -> None:
    """A service that holds one request's worth refuses a request that costs more than estimated."""
    estimator, rng = Estimator(), random.Random(1)
    size = Size(30, 80, 1)
    for _ in range(300):
        estimator.learn(size, 30, rng.randint(40, 80))
    exceeded = sum(30 + rng.randint(40, 80) > estimator.total(size) for _ in range(1_000))
    assert exceeded < 350
    assert estimator.total(size) <= 110, "never more than `max_tokens`"


def test_estimate_learns_nothing_from_numbers_that_are_not_there() -> None:
    estimator = Estimator()
    estimator.learn(Size(0, 100, 1), 50, None)
    estimator.learn(Size(100, None, 1), 0, None)
    estimator.learn(Size(100, None, 1), None, None)
    assert estimator.total(Size(100, 100, 1)) == 200
    estimator.learn(Size(100, 100, 1), None, 0)  # an empty response is a response
    assert estimator.total(Size(100, 100, 1)) == 100


def test_more_than_max_tokens_is_not_expected_of_the_next() -> None:
    """Some servers count reasoning beyond `max_tokens`."""
    estimator = Estimator()
    estimator.learn(Size(10, 100, 1), 10, 5_000)
    assert estimator.total(Size(10, 100, 1)) == 110


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(1, 5_000))), st.integers(1, 4))
def test_estimate_is_a_number_whatever_is_counted(samples: list[tuple[int, int, int]], n: int) -> None:
    estimator = Estimator()
    for prompt, completion, most in samples:
        estimator.learn(Size(100, most, n), prompt, completion)
    assert 0 <= estimator.prompt(Size(50, 200, n)) <= estimator.total(Size(50, 200, n)) < 1e9
    assert estimator.total(Size(50, 200, n)) - estimator.prompt(Size(50, 200, n)) <= 200 * n


SIZE = Size(1_000, 500, 2)
"""Prompts up to 120,000 tokens are possible, and 201,000 of two choices."""


@pytest.mark.parametrize(
    ("counts", "believed"),
    [
        ((1_200, 700, 1_900), (1_200, 700, 1_900)),
        ((120_000, 201_000, 321_000), (120_000, 201_000, 321_000)),
        ((1_200, 700, None), (1_200, 700, 1_900)),
        ((1_200, 700, 100), (1_200, 700, 1_900)),
        ((1_200, 700, 2_500), (1_200, 700, 2_500)),
        ((None, None, 1_900), (None, None, 1_900)),
        ((1_200, None, None), (1_200, None, None)),
        ((0, 5, 5), (0, 5, 5)),
        ((None, None, None), NOT_COUNTED),
        ((0, 0, 0), NOT_COUNTED),
        ((0, 0, None), (0, 0, None)),
        ((120_001, 1, 120_002), NOT_COUNTED),
        ((1, 201_001, 201_002), NOT_COUNTED),
        ((1, 1, 321_001), NOT_COUNTED),
        ((-1, 1, 1), NOT_COUNTED),
        ((1, -1, 1), NOT_COUNTED),
        ((1, 1, -1), NOT_COUNTED),
        ((True, 1, 2), NOT_COUNTED),
        ((1, 1.0, 2), NOT_COUNTED),
        ((1, 1, "2"), NOT_COUNTED),
        ((10**15, 10**15, 10**15), NOT_COUNTED),
    ],
    ids=str,
)
def test_which_counts_are_believed(counts: tuple[Any, Any, Any], believed: tuple[Any, Any, Any]) -> None:
    """Whole numbers that are possible for the size; one that is not makes the others unbelievable too."""
    assert believed_counts(SIZE, *counts) == believed


@given(st.tuples(*[st.none() | st.integers() | st.floats() | st.booleans() | st.text(max_size=3)] * 3))
def test_what_is_believed_is_possible(counts: tuple[Any, Any, Any]) -> None:
    """Whatever comes: not negative, not absurd, and the total is never below its parts."""
    prompt, completion, total = believed_counts(Size(100, None, 1), *counts)
    assert prompt is None or 0 <= prompt <= 102_000
    assert completion is None or 0 <= completion <= 1_000_000
    assert total is None or (prompt or 0) + (completion or 0) * (prompt is not None) <= total <= 1_102_000
