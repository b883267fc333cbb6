"""`run_batch`: a file of requests in, a file of results out, resumable after any interruption.

The run ties the other modules together: `plan` compares input and output, `rounds` decides what is sent and what a
result means, the client's `map` sends it, `writer` brings results to the disk, `report` describes how it went.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import attrs

from together_async.batch.budget import Budget
from together_async.batch.options import BatchOptions, check_files
from together_async.batch.output import OutputError, OutputFile, read_standing
from together_async.batch.plan import BatchInputError, InputFile, Plan, make_plan
from together_async.batch.progress import BatchProgress, BatchSummary, Throughput
from together_async.batch.record import Record, encode_line
from together_async.batch.rounds import Rounds, RunState
from together_async.batch.writer import OutputWriter, uncancelled
from together_async.errors import TogetherError
from together_async.fanout.results import MapResults
from together_async.timeouts import Timeouts

if TYPE_CHECKING:
    from together_async.batch.report import Sample
    from together_async.client import AsyncTogether

T = TypeVar("T")

PRICE_TIMEOUTS: Final = Timeouts(connect=5, first_token=10, total=20)


class Batch:
    """One batch, from its plan to its summary.

    ```python
    batch = Batch(client, "in.jsonl", "out.jsonl")
    summary = await batch.run()
    ```

    `AsyncTogether.run_batch` does just that. With the object, another task can read `progress` and call `drain`.

    Args:
        client: The client that sends the requests.
        input: The file of requests.
        output: The file of results.
        options: How the batch is run; None uses the defaults.
        fields: Fields of `ChatCompletionRequest` for requests that lack them; None adds none.

    Attributes:
        plan: What there is to do; empty until the input has been read.

    Raises:
        ValueError: A field is out of range, or input, output and report are not different files.
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
        self._source = InputFile.of(Path(input), options.format, options.template, options.system, given)
        check_files(self._source.path, self._output, options.report)
        self.plan = Plan()
        self._budget = Budget(options.max_tokens_total, options.max_cost)
        self._state = RunState()
        self._results: MapResults[dict[str, Any]] | None = None
        self._callback_error: Exception | None = None
        self._throughput = Throughput()
        self._samples: list[Sample] = []
        self._began: float | None = None
        self._limited_s = 0.0

    def __repr__(self) -> str:
        return f"<Batch {self.title}, {self._throughput.done} of {self.plan.total} done>"

    # ---------------------------------------------------------------------------------------------------------- public

    @property
    def title(self) -> str:
        """The names of its files, for people."""
        return f"{self._source.path.name} -> {self._output.name}"

    async def check(self) -> Plan:
        """Compares input and output, and sends nothing. The plan's `errors` has the invalid lines.

        Raises:
            OSError: A file can't be read.
            OutputError: The output holds something other than results.
        """

        def look() -> Plan:
            results = read_standing(self._output).results if self._output.exists() else {}
            return make_plan(self._source, results, retry_errors=self._options.retry_errors)

        return await _in_thread(look)

    async def run(self) -> BatchSummary:
        """Sends the requests that have no result yet. A batch can be run once; to continue later, make another one.

        Raises:
            BatchInputError: The input has invalid lines, and `keep_going` is off; nothing was sent.
            OutputError: The output can't be opened or written, or another run uses it.
            OSError: The input can't be read.
            ValueError: `max_cost` is set, and the price of a model is not known.
            RuntimeError: The batch has been run before.
        """
        if self._began is not None:
            raise RuntimeError("a batch is run once; to go on with what is left, make another one of the same files")
        self._began = time.monotonic()
        self._state.activity = "reading input and output"
        await _in_thread(self._source.check_readable)
        file = OutputFile(self._output)
        writer = OutputWriter(file, self._record_written)
        try:
            await _in_thread(file.open)
            await self._prepare(file)
            await self._run(writer)
            if self._options.report is not None:
                await _in_thread(lambda: self._write_report(file))
        finally:
            writer.close()
        if self._callback_error is not None:
            raise self._callback_error
        return self._summary()

    def drain(self, why: str) -> None:
        """Stops sending requests; `run` returns once those in flight have ended. Running the batch again continues it.

        Args:
            why: The reason, for the summary. A second call changes nothing.
        """
        if self._state.stopped is None:
            self._state.stop(why)
            if self._results is not None:
                self._results.drain()

    @property
    def progress(self) -> BatchProgress:
        """A snapshot of the batch, made when it is read."""
        throughput, results, now = self._throughput, self._results, time.monotonic()
        waiting = results.waiting if results is not None else 0
        per_minute, tokens_per_minute = throughput.rates(now)
        remaining = max(0, self.plan.total - throughput.done - throughput.failed)
        return BatchProgress(
            total=self.plan.total,
            done=throughput.done,
            failed=throughput.failed,
            resumed=self.plan.done + self.plan.failed,
            retried=throughput.retried,
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
            state=self._state.activity,
        )

    # ------------------------------------------------------------------------------------------------------- preparing

    async def _prepare(self, file: OutputFile) -> None:
        """Makes the plan, puts the output in order, and counts what earlier runs have spent."""
        options = self._options
        plan = self.plan = await _in_thread(
            lambda: make_plan(
                self._source,
                file.standing.results,
                retry_errors=options.retry_errors,
                keeps_all=options.keep_going,
                stopped=lambda: self._state.stopped is not None,
            )
        )
        if plan.wrong and not options.keep_going:
            raise BatchInputError(self._source.path.name, plan.errors, plan.wrong, plan.total)
        self._throughput.done, self._throughput.failed = plan.done, plan.failed
        if options.max_cost is not None and plan.to_do and self._state.stopped is None:
            await self._require_prices()
        if plan.edited or plan.retried or file.standing.set_aside:
            await _in_thread(lambda: file.compact(plan.retried, kept_aside=plan.edited))
        for model, (prompt, completion) in file.standing.tokens.items():
            self._budget.spend(model, prompt, completion)
        self._state.clear_activity()

    async def _require_prices(self) -> None:
        try:
            self._budget.prices = await self._client.prices(timeouts=PRICE_TIMEOUTS)
        except TogetherError as error:
            raise ValueError(f"max_cost: the service does not list its prices ({error})") from error
        if unknown := sorted(self.plan.by_model.keys() - self._budget.prices.keys()):
            raise ValueError(f"max_cost: the service lists no price for {', '.join(unknown[:5])}")

    async def _find_prices(self) -> None:
        """Asks for prices that are only shown: no request waits for them."""
        if self._options.prices and not self._budget.prices:
            with contextlib.suppress(TogetherError):
                self._budget.prices = await self._client.prices(timeouts=PRICE_TIMEOUTS)

    # --------------------------------------------------------------------------------------------------------- running

    async def _run(self, writer: OutputWriter) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(writer.run())
                watch = group.create_task(self._watch())
                prices = group.create_task(self._find_prices())
                await self._write_invalid_lines(writer)
                rounds = self._rounds()
                await self._send(rounds, writer)
                rounds.finish()
                for line, record in rounds.unresolved if self._state.stopped is None else ():
                    await _add(writer, line, record)
                writer.finish()
                if self._state.stopped is None:
                    await prices
                for task in (watch, prices):
                    task.cancel()
        except* Exception as errors:  # noqa: BLE001 - whatever it is, it is raised without its group
            raise _first(errors) from None
        finally:
            if self._results is not None:
                self._limited_s = self._results.limited_s
                self._results = None

    async def _write_invalid_lines(self, writer: OutputWriter) -> None:
        """Makes invalid lines errors in the output, which `keep_going` asks for."""
        for error in self.plan.errors:
            record = Record(error.name, error.body_hash, code="invalid_request", message=str(error), attempts=0)
            await _add(writer, encode_line(record), record)

    def _rounds(self) -> Rounds:
        return Rounds(
            self._source,
            self.plan,
            self._budget,
            self._state,
            estimator=self._client.limiter.driver.estimator,
            drain=self.drain,
            stream=self._options.stream,
        )

    async def _send(self, rounds: Rounds, writer: OutputWriter) -> None:
        options = self._options
        timeouts = options.timeouts or self._client.timeouts
        results = self._results = self._client.map(
            rounds.requests(),
            concurrency=options.concurrency,
            start="careful",  # a burst may lower an account's limits, and it can wait for one answer
            stream=options.stream,
            timeouts=attrs.evolve(timeouts, queue=None),  # waiting for our own limits must not fail a request
            retry=options.retry,
            headers=options.headers,
        )
        if self._state.stopped is not None:
            return
        async with results:
            async for result in results:
                settled = rounds.settle(result)
                if settled is not None:
                    await _add(writer, *settled)
                self._state.notify()

    def _record_written(self, records: list[Record]) -> None:
        """Counts results that have reached the disk, and passes them to `on_result`."""
        now, on_result = time.monotonic(), self._options.on_result
        for record in records:
            self._throughput.add(record, now)
            if on_result is not None and self._callback_error is None:
                try:
                    on_result(record)
                except Exception as error:  # noqa: BLE001 - raised once the requests in flight have ended
                    self._callback_error = error
                    self.drain("on_result has raised an error")

    # ------------------------------------------------------------------------------------------------------- reporting

    async def _watch(self) -> None:
        """Once a second, takes a sample for the report and checks the deadline."""
        began, is_over = time.monotonic(), False
        while True:
            left_s = None if is_over else self._options.left_s(time.monotonic() - began, time.time())
            if left_s is not None and left_s <= 0:
                self.drain("the deadline is reached")
                is_over = True
            if self._options.report is not None:
                self._samples.append(self._sample())
            await asyncio.sleep(1.0 if left_s is None else min(1.0, max(left_s, 0.001)))

    def _sample(self) -> Sample:
        from together_async.batch.report import Sample  # noqa: PLC0415 - only a report needs it

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

    def _write_report(self, file: OutputFile) -> None:
        """Writes the page to another name first, so that there is never half a page."""
        from together_async.batch.report import render  # noqa: PLC0415 - only a report needs it

        path, summary = cast("Path", self._options.report), self._summary()
        page = render(file.records(), [*self._samples, self._sample()], summary.facts(), title=self._output.name)
        new_path = path.with_name(f".{path.name}.new")
        try:
            new_path.write_text(page, encoding="utf-8")
            new_path.replace(path)
        except OSError as error:
            raise OutputError(
                error.errno,
                f"the report {path} can't be written: {error.strerror}; the results are safe in {file.path}",
            ) from error

    def _summary(self) -> BatchSummary:
        throughput, plan, budget = self._throughput, self.plan, self._budget
        # A stop that came while the last requests were in flight has stopped nothing.
        is_whole = not plan.cut and throughput.done + throughput.failed == plan.total
        return BatchSummary(
            input=str(self._source.path),
            output=str(self._output),
            total=plan.total,
            done=throughput.done,
            failed=throughput.failed,
            resumed=plan.done + plan.failed,
            edited=len(plan.edited),
            prompt_tokens=budget.prompt_tokens,
            completion_tokens=budget.completion_tokens,
            cost=budget.known_cost,
            elapsed_s=time.monotonic() - (self._began or 0.0),
            retried=throughput.retried,
            limited_s=self._limited_s,
            stopped=None if is_whole else self._state.stopped,
            strangers=plan.strangers,
            models=budget.models,
        )


async def _add(writer: OutputWriter, line: bytes, record: Record) -> None:
    await writer.room()
    writer.add(line, record)


def _first(errors: BaseExceptionGroup[Exception]) -> Exception:
    """Returns the first error of a group, or of the groups in it."""
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return cast("Exception", found)


async def _in_thread(function: Callable[[], T]) -> T:
    """Runs a function in a thread, and waits for its end even if the caller is cancelled: it may hold a file."""
    return await uncancelled(asyncio.ensure_future(asyncio.to_thread(function)))
