"""What is shown while the local model starts: a bar and a spinner, or plain lines if it is not a terminal."""

import sys
from types import TracebackType
from typing import Self

import click

from together_async.local import MODEL_NOTICE


class QuietStart:
    """Shows only whose model it is, when the model is put together: once on each machine."""

    def __init__(self) -> None:
        self._began = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def on_progress(self, done: int, total: int) -> None:
        """The callback for `LocalServer(on_progress=...)`; both numbers are bytes."""
        if not self._began:
            self._began = True
            self.begin(total)
        self.advance(done, total)

    def begin(self, total: int) -> None:  # noqa: ARG002 - subclasses show it
        """Show whose model it is."""
        click.echo(MODEL_NOTICE, err=True)

    def advance(self, done: int, total: int) -> None:
        """Show the progress."""


class PlainStart(QuietStart):
    """Shows a line for each stage."""

    def __enter__(self) -> Self:
        click.echo("Starting the local model ...", err=True)
        return self

    def begin(self, total: int) -> None:
        """Show the size as well."""
        super().begin(total)
        click.echo(f"Putting the model together ({total / 1e6:.0f} MB, once) ...", err=True)


class TerminalStart(QuietStart):
    """Shows a spinner, and a bar while the model is put together; both disappear before the first token."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console  # noqa: PLC0415 - only a terminal needs it
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn  # noqa: PLC0415 - as above

        console = Console(stderr=True)
        self._spinner = console.status("Starting the local model")
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
        self._bar = Progress(*columns, console=console, transient=True)
        self._task = self._bar.add_task("Putting the model together (once)")

    def __enter__(self) -> Self:
        self._spinner.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()
        self._spinner.stop()

    def begin(self, total: int) -> None:
        """Replace the spinner by the bar."""
        self._spinner.stop()
        super().begin(total)
        self._bar.start()

    def advance(self, done: int, total: int) -> None:
        """Move the bar; at its end the spinner returns, as the model still has to be loaded."""
        self._bar.update(self._task, completed=done, total=total)
        if done >= total:
            self._bar.stop()
            self._spinner.start()


def start_display(*, quiet: bool) -> QuietStart:
    """Return the display for standard error."""
    if quiet:
        return QuietStart()
    return TerminalStart() if sys.stderr.isatty() else PlainStart()
