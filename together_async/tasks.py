"""Tasks and who waits for them: what every package that has some shares."""

from __future__ import annotations

import asyncio
from typing import Final

NOT_TO_PASS: Final = (asyncio.CancelledError, StopAsyncIteration, StopIteration)
"""What a loop would take for its own cancellation, or for its end."""


def outcome(task: asyncio.Task[None]) -> BaseException | None:
    """Returns what a task that has ended raised; None too if it was cancelled (see `Task.cancelled`).

    A cancellation that nobody asks for keeps its traceback, and all in it, until the garbage is collected.
    """
    try:
        return task.exception()
    except asyncio.CancelledError:
        return None


def strayed(error: BaseException | None = None) -> RuntimeError:
    """Returns what a reader gets in the place of an error that its loop would misunderstand."""
    if error is None or isinstance(error, asyncio.CancelledError):
        failure = RuntimeError("a task of these results was cancelled, and not by their reader")
    else:
        failure = RuntimeError(f"{type(error).__name__} was raised where nothing of the kind is expected")
    failure.__cause__ = error
    return failure
