"""`run_batch`: a file of requests in, a file of results out, resumable whatever happens in between.

Who does what: `batch_plan` says what there is to do, `fanout` asks, `results_file` writes. Here is what holds them
together: what becomes of a result, when to stop, and what is told of it.

A result is an answer or an error. Errors that may pass (429s, 5xx, lost connections, timeouts) become one only when
the request has been asked again after all others, in further rounds. When ten such failures come in a row, the requests
are not to blame: then nothing more begins, and one at a time is tried, after pauses of one second to one minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import math
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import attrs

from together_async import retry as retrying
from together_async.batch_input import InputLine, LineError
from together_async.batch_plan import BatchInputError, Plan, Source, make_plan
from together_async.budget import Budget
from together_async.errors import (
    APIConnectionError,
    APITimeoutError,
    AuthenticationError,
    PaymentRequiredError,
    StreamTimeoutError,
    TogetherError,
)
from together_async.fanout import MapResult, MapResults
from together_async.journal import Record, answer_record, body_hash, encode_line, error_record
from together_async.pricing import Price
from together_async.ratelimit import LimitsState
from together_async.ratelimit.estimate import size_of
from together_async.results_file import OutputError, ResultsFile, read_standing
from together_async.retry import Retry
from together_async.timeouts import Timeouts

if TYPE_CHECKING:
    from together_async.client import AsyncTogether
    from together_async.report import Sample

MOST_ROUNDS: Final = 5
"""How often a request whose errors may pass is asked, each time after all others."""
IN_A_ROW: Final = 10
"""Failures that may pass, one after another, after which it is not the requests."""
MOST_PAUSE_S: Final = 60.0
"""Longest pause between two tries then."""
FIRST_TRIES: Final = 4
"""Tries of a service that has not answered once."""
PATIENCE_S: Final = 3_600.0
"""How long a service that has answered may be away."""
RATE_S: Final = 60
"""Seconds over which rates are counted."""
_LINES_PER_TURN: Final = 1_000


@attrs.frozen
class BatchSummary:
    """How a batch stands when it ends.

    Attributes:
        input: The file of requests.
        output: The file of results.
        total: Requests in the input.
        done: How many of them have an answer, from this run or an earlier one.
        failed: How many have an error.
        resumed: How many of both were there before.
        edited: How many answers were to another body, and were asked anew.
        prompt_tokens: Used by all answers in the output, by the server's count.
        completion_tokens: The same.
        cost: What they cost in US dollars; None when the price of a model is not known.
        elapsed_s: Seconds of this run.
        retried: How many results took more than one attempt.
        limited_s: Seconds in which something waited for the limits.
        stopped: Why it ended before everything was asked; None when it did not.
        strangers: Results in the output that no line of the input asks for.
    """

    input: str
    output: str
    total: int
    done: int
    failed: int
    resumed: int
    edited: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    elapsed_s: float
    retried: int
    limited_s: float
    stopped: str | None
    strangers: int

    @property
    def remaining(self) -> int:
        """How many have no result yet; the same call goes on with them."""
        return self.total - self.done - self.failed

    @property
    def ok(self) -> bool:
        """Whether every request has an answer."""
        return self.done == self.total

    def facts(self) -> dict[str, str]:
        """Returns the same for people: names and values."""
        facts = {
            "input": self.input,
            "output": self.output,
            "answers": f"{self.done:,} of {self.total:,}",
            "errors": f"{self.failed:,}",
            "from earlier runs": f"{self.resumed:,}",
            "asked anew, because edited": f"{self.edited:,}",
            "without a result yet": f"{self.remaining:,}",
            "tokens": f"{self.prompt_tokens:,} prompt + {self.completion_tokens:,} answer",
            "cost": "" if self.cost is None else f"${self.cost:,.4f}",
            "this run": f"{dt.timedelta(seconds=round(self.elapsed_s))}",
            "waited for limits": f"{dt.timedelta(seconds=round(self.limited_s))}",
            "stopped": self.stopped or "",
        }
        return {name: value for name, value in facts.items() if value not in ("", "0", "0:00:00")}


@attrs.frozen
class BatchProgress:
    """How a batch stands at one moment.

    Attributes:
        total: Requests in the input.
        done: How many have an answer that is on disk.
        failed: How many have an error that is on disk.
        resumed: How many of both were there before.
        retried: Results of this run that took more than one attempt.
        in_flight: Requests sent and not ended.
        queued: Requests that wait for the limits.
        requests_per_minute: Results in the last minute.
        tokens_per_minute: Tokens used in the last minute.
        limits: What the client knows about the limits.
        limited_s: Seconds so far in which something waited for the limits.
        tokens: Used by all answers in the output.
        cost: What they cost in US dollars; None when a price is not known.
        elapsed_s: Seconds of this run so far.
        eta_s: Seconds to go at the present rate; None while there is none.
        state: What is going on, in a few words: empty when all is well.
    """

    total: int
    done: int
    failed: int
    resumed: int
    retried: int
    in_flight: int
    queued: int
    requests_per_minute: float
    tokens_per_minute: float
    limits: LimitsState
    limited_s: float
    tokens: int
    cost: float | None
    elapsed_s: float
    eta_s: float | None
    state: str


def _at_least(least: float, expected: str) -> Any:
    def validate(_: object, field: Any, value: Any) -> None:
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least < value < math.inf:
            raise ValueError(f"{field.name}: got {value!r}, expected {expected}, or None for no limit")

    return validate


def _deadline(_: object, field: Any, value: Any) -> None:
    if value is None or isinstance(value, (dt.datetime, dt.timedelta)):
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"{field.name}: got {value!r}, expected seconds above 0, a timedelta, a datetime, or None")


@attrs.frozen(kw_only=True)
class BatchOptions:
    """How a batch is run; the keywords of `run_batch`, which says what they mean."""

    format: str | None = None
    template: str | None = None
    system: str | None = None
    concurrency: int | None = None
    stream: bool = True
    retry_errors: bool = False
    keep_going: bool = False
    max_cost: float | None = attrs.field(default=None, validator=_at_least(0, "US dollars above 0"))
    max_tokens_total: int | None = attrs.field(default=None, validator=_at_least(0, "a number of tokens above 0"))
    deadline: float | dt.timedelta | dt.datetime | None = attrs.field(default=None, validator=_deadline)
    report: Path | None = None
    on_result: Callable[[Record], None] | None = None
    timeouts: Timeouts | None = None
    retry: Retry | None = None
    headers: Mapping[str, str] | None = None


class Batch:
    """One batch, from its plan to its summary.

    ```python
    batch = Batch(client, "in.jsonl", "out.jsonl")
    summary = await batch.run()
    ```

    `AsyncTogether.run_batch` does just that. With the object itself, another task can look at `progress`, and `drain`.

    Args:
        client: Who asks.
        input: The file of requests.
        output: The file of results.
        options: How it is run.
        fields: Fields of `ChatCompletionRequest`, for requests that do not have them.

    Raises:
        ValueError: An option or a field out of range; input and output are one file.
    """

    def __init__(
        self,
        client: AsyncTogether,
        input: str | os.PathLike[str],
        output: str | os.PathLike[str],
        options: BatchOptions | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        self._client = client
        self._options = options = options if options is not None else BatchOptions()
        self._output = Path(output)
        given = {name: value for name, value in (fields or {}).items() if value is not None}
        self._source = Source.of(Path(input), options.format, options.template, options.system, given)
        if self._source.path.exists() and self._output.exists() and self._source.path.samefile(self._output):
            raise ValueError(f"output: {self._output} is the input itself; name another file")
        self.plan = Plan()
        self.prices: Mapping[str, Price] = {}
        self._budget = Budget(options.max_tokens_total, options.max_cost, {})
        self._file: ResultsFile | None = None
        self._results: MapResults[dict[str, Any]] | None = None
        self._stopped: str | None = None
        self._state = ""
        self._changed = asyncio.Event()
        self._asked: dict[int, _Asked] = {}
        self._next_index = 0
        self._round = 0
        self._again: dict[int, tuple[bytes, Record]] = {}  # by place in the input: the error it would have
        self._in_a_row = self._tries = 0
        self._answered_at: float | None = None
        self._last_failure: TogetherError | None = None
        self._tally = _Tally()
        self._samples: list[Sample] = []
        self._began = 0.0
        self._limited_s = 0.0

    def __repr__(self) -> str:
        return f"<Batch {self._source.path.name} -> {self._output.name}, {self._tally.done} of {self.plan.total} done>"

    # ----------------------------------------------------------------------------------------------------------- public

    @property
    def title(self) -> str:
        """What to call it: the names of its files."""
        return f"{self._source.path.name} -> {self._output.name}"

    async def check(self) -> Plan:
        """Looks at input and output, and sends nothing. What can't be asked is in the plan's `errors`.

        Raises:
            OSError: A file can't be read.
            OutputError: The output holds something else.
        """
        results = {} if not self._output.exists() else (await asyncio.to_thread(_peek, self._output))
        return await asyncio.to_thread(make_plan, self._source, results, retry_errors=self._options.retry_errors)

    async def run(self) -> BatchSummary:
        """Asks what has no result yet.

        Raises:
            BatchInputError: The input holds what can't be asked, and `keep_going` is off.
            OutputError: The output can't be opened or written, or another run has it.
            OSError: The input can't be read.
            ValueError: `max_cost` is set, and the price of a model is not known.
        """
        self._began = time.monotonic()
        self._state = "reading input and output"
        file = self._file = ResultsFile(self._output, self._written)
        try:
            await _in_thread(file.open)
            plan = self.plan = await _in_thread(self._make_plan)
            if plan.wrong and not self._options.keep_going:
                raise BatchInputError(self._source.path.name, plan.errors, plan.wrong, plan.total)
            if plan.edited or plan.retried or file.standing.set_aside:
                await _in_thread(lambda: file.compact(plan.retried, kept_aside=plan.edited))
            await self._prepare()
            await self._run(file)
            if self._options.report is not None:
                await _in_thread(lambda: self._write_report(file))
        finally:
            file.close()
        return self._summary()

    def drain(self, why: str) -> None:
        """Begins nothing more, and lets what is under way come; `run` returns then. A later run goes on."""
        if self._stopped is None:
            self._stopped = why
            self._state = f"stopping: {why}"
            if self._results is not None:
                self._results.drain()
            self._changed.set()

    @property
    def progress(self) -> BatchProgress:
        """How it stands now. Made when it is read."""
        tally, results = self._tally, self._results
        waiting = results.waiting if results is not None else 0
        per_minute, tokens_per_minute = tally.rates(time.monotonic())
        remaining = max(0, self.plan.total - tally.done - tally.failed)
        return BatchProgress(
            total=self.plan.total,
            done=tally.done,
            failed=tally.failed,
            resumed=self.plan.done + self.plan.failed,
            retried=tally.retried,
            in_flight=results.under_way - waiting if results is not None else 0,
            queued=waiting,
            requests_per_minute=per_minute,
            tokens_per_minute=tokens_per_minute,
            limits=self._client.limits,
            limited_s=results.limited_s if results is not None else self._limited_s,
            tokens=self._budget.tokens,
            cost=self._cost,
            elapsed_s=time.monotonic() - self._began if self._began else 0.0,
            eta_s=remaining / per_minute * 60 if per_minute else None,
            state=self._state,
        )

    # -------------------------------------------------------------------------------------------------------- preparing

    def _make_plan(self) -> Plan:
        assert self._file is not None  # noqa: S101 - opened
        return make_plan(
            self._source,
            self._file.standing.results,
            retry_errors=self._options.retry_errors,
            keeps_all=self._options.keep_going,
            stopped=lambda: self._stopped is not None,
        )

    async def _prepare(self) -> None:
        """Finds out prices, and enters what earlier runs have used."""
        assert self._file is not None  # noqa: S101 - opened
        options, plan = self._options, self.plan
        if plan.to_do or options.max_cost is not None:
            try:
                self.prices = await self._client.prices(timeouts=Timeouts(connect=5, first_token=10, total=20))
            except TogetherError as error:
                if options.max_cost is not None:
                    raise ValueError(f"max_cost: the service does not tell its prices ({error})") from error
        self._budget = Budget(options.max_tokens_total, options.max_cost, self.prices)
        if options.max_cost is not None and (unknown := sorted(plan.by_model.keys() - self.prices.keys())):
            raise ValueError(f"max_cost: the service tells no price for {', '.join(unknown[:5])}")
        for model, (prompt, completion) in self._file.standing.tokens.items():
            self._budget.spend(model, prompt, completion)
        self._tally.done, self._tally.failed = plan.done, plan.failed
        if self._stopped is None:
            self._state = ""

    @property
    def _cost(self) -> float | None:
        return None if self._budget.unpriced or not self.prices else self._budget.cost

    # ---------------------------------------------------------------------------------------------------------- running

    async def _run(self, file: ResultsFile) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(file.write())
                watch = group.create_task(self._watch())
                await self._write_wrong_lines(file)
                await self._ask(file)
                for line, record in self._again.values() if self._stopped is None else ():
                    file.add(line, record)
                file.finish()
                watch.cancel()
        except* OutputError as errors:
            raise errors.exceptions[0] from None
        finally:
            if self._results is not None:
                self._limited_s = self._results.limited_s
                self._results = None

    async def _write_wrong_lines(self, file: ResultsFile) -> None:
        """With `keep_going`: lines that can't be asked become errors in the output."""
        for error in self.plan.errors:
            record = Record(error.name, code="invalid_request", message=str(error), attempts=0)
            await self._add(file, encode_line(record), record)

    async def _ask(self, file: ResultsFile) -> None:
        options = self._options
        results = self._results = self._client.map(
            self._requests(),
            concurrency=options.concurrency,
            stream=options.stream,
            timeouts=options.timeouts,
            retry=options.retry,
            headers=options.headers,
        )
        if self._stopped is not None:
            results.drain()
        async with results:
            async for result in results:
                await self._take(result, file)

    async def _requests(self) -> AsyncIterator[dict[str, Any]]:
        """Yields what is to be asked, round after round."""
        wanted = self.plan.wanted
        for self._round in range(MOST_ROUNDS):
            async for place, line in self._lines(wanted):
                body = self._source.body(line)
                one = _Asked(place, line.custom_id, body_hash(body), self._round)
                if not await self._may_begin(body):
                    return
                self._promise(body)
                self._asked[self._next_index] = one
                self._next_index += 1
                yield self._sent(body)
            while self._asked and self._stopped is None:
                await self._change()
            if not self._again or self._stopped is not None:
                return
            wanted = bytearray(len(wanted))
            for place in self._again:
                wanted[place] = 1

    async def _lines(self, wanted: bytearray) -> AsyncIterator[tuple[int, InputLine]]:
        """Yields the lines that are wanted, with their places in the input."""
        left = wanted.count(1)
        for place, item in enumerate(self._source.items()):
            if not left or place >= len(wanted):
                return
            if place % _LINES_PER_TURN == 0:
                await asyncio.sleep(0)
            if wanted[place] and not isinstance(item, LineError):
                left -= 1
                yield place, item

    def _sent(self, body: dict[str, Any]) -> dict[str, Any]:
        """A body as it is sent: streams are asked for their usage, which not all servers tell by themselves."""
        if self._options.stream and "stream_options" not in body:
            return {**body, "stream_options": {"include_usage": True}}
        return body

    async def _change(self) -> None:
        """Waits until a result has come, or somebody wants to stop."""
        self._changed.clear()
        await self._changed.wait()

    # ---------------------------------------------------------------------------------------------------- when to begin

    async def _may_begin(self, body: Mapping[str, Any]) -> bool:
        """Waits until the next request may begin; False when nothing more does."""
        while self._stopped is None:
            if self._in_a_row >= IN_A_ROW:
                if self._asked:
                    await self._change()  # those under way may bring better news
                    continue
                await self._pause()
                return self._stopped is None
            room = self._room(body)
            if room == "now":
                return True
            if room == "never":
                limit = "max_tokens_total" if self._options.max_cost is None else "max_cost or max_tokens_total"
                self.drain(f"the next request may exceed {limit}")
            else:
                await self._change()
        return False

    def _expected(self, body: Mapping[str, Any]) -> tuple[str, float, float]:
        """Returns model, and the tokens of prompt and answer that a request may use at most, as far as one can know."""
        model = str(body.get("model"))
        size = size_of(body.get("messages") or (), body.get("max_tokens"), body.get("n"))
        estimator = self._client._limiter.estimator(model)
        prompt = estimator.prompt(size)
        most = estimator.total(size) - prompt if size.max_tokens is None else size.max_tokens * size.n
        return model, prompt, most

    def _room(self, body: Mapping[str, Any]) -> str:
        return self._budget.room(*self._expected(body)) if self._budget.is_set else "now"

    def _promise(self, body: Mapping[str, Any]) -> None:
        if self._budget.is_set:
            self._budget.promise(self._next_index, *self._expected(body))

    async def _pause(self) -> None:
        """The service is away: waits before one more request tries it; gives up when it has been long enough."""
        self._tries += 1
        now = time.monotonic()
        never = self._answered_at is None and self._tries >= FIRST_TRIES
        if never or (self._answered_at is not None and now - self._answered_at > PATIENCE_S):
            away = "once" if never else f"for {(now - (self._answered_at or now)) / 60:.0f} minutes"
            self.drain(f"the service has not answered {away}: {self._last_failure}")
            return
        delay_s = min(MOST_PAUSE_S, 2.0 ** (self._tries - 1))
        why = retrying.reason(self._last_failure) if self._last_failure is not None else "no answer"
        self._state = f"the service is away ({why}), next try in {delay_s:.0f} s"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                while self._stopped is None:
                    await self._change()

    # ---------------------------------------------------------------------------------------------- what has come of it

    async def _take(self, result: MapResult[dict[str, Any]], file: ResultsFile) -> None:
        """Decides what becomes of a result."""
        one = self._asked.pop(result.index)
        self._budget.settle(result.index)
        error, timing = result.error, result.timing
        record = Record(
            one.custom_id,
            one.body_hash,
            sent_at=None if result.attempts == 0 else time.time() - timing.total_s + timing.queued_s,
            queued_s=round(timing.queued_s, 6),
            first_token_s=None if timing.first_token_s is None else round(timing.first_token_s, 6),
            total_s=round(timing.total_s, 6),
            attempts=result.attempts,
            retries=tuple((reason, round(waited_s, 3)) for reason, waited_s in result.retries),
        )
        if result.completion is not None:
            self._in_a_row = self._tries = 0
            self._answered_at = time.monotonic()
            self._state = "" if self._stopped is None else self._state
            self._again.pop(one.place, None)
            record = answer_record(record, result.completion)
            self._budget.spend(record.model, record.prompt_tokens, record.completion_tokens)
            await self._add(file, encode_line(record, result.completion), record)
        elif error is not None:
            record = error_record(record, error)
            if not isinstance(error, TogetherError) or not self._passes(one, record, error):
                self._again.pop(one.place, None)
                await self._add(file, encode_line(record), record)
        self._changed.set()

    async def _add(self, file: ResultsFile, line: bytes, record: Record) -> None:
        await file.room()
        file.add(line, record)

    def _passes(self, one: _Asked, record: Record, error: TogetherError) -> bool:
        """Whether an error is not the request's: it is asked again, in this run or in a later one."""
        if isinstance(error, (AuthenticationError, PaymentRequiredError)) or (
            isinstance(error, APIConnectionError) and not isinstance(error, APITimeoutError) and not error.transient
        ):
            self.drain(str(error))
            return True
        if not (retrying.is_retryable(error) or isinstance(error, (APITimeoutError, StreamTimeoutError))):
            self._in_a_row = 0
            return False
        self._in_a_row += 1
        self._last_failure = error
        self._again[one.place] = (encode_line(record), record)
        return True

    def _written(self, records: list[Record]) -> None:
        """Lines are on disk."""
        now = time.monotonic()
        for record in records:
            self._tally.add(record, now)
            if self._options.on_result is not None:
                self._options.on_result(record)

    # ------------------------------------------------------------------------------------------------------- looking on

    async def _watch(self) -> None:
        """Once a second: notes how it stands, for the report, and looks at the clock."""
        ends = self._ends_at()
        while True:
            if ends is not None and time.time() >= ends:
                self.drain("the deadline is reached")
            if self._options.report is not None:
                self._samples.append(self._sample())
            await asyncio.sleep(1.0 if ends is None else max(0.001, min(1.0, ends - time.time())))

    def _sample(self) -> Sample:
        from together_async.report import Sample  # noqa: PLC0415 - only for a report

        progress = self.progress
        return Sample(
            at=time.time(),
            done=progress.done,
            failed=progress.failed,
            in_flight=progress.in_flight,
            queued=progress.queued,
            paused=progress.limits.paused_until is not None,
            rate_limited=progress.limits.rate_limited,
        )

    def _write_report(self, file: ResultsFile) -> None:
        """Writes the page beside its place first, so that there is never half of one."""
        from together_async.report import render  # noqa: PLC0415 - only for a report

        path, summary = cast("Path", self._options.report), self._summary()
        page = render(file.records(), [*self._samples, self._sample()], summary.facts(), title=self._output.name)
        beside = path.with_name(f".{path.name}.new")
        try:
            beside.write_text(page, encoding="utf-8")
            beside.replace(path)
        except OSError as error:
            raise OutputError(
                error.errno,
                f"the report {path} can't be written: {error.strerror}; the results are safe in {file.path}",
            ) from error

    def _ends_at(self) -> float | None:
        deadline = self._options.deadline
        if deadline is None:
            return None
        if isinstance(deadline, dt.datetime):
            return deadline.timestamp()
        return time.time() + (deadline.total_seconds() if isinstance(deadline, dt.timedelta) else deadline)

    def _summary(self) -> BatchSummary:
        tally, plan, file = self._tally, self.plan, self._file
        assert file is not None  # noqa: S101 - run
        tokens = list(file.standing.tokens.values())
        return BatchSummary(
            input=str(self._source.path),
            output=str(self._output),
            total=plan.total,
            done=tally.done,
            failed=tally.failed,
            resumed=plan.done + plan.failed,
            edited=len(plan.edited),
            prompt_tokens=sum(prompt for prompt, _ in tokens) + tally.prompt_tokens,
            completion_tokens=sum(completion for _, completion in tokens) + tally.completion_tokens,
            cost=self._cost,
            elapsed_s=time.monotonic() - self._began,
            retried=tally.retried,
            limited_s=self._limited_s,
            stopped=self._stopped,
            strangers=plan.strangers,
        )


