"""What the command's options say, checked, for the run and its display."""

import datetime as dt
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import click

from together_async.cli.target import LocalModel, Remote


@attrs.frozen(kw_only=True)
class Shown:
    """How the command tells what it does.

    Attributes:
        quiet: Nothing but errors.
        as_json: Lines of JSON on standard output, for a program.
        check: Only look at the input.
        dry_run: Only estimate.
    """

    quiet: bool
    as_json: bool
    check: bool
    dry_run: bool


@attrs.frozen(kw_only=True)
class Limiting:
    """What the person says about the limits.

    Attributes:
        concurrency: Requests under way at once, or None.
        requests_per_minute: Or None for what the service tells.
        tokens_per_minute: The same.
    """

    concurrency: int | None
    requests_per_minute: float | None
    tokens_per_minute: float | None


@attrs.frozen(kw_only=True)
class Job:
    """What the person asks for.

    Attributes:
        target: Who answers.
        input: The file of requests.
        output: The file of results; None where nothing is asked.
        shown: How it is told, and whether anything is asked at all.
        limiting: What the person says about the limits.
        others: The other options: fields of `BatchOptions` and of a request.
    """

    target: LocalModel | Remote
    input: Path
    output: Path | None
    shown: Shown
    limiting: Limiting
    others: Mapping[str, Any]


class Deadline(click.ParamType):  # type: ignore[type-arg]  # generic in new versions of click alone
    """When to begin nothing more: `90m`, `8h30m`, `07:30`, or a date with a time."""

    name = "when"
    _SPAN = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read it."""
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
