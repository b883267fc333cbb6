"""Whatever Python reports beside the errors that are raised: warnings, logs, errors of finalizers and threads."""

import contextlib
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator


class _LogCollector(logging.Handler):
    """Passes on what is logged as a warning or worse."""

    def __init__(self, note: Callable[[str], None], expected: tuple[str, ...]) -> None:
        super().__init__(logging.WARNING)
        self._note = note
        self._expected = expected

    def emit(self, record: logging.LogRecord) -> None:
        if record.name not in self._expected:
            self._note(f"log: {record.getMessage()}")


@contextlib.contextmanager
def collected(
    note: Callable[[str], None], *, expected_logs: tuple[str, ...] = (), expected_warnings: tuple[str, ...] = ()
) -> Iterator[None]:
    """Calls `note` with everything that Python reports in the block.

    Args:
        note: Called with one line, in any thread, also inside of a garbage collection.
        expected_logs: Loggers whose warnings are part of the work.
        expected_warnings: Beginnings of warnings that are part of the work, also where they are errors in a finalizer.
    """

    def unraisable(facts: "sys.UnraisableHookArgs") -> None:
        if not (isinstance(facts.exc_value, Warning) and str(facts.exc_value).startswith(expected_warnings or "\0")):
            note(f"unraisable: {facts.exc_value!r} in {facts.object!r}")

    def show(message: Warning | str, *_: object) -> None:
        if not str(message).startswith(expected_warnings or "\0"):
            note(f"warning: {message}")

    before = sys.unraisablehook, warnings.showwarning, threading.excepthook
    sys.unraisablehook = unraisable
    warnings.showwarning = show  # type: ignore[assignment]  # it leaves out what it has no use for
    threading.excepthook = lambda facts: note(f"thread: {facts.exc_value!r}")
    listener = _LogCollector(note, expected_logs)
    logging.getLogger().addHandler(listener)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(listener)
        sys.unraisablehook, warnings.showwarning, threading.excepthook = before
