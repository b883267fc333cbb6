"""Defaults of a `map` or a batch: fields for requests that leave them out, and how many requests run at once."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

import attrs

from together_async.request import ChatCompletionRequest
from together_async.timeouts import Timeouts

if TYPE_CHECKING:
    from together_async.request import MessagesLike

DEFAULT_CONCURRENCY: Final = 256
"""Requests under way at once, if neither the caller nor the limits say how many."""
_RESERVED_FILES: Final = 64
"""File descriptors left to everything else in the process, or half of them where there are few."""


class Defaults:
    """Fields for the requests that leave them out.

    Args:
        fields: Fields of `ChatCompletionRequest`, by name.
    """

    __slots__ = ("_fields", "_template")

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields
        self._template: ChatCompletionRequest | None = None

    def request(self, given: object) -> ChatCompletionRequest:
        """Returns the request that an element of the input stands for.

        Args:
            given: A str, a conversation, a dict in the wire's shape, or a request.

        Raises:
            ValueError: It is none of these, or a field is missing or out of range.
        """
        # Quick path of messages; tests/fanout/test_defaults.py::test_a_str_is_one_user_message holds the two together.
        if isinstance(given, str) and self._template is not None:
            return self._template.asking(given)
        if isinstance(given, ChatCompletionRequest):
            return self._complete(given)
        if isinstance(given, Mapping):
            return self._from_dict(given)
        if isinstance(given, (str, Sequence)) and not isinstance(given, (bytes, bytearray)):
            messages = cast("MessagesLike", given)
            if self._template is not None:
                return self._template.asking(messages)
            if "model" not in self._fields:
                raise ValueError("model: missing; name it, as model='meta-llama/Llama-3.3-70B-Instruct-Turbo'")
            self._template = ChatCompletionRequest(messages=messages, **self._fields)
            return self._template
        raise ValueError(f"got a {type(given).__name__}, expected a str, messages, a dict or a ChatCompletionRequest")

    def _complete(self, given: ChatCompletionRequest) -> ChatCompletionRequest:
        missing = {name: value for name, value in self._fields.items() if getattr(given, name) is None}
        if extra := self._fields.get("extra_body"):
            missing["extra_body"] = {**extra, **given.extra_body}
        return attrs.evolve(given, **missing) if missing else given

    def _from_dict(self, given: Mapping[str, Any]) -> ChatCompletionRequest:
        if "body" in given and "messages" not in given:
            raise ValueError("got a line of a batch file, expected a request: pass its 'body', or use run_batch")
        return ChatCompletionRequest.from_dict(self.body(given))

    def body(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a request in the wire's shape, completed with the defaults; a field that is None is left out."""
        own = {name: value for name, value in given.items() if value is not None}
        if not self._fields:
            return own
        others = {name: value for name, value in self._fields.items() if name != "extra_body"}
        return {**self._fields.get("extra_body", {}), **others, **own}


def check_map(model: object, timeouts: object, on_chunk: object, *, stream: bool, start: object = "open") -> None:
    """Checks arguments of a `map` that would fail with every request.

    Raises:
        ValueError: One of them is of another type or out of range.
    """
    if start not in ("open", "careful"):
        raise ValueError(f"start: got {start!r}, expected 'open' or 'careful'")
    if on_chunk is not None and not callable(on_chunk):
        raise ValueError(f"on_chunk: got a {type(on_chunk).__name__}, expected a function of index and chunk")
    if on_chunk is not None and not stream:
        raise ValueError("on_chunk: there are chunks only with stream=True")
    if timeouts is not None and not isinstance(timeouts, Timeouts):
        raise ValueError(f"timeouts: got a {type(timeouts).__name__}, expected Timeouts, as Timeouts(total=120)")
    if model is not None and (not isinstance(model, str) or not model.strip()):
        raise ValueError(f"model: got a {type(model).__name__}, expected the name of a model")


def checked_concurrency(concurrency: object, limit: int | str | None) -> int:
    """Returns how many requests a `map` may have under way.

    Args:
        concurrency: What the caller asked for; None leaves it to the limits.
        limit: `Limits.concurrency`; if it is not a number, the default is `DEFAULT_CONCURRENCY`, or fewer where the
            process may open fewer files.

    Raises:
        ValueError: `concurrency` is not a whole number from 1.
    """
    if concurrency is None:
        return limit if isinstance(limit, int) else min(DEFAULT_CONCURRENCY, _max_connections())
    if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
        raise ValueError(f"concurrency: got {concurrency!r}, expected a whole number from 1, or None: limits decide")
    return concurrency


def _max_connections() -> int:
    """Returns how many connections the process's limit of file descriptors allows; it is 256 on some systems."""
    if sys.platform == "win32":
        return DEFAULT_CONCURRENCY
    import resource  # noqa: PLC0415 - Windows does not have it

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return DEFAULT_CONCURRENCY if soft == resource.RLIM_INFINITY else max(1, soft // 2, soft - _RESERVED_FILES)
