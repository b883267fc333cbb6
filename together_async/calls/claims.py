"""What several loops over one stream must know of each other: which of them are under way, and which texts wait.

A plain loop, one outside of `async with`, *claims* what it reads with its first step. One claim of a kind is given at a
time: the whole stream, or the text of one choice. So a second loop is refused before it has done any harm, and the
first goes on. When the last loop that has a claim is left, the stream is closed.

Loops in `async with` claim nothing. They share the chunks, and the block closes the stream.
"""

from __future__ import annotations

import abc
from typing import Final

from together_async.tasks import BusyError, OwningIterator
from together_async.wire.parts import Text

TWO_LOOPS: Final = (
    "another loop reads this stream already; one loop reads a stream, and that one goes on. To give every chunk to "
    "several consumers use `tee(stream)` or `Broadcast(stream)`; inside of `async with stream` loops share the chunks"
)


class Claims(set[int | None]):
    """What the plain loops over one stream have claimed: the texts of choices, or, as None, everything."""

    __slots__ = ()

    def check(self, choice: int | None) -> None:
        """Raises BusyError if a claim on the text of a choice, or on everything, goes against another loop's."""
        if self and (choice is None or choice in self or None in self):
            raise BusyError(TWO_LOOPS)


class KeptTexts(dict[int, Text]):
    """Texts that a loop over another choice's text came across, by choice: no reader of their own has had them yet.

    They hold no more than the answer does, which the stream keeps for `completion()` anyway.
    """

    __slots__ = ()

    def add(self, choice: int, text: str) -> None:
        """Keeps the next piece of a choice's text."""
        kept = self.get(choice)
        if kept is None:
            kept = self[choice] = Text()
        kept.add(text)
        kept.compact()

    def take(self, choice: int) -> str:
        """Removes and returns what is kept of a choice's text, as one; empty if there is nothing."""
        kept = self.pop(choice, None)
        return "" if kept is None else kept.joined() or ""


class ClaimingIterator(OwningIterator):
    """The iterator of a loop. That of a plain loop claims what it reads with its first step, and is the owner then.

    When an owner is dropped, its claim ends, and what it reads is closed if no other loop has a claim on it. An
    iterator that has made no step, or was refused, closes nothing.

    Args:
        claims: Those on what is read.
        choice: The index of the choice whose text alone is read; None for everything.
        plain: Whether the loop is outside of `async with`.

    Attributes:
        choice: As given.
        must_claim: Whether its next step has to claim what it reads.
    """

    __slots__ = ("_claims", "_is_plain", "_origin", "choice", "must_claim")

    def __init__(self, claims: Claims, choice: int | None, *, plain: bool) -> None:
        self._owner = False  # as `super().__init__` would, which costs a call for each loop
        self._claims = claims
        self._origin: ClaimingIterator | None = None  # what the loop is over, while it needs a claim of its own
        self._is_plain = self.must_claim = plain
        self.choice = choice

    def claim(self) -> None:
        """Takes the claim. Called once, before anything is read: as long as `must_claim`.

        Raises:
            BusyError: Another loop is under way.
        """
        claims = self._claims
        if claims:
            claims.check(self.choice)
        claims.add(self.choice)
        self.must_claim, self._owner = False, True
        if self._origin is not None:
            self._origin.must_claim, self._origin = False, None

    def take_over(self, other: ClaimingIterator) -> None:
        """Becomes the iterator of a loop over `other`. Once one of them has the claim, the other needs none."""
        self._owner = other.hand_over()
        if self._owner:
            self.must_claim = False
        elif other.must_claim:
            self._origin = other

    def withdraw(self) -> None:
        """Ends the claim, if there is one, and closes nothing: the step that took it was refused."""
        if self.hand_over():
            self._unclaim()
            self._claims.discard(self.choice)

    def give_up(self) -> None:
        """Ends the claim, if there is one, as dropping the iterator does. Another step has to claim again."""
        if self.hand_over():
            self._unclaim()
            self._drop()

    def _unclaim(self) -> None:
        """Makes the next step claim again."""
        self.must_claim = True

    def _drop(self) -> None:
        self._claims.discard(self.choice)
        if not self._claims:
            self._close()

    @abc.abstractmethod
    def _close(self) -> None:
        """Closes what is read, without waiting."""
