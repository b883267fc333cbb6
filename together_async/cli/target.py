"""Where answers come from: a server with a key, or a model on this machine."""

import os
from pathlib import Path

import attrs
import click

from together_async.http.connections import DEFAULT_BASE_URL

DEFAULT_MODEL = "meta-llama/Llama-3.3-70B-Instruct-Turbo"


@attrs.frozen
class LocalModel:
    """A model to run here, in place of a server to call.

    Attributes:
        path: A GGUF file; None for the model of the extra `local`.
    """

    path: Path | None


@attrs.frozen
class Remote:
    """A server to call.

    Attributes:
        base_url: Its address, ending in `/v1`.
        api_key: The key to send.
        model: The model's name, as the server knows it.
        stop: Texts that end an answer, for a model that does not end it by itself; None for no such text.
    """

    base_url: str
    api_key: str = attrs.field(repr=False)
    model: str
    stop: tuple[str, ...] | None = None


def refuse_with_local(ctx: click.Context) -> None:
    """Refuse options that a local model would ignore silently; environment variables may stay set."""
    for name in ("model", "base_url"):
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            flag = "--" + name.replace("_", "-")
            raise click.UsageError(
                f"{flag} and --local exclude each other: --local runs its own server and model "
                "(choose a file with --local-model)."
            )


def remote(base_url: str | None, model: str, *, needs_key: bool = True) -> Remote:
    """Return the server of the options and the environment.

    Args:
        base_url: From the option or its variable; None or empty for Together AI.
        model: The model to ask for.
        needs_key: Whether any request is going to be sent.

    Raises:
        click.UsageError: The address is not a URL, or Together AI is to be called without a key.
    """
    base_url = (base_url or DEFAULT_BASE_URL).rstrip("/")
    if not base_url.startswith(("http://", "https://")):
        raise click.UsageError(f"--base-url: got {base_url!r}, expected http://... or https://..., ending in /v1")
    api_key = os.environ.get("TOGETHER_API_KEY", "").strip()
    if needs_key and not api_key and base_url == DEFAULT_BASE_URL:
        raise click.UsageError(
            "no API key: the variable TOGETHER_API_KEY is not set.\n"
            "  export TOGETHER_API_KEY=...       with a key from your Together AI account, or\n"
            f"  {click.get_current_context().command_path} --local ...   a small model on this machine, without a key"
        )
    return Remote(base_url, api_key or "none", model)  # other servers accept any key, or none
