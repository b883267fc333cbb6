"""`together-async batch`: a file of requests in, a file of results out, resumable."""

import datetime as dt
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import click

from together_async.cli.request_options import request_options
from together_async.cli.target import LocalModel, Remote, refuse_with_local, remote

EPILOG = """\
\b
Examples:
  together-async batch in.jsonl -o out.jsonl
  together-async batch prompts.txt -o out.jsonl --model openai/gpt-oss-20b --max-tokens 200
  together-async batch articles.csv -o out.jsonl --template "Summarise: {body}" --report report.html
  together-async batch in.jsonl -o out.jsonl --dry-run       (tokens, cost and time, nothing is sent)
  together-async batch prompts.txt -o out.jsonl --local      (a small model on this machine, no key)

\b
The same command again goes on where it stopped, whatever stopped it: a result counts when it is on disk.
Ctrl-C lets what is under way come and says how to go on; a second one stops at once.

\b
Exit codes:
  0    every request has an answer
  1    some have an error instead (see them in the output; --retry-errors asks again), or nothing could be asked
  2    used wrongly, or the input holds what can't be asked: nothing was sent
  3    stopped before the end: a budget, the deadline, a key or spending limit, a service that is away
  130  interrupted with Ctrl-C
  143  ended by SIGTERM
"""


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


@click.command(epilog=EPILOG, short_help="Ask for all requests of a file; resumable, within limits and budgets.")
@click.argument("input", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="The file of results (JSON lines)."
)
@click.option("--model", metavar="NAME", envvar="TOGETHER_MODEL", show_envvar=True, help="For requests that name none.")
@click.option("--format", type=click.Choice(["jsonl", "text", "csv"]), help="Of the input; else its suffix tells.")
@click.option("--template", metavar="TEXT", help='Makes a prompt of a line: "Summarise: {body}", columns in braces.')
@click.option("--system", metavar="TEXT", help="A system message before each prompt of a text or CSV.")
@click.option(
    "--concurrency", metavar="N", type=click.IntRange(min=1), help="Requests at once; else as the limits say."
)
@click.option("--requests-per-minute", metavar="N", type=click.FloatRange(min=0, min_open=True), help="Of each model.")
@click.option("--tokens-per-minute", metavar="N", type=click.FloatRange(min=0, min_open=True), help="Of each model.")
@click.option("--stream/--no-stream", default=True, help="Whether answers are streamed. Default: they are.")
@click.option("--retry-errors", is_flag=True, help="Ask again what has an error in the output.")
@click.option("--keep-going", is_flag=True, help="Lines that can't be asked become errors in the output.")
@click.option("--max-cost", metavar="USD", type=click.FloatRange(min=0, min_open=True), help="For the whole output.")
@click.option("--max-tokens-total", metavar="N", type=click.IntRange(min=1), help="The same in tokens.")
@click.option("--deadline", type=Deadline(), help="Begin nothing after 90m, 8h30m, or at 07:30.")
@click.option(
    "--report", type=click.Path(dir_okay=False, path_type=Path), help="Write a page (HTML) about how it went."
)
@click.option("--check", is_flag=True, help="Look for lines that can't be asked, and send nothing.")
@click.option("--dry-run", is_flag=True, help="Estimate tokens, cost and time, and send nothing.")
@click.option("--base-url", metavar="URL", envvar="TOGETHER_BASE_URL", show_envvar=True, help="Another server.")
@click.option("--local", is_flag=True, help="Run a small base model on this machine: no key, no network.")
@click.option(
    "--local-model",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Run this GGUF file on this machine (implies --local).",
)
@click.option("-q", "--quiet", is_flag=True, help="Nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Progress and summary as lines of JSON on standard output.")
@request_options
@click.pass_context
def batch(
    ctx: click.Context,
    /,
    input: Path,
    output: Path | None,
    *,
    model: str | None,
    base_url: str | None,
    local: bool,
    local_model: Path | None,
    concurrency: int | None,
    requests_per_minute: float | None,
    tokens_per_minute: float | None,
    check: bool,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    **others: Any,
) -> None:
    """Ask for all requests of the file INPUT, and write the results to the output.

    INPUT holds JSON lines as the Batch API takes them, {"custom_id": ..., "body": {...}}, or a prompt in each line
    (.txt), or columns (.csv, with --template). The key is read from TOGETHER_API_KEY.
    """
    shown = Shown(quiet=quiet, as_json=as_json, check=check, dry_run=dry_run)
    if output is None and not (check or dry_run):
        raise click.UsageError("no output: name one with -o, as -o out.jsonl")
    target: LocalModel | Remote
    if local or local_model is not None:
        refuse_with_local(ctx)
        target = LocalModel(local_model)
    else:
        target = remote(base_url, model or "", needs_key=not (check or dry_run))
    # Not at the top: it loads aiohttp, which --help and wrong options need not wait for.
    from together_async.cli.batch_run import LOCAL_CONCURRENCY, run_batch  # noqa: PLC0415

    if isinstance(target, LocalModel) and concurrency is None:
        concurrency = LOCAL_CONCURRENCY
    limiting = Limiting(
        concurrency=concurrency, requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute
    )
    job = Job(target=target, input=input, output=output, shown=shown, limiting=limiting, others=others)
    ctx.exit(run_batch(job))
