"""The rules that choose faults for each request."""

from __future__ import annotations

import math
from collections import Counter
from random import Random
from typing import Any

import pytest

from together_async.request import ChatCompletionRequest
from together_async.testing import (
    ByModel,
    Chance,
    Cut,
    Fault,
    Gzip,
    InTurn,
    OneOf,
    Stall,
)
from together_async.testing.rules import Rule, choose

ANY: Any = "1"  # a type checker would refuse it
GZIP, RESET, STALL = Gzip(), Cut(), Stall()


def request(model: str = "m", n: int = 1) -> ChatCompletionRequest:
    return ChatCompletionRequest(messages=[{"role": "user", "content": "hi"}], model=model, n=n)


def chosen(rule: Rule, requests: int = 1, *, seed: int = 0, model: str = "m") -> list[list[Fault]]:
    """The faults that a rule chooses for each of so many requests."""
    turns: dict[int, int] = {}
    return [choose(rule, request(model), Random(f"{seed}/{number}"), turns) for number in range(requests)]


@pytest.mark.parametrize(
    ("rule", "faults"),
    [
        (None, []),
        (GZIP, [GZIP]),
        (GZIP + RESET, [GZIP, RESET]),
        ([GZIP, RESET], [GZIP, RESET]),
        ((GZIP, None, [RESET + STALL]), [GZIP, RESET, STALL]),
        (lambda asked: GZIP if asked.model == "m" else None, [GZIP]),
        (lambda _: None, []),
        (lambda _: [GZIP, InTurn(RESET)], [GZIP, RESET]),
        (Chance(1, GZIP + RESET), [GZIP, RESET]),
        (Chance(0, GZIP), []),
        (ByModel({"m": GZIP, "n": RESET}), [GZIP]),
        (ByModel({"n": RESET}, other=STALL), [STALL]),
        (ByModel({"n": RESET}), []),
        (OneOf(GZIP), [GZIP]),
        (OneOf(None), []),
        (ByModel({"m": InTurn([Chance(1, lambda _: OneOf(GZIP))])}), [GZIP]),
        ([], []),
    ],
)
def test_what_a_rule_chooses(rule, faults):
    """Faults, sums, lists, functions and choosers, in each other."""
    assert chosen(rule) == [faults]


def test_in_turn_goes_on_with_what_comes_then():
    """A request each, None for none, then `then`, without end."""
    assert chosen(InTurn(GZIP, None, RESET + STALL), 5) == [[GZIP], [], [RESET, STALL], [], []]
    assert chosen(InTurn(GZIP, then=RESET), 3) == [[GZIP], [RESET], [RESET]]
    assert chosen(InTurn(), 2) == [[], []]


def test_two_rules_in_turn_count_by_themselves():
    """Also when they are equal."""
    rule = [InTurn(GZIP, None), InTurn(None, RESET), InTurn(GZIP, None)]
    assert chosen(rule, 3) == [[GZIP, GZIP], [RESET], []]


def test_chance_and_one_of_repeat_with_the_seed():
    """The same seed picks the same requests; another seed picks others."""
    rule = [Chance(0.5, GZIP), OneOf(RESET, STALL, None)]
    assert chosen(rule, 50) == chosen(rule, 50)
    assert chosen(rule, 50) != chosen(rule, 50, seed=1)


def test_chance_happens_as_often_as_it_says():
    """A quarter of 4,000, within five standard deviations."""
    happened = sum(map(len, chosen(Chance(0.25, GZIP), 4_000)))
    assert abs(happened - 1_000) < 5 * math.sqrt(4_000 * 0.25 * 0.75)


def test_one_of_takes_each_as_often():
    """Thirds of 3,000, within five standard deviations."""
    counts = Counter(tuple(faults) for faults in chosen(OneOf(GZIP, RESET, None), 3_000))
    assert set(counts) == {(GZIP,), (RESET,), ()}
    assert all(abs(count - 1_000) < 5 * math.sqrt(3_000 * 2 / 9) for count in counts.values())


@pytest.mark.parametrize("rule", ["x", b"x", 5, {"m": GZIP}, [5], lambda _: "x", InTurn(5), Chance(1, ANY)], ids=repr)
def test_what_is_no_rule_is_a_type_error(rule):
    """The message names the type."""
    with pytest.raises(TypeError, match="among the faults, expected a fault"):
        chosen(rule)
