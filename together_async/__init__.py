"""The asyncio client for Together AI's chat completions, and every server that speaks the same protocol."""

import importlib
from typing import TYPE_CHECKING, Any

from together_async._version import __version__
from together_async.calls.stats import StreamStats
from together_async.calls.stream import ChatCompletionStream
from together_async.client import AsyncTogether
from together_async.errors import (
    APIConnectionError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ContextLengthError,
    IncompleteStreamError,
    InsufficientQuotaError,
    InternalServerError,
    NotFoundError,
    PaymentRequiredError,
    PermissionDeniedError,
    QueueFullError,
    RateLimitError,
    StreamAPIError,
    StreamConnectionError,
    StreamError,
    StreamProtocolError,
    StreamTimeoutError,
    TogetherError,
    UnprocessableEntityError,
)
from together_async.fanout.results import MapResult, MapResults, Timing
from together_async.models import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    Choice,
    ChunkChoice,
    CompletionTokensDetails,
    Delta,
    Function,
    FunctionDelta,
    Logprobs,
    PromptPart,
    PromptTokensDetails,
    Retried,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from together_async.ratelimit import Limits, LimitsState, ModelState, Priority, RateLimiter
from together_async.request import ChatCompletionRequest, Message, MessagesLike, RequestOptions
from together_async.retry import Retry
from together_async.timeouts import Timeouts
from together_async.wire.sse import EventStreamParser, EventTooLargeError, ServerSentEvent, encode_event

if TYPE_CHECKING:
    from together_async.batch import BatchInputError, BatchSummary, OutputError, Record
    from together_async.fanout.merge import merge
    from together_async.flow.broadcast import Broadcast, SlowConsumerError, Subscription, tee
    from together_async.flow.buffer import Buffer
    from together_async.flow.buffered import Buffered, buffered
    from together_async.pricing import Price
    from together_async.wire.structured import ParsedCompletion

__all__ = [
    "APIConnectionError",
    "APIResponseValidationError",
    "APIStatusError",
    "APITimeoutError",
    "AsyncTogether",
    "AuthenticationError",
    "BadRequestError",
    "BatchInputError",
    "BatchSummary",
    "Broadcast",
    "Buffer",
    "Buffered",
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatCompletionMessage",
    "ChatCompletionRequest",
    "ChatCompletionStream",
    "Choice",
    "ChunkChoice",
    "CompletionTokensDetails",
    "ContextLengthError",
    "Delta",
    "EventStreamParser",
    "EventTooLargeError",
    "Function",
    "FunctionDelta",
    "IncompleteStreamError",
    "InsufficientQuotaError",
    "InternalServerError",
    "Limits",
    "LimitsState",
    "Logprobs",
    "MapResult",
    "MapResults",
    "Message",
    "MessagesLike",
    "ModelState",
    "NotFoundError",
    "OutputError",
    "ParsedCompletion",
    "PaymentRequiredError",
    "PermissionDeniedError",
    "Price",
    "Priority",
    "PromptPart",
    "PromptTokensDetails",
    "QueueFullError",
    "RateLimitError",
    "RateLimiter",
    "Record",
    "RequestOptions",
    "Retried",
    "Retry",
    "ServerSentEvent",
    "SlowConsumerError",
    "StreamAPIError",
    "StreamConnectionError",
    "StreamError",
    "StreamProtocolError",
    "StreamStats",
    "StreamTimeoutError",
    "Subscription",
    "Timeouts",
    "Timing",
    "TogetherError",
    "ToolCall",
    "ToolCallDelta",
    "UnprocessableEntityError",
    "Usage",
    "__version__",
    "buffered",
    "encode_event",
    "merge",
    "tee",
]

_ON_FIRST_USE = {
    "BatchSummary": "batch",
    "OutputError": "batch",
    "BatchInputError": "batch",
    "Record": "batch",
    "Broadcast": "flow.broadcast",
    "SlowConsumerError": "flow.broadcast",
    "Subscription": "flow.broadcast",
    "tee": "flow.broadcast",
    "Buffer": "flow.buffer",
    "Buffered": "flow.buffered",
    "buffered": "flow.buffered",
    "ParsedCompletion": "wire.structured",
    "Price": "pricing",
    "merge": "fanout.merge",
}
"""Names that few programs need, and their modules. Importing them too would take a twentieth longer or more."""
_PARTS = ("relay", "testing")


def __getattr__(name: str) -> Any:
    if name in _ON_FIRST_USE:
        found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_ON_FIRST_USE[name]}"), name)
        return found
    if name in _PARTS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PARTS})
