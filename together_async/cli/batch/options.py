"""The command's options, checked, for the run and its display."""

import datetime as dt
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import click

from together_async.cli.target import LocalModel, Remote


@attrs.frozen(kw_only=True)
class OutputOptions:
    """What the command prints, and whether it sends anything.

    Attributes:
        quiet: Whether only errors are printed.
        as_json: Whether standard output gets lines of JSON, for a program.
        check: Whether only the input is checked.
        dry_run: Whether only an estimate is made.
    """

    quiet: bool
    as_json: bool
    check: bool
    dry_run: bool


@attrs.frozen(kw_only=True)
class LimitOptions:
    """Limits that the person sets.

    Attributes:
        concurrency: Requests under way at once; None for the client's own limits.
        requests_per_minute: Of each model; None for what the service reports.
        tokens_per_minute: Of each model; None for what the service reports.
    """

    concurrency: int | None
    requests_per_minute: float | None
    tokens_per_minute: float | None


@attrs.frozen(kw_only=True)
class Job:
    """A batch to run.

    Attributes:
        target: The server or local model that answers.
        input: The file of requests.
        output: The file of results; None if nothing is sent.
        output_options: What is printed, and whether anything is sent.
        limit_options: Limits that the person sets.
        others: The other options: fields of `BatchOptions` and of a request.
    """

    target: LocalModel | Remote
    input: Path
    output: Path | None
    output_options: OutputOptions
    limit_options: LimitOptions
    others: Mapping[str, Any]


class Deadline(click.ParamType):  # type: ignore[type-arg]  # generic only in new versions of click
    """When to stop beginning requests: `90m`, `8h30m`, `07:30`, or a date with a time."""

    name = "when"
    _SPAN = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Turn the text into a span or a time; anything else but text is left as it is."""
        if not isinstance(value, str):
            return value
        if value and (span := self._SPAN.fullmatch(value)):
            days, hours, minutes, seconds = (int(part or 0) for part in span.groups())
            return dt.timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        now = dt.datetime.now().astimezone()
        try:
            if re.fullmatch(r"\d{1,2}:\d{2}", value):
                hour, minute = map(int, value.split(":"))
                at = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
                return at if at > now else at + dt.timedelta(days=1)
            return dt.datetime.fromisoformat(value).astimezone()
        except ValueError:
            self.fail(f"got {value!r}, expected 90m, 8h30m, 07:30 or 2026-05-01T07:30", param, ctx)
