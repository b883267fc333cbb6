"""`together-async batch`: a file of requests in, a file of results out, resumable."""

from pathlib import Path
from typing import Any

import click

from together_async.cli.batch.options import Deadline, Job, LimitOptions, OutputOptions
from together_async.cli.request_options import request_options
from together_async.cli.target import LocalModel, Remote, refuse_with_local, remote

EPILOG = """\
\b
Examples:
  together-async batch in.jsonl -o out.jsonl
  together-async batch prompts.txt -o out.jsonl --model openai/gpt-oss-20b --max-tokens 200
  together-async batch articles.csv -o out.jsonl --template "Summarise: {body}" --report report.html
  together-async batch in.jsonl -o out.jsonl --dry-run       (tokens, cost and time; nothing is sent)
  together-async batch prompts.txt -o out.jsonl --local      (a small model on this machine, no key)

\b
The same command resumes where it stopped, whatever stopped it: a result counts once it is on disk.
Ctrl-C finishes the requests under way and says how to resume; a second Ctrl-C stops at once.

\b
Exit codes:
  0    every request has an answer
  1    some have an error instead (they are in the output; --retry-errors asks again), or nothing could be sent
  2    used wrongly, or the input has lines that can't be sent: nothing was sent
  3    stopped early: a budget, the deadline, a refused key, a spending limit, an unavailable service
  130  interrupted with Ctrl-C
  143  ended by SIGTERM
"""


@click.command(epilog=EPILOG, short_help="Send all requests of a file; resumable, within limits and budgets.")
@click.argument("input", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="The file of results (JSON lines)."
)
@click.option(
    "--model", metavar="NAME", envvar="TOGETHER_MODEL", show_envvar=True, help="For requests that name no model."
)
@click.option(
    "--format", type=click.Choice(["jsonl", "text", "csv"]), help="Format of the input. Default: by its suffix."
)
@click.option("--template", metavar="TEXT", help='Makes a prompt from a line: "Summarise: {body}", columns in braces.')
@click.option("--system", metavar="TEXT", help="A system message before each prompt of a text or CSV file.")
@click.option(
    "--concurrency",
    metavar="N",
    type=click.IntRange(min=1),
    help="Requests at once. Default: as many as the limits allow.",
)
@click.option("--requests-per-minute", metavar="N", type=click.FloatRange(min=0, min_open=True), help="Of each model.")
@click.option("--tokens-per-minute", metavar="N", type=click.FloatRange(min=0, min_open=True), help="Of each model.")
@click.option("--stream/--no-stream", default=True, help="Whether to stream the answers. Default: --stream.")
@click.option("--retry-errors", is_flag=True, help="Ask again for the requests with an error in the output.")
@click.option("--keep-going", is_flag=True, help="Turn lines that can't be sent into errors in the output.")
@click.option(
    "--max-cost", metavar="USD", type=click.FloatRange(min=0, min_open=True), help="Budget for the whole output."
)
@click.option("--max-tokens-total", metavar="N", type=click.IntRange(min=1), help="The same budget in tokens.")
@click.option("--deadline", type=Deadline(), help="Begin no request after 90m, 8h30m, or at 07:30.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write a report (an HTML page).")
@click.option("--check", is_flag=True, help="Look for lines that can't be sent, and send nothing.")
@click.option("--dry-run", is_flag=True, help="Estimate tokens, cost and time, and send nothing.")
@click.option("--base-url", metavar="URL", envvar="TOGETHER_BASE_URL", show_envvar=True, help="Another server.")
@click.option("--local", is_flag=True, help="Run a small base model on this machine: no key, no network.")
@click.option(
    "--local-model",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Run this GGUF file on this machine (implies --local).",
)
@click.option("-q", "--quiet", is_flag=True, help="Print only errors.")
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
    """Send all requests of the file INPUT, and write the results to the output.

    INPUT has JSON lines as the Batch API takes them, {"custom_id": ..., "body": {...}}, or a prompt in each line
    (.txt), or columns (.csv, with --template). The key is read from TOGETHER_API_KEY.
    """
    output_options = OutputOptions(quiet=quiet, as_json=as_json, check=check, dry_run=dry_run)
    if output is None and not (check or dry_run):
        raise click.UsageError("no output: name one with -o, as -o out.jsonl")
    target: LocalModel | Remote
    if local or local_model is not None:
        refuse_with_local(ctx)
        target = LocalModel(local_model)
    else:
        target = remote(base_url, model or "", needs_key=not (check or dry_run))
    from together_async.cli.batch.run import LOCAL_CONCURRENCY, run_batch  # noqa: PLC0415 - loads aiohttp

    if isinstance(target, LocalModel) and concurrency is None:
        concurrency = LOCAL_CONCURRENCY
    limit_options = LimitOptions(
        concurrency=concurrency, requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute
    )
    job = Job(
        target=target,
        input=input,
        output=output,
        output_options=output_options,
        limit_options=limit_options,
        others=others,
    )
    ctx.exit(run_batch(job))
