"""`together-async chat`: one answer, or a conversation, streamed to the terminal."""

import sys
from pathlib import Path

import click

from together_async.cli.chat.options import ChatOptions
from together_async.cli.target import DEFAULT_MODEL, LocalModel, Remote, refuse_with_local, remote
from together_async.cli.terminal import as_unicode

EPILOG = """\
\b
Examples:
  together-async chat "Why is the sky blue?"
  together-async chat "Summarize this:" - < report.txt
  together-async chat --local "Once upon a time"
  together-async chat                    (a conversation: /help inside)

\b
Exit codes:
  0    done, or the reader of the output left
  1    the API, the connection or the stream failed; the answer shown is incomplete
  2    used wrongly: no key, or an option that does not fit
  130  interrupted with Ctrl-C
"""


@click.command(epilog=EPILOG, short_help="Ask once, or hold a conversation: answers stream as they are written.")
@click.argument("prompt", nargs=-1)
@click.option("--model", metavar="NAME", envvar="TOGETHER_MODEL", show_envvar=True, help=f"Default: {DEFAULT_MODEL}")
@click.option("--system", metavar="TEXT", help="System message, before everything else.")
@click.option("--max-tokens", metavar="N", type=click.IntRange(min=1), help="Cut the answer after this many tokens.")
@click.option(
    "--temperature", metavar="0..2", type=click.FloatRange(0, 2), help="0 picks the likeliest token, 2 nearly any."
)
@click.option("--json", "as_json", is_flag=True, help="Print each chunk as a line of JSON instead of the text.")
@click.option(
    "--base-url",
    metavar="URL",
    envvar="TOGETHER_BASE_URL",
    show_envvar=True,
    help="Another server that speaks the same protocol.",
)
@click.option("--local", is_flag=True, help="Run a small base model on this machine: no key, no network.")
@click.option(
    "--local-model",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Run this GGUF file on this machine (implies --local).",
)
@click.option("-q", "--quiet", is_flag=True, help="Print no closing line with timings and usage.")
@click.pass_context
def chat(
    ctx: click.Context,
    prompt: tuple[str, ...],
    model: str | None,
    base_url: str | None,
    local_model: Path | None,
    *,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    as_json: bool,
    local: bool,
    quiet: bool,
) -> None:
    """Ask a model and stream its answer.

    PROMPT is all arguments, joined; "-" among them stands for standard input. Without PROMPT it is read from standard
    input; if that is a terminal, a conversation begins. The key is read from TOGETHER_API_KEY.
    """
    target: LocalModel | Remote
    if local or local_model is not None:
        refuse_with_local(ctx)
        target = LocalModel(local_model)
    else:
        target = remote(base_url, model or DEFAULT_MODEL)
    options = ChatOptions(
        system=None if system is None else as_unicode(system),
        max_tokens=max_tokens,
        temperature=temperature,
        as_json=as_json,
        quiet=quiet,
    )
    question = None if not prompt and sys.stdin.isatty() else read_prompt(prompt)
    from together_async.cli.chat.conversation import answer_once, converse  # noqa: PLC0415 - loads aiohttp

    ctx.exit(converse(target, options) if question is None else answer_once(target, options, question))


def read_prompt(words: tuple[str, ...]) -> str:
    """Join the arguments; `-`, or no argument at all, stands for the text on standard input.

    Raises:
        click.UsageError: Nothing is left to ask.
    """
    words = words or ("-",)
    if "-" in words:
        at = words.index("-")
        text = sys.stdin.buffer.read().decode("utf-8", "replace").strip()
        parts = (" ".join(words[:at]), text, " ".join(words[at + 1 :]))
        prompt = "\n\n".join(part for part in parts if part)
    else:
        prompt = " ".join(words)
    prompt = as_unicode(prompt)
    if not prompt.strip():
        raise click.UsageError("the prompt is empty")
    return prompt
