"""What the command's options say, for the session."""

import attrs


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
