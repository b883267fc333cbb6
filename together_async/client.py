"""`AsyncTogether`: where the caller's wishes, the pure modules and the transport meet."""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import urllib.parse
import warnings
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar, Unpack

import attrs

from together_async.calls.call import Call
from together_async.calls.stream import ChatCompletionStream
from together_async.calls.whole import read_completion
from together_async.compat import Chat
from together_async.errors import APIConnectionError, AuthenticationError, TogetherError
from together_async.fanout.defaults import Defaults, checked_concurrency
from together_async.fanout.map import MapGroup, Requester
from together_async.fanout.results import MapResults, OnChunk, OnError
from together_async.models import ChatCompletion
from together_async.pricing import Price, read_prices
from together_async.ratelimit import Limits, LimitsState, Priority, RateLimiter
from together_async.ratelimit.estimator import size_of
from together_async.ratelimit.lane import MOST_PAUSE_S
from together_async.ratelimit.limits import check_priority
from together_async.request import ChatCompletionRequest, MessagesLike, RequestOptions
from together_async.retry import Retry, RetryBudget
from together_async.timeouts import Timeouts
from together_async.wire import structured
from together_async.wire.error_bodies import json_of, status_error
from together_async.wire.http_request import MODELS_REQUEST, build_request
from together_async.wire.redaction import Secret
from together_async.wire.sse import DEFAULT_MAX_EVENT_SIZE
from together_async.wire.structured import ParsedCompletion

if TYPE_CHECKING:
    import ssl as ssl_module
    from datetime import datetime, timedelta

    import aiohttp

    from together_async.batch.progress import BatchSummary
    from together_async.batch.record import Record
    from together_async.http.transport import Transport

DEFAULT_BASE_URL: Final = "https://api.together.xyz/v1"
DEFAULT_RETRY: Final = Retry()
E = TypeVar("E", bound=TogetherError)
R = TypeVar("R")
T = TypeVar("T")
_REQUEST_FIELDS: Final = frozenset(field.name for field in attrs.fields(ChatCompletionRequest))


