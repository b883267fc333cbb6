"""The checks of the values that callers set."""

import math

import attrs
import pytest

from together_async.validation import FINITE, NumberRange, described, is_number, number, shown


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        (1, True),
        (0.5, True),
        (0, False),
        (10, True),
        (10.5, False),
        (True, False),
        ("1", False),
        (None, False),
        (math.nan, False),
        (math.inf, False),
        (10**400, False),
    ],
)
def test_a_number_above_the_least(value, fits):
    """A bool is not a number, NaN is in no range, and an int beyond every float is out of range without an error."""
    assert is_number(value, 0, 10, above=True) is fits


def test_the_least_passes_unless_it_is_excluded():
    """`above` is the difference between `>=` and `>`."""
    assert is_number(0, 0, 1)
    assert not is_number(0, 0, 1, above=True)


def test_a_whole_number():
    """A float is refused, also one without a fraction."""
    assert is_number(1, 0, 1, whole=True)
    assert not is_number(1.0, 0, 1, whole=True)


@attrs.frozen
class Setting:
    size: object = attrs.field(validator=number(1, 9, "1 to 9, 'auto' or None", optional=True, words=("auto",)))


@pytest.mark.parametrize("value", [1, 9, 2.5, None, "auto"])
def test_a_validator_passes(value):
    """Numbers in range, and what else it was made for."""
    assert Setting(value).size == value


@pytest.mark.parametrize(("value", "got"), [(0, "0"), ("no", "'no'"), (True, "True"), (10**400, "an int too large")])
def test_a_validator_names_class_field_value_and_range(value, got):
    """The largest ints have no text in Python."""
    with pytest.raises(ValueError, match=r"^Setting\.size: got ") as caught:
        Setting(value)
    assert str(caught.value) == f"Setting.size: got {got}, expected 1 to 9, 'auto' or None"


def test_what_may_be_a_prompt_is_described_and_not_shown():
    """Its type and length; numbers as they are."""
    assert described("my prompt") == "a str of length 9"
    assert described({"my": "prompt"}) == "a dict of length 1"
    assert (described(1.5), described(None), described(False)) == ("1.5", "None", "False")
    assert described(10**5000) == "an int of 16610 bits"
    assert shown("word") == "'word'"


def test_a_range_without_bounds_is_finite():
    """Infinities and NaN are refused all the same."""
    for value in (math.inf, -math.inf, math.nan):
        with pytest.raises(ValueError, match=r"expected a finite number$"):
            NumberRange(whole=False).check("seed", value)
    assert NumberRange(whole=False).check("seed", FINITE) == FINITE
