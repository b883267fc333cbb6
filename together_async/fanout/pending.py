"""One request of a `map`: how it is sent, and what is known of it while it is under way."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from together_async.errors import TogetherError
from together_async.fanout.results import MapResult, OnChunk, Timing
from together_async.tasks import CALLBACK_TASK

if TYPE_CHECKING:
    from together_async.calls.call import Call
    from together_async.calls.stream import ChatCompletionStream
    from together_async.models import ChatCompletion
    from together_async.request import ChatCompletionRequest

R = TypeVar("R")


class Requester:
    """How the requests of one `map` are sent: functions of the client.

    Args:
        call: Makes the call of a request.
        whole: Sends a call and returns its completion; None if the answers are streamed.
        stream: Makes the stream of a call.
    """

    __slots__ = ("call", "stream", "whole")

    def __init__(
        self,
        call: Callable[[ChatCompletionRequest], Call],
        whole: Callable[[Call], Coroutine[Any, Any, ChatCompletion]] | None,
        stream: Callable[[Call, ChatCompletionRequest], ChatCompletionStream],
    ) -> None:
        self.call = call
        self.whole = whole
        self.stream = stream


class PendingRequest:
    """What is known so far of a request that is under way.

    Attributes:
        call: Its call; None before it is made.
        callback_error: What `on_chunk` raised; None if nothing.
        completion: Its completion; None without one.
        error: Why it failed; None if it did not.
        first_token_s: As in `Timing`.
    """

    __slots__ = ("call", "callback_error", "completion", "error", "first_token_s")

    def __init__(self) -> None:
        self.call: Call | None = None
        self.callback_error: Exception | None = None
        self.completion: ChatCompletion | None = None
        self.error: TogetherError | ValueError | None = None
        self.first_token_s: float | None = None

    async def read(self, index: int, stream: ChatCompletionStream, on_chunk: OnChunk | None) -> ChatCompletion:
        """Reads a stream to its end and returns its completion."""
        try:
            if on_chunk is None:
                return await stream.completion()
            return await self._read_chunks(index, stream, on_chunk)
        finally:
            self.first_token_s = stream.stats.first_token_s

    async def _read_chunks(self, index: int, stream: ChatCompletionStream, on_chunk: OnChunk) -> ChatCompletion:
        CALLBACK_TASK.set(id(asyncio.current_task()))  # for the rest of this task, whose calls it does not change
        async with stream:
            async for chunk in stream:
                try:
                    returned = on_chunk(index, chunk)
                    if inspect.isawaitable(returned):
                        await returned
                except Exception as error:
                    self.callback_error = error
                    raise
            return await stream.completion()

    def result(self, index: int, request: R, began: float, ended: float) -> MapResult[R]:
        """Returns the result of the request.

        Args:
            index: Its position in the input.
            request: The request as it was given.
            began: When it was read from the input, in seconds of the loop's clock.
            ended: When it ended.
        """
        call = self.call
        sent = began if call is None else ended if call.first_sent_at is None else call.first_sent_at
        return MapResult(
            index,
            request,
            self.completion,
            self.error,
            0 if call is None else call.attempts,
            Timing(sent - began, self.first_token_s, ended - began),
            () if call is None else call.retries,
        )
