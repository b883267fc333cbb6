"""The values that come from the API: completions, chunks, messages of the model, usage.

All are frozen attrs classes which decode straight from JSON. A field is None when the server left it out or sent null,
unless its class says otherwise. Keys that these classes do not know are kept: `to_dict()` of a completion, and of a
chunk, its choices and their deltas, returns them.

Field names and meanings: https://docs.together.ai/reference/chat-completions.
"""

from together_async.models.base import Value, make, plain, present
from together_async.models.chunk import (
    DOCUMENT_FIELDS,
    GENERATED_FIELDS,
    NO_DELTA,
    TEXT_FIELDS,
    ChatCompletionChunk,
    ChunkChoice,
    Delta,
    link,
    text_of,
)
from together_async.models.completion import (
    ChatCompletion,
    ChatCompletionMessage,
    Choice,
    CompletionTokensDetails,
    Function,
    FunctionDelta,
    Logprobs,
    PromptPart,
    PromptTokensDetails,
    Retried,
    ToolCall,
    ToolCallDelta,
    Usage,
    record_attempts,
    set_raw_json,
)
from together_async.models.struct_value import set_source

__all__ = [
    "DOCUMENT_FIELDS",
    "GENERATED_FIELDS",
    "NO_DELTA",
    "TEXT_FIELDS",
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatCompletionMessage",
    "Choice",
    "ChunkChoice",
    "CompletionTokensDetails",
    "Delta",
    "Function",
    "FunctionDelta",
    "Logprobs",
    "PromptPart",
    "PromptTokensDetails",
    "Retried",
    "ToolCall",
    "ToolCallDelta",
    "Usage",
    "Value",
    "link",
    "make",
    "plain",
    "present",
    "record_attempts",
    "set_raw_json",
    "set_source",
    "text_of",
]
