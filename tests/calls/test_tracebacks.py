"""`let_go`: what an error holds that its caller keeps."""

import asyncio
import gc
import json
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from support import virtual_time
from support.calls import clocked, leaves_nothing, refusal
from support.clients import served
from support.servers import (
    KEY,
    LAST_CHUNK,
    MODEL,
    Call,
    Script,
    answers,
    delta,
    hangs,
    response,
    sse,
    starts_and_hangs,
    whole,
)
from together_async import (
    APIConnectionError,
    AsyncTogether,
    BadRequestError,
    Broadcast,
    Limits,
    PaymentRequiredError,
    Retry,
    StreamError,
    Timeouts,
    TogetherError,
    buffered,
)
from together_async.calls.tracebacks import strip

PROMPT_SIZE = 1_000_000
SHARED = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.CodeType)
"""What exists once, whatever refers to it."""
OURS = ("together_async.calls", "together_async.http", "together_async.ratelimit", "together_async.client")


def held(error: BaseException, *others: object) -> list[Any]:
    """All objects that an error keeps alive, but for what is shared and the callers' frames."""
    seen = {id(other) for other in (*others, *sys.modules.values(), *(vars(m) for m in sys.modules.values() if m))}
    found, pending = list[Any](), list[Any]([error])
    while pending:
        item = pending.pop()
        if id(item) in seen or isinstance(item, SHARED):
            continue
        seen.add(id(item))
        if isinstance(item, types.FrameType) and item.f_globals["__name__"].startswith(("test", "_pytest", "asyncio")):
            continue
        found.append(item)
        pending += gc.get_referents(item)
    return found


def check_slim(error: BaseException) -> None:
    """An error holds what it shows: some KiB of texts and numbers, no frame, nothing of a call."""
    items = held(error)
    kinds = {f"{type(item).__module__}.{type(item).__name__}" for item in items}
    assert not {kind for kind in kinds if kind.startswith(OURS) and "Error" not in kind}
    assert not kinds & {"builtins.frame", "builtins.coroutine", "_asyncio.Task", "_asyncio.Future"}
    assert sum(map(sys.getsizeof, items)) < 4_096


