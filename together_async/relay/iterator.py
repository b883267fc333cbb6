"""`sse`: an async iterator of bytes, for every framework that can send one."""

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
    """Returns an iterator of a stream's server-sent events, all that is there at once in one piece.

    ```python
    return Response(sse(client.stream(messages, model=MODEL)), headers=relay.HEADERS)
    ```

    An error becomes the last event, of type `error`; for a status instead, open the stream first, with `async with` or
    `await stream.__aenter__()`. The stream is closed when the iterator is: by the end of its loop, its `aclose`, or the
    cancellation of who reads it, which is how frameworks say that the client has left.

    Args:
        stream: What `client.stream(...)` returns, opened or not; or of `Hub`, `Broadcast`, `buffered`, `passthrough`.
        format: "chunks" as the API sends them; "text", the texts of choice 0; or a function of a chunk, which returns a
            str, bytes, something that becomes JSON, a `ServerSentEvent`, or None for no event.
        ids: Whether events have ids: the position of their chunk, from 1.
        last_event_id: The `Last-Event-ID` of the request, if it has one. What can be resumed continues there. Of
            anything else nothing is sent and nothing asked: it would be paid again, and shown twice.
        heartbeat: Seconds of silence after which a comment is sent; None sends none.
        grace: Seconds it may go on when the server is told to stop.
        on_end: Called with an `End` at the end, whatever it is; it may be async.

    Raises:
        TypeError, ValueError: No stream; no such format.
        Exception: What a function of yours raises, once the client has been told that something went wrong.
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
