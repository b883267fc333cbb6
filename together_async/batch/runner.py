"""`run_batch`: a file of requests in, a file of results out, resumable whatever happens in between.

Who does what: `batch_plan` says what there is to do, `fanout` asks, `results_file` writes. Here is what holds them
together: what becomes of a result, when to begin the next request, and when to stop.

A result is an answer or an error. Errors that may pass (429s, 5xx, lost connections, timeouts) become one only when
the request has been asked again after all others, in further rounds, while the service answered to others. When it does
not (`outage`), nothing more begins, and one request at a time is tried, after pauses of one second to one minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import attrs

from together_async.batch.budget import Budget
from together_async.batch.input import InputLine
from together_async.batch.options import BatchOptions, BatchProgress, BatchSummary, Tally
from together_async.batch.outage import IN_A_ROW, LAST_TRIES, Outage
from together_async.batch.output import OutputError, ResultsFile, finished, read_standing
from together_async.batch.plan import BatchInputError, Plan, Source, make_plan
from together_async.batch.record import Record, answer_record, body_hash, encode_line, error_record
from together_async.errors import (
    APIConnectionError,
    APITimeoutError,
    AuthenticationError,
    PaymentRequiredError,
    StreamTimeoutError,
    TogetherError,
)
from together_async.fanout.results import MapResult, MapResults
from together_async.ratelimit.estimator import size_of
from together_async.retry import is_retryable, reason
from together_async.timeouts import Timeouts

if TYPE_CHECKING:
    from together_async.batch.report import Sample
    from together_async.client import AsyncTogether

__all__ = ["Batch", "BatchInputError", "BatchOptions", "BatchProgress", "BatchSummary", "OutputError"]

T = TypeVar("T")

MOST_ROUNDS: Final = 5
"""How often a request whose errors may pass is asked, each time after all others."""
PRICE_TIMEOUTS: Final = Timeouts(connect=5, first_token=10, total=20)
_LINES_PER_TURN: Final = 1_000


@attrs.frozen
class _Asked:
    """One request under way."""

    place: int
    custom_id: str
    body_hash: str
    model: str
    prompt_tokens: float


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
        ValueError: An option or a field out of range; one file stands for two things.
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
        _check_files(self._source.path, self._output, options.report)
        self.plan = Plan()
        self._budget = Budget(options.max_tokens_total, options.max_cost)
        self._file: ResultsFile | None = None
        self._results: MapResults[dict[str, Any]] | None = None
        self._stopped: str | None = None
        self._state = ""
        self._changed = asyncio.Event()
        self._asked: dict[int, _Asked] = {}
        self._next_index = 0
        self._again: dict[int, tuple[bytes, Record]] = {}  # by place in the input: the error it would have
        self._outage = Outage()
        self._last_failure: TogetherError | None = None
        self._callers: Exception | None = None  # what `on_result` raised
        self._tally = Tally()
        self._samples: list[Sample] = []
        self._began: float | None = None
        self._limited_s = 0.0

    def __repr__(self) -> str:
        return f"<Batch {self.title}, {self._tally.done} of {self.plan.total} done>"

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

        def look() -> Plan:
            results = read_standing(self._output).results if self._output.exists() else {}
            return make_plan(self._source, results, retry_errors=self._options.retry_errors)

        return await _in_thread(look)

    async def run(self) -> BatchSummary:
        """Asks what has no result yet. Once: to go on later, make another one.

        Raises:
            BatchInputError: The input holds what can't be asked, and `keep_going` is off.
            OutputError: The output can't be opened or written, or another run has it.
            OSError: The input can't be read.
            ValueError: `max_cost` is set, and the price of a model is not known.
            RuntimeError: It has been run before.
        """
        if self._began is not None:
            raise RuntimeError("a batch is run once; to go on with what is left, make another one of the same files")
        self._began = time.monotonic()
        self._state = "reading input and output"
        await _in_thread(self._source.check_readable)
        file = self._file = ResultsFile(self._output, self._written)
        try:
            await _in_thread(file.open)
            await self._prepare(file)
            await self._run(file)
            if self._options.report is not None:
                await _in_thread(lambda: self._write_report(file))
        finally:
            file.close()
        if self._callers is not None:
            raise self._callers
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
        tally, results, now = self._tally, self._results, time.monotonic()
        waiting = results.waiting if results is not None else 0
        per_minute, tokens_per_minute = tally.rates(now)
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
            cost=self._budget.known_cost,
            elapsed_s=0.0 if self._began is None else now - self._began,
            eta_s=remaining / per_minute * 60 if per_minute else None,
            state=self._state,
        )

    # -------------------------------------------------------------------------------------------------------- preparing

    async def _prepare(self, file: ResultsFile) -> None:
        """Makes the plan, puts the output in order, and enters what earlier runs have used."""
        options = self._options
        plan = self.plan = await _in_thread(
            lambda: make_plan(
                self._source,
                file.standing.results,
                retry_errors=options.retry_errors,
                keeps_all=options.keep_going,
                stopped=lambda: self._stopped is not None,
            )
        )
        if plan.wrong and not options.keep_going:
            raise BatchInputError(self._source.path.name, plan.errors, plan.wrong, plan.total)
        self._tally.done, self._tally.failed = plan.done, plan.failed
        if options.max_cost is not None and plan.to_do and self._stopped is None:
            await self._find_prices_or_refuse()
        if plan.edited or plan.retried or file.standing.set_aside:
            await _in_thread(lambda: file.compact(plan.retried, kept_aside=plan.edited))
        for model, (prompt, completion) in file.standing.tokens.items():
            self._budget.spend(model, prompt, completion)
        if self._stopped is None:
            self._state = ""

    async def _find_prices_or_refuse(self) -> None:
        try:
            self._budget.prices = await self._client.prices(timeouts=PRICE_TIMEOUTS)
        except TogetherError as error:
            raise ValueError(f"max_cost: the service does not tell its prices ({error})") from error
        if unknown := sorted(self.plan.by_model.keys() - self._budget.prices.keys()):
            raise ValueError(f"max_cost: the service tells no price for {', '.join(unknown[:5])}")

    async def _find_prices(self) -> None:
        """Nobody waits for prices that are only shown."""
        if self._options.prices and not self._budget.prices:
            with contextlib.suppress(TogetherError):
                self._budget.prices = await self._client.prices(timeouts=PRICE_TIMEOUTS)

    # ---------------------------------------------------------------------------------------------------------- running

    async def _run(self, file: ResultsFile) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(file.write())
                watch = group.create_task(self._watch())
                prices = group.create_task(self._find_prices())
                await self._write_wrong_lines(file)
                await self._ask(file)
                for line, record in self._again.values() if self._stopped is None else ():
                    await self._add(file, line, record)
                file.finish()
                if self._stopped is None:
                    await prices
                for task in (watch, prices):
                    task.cancel()
        except* Exception as errors:  # noqa: BLE001 - raised without the group, which is nobody's business
            raise _first(errors) from None
        finally:
            if self._results is not None:
                self._limited_s = self._results.limited_s
                self._results = None

    async def _write_wrong_lines(self, file: ResultsFile) -> None:
        """With `keep_going`: lines that can't be asked become errors in the output."""
        for error in self.plan.errors:
            record = Record(error.name, error.body_hash, code="invalid_request", message=str(error), attempts=0)
            await self._add(file, encode_line(record), record)

    async def _ask(self, file: ResultsFile) -> None:
        options = self._options
        results = self._results = self._client.map(
            self._requests(),
            concurrency=options.concurrency,
            stream=options.stream,
            # Whoever waits for our own limits is nobody's error.
            timeouts=attrs.evolve(options.timeouts or self._client._timeouts, queue=None),
            retry=options.retry,
            headers=options.headers,
        )
        if self._stopped is not None:
            return
        async with results:
            async for result in results:
                await self._take(result, file)

    async def _requests(self) -> AsyncIterator[dict[str, Any]]:
        """Yields what is to be asked, round after round."""
        wanted, rounds = self.plan.wanted, 0
        while rounds < MOST_ROUNDS:
            answers = self._outage.answers
            async for place, line in self._lines(wanted):
                body = self._source.body(line)
                if not await self._may_begin(body):
                    return
                yield self._begin(place, line, body)
            while self._asked and self._stopped is None:
                await self._change()
            if not self._again or self._stopped is not None:
                return
            if self._outage.answers > answers:
                rounds += 1
            elif len(self._again) < IN_A_ROW and self._outage.answers and self._outage.tries >= LAST_TRIES:
                return  # it may be these after all
            elif not await self._pause():
                return
            wanted = bytearray(len(wanted))
            for place in self._again:
                wanted[place] = 1

    async def _lines(self, wanted: bytearray) -> AsyncIterator[tuple[int, InputLine]]:
        """Yields the lines that are wanted, with their places in the input."""
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
        """What is known of the input goes by place; of a file that somebody edits meanwhile that would be wrong."""
        if self._source.fingerprint() != self.plan.fingerprint:
            why = "it was changed while the batch was running; run it again"
            raise OSError(errno.ESTALE, why, str(self._source.path))

    def _begin(self, place: int, line: InputLine, body: dict[str, Any]) -> dict[str, Any]:
        """Notes that a request begins, and returns its body as it is sent.

        Streams are asked for their usage, which not all servers tell by themselves.
        """
        model, prompt, most = self._expected(body)
        self._budget.promise(self._next_index, model, prompt, most)
        self._asked[self._next_index] = _Asked(place, line.custom_id, body_hash(body), model, prompt)
        self._next_index += 1
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
            if self._outage.likely:
                if not self._asked:
                    return await self._pause()
                await self._change()  # those under way may bring better news
                continue
            room = self._budget.room(*self._expected(body)) if self._budget.is_set else "now"
            if room == "now":
                return True
            if room == "later":
                await self._change()
            else:
                self.drain(f"the next request may exceed {self._budget.limits}")
        return False

    def _expected(self, body: Mapping[str, Any]) -> tuple[str, float, float]:
        """Returns model, and the tokens of prompt and answer that a request may use at most, as far as can be known."""
        model = str(body.get("model"))
        size = size_of(body.get("messages") or (), body.get("max_tokens"), body.get("n"))
        estimator = self._client._limiter.driver.estimator(model)
        prompt = estimator.prompt(size)
        most = estimator.total(size) - prompt if size.max_tokens is None else size.max_tokens * size.n
        return model, prompt, most

    async def _pause(self) -> bool:
        """The service is away: waits before it is tried again. False when that has been done long enough."""
        outage, now = self._outage, time.monotonic()
        pause_s = outage.pause_s(now)
        if pause_s is None:
            away = f"for {outage.away_s(now) / 60:.0f} minutes" if outage.answers else "once"
            self.drain(f"the service has not answered {away}: {self._last_failure}")
            return False
        why = reason(self._last_failure) if self._last_failure is not None else "no answer"
        self._state = f"the service is away ({why}), next try in {pause_s:.0f} s"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                while self._stopped is None:
                    await self._change()
        return self._stopped is None

    # ---------------------------------------------------------------------------------------------- what has come of it

    async def _take(self, result: MapResult[dict[str, Any]], file: ResultsFile) -> None:
        """Decides what becomes of a result."""
        one = self._asked.pop(result.index)
        self._budget.settle(result.index)
        record, error = _record(one, result), result.error
        if result.completion is not None:
            self._answered(one.place)
            record = answer_record(record, result.completion, expected_prompt_tokens=round(one.prompt_tokens))
            self._budget.spend(one.model, record.prompt_tokens, record.completion_tokens)
            await self._add(file, encode_line(record, result.completion), record)
        elif error is not None and not self._passes(one, error, record := error_record(record, error)):
            self._answered(one.place)
            await self._add(file, encode_line(record), record)
        self._changed.set()

    def _answered(self, place: int) -> None:
        self._outage.answered()
        self._again.pop(place, None)
        if self._stopped is None:
            self._state = ""

    def _passes(self, one: _Asked, error: Exception, record: Record) -> bool:
        """Whether an error is not the request's: it is asked again, in this run or in a later one."""
        if not isinstance(error, TogetherError):
            return False
        if isinstance(error, (AuthenticationError, PaymentRequiredError)) or (
            isinstance(error, APIConnectionError) and not isinstance(error, APITimeoutError) and not error.transient
        ):
            self.drain(str(error))
            return True
        if not (is_retryable(error) or isinstance(error, (APITimeoutError, StreamTimeoutError))):
            return False
        self._outage.failed(time.monotonic())
        self._last_failure = error
        self._again[one.place] = (encode_line(record), record)
        return True

    async def _add(self, file: ResultsFile, line: bytes, record: Record) -> None:
        await file.room()
        file.add(line, record)

    def _written(self, records: list[Record]) -> None:
        """Lines are on disk."""
        now, on_result = time.monotonic(), self._options.on_result
        for record in records:
            self._tally.add(record, now)
            if on_result is not None and self._callers is None:
                try:
                    on_result(record)
                except Exception as error:  # noqa: BLE001 - raised when what is under way has come
                    self._callers = error
                    self.drain("on_result has raised an error")

    # ------------------------------------------------------------------------------------------------------- looking on

    async def _watch(self) -> None:
        """Once a second: notes how it stands, for the report, and looks at the clock."""
        ends = self._options.ends_at(time.time())
        while True:
            left = 1.0 if ends is None else ends - time.time()
            if left <= 0:
                self.drain("the deadline is reached")
                ends = None
            if self._options.report is not None:
                self._samples.append(self._sample())
            await asyncio.sleep(min(1.0, max(left, 0.001)))

    def _sample(self) -> Sample:
        from together_async.batch.report import Sample  # noqa: PLC0415 - only for a report

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
        from together_async.batch.report import render  # noqa: PLC0415 - only for a report

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

    def _summary(self) -> BatchSummary:
        tally, plan, budget = self._tally, self.plan, self._budget
        # Who stops it while the last ones are under way has stopped nothing.
        is_whole = not plan.cut and tally.done + tally.failed == plan.total
        return BatchSummary(
            input=str(self._source.path),
            output=str(self._output),
            total=plan.total,
            done=tally.done,
            failed=tally.failed,
            resumed=plan.done + plan.failed,
            edited=len(plan.edited),
            prompt_tokens=budget.prompt_tokens,
            completion_tokens=budget.completion_tokens,
            cost=budget.known_cost,
            elapsed_s=time.monotonic() - (self._began or 0.0),
            retried=tally.retried,
            limited_s=self._limited_s,
            stopped=None if is_whole else self._stopped,
            strangers=plan.strangers,
            models=budget.models,
        )


