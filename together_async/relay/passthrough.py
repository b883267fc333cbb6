"""`passthrough`: a stream whose bytes go out as they came in, for proxies."""

from __future__ import annotations

from collections.abc import AsyncIterator

from together_async.calls.stream import ChatCompletionStream
from together_async.errors import StreamAPIError, TogetherError
from together_async.flow.source import READ_ALREADY
from together_async.models import ChatCompletion, Usage


def passthrough(stream: ChatCompletionStream) -> Passthrough:
    """Returns a stream as bytes, unchanged and not decoded, to be relayed or for a loop of your own.

    ```python
    return EventSourceResponse(passthrough(client.stream(messages, model=MODEL)))
    ```

    Limits are settled by its `usage`, a stream that is cut off ends with an `error` event, and retries and timeouts
    hold as for every stream. Only the last bytes are kept for that: a finish reason or an error far from the end is
    passed on unseen. Bytes are passed on in whole events; if the service compresses them, they are decompressed.

    Args:
        stream: What `client.stream(...)` returns, not yet open.

    Raises:
        TypeError: `stream` is something else: only a stream of this package has bytes.
    """
    if not isinstance(stream, ChatCompletionStream):
        raise TypeError(f"stream: got a {type(stream).__name__}, expected what `client.stream(...)` returns")
    return Passthrough(stream)


class Passthrough:
    """A stream as bytes. Made by `passthrough`: an async iterator of bytes, whole events at a time.

    Raises (while reading):
        TogetherError: As every stream does, after all whole events that had come.

    Attributes:
        resumable: False: its events have the service's ids, if any.
        error: The error that the service sent inside the stream, if it ended it; the event itself was passed on.
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
        """Whether the whole answer has been passed on."""
        return self._stream.complete

    @property
    def usage(self) -> Usage | None:
        """The service's count of tokens; None before it has come, or if the service sends none."""
        return self._stream.so_far().usage

    async def open(self) -> None:
        """Sends the request, and returns once the service has begun its response.

        Raises:
            RuntimeError: The stream has been read to its end already.
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
            self.error = error  # the service's own event has been passed on
            return b""
        self._begun = True
        return data

    def leave(self) -> None:
        """Closes the stream, without waiting. Twice is fine."""
        self._stream.leave()

    def resume(self, last_event_id: str) -> None:
        """Does nothing: it can't be resumed (see `resumable`)."""

    async def aclose(self) -> None:
        """Closes the stream."""
        self.leave()

    def end_id(self) -> None:
        """Returns None: an error event that ends it has no id, like those before it."""

    def so_far(self) -> ChatCompletion:
        """Returns what is known of the completion: usage and finish reasons, but not its text."""
        return self._stream.so_far()
