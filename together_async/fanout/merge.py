"""Many streams read as one: `merge`."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, Mapping
from typing import Any, Final, Literal, TypeVar, cast, overload

from together_async.errors import TogetherError
from together_async.fanout.group import Group, Results
from together_async.tasks import Waiter

K = TypeVar("K")
C = TypeVar("C")

_MAX_WAITING: Final = 64
"""Chunks that `merge` keeps for a slow reader; each stream has an equal share, at least one."""


class Merged(Results[tuple[K, C]]):
    """Chunks of many streams as they come, each with the key of its stream. Made by `merge`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._group.task_count} streams>"


class _MergedStream:
    """One of the streams.

    Attributes:
        waiting: How many of its chunks wait for the reader.
        room: Where its task waits while they fill its share.
    """

    __slots__ = ("room", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        self.room = Waiter()


class MergeGroup(Group[tuple[K, C]]):
    """The tasks of one `merge`, one per stream.

    Each stream may have only its share of the waiting chunks, so a fast one cannot starve the others.
    """

    def __init__(self, streams: Mapping[K, AsyncIterable[C]], *, returns_errors: bool) -> None:
        super().__init__()
        self._streams: Mapping[K, AsyncIterable[C]] | None = streams
        self._returns_errors = returns_errors
        self._share = max(1, _MAX_WAITING // max(1, len(streams)))
        self._origins: deque[_MergedStream] = deque()  # of each ready item, in the same order

    def _start(self) -> None:
        streams, self._streams = self._streams or {}, None
        for number, (key, stream) in enumerate(streams.items()):
            self._spawn(self._pump(number, key, stream))

    async def _pump(self, number: int, key: K, stream: AsyncIterable[C]) -> None:
        self._note_begun()
        origin = _MergedStream()
        failure: BaseException | None = None
        try:
            async for chunk in stream:
                if self.stopped:  # the stream swallowed its cancellation
                    break
                self._put(origin, key, chunk)
                while origin.waiting >= self._share:
                    await origin.room.wait()
        except Exception as error:  # noqa: BLE001 - the reader gets it
            if isinstance(error, TogetherError) and self._returns_errors:
                self._put(origin, key, cast("C", error))
            else:
                error.add_note(f"stream {number} of those that are merged, from 0")  # its key may be a prompt
                failure = error
        except BaseException as error:
            self._note_ended(error)
            raise
        self._note_ended(failure)

    def _put(self, origin: _MergedStream, key: K, chunk: C) -> None:
        self._ready.append((key, chunk))
        self._origins.append(origin)
        origin.waiting += 1
        self._reader.wake()

    def _note_taken(self) -> None:
        origin = self._origins.popleft()
        origin.waiting -= 1
        if origin.waiting == self._share // 2:  # it falls by one at a time, so it cannot skip this
            origin.room.wake()


@overload
def merge(streams: Mapping[K, AsyncIterable[C]], *, on_error: Literal["raise"] = "raise") -> Merged[K, C]: ...
@overload
def merge(streams: Mapping[K, AsyncIterable[C]], *, on_error: Literal["return"]) -> Merged[K, C | TogetherError]: ...


def merge(streams: Mapping[K, AsyncIterable[Any]], *, on_error: Literal["raise", "return"] = "raise") -> Merged[K, Any]:
    """Reads many streams at once.

    ```python
    async with merge({model: client.stream(prompt, model=model) for model in models}) as chunks:
        async for model, chunk in chunks: ...
    ```

    Args:
        streams: Streams by a key of yours; a stream that is not open yet is opened by the first read. Any async
            iterable will do, such as a stream's `text()`.
        on_error: "raise" ends all streams with the first error. "return" yields the error in place of a chunk, and the
            other streams go on.

    Returns:
        An async iterator of `(key, chunk)`; the chunks of one stream come in their order. It reads at most 64 chunks
        ahead, an equal share of each stream, at least one.

    Raises:
        ValueError: `on_error` is something else, `streams` is not a mapping of streams, or one stream is in it twice.
        TogetherError (while reading): As the streams raise it.
    """
    if on_error not in ("raise", "return"):
        raise ValueError(f"on_error: got {on_error!r}, expected 'raise' or 'return'")
    if not isinstance(streams, Mapping):
        raise ValueError(
            f"streams: got a {type(streams).__name__}, expected streams by a key of yours, as {{'a': stream}}"
        )
    for stream in streams.values():
        if not isinstance(stream, AsyncIterable):
            raise ValueError(f"streams: got a {type(stream).__name__} among them, expected streams")
    if len({id(stream) for stream in streams.values()}) < len(streams):
        raise ValueError("streams: one of them stands under two keys; a stream is read once")
    return Merged(MergeGroup(streams, returns_errors=on_error == "return"))
