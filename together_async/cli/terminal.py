"""What the subcommands share: output, notes next to it, and errors with a hint."""

import io
import os
import sys
from typing import cast

import click

from together_async.errors import (
    APIConnectionError,
    APITimeoutError,
    AuthenticationError,
    NotFoundError,
    StreamError,
    TogetherError,
)

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

# A model's text can hold escape sequences, which would move the cursor, rename the window or fill the clipboard.
CONTROL_CHARACTERS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


class Output:
    """Standard output, flushed after each piece.

    Args:
        machine: Whether a program reads it, which always gets UTF-8. A terminal gets what its encoding can show.
    """

    def __init__(self, *, machine: bool) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._at_line_start = True
        cast("io.TextIOWrapper", sys.stdout).reconfigure(encoding="utf-8" if machine else None, errors="replace")

    def write(self, text: str) -> None:
        """Write the text and flush it.

        Raises:
            BrokenPipeError: The reader left.
            click.ClickException: The text cannot be written for another reason, such as a full disk.
        """
        if self._is_terminal:
            text = text.translate(CONTROL_CHARACTERS)
        if text:
            try:
                sys.stdout.write(text)
                sys.stdout.flush()
            except BrokenPipeError:
                raise
            except OSError as error:
                discard_output(1)
                raise click.ClickException(f"the answer cannot be written: {error.strerror}") from error
            self._at_line_start = text.endswith("\n")

    def end_line(self) -> None:
        """Start a new line, unless the cursor is at the start of one."""
        if not self._at_line_start:
            self.write("\n")


def discard_output(*descriptors: int) -> None:
    """Lets nothing more be written to these descriptors, which has failed once.

    The interpreter flushes its streams again at its end, would fail again, and end with a code of its own.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def as_unicode(text: str) -> str:
    """Replace bytes that are not UTF-8, which Python keeps in arguments and lines as lone surrogates."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def note(text: str) -> None:
    """Print a note next to the answer: on standard error, dim on a terminal."""
    click.secho(text, err=True, dim=True)


def report(error: TogetherError, *, base_url: str = "", has_answer: bool = False) -> None:
    """Print on standard error what went wrong, and what to do about it.

    Args:
        error: What the client raised.
        base_url: Where the request went; empty if no request was sent.
        has_answer: Whether part of the answer has been printed.
    """
    text = str(error)
    if isinstance(error, APIConnectionError) and base_url.removesuffix("/v1") not in text:
        text = f"{text} ({base_url})"
    if isinstance(error, StreamError):
        text += "\nThe answer above is incomplete." if has_answer else "\nThere is no complete answer."
    elif hint := next((hint for kind, hint in HINTS if isinstance(error, kind)), None):
        text += f"\n{hint}"
    click.secho("error: ", fg="red", bold=True, nl=False, err=True)
    click.echo(text, err=True)


HINTS: tuple[tuple[type[TogetherError], str], ...] = (
    (AuthenticationError, "Check the key in TOGETHER_API_KEY. To try without one: together-async chat --local"),
    (NotFoundError, "Check the names given with --model and --base-url."),
    (APITimeoutError, "The server may be busy: try again."),
    (APIConnectionError, "Check the network, and the address given with --base-url or TOGETHER_BASE_URL."),
)
