"""Many streams read as one: `merge`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Mapping
from typing import Final, Literal, TypeVar, cast

from together_async.errors import TogetherError
from together_async.group import Group, Results

K = TypeVar("K")
C = TypeVar("C")

_FULL: Final = 64
"""Chunks that `merge` keeps for a slow reader before it stops reading; it goes on at half of it."""


class Merged(Results[tuple[K, C]]):
    """Chunks of many streams as they come, each with the key of its stream. Made by `merge`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self._group._tasks)} streams>"


class _Merging(Group[tuple[K, C]]):
    def __init__(self, streams: Mapping[K, AsyncIterable[C]], *, returns: bool) -> None:
        super().__init__()
        self._streams: Mapping[K, AsyncIterable[C]] | None = streams
        self._returns = returns
        self._room: asyncio.Future[None] | None = None

    def _start(self) -> None:
        streams, self._streams = self._streams or {}, None
        for place, (key, stream) in enumerate(streams.items()):
            self._spawn(self._pump(place, key, stream))

    async def _pump(self, place: int, key: K, stream: AsyncIterable[C]) -> None:
        self._begun()
        ready = self._ready
        failure: BaseException | None = None
        try:
            async for chunk in stream:
                ready.append((key, chunk))
                self._wake()
                while len(ready) >= _FULL:
                    if self._room is None or self._room.done():
                        self._room = asyncio.get_running_loop().create_future()
                    await asyncio.shield(self._room)
        except Exception as error:  # noqa: BLE001 - the reader gets it
            if isinstance(error, TogetherError) and self._returns:
                ready.append((key, cast("C", error)))
            else:
                error.add_note(f"stream {place} of those that are merged, from 0")  # keys may be prompts
                failure = error
        except BaseException as error:
            self._ended(error)
            raise
        self._ended(failure)
        self._wake()

    def _taken(self) -> None:
        if self._room is not None and not self._room.done() and len(self._ready) <= _FULL // 2:
            self._room.set_result(None)


def merge(streams: Mapping[K, AsyncIterable[C]], *, on_error: Literal["raise", "return"] = "raise") -> Merged[K, C]:
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
        An async iterator of `(key, chunk)`; of one stream in its order. It reads 64 chunks ahead, and one of each.

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
