"""Rules: which faults, or which script, each request gets.

Pure: the values are frozen. The server keeps what a rule has to remember, and passes the randomness.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import attrs

from together_async.request import ChatCompletionRequest
from together_async.testing import validators
from together_async.testing.fault import Fault, members

Rule: TypeAlias = "Fault | Chooser | Sequence[Rule] | Callable[[ChatCompletionRequest], Rule] | None"
"""What an emulator takes as `faults`: a fault, a chooser, a sequence of rules, a function that returns a rule for a
request, or None for no fault."""


class Chooser:
    """A rule that picks another rule for each request."""

    __slots__ = ()

    def next(self, request: ChatCompletionRequest, rng: random.Random, turns: dict[int, int]) -> Rule:
        """Returns the rule for this request; the arguments are those of `choose`."""
        raise NotImplementedError


@attrs.frozen(init=False)
class InTurn(Chooser):
    """Rules, or scripts, one after the other: each request gets the next.

    Args:
        *rules: For the first request, the second, and so on. None lets a request go well, or has the text generated.
        then: For all later requests, likewise.
    """

    rules: tuple[Any, ...]
    then: Any

    def __init__(self, *rules: Any, then: Any = None) -> None:
        object.__setattr__(self, "rules", rules)
        object.__setattr__(self, "then", then)

    def next(self, request: ChatCompletionRequest, rng: random.Random, turns: dict[int, int]) -> Any:  # noqa: ARG002 - as declared by Chooser
        """Returns the next rule, and counts the request."""
        turn = turns.get(id(self), 0)
        turns[id(self)] = turn + 1
        return self.rules[turn] if turn < len(self.rules) else self.then


@attrs.frozen
class ByModel(Chooser):
    """A rule for each model.

    Args:
        rules: By the model's name.
        other: For all other models; None for no fault.
    """

    rules: Mapping[str, Rule] = attrs.field(hash=False, validator=validators.mapping)
    other: Rule = None

    def next(self, request: ChatCompletionRequest, rng: random.Random, turns: dict[int, int]) -> Rule:  # noqa: ARG002 - as declared by Chooser
        """Returns the model's rule."""
        return self.rules.get(request.model, self.other)


@attrs.frozen
class Chance(Chooser):
    """A rule for some of the requests, at random.

    Args:
        probability: For each request, 0 to 1.
        rule: The rule for the requests that are picked.
    """

    probability: float = attrs.field(validator=validators.probability)
    rule: Rule

    def next(self, request: ChatCompletionRequest, rng: random.Random, turns: dict[int, int]) -> Rule:  # noqa: ARG002 - as declared by Chooser
        """Returns the rule, or None."""
        return self.rule if rng.random() < self.probability else None


@attrs.frozen(init=False)
class OneOf(Chooser):
    """One of several rules at random.

    Args:
        rules: The rules, each equally likely; None among them is a request that goes well.
    """

    rules: tuple[Rule, ...]

    def __init__(self, *rules: Rule) -> None:
        if not rules:
            raise ValueError("OneOf: got nothing, expected at least one rule or None")
        object.__setattr__(self, "rules", rules)

    def next(self, request: ChatCompletionRequest, rng: random.Random, turns: dict[int, int]) -> Rule:  # noqa: ARG002 - as declared by Chooser
        """Returns one of the rules."""
        return rng.choice(self.rules)


def choose(rule: Rule, request: ChatCompletionRequest, rng: random.Random, turns: dict[int, int]) -> list[Fault]:
    """Returns the faults that a rule chooses for a request, in order.

    Args:
        rule: The rule.
        request: The request.
        rng: The source of randomness.
        turns: How many requests each `InTurn` has had, by its `id()`; updated in place.

    Raises:
        TypeError: Something that is not a rule.
    """
    if rule is None:
        return []
    if isinstance(rule, Fault):
        return [*members(rule)]
    if isinstance(rule, Chooser):
        return choose(rule.next(request, rng, turns), request, rng, turns)
    if callable(rule):
        return choose(rule(request), request, rng, turns)
    if isinstance(rule, (str, bytes, Mapping)) or not isinstance(rule, Iterable):
        raise TypeError(f"got {type(rule).__name__} among the faults, expected a fault, a rule, a function or None")
    return [fault for member in rule for fault in choose(member, request, rng, turns)]
