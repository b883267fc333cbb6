"""The command's options, checked, for the run."""

from pathlib import Path

import attrs


@attrs.frozen(kw_only=True)
class Address:
    """Where to listen.

    Attributes:
        host: The address.
        port: The port; 0 for a free one.
    """

    host: str
    port: int


@attrs.frozen(kw_only=True)
class OutputOptions:
    """What the command prints.

    Attributes:
        as_json: Whether standard output gets only a JSON object for each request.
        quiet: Whether only the base_url and errors are printed.
    """

    as_json: bool
    quiet: bool


@attrs.frozen(kw_only=True)
class EmulatorOptions:
    """What the emulator answers, how fast, and where it breaks. None stands for the emulator's default.

    Attributes:
        say: The text of every answer.
        script: A file and the name of a function in it, separated by a colon.
        replay: A recording to answer with.
        replay_speed: How many times as fast as recorded.
        tokens_per_second: The speed of each choice's stream.
        first_token: Seconds before the first token.
        jitter: By how much gaps differ, as a fraction.
        seed: The seed of everything random.
        models: The only models that exist; empty for any name.
        dialect: The name of the dialect in which they answer.
        api_key: The only key that is accepted; None for any.
        faults: The faults, as `--fault` takes them.
        requests_per_minute: The account's limit for each model.
        tokens_per_minute: The account's limit for each model.
    """

    say: str | None
    script: str | None
    replay: Path | None
    replay_speed: float | None
    tokens_per_second: float | None
    first_token: float
    jitter: float
    seed: int
    models: tuple[str, ...]
    dialect: str | None
    api_key: str | None = attrs.field(repr=False)
    faults: tuple[str, ...]
    requests_per_minute: float | None
    tokens_per_minute: float | None


@attrs.frozen(kw_only=True)
class RecorderOptions:
    """What the recorder does.

    Attributes:
        path: The file to append to.
        upstream: The server's `base_url`.
        keep_prompts: Whether requests are recorded with their texts.
    """

    path: Path
    upstream: str
    keep_prompts: bool