def _record(one: _Asked, result: MapResult[Any]) -> Record:
    """Returns what is told of a result, whatever it is."""
    timing = result.timing
    return Record(
        one.custom_id,
        one.body_hash,
        model=one.model,
        sent_at=None if result.attempts == 0 else round(time.time() - timing.total_s + timing.queued_s, 3),
        queued_s=round(timing.queued_s, 6),
        first_token_s=None if timing.first_token_s is None else round(timing.first_token_s, 6),
        total_s=round(timing.total_s, 6),
        attempts=result.attempts,
        retries=tuple((reason, round(waited_s, 3)) for reason, waited_s in result.retries),
    )


def _check_files(input: Path, output: Path, report: Path | None) -> None:
    """Raises unless each file has one purpose."""
    places = {"output": output, "report": report, "output's .superseded": output.with_name(f"{output.name}.superseded")}
    taken = {_place(input): "input"}
    for name, path in places.items():
        if path is None:
            continue
        if not path.name:
            raise ValueError(f"{name}: got {str(path)!r}, expected the name of a file")
        other = taken.setdefault(_place(path), name)
        if other != name:
            raise ValueError(f"{name}: {path} is the {other} itself; name another file")
    if report is None:
        return
    if not report.parent.is_dir():
        raise ValueError(f"report: there is no folder {report.parent}")
    if report.exists() and not _is_page(report):
        raise ValueError(
            f"report: {report} is there, and is no page (HTML) that a report could replace; name another file"
        )


def _is_page(path: Path) -> bool:
    with contextlib.suppress(OSError), path.open("rb") as file:
        begin = file.read(20).lower()
        return not begin or begin.startswith(b"<!doctype html")
    return False


def _place(path: Path) -> object:
    """Returns what is the same for two names of one file."""
    try:
        found = path.stat()
    except OSError:
        return os.path.realpath(path)
    return found.st_dev, found.st_ino


def _first(errors: BaseExceptionGroup[Exception]) -> Exception:
    """Returns the first error of a group, or of the groups in it."""
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return cast("Exception", found)


async def _in_thread(function: Callable[[], T]) -> T:
    """Runs a function in a thread, and waits for it even if the caller is cancelled: it may hold a file."""
    return await finished(asyncio.ensure_future(asyncio.to_thread(function)))
