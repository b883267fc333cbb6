"""`Claims`, `KeptTexts` and `ClaimingIterator`: who may read, and what waits for whom."""

from __future__ import annotations

import pytest

from together_async.calls.claims import ClaimingIterator, Claims, KeptTexts
from together_async.wire.parts import BLOCK


@pytest.mark.parametrize(
    ("held", "wanted", "given"),
    [
        ([], None, True),
        ([], 0, True),
        ([0], 1, True),
        ([0, 1], 2, True),
        ([0], 0, False),
        ([0], None, False),
        ([None], 0, False),
        ([None], None, False),
    ],
)
def test_only_texts_of_different_choices_go_together(held: list[int | None], wanted: int | None, given: bool) -> None:
    claims = Claims(held)
    if given:
        claims.check(wanted)
    else:
        with pytest.raises(RuntimeError, match=r"one loop reads a stream.*`tee\(stream\)` or `Broadcast\(stream\)`"):
            claims.check(wanted)
    assert claims == set(held)


def test_kept_text_is_taken_once_and_in_order() -> None:
    """As one piece, however many there were."""
    kept = KeptTexts()
    assert not kept
    for number in range(3 * BLOCK):
        kept.add(1, f"{number} ")
    kept.add(2, "x")
    assert kept.take(0) == ""
    assert kept.take(1) == "".join(f"{number} " for number in range(3 * BLOCK))
    assert kept.take(1) == ""
    assert kept.take(2) == "x"
    assert not kept


class Loop(ClaimingIterator):
    """A loop that notes its closing."""

    def __init__(self, claims: Claims, closed: list[int], choice: int | None = None, *, plain: bool = True) -> None:
        super().__init__(claims, choice, plain=plain)
        self.closed = closed

    def _close(self) -> None:
        self.closed.append(1)


def test_the_last_owner_closes() -> None:
    claims, closed = Claims(), list[int]()
    first, second = Loop(claims, closed, 0), Loop(claims, closed, 1)
    first.claim()
    second.claim()
    del first
    assert not closed
    del second
    assert closed == [1]
    assert not claims


@pytest.mark.parametrize("state", ["not begun", "refused", "withdrawn", "in a block"])
def test_who_has_no_claim_closes_nothing(state: str) -> None:
    claims, closed = Claims(), list[int]()
    first = Loop(claims, closed)
    first.claim()
    second = Loop(claims, closed, plain=state != "in a block")
    assert second.must_claim is (state != "in a block")
    if state == "refused":
        with pytest.raises(RuntimeError):
            second.claim()
    elif state == "withdrawn":
        second = first
        first.withdraw()
        assert first.must_claim
        assert not claims
    del second
    del first
    assert closed == ([] if state == "withdrawn" else [1])


def test_giving_up_is_leaving() -> None:
    """And the iterator may claim again."""
    claims, closed = Claims(), list[int]()
    loop = Loop(claims, closed)
    loop.give_up()
    assert not closed
    loop.claim()
    loop.give_up()
    assert (closed, loop.must_claim, bool(claims)) == ([1], True, False)
    loop.claim()
    del loop
    assert closed == [1, 1]


@pytest.mark.parametrize("begun", [False, True])
def test_a_claim_is_handed_over(begun: bool) -> None:
    """To the loop's own iterator; the other one is for `anext` in the body of the loop, and needs none."""
    claims, closed = Claims(), list[int]()
    kept = Loop(claims, closed)
    if begun:
        kept.claim()
    loop = Loop(claims, closed)
    loop.take_over(kept)
    if not begun:
        loop.claim()
    assert not loop.must_claim
    assert not kept.must_claim
    del kept
    assert not closed
    del loop
    assert closed == [1]


def test_a_loop_that_never_began_leaves_the_claim_to_what_it_was_over() -> None:
    """Its iterator was made and dropped without a step: the next step of the other has to claim."""
    claims, closed = Claims(), list[int]()
    kept = Loop(claims, closed, 0)
    Loop(claims, closed, 0).take_over(kept)
    assert kept.must_claim
    kept.claim()
    with pytest.raises(RuntimeError):
        Loop(claims, closed, 0).claim()
    del kept
    assert closed == [1]
