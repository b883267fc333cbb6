"""The work that each client is given, and what became of each call."""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Job:
    """One run's work.

    Attributes:
        how: Which of the client's modes to use.
        texts: The prompts, one for each call.
        requests_per_minute, tokens_per_minute: The account's limits, as far as its owner knows them.
        on_begun: Called when all calls have begun and nothing has been sent.
        ca: The file of the authority that signed the server's certificate; None without TLS.
        folder: For files of the run.
        outcomes: Calls by outcome: `ok`, or the name of the error's class.
    """

    base_url: str
    model: str
    how: str
    texts: Sequence[str]
    max_tokens: int
    requests_per_minute: int
    tokens_per_minute: int
    on_begun: Callable[[], None] = lambda: None
    ca: str | None = None
    folder: Path = Path()
    outcomes: Counter[str] = field(default_factory=Counter)
    _begun: int = 0

    async def attempt(self, call: Callable[[str], Awaitable[str | None]], text: str) -> None:
        """Makes one call and counts its outcome. All calls have to be started at once."""
        self._begun += 1
        if self._begun == len(self.texts):
            self.on_begun()
        try:
            answer = await call(text)
        except Exception as error:
            self.outcomes[type(error).__name__] += 1
        else:
            self.outcomes["ok" if answer else "no text"] += 1
