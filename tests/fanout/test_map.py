"""`client.map` and `merge`: many requests, many streams; nothing lost, nothing unbounded, nothing left behind.

Most of it runs in a loop whose clock jumps, with the emulator at the other end of real sockets, where
`await asyncio.sleep(1)` waits until nothing more can happen by itself. `CASES=10000 pytest tests/test_fanout.py -k any`
searches longer than the suite does.
"""
# ruff: noqa: SIM117, PT012, PERF401 - blocks within blocks and loops within blocks, because they are what is tested

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import itertools
import os
import pickle
import random
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import attrs
import pytest

from support import virtual_time
from support.leaks import open_sockets
from support.servers import KEY, MODEL, ScriptedServer, answers, delta, response, sse, whole
from together_async import (
    APIConnectionError,
    AsyncTogether,
    BadRequestError,
    ChatCompletionRequest,
    IncompleteStreamError,
    InternalServerError,
    Limits,
    MapResult,
    Message,
    PaymentRequiredError,
    QueueFullError,
    RateLimiter,
    RateLimitError,
    Retry,
    StreamError,
    TogetherError,
    merge,
)
from together_async.calls import whole as whole_responses
from together_async.fanout.defaults import checked_concurrency
from together_async.testing import (
    Account,
    Chance,
    CloseAfter,
    Cut,
    EmulatorServer,
    ErrorInStream,
    Garbage,
    InTurn,
    OneOf,
    Rate,
    Stall,
    Status,
    WithoutDone,
)

CASES = int(os.environ.get("CASES", "60"))
TEXT = "one two three"
SECRET = "Nobody may read this prompt of mine."
QUICK = Retry(base_delay=0.01, max_delay=0.02)
ONE = Retry(attempts=1)
KINDS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
ORDERS = pytest.mark.parametrize("ordered", [False, True], ids=["as they finish", "in order"])
SOURCES = pytest.mark.parametrize("kind", ["list", "generator", "async generator"])


def virtual(test: Callable[..., Any]) -> Callable[..., None]:
    """Runs a test in a loop whose clock jumps; at its end there is no task, no socket and no failed callback."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        before = open_sockets()
        failed: list[dict[str, Any]] = []

        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
            await test(*args, **kwargs)
            await asyncio.sleep(0.01)  # transports close a turn or two after they are told to
            await asyncio.get_running_loop().shutdown_asyncgens()

        virtual_time.run(main())
        assert not failed, failed
        assert not open_sockets() - before, "sockets left open"

    return run


def now() -> float:
    return asyncio.get_running_loop().time()


def _echo(request: ChatCompletionRequest) -> str:
    return f"You said: {request.messages[-1]['content']}"


class Server(EmulatorServer):
    """An emulator that repeats the prompt, and knows how many requests it had at once.

    Attributes:
        peak: The most requests that were under way at once.
    """

    def __init__(self, script: Any = None, **options: Any) -> None:
        self.peak = self._under_way = 0
        super().__init__(_echo if script is None else script, on_end=self._one_less, **options)

    def answer(self, *args: Any) -> Any:
        self._under_way += 1
        self.peak = max(self.peak, self._under_way)
        return super().answer(*args)

    def _one_less(self, _: Any) -> None:
        self._under_way -= 1

    @property
    def prompts(self) -> list[str]:
        """What was asked, in the order of arrival."""
        return [entry.request.messages[-1]["content"] for entry in self.journal if entry.request is not None]


def client_of(server: Any, limits: Limits | None = None, **options: Any) -> AsyncTogether:
    """A client on the running loop's clock."""
    return AsyncTogether(KEY, base_url=server.base_url, proxy="", limits=RateLimiter(limits, clock=now), **options)


@contextlib.asynccontextmanager
async def emulated(
    script: Any = None, limits: Limits | None = None, client: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[tuple[Server, AsyncTogether]]:
    """A server and a client of it, at whose end nothing may be under way."""
    async with Server(script, **options) as server, client_of(server, limits, **(client or {})) as one:
        yield server, one
        check_idle(one)


def children() -> list[str]:
    """The tasks that a map or a merge has started and that have not ended."""
    names = (getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks())
    return [name for name in names if name.startswith(("MapGroup.", "MergeGroup."))]


def check_idle(client: AsyncTogether) -> None:
    """Nobody has a place, nobody waits for one, no response is open, no task is at work."""
    state = client.limits
    assert (state.in_flight, state.queued) == (0, 0), state
    transport = client._connections.current
    assert transport is None or not transport.openings
    assert transport is None or not transport._deadlines._waiting
    assert not children()


def source_of(kind: str, items: Iterable[Any], read: list[Any] | None = None) -> Any:
    """The items as the kind of input; `read` notes what was read."""
    read = [] if read is None else read
    if kind == "list":
        return list(items)

    def generate() -> Iterator[Any]:
        for item in items:
            read.append(item)
            yield item

    async def generate_async() -> AsyncIterator[Any]:
        for item in generate():
            yield item

    return generate() if kind == "generator" else generate_async()


def prompts(count: int) -> list[str]:
    return [f"prompt {number}" for number in range(count)]


async def all_of(results: Any) -> list[MapResult[Any]]:
    return [result async for result in results]


def check_complete(results: list[MapResult[Any]], given: list[Any]) -> None:
    """Each request has one result, which is its own."""
    assert sorted(result.index for result in results) == list(range(len(given)))
    for result in results:
        assert result.request is given[result.index] or result.request == given[result.index]
        assert (result.completion is None) is (result.error is not None)
        if result.completion is not None:
            assert result.completion.text == f"You said: {result.request}"
            assert result.usage is not None


# ---------------------------------------------------------------------------------------------------------------- input


@KINDS
@ORDERS
@SOURCES
@virtual
async def test_every_request_has_its_result(kind: str, ordered: bool, stream: bool) -> None:
    """Of any kind of input, whole or streamed, in order or as they finish; on no more connections than requests at
    once."""
    given = prompts(40)
    async with emulated() as (server, client):
        results = await all_of(
            client.map(source_of(kind, given), model=MODEL, concurrency=7, ordered=ordered, stream=stream)
        )
        check_complete(results, given)
        if ordered:
            assert [result.index for result in results] == list(range(40))
        assert sorted(server.prompts) == sorted(given)
        assert server.peak <= 7
        assert server.connections <= 7


@virtual
async def test_every_kind_of_request() -> None:
    """A str, dicts, `Message`s, a whole request as a dict or as a value: all of them in one input."""
    message = {"role": "user", "content": "dicts"}
    given: list[Any] = [
        "text",
        [message],
        (Message.system("Be brief."), Message.user("messages")),
        {"messages": "wire", "model": MODEL, "stream": True},
        {"messages": [{"role": "user", "content": "no model"}], "unknown": 5},
        ChatCompletionRequest(messages="value", model="other", n=2),
    ]
    async with emulated() as (server, client):
        results = await all_of(client.map(given, model=MODEL, ordered=True, concurrency=1))
    assert [result.request for result in results] == given
    assert all(result.request is one for result, one in zip(results, given, strict=True))
    assert [result.completion.text for result in results if result.completion] == [
        f"You said: {text}" for text in ("text", "dicts", "messages", "wire", "no model", "value")
    ]
    assert [entry.model for entry in server.journal] == [*[MODEL] * 5, "other"]
    assert len(results[-1].completion.choices) == 2  # type: ignore[union-attr]
    assert server.journal[4].body["unknown"] == 5
    assert not any(entry.streamed for entry in server.journal)


@virtual
async def test_defaults_fill_what_a_request_does_not_say() -> None:
    """And never replace what it says, a 0 neither; None in a dict says nothing."""
    given: list[Any] = [
        "text",
        {"messages": "a", "model": "own", "temperature": 0, "max_tokens": 3, "extra": "own"},
        {"messages": "b", "temperature": None, "model": None},
        ChatCompletionRequest(messages="c", model="own", temperature=0.0, extra_body={"extra": "own", "mine": 1}),
        ChatCompletionRequest(messages="d", model="own"),
    ]
    options: dict[str, Any] = {"temperature": 0.7, "max_tokens": 9, "stop": ["x"], "extra_body": {"extra": "all"}}
    async with emulated() as (server, client):
        await all_of(client.map(given, model=MODEL, concurrency=1, ordered=True, **options))
    sent = [
        tuple(entry.body.get(name) for name in ("model", "temperature", "max_tokens", "extra", "mine"))
        for entry in server.journal
    ]
    assert sent == [
        (MODEL, 0.7, 9, "all", None),
        ("own", 0, 3, "own", None),
        (MODEL, 0.7, 9, "all", None),
        ("own", 0, 9, "own", 1),
        ("own", 0.7, 9, "all", None),
    ]
    assert all(entry.body["stop"] == ["x"] for entry in server.journal)


@virtual
async def test_one_request_does_not_change_the_next() -> None:
    """What is checked once for all is not shared: each has its own messages, and the defaults stay the caller's."""
    extra = {"a": 1}
    async with emulated() as (server, client):
        given = [[{"role": "user", "content": f"prompt {n}"}] for n in range(3)]
        await all_of(client.map(given, model=MODEL, concurrency=1, extra_body=extra))
    assert server.prompts == prompts(3)
    assert extra == {"a": 1}


@pytest.mark.parametrize(
    "bad", ["a prompt", b"bytes", {"messages": "hi"}, 5, None, ChatCompletionRequest(messages="hi", model="m")]
)
@virtual
async def test_what_is_no_input(bad: Any) -> None:
    """One prompt, or one request, is no input of many: each of its characters would be a prompt."""
    async with AsyncTogether(KEY) as client:
        with pytest.raises(ValueError, match=r"requests: got a \w+, expected an iterable of requests, as \[prompt\]"):
            client.map(bad, model=MODEL)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"concurrency": 0}, "concurrency: got 0, expected a whole number from 1"),
        ({"concurrency": -1}, "concurrency: got -1"),
        ({"concurrency": 2.5}, "concurrency: got 2.5"),
        ({"concurrency": True}, "concurrency: got True"),
        ({"concurrency": "8"}, "concurrency: got '8'"),
        ({"on_error": "ignore"}, "on_error: got 'ignore', expected 'return', 'raise' or a function"),
        ({"on_error": None}, "on_error: got None"),
        ({"on_chunk": print}, "on_chunk: there are chunks only with stream=True"),
        ({"on_chunk": 5, "stream": True}, "on_chunk: got a int, expected a function"),
        ({"priority": "urgent"}, "priority: got 'urgent'"),
        ({"retry": 3}, "retry: got a int, expected a Retry"),
        ({"timeouts": 5}, "timeouts: got a int, expected Timeouts"),
        ({"headers": {"a": 5}}, "headers.*: got a int, expected a str"),
        ({"model": 5}, "model: got a int, expected the name of a model"),
        ({"model": " "}, "model: "),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@virtual
