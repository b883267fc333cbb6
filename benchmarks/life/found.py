"""What a long life finds wrong, put together by what it is, with an example of each."""

import collections
import re
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Found:
    """What has come up so far. It may be written to from any thread, inside of a garbage collection too.

    Attributes:
        ended: How calls ended: the class of their error, or "right".
        wrong: What is wrong, and how often.
        examples: The first of each, with what is known about it.
        waiting: What was reported and is not in `wrong` yet.
    """

    ended: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    waiting: collections.deque[tuple[str, str]] = field(default_factory=collections.deque)

    def note(self, what: str, example: str = "") -> None:
        self.waiting.append((re.sub(r" at 0x[0-9a-f]+|Task-[0-9]+", "", what), example))

    def note_error(self, error: BaseException, example: str) -> None:
        """Notes an error that nobody expects."""
        self.note(f"{described(error)}", f"{example}\n{''.join(traceback.format_exception(error))[-4000:]}")

    def total(self) -> int:
        """How many things are wrong so far."""
        while self.waiting:
            what, example = self.waiting.popleft()
            self.wrong[what] += 1
            self.examples.setdefault(what, example)
        return self.wrong.total()


def described(error: BaseException) -> str:
    """An error in one line, with the place that raised it; equal for errors that are alike."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].name}" if frames else ""
    return f"{type(error).__name__}: {str(error)[:100]}{place}"


def awaited(coroutine: Any) -> str:
    """Where a suspended coroutine waits: the functions from the outermost to the innermost."""
    places = []
    while (frame := getattr(coroutine, "cr_frame", None) or getattr(coroutine, "ag_frame", None)) is not None:
        places.append(f"{frame.f_code.co_qualname}:{frame.f_lineno}")
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "ag_await", None)
    return " > ".join([*places, type(coroutine).__name__])
