"""`passthrough`: a stream for a proxy, whose bytes go out as they came in."""

from __future__ import annotations

from collections.abc import AsyncIterator

from together_async.calls.stream import ChatCompletionStream
from together_async.errors import StreamAPIError, TogetherError
from together_async.flow.source import READ_ALREADY
from together_async.models import ChatCompletion, Usage


def passthrough(stream: ChatCompletionStream) -> Passthrough:
    """Returns a stream as its bytes, unchanged and not decoded, for any of the relay's doors or for a loop of yours.

    ```python
    return EventSourceResponse(passthrough(client.stream(messages, model=MODEL)))
    ```

    Whether it is complete, what it cost and what went wrong is known all the same: limits are settled by `usage`, a
    stream that is cut off ends with an event that says so, retries and timeouts hold as for every stream. (What is kept
    for that is the end of the stream; a finish reason or an error far from there is passed on and not seen.) Bytes are
    passed on in whole events; where the service compresses, they are what was compressed.

    Args:
        stream: What `client.stream(...)` returns, not yet open.

    Raises:
        TypeError: It is something else: only a stream of this package has bytes.
    """
    if not isinstance(stream, ChatCompletionStream):
        raise TypeError(f"stream: got a {type(stream).__name__}, expected what `client.stream(...)` returns")
    return Passthrough(stream)


class Passthrough:
    """A stream as bytes. Made by `passthrough`: an async iterator of bytes, whole events at a time.

    Raises (while reading):
        TogetherError: As every stream does; after all whole events that had come, if any of them were passed on before.
    """

    __slots__ = ("_begun", "_raw", "_stream", "error", "resumable")

    def __init__(self, stream: ChatCompletionStream) -> None:
        self._stream = stream
        self._raw: AsyncIterator[bytes] | None = None
        self._begun = False
        self.resumable = False
        self.error: TogetherError | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._stream!r}>"

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._stream.raw()

    @property
    def complete(self) -> bool:
        """Whether all of the answer has been passed on."""
        return self._stream.complete

    @property
    def usage(self) -> Usage | None:
        """What the service counted, once it has come."""
        return self._stream.so_far().usage

    async def open(self) -> None:
        """Asks for the first response.

        Raises:
            RuntimeError: The stream is at its end: somebody has read it.
        """
        if self._stream.complete:
            raise RuntimeError(READ_ALREADY)
        await self._stream.__aenter__()
        self._raw = self._stream.raw()

    async def next(self) -> bytes:
        """Returns the next whole events; empty at the end."""
        if self._raw is None:
            await self.open()
        assert self._raw is not None  # noqa: S101 - just opened
        try:
            data = await anext(self._raw)
        except StopAsyncIteration:
            return b""
        except StreamAPIError as error:
            if not self._begun:
                raise
            self.error = error  # the service's own words about it have been passed on
            return b""
        self._begun = True
        return data

    def leave(self) -> None:
        """Closes the stream."""
        self._stream.leave()

    def resume(self, last_event_id: str) -> None:
        """There is nothing to resume from: its events have the service's ids, if any."""

    async def aclose(self) -> None:
        """Closes the stream."""
        self.leave()

    def end_id(self) -> None:
        """An event that ends it has no id: those before have none of ours."""

    def so_far(self) -> ChatCompletion:
        """Returns what is known of the completion: usage and finish reasons, and not its text."""
        return self._stream.so_far()
