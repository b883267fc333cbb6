"""`sse`: a stream as an async iterator of bytes, for every framework that can send one."""

from __future__ import annotations

from collections.abc import AsyncIterator

from together_async.relay.browser_errors import CANNOT_RESUME, AllReadError
from together_async.relay.events import Format
from together_async.relay.feed import Feed, Relayed, feed_of
from together_async.relay.session import DEFAULT_HEARTBEAT, OnEnd, RelaySession, check_times, finish_unsent
from together_async.relay.shutdown import DEFAULT_GRACE


def sse(
    stream: Relayed,
    *,
    format: Format = "chunks",
    ids: bool = True,
    last_event_id: str | None = None,
    heartbeat: float | None = DEFAULT_HEARTBEAT,
    grace: float = DEFAULT_GRACE,
    on_end: OnEnd | None = None,
) -> AsyncIterator[bytes]:
    """Returns an iterator of a stream's server-sent events, as bytes; events that come together are one piece.

    ```python
    return Response(sse(client.stream(messages, model=MODEL)), headers=relay.HEADERS)
    ```

    An error becomes the last event, of type `error`; to get a status instead, open the stream first, with `async with`
    or `await stream.__aenter__()`. The stream is closed with the iterator: at the end of its loop, by its `aclose`, or
    when the task that reads it is cancelled, as frameworks do when the client has left.

    Args:
        stream: The result of `client.stream(...)`, opened or not, or of `Hub`, `Broadcast`, `buffered`, `passthrough`.
        format: "chunks" as the API sends them; "text", the texts of choice 0; or a function of a chunk, which returns a
            str, bytes, a value that becomes JSON, a `ServerSentEvent`, or None for no event.
        ids: Whether events have ids: the position of their chunk, from 1.
        last_event_id: The `Last-Event-ID` of the request; None or empty if it has none. A stream that can be resumed
            continues after it. Any other is neither asked for nor sent: it would be paid for and shown twice.
        heartbeat: Seconds of silence after which a comment is sent, above 0; None sends no comments.
        grace: Seconds it may go on after the server was told to stop, from 0.
        on_end: Called with an `End` in every case, once the stream is closed; it may be async.

    Raises:
        TypeError: `stream` is not a stream, or `format` is an async function.
        ValueError: There is no such format, or `heartbeat` or `grace` is out of range.
        Exception (while reading): An exception of your own function, after the `error` event.
    """
    check_times(heartbeat, grace)
    feed = feed_of(stream, format, ids=ids)
    if last_event_id and feed.resumable:
        feed.resume(last_event_id)
    elif last_event_id:
        return _nothing(feed, on_end)
    return _events(feed, heartbeat=heartbeat, grace=grace, on_end=on_end)


async def _events(feed: Feed, *, heartbeat: float | None, grace: float, on_end: OnEnd | None) -> AsyncIterator[bytes]:
    session = RelaySession(feed, heartbeat=heartbeat, grace=grace)
    left = True
    try:
        data = await session.next()
        while data:
            yield data
            data = await session.next()
        left = False
    finally:
        session.close()
        await session.end(on_end, left=left)
    session.raise_foreign_error()


async def _nothing(feed: Feed, on_end: OnEnd | None) -> AsyncIterator[bytes]:
    await finish_unsent(feed, on_end, AllReadError(CANNOT_RESUME))
    for data in tuple[bytes, ...]():
        yield data
