"""Many streams read as one: `merge`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, Mapping
from typing import Any, Final, Literal, TypeVar, cast, overload

from together_async.errors import TogetherError
from together_async.fanout.group import Group, Results

K = TypeVar("K")
C = TypeVar("C")

_FULL: Final = 64
"""Chunks that `merge` keeps for a slow reader, each stream its share of them, at least one."""


class Merged(Results[tuple[K, C]]):
    """Chunks of many streams as they come, each with the key of its stream. Made by `merge`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self._group._tasks)} streams>"


class _Lane:
    """One of the streams: how many of its chunks wait, and what it waits for when they are too many."""

    __slots__ = ("room", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        self.room: asyncio.Future[None] | None = None


class _Merging(Group[tuple[K, C]]):
    """Each stream has a share of the room, so that none can take another's."""

    def __init__(self, streams: Mapping[K, AsyncIterable[C]], *, returns: bool) -> None:
        super().__init__()
        self._streams: Mapping[K, AsyncIterable[C]] | None = streams
        self._returns = returns
        self._share = max(1, _FULL // max(1, len(streams)))
        self._lanes: deque[_Lane] = deque()  # of what is ready, in its order

    def _start(self) -> None:
        streams, self._streams = self._streams or {}, None
        for place, (key, stream) in enumerate(streams.items()):
            self._spawn(self._pump(place, key, stream))

    async def _pump(self, place: int, key: K, stream: AsyncIterable[C]) -> None:
        self._begun()
        lane = _Lane()
        failure: BaseException | None = None
        try:
            async for chunk in stream:
                if self.over:  # a stream that did not care for its cancellation
                    break
                self._put(lane, key, chunk)
                while lane.waiting >= self._share:
                    lane.room = asyncio.get_running_loop().create_future()
                    await lane.room
        except Exception as error:  # noqa: BLE001 - the reader gets it
            if isinstance(error, TogetherError) and self._returns:
                self._put(lane, key, cast("C", error))
            else:
                error.add_note(f"stream {place} of those that are merged, from 0")  # keys may be prompts
                failure = error
        except BaseException as error:
            self._ended(error)
            raise
        self._ended(failure)

    def _put(self, lane: _Lane, key: K, chunk: C) -> None:
        self._ready.append((key, chunk))
        self._lanes.append(lane)
        lane.waiting += 1
        self._wake()

    def _taken(self) -> None:
        lane = self._lanes.popleft()
        lane.waiting -= 1
        if lane.room is not None and not lane.room.done() and lane.waiting <= self._share // 2:
            lane.room.set_result(None)


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
        streams: Streams by a key of yours; those that are not open are opened. Their `text()`s will do as well.
        on_error: "raise" ends all streams with the first error; "return" yields the error in a chunk's place, and the
            others go on.

    Returns:
        An async iterator of `(key, chunk)`; of one stream in its order. It reads 64 chunks ahead, each stream
        its share, at least one.

    Raises:
        ValueError: `on_error` is something else, `streams` is no mapping of streams, or has one of them twice.
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
    return Merged(_Merging(streams, returns=on_error == "return"))