async def test_an_argument_out_of_range_is_found_at_the_call(options: dict[str, Any], said: str) -> None:
    """Before anything is read from the input."""
    read: list[str] = []
    async with AsyncTogether(KEY) as client:
        with pytest.raises(ValueError, match=said):
            client.map(source_of("generator", ["a"], read), **{"model": MODEL, **options})
    assert not read


@virtual
async def test_an_option_that_is_none_is_a_type_error() -> None:
    """As for `create`."""
    async with AsyncTogether(KEY) as client:
        with pytest.raises(TypeError, match="unexpected option temprature"):
            client.map(["hi"], model=MODEL, temprature=1)  # type: ignore[call-arg]


BAD: dict[str, Any] = {
    "None": None,
    "int": 5,
    "bytes": SECRET.encode(),
    "half a character": SECRET + " \ud800",
    "no message": [],
    "strs": [SECRET],
    "pair": ("key", SECRET),
    "message alone": {"role": "user", "content": SECRET},
    "Message alone": Message.user(SECRET),
    "temperature": {"messages": SECRET, "temperature": -1},
    "n": {"messages": SECRET, "n": SECRET},
    "no JSON": {"messages": SECRET, "extra": object()},
    "content": [{"role": "user", "content": {SECRET}}],
    "role": [{"content": SECRET}],
    "model": {"messages": SECRET, "model": 5},
    "batch line": {"custom_id": "1", "body": {"messages": SECRET}},
    "generator": (SECRET for _ in range(1)),
    "empty dict": {},
}


@KINDS
@pytest.mark.parametrize("name", BAD)
@virtual
async def test_an_element_that_is_no_request(name: str, stream: bool) -> None:
    """It has a result of its own, with a ValueError and no prompt in any text; nothing is sent, the others go on."""
    async with emulated() as (server, client):
        results = await all_of(
            client.map(["a", BAD[name], "b"], model=MODEL, ordered=True, concurrency=2, stream=stream)
        )
        assert sorted(server.prompts) == ["a", "b"]
    one, bad, other = results
    assert one.completion is not None
    assert other.completion is not None
    assert type(bad.error) is ValueError
    assert (bad.completion, bad.attempts, bad.retries, bad.usage) == (None, 0, (), None)
    assert SECRET not in "".join(traceback.format_exception(bad.error)) + repr(bad.error) + repr(bad)
    assert 0 == bad.timing.queued_s <= bad.timing.total_s


@virtual
async def test_a_wrong_default_is_an_error_of_each_request() -> None:
    """Nothing is sent for it; a request with a value of its own is right."""
    given = ["a", "b", {"messages": "c", "model": MODEL, "temperature": 1}]
    async with emulated() as (server, client):
        results = await all_of(client.map(given, model=MODEL, ordered=True, temperature=-1, concurrency=1))
        assert [type(result.error) for result in results] == [ValueError, ValueError, type(None)]
        assert server.prompts == ["c"]


@virtual
async def test_no_model_anywhere() -> None:
    """It says how to name one."""
    async with emulated() as (server, client):
        (result,) = await all_of(client.map(["hi"]))
        with pytest.raises(ValueError, match="model: missing; name it, as model="):
            raise result.error  # type: ignore[misc]
        assert not server.prompts


@SOURCES
@virtual
async def test_an_empty_input(kind: str) -> None:
    """No results, no connection."""
    async with emulated() as (server, client):
        assert await all_of(client.map(source_of(kind, []), model=MODEL)) == []
        assert server.connections == 0


@virtual
async def test_a_sequence_by_its_index() -> None:
    """A data set that has lengths and places, and no `__iter__`, is an input too."""

    class Dataset:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, place: int) -> str:
            if place >= 3:
                raise IndexError
            return f"prompt {place}"

    async with emulated() as (_, client):
        results = await all_of(client.map(Dataset(), model=MODEL))  # type: ignore[arg-type]
        check_complete(results, prompts(3))


@ORDERS
@pytest.mark.parametrize("kind", ["generator", "async generator"])
@pytest.mark.parametrize("after", [0, 1, 3, 20])
@virtual
async def test_an_input_that_raises(kind: str, after: int, ordered: bool) -> None:
    """What is under way comes first, all of it; then the input's own error."""

    def items() -> Iterator[str]:
        yield from prompts(after)
        raise KeyError("mine")

    got: list[MapResult[Any]] = []
    async with emulated(first_token_s=0.5) as (_, client):
        results = client.map(source_of(kind, items()), model=MODEL, concurrency=4, ordered=ordered)
        with pytest.raises(KeyError, match="mine"):
            async for result in results:
                got.append(result)
        check_complete(got, prompts(after))
        assert await all_of(results) == []


@pytest.mark.parametrize("error", [asyncio.CancelledError(), StopAsyncIteration(), StopIteration()], ids=repr)
@pytest.mark.parametrize("kind", ["generator", "async generator"])
@virtual
async def test_an_input_that_ends_by_what_looks_like_an_end(kind: str, error: BaseException) -> None:
    """A cancelled task that the input awaited, an empty iterator that it asked: an input that is cut off never looks
    like one that has ended."""

    class Source:
        def __init__(self) -> None:
            self._items = iter(prompts(3))

        def __iter__(self) -> Source:
            return self

        def __next__(self) -> str:
            for item in self._items:
                return item
            raise error

    class AsyncSource(Source):
        __iter__ = None  # type: ignore[assignment]

        def __aiter__(self) -> AsyncSource:
            return self

        async def __anext__(self) -> str:
            return self.__next__()

    ends = {"generator": StopIteration, "async generator": StopAsyncIteration}
    got = 0
    async with emulated() as (_, client):
        source = Source() if kind == "generator" else AsyncSource()
        if isinstance(error, ends[kind]):  # its own word for the end
            assert len(await all_of(client.map(source, model=MODEL))) == 3
            return
        with pytest.raises((RuntimeError, asyncio.CancelledError)) as caught:
            async for _ in client.map(source, model=MODEL, concurrency=1):
                got += 1
        if kind == "async generator" or not isinstance(error, asyncio.CancelledError):
            assert type(caught.value) is RuntimeError
        assert got >= 2


@virtual
async def test_an_input_whose_task_was_cancelled() -> None:
    """An async generator that awaits a task which somebody cancels: an error, not the end."""

    async def source() -> AsyncIterator[str]:
        yield "a"
        other = asyncio.ensure_future(asyncio.sleep(100))
        other.cancel()
        await other
        yield "b"

    async with emulated() as (_, client):
        got = []
        with pytest.raises(RuntimeError, match="cancelled"):
            async for result in client.map(source(), model=MODEL):
                got.append(result.index)
        assert got in ([], [0])


@virtual
async def test_an_input_that_waits() -> None:
    """What is under way comes while the input has nothing more, and the next is asked as soon as it is there."""
    more = asyncio.Queue[str | None]()

    async def source() -> AsyncIterator[str]:
        while (item := await more.get()) is not None:
            yield item

    async with emulated(first_token_s=1.0) as (server, client):
        async with client.map(source(), model=MODEL, concurrency=5) as results:
            began = now()
            more.put_nowait("a")
            assert (await anext(results)).request == "a"
            more.put_nowait("b")
            more.put_nowait("c")
            assert {(await anext(results)).request for _ in range(2)} == {"b", "c"}
            assert 2.0 <= now() - began < 2.5
            waiting = asyncio.ensure_future(anext(results, None))
            await asyncio.sleep(100)
            assert not waiting.done()
            more.put_nowait(None)
            assert await waiting is None
        assert len(server.journal) == 3


@virtual
async def test_a_blocked_input_does_not_hold_up_the_end() -> None:
    """Leaving while the input waits, for something that never comes, ends it there; its `finally` has run then."""
    ended = []

    async def source() -> AsyncIterator[str]:
        try:
            yield "a"
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0.1)
            ended.append(now())

    async with emulated() as (_, client):
        async with client.map(source(), model=MODEL) as results:
            await anext(results)
        assert ended
        assert not children()


@virtual
async def test_an_input_that_does_not_care_for_cancellation() -> None:
    """It yields once more after it was told to end: that is not asked, and leaving does not wait for it for ever."""

    async def source() -> AsyncIterator[str]:
        yield "a"
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(1_000)
        yield "b"
        yield "c"

    async with emulated() as (server, client):
        async with client.map(source(), model=MODEL) as results:
            await anext(results)
            before = now()
        assert now() - before < 1
        assert server.prompts == ["a"]


@virtual
async def test_a_generator_that_was_left_goes_on_elsewhere() -> None:
    """A caller's own generator is not closed: what the map has not read is still in it."""
    source = iter(prompts(10))
    async with emulated() as (_, client):
        async with client.map(source, model=MODEL, concurrency=2) as results:
            await anext(results)
        assert next(source) == "prompt 3"


