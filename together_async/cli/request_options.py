"""Options for the fields of a request, from tables."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

NUMBERS: Mapping[str, tuple[Any, str]] = {
    "max_tokens": (click.INT, "Cut the answer after this many tokens."),
    "temperature": (click.FLOAT, "0 picks the likeliest token."),
    "top_p": (click.FLOAT, "Nucleus sampling, 0 to 1."),
    "top_k": (click.INT, "Sample among this many of the likeliest tokens."),
    "min_p": (click.FLOAT, "Least probability, relative to the likeliest token's."),
    "repetition_penalty": (click.FLOAT, "Above 1 discourages repetition."),
    "presence_penalty": (click.FLOAT, "-2 to 2."),
    "frequency_penalty": (click.FLOAT, "-2 to 2."),
    "logprobs": (click.INT, "How many of the likeliest tokens to report, 0 to 20."),
    "n": (click.INT, "Answers for each request, 1 to 128."),
    "seed": (click.INT, "Seed for repeatable sampling."),
}
TEXTS: Mapping[str, str] = {
    "safety_model": "Name of a moderation model.",
    "context_length_exceeded_behavior": "error or truncate.",
    "reasoning_effort": "low, medium, high, or another value that the model knows.",
    "compliance": "The service's compliance mode.",
    "prompt_cache_key": "Groups requests with a common prefix.",
}
FLAGS: Mapping[str, str] = {
    "echo": "Also return the prompt.",
    "parallel_tool_calls": "Whether several tools may be called at once.",
}
OBJECTS: Mapping[str, str] = {
    "response_format": 'As {"type": "json_object"}.',
    "tools": "Functions that the model may call, a list.",
    "tool_choice": '"auto", "required", "none" (in quotes), or an object.',
    "logit_bias": "Biases by token id.",
    "reasoning": 'As {"enabled": false}.',
    "chat_template_kwargs": "Passed to the model's chat template.",
    "stream_options": "Options of a stream.",
    "extra_body": "Anything else, merged into the body.",
}


class JSONType(click.ParamType):  # type: ignore[type-arg]  # generic only in new versions of click
    """A JSON value, or `@FILE` with one."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the text, or the file that it names."""
        if not isinstance(value, str):
            return value
        try:
            return json.loads(Path(value[1:]).read_text("utf-8") if value.startswith("@") else value)
        except (OSError, UnicodeDecodeError) as error:
            self.fail(f"{value}: {error}", param, ctx)
        except ValueError as error:
            self.fail(f"not JSON ({error}); expected a value, or @FILE with one", param, ctx)


def request_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command."""
    options = [
        *(click.option(_flag(name), type=kind, metavar="N", help=text) for name, (kind, text) in NUMBERS.items()),
        click.option("--stop", multiple=True, metavar="TEXT", help="A text that ends the answer; may be repeated."),
        *(click.option(_flag(name), metavar="TEXT", help=text) for name, text in TEXTS.items()),
        *(
            click.option(_flag(name) + "/--no-" + _flag(name)[2:], default=None, help=text)
            for name, text in FLAGS.items()
        ),
        *(click.option(_flag(name), type=JSONType(), metavar="JSON", help=text) for name, text in OBJECTS.items()),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
