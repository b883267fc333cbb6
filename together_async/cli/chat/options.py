"""The command's options, checked, for the session."""

import attrs


@attrs.frozen
class ChatOptions:
    """How to ask, and how to show the answer.

    Attributes:
        system: The system message, or None.
        max_tokens: The most tokens of an answer; None for the server's limit.
        temperature: 0 to 2, or None for the server's default.
        as_json: Whether standard output gets one JSON object for each chunk.
        quiet: Whether standard error gets only errors.
    """

    system: str | None
    max_tokens: int | None
    temperature: float | None
    as_json: bool
    quiet: bool