@virtual
async def test_an_async_input_is_let_go_of() -> None:
    """After leaving nothing holds it: what it keeps open is closed, without a collection."""
    ended = []

    async def source() -> AsyncIterator[str]:
        try:
            for prompt in prompts(100):
                yield prompt
        finally:
            ended.append(1)

    gc.collect()
    gc.disable()
    try:
        async with emulated() as (_, client):
            for way in ("block", "loop"):
                if way == "block":
                    async with client.map(source(), model=MODEL, concurrency=2) as results:
                        await anext(results)
                else:
                    async for _ in client.map(source(), model=MODEL, concurrency=2):
                        break
                await asyncio.sleep(1)
                assert len(ended) == ("block", "loop").index(way) + 1
    finally:
        gc.enable()


# --------------------------------------------------------------------------------------------------------------- bounds


@KINDS
@ORDERS
@pytest.mark.parametrize("kind", ["generator", "async generator"])
@virtual
async def test_a_slow_reader_slows_an_endless_input(kind: str, ordered: bool, stream: bool) -> None:
    """What was read and not taken is never more than `concurrency`, in order twice that; so is what is kept."""
    read: list[Any] = []
    most = 0
    async with emulated() as (server, client):
        source = source_of(kind, (f"prompt {n}" for n in itertools.count()), read)
        async with client.map(source, model=MODEL, concurrency=5, ordered=ordered, stream=stream) as results:
            taken = 0
            async for _ in results:
                taken += 1
                ahead = len(read) - taken
                most = max(most, ahead)
                await asyncio.sleep(1)
                assert len(results._group._ready) + len(results._group._in_order or ()) <= (10 if ordered else 5)
                if taken == 40:
                    break
        assert most <= (10 if ordered else 5)
        assert server.peak <= 5
    assert len(read) <= 40 + (10 if ordered else 5)


@pytest.mark.parametrize("kind", ["generator", "async generator"])
@virtual
async def test_in_order_the_slowest_holds_up_a_bounded_number(kind: str) -> None:
    """While the first one takes a minute, `2 * concurrency` are asked, and no more are read."""
    read: list[Any] = []
    faults = InTurn(Stall(seconds=60))
    async with emulated(faults=faults) as (server, client):
        async with client.map(source_of(kind, prompts(100), read), model=MODEL, concurrency=4, ordered=True) as results:
            waiting = asyncio.ensure_future(anext(results))
            await asyncio.sleep(30)
            assert len(read) == 8
            assert len(server.journal) == 8
            assert (await waiting).index == 0
            assert [result.index async for result in results] == list(range(1, 100))


@KINDS
@pytest.mark.parametrize("concurrency", [1, 2, 16])
@virtual
async def test_the_server_never_has_more_at_once(concurrency: int, stream: bool) -> None:
    """And it has as many, as long as there are: answers of a second each come in time."""
    async with emulated(first_token_s=1.0) as (server, client):
        began = now()
        results = await all_of(client.map(prompts(32), model=MODEL, concurrency=concurrency, stream=stream))
        check_complete(results, prompts(32))
        assert server.peak == concurrency
        assert 32 / concurrency <= now() - began < 32 / concurrency * 1.1 + 0.5


@virtual
async def test_concurrency_is_that_of_the_limits_if_none_is_given() -> None:
    """And those hold also when the map may have more."""
    for concurrency, peak in ((None, 3), (10, 3), (2, 2)):
        async with emulated(limits=Limits(concurrency=3), first_token_s=1.0) as (server, client):
            read: list[Any] = []
            results = client.map(source_of("generator", prompts(12), read), model=MODEL, concurrency=concurrency)
            await anext(results)
            assert len(read) <= (concurrency or 3) + 1
            await all_of(results)
            assert server.peak == peak


@pytest.mark.parametrize(("soft", "most"), [(256, 192), (64, 1), (3, 1), (1_048_576, 256), (-1, 256)])
def test_no_more_at_once_than_the_process_may_have_files(monkeypatch: pytest.MonkeyPatch, soft: int, most: int) -> None:
    """256 by default, fewer where descriptors are short, and never none."""
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, soft))
    assert checked_concurrency(None, None) == most
    assert checked_concurrency(None, "auto") == most
    assert checked_concurrency(None, 1_000) == 1_000
    assert checked_concurrency(1_000, 3) == 1_000


@virtual
async def test_nothing_is_kept_of_what_was_taken() -> None:
    """Hundreds of results, dropped: none leaves a cycle to the garbage collector, an error neither."""
    async with emulated(faults=OneOf(Status(400), None)) as (_, client):
        for count in (20, 400):
            gc.collect()
            gc.disable()
            try:
                async for _result in client.map(prompts(count), model=MODEL, concurrency=4):
                    pass
                del _result
                found = gc.collect()
            finally:
                gc.enable()
        assert found < 200


# -------------------------------------------------------------------------------------------------------------- results


@ORDERS
@virtual
async def test_results_come_as_they_finish_or_in_order(ordered: bool) -> None:
    """The first request is the slowest."""
    faults = InTurn(Stall(seconds=3), Stall(seconds=2), Stall(seconds=1))
    async with emulated(faults=faults) as (_, client):
        results = await all_of(client.map(prompts(3), model=MODEL, concurrency=3, ordered=ordered))
    assert [result.index for result in results] == ([0, 1, 2] if ordered else [2, 1, 0])


@KINDS
@virtual
async def test_timing(stream: bool) -> None:
    """The wait for a place is `queued_s`; the first token counts from the same moment, and only streams know it."""
    limits = Limits(concurrency=1)
    async with emulated("a b c d e", limits=limits, first_token_s=2.0, tokens_per_second=10) as (_, client):
        results = await all_of(client.map(prompts(3), model=MODEL, concurrency=3, ordered=True, stream=stream))
    each = results[0].timing.total_s
    assert 2.4 <= each <= 2.7
    for place, result in enumerate(results):
        timing = result.timing
        assert timing.queued_s == pytest.approx(place * each, abs=0.1)
        assert timing.total_s == pytest.approx((place + 1) * each, abs=0.1)
        if stream:
            assert timing.first_token_s == pytest.approx(timing.queued_s + 2.0, abs=0.1)
        else:
            assert timing.first_token_s is None


@KINDS
@pytest.mark.default_retry
@virtual
async def test_a_retried_request_tells_of_it(stream: bool) -> None:
    """Attempts, why, and what became of it; time runs from the first attempt, the wait for the second is in it."""
    faults = InTurn(Status(503, headers={"retry-after": "7"}), Status(429, headers={"retry-after": "11"}))
    async with emulated(faults=faults) as (server, client):
        (result,) = await all_of(client.map(["prompt 0"], model=MODEL, stream=stream))
        check_complete([result], prompts(1))
        assert (result.attempts, len(server.journal)) == (3, 3)
        assert [
            (retried.reason, retried.waited_s >= least) for retried, least in zip(result.retries, (7, 11), strict=True)
        ]
        assert [retried.reason for retried in result.retries] == ["503", "429"]
        assert (result.completion.attempts, result.completion.retries) == (3, result.retries)  # type: ignore[union-attr]
        assert result.timing.queued_s < 1
        assert result.timing.total_s >= 18


@KINDS
@virtual
async def test_errors_are_results(stream: bool) -> None:
    """Refused, broken off, lost: a `TogetherError` each, in the place of the completion; the others are well."""
    faults = InTurn(Cut(), Status(400), Status(500), None)
    async with emulated(faults=faults) as (_, client):
        results = await all_of(client.map(prompts(8), model=MODEL, concurrency=1, ordered=True, stream=stream))
        check_complete(results, prompts(8))
    assert [type(result.error) for result in results[:4]] == [
        APIConnectionError, BadRequestError, InternalServerError, type(None)
    ]  # fmt: skip
    assert [result.attempts for result in results] == [1] * 8
    assert all(result.completion for result in results[3:])


@virtual
async def test_a_stream_that_breaks_has_what_had_come() -> None:
    """`.partial`, and the time of the first token, also without a completion."""
    async with emulated(TEXT, faults=InTurn(Cut(after_token=2))) as (_, client):
        broken, fine = await all_of(client.map(prompts(2), model=MODEL, stream=True, concurrency=1))
    assert isinstance(broken.error, StreamError)
    assert TEXT.startswith(broken.error.partial.text)
    assert broken.error.partial.text
    assert broken.timing.first_token_s is not None
    assert fine.completion.text == TEXT  # type: ignore[union-attr]


@pytest.mark.default_retry
@pytest.mark.parametrize("tokens", [0, 1])
@virtual
async def test_a_stream_that_breaks_before_its_first_token_is_asked_again(tokens: int) -> None:
    """Nothing was generated: a role alone is nothing; one token is something, and is in `.partial`."""

    async def script(call: Any) -> None:
        await call.head()
        await call.chunk(sse(delta("", role="assistant")), *[sse(delta("a"))] * tokens)
        if len(server.calls) == 1:
            call.reset()
            return
        await call.chunk(sse(delta("b", finish="stop")), sse(b"[DONE]"), b"")

    async with ScriptedServer(script) as server, client_of(server) as client:
        (result,) = await all_of(client.map(prompts(1), model=MODEL, stream=True))
    if tokens:
        assert isinstance(result.error, StreamError)
        assert (result.error.partial.text, result.attempts) == ("a", 1)
    else:
        assert result.completion is not None
        assert (result.completion.text, result.attempts) == ("b", 2)


@virtual
async def test_a_result_says_nothing_of_what_was_said() -> None:
    """Its repr has no prompt and no answer; it can be pickled, and is a value."""
    async with emulated(faults=InTurn(None, Status(400))) as (_, client):
        for result in await all_of(client.map([SECRET, SECRET], model=MODEL, concurrency=1)):
            assert SECRET not in repr(result)
            assert "index=" in repr(result)
            copy = pickle.loads(pickle.dumps(result))  # noqa: S301 - our own
            assert (copy.request, copy.completion, copy.timing) == (SECRET, result.completion, result.timing)
            assert (type(copy.error), str(copy.error)) == (type(result.error), str(result.error))
            with pytest.raises(attrs.exceptions.FrozenInstanceError):
                result.index = 5


