"""Many requests: `map`, which asks for many completions at once.

How much there is at any moment is bounded in both directions: what has been read of the input and not yet been taken by
the reader is never more than `concurrency` (in order: twice that), so a slow reader slows the input.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeAlias, TypeVar, cast

import attrs

from together_async.errors import TogetherError
from together_async.fanout.group import Group, Results
from together_async.models import ChatCompletion, ChatCompletionChunk, Retried, Usage
from together_async.request import ChatCompletionRequest, MessagesLike
from together_async.tasks import MISLEADING, not_misleading

if TYPE_CHECKING:
    from together_async.calls.call import Call
    from together_async.calls.stream import ChatCompletionStream

R = TypeVar("R")

MOST_AT_ONCE: Final = 256
"""Requests under way at once, when neither the caller nor the limits say how many."""
_OTHER_FILES: Final = 64
"""Descriptors that are left to everything else in the process."""


@attrs.frozen
class Timing:
    """How long one request of a `map` took. Seconds, counted from the moment it was read from the input.

    Attributes:
        queued_s: Until its first attempt was sent: the wait for the limits.
        first_token_s: Until the first token came, for `stream=True`; else None.
        total_s: Until its end.
    """

    queued_s: float
    first_token_s: float | None
    total_s: float


@attrs.frozen
class MapResult(Generic[R]):
    """What became of one request.

    Attributes:
        index: Its place in the input, from 0.
        request: It, as it was given.
        completion: The answer; None when there is none.
        error: Why not: a `TogetherError`, or the ValueError of a request that is none; None when all is well.
        attempts: How many HTTP requests were made for it; 0 when none was sent.
        timing: How long it took.
        retries: Why there was more than one attempt.
    """

    index: int
    request: R = attrs.field(repr=False)
    completion: ChatCompletion | None = attrs.field(repr=False)
    error: TogetherError | ValueError | None
    attempts: int
    timing: Timing
    retries: tuple[Retried, ...] = ()

    @property
    def usage(self) -> Usage | None:
        """The server's count of tokens, None when it did not come."""
        return None if self.completion is None else self.completion.usage


OnError: TypeAlias = Literal["return", "raise"] | Callable[[MapResult[Any]], Any]
OnChunk: TypeAlias = Callable[[int, ChatCompletionChunk], Any]


class Requester:
    """How the requests of one `map` are asked: what the client gives to it."""

    __slots__ = ("call", "stream", "whole")

    def __init__(
        self,
        call: Callable[[ChatCompletionRequest], Call],
        whole: Callable[[Call], Coroutine[Any, Any, ChatCompletion]] | None,
        stream: Callable[[Call, ChatCompletionRequest], ChatCompletionStream],
    ) -> None:
        self.call = call
        self.whole = whole
        self.stream = stream


class MapResults(Results[MapResult[R]]):
    """The results of a `map`, as they come: an async iterator, and an async context manager. Made by `client.map`."""

    __slots__ = ()
    _group: Fanout[R]

    def __repr__(self) -> str:
        group = self._group
        return f"<{type(self).__name__} {group.under_way} under way, {group.waiting} of them wait, {group.read} read>"

    @property
    def under_way(self) -> int:
        """How many requests have begun and not ended."""
        return self._group.under_way

    @property
    def waiting(self) -> int:
        """How many of them wait for the limits."""
        return self._group.waiting

    @property
    def limited_s(self) -> float:
        """Seconds so far in which at least one of them waited for the limits."""
        return self._group.limited_s

    def drain(self) -> None:
        """Reads no more of the input, and gives up requests of which nothing is under way; the others still come."""
        self._group.drain()


class _Asked:
    """What is known of one request so far."""

    __slots__ = ("call", "completion", "error", "first_token_s")

    def __init__(self) -> None:
        self.call: Call | None = None
        self.completion: ChatCompletion | None = None
        self.error: TogetherError | ValueError | None = None
        self.first_token_s: float | None = None

    def result(self, index: int, request: R, began: float, ended: float) -> MapResult[R]:
        """Returns what is told of it."""
        call = self.call
        sent = began if call is None else ended if call.first_sent_at is None else call.first_sent_at
        return MapResult(
            index,
            request,
            self.completion,
            self.error,
            0 if call is None else call.attempts,
            Timing(sent - began, self.first_token_s, ended - began),
            () if call is None else call.retries,
        )