@attrs.frozen
class _Asked:
    """One request under way."""

    place: int
    custom_id: str
    body_hash: str
    round: int


class _Tally:
    """What is on disk, and how fast it came."""

    def __init__(self) -> None:
        self.done = self.failed = self.retried = 0
        self.prompt_tokens = self.completion_tokens = 0
        self._seconds: deque[list[float]] = deque(maxlen=RATE_S + 1)  # second, results, tokens
        self._first: float | None = None

    def add(self, record: Record, now: float) -> None:
        """Takes a result."""
        self.done += record.ok
        self.failed += not record.ok
        self.retried += record.attempts > 1
        self.prompt_tokens += record.prompt_tokens
        self.completion_tokens += record.completion_tokens
        if self._first is None:
            self._first = now
        second = math.floor(now)
        if not self._seconds or self._seconds[-1][0] != second:
            self._seconds.append([second, 0, 0])
        self._seconds[-1][1] += 1
        self._seconds[-1][2] += record.total_tokens

    def rates(self, now: float) -> tuple[float, float]:
        """Returns results and tokens per minute, over the last minute or since the first result."""
        if self._first is None:
            return 0.0, 0.0
        seconds = [one for one in self._seconds if one[0] > now - RATE_S]
        span_s = max(1.0, min(RATE_S, now - self._first))
        return sum(one[1] for one in seconds) * 60 / span_s, sum(one[2] for one in seconds) * 60 / span_s


def _peek(path: Path) -> dict[str, tuple[str, bool]]:
    """Returns what an output holds; it is neither locked nor changed."""
    return read_standing(path).results


async def _in_thread(function: Callable[[], Any]) -> Any:
    """Runs a function in a thread, and waits for it even if the caller is cancelled: it may hold a file."""
    work = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        with contextlib.suppress(Exception):
            await work
        raise
