"""Faults as values: sums, reprs, copies."""

from __future__ import annotations

import pickle

import pytest

from support.plans import stream
from together_async.testing import (
    Chance,
    Cut,
    ErrorInStream,
    Fault,
    Frame,
    Gzip,
    Headers,
    HugeLine,
    Split,
    Stall,
    Status,
)
from together_async.testing.fault import Faults, members


def test_faults_add_up_in_order():
    """A sum of sums is flat; all are applied, and `apply` returns False if one had no place."""
    sum_ = (Split(every=3) + Gzip()) + (Frame("close") + Stall())
    assert members(sum_) == (Split(every=3), Gzip(), Frame("close"), Stall())
    assert isinstance(sum_, Faults)
    response = stream()
    assert not (Cut(after_token=99) + Gzip()).apply(response)
    assert response.gzip


@pytest.mark.parametrize("other", [None, Chance(0.5, Gzip()), "x", [Gzip()]], ids=repr)
def test_only_faults_add_up(other):
    """A rule can't be added to a fault; the error explains that it goes around the sum."""
    with pytest.raises(TypeError, match="expected a fault to add"):
        _ = Gzip() + other


def test_a_fault_without_an_edit_is_not_one():
    """The base class is for subclasses."""
    with pytest.raises(NotImplementedError):
        Fault().apply(stream())


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Stall(), "Stall()"),
        (Stall(after_token=3, ping_every=0.5), "Stall(after_token=3, ping_every=0.5)"),
        (Cut(at_byte=0), "Cut(at_byte=0)"),
        (Status(429), "Status(code=429)"),
        (Status(500, "x", headers={"a": "b"}), "Status(code=500, body='x', headers={'a': 'b'})"),
        (HugeLine(), "HugeLine()"),
        (Split(at=[1, 2]), "Split(at=(1, 2))"),
        (Cut() + Gzip(), "Faults(members=(Cut(), Gzip()))"),
        (ErrorInStream(shape="flat"), "ErrorInStream(shape='flat')"),
    ],
)
def test_a_repr_says_what_was_written(fault, text):
    """The arguments that differ from the defaults."""
    assert repr(fault) == text


@pytest.mark.parametrize(
    "fault",
    [Stall(after_token=1), Status(429, headers={"a": "b"}), Split(at=[1]), Cut(at_byte=3), Headers({"a": None})],
    ids=repr,
)
def test_faults_are_values(fault):
    """Equal, hashable, picklable, frozen."""
    copy = pickle.loads(pickle.dumps(fault))  # noqa: S301 - our own
    assert copy == fault
    assert hash(copy) == hash(fault)
    with pytest.raises(AttributeError):
        fault.after_token = 2