class Fanout(Group[MapResult[R]]):
    """What goes on under one `map`.

    Args:
        source: The requests.
        asks: How each is asked.
        defaults: What holds for requests that do not say it themselves.
        concurrency: How many may be under way at once.
        ordered: Whether results come in the order of the input.
        on_error: What becomes of a result without a completion.
        on_chunk: Called with each chunk.
    """

    def __init__(
        self,
        source: Iterable[R] | AsyncIterable[R],
        asks: Requester,
        defaults: Defaults,
        *,
        concurrency: int,
        ordered: bool = False,
        on_error: OnError = "return",
        on_chunk: OnChunk | None = None,
    ) -> None:
        super().__init__()
        if on_error not in ("return", "raise") and not callable(on_error):
            raise ValueError(f"on_error: got {on_error!r}, expected 'return', 'raise' or a function of the result")
        self._source: Iterator[R] | None = None
        self._async_source: AsyncIterator[R] | None = None
        if isinstance(source, AsyncIterable):
            self._async_source = aiter(source)
        else:
            self._source = _iterator(source)
        self._asks = asks
        self._defaults = defaults
        self._concurrency = concurrency
        self._ordered = ordered
        # In order, a slow one keeps those after it waiting; others may begin meanwhile, but not without end.
        self._window = 2 * concurrency if ordered else concurrency
        self._on_error = on_error
        self._on_chunk = on_chunk
        self._early: dict[int, MapResult[R]] = {}  # in order: those that came before their turn
        self._next = 0
        self._room: asyncio.Future[None] | None = None
        self._exhausted = False
        self._filling = False
        self._callers: BaseException | None = None  # what `on_chunk` raised
        self._input_error: BaseException | None = None
        self.read = 0
        self.taken = 0
        self.under_way = 0
        self.waiting = 0
        self._limited_s = 0.0
        self._limited_since = 0.0
        self._resting: set[asyncio.Task[Any] | None] = set()
        self._reader: asyncio.Task[None] | None = None
        self._drained = False

    # ----------------------------------------------------------------------------------------------------------- input

    def _start(self) -> None:
        if self._async_source is not None:
            self._reader = self._spawn(self._read_all(self._async_source))
        else:
            self._fill()

    def _has_room(self) -> bool:
        return (
            self.under_way < self._concurrency
            and self.read - self.taken < self._window
            and not self.over
            and self._failure is None
        )

    def _fill(self) -> None:
        """Begins as many as may be."""
        source = self._source
        if source is None:
            room = self._room
            if room is not None and not room.done() and self._has_room():
                room.set_result(None)
            return
        if self._filling:  # tasks may begin, and even end, at once
            return
        self._filling = True
        while not self._exhausted and self._has_room():
            try:
                request = next(source)
            except StopIteration:
                self._end_of_input(None)
            except Exception as error:  # noqa: BLE001 - the reader gets it, after what is under way
                self._end_of_input(not_misleading(error) if isinstance(error, MISLEADING) else error)
            else:
                self._begin(request)
        self._filling = False

    async def _read_all(self, source: AsyncIterator[R]) -> None:
        self._begun()
        failure: BaseException | None = None
        try:
            while not self.over:
                if not self._has_room():
                    self._room = asyncio.get_running_loop().create_future()
                    await self._room
                request = await anext(source)
                if not self.over:
                    self._begin(request)
        except StopAsyncIteration:
            self._end_of_input(None)
        except Exception as error:  # noqa: BLE001 - the reader gets it, after what is under way
            self._end_of_input(error)
        except BaseException as error:
            if not self._exhausted and self._failure is None:  # not from here
                failure = error
            raise
        finally:
            self._ended(failure)
            self._reader = None
            del failure, source  # whose traceback holds this frame, and with it the input

    def _end_of_input(self, error: Exception | None) -> None:
        self._exhausted, self._source, self._async_source = True, None, None
        self._input_error = error

    def _all_brought(self) -> bool:
        if self._tasks or not self._exhausted:
            return False
        if self._input_error is not None:
            self._failure, self._input_error = self._input_error, None
        return True

    # --------------------------------------------------------------------------------------------------------- one each

    def _begin(self, request: R) -> None:
        index, self.read = self.read, self.read + 1
        self.under_way += 1
        self._spawn(self._ask(index, request))

    async def _ask(self, index: int, given: R) -> None:
        began = self._now()
        self._begun()
        one, asks = _Asked(), self._asks
        failure: BaseException | None = None
        try:
            request = self._defaults.request(given)
            call = one.call = asks.call(request)
            call.on_wait, call.on_rest = self._note_wait, self._note_rest
            if asks.whole is not None:
                one.completion = await asks.whole(call)
            else:
                one.completion = await self._streamed(index, one, asks.stream(call, request))
        except (TogetherError, ValueError) as error:
            one.error = error
            failure = error if error is self._callers else None
        except Exception as error:  # noqa: BLE001 - the reader gets it
            failure = error
        except BaseException as error:
            self._one_less()
            self._ended(None if self._drained else error)
            raise
        self._one_less()
        if failure is None:
            self._bring(one.result(index, given, began, self._now()))
        one.error = None  # whose traceback holds this frame
        self._ended(failure)

    def _one_less(self) -> None:
        if not self.over:
            self.under_way -= 1

    async def _streamed(self, index: int, one: _Asked, stream: ChatCompletionStream) -> ChatCompletion:
        try:
            return await self._read(index, stream)
        finally:
            one.first_token_s = stream.stats.first_token_s

    async def _read(self, index: int, stream: ChatCompletionStream) -> ChatCompletion:
        on_chunk = self._on_chunk
        if on_chunk is None:
            return await stream.completion()
        async with stream:
            async for chunk in stream:
                try:
                    answer = on_chunk(index, chunk)
                    if inspect.isawaitable(answer):
                        await answer
                except Exception as error:
                    self._callers = error
                    raise
            return await stream.completion()

    def _now(self) -> float:
        return self._loop.time()  # type: ignore[union-attr]  # started

    def _note_wait(self, change: int) -> None:
        """A call begins, or ends, to wait for the limits."""
        now = self._now()
        if self.waiting:
            self._limited_s += now - self._limited_since
        self._limited_since = now
        self.waiting += change
        self._note_rest(change)

    def _note_rest(self, change: int) -> None:
        """A call begins, or ends, to wait with nothing sent."""
        if change > 0:
            self._resting.add(asyncio.current_task())
        else:
            self._resting.discard(asyncio.current_task())

    @property
    def limited_s(self) -> float:
        """Seconds so far in which at least one call waited for the limits."""
        return self._limited_s + (self._now() - self._limited_since if self.waiting else 0.0)

    # ---------------------------------------------------------------------------------------------------------- output

    def _bring(self, result: MapResult[R]) -> None:
        if self.over:
            return
        if self._ordered:
            self._early[result.index] = result
            while (one := self._early.pop(self._next, None)) is not None:
                self._next += 1
                self._ready.append(one)
            self._fill()
        else:
            self._ready.append(result)
        if self._ready:
            self._wake()

    def _taken(self) -> None:
        self.taken += 1
        self._fill()

    async def take(self, *, owner: bool) -> MapResult[R]:
        """Returns the next result that is for the reader."""
        while True:
            result = await super().take(owner=owner)
            on_error = self._on_error
            if result.error is None or on_error == "return":
                return result
            if on_error == "raise":
                await self.aclose()
                result.error.add_note(f"request {result.index} of the map, from 0")
                raise result.error
            try:
                answer = on_error(result)  # pyright: ignore[reportCallIssue]  # mypy narrows it, pyright does not
                if inspect.isawaitable(answer):
                    answer = await answer
            except BaseException as error:
                await self.aclose()
                if isinstance(error, StopAsyncIteration):
                    raise not_misleading(error) from error
                raise
            if answer is not None:
                return cast("MapResult[R]", answer)

    def drain(self) -> None:
        """Reads no more, ends what waits for the limits or for another attempt, and lets the rest come."""
        self._drained = True
        self._end_of_input(None)
        for task in (self._reader, *self._resting):
            if task is not None:
                task.cancel()
        if self._all_brought():
            self._wake()

    def _never_began(self, task: asyncio.Task[None]) -> None:
        if self._drained:
            self._tasks.discard(task)
            if self._all_brought():
                self._wake()
        else:
            super()._never_began(task)

    def leave(self) -> None:
        """Tells all tasks to end, and lets go of the input."""
        super().leave()
        self._end_of_input(None)
        self._early.clear()
        self.under_way = 0


