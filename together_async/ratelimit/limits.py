"""The values that callers set (`Limits`) and see (`LimitsState`, `ModelState`). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias, get_args

import attrs

from together_async.validation import number

Priority: TypeAlias = Literal["interactive", "batch"]
"""Which call is sent first: a person waits for an interactive one, a batch may take all night."""
PRIORITIES: Final = frozenset(get_args(Priority))
"""All of them."""
_MOST: Final = 1e12


def check_priority(priority: str) -> None:
    """Checks a priority.

    Raises:
        ValueError: It is neither "interactive" nor "batch".
    """
    if priority not in PRIORITIES:
        raise ValueError(f"priority: got {priority!r}, expected one of {', '.join(map(repr, sorted(PRIORITIES)))}")


_per_minute: Final = number(
    0,
    _MOST,
    f"a number above 0 and at most {_MOST:g}, or None for the limit that the service reports",
    above=True,
    optional=True,
)
_concurrency: Final = number(
    1, _MOST, "a whole number from 1, 'auto', or None for no limit", whole=True, optional=True, words=("auto",)
)
_max_queued: Final = number(0, _MOST, "a whole number from 0, or None for no limit", whole=True, optional=True)


def _not_yet(_: object, field: Any, value: Any) -> None:
    if value is not None:
        raise ValueError(
            f"Limits.{field.name}: got a {type(value).__name__}, expected None: limits shared between processes are "
            "not there yet; several clients of one process share a RateLimiter"
        )


@attrs.frozen
class Limits:
    """How many requests may be under way, and how fast they may go. A limit that is not given is learned.

    The service counts each model separately, so the rates hold for each model separately. The limits that responses
    report (see `ratelimit.headers` for the names) are kept where they are lower.

    Attributes:
        concurrency: How many requests may be under way at once, all models together, each until its stream has ended;
            from 1. A call in the body of a loop over a stream needs a place beside the stream's; it is refused if none
            can become free. "auto" finds a number for each model: it grows while good responses come quickly, and
            shrinks on 429s (the rule is in `ratelimit.congestion`). None sets no limit, so that only the rates do.
        requests_per_minute: Requests per minute and model, above 0. None keeps to the limit that is reported, or else
            found from 429s.
        tokens_per_minute: Tokens of prompt and completion together, per minute and model, above 0. None keeps to the
            limit that is reported, or else found from 429s.
        max_queued: How many calls may wait for their turn, all models together, from 0; one more raises
            `QueueFullError` at once. None lets any number wait.
        shared: Where processes share their limits. None is this process alone; nothing else exists yet.
        models: Limits of single models, by the model's name; made by `per_model`. Empty by default.

    Raises:
        ValueError: A value out of its range; the text names field, value and range.
    """

    concurrency: int | Literal["auto"] | None = attrs.field(default=None, validator=_concurrency)
    requests_per_minute: float | None = attrs.field(default=None, validator=_per_minute)
    tokens_per_minute: float | None = attrs.field(default=None, validator=_per_minute)
    max_queued: int | None = attrs.field(default=None, validator=_max_queued)
    shared: None = attrs.field(default=None, validator=_not_yet)
    models: Mapping[str, Limits] = attrs.field(factory=dict, kw_only=True, hash=False)

    @classmethod
    def per_model(cls, models: Mapping[str, Limits], **others: Any) -> Limits:
        """Returns limits that differ by model.

        ```python
        Limits.per_model({"Qwen/Qwen3-235B-A22B": Limits(requests_per_minute=60)}, requests_per_minute=600)
        ```

        Args:
            models: Limits by the model's name. Their `concurrency` holds for the model alone, in addition to the
                number for all models; their `max_queued` counts the calls that wait for this model.
            **others: Arguments of `Limits`: the rates of every other model, and the numbers for all models together.

        Raises:
            ValueError: A value out of its range, a name that is not a str, or limits that have `models` of their own.
        """
        for model, limits in models.items():
            if not isinstance(model, str) or not isinstance(limits, Limits):
                raise ValueError(
                    f"Limits.per_model: got {type(limits).__name__} for {model!r}, expected Limits by the model's name"
                )
            if limits.models:
                raise ValueError(f"Limits.per_model: the limits of {model!r} have models of their own; name all in one")
        return cls(**others, models=dict(models))

    def of(self, model: str) -> Limits:
        """Returns the limits of one model: its own, or else these."""
        return self.models.get(model, self)


def _per(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


@attrs.frozen(repr=False)
class ModelState:
    """One model's limits, and what is going on under them, at one moment.

    Attributes:
        model: The model's name.
        in_flight: Requests under way: sent, or about to be, and not ended.
        queued: Calls that wait for their turn.
        concurrency: How many requests to this model may be under way at once: its own number of `Limits.per_model`, or
            the size of the window of "auto"; None when it has no limit of its own.
        requests_per_minute: The rate that is kept now, the lowest of the configured, the reported and the one found
            from 429s; None when there is no limit.
        tokens_per_minute: The same for tokens of prompt and completion together.
        server_requests_per_minute: The limit that the response headers reported last, in requests per minute; None
            before the first report.
        server_tokens_per_minute: The same for tokens.
        paused_for_s: Seconds from that moment on in which nothing is sent, because of a 429; 0 without a pause.
        paused_until: When the pause ends, by the wall clock, in UTC; None without a pause.
        sent: Requests sent so far.
        rate_limited: 429s so far.
        overloaded: 503s so far.
    """

    model: str
    in_flight: int = 0
    queued: int = 0
    concurrency: int | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    server_requests_per_minute: float | None = None
    server_tokens_per_minute: float | None = None
    paused_for_s: float = 0.0
    paused_until: datetime | None = None
    sent: int = 0
    rate_limited: int = 0
    overloaded: int = 0

    def __repr__(self) -> str:
        paused = f", paused for {self.paused_for_s:.1f} s" if self.paused_for_s else ""
        return (
            f"<{self.model}: {self.in_flight} of {_per(self.concurrency)} in flight, {self.queued} queued{paused}, "
            f"{_per(self.requests_per_minute)} requests/min, {_per(self.tokens_per_minute)} tokens/min, "
            f"{self.sent} sent, {self.rate_limited} x 429, {self.overloaded} x 503>"
        )


@attrs.frozen(repr=False)
class LimitsState:
    """What is going on under a client's limits at one moment: `client.limits`.

    Attributes:
        in_flight: Requests under way, all models together.
        queued: Calls that wait for their turn, all models together.
        concurrency: How many requests may be under way at once, all models together: `Limits.concurrency`; None when
            that is None or "auto".
        descriptor_places: How many requests may be under way for now because the process had no file descriptor left
            for another connection (`ulimit -n`); it rises gradually. None while there were enough.
        models: The state of each model that was used lately, by its name.
        stopped: The text of the 402 that keeps all requests from being sent; None without one.
    """

    in_flight: int = 0
    queued: int = 0
    concurrency: int | None = None
    models: Mapping[str, ModelState] = attrs.field(factory=dict, hash=False)
    stopped: str | None = None
    descriptor_places: int | None = None

    @property
    def sent(self) -> int:
        """Requests sent so far, to the models in `models`."""
        return sum(model.sent for model in self.models.values())

    @property
    def rate_limited(self) -> int:
        """429s so far, of the models in `models`."""
        return sum(model.rate_limited for model in self.models.values())

    @property
    def overloaded(self) -> int:
        """503s so far, of the models in `models`."""
        return sum(model.overloaded for model in self.models.values())

    @property
    def paused_until(self) -> datetime | None:
        """When the longest pause ends, in UTC; None when no model is paused."""
        return max((model.paused_until for model in self.models.values() if model.paused_until), default=None)

    def __repr__(self) -> str:
        stopped = f", stopped: {self.stopped}" if self.stopped else ""
        models = "".join(f"\n  {model!r}" for model in self.models.values())
        places = _per(self.concurrency)
        return f"<LimitsState {self.in_flight} of {places} in flight, {self.queued} queued{stopped}{models}>"
