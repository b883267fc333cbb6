"""The one procedure by which a request is answered with a stream. ASGI and aiohttp differ in their `Responder`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, Protocol

from together_async.errors import TogetherError
from together_async.relay.browser_errors import CANNOT_RESUME, AllReadError
from together_async.relay.feed import Feed
from together_async.relay.session import OnEnd, RelaySession, all_done, finish_unsent
from together_async.tasks import error_of


class Responder(Protocol):
    """The response to one request, as the door's framework sends it."""

    async def answer_head(self) -> None:
        """Answers a HEAD request."""
        ...

    async def refuse(self, error: TogetherError) -> None:
        """Answers with the status that means this error; nothing was sent before."""
        ...

    async def start(self) -> None:
        """Sends the head of the stream."""
        ...

    def write(self, data: bytes) -> Awaitable[None]:
        """Sends events, once awaited. Not a coroutine function: this runs for every batch of tokens."""
        ...

    async def finish(self) -> None:
        """Ends the response."""
        ...

    async def wait_gone(self) -> None:
        """Returns when the client has gone."""
        ...

    def is_gone(self) -> bool:
        """Whether the client is seen to have gone, by other signs than `wait_gone`."""
        ...

    async def answer_gone_client(self) -> None:
        """Does what the framework needs where the client has gone before anything was sent."""
        ...

    async def send_shutdown_event(self, session: RelaySession) -> bool:
        """Tells the client, if the door can, that the server cancels its answer; returns whether it was there."""
        ...


async def respond(
    feed: Feed,
    responder: Responder,
    *,
    method: str,
    last_event_id: str,
    heartbeat: float | None,
    grace: float,
    on_end: OnEnd | None,
) -> None:
    """Answers one request with a feed.

    Args:
        feed: What is relayed, not yet open.
        responder: How it is sent.
        method: The request's method; HEAD sends nothing to the service.
        last_event_id: The request's `Last-Event-ID`; empty if it has none.
        heartbeat: Seconds of silence after which a comment is sent; None sends none.
        grace: Seconds the answer may go on after the server was told to stop.
        on_end: Called with an `End` in every case.

    Raises:
        Exception: An exception of the app's own functions, once the client has got its event.
    """
    if method == "HEAD":
        await responder.answer_head()
        await finish_unsent(feed, on_end)
        return
    if last_event_id and not feed.resumable:
        error = AllReadError(CANNOT_RESUME)
        await responder.refuse(error)
        await finish_unsent(feed, on_end, error)
        return
    if last_event_id:
        feed.resume(last_event_id)
    await _relay(RelaySession(feed, heartbeat=heartbeat, grace=grace), responder, on_end)


async def _relay(session: RelaySession, responder: Responder, on_end: OnEnd | None) -> None:
    left: bool | None = None
    try:
        left = await _until_sent_or_gone(session, _send_all(session, responder), responder.wait_gone())
        if left:
            await responder.answer_gone_client()
    except asyncio.CancelledError:
        left = session.gone or not await responder.send_shutdown_event(session)
        raise
    finally:
        await session.end(on_end, left=session.gone or responder.is_gone() if left is None else left)
    session.raise_foreign_error()


async def _send_all(session: RelaySession, responder: Responder) -> None:
    try:
        data = await session.first()
    except TogetherError as error:
        await responder.refuse(error)
        return
    await responder.start()
    write = responder.write
    while data:
        await write(data)
        data = await session.next()
    await responder.finish()


async def _until_sent_or_gone(
    session: RelaySession, send: Coroutine[Any, Any, None], wait_gone: Coroutine[Any, Any, None]
) -> bool:
    """Sends until all is sent or the client has gone; returns whether the client left.

    However this ends, neither coroutine is running afterwards.

    Args:
        session: What is sent.
        send: Sends it all. An `OSError` from it means that the client has gone.
        wait_gone: Returns when the client has gone; an exception means the same.
    """
    sending, watching = session.loop.create_task(send), session.loop.create_task(wait_gone)
    tasks = {sending, watching}
    session.sender = sending
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        left = not sending.done()
        session.gone = watching.done()
        session.close()
        session.sender = None
        for task in tasks:
            task.cancel()
        await all_done(tasks)
        for task in tasks:
            error_of(task)  # retrieved, or asyncio logs it
    if left or sending.cancelled():
        return True
    if isinstance(sending.exception(), OSError) and sending.exception() is not session.error:
        return True
    sending.result()
    return False
