"""What a fault case is. Data only.

A case is one streamed chat completion from the emulator. The user's message is the case's name, by which the emulator
finds what to do; the model's name is the name of the dialect. One rule decides what is right, for every client:

    COMPLETE   the whole answer reached the client: the loop has to end without an error, with exactly this answer
    ERROR      it did not, or the server reported a failure: the loop has to end with an error of the client's own tree
    EITHER     the protocol leaves it open, or reasonable people differ (the case says why): both are right

and always: within the deadline, and without text that the model did not produce.
"""

from dataclasses import dataclass, field
from typing import Any

from together_async.testing import (
    TOGETHER,
    Dialect,
    Reply,
)

COMPLETE, ERROR, EITHER = "complete", "error", "either"
TOKENS = (" The", " sky", " is", " blue", ":", " schön", " 日本", " 😀", " so", ".")
TEXT = "".join(TOKENS)
TOKEN = 5
"""The token at which most things happen."""


@dataclass(frozen=True, slots=True)
class Truth:
    """One choice of the answer."""

    text: str = TEXT
    reason: str = "stop"
    calls: tuple[tuple[str, str], ...] = ()
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """What the server does, and what is right then.

    Attributes:
        name: Unique; begins with its group.
        faults: What the emulator does to the response (any `Rule`).
        right: COMPLETE, ERROR or EITHER.
        ours: The exact class that this library promises, which is asked of this library alone; empty when it has to
            complete. Several, separated by `|`, where it depends on how the network splits the bytes, or where the
            layers below do not report the difference.
        script: What the emulated model says.
        truth: The answer of each choice.
        options: Options of the request.
        status: The HTTP status an error has to carry, 0 for none.
        other_text: Another text that is right.
        any_reason: The finish reason is not on the protocol's list, so clients may rename it.
        streams: How many streams the client reads, one after the other; the last counts.
        url: A place other than the emulator: `refused`, `unresolvable`, `silent` (accepted, never read), `tls`.
        flood: The case keeps a core busy, so it runs alone.
        limit: Why this library may raise another error here. The comparison still counts that as wrong; the soak counts
            it separately.
    """

    name: str
    faults: Any = None
    right: str = COMPLETE
    ours: str = ""
    script: Any = Reply(TOKENS)  # noqa: RUF009 - Reply is frozen
    truth: tuple[Truth, ...] = (Truth(),)
    dialect: Dialect = TOGETHER
    options: dict[str, Any] = field(default_factory=dict)
    status: int = 0
    other_text: str = ""
    any_reason: bool = False
    streams: int = 1
    url: str = ""
    flood: bool = False
    limit: str = ""

    @property
    def group(self) -> str:
        return self.name.partition(":")[0]
