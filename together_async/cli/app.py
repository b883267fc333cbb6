"""The table of subcommands; each is imported when it is used, so that no command pays for the others."""

from importlib import import_module
from typing import Any

import click

from together_async._version import __version__
from together_async.cli.terminal import EXIT_DONE, EXIT_INTERRUPTED, discard_output

SUBCOMMANDS = {
    "chat": "together_async.cli.chat.command:chat",
    "batch": "together_async.cli.batch.command:batch",
    "serve": "together_async.cli.serve.command:serve",
}


class LazyGroup(click.Group):
    """A group that finds its commands in `SUBCOMMANDS`, and ends as a Unix command does."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a subcommand. In click, Ctrl-C and a closed pipe would both be exit code 1."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)
        except BrokenPipeError:
            discard_output(1, 2)  # the reader (`| head`) has what it wanted
            ctx.exit(EXIT_DONE)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """List the subcommands in the table's order."""
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import one subcommand."""
        if cmd_name not in SUBCOMMANDS:
            return None
        module, _, attribute = SUBCOMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def app() -> None:
    """Chat completions from Together AI, or from any server that speaks the same protocol."""
