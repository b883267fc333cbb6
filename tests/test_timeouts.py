"""Timeouts: which values are limits, and which limit comes first."""

import math
import pickle

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from together_async.timeouts import Due, Timeouts, due, earliest

FIELDS = [field.name for field in attrs.fields(Timeouts)]


def test_defaults():
    """The total time is not limited; connecting, the first token and silence are."""
    assert attrs.asdict(Timeouts()) == {
        "connect": 10.0,
        "first_token": 300.0,
        "idle": 60.0,
        "total": None,
        "queue": None,
    }


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", [None, 1, 0.001, 5e-324, 1e308, 10**300])
def test_limits(name, value):
    """Any finite number above zero is a limit, None switches it off."""
    assert getattr(Timeouts(**{name: value}), name) == value


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize(
    "value", [0, -1, 0.0, math.nan, math.inf, True, False, "5", b"5", [], 10**400], ids=lambda value: str(value)[:9]
)
def test_what_is_no_limit(name, value):
    """Zero, negative, NaN, infinite, bool, text and an int beyond a float: refused, with the field's name."""
    with pytest.raises(ValueError, match=rf"^Timeouts\.{name}: got .*, expected seconds above 0, or None"):
        Timeouts(**{name: value})


def test_no_limit_has_a_text_of_its_own():
    """Even the largest int, which Python refuses to write out, is refused by name."""
    with pytest.raises(ValueError, match=r"^Timeouts\.total: got "):
        Timeouts(total=10**5000)


def test_a_value():
    """Frozen, equal, hashable, picklable, and evolved one field at a time."""
    timeouts = Timeouts(idle=5)
    assert timeouts == attrs.evolve(Timeouts(), idle=5)
    assert hash(timeouts) == hash(Timeouts(idle=5))
    assert pickle.loads(pickle.dumps(timeouts)) == timeouts  # noqa: S301 - made here
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        timeouts.idle = 6
    with pytest.raises(ValueError, match="idle"):
        attrs.evolve(timeouts, idle=-1)


def test_due_is_seconds_after():
    """A limit is due its seconds after it began; one that is switched off is never due."""
    assert due("idle", 5.0, 100.0) == Due(105.0, "idle", 5.0)
    assert due("idle", None, 100.0) is None


DUES = st.none() | st.floats(0, 1e9).map(lambda at: Due(at, "total", 1.0))


@given(DUES, DUES)
def test_earliest(first, second):
    """The earlier of two; None of neither."""
    given_dues = [due for due in (first, second) if due is not None]
    found = earliest(first, second)
    assert found is None if not given_dues else found in given_dues
    assert all(found.at <= due.at for due in given_dues)


def test_of_two_at_once_the_first_given_is_named():
    """A tie is decided by order, so that the same limit is named each time."""
    assert earliest(Due(1.0, "idle", 1.0), Due(1.0, "total", 1.0)).phase == "idle"
