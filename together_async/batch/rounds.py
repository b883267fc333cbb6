"""Decides which request of a batch is sent next, and what its result means.

Requests are sent in rounds. A result is a completion or an error. A transient error (429, 5xx, a lost connection, a
timeout) becomes a result only after further rounds, in which its request is sent again after all others, and only while
the service answers others. If it answers nobody (`outage`), nothing more begins; one request at a time is tried, after
pauses of one second to one minute. A 429 never becomes a result, since no request is to blame for it: what the service
still refuses in the end stays without a result, and the next run asks again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, Final

import attrs

from together_async.batch.budget import Budget
from together_async.batch.input import InputLine
from together_async.batch.outage import IN_A_ROW, LAST_TRIES, OutageDetector
from together_async.batch.plan import InputFile, Plan
from together_async.batch.record import Record, body_hash, completion_record, encode_line, error_record
from together_async.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    RateLimitError,
    StreamAPIError,
    StreamTimeoutError,
    TogetherError,
)
from together_async.fanout.results import MapResult
from together_async.ratelimit.estimator import Estimator, Size, size_of
from together_async.retry import is_retryable, reason
from together_async.wire.quota import is_out_of_quota

MOST_ROUNDS: Final = 5
"""How often a request with transient errors is sent, each time after all others."""
_LINES_PER_TURN: Final = 1_000
"""Input lines read before the event loop runs other tasks."""


class RunState:
    """Whether a run still begins requests, and what it is doing.

    Attributes:
        stopped: Why nothing more begins; None while requests begin.
        activity: What the run is doing or waiting for, in a few words; empty when requests go out normally.
    """

    def __init__(self) -> None:
        self.stopped: str | None = None
        self.activity = ""
        self._changed = asyncio.Event()

    def stop(self, why: str) -> None:
        """Lets nothing more begin."""
        self.stopped = why
        self.activity = f"stopping: {why}"
        self._changed.set()

    def clear_activity(self) -> None:
        """Notes that requests go out normally, unless the run is stopping."""
        if self.stopped is None:
            self.activity = ""

    def notify(self) -> None:
        """Wakes `change`."""
        self._changed.set()

    async def change(self) -> None:
        """Waits until `stop` or `notify` is called."""
        self._changed.clear()
        await self._changed.wait()


@attrs.frozen
class SentRequest:
    """A request that has begun and has no result yet.

    Attributes:
        place: Its place among the input's requests, from 0.
        custom_id: Its name.
        body_hash: Hash of its body.
        model: Its model.
        size: Its size.
        prompt_tokens: Expected tokens of its prompt.
    """

    place: int
    custom_id: str
    body_hash: str
    model: str
    size: Size
    prompt_tokens: float


class Rounds:
    """The requests of one run, round after round, and the decisions on their results.

    Args:
        source: The input.
        plan: Which of its requests to send.
        budget: What they may cost.
        state: Whether the run goes on; shared with the run.
        estimator: Returns what is known about the sizes of a model's requests.
        drain: Stops the run, with a reason.
        stream: Whether completions are streamed.
    """

    def __init__(
        self,
        source: InputFile,
        plan: Plan,
        budget: Budget,
        state: RunState,
        *,
        estimator: Callable[[str], Estimator],
        drain: Callable[[str], None],
        stream: bool,
    ) -> None:
        self._source = source
        self._plan = plan
        self._budget = budget
        self._state = state
        self._estimator = estimator
        self._drain = drain
        self._stream = stream
        self._sent: dict[int, SentRequest] = {}  # by index in the map's results
        self._next_index = 0
        self._again: dict[int, tuple[bytes, Record]] = {}  # by place in the input: the error, if it stays
        self._limited: dict[int, str] = {}  # the texts of those that are a 429
        self._outage = OutageDetector()
        self._last_failure: TogetherError | None = None

    def finish(self) -> None:
        """Stops the run if the service still refuses requests with 429, so that the next run asks again."""
        if self._limited:
            why = next(iter(self._limited.values()))
            self._drain(f"the service still refuses {len(self._limited)} requests: {why}")

    @property
    def unresolved(self) -> Iterable[tuple[bytes, Record]]:
        """Line and record of the transient errors that were left when the rounds ended."""
        return self._again.values()

    # ------------------------------------------------------------------------------------------------------- requests

    async def requests(self) -> AsyncIterator[dict[str, Any]]:
        """Yields the bodies to send, round after round, each when it may begin."""
        wanted, rounds = self._plan.wanted, 0
        while rounds < MOST_ROUNDS:
            answers = self._outage.answers
            async for place, line in self._lines(wanted):
                body = self._source.body(line)
                if not await self._may_begin(body):
                    return
                yield self._begin(place, line, body)
            while self._sent and self._state.stopped is None:
                await self._state.change()
            if not self._again or self._state.stopped is not None:
                return
            if self._outage.answers > answers:
                rounds += 1
            elif len(self._again) < IN_A_ROW and self._outage.answers and self._outage.tries >= LAST_TRIES:
                return  # these requests may be to blame after all
            elif not await self._pause():
                return
            wanted = bytearray(len(wanted))
            for place in self._again:
                wanted[place] = 1

    async def _lines(self, wanted: bytearray) -> AsyncIterator[tuple[int, InputLine]]:
        """Yields the wanted lines, with their places in the input."""
        left = wanted.count(1)
        with contextlib.closing(self._source.items(wanted)) as items:
            for place, item in enumerate(items) if left else ():
                if place % _LINES_PER_TURN == 0:
                    await asyncio.sleep(0)
                if place >= len(wanted):
                    return
                if wanted[place] and isinstance(item, InputLine):
                    self._check_unchanged()
                    yield place, item
                    left -= 1
                    if not left:
                        return

    def _check_unchanged(self) -> None:
        """Raises if the input was edited: the plan goes by place, which would now be that of another request."""
        if self._source.fingerprint() != self._plan.fingerprint:
            why = "it was changed while the batch was running; run it again"
            raise OSError(errno.ESTALE, why, str(self._source.path))

    def _begin(self, place: int, line: InputLine, body: dict[str, Any]) -> dict[str, Any]:
        """Notes that a request begins, and returns its body as it is sent.

        A stream is asked for its usage, which not every server sends unasked.
        """
        size = _size(body)
        model, prompt, most = self._expected(body, size)
        self._budget.reserve(self._next_index, model, prompt, most)
        self._sent[self._next_index] = SentRequest(place, line.custom_id, body_hash(body), model, size, prompt)
        self._next_index += 1
        if self._stream and "stream_options" not in body:
            return {**body, "stream_options": {"include_usage": True}}
        return body

    # ---------------------------------------------------------------------------------------------------- when to begin

    async def _may_begin(self, body: Mapping[str, Any]) -> bool:
        """Waits until the next request may begin; False if nothing more may."""
        while self._state.stopped is None:
            if self._outage.likely:
                if not self._sent:
                    return await self._pause()
                await self._state.change()  # one of those in flight may be answered
                continue
            room = self._budget.room(*self._expected(body, _size(body))) if self._budget.is_set else "now"
            if room == "now":
                return True
            if room == "later":
                await self._state.change()
            else:
                self._drain(f"the next request may exceed {self._budget.limits}")
        return False

    def _expected(self, body: Mapping[str, Any], size: Size) -> tuple[str, float, float]:
        """Returns the model of a request, and the tokens its prompt and its completion are expected to use at most."""
        model = str(body.get("model"))
        estimator = self._estimator(model)
        prompt = estimator.prompt(size)
        most = estimator.total(size) - prompt if size.max_tokens is None else size.max_tokens * size.n
        return model, prompt, most

    async def _pause(self) -> bool:
        """Waits before the service is tried again; False if it has been tried long enough, or the run was stopped."""
        outage, now = self._outage, time.monotonic()
        pause_s = outage.pause_s(now)
        if pause_s is None:
            how_long = f"for {outage.down_s(now) / 60:.0f} minutes" if outage.answers else "once"
            self._drain(f"the service has not answered {how_long}: {self._last_failure}")
            return False
        why = reason(self._last_failure) if self._last_failure is not None else "no answer"
        self._state.activity = f"the service is away ({why}), next try in {pause_s:.0f} s"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                while self._state.stopped is None:
                    await self._state.change()
        return self._state.stopped is None

    # --------------------------------------------------------------------------------------------------------- results

    def settle(self, result: MapResult[dict[str, Any]]) -> tuple[bytes, Record] | None:
        """Returns line and record of a result; None if its request is sent again, or was not sent."""
        sent = self._sent.pop(result.index)
        self._budget.release(result.index)
        record, error = _record_of(sent, result), result.error
        if result.completion is not None:
            self._record_answer(sent.place)
            expected = round(sent.prompt_tokens)
            record = completion_record(record, result.completion, size=sent.size, expected_prompt_tokens=expected)
            self._budget.spend(sent.model, record.prompt_tokens, record.completion_tokens)
            return encode_line(record, result.completion), record
        if error is None:
            return None
        record = error_record(record, error)
        if self._is_transient(sent, error, record):
            return None
        self._record_answer(sent.place)
        return encode_line(record), record

    def _record_answer(self, place: int) -> None:
        self._outage.record_answer()
        self._again.pop(place, None)
        self._limited.pop(place, None)
        self._state.clear_activity()

    def _is_transient(self, sent: SentRequest, error: Exception, record: Record) -> bool:
        """Returns whether an error is not the request's fault: it is sent again, in this run or in a later one."""
        if not isinstance(error, TogetherError):
            return False
        if _stops_all(error):
            self._drain(str(error))
            return True
        if not (is_retryable(error) or isinstance(error, (APITimeoutError, StreamTimeoutError))):
            return False
        self._outage.record_failure(time.monotonic())
        self._last_failure = error
        self._again[sent.place] = (encode_line(record), record)
        if isinstance(error, (RateLimitError, StreamAPIError)) and error.status_code == 429:
            self._limited[sent.place] = str(error)
        else:
            self._limited.pop(sent.place, None)
        return True


def _stops_all(error: TogetherError) -> bool:
    """Returns whether every other request would fail in the same way: it needs a key, money, or a client."""
    if isinstance(error, (APIStatusError, StreamAPIError)):
        return error.status_code in (401, 402) or is_out_of_quota(error.body)
    return isinstance(error, APIConnectionError) and not isinstance(error, APITimeoutError) and not error.transient


def _size(body: Mapping[str, Any]) -> Size:
    return size_of(body.get("messages") or (), body.get("max_tokens"), body.get("n"))


def _record_of(sent: SentRequest, result: MapResult[Any]) -> Record:
    """Returns the record of a result, as far as completions and errors have it in common."""
    timing = result.timing
    return Record(
        sent.custom_id,
        sent.body_hash,
        model=sent.model,
        sent_at=None if result.attempts == 0 else round(time.time() - timing.total_s + timing.queued_s, 3),
        queued_s=round(timing.queued_s, 6),
        first_token_s=None if timing.first_token_s is None else round(timing.first_token_s, 6),
        total_s=round(timing.total_s, 6),
        attempts=result.attempts,
        retries=tuple((reason, round(waited_s, 3)) for reason, waited_s in result.retries),
    )