def a_prompt() -> str:
    return "long " * (PROMPT_SIZE // 5)


@attrs.frozen
class Answer:
    number: int


async def resets(call: Call) -> None:
    call.reset()


async def resets_later(call: Call) -> None:
    if call.json.get("stream"):
        await call.head()
        await call.chunk(sse(delta("a", role="assistant")), sse(delta("b")))
    else:
        await call.send(response(whole())[:-10])
    await asyncio.sleep(0.01)
    call.reset()


def sends(*data: bytes) -> Script:
    """A stream of one token, and these bytes."""

    async def script(call: Call) -> None:
        await call.head()
        await call.chunk(sse(delta("a", role="assistant")))
        await call.send(*data)
        await call.hang()

    return script


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


KINDS: dict[str, tuple[Script | None, Timeouts]] = {
    "status": (answers(refusal(500)), Timeouts()),
    "wrong request": (answers(refusal(400)), Timeouts()),
    "no credit": (answers(refusal(402)), Timeouts()),
    "a pause too long": (answers(refusal(429, "retry-after: 1000")), Timeouts()),
    "refused": (None, Timeouts()),
    "reset": (resets, Timeouts()),
    "reset in the middle": (resets_later, Timeouts()),
    "first_token": (hangs, Timeouts(first_token=1)),
    "total": (hangs, Timeouts(total=1)),
    "idle": (starts_and_hangs, Timeouts(idle=1)),
    "total in the middle": (starts_and_hangs, Timeouts(total=1)),
    "incomplete": (sends(LAST_CHUNK), Timeouts(total=1)),
    "not JSON": (sends(chunk(b"data: {nonsense\n\n")), Timeouts(total=1)),
    "an error in the stream": (sends(chunk(sse({"error": {"message": "boom", "code": 400}}))), Timeouts(total=1)),
    "a page": (answers(response(b"<html>", media_type="text/html")), Timeouts()),
    "another class": (answers(response(whole('{"number": "x"}'))), Timeouts()),
}


async def by_create(client: AsyncTogether) -> None:
    await client.create(a_prompt(), model=MODEL)


async def by_the_sdks_name(client: AsyncTogether) -> None:
    await client.chat.completions.create(messages=[{"role": "user", "content": a_prompt()}], model=MODEL)


async def by_parse(client: AsyncTogether) -> None:
    await client.parse(a_prompt(), model=MODEL, response_type=Answer)


async def by_completion(client: AsyncTogether) -> None:
    await client.stream(a_prompt(), model=MODEL).completion()


async def by_block(client: AsyncTogether) -> None:
    async with client.stream(a_prompt(), model=MODEL) as stream:
        async for _ in stream.text():
            pass


async def by_map_that_raises(client: AsyncTogether) -> None:
    async for _ in client.map([a_prompt()], model=MODEL, stream=True, on_error="raise", retry=RULES):
        pass


async def by_chunks(client: AsyncTogether) -> None:
    async for _ in client.stream(a_prompt(), model=MODEL):
        pass


async def by_text(client: AsyncTogether) -> None:
    async for _ in client.stream(a_prompt(), model=MODEL).text():
        pass


async def by_buffered(client: AsyncTogether) -> None:
    async for _ in buffered(client.stream(a_prompt(), model=MODEL)):
        pass


async def by_subscription(client: AsyncTogether) -> None:
    async for _ in Broadcast(client.stream(a_prompt(), model=MODEL)).subscribe().text():
        pass


RULES = Retry(attempts=2, base_delay=0.001)
AT_ONCE = (by_create, by_the_sdks_name, by_parse, by_completion, by_block, by_map_that_raises)
IN_THE_NEXT_TURN = (by_chunks, by_text, by_buffered, by_subscription)
Way = Callable[[AsyncTogether], Any]


async def error_of(way: Way, script: Script | None, timeouts: Timeouts) -> TogetherError | None:
    """The error of a call, as a caller keeps it; None if the answer fits."""
    async with served(script or hangs, retry=RULES, limits=clocked(), timeouts=timeouts) as (server, client):
        if script is None:
            await server.__aexit__()
        try:
            await way(client)
        except TogetherError as error:
            if way in IN_THE_NEXT_TURN:
                await asyncio.sleep(0)
            return error
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_a_kept_error_holds_what_it_shows(kind: str) -> None:
    """Whatever failed, however it was asked: no frame, no request, no connection, and not a megabyte of prompt."""

    async def main() -> None:
        failed = 0
        for way in (*AT_ONCE, *IN_THE_NEXT_TURN):
            error = await error_of(way, *KINDS[kind])
            if error is not None:
                failed += 1
                check_slim(error)
        assert failed

    virtual_time.run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_of_a_result_holds_what_it_shows(kind: str) -> None:
    """The same for `MapResult.error`, at once, without the result's own request."""

    async def main() -> None:
        script, timeouts = KINDS[kind]
        errors = list[Any]()
        for streamed in (False, True):
            async with served(script or hangs, limits=clocked(), timeouts=timeouts) as (server, client):
                if script is None:
                    await server.__aexit__()
                results = client.map([a_prompt()], model=MODEL, stream=streamed, retry=RULES)
                errors += [result.error async for result in results if result.error is not None]
        assert errors or kind == "another class"
        for error in errors:
            check_slim(error)

    virtual_time.run(main())


def test_the_error_of_an_element_that_is_no_request_holds_what_it_shows() -> None:
    """A ValueError of the checks, too."""

    async def main() -> None:
        async with AsyncTogether(KEY, base_url="http://127.0.0.1:9/v1") as client:
            (result,) = [result async for result in client.map([a_prompt()], model=MODEL, max_tokens=-5)]
            assert isinstance(result.error, ValueError)
            check_slim(result.error)

    virtual_time.run(main())


@pytest.mark.parametrize("way", [by_create, by_map_that_raises, by_text], ids=lambda way: way.__name__)
def test_the_callers_part_of_a_traceback_stays(way: Way) -> None:
    """The lines that called, and the type and text of every cause."""

    async def main() -> None:
        async with AsyncTogether(KEY, base_url="http://127.0.0.1:9/v1", retry=RULES) as client:
            with pytest.raises(APIConnectionError) as caught:
                await way(client)
        await asyncio.sleep(0)
        shown = "".join(traceback.format_exception(caught.value))
        assert f"in {way.__name__}" in shown
        assert "ClientConnectorError: Cannot connect" in shown
        assert "ConnectionRefusedError" in shown
        assert "together_async/" not in shown
        assert "aiohttp/" not in shown

    virtual_time.run(main())


def test_what_the_caller_was_handling_is_not_touched() -> None:
    """Its own error is the context of ours, with all of its frames."""

    async def main() -> None:
        async with served(answers(refusal(400)), limits=clocked()) as (_, client):
            try:
                json.loads("x")
            except ValueError as error:
                lines = traceback.format_exception(error)
                with pytest.raises(BadRequestError) as caught:
                    await by_create(client)
        await asyncio.sleep(0)
        handled = caught.value.__context__
        assert handled is not None
        assert traceback.format_exception(handled) == lines
        assert "decoder.py" in "".join(lines)

    virtual_time.run(main())


async def test_in_debug_mode_all_frames_stay() -> None:
    """For those who look for a fault of this package."""
    asyncio.get_running_loop().set_debug(True)
    async with AsyncTogether(KEY, base_url="http://127.0.0.1:9/v1") as client:
        with pytest.raises(APIConnectionError) as caught:
            await client.create("Hi", model=MODEL)
    shown = "".join(traceback.format_exception(caught.value))
    assert "transport.py" in shown
    assert "aiohttp" in shown


def test_an_error_that_is_raised_again_and_again_does_not_grow() -> None:
    """A stream that broke raises the same error at every read."""

    async def main() -> None:
        async with served(resets_later, limits=clocked()) as (_, client):
            stream = client.stream(a_prompt(), model=MODEL)
            for _ in range(50):
                try:
                    await stream.completion()
                except StreamError as caught:
                    error = caught
            check_slim(error)
            assert len(list(traceback.walk_tb(error.__traceback__))) == 1

    virtual_time.run(main())


@leaves_nothing
async def test_each_call_that_a_402_turns_away_gets_an_error_of_its_own() -> None:
    """The limiter keeps the facts, not the error; neither what it keeps nor what it raises holds the first prompt."""
    async with served(answers(refusal(402)), limits=Limits()) as (server, client):
        errors = []
        for _ in range(5):
            try:
                await client.create(a_prompt(), model=MODEL)
            except PaymentRequiredError as error:
                errors.append(error)
        assert len(server.calls) == 1
        assert len({id(error) for error in errors}) == 5
        assert [error.attempts for error in errors] == [1, 0, 0, 0, 0]
        assert len({len(list(traceback.walk_tb(error.__traceback__))) for error in errors}) == 1
        for error in errors:
            check_slim(error)
        stop = client.limiter.driver.admission._stop
        assert not any(isinstance(item, BaseException) for item in held(stop))  # type: ignore[arg-type]  # any object


def test_strip_leaves_the_frames_that_the_callers_code_has_called() -> None:
    """A callback's frames stay with what it called of the standard library; the library's around it go."""
    namespace = {"__name__": "together_async.anything"}
    exec("def call(function): function()", namespace)  # noqa: S102 - a frame of that module

    def mine() -> None:
        next(filter(None, map(int, ["x"])))

    try:
        namespace["call"](lambda: sorted([1], key=lambda _: mine()))  # type: ignore[operator]  # what exec has made
    except ValueError as caught:
        error = caught
    before = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    strip(error)
    after = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    assert "call" in before
    assert after == [name for name in before if name != "call"]


def test_strip_forgets_what_nobody_is_shown() -> None:
    """`raise ... from` hides the context; a context of this package's is then held for nothing."""
    namespace: dict[str, Any] = {"__name__": "together_async.anything"}
    exec(  # noqa: S102 - frames of that module
        "def fail():\n try:\n  int('x')\n except ValueError:\n  raise KeyError from OSError()\n", namespace
    )
    try:
        namespace["fail"]()
    except KeyError as caught:
        error = caught
    assert isinstance(error.__context__, ValueError)
    strip(error)
    assert error.__context__ is None
    assert isinstance(error.__cause__, OSError)
