"""One event loop, one client, one batch: what runs behind `together-async batch`."""

import asyncio
import contextlib
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from importlib import import_module

import attrs
import click

from together_async import AsyncTogether, Limits, TogetherError
from together_async.batch import Batch, BatchOptions, BatchSummary, OutputError
from together_async.cli.batch.options import Job
from together_async.cli.batch.plan_report import show_plan
from together_async.cli.batch.progress import Display, display_for
from together_async.cli.target import LocalModel, Remote
from together_async.cli.terminal import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, note, report
from together_async.pricing import Price

EXIT_STOPPED = 3
EXIT_TERMINATED = 143
LOCAL_CONCURRENCY = 4
"""How many requests the local server works on at once."""
SIGNALS = {"SIGINT": ("interrupted", EXIT_INTERRUPTED), "SIGTERM": ("terminated", EXIT_TERMINATED)}
_OPTIONS = frozenset(field.name for field in attrs.fields(BatchOptions))


def run_batch(job: Job) -> int:
    """Run a batch to its end, or until it is stopped. Returns the exit code."""
    import_module("together_async.http.transport")  # takes 0.1 s: not in the time of the first request
    command = BatchCommand(job)
    try:
        return asyncio.run(command.main())
    except asyncio.CancelledError:
        return command.interrupted_by[1] if command.interrupted_by else EXIT_INTERRUPTED
    except TogetherError as error:
        report(error)
        return EXIT_FAILED
    except OutputError as error:
        raise BatchFailure(error.args[-1]) from error
    except OSError as error:
        raise BatchFailure(f"{error.filename or job.input}: {error.strerror or error}") from error
    except ValueError as error:
        raise click.UsageError(str(error)) from error


class BatchFailure(click.ClickException):
    """An error that is not a usage error, in one line."""

    exit_code = EXIT_FAILED


class BatchCommand:
    """The resources and signals around one run."""

    def __init__(self, job: Job) -> None:
        self._target = job.target
        self._input = job.input
        self._output = job.output
        self._output_options = job.output_options
        self._limit_options = job.limit_options
        given = {name: value for name, value in job.others.items() if value not in (None, ())}
        self._settings = {name: value for name, value in given.items() if name in _OPTIONS}
        self._fields = {name: value for name, value in given.items() if name not in _OPTIONS}
        self.interrupted_by: tuple[str, int] | None = None

    async def main(self) -> int:
        """Run the batch, or only check it. Returns the exit code."""
        async with AsyncExitStack() as resources:
            client, model = await self._open(resources)
            fields = {"model": model or None, **self._fields}
            options = BatchOptions(
                concurrency=self._limit_options.concurrency,
                prices=not isinstance(self._target, LocalModel),
                **self._settings,
            )
            nowhere = self._input.with_name(f"{self._input.name}.results.jsonl")
            batch = Batch(client, self._input, self._output or nowhere, options, fields)
            if self._output_options.check or self._output_options.dry_run:
                plan = await batch.check()
                prices = await self._prices(client) if self._output_options.dry_run else None
                return show_plan(plan, prices, self._limit_options, self._output_options, self._input.name)
            return await self._run(batch)

    async def _open(self, resources: AsyncExitStack) -> tuple[AsyncTogether, str]:
        limits = Limits(
            requests_per_minute=self._limit_options.requests_per_minute,
            tokens_per_minute=self._limit_options.tokens_per_minute,
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
        return self._output_options.check or self._output_options.dry_run

    async def _start(self, target: LocalModel, resources: AsyncExitStack) -> Remote:
        from together_async.cli.local_model import start_display  # noqa: PLC0415 - only for --local
        from together_async.local import LocalServer  # noqa: PLC0415 - as above

        with start_display(quiet=self._output_options.quiet or self._output_options.as_json) as display:
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

    async def _run(self, batch: Batch) -> int:
        display = display_for(batch, quiet=self._output_options.quiet, as_json=self._output_options.as_json)
        async with self._signals(batch, display):
            with display:
                showing = asyncio.create_task(display.show())
                try:
                    summary = await batch.run()
                finally:
                    showing.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await showing
        display.show_summary(summary)
        self._note_how_to_resume(summary)
        return self._exit_code(summary)

    @contextlib.asynccontextmanager
    async def _signals(self, batch: Batch, display: Display) -> AsyncIterator[None]:
        """The first signal drains the batch, the second stops it."""
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
                with contextlib.suppress(NotImplementedError):  # on Windows Ctrl-C is a KeyboardInterrupt
                    loop.add_signal_handler(getattr(signal, name), handle, why, code)
            yield
        except asyncio.CancelledError:
            if self.interrupted_by is not None:
                note(f"Stopped at once. {self._resume_text()}")
            raise
        finally:
            for name in SIGNALS:
                with contextlib.suppress(NotImplementedError):
                    loop.remove_signal_handler(getattr(signal, name))

    def _exit_code(self, summary: BatchSummary) -> int:
        if summary.stopped is not None:
            return EXIT_STOPPED if self.interrupted_by is None else self.interrupted_by[1]
        return EXIT_DONE if summary.ok else EXIT_FAILED

    def _note_how_to_resume(self, summary: BatchSummary) -> None:
        if self._output_options.quiet or self._output_options.as_json:
            return
        if summary.stopped is not None:
            note(self._resume_text())
        elif summary.failed:
            note(f"The errors are in {summary.output}; the same command with --retry-errors asks them again.")

    def _resume_text(self) -> str:
        words = ["together-async", *sys.argv[1:]]
        return f"What is in {self._output} counts. To go on, the same again:\n  {shlex.join(words)}"