@virtual
async def test_what_goes_on_is_shown() -> None:
    """Under way, waiting, read; and nothing of it when it is over, by its end or before."""
    async with emulated(limits=Limits(concurrency=1), first_token_s=1.0) as (_, client):
        for take in (1, 6):
            results = client.map(prompts(6), model=MODEL, concurrency=4)
            assert (results.under_way, results.waiting, results.limited_s) == (0, 0, 0.0)
            await anext(results)
            await asyncio.sleep(0)  # the fifth begins
            assert (results.under_way, results.waiting) == (4, 3)
            assert repr(results) == "<MapResults 4 under way, 3 of them wait, 5 read>"
            assert results.limited_s == pytest.approx(1.0, abs=0.2)
            for _ in range(take - 1):
                await anext(results)
            await results.aclose()
            assert (results.under_way, results.waiting) == (0, 0)
            assert results.limited_s == pytest.approx(1.0 if take == 1 else 5.0, abs=0.2)


# ------------------------------------------------------------------------------------------------------------- on_error


@ORDERS
@virtual
async def test_raise_raises_the_first_and_ends_the_others(ordered: bool) -> None:
    """It says which request it was; the others' connections are closed before it comes out."""
    faults = InTurn(None, Status(400), then=Stall())
    async with emulated(faults=faults) as (server, client):
        results = client.map(prompts(50), model=MODEL, concurrency=5, on_error="raise", ordered=ordered)
        got = []
        with pytest.raises(BadRequestError) as caught:
            async for result in results:
                got.append(result.index)
        assert got == [0]
        assert "request 1 of the map" in "".join(traceback.format_exception(caught.value))
        assert not children()
        check_idle(client)
        for entry in tuple(server.journal)[2:]:
            await entry.wait_left()
        assert await all_of(results) == []


@virtual
async def test_raise_with_an_element_that_is_no_request() -> None:
    """A ValueError is an error as any other."""
    async with emulated() as (_, client):
        with pytest.raises(ValueError, match="got a int"):
            await all_of(client.map([5], model=MODEL, on_error="raise"))


@pytest.mark.parametrize("is_async", [False, True])
@virtual
async def test_a_function_decides(is_async: bool) -> None:
    """It sees results with an error and no others; what it returns comes in their place, None leaves them out."""
    seen = []

    def decide(result: MapResult[str]) -> MapResult[str] | None:
        seen.append(result.index)
        assert result.error is not None
        return None if result.index == 1 else attrs.evolve(result, error=None)

    async def decide_later(result: MapResult[str]) -> MapResult[str] | None:
        await asyncio.sleep(0.1)
        return decide(result)

    async with emulated(faults=InTurn(None, Status(400), Status(500), None)) as (_, client):
        results = await all_of(
            client.map(
                prompts(5), model=MODEL, concurrency=1, on_error=decide_later if is_async else decide, ordered=True
            )
        )
    assert seen == [1, 2]
    assert [(result.index, result.error) for result in results] == [(0, None), (2, None), (3, None), (4, None)]


@virtual
async def test_a_function_that_leaves_all_out() -> None:
    """The loop ends when the input does, and the function has seen each."""
    seen: list[int] = []
    async with emulated(faults=Status(400)) as (_, client):
        results = await all_of(
            client.map(prompts(30), model=MODEL, concurrency=4, on_error=lambda result: seen.append(result.index))
        )
    assert results == []
    assert sorted(seen) == list(range(30))


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("error", "comes_out"),
    [
        (KeyError("mine"), KeyError),
        (ValueError("mine"), ValueError),
        (APIConnectionError("mine"), APIConnectionError),
        (StopAsyncIteration(), RuntimeError),
        (asyncio.CancelledError(), asyncio.CancelledError),
    ],
    ids=repr,
)
@virtual
async def test_a_function_that_raises(error: BaseException, comes_out: type[BaseException], is_async: bool) -> None:
    """It ends the map, and comes out of the loop; it never looks like its end."""

    def decide(_: object) -> None:
        raise error

    async def decide_later(_: object) -> None:
        raise error

    async with emulated(faults=InTurn(Status(400), then=Stall())) as (_, client):
        with pytest.raises(comes_out):
            await all_of(
                client.map(prompts(9), model=MODEL, concurrency=3, on_error=decide_later if is_async else decide)
            )
        check_idle(client)


# ------------------------------------------------------------------------------------------------------------- on_chunk


@pytest.mark.parametrize("is_async", [False, True])
@virtual
async def test_each_chunk_is_shown_with_its_index(is_async: bool) -> None:
    """In the order of its stream; the completion is what they add up to."""
    texts: dict[int, str] = Counter()  # type: ignore[assignment]

    def note(index: int, chunk: Any) -> None:
        texts[index] = (texts[index] or "") + "".join(choice.delta.content or "" for choice in chunk.choices)

    async def note_later(index: int, chunk: Any) -> None:
        await asyncio.sleep(0.01)
        note(index, chunk)

    async with emulated() as (_, client):
        results = await all_of(
            client.map(prompts(10), model=MODEL, concurrency=3, stream=True, on_chunk=note_later if is_async else note)
        )
        check_complete(results, prompts(10))
    assert {result.index: result.completion.text for result in results if result.completion} == texts


@virtual
async def test_a_slow_on_chunk_slows_its_own_stream() -> None:
    """The others come meanwhile."""

    async def slow(index: int, _: object) -> None:
        if index == 0:
            await asyncio.sleep(10)

    async with emulated() as (_, client):
        results = await all_of(client.map(prompts(9), model=MODEL, concurrency=2, stream=True, on_chunk=slow))
        check_complete(results, prompts(9))
    assert results[-1].index == 0
    assert results[-1].timing.total_s > 10 > 1 > results[-2].timing.total_s


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("error", "comes_out"),
    [
        (KeyError("mine"), KeyError),
        (ValueError("mine"), ValueError),
        (APIConnectionError("mine"), APIConnectionError),
        (IncompleteStreamError("mine", partial=None), IncompleteStreamError),  # type: ignore[arg-type]
        (StopIteration(), RuntimeError),
        (StopAsyncIteration(), RuntimeError),
        (asyncio.CancelledError(), RuntimeError),
    ],
    ids=lambda value: repr(value)[:30] if isinstance(value, BaseException) else "",
)
@virtual
async def test_what_on_chunk_raises_ends_the_map(
    error: BaseException, comes_out: type[BaseException], is_async: bool
) -> None:
    """Whatever it is, it never becomes a result, and never looks like the loop's end or the reader's cancellation."""

    def fail(index: int, _: object) -> None:
        if index == 2:
            raise error

    async def fail_later(index: int, chunk: object) -> None:
        await asyncio.sleep(0.1)
        fail(index, chunk)

    async with emulated() as (server, client):
        results = client.map(
            prompts(20), model=MODEL, concurrency=4, stream=True, on_chunk=fail_later if is_async else fail
        )
        with pytest.raises(comes_out) as caught:
            async for result in results:
                assert result.error is None
        assert caught.value is error or caught.value.__cause__ is error
        check_idle(client)
        assert len(server.journal) < 20


@pytest.mark.parametrize("ordered", [False, True])
@virtual
async def test_what_on_chunk_raises_is_not_put_off_by_a_slow_reader(ordered: bool) -> None:
    """The server always has the next result ready; nothing more is read or sent all the same, and the error comes when
    those are taken that had come before."""

    def fail(index: int, _: object) -> None:
        if index == 3:
            raise KeyError("mine")

    async with emulated() as (server, client):
        got = 0
        with pytest.raises(KeyError):
            async for _ in client.map(
                (f"prompt {n}" for n in itertools.count()),
                model=MODEL,
                concurrency=4,
                stream=True,
                on_chunk=fail,
                ordered=ordered,
            ):
                got += 1
                await asyncio.sleep(1)
        assert got <= 8
        assert len(server.journal) <= 12


# -------------------------------------------------------------------------------------------------------------- leaving


class Mine(Exception):  # noqa: N818 - a caller's own
    """A caller's own error."""


async def leave(way: str, results: Any) -> None:  # noqa: C901 - a table
    """Leaves a loop over results in one of the ways."""
    match way:
        case "break":
            async for _ in results:
                break
        case "return":
            await _returns(results)
        case "exception":
            with pytest.raises(Mine):
                async for _ in results:
                    raise Mine
        case "block":
            async with results as entered:
                async for _ in entered:
                    break
        case "block, exception":
            with pytest.raises(Mine):
                async with results:
                    async for _ in results:
                        raise Mine
        case "aclose":
            await anext(results)
            await results.aclose()
            await results.aclose()
        case "cancelled in anext":
            await anext(results)
            task = asyncio.ensure_future(all_of(results))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        case "cancelled in the body":
            task = asyncio.ensure_future(_stays(results))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        case "timeout":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await all_of(results)
        case "generator":
            generator = _passes_on(results)
            await anext(generator)
            await generator.aclose()
        case "dropped":
            await anext(results)


async def _returns(results: Any) -> Any:
    async for result in results:
        return result
    raise AssertionError("no result")


async def _stays(results: Any) -> None:
    async for _ in results:
        await asyncio.sleep(1_000)


async def _passes_on(results: Any) -> AsyncIterator[Any]:
    async for result in results:
        yield result


WAYS = (
    "break", "return", "exception", "block", "block, exception", "aclose", "cancelled in anext",
    "cancelled in the body", "timeout", "generator", "dropped",
)  # fmt: skip
IMMEDIATE = {"block", "block, exception", "aclose", "cancelled in anext", "timeout"}
"""Those after which nothing is under way any more; after the others it has been told to end."""


