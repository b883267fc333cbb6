"""`sse`: an async iterator of bytes, for every framework that can send one."""

from __future__ import annotations

from collections.abc import AsyncIterator

from together_async.relay.events import Format
from together_async.relay.relaying import DEFAULT_HEARTBEAT, OnEnd, Relayed, Relaying, check_times, feed_of
from together_async.relay.shutdown import DEFAULT_GRACE


async def sse(
    stream: Relayed,
    *,
    format: Format = "chunks",
    ids: bool = True,
    last_event_id: str | None = None,
    heartbeat: float | None = DEFAULT_HEARTBEAT,
    grace: float = DEFAULT_GRACE,
    on_end: OnEnd | None = None,
) -> AsyncIterator[bytes]:
    """Yields a stream as server-sent events, all that is there at once in one piece.

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
        last_event_id: The `Last-Event-ID` of the request, for what can be resumed.
        heartbeat: Seconds of silence after which a comment is sent; None sends none.
        grace: Seconds it may go on when the server is told to stop.
        on_end: Called with an `End` at the end, whatever it is; it may be async.

    Raises:
        TypeError, ValueError: No stream; no such format.
        Exception: What a function of yours raises, once the client has been told that something went wrong.
    """
    check_times(heartbeat, grace)
    feed = feed_of(stream, format, ids=ids)
    if last_event_id:
        feed.resume(last_event_id)
    relaying = Relaying(feed, heartbeat=heartbeat, grace=grace)
    left = True
    try:
        data = await relaying.next()
        while data:
            yield data
            data = await relaying.next()
        left = False
    finally:
        relaying.leave()
        await relaying.end(on_end, left=left)
    relaying.raise_what_is_not_ours()
