"""The names of the `openai` and `together` SDKs, so that existing code changes only its import line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, overload

import attrs

from together_async.calls.tracebacks import let_go
from together_async.errors import TogetherError
from together_async.models import ChatCompletion
from together_async.request import ChatCompletionRequest, MessageLike, request_of

if TYPE_CHECKING:
    from together_async.calls.stream import ChatCompletionStream
    from together_async.client import AsyncTogether

_FIELDS = frozenset(field.name for field in attrs.fields(ChatCompletionRequest))


class Chat:
    """`client.chat`: the SDKs' path to `completions`."""

    __slots__ = ("completions",)

    def __init__(self, client: AsyncTogether) -> None:
        self.completions = Completions(client)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.completions!r}>"


class Completions:
    """`client.chat.completions`, with the SDKs' `create`."""

    __slots__ = ("_client",)

    def __init__(self, client: AsyncTogether) -> None:
        self._client = client

    def __repr__(self) -> str:
        return f"<Completions of {self._client!r}>"

    @overload
    async def create(
        self, *, model: str, messages: Iterable[MessageLike], stream: Literal[True], **options: Any
    ) -> ChatCompletionStream: ...

    @overload
    async def create(
        self, *, model: str, messages: Iterable[MessageLike], stream: Literal[False] | None = None, **options: Any
    ) -> ChatCompletion: ...

    @overload
    async def create(
        self, *, model: str, messages: Iterable[MessageLike], stream: bool | None = None, **options: Any
    ) -> ChatCompletion | ChatCompletionStream: ...

    async def create(
        self,
        *,
        model: str,
        messages: Iterable[MessageLike],
        stream: bool | None = None,
        timeout: float | None = None,
        extra_headers: Mapping[str, str] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> ChatCompletion | ChatCompletionStream:
        """Creates a completion, or with `stream=True` a stream whose request has been sent, as the SDKs do.

        Args:
            model: The model's name.
            messages: Dicts, `Message`s or messages of completions.
            stream: Whether to return a stream.
            timeout: Seconds for the whole call, in place of the client's `Timeouts.total`.
            extra_headers: The `headers` of `client.stream`.
            extra_body: The `extra_body` of `ChatCompletionRequest`.
            **options: Fields of the request. Unknown fields are sent as they are; fields that are None are left out.

        Raises:
            TogetherError: What `client.create`, or entering `client.stream`, raises.
        """
        request = request_of(list(messages), model, _our_words(options, extra_body or {}))
        timeouts = None if timeout is None else attrs.evolve(self._client.timeouts, total=float(timeout))
        try:
            if not stream:
                return await self._client.create(request, timeouts=timeouts, headers=extra_headers)
            opened = self._client.stream(request, timeouts=timeouts, headers=extra_headers)
            await opened.open()
        except TogetherError as error:
            let_go(error)
            raise
        return opened


def _our_words(options: Mapping[str, Any], extra_body: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a request; options that it does not know are in its `extra_body`."""
    fields: dict[str, Any] = {}
    unknown: dict[str, Any] = {}
    for name, value in options.items():
        if value is None:
            continue
        # OpenAI's `logprobs` is a bool, with the number in `top_logprobs`; Together's is the number.
        if name not in _FIELDS or (name == "logprobs" and isinstance(value, bool)):
            unknown[name] = value
        else:
            fields[name] = value
    if unknown or extra_body:
        fields["extra_body"] = {**unknown, **extra_body}
    return fields
