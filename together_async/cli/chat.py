"""`together-async chat`: one answer, or a conversation, streamed to the terminal."""

import os
import sys
from pathlib import Path

import attrs
import click

from together_async.cli.terminal import as_unicode
from together_async.client import DEFAULT_BASE_URL

DEFAULT_MODEL = "meta-llama/Llama-3.3-70B-Instruct-Turbo"

EPILOG = """\
\b
Examples:
  together-async chat "Why is the sky blue?"
  together-async chat "Summarize this:" - < report.txt
  together-async chat --local "Once upon a time"
  together-async chat                    (a conversation: /help inside)

\b
Exit codes:
  0    done (or the reader of the output left)
  1    the API, the connection or the stream failed; what was shown is incomplete
  2    used wrongly: no key, or an option that does not fit
  130  interrupted with Ctrl-C
"""


@attrs.frozen
class ChatOptions:
    """What to ask, and how to show it.

    Attributes:
        system: The system message, or None.
        max_tokens: Where the answer is cut, or None for the server's limit.
        temperature: 0 to 2, or None for the server's default.
        as_json: Whether standard output gets one JSON object for each chunk.
        quiet: Whether standard error gets nothing but errors.
    """

    system: str | None
    max_tokens: int | None
    temperature: float | None
    as_json: bool
    quiet: bool


@attrs.frozen
class LocalModel:
    """A model to run here, in place of a server to call.

    Attributes:
        path: A GGUF file, or None for the one that the extra `local` brings.
    """

    path: Path | None


@attrs.frozen
class Remote:
    """A server to call.

    Attributes:
        base_url: Its address, ending in `/v1`.
        api_key: The key it gets.
        model: The model's name, as the server knows it.
        stop: Texts that end an answer of this model, where it can't tell by itself.
    """

    base_url: str
    api_key: str = attrs.field(repr=False)
    model: str
    stop: tuple[str, ...] | None = None


@click.command(epilog=EPILOG, short_help="Ask once, or talk: the answer streams as it is written.")
@click.argument("prompt", nargs=-1)
@click.option("--model", metavar="NAME", envvar="TOGETHER_MODEL", show_envvar=True, help=f"Default: {DEFAULT_MODEL}")
@click.option("--system", metavar="TEXT", help="System message, before everything else.")
@click.option("--max-tokens", metavar="N", type=click.IntRange(min=1), help="Tokens after which the answer is cut.")
@click.option(
    "--temperature", metavar="0..2", type=click.FloatRange(0, 2), help="0 picks the likeliest token, 2 nearly any."
)
@click.option("--json", "as_json", is_flag=True, help="Print each chunk as a line of JSON instead of the text.")
@click.option(
    "--base-url",
    metavar="URL",
    envvar="TOGETHER_BASE_URL",
    show_envvar=True,
    help="Another server of the same protocol.",
)
@click.option("--local", is_flag=True, help="Run a small base model on this machine: no key, no network.")
@click.option(
    "--local-model",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Run this GGUF file on this machine (implies --local).",
)
@click.option("-q", "--quiet", is_flag=True, help="No closing line with timings and usage.")
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

    The PROMPT is the arguments joined; "-" among them stands for standard input. Without one it is read from standard
    input, and if that is a terminal, a conversation begins. The key is read from TOGETHER_API_KEY.
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
    # Not at the top: it loads aiohttp, which --help and wrong options need not wait for.
    from together_async.cli.session import converse, once  # noqa: PLC0415

    ctx.exit(converse(target, options) if question is None else once(target, options, question))


def refuse_with_local(ctx: click.Context) -> None:
    """Refuse options which a local model would silently ignore; variables, set for other calls, are ignored."""
    for name in ("model", "base_url"):
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            flag = "--" + name.replace("_", "-")
            raise click.UsageError(
                f"{flag} and --local exclude each other: --local runs its own server and model "
                "(choose a file with --local-model)."
            )


def remote(base_url: str | None, model: str) -> Remote:
    """Find the address and the key.

    Args:
        base_url: From the option or its variable; None or an empty string for Together AI.
        model: The model to ask for.

    Raises:
        click.UsageError: Together AI is to be called and there is no key.
    """
    base_url = (base_url or DEFAULT_BASE_URL).rstrip("/")
    if not base_url.startswith(("http://", "https://")):
        raise click.UsageError(f"--base-url: got {base_url!r}, expected http://... or https://..., ending in /v1")
    api_key = os.environ.get("TOGETHER_API_KEY", "").strip()
    if not api_key and base_url == DEFAULT_BASE_URL:
        raise click.UsageError(
            "no API key: the variable TOGETHER_API_KEY is not set.\n"
            "  export TOGETHER_API_KEY=...       with a key from your Together AI account, or\n"
            "  together-async chat --local ...   a small model on this machine, without a key"
        )
    return Remote(base_url, api_key or "none", model)  # other servers want any key, or none at all


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
