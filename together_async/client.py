"""`AsyncTogether`: the public face of the package, where its packages meet."""

from __future__ import annotations

import asyncio
import functools
import os
import sys
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar, Unpack

import attrs

from together_async.calls.call import Call, CallSettings
from together_async.calls.stream import ChatCompletionStream
from together_async.calls.tracebacks import let_go
from together_async.calls.whole import read_completion
from together_async.compat import Chat
from together_async.errors import TogetherError
from together_async.fanout.defaults import Defaults, check_map, checked_concurrency
from together_async.fanout.map import MapGroup
from together_async.fanout.pending import Requester
from together_async.fanout.results import MapResults, OnChunk, OnError
from together_async.http.connections import DEFAULT_BASE_URL, Connections, checked_headers, checked_key, checked_url
from together_async.models import ChatCompletion
from together_async.ratelimit import Limits, LimitsState, Priority, RateLimiter
from together_async.ratelimit.estimator import size_of
from together_async.ratelimit.limits import check_priority
from together_async.request import ChatCompletionRequest, MessagesLike, RequestOptions, request_of
from together_async.retry import Retry, RetryBudget, checked_retry, for_batch
from together_async.timeouts import Timeouts
from together_async.wire.error_bodies import json_of, status_error
from together_async.wire.http_request import MODELS_REQUEST, build_request
from together_async.wire.redaction import Secret
from together_async.wire.sse import DEFAULT_MAX_EVENT_SIZE

if TYPE_CHECKING:
    import ssl as ssl_module
    from datetime import datetime, timedelta

    import aiohttp

    from together_async.batch.progress import BatchSummary
    from together_async.batch.record import Record
    from together_async.http.response import HTTPResponse
    from together_async.pricing import Price
    from together_async.wire.structured import ParsedCompletion

