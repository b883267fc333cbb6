"""Streams in web backends: three lines, for every framework.

    return EventSourceResponse(client.stream(question, model=MODEL))        # Starlette, FastAPI, Litestar
    return await aiohttp_response(request, client.stream(...))              # aiohttp.web
    return Response(sse(client.stream(...)), headers=HEADERS)               # Quart, and others that send an iterator

When the browser leaves, the model stops. For slow readers there is `Buffer`, for several or late ones `Broadcast`, for
those that come back `Hub`.
"""

from typing import TYPE_CHECKING, Any

from together_async.flow.broadcast import Broadcast, SlowConsumerError, Subscription, tee
from together_async.flow.buffer import Buffer
from together_async.flow.buffered import Buffered, buffered
from together_async.relay import asgi
from together_async.relay.aiohttp import aiohttp_response
from together_async.relay.asgi import refuse
from together_async.relay.browser_errors import (
    IdError,
    NotKeptError,
    ServerShutdownError,
    StoppedError,
    error_for_browser,
    status_of,
)
from together_async.relay.events import HEADERS, Format
from together_async.relay.hub import Hub, HubReader
from together_async.relay.iterator import sse
from together_async.relay.lifespan import lifespan
from together_async.relay.passthrough import Passthrough, passthrough
from together_async.relay.session import End
from together_async.relay.shutdown import shut_down
from together_async.wire.sse import ServerSentEvent

if TYPE_CHECKING:
    from together_async.relay.asgi import EventSourceResponse

__all__ = [
    "HEADERS",
    "Broadcast",
    "Buffer",
    "Buffered",
    "End",
    "EventSourceResponse",
    "Format",
    "Hub",
    "HubReader",
    "IdError",
    "NotKeptError",
    "Passthrough",
    "ServerSentEvent",
    "ServerShutdownError",
    "SlowConsumerError",
    "StoppedError",
    "Subscription",
    "aiohttp_response",
    "buffered",
    "error_for_browser",
    "lifespan",
    "passthrough",
    "refuse",
    "shut_down",
    "sse",
    "status_of",
    "tee",
]


def __getattr__(name: str) -> Any:
    # FastAPI wants a subclass of Starlette's response, in annotations too, so the class depends on what is loaded.
    if name == "EventSourceResponse":
        return asgi.response_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
