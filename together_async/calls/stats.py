"""How fast a stream goes: the times at which something generated arrived, and what they add up to."""

from __future__ import annotations

import attrs


@attrs.frozen
class StreamStats:
    """How a stream has gone so far. Times are in seconds, and None until there is something to measure.

    Attributes:
        chunks: Chunks that held something generated. Servers may put several tokens into one.
        first_token_s: From the start of the call to the first of these chunks.
        largest_gap_s: The longest time between two of them.
        tokens_per_s: Tokens per second between the first chunk and the last: by the server's count once `usage` has
            come, else with each chunk counted as one token.
        elapsed_s: From the start of the call to the last of these chunks.
        total_tokens: Tokens of prompt and answer, as they were settled with the limiter when the stream ended; None
            before that.
        estimated: Whether `total_tokens` is an estimate, because the server's own count did not come.
    """

    chunks: int
    first_token_s: float | None
    largest_gap_s: float | None
    tokens_per_s: float | None
    elapsed_s: float | None
    total_tokens: int | None = None
    estimated: bool = False


class ArrivalTimes:
    """When the chunks of one stream arrived that held something generated.

    Attributes:
        started: When the call began, on the event loop's clock; None before that.
        first: When the first chunk arrived; None until one has.
        last: When the latest arrived.
        largest_gap_s: The longest time between two; None until there are two.
    """

    __slots__ = ("first", "largest_gap_s", "last", "started")

    def __init__(self) -> None:
        self.started: float | None = None
        self.first: float | None = None
        self.last = 0.0
        self.largest_gap_s: float | None = None

    def note(self, arrived: float) -> None:
        """Notes the arrival of a chunk that held something generated."""
        if self.first is None:
            self.first = arrived
        else:
            gap = arrived - self.last
            if self.largest_gap_s is None or gap > self.largest_gap_s:
                self.largest_gap_s = gap
        self.last = arrived

    def clear(self) -> None:
        """Forgets the arrivals of a response that broke off, before another attempt; the call's start stays."""
        self.first = self.largest_gap_s = None

    def stats(
        self, *, chunks: int, completion_tokens: int | None, total_tokens: int | None, estimated: bool
    ) -> StreamStats:
        """Returns what the times add up to; `completion_tokens` is the server's count of the answer, if it has come."""
        if self.first is None or self.started is None:
            return StreamStats(chunks, None, None, None, None, total_tokens, estimated)
        tokens, elapsed_s = completion_tokens or chunks, self.last - self.first
        return StreamStats(
            chunks=chunks,
            first_token_s=self.first - self.started,
            largest_gap_s=self.largest_gap_s,
            tokens_per_s=(tokens - 1) / elapsed_s if elapsed_s > 0 and tokens > 1 else None,
            elapsed_s=self.last - self.started,
            total_tokens=total_tokens,
            estimated=estimated,
        )