DEFAULT_RETRY: Final = Retry()
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
        limits: How many requests may be under way at once, and how fast; or a `RateLimiter` that several clients share.
            None takes `Limits()`, which learns from the responses.
        retry: How often a failed call is tried again; a call can bring its own. None takes `Retry()`.
        timeouts: The deadlines of every call; a call can bring its own. None takes `Timeouts()`.
        headers: Sent with every request, in addition to or in place of the usual ones.
        session: Your own `aiohttp.ClientSession`, with a proxy, TLS settings or a resolver of your own. It is used as
            it is and never closed here. None opens one on first use, which belongs to the running event loop.
        ssl: TLS settings for the session that is opened here, such as a private CA. None verifies as usual.
        proxy: A proxy's URL for the session that is opened here. None follows HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and
            NO_PROXY; the empty string uses no proxy.
        max_event_size: The most bytes of one event of a stream; a longer event is an error and takes no memory.

    Raises:
        ValueError: `limits` or `retry` of another type, a key that is not printable ASCII, a base URL that is not an
            http(s) URL or carries credentials, `ssl` or `proxy` together with a `session`.
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
        if api_key is None:
            api_key = os.environ.get("TOGETHER_API_KEY", "")
        if isinstance(api_key, str):
            api_key = Secret(api_key)  # from here on no traceback with locals shows it
        key = checked_key(api_key)
        url = checked_url(base_url or os.environ.get("TOGETHER_BASE_URL") or DEFAULT_BASE_URL)
        if session is not None and (ssl is not None or proxy is not None):
            raise ValueError("ssl, proxy: a session of your own has its own; set them there")
        self._timeouts = timeouts if timeouts is not None else Timeouts()
        self._limiter = limits if isinstance(limits, RateLimiter) else RateLimiter(limits)
        retry = checked_retry(retry) or DEFAULT_RETRY
        self._retries: Mapping[Priority, Retry] = {"interactive": retry, "batch": for_batch(retry)}
        self._budget = RetryBudget(retry.budget)
        self._max_event_size = max_event_size
        frame = sys._getframe(1)  # noqa: SLF001 - CPython's way to name the line that made an unclosed client
        self._connections = Connections(
            key,
            url,
            checked_headers(headers or {}),
            session=session,
            ssl=ssl,
            proxy=proxy,
            owner=f"{type(self).__name__} made at {frame.f_code.co_filename}:{frame.f_lineno}",
        )

    def __repr__(self) -> str:
        # A traceback with locals shows this client even if a check in __init__ has failed.
        connections = getattr(self, "_connections", None)
        return f"<{type(self).__name__} {'not made' if connections is None else connections.describe()}>"

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
        """Returns a stream of the completion. Nothing is sent before the stream is entered or read.

        ```python
        async with client.stream("Why is the sky blue?", model=MODEL) as stream:
            async for text in stream.text():  # or `async for chunk in stream`
                print(text, end="", flush=True)
        completion = await stream.completion()
        ```

        Args:
            messages: A str (one user message), a sequence of dicts or `Message`s, or a `ChatCompletionRequest`, whose
                fields the other arguments then replace.
            model: The model's name; required unless a request is given.
            timeouts: In place of the client's; None takes those.
            retry: In place of the client's. None takes that; for "batch" with a `max_retry_after` of at least 900.
            priority: Calls with "interactive" go first; those with "batch" get every fifth turn while both wait, and
                wait for pauses of up to 15 minutes.
            headers: In addition to, or in place of, the client's.
            **options: The fields of `ChatCompletionRequest`.

        Returns:
            The stream: an async iterator of chunks and an async context manager. A 429 makes the call wait in the
            queue, in its place; by `Retry.max_retry_after` a pause of at most 60 s (900 s with "batch") is waited for.

        Raises:
            ValueError: A value out of range; the text names field, value and range.
            TypeError: An unknown option. What only the server knows goes into `extra_body`.
        """
        request = _request(messages, model, options)
        return self._stream(self._checked_call(request, headers, timeouts, retry, priority, streamed=True), request)

    def _stream(self, call: Call, request: ChatCompletionRequest) -> ChatCompletionStream:
        return ChatCompletionStream(call, time=_loop_time, choices=request.n or 1, max_event_size=self._max_event_size)

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
        """Returns the whole completion, once all of it has been generated. The arguments are those of `stream`.

        Raises:
            ValueError, TypeError: As `stream` does.
            RateLimitError: The service asks for a pause above `Retry.max_retry_after` (60 s; 900 s with "batch"), or
                refuses for as long (for 15 minutes, if it names the times to wait).
            APIStatusError: The server refused; the subclass says why.
            APIConnectionError, APITimeoutError: Nothing came back, or not all of it.
            APIResponseValidationError: The response is not a completion; `.path` says where.
        """
        request = _request(messages, model, options)
        call = self._checked_call(request, headers, timeouts, retry, priority, streamed=False)
        try:
            return await read_completion(call)
        except TogetherError as error:
            let_go(error)
            raise

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
        """Returns a completion whose content is a value of a class. The other arguments are those of `stream`.

        ```python
        invoice = (await client.parse(messages, model=MODEL, response_type=Invoice)).parsed
        ```

        Args:
            messages: As for `stream`.
            response_type: An attrs class, a dataclass, a TypedDict or a pydantic model. Its JSON schema is sent as
                `response_format`, unless you pass a `response_format`.
            model: As for `stream`.
            timeouts: As for `stream`.
            retry: As for `stream`.
            priority: As for `stream`.
            headers: As for `stream`.
            **options: As for `stream`.

        Raises:
            TypeError: The class has no JSON schema.
            APIResponseValidationError: The answer is cut off, not JSON, or does not fit the class; `.path` says where.
            TogetherError: What `create` raises.
        """
        from together_async.wire import structured  # noqa: PLC0415 - most programs never parse

        if options.get("response_format") is None:
            options["response_format"] = structured.response_format(response_type)
        try:
            completion = await self.create(
                messages, model=model, timeouts=timeouts, retry=retry, priority=priority, headers=headers, **options
            )
            return structured.ParsedCompletion(structured.parse(completion, response_type), completion)
        except TogetherError as error:
            let_go(error)
            raise

    def map(
        self,
        requests: Iterable[R] | AsyncIterable[R],
        *,
        concurrency: int | None = None,
        start: Literal["open", "careful"] = "open",
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
        """Sends many requests, as many at once as the limits allow, and returns their results as they come.

        ```python
        async for result in client.map(prompts, model=MODEL, max_tokens=100):
            print(result.index, result.completion.text if result.completion else result.error)
        ```

        The input is read as it is needed: at most `concurrency` requests (in order: twice as many) have been read and
        not yet been taken by your loop, so the input may be endless, and a slow loop slows it down. Leaving the loop
        ends every request, and a later loop over the same results gets nothing more. Inside `async with
        client.map(...) as results` a loop can be left and taken up again; at the end of the block all have ended.

        Args:
            requests: The requests: an iterable or async iterable of str (one user message each), conversations,
                `ChatCompletionRequest`s, or dicts in the wire's shape. An error that the input raises comes out of the
                loop after the results of all requests that are under way.
            concurrency: How many requests may be under way at once, from 1; it bounds them and changes nothing else.
                None takes `Limits.concurrency`, else 256, or fewer where the process may not open as many connections.
            start: How requests to a model begin whose limits are not known. "open" sends them at once, and learns from
                what is refused; "careful" waits for the first answer before it sends more, which costs the time of one
                answer, and gains on an account whose limits fall after a burst.
            ordered: Whether results come in the order of the requests; else they come as they finish.
            on_error: "return" gives a result with an `error`; "raise" raises the first error and ends the other
                requests; a function is called with each result that has an error, and what it returns takes its place;
                None leaves it out. The function may be async.
            stream: Whether the answers are streamed. Then the timings include the first token, silence is noticed
                (`Timeouts.idle`), and an error has the part of the answer that had come (`.partial`).
            on_chunk: Called with the index and each chunk of a stream; it may be async, which slows only that stream.
                Needs `stream=True`. An exception that it raises ends the map.
            model: For requests that name no model.
            timeouts: In place of the client's; None takes those.
            retry: In place of the client's. None takes that; for "batch" with a `max_retry_after` of at least 900: a
                pause of up to 15 minutes is waited for, and the service may refuse everything for as long.
            priority: "batch" yields to interactive calls, and waits longer for the service; "interactive" does not.
            headers: In addition to, or in place of, the client's.
            **options: Fields of `ChatCompletionRequest`, for requests that leave them out.

        Raises:
            ValueError: An argument out of range. A default that is out of range is found with the first request.
            TypeError: An unknown option.
        """
        _check_options(options)
        check_map(model, timeouts, on_chunk, stream=stream, start=start)
        check_priority(priority)
        headers = checked_headers(headers) if headers else None
        retry = checked_retry(retry) or self._retries[priority]
        defaults = {name: value for name, value in {"model": model, **options}.items() if value is not None}
        call = functools.partial(
            self._call,
            headers=headers,
            timeouts=timeouts or self._timeouts,
            retry=retry,
            priority=priority,
            streamed=stream,
            counts_as_queued=False,
            careful_start=start == "careful",
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
        """Sends all requests of a file, and writes the results to another file. Called again, it goes on.

        ```python
        summary = await client.run_batch("in.jsonl", "out.jsonl")
        ```

        A result counts once it is on disk. Whatever ends the process, the next call asks for the requests that have no
        result, and for those that were edited since: a request is known by its `custom_id` and a hash of its body,
        defaults included. Results of bodies that were edited move to a second file, `<output>.superseded`.

        A batch has time: it waits for the first answer of a model of unknown limits before it sends more, and for
        pauses of up to 900 s.

        Args:
            input: JSON lines as the Batch API takes them, `{"custom_id": ..., "body": {...}}`; a text with one prompt
                per line; or a CSV, with a template.
            output: JSON lines as the Batch API writes them, plus `"meta"` with hash, timing and attempts.
            model: For requests that name no model.
            format: The format of the input; None goes by its suffix.
            template: For text and CSV: makes the prompt of a line, as "Summarise: {body}". None takes the line itself.
            system: For text and CSV: a system message before each prompt; None for no such message.
            concurrency: As for `map`.
            stream: Whether the answers are streamed: then silence is noticed, and no gateway gives up on a long answer.
                The output holds whole completions in either case.
            retry_errors: Whether requests that failed in earlier runs are asked again.
            keep_going: Whether invalid lines become errors in the output; if not, they keep the batch from starting.
            prices: Whether to ask the service for its prices (`GET /models`), so that the summary has the cost.
            max_cost: The most US dollars that all answers in the output may cost together, by these prices; None for
                no limit.
            max_tokens_total: The most tokens that they may use together, prompts and answers; None for no limit.
            deadline: When to stop starting requests: seconds from now, a timedelta or a datetime; None for never.
            report: Where to write an HTML page about the run; None writes none.
            on_result: Called with the record of each result once it is on disk; None calls nothing.
            timeouts: In place of the client's; None takes those.
            retry: As for `map`.
            headers: In addition to, or in place of, the client's.
            **options: Fields of `ChatCompletionRequest`, for requests that leave them out.

        Returns:
            A summary: how many requests have an answer, how many an error, and how many neither, because the run was
            `stopped`.

        Raises:
            BatchInputError: Lines of the input are invalid; `.errors` has each with its number.
            OutputError: The output can't be written, holds something else, or belongs to another run.
            OSError: The input can't be read.
            ValueError: An argument out of range.
            TypeError: An unknown option.
        """
        from together_async.batch import Batch, BatchOptions  # noqa: PLC0415 - not needed otherwise

        _check_options(options)
        check_map(model, timeouts, None, stream=stream)
        checked_headers(headers or {})
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
        """Returns the price of each model of the service, by the model's name; models without a price are left out.

        Args:
            timeouts: In place of the client's; None takes those.

        Raises:
            APIStatusError: The server has no such list, or refuses it.
            APIConnectionError, APITimeoutError: Nothing came back.
            APIResponseValidationError: The response is not JSON.
        """
        from together_async.pricing import read_prices  # noqa: PLC0415 - most programs never ask for prices

        response: HTTPResponse | None = None
        try:
            transport = self._connections.transport()
            response = await transport.open(
                MODELS_REQUEST,
                headers=None,
                timeouts=timeouts if timeouts is not None else self._timeouts,
                started=transport.loop.time(),
            )
            if not 200 <= response.status < 300:
                body = await response.read_error_body()
                raise status_error(response.status, response.headers, body, secrets=[self._connections.api_key])
            return read_prices(json_of(await response.read_all()))
        except TogetherError as error:
            let_go(error)
            raise
        finally:
            if response is not None:
                response.close()

    @property
    def chat(self) -> Chat:
        """The names of the SDKs: `client.chat.completions.create(model=..., messages=[...], stream=True)`."""
        return Chat(self)

    @property
    def timeouts(self) -> Timeouts:
        """The deadlines of calls that bring none of their own."""
        return self._timeouts

    @property
    def limiter(self) -> RateLimiter:
        """The limiter of this client's calls; `AsyncTogether(limits=client.limiter)` shares it with another client."""
        return self._limiter

    @property
    def limits(self) -> LimitsState:
        """The state of the limiter now: requests in flight and queued, learned limits, pauses, 429s and 503s seen."""
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
        """Returns a call that has yet to be opened, after checking the caller's arguments."""
        check_priority(priority)
        return self._call(
            request,
            headers=checked_headers(headers) if headers else None,
            timeouts=timeouts if timeouts is not None else self._timeouts,
            retry=checked_retry(retry) or self._retries[priority],
            priority=priority,
            streamed=streamed,
        )

    def _call(
        self,
        request: ChatCompletionRequest,
        *,
        headers: Mapping[str, str] | None,
        timeouts: Timeouts,
        retry: Retry,
        priority: Priority,
        streamed: bool,
        counts_as_queued: bool = True,
        careful_start: bool = False,
    ) -> Call:
        """Returns a call that has yet to be opened."""
        return Call(
            CallSettings(
                connections=self._connections,
                driver=self._limiter.driver,
                budget=self._budget,
                request=request,
                http_request=build_request(request, stream=streamed),
                headers=headers,
                timeouts=timeouts,
                retry=retry,
                priority=priority,
                size=size_of(request.messages, request.max_tokens, request.n),
                streamed=streamed,
                counts_as_queued=counts_as_queued,
                careful_start=careful_start,
            )
        )

    # ------------------------------------------------------------------------------------------------------- lifetime

    async def __aenter__(self) -> Self:
        # Here rather than within the first call, whose time to the first token it would lengthen.
        import together_async.http.transport  # noqa: F401, PLC0415 - imports aiohttp

        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if exc_type is GeneratorExit:
            self._connections.discard()  # its task was destroyed, and can't wait
        else:
            await self.aclose()

    async def aclose(self) -> None:
        """Ends live streams and calls with a typed error, and closes the connections. Twice is fine.

        Raises:
            APIConnectionError: The client is in use in another event loop, which still runs; close it there.
        """
        await self._connections.aclose()

    async def close(self) -> None:
        """`aclose`, by the name it has in the SDKs."""
        await self.aclose()


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
    return request_of(messages, model, options)


def _check_options(options: Mapping[str, Any]) -> None:
    if not options.keys() <= _REQUEST_FIELDS:
        unknown = options.keys() - _REQUEST_FIELDS
        raise TypeError(
            f"unexpected option {', '.join(sorted(unknown))}: no field of ChatCompletionRequest; "
            "what only the server knows goes into extra_body"
        )