@KINDS
@pytest.mark.parametrize("way", WAYS)
@SOURCES
@virtual
async def test_leaving_ends_everything(kind: str, way: str, stream: bool) -> None:
    """No task, no place, no connection; the server sees that the client has left, though nothing was dropped but the
    loop."""
    async with emulated(faults=InTurn(None, then=Stall())) as (server, client):
        kept = [client.map(source_of(kind, prompts(50)), model=MODEL, concurrency=6, stream=stream)]
        await leave(way, kept[0] if way != "dropped" else kept.pop())
        if way in IMMEDIATE:
            check_idle(client)
        await asyncio.sleep(0.1)
        check_idle(client)
        assert len(server.journal) >= 2
        for entry in tuple(server.journal)[1:]:
            await entry.wait_left()
        if kept:
            assert kept[0].under_way == 0
            assert await all_of(kept[0]) == []
        before = len(server.journal)
        await asyncio.sleep(100)
        assert len(server.journal) == before


@virtual
async def test_a_map_that_is_never_read() -> None:
    """Nothing is read from the input and nothing sent; dropping, closing or leaving it says nothing."""
    read: list[Any] = []
    async with emulated() as (server, client):
        for kind in ("generator", "async generator"):
            client.map(source_of(kind, prompts(3), read), model=MODEL)
            results = client.map(source_of(kind, prompts(3), read), model=MODEL)
            await results.aclose()
            assert await all_of(results) == []
            async with client.map(source_of(kind, prompts(3), read), model=MODEL):
                pass
            aiter(client.map(source_of(kind, prompts(3), read), model=MODEL))
        assert not read
        assert not server.journal


@virtual
async def test_the_first_result_of_a_map_that_nobody_keeps() -> None:
    """`await anext(client.map(...))`: it comes, and the others are ended then."""
    async with emulated(first_token_s=1.0) as (server, client):
        for way in (lambda one: one, asyncio.ensure_future):
            result: Any = await way(anext(client.map(prompts(9), model=MODEL, concurrency=2)))
            assert result.completion is not None
        key, _ = await anext(merge({"a": client.stream("hi", model=MODEL)}))
        assert key == "a"
        await asyncio.sleep(0.1)
        assert len(server.journal) <= 7


@virtual
async def test_a_wait_that_is_given_up_loses_nothing() -> None:
    """`wait_for(anext(results))` that times out ends that wait alone; the results come later."""
    async with emulated(first_token_s=1.0) as (_, client):
        results = client.map(prompts(3), model=MODEL)
        for _ in range(5):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(results), 0.1)
        check_complete(await all_of(results), prompts(3))


@virtual
async def test_a_wait_in_a_block_that_is_given_up_loses_nothing() -> None:
    """The same within `async with`, by the loop's own iterator too."""
    async with emulated(first_token_s=1.0) as (_, client):
        async with client.map(prompts(3), model=MODEL) as results:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await all_of(results)
            check_complete(await all_of(results), prompts(3))


@virtual
async def test_a_result_and_a_cancellation_in_the_same_turn() -> None:
    """The result stays for the next one who asks."""
    for turns in range(12):
        async with emulated() as (_, client), client.map(prompts(2), model=MODEL) as results:
            waiting = asyncio.ensure_future(anext(results))
            while results._group.read == 0 or results._group.under_way == 2:  # noqa: ASYNC110 - by turns of the loop
                await asyncio.sleep(0)
            for _ in range(turns % 4):
                await asyncio.sleep(0)
            got = [] if waiting.cancel() else [waiting.result()]
            with contextlib.suppress(asyncio.CancelledError):
                got = [await waiting]
            check_complete([*got, *await all_of(results)], prompts(2))


@virtual
async def test_two_readers_share() -> None:
    """Each result comes to one of them; two that wait at the same time is a clear error for the second, and harms
    neither the first nor the map."""
    async with emulated(first_token_s=1.0) as (_, client):
        async with client.map(prompts(9), model=MODEL, concurrency=3) as results:
            first = asyncio.ensure_future(anext(results))
            await asyncio.sleep(0.5)
            with pytest.raises(RuntimeError, match="two tasks read the same results; let one of them read"):
                await anext(results)
            got = [await first]
            one, other = aiter(results), aiter(results)
            got += [await anext(one), await anext(other), await anext(results), *await all_of(one)]
            assert await all_of(other) == []
            check_complete(got, prompts(9))


@virtual
async def test_a_crash_in_a_child_comes_out_when_all_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of our own, or of a caller's own class within a request, is no result and is never swallowed."""

    def crash(*_: Any, **__: Any) -> Any:
        raise Mine("a bug")

    async with emulated(faults=Stall()) as (server, client):
        results = client.map(prompts(9), model=MODEL, concurrency=3)
        waiting = asyncio.ensure_future(anext(results))
        await server.journal.wait(3)
        monkeypatch.setattr(whole_responses, "plain_completion", crash)
        server.faults = None
        server.release()
        with pytest.raises(Mine, match="a bug"):
            await waiting
        check_idle(client)
        assert await all_of(results) == []


@pytest.mark.parametrize("turns", [0, 1, 2, 30])
@virtual
async def test_a_child_that_somebody_cancels(turns: int) -> None:
    """By name, as a test's tear-down may do: an error for the reader, never a wait without end, at whatever point."""
    async with emulated(faults=Stall()) as (_, client):
        results = client.map(prompts(9), model=MODEL, concurrency=3)
        waiting = asyncio.ensure_future(anext(results))
        await asyncio.sleep(0)
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in asyncio.all_tasks():
            if task.get_coro().__qualname__ == "MapGroup._run":  # type: ignore[union-attr]
                task.cancel()
        with pytest.raises(RuntimeError, match="a task of these results was cancelled, and not by their reader"):
            await waiting
        check_idle(client)


@virtual
async def test_closing_from_within_on_chunk() -> None:
    """A child may end its own map."""
    box: list[Any] = []

    async def end(index: int, _: object) -> None:
        if index == 1:
            await box[0].aclose()

    async with emulated() as (_, client):
        box.append(client.map(prompts(30), model=MODEL, concurrency=3, stream=True, on_chunk=end))
        assert len(await all_of(box[0])) < 30
        check_idle(client)


@virtual
async def test_closing_while_another_task_waits() -> None:
    """That one's loop ends at once."""
    async with emulated(faults=Stall()) as (_, client):
        results = client.map(prompts(9), model=MODEL)
        waiting = asyncio.ensure_future(all_of(results))
        await asyncio.sleep(1)
        await asyncio.gather(results.aclose(), results.aclose())
        assert await waiting == []
        check_idle(client)


@virtual
async def test_closing_the_client_in_the_middle() -> None:
    """What is under way, and what would come, is an error each; the loop ends."""
    async with emulated(faults=InTurn(None, then=Stall())) as (_, client):
        results = client.map(prompts(9), model=MODEL, concurrency=3)
        await anext(results)
        await asyncio.sleep(1)
        await client.aclose()
        rest = await all_of(results)
        assert len(rest) == 8
        assert all(isinstance(result.error, APIConnectionError) for result in rest)
        assert "closed" in str(rest[-1].error)


@KINDS
@pytest.mark.parametrize("blocked", [False, True], ids=["loop", "block"])
@virtual
async def test_cancelled_at_every_await(blocked: bool, stream: bool) -> None:
    """After any number of turns of the loop, until there is nothing left to cancel: afterwards nothing is under way,
    and the next map on the same client is whole."""

    async def read() -> int:
        results = client.map(source_of("async generator", prompts(5)), model=MODEL, concurrency=2, stream=stream)
        if not blocked:
            return len(await all_of(results))
        async with results:
            return len(await all_of(results))

    async with emulated(TEXT) as (_, client):
        for turns in itertools.count():
            task = asyncio.ensure_future(read())
            for _ in range(turns):
                await asyncio.sleep(0)
            if not task.cancel():
                assert await task == 5
                break
            with pytest.raises(asyncio.CancelledError):
                await task
            check_idle(client)
        assert turns > 10
        assert await read() == 5


@virtual
async def test_cancelled_twice() -> None:
    """The second cancellation cuts short the wait for the children; they have been told to end all the same."""
    async with emulated(faults=Stall()) as (_, client):
        results = client.map(prompts(5), model=MODEL)
        task = asyncio.ensure_future(all_of(results))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.1)
        check_idle(client)


# ---------------------------------------------------------------------------------------------------------- event loops


def test_a_loop_that_ends_with_a_map_half_read(recwarn: pytest.WarningsRecorder) -> None:
    """`asyncio.run` returns with requests under way: no warning, nothing on stderr, no socket."""
    before = open_sockets()
    kept = []
    with EmulatorServer(faults=InTurn(None, then=Stall())) as server:

        async def main() -> None:
            async with AsyncTogether(KEY, base_url=server.base_url, proxy="") as client:
                results = client.map(prompts(20), model=MODEL, concurrency=4)
                kept.append(results)
                async for _ in results:
                    kept.append(aiter(results))
                    return

        asyncio.run(main(), debug=False)
    gc.collect()
    assert not recwarn.list
    assert not open_sockets() - before


@pytest.mark.filterwarnings("error")
def test_a_loop_that_is_closed_with_tasks_under_way() -> None:
    """By hand and without a word to its tasks: what asyncio says of each is all there is to hear when they are dropped;
    nothing fails in them."""
    said: list[str] = []
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _, context: said.append(context["message"]))

    async def begin() -> Any:
        merged = merge({"a": counted(None), "b": counted(3, turns=1_000)})
        await anext(merged)
        return merged

    left = loop.run_until_complete(begin())
    loop.close()
    del left
    gc.collect()
    assert set(said) <= {"Task was destroyed but it is pending!"}


def test_a_map_in_a_second_event_loop() -> None:
    """One clear error, which does not speak of a closed loop; and closing it there is no error."""
    with EmulatorServer(faults=InTurn(None, then=Stall())) as server:
        client = AsyncTogether(KEY, base_url=server.base_url, proxy="")

        async def first() -> Any:
            results = client.map(prompts(20), model=MODEL, concurrency=4)
            await anext(results)
            return results

        async def second(results: Any) -> None:
            with pytest.raises(RuntimeError, match="these results belong to another event loop"):
                await anext(results)
            await results.aclose()
            server.faults = None
            assert len(await all_of(client.map(prompts(3), model=MODEL, concurrency=3))) == 3
            assert (client.limits.in_flight, client.limits.queued) == (0, 0)
            await client.aclose()

        results = asyncio.run(first())
        asyncio.run(second(results))


