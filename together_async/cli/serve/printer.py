"""Prints the lines of the requests, and holds the reason for which the command stops."""

import asyncio

import click

from together_async.cli.serve.options import OutputOptions
from together_async.cli.serve.request_line import RequestLine
from together_async.cli.terminal import EXIT_INTERRUPTED, Output

EXIT_TERMINATED = 143
EXIT_CODES = {"SIGINT": EXIT_INTERRUPTED, "SIGTERM": EXIT_TERMINATED}


class Printer:
    """Prints a line for each request, until the reader of the output leaves.

    Attributes:
        stop: Set when the command has to stop.
        error: Why nothing more can be printed; None while it can.
        exit_code: What the command ends with.
    """

    def __init__(self, options: OutputOptions) -> None:
        self._options = options
        self._output = Output(machine=options.as_json)
        self.stop = asyncio.Event()
        self.error: Exception | None = None
        self.exit_code = 0

    def print_line(self, line: RequestLine) -> None:
        """Print the line of a request. Never raises: an error is kept in `error`, and ends the command."""
        try:
            if self._options.as_json:
                self._output.write(line.as_json() + "\n")
            elif not self._options.quiet:
                click.echo(line.as_text())
        except (OSError, click.ClickException) as error:
            self.error = error
            self.stop.set()

    def stop_on_signal(self, name: str) -> None:
        """Stop with the exit code of this signal."""
        self.exit_code = EXIT_CODES[name]
        self.stop.set()
