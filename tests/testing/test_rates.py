"""Rates as values, and arguments that are out of range."""

import math
import pickle
import re

import attrs
import pytest

from together_async.testing.account import Counts
from together_async.testing.rates import Dynamic, Rate


@pytest.mark.parametrize("value", [Rate(1, 2, 3, Dynamic()), Dynamic(start=0.3), Counts(1, 2, 3, 4)])
def test_values(value):
    """Frozen, equal, hashable and picklable."""
    assert pickle.loads(pickle.dumps(value)) == value == attrs.evolve(value)  # noqa: S301 - our own
    assert hash(value) == hash(attrs.evolve(value))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(value, attrs.fields(type(value))[0].name, 1)


def test_per_minute():
    """A sixtieth of it per second; an omitted one stays unlimited."""
    assert Rate.per_minute(600, 60_000) == Rate(10, 1000)
    assert Rate.per_minute(tokens=60, burst_s=2, dynamic=Dynamic()) == Rate(None, 1, 2, Dynamic())
    assert Rate.per_minute() == Rate()


NO_NUMBERS = [0, -1, math.nan, math.inf, True, "5", [], 10**400, 10**5000]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: str(type(value)))
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("Rate.requests_per_second", Rate),
        ("Rate.tokens_per_second", lambda value: Rate(None, value)),
        ("Rate.burst_s", lambda value: Rate(1, burst_s=value)),
        ("Rate.per_minute(requests)", Rate.per_minute),
        ("Rate.per_minute(tokens)", lambda value: Rate.per_minute(tokens=value)),
        ("Dynamic.start", lambda value: Dynamic(start=value)),
        ("Dynamic.floor", lambda value: Dynamic(floor=value)),
        ("Dynamic.doubling_s", lambda value: Dynamic(doubling_s=value)),
        ("Dynamic.fall", lambda value: Dynamic(fall=value)),
    ],
)
def test_what_is_no_rate(name, make, value):
    """Zero, negative, NaN, infinite, bool, text, far too large: the error has name, value and expectation."""
    with pytest.raises(ValueError, match=rf"^{re.escape(name)}: got .*, expected a number "):
        make(value)
