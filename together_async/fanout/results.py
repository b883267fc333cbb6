"""What `map` gives back: `MapResults`, an async iterator of `MapResult`s."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar

import attrs

from together_async.errors import TogetherError
from together_async.fanout.group import Results
from together_async.models import ChatCompletion, ChatCompletionChunk, Retried, Usage

if TYPE_CHECKING:
    from together_async.fanout.map import MapGroup

R = TypeVar("R")


@attrs.frozen
class Timing:
    """How long one request of a `map` took, in seconds from the moment it was read from the input.

    Attributes:
        queued_s: Until its first attempt was sent: the wait for the limits.
        first_token_s: Until the first token came. None without `stream=True`, or if no token came.
        total_s: Until its end.
    """

    queued_s: float
    first_token_s: float | None
    total_s: float


@attrs.frozen
class MapResult(Generic[R]):
    """The outcome of one request of a `map`.

    Attributes:
        index: The position of the request in the input, from 0.
        request: The request as the caller gave it.
        completion: The completion; None if the request failed.
        error: Why it failed: a `TogetherError`, or the `ValueError` of an element that is not a valid request. None if
            it succeeded.
        attempts: How many HTTP requests were made for it; 0 if none was sent.
        timing: How long it took.
        retries: Why there was more than one attempt; empty if there was not.
    """

    index: int
    request: R = attrs.field(repr=False)
    completion: ChatCompletion | None = attrs.field(repr=False)
    error: TogetherError | ValueError | None
    attempts: int
    timing: Timing
    retries: tuple[Retried, ...] = ()

    @property
    def usage(self) -> Usage | None:
        """The server's count of tokens; None if the server sent none."""
        return None if self.completion is None else self.completion.usage


OnError: TypeAlias = Literal["return", "raise"] | Callable[[MapResult[Any]], Any]
"""What a `map` does with a failed request: yield its result, raise its error, or yield what a function makes of it."""
OnChunk: TypeAlias = Callable[[int, ChatCompletionChunk], Any]
"""Called with the index of a request and each chunk of its stream; it may return an awaitable."""


class MapResults(Results[MapResult[R]]):
    """The results of a `map`, as they come: an async iterator, and an async context manager. Made by `client.map`."""

    __slots__ = ()
    _group: MapGroup[R]

    def __repr__(self) -> str:
        group = self._group
        return f"<{type(self).__name__} {group.under_way} under way, {group.waiting} of them wait, {group.read} read>"

    @property
    def under_way(self) -> int:
        """How many requests have begun and not ended."""
        return self._group.under_way

    @property
    def waiting(self) -> int:
        """How many of them wait for the limits."""
        return self._group.waiting

    @property
    def limited_s(self) -> float:
        """Seconds so far in which at least one of them waited for the limits."""
        return self._group.limited_s

    def drain(self) -> None:
        """Stops reading the input and gives up the requests that wait for the limits or for another attempt.

        The results of all others still come.
        """
        self._group.drain()
