"""One event loop, one client, one batch: what runs behind `together-async batch`."""

import asyncio
import contextlib
import json
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from importlib import import_module

import attrs
import click

from together_async import AsyncTogether, Limits, TogetherError
from together_async.batch import Batch, BatchOptions, BatchSummary, OutputError
from together_async.batch.plan import Estimate, Plan
from together_async.cli.batch.figures import duration, money
from together_async.cli.batch.options import Job, Limiting, Shown
from together_async.cli.batch.progress import Display, display_for
from together_async.cli.target import LocalModel, Remote
from together_async.cli.terminal import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, note, report
from together_async.pricing import Price

EXIT_USAGE = 2
EXIT_STOPPED = 3
EXIT_TERMINATED = 143
LOCAL_CONCURRENCY = 4
"""What the local server works on at once."""
SIGNALS = {"SIGINT": ("interrupted", EXIT_INTERRUPTED), "SIGTERM": ("terminated", EXIT_TERMINATED)}
_OPTIONS = frozenset(field.name for field in attrs.fields(BatchOptions))
_LISTED = 20


def run_batch(job: Job) -> int:
    """Run a batch until it is done, or somebody stops it. Returns the exit code."""
    import_module("together_async.http.transport")  # it takes 0.1 s, which the first request need not wait for
    command = _Command(job)
    try:
        return asyncio.run(command.main())
    except asyncio.CancelledError:
        return command.interrupted_by[1] if command.interrupted_by else EXIT_INTERRUPTED
    except TogetherError as error:
        report(error)
        return EXIT_FAILED
    except OutputError as error:
        raise _Failure(error.args[-1]) from error
    except OSError as error:
        raise _Failure(f"{error.filename or job.input}: {error.strerror or error}") from error
    except ValueError as error:
        raise click.UsageError(str(error)) from error


class _Failure(click.ClickException):
    """An error that is not the person's, in one line."""

    exit_code = EXIT_FAILED