def test_a_map_read_while_its_own_loop_runs() -> None:
    """Not across threads: the reader elsewhere gets the same clear error, and the map goes on where it is."""
    with EmulatorServer(faults=InTurn(None, then=Stall())) as server:

        async def elsewhere(results: Any) -> None:
            with pytest.raises(RuntimeError, match="these results belong to another event loop"):
                await anext(results)

        async def main() -> None:
            async with AsyncTogether(KEY, base_url=server.base_url, proxy="") as client:
                async with client.map(prompts(4), model=MODEL, concurrency=4) as results:
                    await anext(results)
                    await asyncio.to_thread(asyncio.run, elsewhere(results))
                    server.faults = None
                    server.release()
                    assert len(await all_of(results)) == 3

        asyncio.run(main())


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="from Python 3.12 on")
@ORDERS
@virtual
async def test_tasks_that_begin_at_once(ordered: bool) -> None:
    """With `asyncio.eager_task_factory` a child may have ended before it was known: nothing is lost, and no recursion
    is deeper for more of them."""
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]

    async def one() -> AsyncIterator[int]:
        yield 1

    async with emulated() as (_, client):
        for kind in ("list", "async generator"):
            given = [*[5] * 2_000, "prompt", *[5] * 2_000]
            source = source_of(kind, given)
            results = await all_of(client.map(source, model=MODEL, concurrency=200, ordered=ordered))
            check_complete(results, given)
            check_idle(client)
        assert [pair async for pair in merge({"a": one(), "b": one()})] == [("a", 1), ("b", 1)]


# --------------------------------------------------------------------------------------------------------------- limits


@pytest.mark.default_retry
@pytest.mark.parametrize("concurrency", [None, 8, 50, 300])
@virtual
async def test_an_account_with_limits(concurrency: int | None) -> None:
    """Five requests a second: every prompt has its answer, few are refused, whatever number the caller wants at once;
    the wait is shown."""
    account = Account(Rate(requests_per_second=5), clock=now)
    async with emulated(account=account, first_token_s=0.2) as (_, client):
        began = now()
        results = client.map(prompts(100), model=MODEL, concurrency=concurrency)
        check_complete(got := await all_of(results), prompts(100))
        assert not [result.error for result in got if result.error]
        assert account.counts().limited_requests <= 3
        assert 18 <= now() - began <= 40
        assert 15 <= results.limited_s <= now() - began
        assert max(result.timing.queued_s for result in got) > (10 if concurrency is None else 0.2)
        assert all(result.timing.queued_s <= result.timing.total_s for result in got)


@pytest.mark.parametrize(("concurrency", "most"), [(None, 1), (100, 4), (2, 2)])
@virtual
async def test_a_service_that_has_told_nothing(concurrency: int | None, most: int) -> None:
    """Is asked slowly at first; a little less so when the caller has said how many he wants at once."""
    async with emulated(first_token_s=0.9) as (server, client):
        results = client.map(prompts(200), model=MODEL, concurrency=concurrency)
        waiting = asyncio.ensure_future(anext(results))
        await asyncio.sleep(0.1)
        assert len(server.journal) == most
        await waiting
        check_complete([waiting.result(), *await all_of(results)], prompts(200))


@pytest.mark.default_retry
@KINDS
@virtual
async def test_a_pause_that_hits_all_at_once_loses_nobody(stream: bool) -> None:
    """64 are refused together, and told to come again in a quarter of an hour: all of them do."""
    refused = 0

    def refuse(_: Any) -> Any:
        nonlocal refused
        if now() - began > 1:
            return None
        refused += 1
        return Status(429, headers={"retry-after": "890"})

    async with emulated(faults=refuse, limits=Limits(concurrency=64)) as (_, client):
        began = now()
        results = await all_of(client.map(prompts(100), model=MODEL, stream=stream))
        check_complete(results, prompts(100))
        assert not [result for result in results if result.error]
        assert refused == 64
        assert 890 <= now() - began < 1_500


@pytest.mark.default_retry
@virtual
async def test_a_pause_that_is_too_long_is_an_error() -> None:
    """Longer than a quarter of an hour: who was told has it as a result, who comes later asks again."""
    async with emulated(faults=InTurn(Status(429, headers={"retry-after": "1000"}))) as (_, client):
        results = await all_of(client.map(prompts(3), model=MODEL, concurrency=1))
    assert isinstance(results[0].error, RateLimitError)
    assert results[0].error.retry_after == 1_000
    assert [result.attempts for result in results] == [1, 1, 1]
    assert all(result.completion for result in results[1:])


@pytest.mark.default_retry
@virtual
async def test_a_retry_of_ones_own_holds() -> None:
    """With `max_retry_after` below what the server asks for, it is not waited."""
    for rules, told in ((Retry(max_retry_after=5), 6), (Retry(attempts=1), 1)):
        async with emulated(faults=InTurn(Status(429, headers={"retry-after": str(told)}))) as (_, client):
            (result,) = await all_of(client.map(prompts(1), model=MODEL, retry=rules))
            assert isinstance(result.error, RateLimitError)
            assert result.attempts == 1


@pytest.mark.parametrize("most", [0, 1, 5])
@virtual
async def test_a_full_queue_is_no_error_of_a_map(most: int) -> None:
    """`Limits.max_queued` is for calls that nobody bounds: it neither refuses a map's nor counts them."""
    async with emulated(limits=Limits(concurrency=1, max_queued=most), first_token_s=1.0) as (_, client):
        async with client.map(prompts(30), model=MODEL, concurrency=20) as results:
            got = [await anext(results)]
            assert results.waiting >= 18
            waiting = [asyncio.ensure_future(client.create("live", model=MODEL)) for _ in range(most)]
            await asyncio.sleep(0)
            with pytest.raises(QueueFullError):
                await client.create("one too many", model=MODEL)
            for one in waiting:
                assert (await one).text == "You said: live"
            check_complete([*got, *await all_of(results)], prompts(30))


@virtual
async def test_who_waits_for_an_answer_goes_first() -> None:
    """A live call in the middle of a long queue of a map's has the next free place."""
    async with emulated(limits=Limits(concurrency=1), first_token_s=1.0) as (server, client):
        async with client.map(prompts(10), model=MODEL, concurrency=10) as results:
            await anext(results)
            began = now()
            assert (await client.create("live", model=MODEL)).text == "You said: live"
            assert now() - began < 2.5
            assert len(await all_of(results)) == 9
        assert server.prompts.index("live") == 2


@virtual
async def test_a_map_of_interactive_calls_waits_its_turn() -> None:
    """`priority="interactive"`: first come, first served."""
    async with emulated(limits=Limits(concurrency=1), first_token_s=1.0) as (server, client):
        async with client.map(prompts(5), model=MODEL, concurrency=5, priority="interactive") as results:
            await anext(results)
            await client.create("live", model=MODEL)
            assert server.prompts[-1] == "live"
            assert len(server.prompts) == 6
            await all_of(results)


@virtual
async def test_a_402_stops_what_waits_and_what_comes() -> None:
    """Each has the error; the server hears of no more than were under way."""
    async with emulated(faults=Status(402), limits=Limits(concurrency=3)) as (server, client):
        results = await all_of(client.map(prompts(100), model=MODEL, concurrency=10))
        assert len(results) == 100
        assert all(isinstance(result.error, PaymentRequiredError) for result in results)
        assert len(server.journal) <= 3
        assert sum(result.attempts for result in results) == len(server.journal)


@virtual
async def test_a_402_can_end_the_map() -> None:
    """With a function of one's own, which an endless input needs."""

    def end(result: MapResult[Any]) -> MapResult[Any]:
        if isinstance(result.error, PaymentRequiredError):
            raise result.error
        return result

    async with emulated(faults=InTurn(None, Status(402))) as (_, client):
        with pytest.raises(PaymentRequiredError):
            await all_of(
                client.map((f"prompt {n}" for n in itertools.count()), model=MODEL, concurrency=1, on_error=end)
            )


@virtual
async def test_leaving_frees_those_who_wait_for_the_limits() -> None:
    """18 wait, and leave nothing behind: the next call goes at once."""
    async with emulated(limits=Limits(concurrency=2), faults=InTurn(None, then=Stall())) as (server, client):
        async for _ in client.map(prompts(50), model=MODEL, concurrency=20):
            break
        await asyncio.sleep(0)
        server.faults = None
        assert (await client.create("hi", model=MODEL)).text == "You said: hi"
        assert client.limits.queued == 0


# --------------------------------------------------------------------------------------------------------------- drain


@ORDERS
@SOURCES
@virtual
async def test_drained_what_is_under_way_still_comes(kind: str, ordered: bool) -> None:
    """Nothing more is read or sent; those that wait for the limits are given up, without a result; the loop ends."""
    async with emulated(limits=Limits(concurrency=3), first_token_s=1.0) as (server, client):
        async with client.map(source_of(kind, prompts(50)), model=MODEL, concurrency=10, ordered=ordered) as results:
            got = [await anext(results)]
            await asyncio.sleep(0.5)
            sent = len(server.journal)
            results.drain()
            results.drain()
            got += await all_of(results)
            assert sorted(result.request for result in got) == sorted(server.prompts)
            assert len(server.journal) == sent
            assert all(result.completion for result in got)
            if ordered:
                assert [result.index for result in got] == sorted(result.index for result in got)