def _iterator(source: Any) -> Iterator[Any]:
    """Returns an iterator of what `map` was given.

    Raises:
        ValueError: There is none, or its elements are surely no requests.
    """
    if not isinstance(source, (str, bytes, Mapping)):
        try:
            return iter(source)
        except TypeError:
            pass
    raise ValueError(f"requests: got a {type(source).__name__}, expected an iterable of requests, as [prompt]")


class Defaults:
    """What holds for requests that do not say it themselves.

    Args:
        fields: Fields of `ChatCompletionRequest`.
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
            ValueError: It is none of them, or a field is missing or out of range.
        """
        if isinstance(given, str) and self._template is not None:
            return self._template.asking(given)  # most of all requests, so before the classes that are slow to ask
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
        """Returns a body in the wire's shape with what it does not say itself."""
        own = {name: value for name, value in given.items() if value is not None}
        if not self._fields:
            return own
        others = {name: value for name, value in self._fields.items() if name != "extra_body"}
        return {**self._fields.get("extra_body", {}), **others, **own}


def checked_concurrency(concurrency: object, limit: int | str | None) -> int:
    """Returns how many requests a `map` may have under way.

    Args:
        concurrency: What the caller asked for, None for nothing.
        limit: `Limits.concurrency`.

    Raises:
        ValueError: It is not a whole number from 1.
    """
    if concurrency is None:
        return limit if isinstance(limit, int) else min(MOST_AT_ONCE, _files_allowed())
    if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
        raise ValueError(f"concurrency: got {concurrency!r}, expected a whole number from 1, or None for as the limits")
    return concurrency


def _files_allowed() -> int:
    """Returns how many connections the process may open by its limit of descriptors, which is 256 on some systems."""
    if sys.platform == "win32":
        return MOST_AT_ONCE
    import resource  # noqa: PLC0415 - not on Windows

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_AT_ONCE if soft == resource.RLIM_INFINITY else max(1, soft - _OTHER_FILES)
