"""How a batch looks while it runs: a live panel on a terminal, a line now and then elsewhere, or JSON for a program."""

import asyncio
import datetime as dt
import json
import math
import sys
import time
from types import TracebackType
from typing import Any, Self

import attrs
import click

from together_async.batch import Batch, BatchProgress, BatchSummary
from together_async.cli.terminal import note

LIVE_S = 0.25
PLAIN_S = 10.0
JSON_S = 1.0


def display_for(batch: Batch, *, quiet: bool, as_json: bool) -> "Display":
    """Choose how to show a batch."""
    if as_json:
        return JSONDisplay(batch)
    if quiet:
        return Display(batch)
    return LiveDisplay(batch) if sys.stderr.isatty() else PlainDisplay(batch)


def duration(seconds: float) -> str:
    """Return a span as a person reads it: `12 s`, `3:05 min`, `2:41:09`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    whole = dt.timedelta(seconds=round(seconds))
    return str(whole) if seconds >= 3600 else f"{int(seconds // 60)}:{int(seconds % 60):02} min"


def money(dollars: float) -> str:
    """Return an amount of US dollars, small ones to two digits that say something."""
    if 0 < dollars < 0.1:
        return f"${dollars:.{1 - math.floor(math.log10(dollars))}f}"
    return f"${dollars:,.2f}"


class Display:
    """Shows nothing: what `--quiet` asks for.

    Args:
        batch: What runs.
    """

    every_s = JSON_S

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    async def show(self) -> None:
        """Show how it stands, again and again, until it is cancelled."""
        while True:
            await asyncio.sleep(self.every_s)
            self.update(self._batch.progress)

    def update(self, progress: BatchProgress) -> None:
        """Show how it stands."""

    def note(self, text: str) -> None:
        """Say something beside it."""
        note(text)

    def tell(self, summary: BatchSummary) -> None:
        """Say how it ended."""


class JSONDisplay(Display):
    """A line of JSON a second, and one at the end, on standard output."""

    def update(self, progress: BatchProgress) -> None:
        """Write how it stands."""
        limits = progress.limits
        self._write(
            {
                "event": "progress",
                **attrs.asdict(progress, filter=lambda field, _: field.name != "limits"),
                "rate_limited": limits.rate_limited,
                "overloaded": limits.overloaded,
                "models": {
                    name: {
                        "requests_per_minute": model.requests_per_minute,
                        "tokens_per_minute": model.tokens_per_minute,
                        "paused_for_s": model.paused_for_s,
                    }
                    for name, model in limits.models.items()
                },
            }
        )

    def note(self, text: str) -> None:
        """Write it as an event."""
        self._write({"event": "note", "text": text})

    def tell(self, summary: BatchSummary) -> None:
        """Write the summary."""
        self._write({"event": "summary", **attrs.asdict(summary), "remaining": summary.remaining, "ok": summary.ok})

    def _write(self, event: dict[str, Any]) -> None:
        click.echo(json.dumps({"at": round(time.time(), 3), **event}))


class PlainDisplay(Display):
    """A line every ten seconds, for logs."""

    every_s = PLAIN_S

    def update(self, progress: BatchProgress) -> None:
        """Write how it stands."""
        click.echo(f"{dt.datetime.now():%H:%M:%S} {plain_line(progress)}", err=True)  # noqa: DTZ005 - for the person here

    def tell(self, summary: BatchSummary) -> None:
        """Write the summary."""
        click.echo(closing_text(summary), err=True)


class LiveDisplay(Display):
    """A panel that is drawn anew four times a second."""

    every_s = LIVE_S

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch)
        from rich.console import Console  # noqa: PLC0415 - only a terminal needs it
        from rich.live import Live  # noqa: PLC0415

        self._console = Console(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._notes: list[str] = []

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def update(self, progress: BatchProgress) -> None:
        """Draw how it stands."""
        from together_async.cli.batch_panel import panel  # noqa: PLC0415 - imports rich

        self._live.update(panel(progress, self._batch.title, self._notes), refresh=True)

    def note(self, text: str) -> None:
        """Show it in the panel."""
        self._notes.append(text)
        self.update(self._batch.progress)

    def tell(self, summary: BatchSummary) -> None:
        """Write the summary, where the panel was."""
        click.echo(closing_text(summary), err=True)


def plain_line(progress: BatchProgress) -> str:
    """Return how it stands in one line."""
    finished = progress.done + progress.failed
    parts = [
        f"{finished:,} of {progress.total:,}" + (f" ({finished / progress.total:.0%})" if progress.total else ""),
        f"{progress.failed:,} failed" if progress.failed else "",
        f"{progress.retried:,} retried" if progress.retried else "",
        f"{progress.in_flight:,} in flight",
        f"{progress.queued:,} queued" if progress.queued else "",
        f"{progress.requests_per_minute:,.0f} requests/min",
        f"{progress.tokens_per_minute:,.0f} tokens/min",
        f"waited {duration(progress.limited_s)} for limits" if progress.limited_s >= 1 else "",
        money(progress.cost) if progress.cost is not None else "",
        f"ETA {duration(progress.eta_s)}" if progress.eta_s is not None else "",
        progress.state,
    ]
    return ", ".join(part for part in parts if part)


def closing_text(summary: BatchSummary) -> str:
    """Return how it ended, in a line or two."""
    run = summary.done + summary.failed - summary.resumed
    parts = [
        f"{summary.done:,} of {summary.total:,} answered",
        f"{summary.failed:,} failed" if summary.failed else "",
        f"{summary.remaining:,} to do" if summary.remaining else "",
        f"{summary.resumed:,} of them from earlier runs" if summary.resumed else "",
        f"{summary.edited:,} asked anew because edited" if summary.edited else "",
        f"{summary.retried:,} took more than one attempt" if summary.retried else "",
    ]
    lines = [", ".join(part for part in parts if part) + "."]
    speed = f", {run / summary.elapsed_s:,.1f} requests/s" if run and summary.elapsed_s > 0 else ""
    tokens = f"{summary.prompt_tokens:,} prompt + {summary.completion_tokens:,} answer tokens"
    cost = f", {money(summary.cost)}" if summary.cost is not None else ""
    lines.append(f"{duration(summary.elapsed_s)}{speed}; {tokens}{cost}.")
    if summary.limited_s >= 1:
        lines.append(f"Something waited for the limits for {duration(summary.limited_s)}.")
    if summary.stopped:
        lines.append(f"Stopped: {summary.stopped}.")
    return "\n".join(lines)