@pytest.mark.parametrize("turns", range(6))
@SOURCES
@virtual
async def test_drained_at_any_moment(kind: str, turns: int) -> None:
    """Before it was read, in the turn in which it begins, or after its end."""
    async with emulated() as (server, client):
        results = client.map(source_of(kind, prompts(50)), model=MODEL, concurrency=10)
        if turns == 0:
            results.drain()
            assert await all_of(results) == []
            assert not server.journal
            return
        reading = asyncio.ensure_future(all_of(results))
        for _ in range(turns):
            await asyncio.sleep(0)
        results.drain()
        got = await reading
        assert len(got) == len(server.journal) <= 10
        results.drain()
        assert await all_of(results) == []


# --------------------------------------------------------------------------------------------------------------- merge


async def counted(count: int | None, turns: int = 1, made: list[Any] | None = None) -> AsyncIterator[int]:
    """An endless or long stream that needs no network."""
    for number in range(count) if count is not None else itertools.count():
        for _ in range(turns):
            await asyncio.sleep(0)
        if made is not None:
            made.append(number)
        yield number


async def broken(error: BaseException, after: int = 0) -> AsyncIterator[int]:
    for number in range(after):
        yield number
    await asyncio.sleep(0)
    raise error


@pytest.mark.parametrize("what", ["chunks", "texts", "entered"])
@virtual
async def test_many_streams_as_one(what: str) -> None:
    """Each stream's chunks in its order, all of them; streams, texts, and streams that are open already."""
    async with emulated(tokens_per_second=50) as (_, client), contextlib.AsyncExitStack() as stack:
        made = {prompt: client.stream(prompt, model=MODEL) for prompt in prompts(5)}
        if what == "entered":
            for stream in made.values():
                await stack.enter_async_context(stream)
        texts: dict[str, list[str]] = {}
        keys = []
        async with merge({k: s.text() if what == "texts" else s for k, s in made.items()}) as chunks:
            async for key, chunk in chunks:
                text = chunk if isinstance(chunk, str) else "".join(c.delta.content or "" for c in chunk.choices)
                texts.setdefault(key, []).append(text)
                keys.append(key)
        assert {key: "".join(parts) for key, parts in texts.items()} == {p: f"You said: {p}" for p in made}
        assert keys != sorted(keys), "one stream after the other"
        for prompt, stream in made.items():
            assert (await stream.completion()).text == f"You said: {prompt}"


@virtual
async def test_streams_are_opened_when_they_are_read() -> None:
    """All at once, and not before."""
    async with emulated(first_token_s=1.0) as (server, client):
        merged = merge({prompt: client.stream(prompt, model=MODEL) for prompt in prompts(5)})
        await asyncio.sleep(1)
        assert not server.journal
        began = now()
        assert len({key async for key, _ in merged}) == 5
        assert now() - began < 1.5


@virtual
async def test_a_slow_reader_of_many_streams() -> None:
    """64 chunks are read ahead, and one of each stream; the reader slows them all."""
    made: list[Any] = []
    taken = 0
    async with merge({key: counted(None, made=made) for key in range(20)}) as merged:
        async for _ in merged:
            taken += 1
            await asyncio.sleep(0.1)
            assert len(made) - taken <= 64 + 20
            if taken == 300:
                break


@virtual
async def test_a_fast_stream_does_not_starve_the_others() -> None:
    """However fast one is, and however slow the reader, every stream gets on."""
    seen = Counter[int]()
    async with merge({0: counted(None, turns=0), **{key: counted(None, turns=3) for key in range(1, 5)}}) as merged:
        async for key, _ in merged:
            seen[key] += 1
            await asyncio.sleep(0)
            if seen.total() == 3_000:
                break
    assert min(seen[key] for key in range(5)) >= 20, seen


@virtual
async def test_each_stream_keeps_its_order() -> None:
    """Whatever the speeds."""
    seen: dict[int, list[int]] = {}
    async for key, number in merge({key: counted(200, turns=key % 3) for key in range(10)}):
        seen.setdefault(key, []).append(number)
    assert seen == {key: list(range(200)) for key in range(10)}


@virtual
async def test_no_streams() -> None:
    """An end at once."""
    assert [pair async for pair in merge({})] == []
    async with merge({"a": counted(0)}) as merged:
        assert [pair async for pair in merged] == []


@pytest.mark.parametrize("bad", [None, 5, "ab", ["a"], {"a": 5}, {"a": [1, 2]}], ids=repr)
@virtual
async def test_what_is_no_mapping_of_streams(bad: Any) -> None:
    """Found at the call, before any of them is opened."""
    with pytest.raises(ValueError, match="streams: got a"):
        merge(bad)


@virtual
async def test_on_error_is_one_of_two() -> None:
    """A function is `map`'s."""
    with pytest.raises(ValueError, match=r"on_error: got .*, expected 'raise' or 'return'"):
        merge({}, on_error=print)  # type: ignore[arg-type]


@virtual
async def test_one_stream_under_two_keys() -> None:
    """A clear error, not a wait without end; two texts of one stream are found while reading."""
    async with emulated() as (_, client):
        stream = client.stream("hi", model=MODEL)
        with pytest.raises(ValueError, match="one of them stands under two keys; a stream is read once"):
            merge({"a": stream, "b": stream})
        with pytest.raises(RuntimeError, match="two tasks read one stream at the same time; let one of them read"):
            async for _ in merge({"a": stream.text(0), "b": stream.text(1)}):
                pass
        await asyncio.sleep(0.1)
        check_idle(client)


@virtual
async def test_the_first_error_ends_all_streams() -> None:
    """Its note says which it was, by its place: keys may be prompts."""
    async with emulated(faults=InTurn(None, Status(400), then=Stall(after_token=1))) as (server, client):
        merged = merge({f"{SECRET} {key}": client.stream("hi", model=MODEL) for key in range(5)})
        with pytest.raises(BadRequestError) as caught:
            async for _ in merged:
                pass
        shown = "".join(traceback.format_exception(caught.value))
        assert "stream" in caught.value.__notes__[0]
        assert SECRET not in shown
        check_idle(client)
        assert [pair async for pair in merged] == []
        for entry in tuple(server.journal)[2:]:
            await entry.wait_ended()


@virtual
async def test_an_error_is_not_put_off_by_a_slow_reader() -> None:
    """Beside a stream that always has the next chunk ready."""
    taken = 0
    with pytest.raises(Mine):
        async for _ in merge({"bad": broken(Mine(), after=3), "good": counted(None)}):
            taken += 1
            await asyncio.sleep(0.1)
    assert taken <= 66


@virtual
async def test_returned_errors_come_in_a_chunks_place() -> None:
    """After all that the stream had brought; the others go on."""
    async with emulated(TEXT, faults=InTurn(None, Cut(after_token=2), Status(500))) as (_, client):
        came: dict[int, list[Any]] = {}
        streams_of = {key: client.stream("hi", model=MODEL) for key in range(4)}
        async for key, chunk in merge(streams_of, on_error="return"):
            came.setdefault(key, []).append(chunk)
        errors = [chunks[-1] for chunks in came.values() if isinstance(chunks[-1], TogetherError)]
        assert sorted(type(error).__name__ for error in errors) == ["InternalServerError", "StreamConnectionError"]
        assert sum(isinstance(chunk, TogetherError) for chunks in came.values() for chunk in chunks) == 2
        assert min(map(len, came.values())) == 1


@pytest.mark.parametrize("on_error", ["raise", "return"])
@pytest.mark.parametrize("error", [Mine(), asyncio.CancelledError()], ids=repr)
@virtual
async def test_a_foreign_error_always_comes_out(error: BaseException, on_error: Any) -> None:
    """Of a stream that is not ours; a cancellation which is not the reader's never looks like one."""
    with pytest.raises(Mine if isinstance(error, Mine) else RuntimeError):
        async for _ in merge({"a": broken(error), "b": counted(None)}, on_error=on_error):
            pass
    assert not children()


@pytest.mark.parametrize("way", WAYS)
@virtual
async def test_leaving_a_merge_closes_all_streams(way: str) -> None:
    """Those that wait for a chunk, those that wait for the reader and those that are being opened."""
    async with emulated(TEXT, faults=InTurn(Stall(after_token=1), Stall(), then=Stall(after_token=2))) as (
        server,
        client,
    ):
        kept = [merge({key: client.stream("hi", model=MODEL) for key in range(4)})]
        await leave(way, kept[0] if way != "dropped" else kept.pop())
        if way in IMMEDIATE:
            check_idle(client)
        await asyncio.sleep(0.1)
        check_idle(client)
        assert server.journal
        for entry in server.journal:
            await entry.wait_left()
        if kept:
            assert [pair async for pair in kept[0]] == []


@virtual
async def test_a_merge_cancelled_at_every_await() -> None:
    """After any number of turns of the loop."""

    async def read() -> int:
        streams_of = {key: client.stream("hi", model=MODEL) for key in range(3)}
        return len([pair async for pair in merge(streams_of)])

    async with emulated(TEXT) as (_, client):
        for turns in itertools.count():
            task = asyncio.ensure_future(read())
            for _ in range(turns):
                await asyncio.sleep(0)
            if not task.cancel():
                assert await task >= 3
                break
            with pytest.raises(asyncio.CancelledError):
                await task
            check_idle(client)
        assert turns > 5


@virtual
async def test_a_stream_that_does_not_care_for_cancellation() -> None:
    """It goes on after it was told to end: leaving does not wait for it for ever, and nothing of it comes then."""

    async def stubborn() -> AsyncIterator[int]:
        for number in range(1_000):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(1)
            yield number

    async with merge({"a": stubborn(), "b": counted(None)}) as merged:
        await anext(merged)
        before = now()
    assert now() - before < 5
    assert [pair async for pair in merged] == []
    assert not children()


@virtual
async def test_a_merge_of_maps() -> None:
    """Any async iterable is a stream: two maps, of two models, as one."""
    async with emulated() as (_, client):
        both = {model: client.map(prompts(5), model=model, concurrency=2) for model in ("one", "two")}
        got = [(model, result.index) async for model, result in merge(both)]
        assert sorted(got) == [(model, index) for model in ("one", "two") for index in range(5)]