class AsyncTogether:
    """A client of the chat-completions API. Make one, share it, close it: it holds the pool of connections.

    ```python
    async with AsyncTogether() as client:
        async for text in client.stream("Why is the sky blue?", model=MODEL).text():
            print(text, end="", flush=True)
    ```

    Args:
        api_key: The key; None takes TOGETHER_API_KEY from the environment. Blanks around it are dropped. Servers
            other than Together's may need none.
        base_url: The API's root; None takes TOGETHER_BASE_URL, else https://api.together.xyz/v1.
        limits: How much may be under way and how fast, or a `RateLimiter` that several clients share. None takes
            `Limits()`, which learns from the service.
        retry: How often a failed call is tried again; a call can bring its own. None takes `Retry()`.
        timeouts: Limits of every call; a call can bring its own.
        headers: Sent with every request, in addition to or in place of the usual ones.
        session: Your own `aiohttp.ClientSession`, for a proxy, TLS settings, a resolver of your own. It is used as
            it is and never closed here. None opens one on first use, which belongs to the running event loop.
        ssl: TLS settings for the session that is opened here, as a private CA's.
        proxy: A proxy's URL for the session that is opened here. None follows HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and
            NO_PROXY; the empty string uses none.
        max_event_size: Most bytes of one event of a stream; a longer one is an error instead of memory.

    Raises:
        ValueError: Limits or retries of another type, a key with control characters or not ASCII, a base URL that is
            none or carries credentials, `ssl` or `proxy` together with a session.
    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str | None = None,
        limits: Limits | RateLimiter | None = None,
        retry: Retry | None = None,
        timeouts: Timeouts | None = None,
        headers: Mapping[str, str] | None = None,
        session: aiohttp.ClientSession | None = None,
        ssl: ssl_module.SSLContext | None = None,
        proxy: str | None = None,
        max_event_size: int = DEFAULT_MAX_EVENT_SIZE,
    ) -> None:
        self._transport: Transport | None = None
        self._closed = False
        self._base_url = ""  # for the repr in a traceback with locals, if a check below fails
        if api_key is None:
            api_key = os.environ.get("TOGETHER_API_KEY", "")
        if isinstance(api_key, str):
            api_key = Secret(api_key)  # from here on no traceback with locals shows it
        self._api_key = _checked_key(api_key)
        self._base_url = _checked_url(base_url or os.environ.get("TOGETHER_BASE_URL") or DEFAULT_BASE_URL)
        if session is not None and (ssl is not None or proxy is not None):
            raise ValueError("ssl, proxy: a session of your own has its own; set them there")
        self._timeouts = timeouts if timeouts is not None else Timeouts()
        self._limiter = limits if isinstance(limits, RateLimiter) else RateLimiter(limits)
        self._retry = _checked_retry(retry) or DEFAULT_RETRY
        self._budget = RetryBudget(self._retry.budget)
        self._headers = _checked_headers(headers or {})
        self._session = session
        self._ssl = ssl
        self._proxy = proxy
        self._max_event_size = max_event_size
        frame = sys._getframe(1)
        self._made_at = f"{frame.f_code.co_filename}:{frame.f_lineno}"

    def __repr__(self) -> str:
        state = "closed" if self._closed else repr(self._transport) if self._transport else "not connected"
        return f"<{type(self).__name__} {self._base_url.partition('?')[0]} {state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a client holds a key and connections and can't be pickled; make one where it is used")

    # ------------------------------------------------------------------------------------------------------------ calls

    def stream(
        self,
        messages: MessagesLike | ChatCompletionRequest,
        *,
        model: str | None = None,
        timeouts: Timeouts | None = None,
        retry: Retry | None = None,
        priority: Priority = "interactive",
        headers: Mapping[str, str] | None = None,
        **options: Unpack[RequestOptions],
    ) -> ChatCompletionStream:
        """Returns a stream of the completion. Nothing is sent before it is entered or read.

        Args:
            messages: A str (one user message), a sequence of dicts or `Message`s, or a `ChatCompletionRequest`,
                whose fields the other arguments then replace.
            model: The model's name; required unless a request is given.
            timeouts: In place of the client's.
            retry: In place of the client's.
            priority: "interactive" goes first, "batch" waits for it, but gets a turn in five.
            headers: In addition to, or in place of, the client's.
            **options: The fields of `ChatCompletionRequest`.

        Raises:
            ValueError: A value out of range; the text names field, value and range.
            TypeError: An option that is none; things the server knows and this package does not go to `extra_body`.
        """
        request = _request(messages, model, options)
        return self._stream(self._checked_call(request, headers, timeouts, retry, priority, streamed=True), request)

    def _stream(self, call: Call, request: ChatCompletionRequest) -> ChatCompletionStream:
        return ChatCompletionStream(
            call, time=_loop_time, choices=request.n or 1, max_event_size=self._max_event_size, secrets=call.secrets
        )

    async def create(
        self,
        messages: MessagesLike | ChatCompletionRequest,
        *,
        model: str | None = None,
        timeouts: Timeouts | None = None,
        retry: Retry | None = None,
        priority: Priority = "interactive",
        headers: Mapping[str, str] | None = None,
        **options: Unpack[RequestOptions],
    ) -> ChatCompletion:
        """Returns the whole completion, when all of it has been generated. Arguments as for `stream`.

        Raises:
            ValueError, TypeError: As `stream` does.
            APIStatusError: The server refused; the subclass says why.
            APIConnectionError, APITimeoutError: Nothing came back, or not all of it.
            APIResponseValidationError: What came is not a completion; `.path` says where.
        """
        request = _request(messages, model, options)
        return await read_completion(self._checked_call(request, headers, timeouts, retry, priority, streamed=False))

    async def parse(
        self,
        messages: MessagesLike | ChatCompletionRequest,
        *,
        response_type: type[T],
        model: str | None = None,
        timeouts: Timeouts | None = None,
        retry: Retry | None = None,
        priority: Priority = "interactive",
        headers: Mapping[str, str] | None = None,
        **options: Unpack[RequestOptions],
    ) -> ParsedCompletion[T]:
        """Returns a completion whose content is a value of a class. Other arguments as for `stream`.

        ```python
        invoice = (await client.parse(messages, model=MODEL, response_type=Invoice)).parsed
        ```

        Args:
            messages: As for `stream`.
            response_type: An attrs class, a dataclass, a TypedDict or a pydantic model. Its JSON schema is sent as
                `response_format`, unless you pass one.
            model: As for `stream`.
            timeouts: As for `stream`.
            retry: As for `stream`.
            priority: As for `stream`.
            headers: As for `stream`.
            **options: As for `stream`.

        Raises:
            TypeError: The class has no JSON schema.
            APIResponseValidationError: The answer is cut off, not JSON or not of the class; `.path` says where.
            Exception: What `create` raises.
        """
        if options.get("response_format") is None:
            options["response_format"] = structured.response_format(response_type)
        completion = await self.create(
            messages, model=model, timeouts=timeouts, retry=retry, priority=priority, headers=headers, **options
        )
        return structured.ParsedCompletion(structured.parse(completion, response_type), completion)

    def map(
        self,
        requests: Iterable[R] | AsyncIterable[R],
        *,
        concurrency: int | None = None,
        ordered: bool = False,
        on_error: OnError = "return",
        stream: bool = False,
        on_chunk: OnChunk | None = None,
        model: str | None = None,
        timeouts: Timeouts | None = None,
        retry: Retry | None = None,
        priority: Priority = "batch",
        headers: Mapping[str, str] | None = None,
        **options: Unpack[RequestOptions],
    ) -> MapResults[R]:
        """Asks for many completions, as many at once as may be, and returns their results as they come.

        ```python
        async for result in client.map(prompts, model=MODEL, max_tokens=100):
            print(result.index, result.completion.text if result.completion else result.error)
        ```

        The input is read as it is needed: what has been read and not yet taken by your loop is never more than
        `concurrency` (in order: twice that), so it may be endless, and a slow loop slows it down. Leaving the loop ends
        every request, and a later loop over the same results gets nothing more; with `async with client.map(...) as
        results` a loop can be left and taken up again, and all have ended when the block has.

        Args:
            requests: What to ask: an iterable or async iterable of str (one user message each), conversations,
                `ChatCompletionRequest`s, or dicts in the wire's shape. An error that it raises comes out of the loop
                when what is under way has come.
            concurrency: How many requests may be under way at once, from 1; once a first answer has come, they are sent
                as fast as the rates allow that are known. None takes `Limits.concurrency`, else 256, or fewer where the
                process may not open as many connections, and asks a service that has told nothing slowly at first.
            ordered: Whether results come in the order of the requests; else as they finish.
            on_error: "return" gives a result with an `error`; "raise" raises the first one and ends the others; a
                function is called with each result that has an error, and what it returns comes in its place, None
                leaves it out. It may be async.
            stream: Whether the answers are streamed: then timings know the first token, silence is noticed
                (`Timeouts.idle`), and an error has what had come (`.partial`).
            on_chunk: Called with the index and each chunk of a stream; it may be async, which slows that stream alone.
                Needs `stream=True`. What it raises ends the map.
            model: For requests that name none.
            timeouts: In place of the client's.
            retry: In place of the client's, with which a wait of up to 15 minutes that the server asks for is waited.
            priority: "batch" leaves the first turn to who waits for an answer, "interactive" does not.
            headers: In addition to, or in place of, the client's.
            **options: Fields of `ChatCompletionRequest`, for requests that do not have them.

        Raises:
            ValueError: An argument out of range; a field that is wrong in the defaults is found with the first request.
            TypeError: An option that is none.
        """
        _check_options(options)
        _check_map(model, timeouts, on_chunk, stream=stream)
        check_priority(priority)
        headers = _checked_headers(headers) if headers else None
        rules = _checked_retry(retry) or attrs.evolve(
            self._retry, max_retry_after=max(self._retry.max_retry_after, MOST_PAUSE_S)
        )
        defaults = {name: value for name, value in {"model": model, **options}.items() if value is not None}

        skips_slow_start = concurrency is not None

        call = functools.partial(
            self._call,
            headers=headers,
            timeouts=timeouts or self._timeouts,
            rules=rules,
            priority=priority,
            streamed=stream,
            counts_as_queued=False,
            skips_slow_start=skips_slow_start,
        )

        return MapResults(
            MapGroup(
                requests,
                Requester(call, None if stream else read_completion, self._stream),
                Defaults(defaults),
                concurrency=checked_concurrency(concurrency, self._limiter.limits.concurrency),
                ordered=ordered,
                on_error=on_error,
                on_chunk=on_chunk,
            )
        )

    async def run_batch(
        self,
        input: str | os.PathLike[str],
        output: str | os.PathLike[str],
        *,
        model: str | None = None,
        format: Literal["jsonl", "text", "csv"] | None = None,
        template: str | None = None,
        system: str | None = None,
        concurrency: int | None = None,
        stream: bool = True,
        retry_errors: bool = False,
        keep_going: bool = False,
        prices: bool = False,
        max_cost: float | None = None,
        max_tokens_total: int | None = None,
        deadline: float | timedelta | datetime | None = None,
        report: str | os.PathLike[str] | None = None,
        on_result: Callable[[Record], None] | None = None,
        timeouts: Timeouts | None = None,
        retry: Retry | None = None,
        headers: Mapping[str, str] | None = None,
        **options: Unpack[RequestOptions],
    ) -> BatchSummary:
        """Asks for all requests of a file, and writes the results to another. Called again, it goes on.

        ```python
        summary = await client.run_batch("in.jsonl", "out.jsonl")
        ```

        A result counts when it is on disk. Whatever ends the process, the next call asks what has no result, and what
        was edited since: requests are told apart by `custom_id` and a hash of the body, defaults included. Answers
        to bodies that were edited move to a file beside the output, its name with `.superseded`.

        Args:
            input: JSON lines as the Batch API takes them, `{"custom_id": ..., "body": {...}}`; a text with a prompt in
                each line; or a CSV, with a template.
            output: JSON lines as the Batch API writes them, with `"meta"` beside: hash, timing and attempts.
            model: For requests that name none.
            format: Of the input; None goes by its suffix.
            template: For text and CSV: what makes a prompt of a line, as "Summarise: {body}".
            system: For text and CSV: a system message before each prompt.
            concurrency: As for `map`.
            stream: Whether answers are streamed, so that silence is noticed and no gateway takes a long answer for
                none. What is written is the completion in either case.
            retry_errors: Whether errors of earlier runs are asked again.
            keep_going: Whether lines that can't be asked become errors in the output; else nothing is sent.
            prices: Whether to ask the service for its prices (`GET /models`), so that the summary tells the cost.
            max_cost: US dollars which all answers in the output together may cost, by these prices.
            max_tokens_total: Tokens that they may use, prompts and answers together.
            deadline: When to begin nothing more: seconds from now, a timedelta or a datetime.
            report: Where to write a page (HTML) about how it went.
            on_result: Called with the record of each result once it is on disk.
            timeouts: In place of the client's.
            retry: In place of the client's.
            headers: In addition to, or in place of, the client's.
            **options: Fields of `ChatCompletionRequest`, for requests that do not have them.

        Returns:
            How it ended: what has an answer, what has an error, and what has neither, because it was `stopped`.

        Raises:
            BatchInputError: Lines that can't be asked; `.errors` has each with its number.
            OutputError: The output can't be written, holds something else, or another run has it.
            OSError: The input can't be read.
            ValueError, TypeError: An argument out of range, an option that is none.
        """
        from together_async.batch import Batch, BatchOptions  # noqa: PLC0415 - not needed otherwise

        _check_options(options)
        _check_map(model, timeouts, None, stream=stream)
        _checked_headers(headers or {})
        settings = BatchOptions(
            format=format,
            template=template,
            system=system,
            concurrency=concurrency,
            stream=stream,
            retry_errors=retry_errors,
            keep_going=keep_going,
            prices=prices,
            max_cost=max_cost,
            max_tokens_total=max_tokens_total,
            deadline=deadline,
            report=Path(report) if report is not None else None,
            on_result=on_result,
            timeouts=timeouts,
            retry=retry,
            headers=headers,
        )
        return await Batch(self, input, output, settings, {"model": model, **options}).run()

    async def prices(self, *, timeouts: Timeouts | None = None) -> dict[str, Price]:
        """Returns what each model of the service costs, by its name; models without a price are not in it.

        Args:
            timeouts: In place of the client's.

        Raises:
            APIStatusError: The server has no such list, or refuses it.
            APIConnectionError, APITimeoutError: Nothing came back.
            APIResponseValidationError: What came is not JSON.
        """
        transport = self._transport_for(None)
        exchange = await transport.open(
            MODELS_REQUEST,
            headers=None,
            timeouts=timeouts if timeouts is not None else self._timeouts,
            started=transport.loop.time(),
        )
        try:
            if not 200 <= exchange.status < 300:
                body = await exchange.read_error_body()
                raise status_error(exchange.status, exchange.headers, body, secrets=[self._api_key])
            return read_prices(json_of(await exchange.read_all()))
        finally:
            exchange.close()

    @property
    def chat(self) -> Chat:
        """The SDKs' own words: `client.chat.completions.create(model=..., messages=[...], stream=True)`."""
        return Chat(self)

    @property
    def limits(self) -> LimitsState:
        """What is going on under the limits now: in flight, queued, learned limits, pauses, 429s and 503s seen."""
        return self._limiter.state

    def _checked_call(
        self,
        request: ChatCompletionRequest,
        headers: Mapping[str, str] | None,
        timeouts: Timeouts | None,
        retry: Retry | None,
        priority: Priority,
        *,
        streamed: bool,
    ) -> Call:
        """Returns a call that has yet to be opened, after a look at what the caller said."""
        check_priority(priority)
        return self._call(
            request,
            headers=_checked_headers(headers) if headers else None,
            timeouts=timeouts if timeouts is not None else self._timeouts,
            rules=_checked_retry(retry) or self._retry,
            priority=priority,
            streamed=streamed,
        )

    def _call(
        self,
        request: ChatCompletionRequest,
        *,
        headers: Mapping[str, str] | None,
        timeouts: Timeouts,
        rules: Retry,
        priority: Priority,
        streamed: bool,
        counts_as_queued: bool = True,
        skips_slow_start: bool = False,
    ) -> Call:
        """Returns a call that has yet to be opened."""
        return Call(
            home=self,
            request=request,
            driver=self._limiter.driver,
            budget=self._budget,
            http=build_request(request, stream=streamed),
            headers=headers,
            timeouts=timeouts,
            rules=rules,
            priority=priority,
            size=size_of(request.messages, request.max_tokens, request.n),
            streamed=streamed,
            counts_as_queued=counts_as_queued,
            skips_slow_start=skips_slow_start,
        )

    def _check_has_key(self, headers: Mapping[str, str] | None) -> None:
        """Together's own API needs a key; other servers may not, and a caller's headers or session may bring one."""
        if self._api_key or self._base_url != DEFAULT_BASE_URL or "authorization" in {*self._headers, *(headers or ())}:
            return
        if self._session is None or "Authorization" not in self._session.headers:
            raise _unsent(
                AuthenticationError(
                    "no API key: set TOGETHER_API_KEY or pass api_key= (or a base_url of a server that needs none)",
                    status_code=401,
                )
            )

    def _secrets_of(self, request: ChatCompletionRequest) -> list[str]:
        """What no error's text may repeat: the key, and what the messages say."""
        texts: list[str] = [self._api_key]
        for message in request.messages:
            content = message.get("content")
            parts = content if isinstance(content, (list, tuple)) else [{"text": content}]
            texts += [text for part in parts if isinstance(text := part.get("text"), str) and len(text) >= 8]
        return texts

    # ------------------------------------------------------------------------------------------------------- lifetime

    def _transport_for(self, headers: Mapping[str, str] | None) -> Transport:
        """Returns the transport of the running loop, opened on first use; one of a loop that ended is given up."""
        self._check_has_key(headers)
        if self._closed:
            raise _unsent(APIConnectionError("the client is closed; make a new one, or close it later"))
        transport = self._transport
        loop = asyncio.get_running_loop()
        if transport is not None and transport.loop is not loop:
            if not transport.loop.is_closed():
                raise _unsent(
                    APIConnectionError(
                        "the client is in use in another event loop that still runs; make one client per loop"
                    )
                )
            transport.discard()
            if self._session is not None:
                raise APIConnectionError(
                    "the session that was passed belongs to an event loop that has ended; make session and client anew"
                )
            transport = None
        if transport is None:
            # Here and not above: aiohttp takes longer to import than everything else together.
            from together_async.http.transport import Transport, default_headers  # noqa: PLC0415

            transport = self._transport = Transport(
                self._base_url,
                default_headers(api_key=self._api_key, extra=self._headers),
                session=self._session,
                ssl=self._ssl,
                proxy=self._proxy,
                secret=self._api_key,
            )
        return transport

    async def __aenter__(self) -> Self:
        # Here rather than within the first call, whose time to the first token it would lengthen.
        import together_async.http.transport  # noqa: F401, PLC0415 - imports aiohttp

        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends live streams and calls with a typed error, and closes the connections. Twice is fine."""
        transport = self._transport
        here = transport is None or transport.loop is asyncio.get_running_loop()
        if transport is not None and not here and not transport.loop.is_closed():
            raise _unsent(
                APIConnectionError("the client is in use in another event loop that still runs; close it there")
            )
        self._closed, self._transport = True, None
        if transport is not None:
            if here:
                await transport.aclose()
            else:
                transport.discard()

    async def close(self) -> None:
        """`aclose`, by the name it has in the SDKs."""
        await self.aclose()

    def __del__(self) -> None:
        transport = getattr(self, "_transport", None)
        if transport is None or not transport.holds_resources:
            return
        transport.discard()  # first: the warning may be an error
        warnings.warn(
            f"unclosed {type(self).__name__} made at {self._made_at}; use `async with` or `await client.aclose()`",
            ResourceWarning,
            source=self,
            stacklevel=1,
        )


def _unsent(error: E) -> E:
    """Returns an error of a call for which nothing was sent."""
    error.attempts = 0
    return error


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


def _request(
    messages: MessagesLike | ChatCompletionRequest, model: str | None, options: Mapping[str, Any]
) -> ChatCompletionRequest:
    _check_options(options)
    if isinstance(messages, ChatCompletionRequest):
        changes = dict(options) if model is None else {**options, "model": model}
        return attrs.evolve(messages, **changes) if changes else messages
    if model is None:
        raise ValueError("model: missing; name the model, as model='meta-llama/Llama-3.3-70B-Instruct-Turbo'")
    return ChatCompletionRequest(messages=messages, model=model, **options)


def _check_options(options: Mapping[str, Any]) -> None:
    unknown = options.keys() - _REQUEST_FIELDS
    if unknown:
        raise TypeError(
            f"unexpected option {', '.join(sorted(unknown))}: no field of ChatCompletionRequest; "
            "what only the server knows goes into extra_body"
        )


def _check_map(model: object, timeouts: object, on_chunk: object, *, stream: bool) -> None:
    """Finds at once what would be found with each request."""
    if on_chunk is not None and not callable(on_chunk):
        raise ValueError(f"on_chunk: got a {type(on_chunk).__name__}, expected a function of index and chunk")
    if on_chunk is not None and not stream:
        raise ValueError("on_chunk: there are chunks only with stream=True")
    if timeouts is not None and not isinstance(timeouts, Timeouts):
        raise ValueError(f"timeouts: got a {type(timeouts).__name__}, expected Timeouts, as Timeouts(total=120)")
    if model is not None and (not isinstance(model, str) or not model.strip()):
        raise ValueError(f"model: got a {type(model).__name__}, expected the name of a model")


def _checked_key(key: object) -> Secret:
    """Returns the key without the blanks around it; a message about it never shows it."""
    if not isinstance(key, str):
        raise ValueError(f"api_key: got a {type(key).__name__}, expected a str")
    key = Secret(key.strip(" \t\r\n"))
    for position, character in enumerate(key):
        if not 0x21 <= ord(character) <= 0x7E:
            raise ValueError(
                f"api_key: character {position} of {len(key)} is U+{ord(character):04X}, expected printable ASCII "
                "without blanks; was something else pasted along?"
            )
    return key


def _checked_retry(retry: object) -> Retry | None:
    if retry is not None and not isinstance(retry, Retry):
        raise ValueError(f"retry: got a {type(retry).__name__}, expected a Retry, as Retry(attempts=2)")
    return retry


def _checked_url(url: object) -> str:
    if not isinstance(url, str):
        raise ValueError(f"base_url: got a {type(url).__name__}, expected a str")
    parts = urllib.parse.urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"base_url: got scheme {parts.scheme!r}, host {parts.hostname!r}; expected http(s)://host[:port]/v1"
        )
    if parts.username is not None or parts.password is not None:
        raise ValueError("base_url: carries credentials, which end up in logs; pass api_key= or headers=")
    try:
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"base_url: {error}, expected 0 to 65535") from None
    return urllib.parse.urlunsplit(parts._replace(path=parts.path.rstrip("/"), fragment=""))


def _checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise ValueError(f"headers[{name!r}]: got a {type(value).__name__}, expected a str")
        if any((ord(c) < 0x20 and c != "\t") or c == "\x7f" for c in name + value):
            raise ValueError(f"headers[{name!r}]: has control characters")
    return {name.lower(): Secret(value) for name, value in headers.items()}
