"""What every way to make many calls at once is given, and how it tells what became of each."""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field


@dataclass
class Job:
    """One run.

    Attributes:
        how: Which of the client's ways it is.
        texts: The prompts, one for each call.
        requests_per_minute: What the account may use, as far as its owner knows.
        on_begun: Called when all calls have begun, and nothing has been sent yet.
        outcomes: What became of the calls: `ok`, or the name of the error's class.
    """

    base_url: str
    model: str
    how: str
    texts: Sequence[str]
    max_tokens: int
    requests_per_minute: int
    tokens_per_minute: int
    on_begun: Callable[[], None] = lambda: None
    outcomes: Counter[str] = field(default_factory=Counter)
    _begun: int = 0

    async def attempt(self, call: Callable[[str], Awaitable[str | None]], text: str) -> None:
        """Makes one call and notes what became of it. All of them have to be made at once."""
        self._begun += 1
        if self._begun == len(self.texts):
            self.on_begun()
        try:
            answer = await call(text)
        except Exception as error:
            self.outcomes[type(error).__name__] += 1
        else:
            self.outcomes["ok" if answer else "no text"] += 1