@virtual
async def test_merged_says_how_many_it_reads() -> None:
    """Its repr has no keys."""
    async with merge({SECRET: counted(None), "b": counted(None)}) as merged:
        await anext(merged)
        assert repr(merged) == "<Merged 2 streams>"


# ----------------------------------------------------------------------------------------------------- the quicker ways


@pytest.mark.parametrize("pieces", [1, 2, 7])
@virtual
async def test_a_body_that_came_with_its_head(pieces: int) -> None:
    """Is the same as one that comes in pieces, and its connection is used again."""
    data = response(whole("Hello " * 500), extra=b"x-request-id: r1\r\n")
    step = len(data) // pieces + 1

    async def script(call: Any) -> None:
        for at in range(0, len(data), step):
            await call.send(data[at : at + step])
            if pieces > 1:
                await asyncio.sleep(0.01)

    async with ScriptedServer(script) as server, client_of(server) as client:
        for result in await all_of(client.map(prompts(5), model=MODEL, concurrency=1)):
            assert result.completion is not None
            assert result.completion.text == "Hello " * 500
            assert (result.usage.total_tokens, result.attempts) == (3, 1)  # type: ignore[union-attr]
        assert len(server.connections) == 1
        check_idle(client)


@pytest.mark.parametrize("body", [b"", b"  \n", b"{", b"<html>", b'{"error": {"message": "no", "code": 500}}'])
@virtual
async def test_a_body_at_hand_that_is_no_completion(body: bytes) -> None:
    """One of our errors, and the connection is not lost."""
    async with ScriptedServer(answers(response(body))) as server, client_of(server) as client:
        for result in await all_of(client.map(prompts(2), model=MODEL, concurrency=1)):
            assert isinstance(result.error, TogetherError)
        check_idle(client)


@virtual
async def test_a_body_at_hand_above_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is refused as one that comes slowly is."""
    from together_async.http.response import HTTPResponse

    monkeypatch.setattr(HTTPResponse.read_all, "__defaults__", (1_000,))
    async with ScriptedServer(answers(response(whole("x" * 2_000)))) as server, client_of(server) as client:
        (result,) = await all_of(client.map(prompts(1), model=MODEL))
        assert "expected at most 1000" in str(result.error)
        check_idle(client)


def with_choice(**fields: Any) -> dict[str, Any]:
    """A chunk whose one choice has these fields."""
    return {**delta(), "choices": [{"index": 0, **fields}]}


CHUNKS: dict[str, list[Any]] = {
    "plain": [delta("", role="assistant"), delta("a"), delta("b", finish="stop")],
    "choices": [delta("a"), delta("b", index=1), delta("c", finish="stop"), delta("d", index=1, finish="length")],
    "reasoning": [
        delta(None, reasoning="why"), delta("a", reasoning=None), delta("b", reasoning_content="c", finish="stop")
    ],
    "refusal": [delta("a", refusal=None), delta(None, refusal="no"), delta("b", finish="stop")],
    "tools": [
        delta("a"),
        delta(None, tool_calls=[{"index": 0, "id": "t", "function": {"name": "f", "arguments": "{"}}]),
        delta("b", tool_calls=[{"index": 0, "function": {"arguments": "}"}}], finish="tool_calls"),
    ],
    "usage": [
        delta("a"),
        {**delta("b"), "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}},
        {**delta("c", finish="stop"), "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}},
        {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": []},
    ],
    "late facts": [delta("a"), {**delta("b"), "system_fingerprint": "fp"}, delta("c", finish="stop")],
    "warnings": [delta("a"), {**delta("b"), "warnings": [{"message": "w"}]}, delta("c", finish="stop")],
    "text": [with_choice(text="x", delta={"content": "a"}), delta("b", finish="stop")],
    "seed": [delta("a"), with_choice(delta={"content": "b"}, seed=5, finish_reason="stop")],
    "logprobs": [
        with_choice(delta={"content": "a"}, logprobs={"content": [{"token": "a", "logprob": -1.0}]}),
        delta("b", finish="stop"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", CHUNKS)
@virtual
async def test_a_completion_is_the_same_however_its_stream_was_read(name: str) -> None:
    """By `map`, which reads on as a text; chunk by chunk; by its text; and the rest after a part of either."""
    data = b"".join(sse(chunk) for chunk in CHUNKS[name]) + sse(b"[DONE]")

    async def script(call: Any) -> None:
        await call.head(framing=str(len(data)))
        await call.send(data)

    async with ScriptedServer(script) as server, client_of(server) as client:
        async with client.stream("hi", model=MODEL) as stream:
            async for _ in stream:
                pass
            expected = (await stream.completion()).to_dict()
        (result,) = await all_of(client.map(["hi"], model=MODEL, stream=True))
        assert result.completion is not None
        assert result.completion.to_dict() == expected
        (result,) = await all_of(client.map(["hi"], model=MODEL, stream=True, on_chunk=lambda *_: None))
        assert result.completion.to_dict() == expected  # type: ignore[union-attr]
        async with client.stream("hi", model=MODEL) as stream:
            await anext(stream)
            assert (await stream.completion()).to_dict() == expected
        async with client.stream("hi", model=MODEL) as stream:
            await anext(stream.text(0))
            assert (await stream.completion()).to_dict() == expected


# -------------------------------------------------------------------------------------------------------------- search

FAULTS = OneOf(
    None, None, None, Status(400), Status(500), Status(429, headers={"retry-after": "3"}), Cut(), Cut(after_token=1),
    Cut(after_token=0, how="close"), Stall(seconds=2), Stall(after_token=1, seconds=2), CloseAfter(), WithoutDone(),
    ErrorInStream(after_token=1), Garbage(after_token=1), Chance(0.5, Status(503)),
)  # fmt: skip


@attrs.frozen
class Case:
    """One map of a random search."""

    seed: int
    count: int
    concurrency: int | None
    kind: str
    ordered: bool
    stream: bool
    on_chunk: bool
    leaves_after: int | None
    raises_after: int | None
    pace_s: float
    limits: Limits
    retry: Retry

    @classmethod
    def random(cls, seed: int) -> Case:
        rng = random.Random(seed)
        stream = rng.random() < 0.5
        return cls(
            seed=seed,
            count=rng.choice([0, 1, 2, 10, 30]),
            concurrency=rng.choice([1, 2, 5, 40]),
            kind=rng.choice(["list", "generator", "async generator"]),
            ordered=rng.random() < 0.5,
            stream=stream,
            on_chunk=stream and rng.random() < 0.5,
            leaves_after=rng.choice([None, None, None, 1, 5]),
            raises_after=rng.choice([None, None, None, 0, 7]),
            pace_s=rng.choice([0, 0, 0.3]),
            limits=rng.choice([Limits(), Limits(concurrency=2), Limits(requests_per_minute=600, max_queued=0)]),
            retry=rng.choice([ONE, QUICK, Retry(attempts=2, base_delay=1)]),
        )

    def items(self) -> list[Any]:
        rng = random.Random(self.seed)
        kinds: list[Callable[[str], Any]] = [
            str,
            lambda text: [{"role": "user", "content": text}],
            lambda text: {"messages": text},
            lambda text: ChatCompletionRequest(messages=text, model=MODEL),
            lambda text: [text],
            lambda _: 5,
        ]
        weights = (10, 3, 3, 3, 1, 1)
        return [rng.choices(kinds, weights)[0](prompt) for prompt in prompts(self.count)]

    def source(self) -> Any:
        def items() -> Iterator[Any]:
            for place, item in enumerate(self.items()):
                if place == self.raises_after:
                    raise Mine
                yield item

        return source_of("generator" if self.kind == "list" else self.kind, items())


@pytest.mark.parametrize("part", range(4))
@virtual
async def test_any_map(part: int) -> None:
    """Random inputs, faults, limits, paces and ends: each index once, in order if so; each result a right completion or
    one of our errors; no foreign exception; nothing left."""
    for seed in range(part, CASES, 4):
        case = Case.random(seed)
        try:
            await check_case(case)
        except BaseException as error:
            error.add_note(f"case: {case}")
            raise


async def check_case(case: Case) -> None:
    async with emulated(limits=case.limits, client={"retry": case.retry}, faults=FAULTS, seed=case.seed) as (
        server,
        client,
    ):
        results = client.map(
            case.source(),
            model=MODEL,
            concurrency=case.concurrency,
            ordered=case.ordered,
            stream=case.stream,
            on_chunk=(lambda *_: None) if case.on_chunk else None,
        )
        got: list[MapResult[Any]] = []
        raised = left = False
        try:
            async for result in results:
                got.append(result)
                await asyncio.sleep(case.pace_s)
                left = len(got) == case.leaves_after
                if left:
                    break
        except Mine:
            raised = True
        await asyncio.sleep(0.1)
        check_idle(client)
        expected = case.count if case.raises_after is None else min(case.count, case.raises_after)
        assert raised is (not left and case.raises_after is not None and case.raises_after < case.count)
        check_results(case, got, whole_input=not left, count=expected)
        assert server.peak <= (case.concurrency or 0)
        if not left:
            assert sum(result.attempts for result in got) == len(server.journal)


def check_results(case: Case, got: list[MapResult[Any]], *, whole_input: bool, count: int) -> None:
    items = case.items()
    indexes = [result.index for result in got]
    assert len(set(indexes)) == len(indexes)
    if case.ordered:
        assert indexes == list(range(len(got)))
    if whole_input:
        assert sorted(indexes) == list(range(count))
    for result in got:
        assert result.request == items[result.index]
        if result.completion is not None:
            assert result.error is None
            assert result.completion.text == f"You said: prompt {result.index}"
        else:
            assert isinstance(result.error, TogetherError) or type(result.error) is ValueError
            assert len(result.retries) == max(0, result.attempts - 1) or result.attempts == 0
        assert 0 <= result.timing.queued_s <= result.timing.total_s
