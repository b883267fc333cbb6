"""Arguments that are out of range are refused where a fault or rule is written."""

from __future__ import annotations

import math
from typing import Any

import pytest

from together_async.testing import (
    Chance,
    CloseAfter,
    Cut,
    Drip,
    EndlessHeaders,
    ErrorInStream,
    Frame,
    HugeLine,
    Insert,
    LineEndings,
    OneOf,
    Redirect,
    Split,
    Stall,
    Status,
    WrongLength,
)

ANY: Any = "1"  # a type checker would refuse it
BAD: list[tuple[Any, str]] = [
    (lambda: Status(99), "code: got 99, expected an HTTP status, 200 to 599"),
    (lambda: Status(600), "code: got 600, expected"),
    (lambda: Status(ANY), "code: got '1', expected"),
    (lambda: Stall(seconds=-1), "seconds: got -1, expected seconds, at least 0"),
    (lambda: Stall(seconds=math.nan), "seconds: got nan, expected"),
    (lambda: Stall(seconds=ANY), "seconds: got '1', expected"),
    (lambda: Stall(ping_every=-0.5), "ping_every: got -0.5, expected"),
    (lambda: Stall(ping_every=True), "ping_every: got True, expected"),
    (lambda: Drip(every_s=-1), "every_s: got -1, expected"),
    (lambda: Drip(0), "size: got 0, expected an int of at least 1"),
    (lambda: Split(every=0), "every: got 0, expected an int of at least 1"),
    (lambda: HugeLine(size=0), "size: got 0, expected an int of at least 1"),
    (lambda: EndlessHeaders(0), "size: got 0, expected an int of at least 1"),
    (lambda: CloseAfter(-1), "seconds: got -1, expected"),
    (lambda: Chance(1.1, None), "probability: got 1.1, expected a number, 0 to 1"),
    (lambda: Chance(-0.1, None), "probability: got -0.1, expected a number, 0 to 1"),
    (lambda: Chance(math.nan, None), "probability: got nan, expected a number, 0 to 1"),
    (OneOf, "expected at least one rule or None"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_arguments_are_value_errors(make, message):
    """Name, value and expectation, where the fault is written."""
    with pytest.raises(ValueError, match=message):
        make()


MISTAKES: dict[str, Any] = {
    "framing": lambda: Frame("foo"),  # type: ignore[arg-type]  # the mistake
    "how": lambda: Cut(how="foo"),  # type: ignore[arg-type]  # the mistake
    "inside": lambda: Split(inside="utf8"),  # type: ignore[arg-type]  # the mistake
    "ending": lambda: LineEndings("x"),  # type: ignore[arg-type]  # the mistake
    "shape": lambda: ErrorInStream(shape="foo"),  # type: ignore[arg-type]  # the mistake
    "code": lambda: Redirect(code=9),
    "times": lambda: Insert(data=b"x", times=-1),
    "at": lambda: Split(at=(-1,)),
    "every": lambda: Split(every=1.5),  # type: ignore[arg-type]  # the mistake
    "by": lambda: WrongLength("x"),  # type: ignore[arg-type]  # the mistake
    "data": lambda: Insert(data="x"),  # type: ignore[arg-type]  # the mistake
    "in_head": lambda: ErrorInStream(in_head=3),
    "ping_every": lambda: Stall(ping_every=1.0),  # pings in front of the head
    "probability": lambda: Chance("x", None),  # type: ignore[arg-type]  # the mistake
}


@pytest.mark.parametrize(("name", "make"), MISTAKES.items(), ids=MISTAKES)
def test_mistakes_of_every_kind_are_value_errors(name, make):
    """They are mistakes where they are written, not later."""
    with pytest.raises(ValueError, match=name):
        make()
