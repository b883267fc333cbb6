"""The options of a batch, and the checks of their values."""

from __future__ import annotations

import contextlib
import datetime as dt
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import attrs

from together_async.batch.record import Record
from together_async.retry import Retry
from together_async.timeouts import Timeouts


def _positive(expected: str, kind: type | tuple[type, ...]) -> Any:
    def validate(_: object, field: Any, value: Any) -> None:
        if value is None:
            return
        fits = isinstance(value, kind) and not isinstance(value, bool) and 0 < cast("float", value) < math.inf
        if not fits:
            raise ValueError(f"{field.name}: got {value!r}, expected {expected} above 0, or None for no limit")

    return validate


def _deadline(_: object, field: Any, value: Any) -> None:
    if isinstance(value, dt.datetime):
        try:
            value.timestamp()
        except (OverflowError, ValueError, OSError):
            raise ValueError(f"{field.name}: got the year {value.year}, expected a time that is to come") from None
    elif value is not None and not isinstance(value, dt.timedelta):
        _positive("seconds, a timedelta, a datetime", (int, float))(_, field, value)


def _of(kind: type, expected: str) -> Any:
    def validate(_: object, field: Any, value: Any) -> None:
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{field.name}: got a {type(value).__name__}, expected {expected}, or None")

    return validate


def _function(_: object, field: Any, value: Any) -> None:
    if value is not None and not callable(value):
        raise ValueError(f"{field.name}: got a {type(value).__name__}, expected a function of the record, or None")


@attrs.frozen(kw_only=True)
class BatchOptions:
    """The options of a batch: the keywords of `AsyncTogether.run_batch`, with the same names and defaults.

    Attributes:
        format: The input's format: "jsonl", "text" or "csv". None goes by the suffix of its name.
        template: For text and CSV: the prompt with column names in braces, such as "Summarise: {body}". None uses a
            line of text as it is; a CSV needs a template.
        system: For text and CSV: the system message before each prompt. None sends no system message.
        concurrency: Requests in flight at once, above 0. None leaves it to the client's limits.
        stream: Whether completions are streamed. The output is the same in either case.
        retry_errors: Whether requests that failed in earlier runs are sent again.
        keep_going: Whether invalid input lines become errors in the output. If False, they stop the batch before
            anything is sent.
        prices: Whether the service is asked for its prices, so that progress and summary show the cost.
        max_cost: US dollars that the whole output may cost, earlier runs included, above 0. None sets no limit.
        max_tokens_total: Prompt and completion tokens that the whole output may use, above 0. None sets no limit.
        deadline: When to stop sending requests: seconds from now, a timedelta or a datetime. None sets no deadline.
            Only a datetime depends on how the computer's clock is set.
        report: The HTML page to write at the end. None writes no report.
        on_result: Called in the event loop with the record of each result, once it is on disk. None calls nothing.
        timeouts: Used instead of the client's. None uses the client's.
        retry: Used instead of the client's. None uses the client's, with pauses of up to 900 seconds.
        headers: Sent in addition to the client's headers, or instead of those with the same name. None adds none.

    Raises:
        ValueError: An option is out of its range; the message names it, its value and what is expected.
    """

    format: str | None = None
    template: str | None = attrs.field(default=None, validator=_of(str, "a text"))
    system: str | None = attrs.field(default=None, validator=_of(str, "a text"))
    concurrency: int | None = attrs.field(default=None, validator=_positive("a whole number", int))
    stream: bool = True
    retry_errors: bool = False
    keep_going: bool = False
    prices: bool = False
    max_cost: float | None = attrs.field(default=None, validator=_positive("US dollars", (int, float)))
    max_tokens_total: int | None = attrs.field(default=None, validator=_positive("a whole number of tokens", int))
    deadline: float | dt.timedelta | dt.datetime | None = attrs.field(default=None, validator=_deadline)
    report: Path | None = attrs.field(default=None, validator=_of(Path, "a path"))
    on_result: Callable[[Record], None] | None = attrs.field(default=None, validator=_function)
    timeouts: Timeouts | None = attrs.field(default=None, validator=_of(Timeouts, "Timeouts, as Timeouts(total=120)"))
    retry: Retry | None = attrs.field(default=None, validator=_of(Retry, "a Retry, as Retry(attempts=2)"))
    headers: Mapping[str, str] | None = attrs.field(default=None, validator=_of(Mapping, "a dict"))

    def left_s(self, running_s: float, now: float) -> float | None:
        """Returns the seconds until the deadline, at most 0 if it is over; None if there is no deadline.

        Args:
            running_s: For how many seconds requests have been sent, by a clock that is never set: durations count so.
            now: The time of day in seconds since 1970, which decides about a datetime.
        """
        deadline = self.deadline
        if deadline is None:
            return None
        if isinstance(deadline, dt.datetime):
            return deadline.timestamp() - now
        return (deadline.total_seconds() if isinstance(deadline, dt.timedelta) else deadline) - running_s


# --------------------------------------------------------------------------------------------------------------- files


def check_files(input: Path, output: Path, report: Path | None) -> None:
    """Checks that input, output and report are different files, and that the report may be written.

    Raises:
        ValueError: Two of them are the same file, one has no name, or the report would replace something that is not
            an HTML page.
    """
    paths = {"output": output, "report": report, "output's .superseded": output.with_name(f"{output.name}.superseded")}
    uses = {_identity(input): "input"}
    for name, path in paths.items():
        if path is None:
            continue
        if not path.name:
            raise ValueError(f"{name}: got {str(path)!r}, expected the name of a file")
        other = uses.setdefault(_identity(path), name)
        if other != name:
            raise ValueError(f"{name}: {path} is the {other} itself; name another file")
    if report is None:
        return
    if not report.parent.is_dir():
        raise ValueError(f"report: there is no folder {report.parent}")
    if report.exists() and not _is_html(report):
        raise ValueError(
            f"report: {report} is there, and is no page (HTML) that a report could replace; name another file"
        )


def _is_html(path: Path) -> bool:
    with contextlib.suppress(OSError), path.open("rb") as file:
        start = file.read(20).lower()
        return not start or start.startswith(b"<!doctype html")
    return False


def _identity(path: Path) -> object:
    """Returns a value that is equal for two names of one file."""
    try:
        found = path.stat()
    except OSError:
        return os.path.realpath(path)
    return found.st_dev, found.st_ino
