"""How a running batch is shown: a live panel on a terminal, a line now and then elsewhere, or JSON for a program."""

import asyncio
import datetime as dt
import json
import sys
import time
from types import TracebackType
from typing import Any, Self

import attrs
import click

from together_async.batch import Batch, BatchProgress, BatchSummary
from together_async.cli.batch.figures import closing_text, plain_line
from together_async.cli.terminal import note

LIVE_S = 0.25
PLAIN_S = 10.0
JSON_S = 1.0


def display_for(batch: Batch, *, quiet: bool, as_json: bool) -> "Display":
    """Return the display for these options."""
    if as_json:
        return JSONDisplay(batch)
    if quiet:
        return Display(batch)
    return LiveDisplay(batch) if sys.stderr.isatty() else PlainDisplay(batch)


class Display:
    """Shows nothing: what `--quiet` asks for.

    Args:
        batch: The running batch.
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
        """Show the progress every `every_s` seconds, until cancelled."""
        while True:
            await asyncio.sleep(self.every_s)
            self.update(self._batch.progress)

    def update(self, progress: BatchProgress) -> None:
        """Show the progress."""

    def note(self, text: str) -> None:
        """Show a message."""
        note(text)

    def show_summary(self, summary: BatchSummary) -> None:
        """Show the summary."""


class JSONDisplay(Display):
    """A line of JSON a second, and one at the end, on standard output."""

    def update(self, progress: BatchProgress) -> None:
        """Write the progress."""
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
        """Write the message as an event."""
        self._write({"event": "note", "text": text})

    def show_summary(self, summary: BatchSummary) -> None:
        """Write the summary."""
        self._write({"event": "summary", **attrs.asdict(summary), "remaining": summary.remaining, "ok": summary.ok})

    def _write(self, event: dict[str, Any]) -> None:
        click.echo(json.dumps({"at": round(time.time(), 3), **event}))


class PlainDisplay(Display):
    """A line every ten seconds, for logs."""

    every_s = PLAIN_S

    def update(self, progress: BatchProgress) -> None:
        """Write the progress."""
        click.echo(f"{dt.datetime.now():%H:%M:%S} {plain_line(progress)}", err=True)  # noqa: DTZ005 - local time, for the person at the terminal

    def show_summary(self, summary: BatchSummary) -> None:
        """Write the summary."""
        click.echo(closing_text(summary), err=True)


class LiveDisplay(Display):
    """A panel that is redrawn four times a second."""

    every_s = LIVE_S

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch)
        from rich.console import Console  # noqa: PLC0415 - only a terminal needs it
        from rich.live import Live  # noqa: PLC0415 - only a terminal needs it

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
        """Redraw the panel."""
        from together_async.cli.batch.panel import panel  # noqa: PLC0415 - imports rich

        self._live.update(panel(progress, self._batch.title, self._notes), refresh=True)

    def note(self, text: str) -> None:
        """Show the message in the panel."""
        self._notes.append(text)
        self.update(self._batch.progress)

    def show_summary(self, summary: BatchSummary) -> None:
        """Write the summary in place of the panel."""
        click.echo(closing_text(summary), err=True)
