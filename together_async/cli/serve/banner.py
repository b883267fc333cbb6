"""What is printed at the start: where the server is, and how to try it."""

import json
import shlex

import click

from together_async.cli.serve.options import Address, EmulatorOptions, RecorderOptions
from together_async.testing import MODELS, EmulatorServer, Recorder

EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}  # noqa: S104 - compared with what the person typed, not bound


def banner(
    server: EmulatorServer | Recorder, task: EmulatorOptions | RecorderOptions, address: Address, *, quiet: bool
) -> str:
    """Return the text for the start; with `quiet` it is the `base_url` alone."""
    base_url = server.base_url
    if address.host in EVERYWHERE:
        base_url = f"http://{EVERYWHERE[address.host]}:{base_url.rpartition(':')[2]}"
    if quiet:
        return base_url
    if isinstance(task, RecorderOptions):
        verb, destination = "Recording", f", what {task.upstream} answers, to {task.path}"
        key, model = "", MODELS[0].id
    else:
        verb, destination = "Emulating", ""
        key = " TOGETHER_API_KEY=..." if task.api_key else " TOGETHER_API_KEY=none"
        model = task.models[0] if task.models else MODELS[0].id
    has_key = isinstance(task, RecorderOptions) or task.api_key
    credentials = '-H "authorization: Bearer $TOGETHER_API_KEY" ' if has_key else ""
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
    return (
        f"{verb} at {click.style(base_url, bold=True)}{destination} (Ctrl-C stops)\n\n"
        f"  export TOGETHER_BASE_URL={base_url}{key}\n"
        f"  curl -N {base_url}/chat/completions {credentials}-H 'content-type: application/json' \\\n"
        f"    -d {shlex.quote(json.dumps(body))}\n"
    )