class _Command:
    def __init__(self, job: Job) -> None:
        self._target = job.target
        self._input = job.input
        self._output = job.output
        self._shown = job.shown
        self._limiting = job.limiting
        given = {name: value for name, value in job.others.items() if value not in (None, ())}
        self._settings = {name: value for name, value in given.items() if name in _OPTIONS}
        self._fields = {name: value for name, value in given.items() if name not in _OPTIONS}
        self.interrupted_by: tuple[str, int] | None = None

    async def main(self) -> int:
        async with AsyncExitStack() as resources:
            client, model = await self._open(resources)
            fields = {"model": model or None, **self._fields}
            options = BatchOptions(
                concurrency=self._limiting.concurrency,
                prices=not isinstance(self._target, LocalModel),
                **self._settings,
            )
            nowhere = self._input.with_name(f"{self._input.name}.results.jsonl")
            batch = Batch(client, self._input, self._output or nowhere, options, fields)
            if self._shown.check or self._shown.dry_run:
                plan = await batch.check()
                prices = await self._prices(client) if self._shown.dry_run else None
                return _tell_plan(plan, prices, self._limiting, self._shown, self._input.name)
            return await self._run(batch)

    async def _open(self, resources: AsyncExitStack) -> tuple[AsyncTogether, str]:
        limits = Limits(
            requests_per_minute=self._limiting.requests_per_minute, tokens_per_minute=self._limiting.tokens_per_minute
        )
        target = self._target
        if isinstance(target, LocalModel):
            target = (
                Remote("http://127.0.0.1:9/v1", "none", "local")
                if self._asks_nothing
                else await self._start(target, resources)
            )
        client = AsyncTogether(target.api_key, base_url=target.base_url, limits=limits)
        if target.stop and "stop" not in self._fields:
            self._fields["stop"] = target.stop
        return await resources.enter_async_context(client), target.model

    @property
    def _asks_nothing(self) -> bool:
        return self._shown.check or self._shown.dry_run

    async def _start(self, target: LocalModel, resources: AsyncExitStack) -> Remote:
        from together_async.cli.local_model import start_display  # noqa: PLC0415 - only for --local
        from together_async.local import LocalServer  # noqa: PLC0415

        with start_display(quiet=self._shown.quiet or self._shown.as_json) as display:
            server = LocalServer(target.path, slots=LOCAL_CONCURRENCY, on_progress=display.on_progress)
            await resources.enter_async_context(server)
        return Remote(server.base_url, "none", server.model, server.stop or None)

    async def _prices(self, client: AsyncTogether) -> Mapping[str, Price]:
        if isinstance(self._target, LocalModel) or self._target.api_key == "none":
            return {}
        try:
            return await client.prices()
        except TogetherError:
            return {}

    # ---------------------------------------------------------------------------------------------------------- running

    async def _run(self, batch: Batch) -> int:
        display = display_for(batch, quiet=self._shown.quiet, as_json=self._shown.as_json)
        async with self._signals(batch, display):
            with display:
                showing = asyncio.create_task(display.show())
                try:
                    summary = await batch.run()
                finally:
                    showing.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await showing
        display.tell(summary)
        self._tell_how_to_go_on(summary)
        return self._exit_code(summary)

    @contextlib.asynccontextmanager
    async def _signals(self, batch: Batch, display: Display) -> AsyncIterator[None]:
        """The first signal drains, the second stops."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def handle(why: str, code: int) -> None:
            if self.interrupted_by is None:
                self.interrupted_by = (why, code)
                batch.drain(why)
                display.note(f"{why.capitalize()}: what is under way is finished; again to stop at once.")
            elif task is not None:
                task.cancel()

        try:
            for name, (why, code) in SIGNALS.items():
                with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C is a KeyboardInterrupt there
                    loop.add_signal_handler(getattr(signal, name), handle, why, code)
            yield
        except asyncio.CancelledError:
            if self.interrupted_by is not None:
                note(f"Stopped at once. {self._again()}")
            raise
        finally:
            for name in SIGNALS:
                with contextlib.suppress(NotImplementedError):
                    loop.remove_signal_handler(getattr(signal, name))

    def _exit_code(self, summary: BatchSummary) -> int:
        if summary.stopped is not None:
            return EXIT_STOPPED if self.interrupted_by is None else self.interrupted_by[1]
        return EXIT_DONE if summary.ok else EXIT_FAILED

    def _tell_how_to_go_on(self, summary: BatchSummary) -> None:
        if self._shown.quiet or self._shown.as_json:
            return
        if summary.stopped is not None:
            note(self._again())
        elif summary.failed:
            note(f"The errors are in {summary.output}; the same command with --retry-errors asks them again.")

    def _again(self) -> str:
        words = ["together-async", *sys.argv[1:]]
        return f"What is in {self._output} counts. To go on, the same again:\n  {shlex.join(words)}"


# ---------------------------------------------------------------------------------------------------- check and dry run


def _tell_plan(plan: Plan, prices: Mapping[str, Price] | None, limiting: Limiting, shown: Shown, name: str) -> int:
    tell: Callable[[Plan, Mapping[str, Price] | None, Limiting, str], None] = (
        _plan_as_json if shown.as_json else _plan_as_text
    )
    if not shown.quiet or plan.wrong:
        tell(plan, prices, limiting, name)
    return EXIT_USAGE if plan.wrong else EXIT_DONE


def _plan_as_json(plan: Plan, prices: Mapping[str, Price] | None, limiting: Limiting, name: str) -> None:
    click.echo(
        json.dumps(
            {
                "event": "plan",
                "input": name,
                "total": plan.total,
                "to_do": plan.to_do,
                "done": plan.done,
                "failed": plan.failed,
                "wrong": plan.wrong,
                "errors": [{"line": error.line, "message": error.text} for error in plan.errors],
                "models": {
                    model: {**attrs.asdict(estimate), "cost": _cost(estimate, (prices or {}).get(model))}
                    for model, estimate in plan.by_model.items()
                },
                "least_minutes": _least_minutes(plan, limiting),
            }
        )
    )


def _plan_as_text(plan: Plan, prices: Mapping[str, Price] | None, limiting: Limiting, name: str) -> None:
    for error in plan.errors[:_LISTED]:
        click.echo(f"{name} {error}", err=True)
    if plan.wrong > _LISTED:
        click.echo(f"... and {plan.wrong - _LISTED} more", err=True)
    click.echo(
        f"{name}: {plan.total:,} requests, {plan.done:,} answered, {plan.failed:,} with an error, "
        f"{plan.to_do:,} to ask, {plan.wrong:,} that can't be asked"
    )
    for model, estimate in plan.by_model.items():
        click.echo(f"  {model}: {_estimate(estimate)}{_price(estimate, model, prices)}")
    minutes = _least_minutes(plan, limiting)
    if minutes is not None:
        click.echo(f"  at least {duration(minutes * 60)} within the limits given")
    elif plan.to_do:
        click.echo(
            "  time: the service tells its limits with its first answer; --requests-per-minute and "
            "--tokens-per-minute make an estimate"
        )


def _estimate(estimate: Estimate) -> str:
    most = estimate.most_completion_tokens
    answers = "answers of unknown length (no max_tokens)" if most is None else f"at most {most:,} tokens of answers"
    return f"{estimate.requests:,} requests, about {estimate.prompt_tokens:,} tokens of prompts, {answers}"


def _price(estimate: Estimate, model: str, prices: Mapping[str, Price] | None) -> str:
    """What it costs, where that was asked for."""
    if prices is None:
        return ""
    price = prices.get(model)
    cost = _cost(estimate, price)
    return f"; at most {money(cost)}" if cost is not None else "; cost unknown" if price else "; price unknown"


def _cost(estimate: Estimate, price: Price | None) -> float | None:
    if price is None or estimate.most_completion_tokens is None:
        return None
    return price.of(estimate.prompt_tokens, estimate.most_completion_tokens)


def _least_minutes(plan: Plan, limiting: Limiting) -> float | None:
    """The time that the rates alone ask for, by the model that has the most to do."""
    minutes = []
    for estimate in plan.by_model.values():
        if limiting.requests_per_minute is not None:
            minutes.append(estimate.requests / limiting.requests_per_minute)
        if limiting.tokens_per_minute is not None:
            tokens = estimate.prompt_tokens + (estimate.most_completion_tokens or 0)
            minutes.append(tokens / limiting.tokens_per_minute)
    return max(minutes, default=None)
