"""`together-async serve`: the emulator, or the recorder, for other processes and languages and for people."""

from pathlib import Path
from typing import Any

import click

from together_async.cli.serve.options import Address, EmulatorOptions, OutputOptions, RecorderOptions
from together_async.cli.terminal import as_unicode
from together_async.http.connections import DEFAULT_BASE_URL

DEFAULT_PORT = 8123

EPILOG = """\
\b
Examples:
  together-async serve                                       (plausible text, any model, any key)
  together-async serve --say "Hello there!" --tokens-per-second 20
  together-async serve --script replies.py:answer            (a function of the request)
  together-async serve --fault "10% status:429" --fault "model=slow-model drip"
  together-async serve --fault "first=2 status:503" --fault cut:after_token=3,how=close
  together-async serve --record day.jsonl                    (a proxy to Together AI)
  together-async serve --replay day.jsonl --replay-speed 10
  together-async chat --base-url http://127.0.0.1:8123/v1    (in another terminal)

\b
Exit codes:
  0    the reader of the output left
  1    it could not listen, read or write; the message says why
  2    used wrongly: an option that does not fit
  130  stopped with Ctrl-C
  143  stopped with SIGTERM
"""


def show_faults(ctx: click.Context, _: click.Parameter, value: Any) -> None:
    """Print the table of faults and end."""
    if not value or ctx.resilient_parsing:
        return
    from together_async.cli.serve import fault_spec  # noqa: PLC0415 - --help need not wait for the emulator

    click.echo(f"{fault_spec.__doc__}\nFaults:\n")
    for name, arguments, text in fault_spec.table():
        click.echo(click.wrap_text(f"{click.style(name, bold=True)}  {arguments}".rstrip(), 100, "  ", "      "))
        click.echo(click.wrap_text(text, 100, "      ", "      "))
    ctx.exit()


POSITIVE = click.FloatRange(0, min_open=True)
ONLY_EMULATOR = (
    *("say", "script", "replay", "replay_speed", "tokens_per_second", "first_token", "jitter", "seed", "model"),
    *("dialect", "api_key", "fault", "requests_per_minute", "tokens_per_minute"),
)
"""Parameters that the recorder would ignore silently."""
ONLY_RECORDER = ("upstream", "keep_prompts")


@click.command(epilog=EPILOG, short_help="Emulate the API on this machine, or record it.")
@click.option("--host", metavar="ADDRESS", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "-p",
    "--port",
    type=click.IntRange(0, 65535),
    metavar="N",
    default=DEFAULT_PORT,
    show_default=True,
    help="The port; 0 takes a free one.",
)
@click.option("--say", metavar="TEXT", help="What every answer says, instead of generated text.")
@click.option("--script", metavar="FILE.py:NAME", help="A function of the request that returns a text, or a Reply.")
@click.option(
    "--replay",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Answer with a recording (see --record).",
)
@click.option(
    "--replay-speed", metavar="N", type=POSITIVE, help="1: as recorded (default), 10: ten times as fast, inf: at once."
)
@click.option("--tokens-per-second", metavar="N", type=POSITIVE, help="Speed of each answer. Default: all at once.")
@click.option(
    "--first-token", metavar="SECONDS", type=click.FloatRange(0), default=0.0, help="Seconds before the first token."
)
@click.option(
    "--jitter", metavar="0..1", type=click.FloatRange(0, 1), default=0.0, help="How much the gaps between tokens vary."
)
@click.option("--seed", metavar="N", type=int, default=0, help="Another seed: other texts, other random faults.")
@click.option("--model", metavar="NAME", multiple=True, help="Serve only this model (repeatable). Default: any name.")
@click.option("--dialect", metavar="NAME", help="The dialect of --model: together, openai, vllm, llama.cpp, ...")
@click.option("--api-key", metavar="KEY", help="Accept only this key. Default: any key, or none.")
@click.option("--fault", metavar="SPEC", multiple=True, help='A fault to inject (repeatable): "10% status:429".')
@click.option(
    "--list-faults",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=show_faults,
    help="List the faults that a SPEC can name, and exit.",
)
@click.option("--requests-per-minute", metavar="N", type=POSITIVE, help="Limit of each model: beyond it, 429.")
@click.option("--tokens-per-minute", metavar="N", type=POSITIVE, help="Limit of each model, prompt and answer.")
@click.option(
    "--record",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Be a proxy instead, and append the upstream's answers to this file.",
)
@click.option(
    "--upstream", metavar="URL", default=DEFAULT_BASE_URL, show_default=True, help="With --record: the real server."
)
@click.option("--keep-prompts", is_flag=True, help="With --record: record the prompts too (never the keys).")
@click.option("--json", "as_json", is_flag=True, help="Print each request as a line of JSON when it ends.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the base_url, and no line for each request.")
@click.pass_context
def serve(
    ctx: click.Context,
    /,
    say: str | None,
    *,
    host: str,
    port: int,
    record: Path | None,
    upstream: str,
    keep_prompts: bool,
    as_json: bool,
    quiet: bool,
    **emulated: Any,
) -> None:
    """Emulate the API on this machine, as it should be or broken on purpose.

    The server answers POST /v1/chat/completions and GET /v1/models as Together does, without a key. It prints a line
    for each request when the request ends. With --record it forwards requests to a real server and records the answers.
    """
    refuse_together(ctx, ("say", "script", "replay"))
    refuse_without(ctx, "replay_speed", needed="replay")
    refuse_without(ctx, "dialect", needed="model")
    output = OutputOptions(as_json=as_json, quiet=quiet)
    task: EmulatorOptions | RecorderOptions
    if record is not None:
        for name in ONLY_EMULATOR:
            refuse_together(ctx, ("record", name))
        task = RecorderOptions(path=record, upstream=upstream, keep_prompts=keep_prompts)
    else:
        for name in ONLY_RECORDER:
            refuse_without(ctx, name, needed="record")
        models, faults = emulated.pop("model"), emulated.pop("fault")
        say = None if say is None else as_unicode(say)
        task = EmulatorOptions(say=say, models=models, faults=faults, **emulated)
    from together_async.cli.serve.run import run  # noqa: PLC0415 - loads aiohttp and the emulator

    ctx.exit(run(task, Address(host=host, port=port), output))


def is_given(ctx: click.Context, name: str) -> bool:
    """Whether an option was given on the command line."""
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def flag(name: str) -> str:
    """Return the option of a parameter."""
    return "--" + name.replace("_", "-")


def refuse_together(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Refuse options that exclude each other."""
    given = [flag(name) for name in names if is_given(ctx, name)]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} exclude each other")


def refuse_without(ctx: click.Context, name: str, *, needed: str) -> None:
    """Refuse an option that has no meaning without another."""
    if is_given(ctx, name) and not is_given(ctx, needed):
        raise click.UsageError(f"{flag(name)} needs {flag(needed)}")
