"""What the command's options say, for the server."""

from pathlib import Path

import attrs


@attrs.frozen(kw_only=True)
class Address:
    """Where to listen.

    Attributes:
        host: The address.
        port: 0 for a free one.
    """

    host: str
    port: int


@attrs.frozen(kw_only=True)
class Shown:
    """What the command says.

    Attributes:
        as_json: Whether standard output gets a JSON object for each request, and nothing else.
        quiet: Whether nothing is shown but the base_url (and errors).
    """

    as_json: bool
    quiet: bool


@attrs.frozen(kw_only=True)
class Emulated:
    """What the emulator says, how fast, and where it breaks. None is the emulator's default everywhere.

    Attributes:
        say: A text.
        script: A file and the name of a function in it, with a colon between them.
        replay: A recording.
        replay_speed: How many times as fast as it was.
        tokens_per_second: Of each choice's stream.
        first_token: Seconds before it.
        jitter: By how much gaps differ, as a fraction.
        seed: Of all chance.
        models: The only models there are.
        dialect: The name of the shape in which they answer.
        api_key: The only key that is accepted.
        faults: What goes wrong, in words.
        requests_per_minute: The account's, for each model.
        tokens_per_minute: The account's, for each model.
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
class Recorded:
    """What the recorder is to do.

    Attributes:
        path: The file.
        upstream: The server's `base_url`.
        keep_prompts: Whether requests are recorded with their texts.
    """

    path: Path
    upstream: str
    keep_prompts: bool
