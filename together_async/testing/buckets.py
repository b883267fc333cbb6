"""The buckets of an account: capacity that refills, limits that move, and their response headers. Pure."""

from __future__ import annotations

import math

import attrs

from together_async.testing.rates import Rate


def _short(value: float) -> str:
    return f"{value:.6g}"


@attrs.frozen
class BucketState:
    """A bucket at one moment, in requests or tokens.

    Attributes:
        limit: The live limit, per second; equal to the ceiling where the rate is fixed.
        ceiling: The highest possible limit, per second.
        remaining: The capacity in the bucket; below 0 after a request larger than the bucket.
        size: The most capacity it can hold.
    """

    limit: float = attrs.field(repr=_short)
    ceiling: float = attrs.field(repr=_short)
    remaining: float = attrs.field(repr=_short)
    size: float = attrs.field(repr=_short)


class RefillingBucket:
    """Capacity for requests or for tokens of one model, refilled at the live limit.

    The caller passes the time: between two calls, nothing happens but the refill.

    Args:
        ceiling: The highest limit, per second.
        rate: The rate it belongs to.
        least: The smallest size: 1 for requests, so that one is always allowed.
        now: Account time, in seconds.
    """

    __slots__ = ("at", "burst_s", "ceiling", "dynamic", "fallen_at", "growth", "least", "level", "limit", "size")

    def __init__(self, ceiling: float, rate: Rate, least: float, now: float) -> None:
        self.ceiling = float(ceiling)
        self.burst_s = rate.burst_s
        self.dynamic = rate.dynamic
        self.growth = rate.dynamic.growth if rate.dynamic else 0.0
        self.least = least
        self.fallen_at = -math.inf
        self.at = now
        self.set_limit(self.ceiling * (rate.dynamic.start if rate.dynamic else 1.0))
        self.level = self.size

    def set_limit(self, limit: float) -> None:
        """Changes the live limit, and the size with it."""
        self.limit = limit
        self.size = max(self.least, limit * self.burst_s)

    def refill(self, now: float) -> None:
        """Adds the capacity that has come since the last refill."""
        self.level = min(self.size, self.level + self.limit * (now - self.at))
        self.at = now

    def wait_s(self, amount: float) -> float:
        """Returns the seconds until a request of this amount would be admitted."""
        return max(0.0, (min(amount, self.size) - self.level) / self.limit)

    def deduct(self, amount: float) -> None:
        """Takes the capacity of an admitted request, which raises a dynamic limit."""
        self.level -= amount
        if self.growth and self.limit < self.ceiling:
            self.set_limit(min(self.ceiling, self.limit + self.growth * amount))

    def refund(self, amount: float) -> None:
        """Returns capacity, and undoes the rise of the limit that it had caused."""
        # At the ceiling there is nothing to undo: admissions there raised nothing.
        if self.dynamic and self.limit < self.ceiling:
            self.set_limit(max(self.dynamic.floor * self.ceiling, self.limit - self.growth * amount))
        self.level = min(self.size, self.level + amount)

    def lower_limit(self, now: float) -> None:
        """Lowers a dynamic limit after a 429, unless it has just fallen."""
        if self.dynamic is None or now - self.fallen_at < self.dynamic.fall_every_s:
            return
        self.fallen_at = now
        size = self.size
        self.set_limit(max(self.dynamic.floor * self.ceiling, self.limit * self.dynamic.fall))
        # It stays equally full: otherwise the smaller bucket would be full at once, and admit what was just refused.
        if self.level > 0:
            self.level *= self.size / size

    def state(self) -> BucketState:
        """Returns the bucket as it is now."""
        return BucketState(self.limit, self.ceiling, self.level, self.size)

    def write_headers(self, headers: dict[str, str], name: str) -> None:
        """Adds the bucket's headers, their names beginning with `name`."""
        limit, level = self.ceiling, self.level
        if self.dynamic:
            headers[f"{name}-limit-dynamic"] = _per_second(self.limit)
            headers[f"{name}-remaining-dynamic"] = _whole(level)
            level += max(self.least, limit * self.burst_s) - self.size
        headers[f"{name}-limit"] = _per_second(limit)
        headers[f"{name}-remaining"] = _whole(level)


def _per_second(limit: float) -> str:
    """Returns a whole limit as the service writes it; any other exactly, so that a client that obeys it is admitted."""
    return str(int(limit)) if limit.is_integer() else repr(limit)


def _whole(level: float) -> str:
    return str(int(level + 1e-6)) if level > 0 else "0"
