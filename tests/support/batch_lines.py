"""Lines of an output, as a batch writes them."""

from __future__ import annotations

import json
from typing import Any

from support.servers import whole
from together_async.batch.record import (
    Record,
    completion_record,
    encode_line,
)
from together_async.wire import codec


def completion_of(body: dict[str, Any] | bytes) -> Any:
    return codec.decode_completion(body if isinstance(body, bytes) else json.dumps(body).encode())


def result(custom_id: str, text: str = "Hello", **meta: Any) -> bytes:
    """The line of a completion, as a batch writes it."""
    completion = completion_of(whole(text))
    return encode_line(completion_record(Record(custom_id, **meta), completion), completion)


def failure(custom_id: str, code: str = "500", message: str = "busy", **meta: Any) -> bytes:
    return encode_line(Record(custom_id, code=code, message=message, **meta))
