"""One statement about the client, and a search for a counterexample.

For every script, every split of the bytes and every fault at every byte offset, either the completion is exactly the
script's, or one error of our tree is raised, of the right class, within the timeout, whose `.partial` is exactly what
was delivered and a prefix of the truth; afterwards no socket, no task is left, and no key or prompt is in any text.

`CASES=100000 pytest tests/system/test_one_statement.py --hypothesis-seed=1` searches longer than the suite does.
"""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import os
import traceback
from typing import Any

import attrs
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from support.leaks import open_sockets
from support.oracle import Expected, expect, view
from support.virtual_time import run
from together_async import (
    APIConnectionError,
    APIStatusError,
    AsyncTogether,
    RateLimiter,
    Retry,
    StreamError,
    TogetherError,
)
from together_async.testing import (
    DIALECTS,
    Call,
    Cut,
    Dialect,
    Drip,
    EmulatorServer,
    ErrorInStream,
    Fault,
    Frame,
    Garbage,
    Gzip,
    Insert,
    LineEndings,
    Model,
    Reply,
    Split,
    Stall,
    Status,
    WithoutDone,
    WithoutFinishReason,
    WrongLength,
)
from together_async.testing.incoming import Incoming

KEY = "tgp_v1_key-nobody-may-see"
PROMPT = 'prompt-nobody-may-see ☃ "quoted"\nsecond line'
CASES = int(os.environ.get("CASES", "300"))

# --------------------------------------------------------------------------------------------------------------- cases

texts = st.one_of(
    st.sampled_from(
        ["Hello there, world!", "", "a", "Grüße 🌊🏔 и привет", 'say "hi"\n\nthen \\n', "[DONE]", "data: x\r\n"]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
)
tokens = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6), max_size=6)
calls = st.builds(
    Call,
    st.sampled_from(["get_weather", "f"]),
    st.one_of(st.sampled_from(['{"city": "Oslo"}', "{}", ""]), st.dictionaries(st.text(max_size=3), st.integers())),
)
replies = st.builds(
    Reply,
    content=st.one_of(texts, tokens),
    reasoning=st.one_of(st.none(), texts),
    tool_calls=st.lists(calls, max_size=2),
    finish_reason=st.sampled_from([None, None, "stop", "eos", "length", "newer_reason"]),
)
dialects = st.one_of(
    st.sampled_from(list(DIALECTS.values())),
    st.builds(
        Dialect,
        name=st.just("odd"),
        usage=st.sampled_from(["finish", "last", "none"]),
        reasoning=st.sampled_from(["reasoning", "reasoning_content"]),
        logprobs=st.sampled_from(["native", "openai"]),
        opening=st.sampled_from(["role", "null", "none"]),
        finish_beside_text=st.booleans(),
        double_tool_finish=st.booleans(),
        last_choice_first=st.booleans(),
        done=st.booleans(),
        closes=st.booleans(),
    ),
)


@st.composite
def places(draw: st.DrawFn, *, head: bool = True) -> dict[str, int]:
    """Where a fault happens."""
    names = ["at_byte", "at_byte", "at_byte", "after_token", *(["in_head", "nowhere"] if head else [])]
    name = draw(st.sampled_from(names))
    if name == "nowhere":
        return {}
    most = {"at_byte": 4_000, "after_token": 12, "in_head": 400}[name]
    return {name: draw(st.integers(0, most) | st.integers(0, 60 if name == "at_byte" else most))}


@st.composite
def endings(draw: st.DrawFn, *, whole: bool) -> Fault:
    """A fault that ends or delays the response. In a whole response a ping is content, and would never end."""
    kinds = ["cut", "cut", "cut", "stall", "error", "garbage", "length", "drip"]
    kind = draw(st.sampled_from(kinds if whole else [*kinds, "pings"]))
    place = draw(places())
    if kind == "cut":
        return Cut(how=draw(st.sampled_from(["reset", "close", "chunk", "end"])), **place)
    if kind == "stall":
        return Stall(seconds=draw(st.sampled_from([float("inf"), 1.03, 59.07, 61.03, 298.9, 301.1])), **place)
    if kind == "pings":
        seconds = draw(st.sampled_from([float("inf"), 50.0, 400.0]))
        every = draw(st.sampled_from([9.987, 24.993]))
        return Stall(seconds=seconds, ping_every=every, after_token=draw(st.integers(0, 8)))
    if kind == "length":
        return WrongLength(draw(st.integers(-300, 300).filter(bool)))
    if kind == "drip":
        return Drip(size=draw(st.integers(5, 60)), every_s=draw(st.sampled_from([0.0013, 0.4987, 2.9917])))
    inside = {"after_token": draw(st.integers(0, 8))}  # between events, because inside a line it would hide the line
    if kind == "garbage":
        return Garbage(
            data=draw(st.sampled_from([b'{"id":"x","choices":[{"ind', b"[1]", b"7", b"\xff\xfe", b"null"])), **inside
        )
    shapes = ["object", "text", "flat", "detail", "named", "named_text", "beside"]
    message = draw(st.sampled_from(["out of memory", f"bad key {KEY} for {PROMPT}"]))
    return ErrorInStream(shape=draw(st.sampled_from(shapes)), message=message, done=draw(st.booleans()), **inside)


@attrs.frozen
class Case:
    """One exchange: the replies, the dialect, the faults, and the way of reading."""

    replies: tuple[Reply, ...]
    dialect: Dialect
    options: dict[str, Any]
    faults: tuple[Fault, ...]
    mode: str
    again: bool
    entered: bool


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A case; about half of its parts are those of an ordinary exchange."""
    count = draw(st.sampled_from([1, 1, 1, 2, 3]))
    options: dict[str, Any] = {"n": count} if count > 1 else {}
    if draw(st.booleans()):
        options["logprobs"] = draw(st.integers(1, 2))
    if draw(st.booleans()):
        options["stream_options"] = {"include_usage": True}
    if draw(st.integers(0, 3)) == 0:
        options["max_tokens"] = draw(st.integers(1, 8))
    mode = draw(st.sampled_from(["chunks", "text", "completion", "whole", "leave"]))
    faults: list[Fault] = []
    if draw(st.integers(0, 2)) == 0:
        faults.append(LineEndings(draw(st.sampled_from(["\r\n", "\r"]))))
    if draw(st.integers(0, 5)) == 0:
        faults.append(draw(st.sampled_from([WithoutDone(), WithoutFinishReason()])))
    if draw(st.integers(0, 3)) == 0 and mode != "whole":
        faults.append(
            Insert(
                data=draw(st.sampled_from([b": ping\n\n", b"retry: 10\n\n", b"\n"])),
                after_token=draw(st.integers(0, 4)),
            )
        )
    if draw(st.integers(0, 5)) > 0:
        faults.append(draw(endings(whole=mode == "whole")))
    faults += draw(transfers())
    if draw(st.integers(0, 20)) == 0:
        message = draw(st.sampled_from([None, f"{KEY} said {PROMPT}"]))
        faults = [Status(draw(st.sampled_from([400, 401, 402, 404, 418, 422, 429, 500, 503])), message=message)]
    return Case(
        tuple(draw(st.lists(replies, min_size=1, max_size=count))),
        draw(dialects),
        options,
        tuple(faults),
        mode,
        draw(st.integers(0, 3)) == 0,
        draw(st.booleans()),
    )


@st.composite
def transfers(draw: st.DrawFn) -> list[Fault]:
    """How the bytes travel."""
    found: list[Fault] = []
    split = draw(st.sampled_from(["", "", "every", "at", "utf-8", "crlf"]))
    if split == "every":
        found.append(Split(every=draw(st.sampled_from([1, 2, 3, 7, 50, 200]))))
    elif split == "at":
        found.append(Split(at=draw(st.lists(st.integers(0, 3_000), min_size=1, max_size=5))))
    elif split:
        found.append(Split(inside="utf-8" if split == "utf-8" else "crlf"))
    return found


# ----------------------------------------------------------------------------------------------------------- the search


@settings(
    max_examples=CASES,
    derandomize="CASES" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(cases(), st.sampled_from(["chunked", "chunked", "length", "close", "gzip"]))
def test_complete_and_true_or_one_right_error(case: Case, framing: str) -> None:
    """See the head of this file."""
    case = attrs.evolve(case, faults=framed(case, framing))
    sockets = open_sockets()
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)
    try:
        event(run(exchange(case)))
    finally:
        logging.getLogger().removeHandler(handler)
    if open_sockets() - sockets:
        gc.collect()
    assert open_sockets() - sockets == set()
    assert log.getvalue() == ""


def framed(case: Case, framing: str) -> tuple[Fault, ...]:
    """The faults with the framing first: a fault that breaks off must know the announced length."""
    length = any(isinstance(fault, WrongLength) for fault in case.faults)
    if framing == "gzip" and not length:
        return (*case.faults, Gzip())
    if framing in ("chunked", "gzip") or length:
        return case.faults if not length else (*case.faults,)
    return (Frame(framing), *case.faults)  # type: ignore[arg-type]  # faults of every kind


def server_of(case: Case, *, faults: tuple[Fault, ...] = ()) -> EmulatorServer:
    return EmulatorServer(lambda request: list(case.replies), faults=list(faults), models=[Model("m", case.dialect)])


def planned(case: Case, *, stream: bool, faults: tuple[Fault, ...] = ()) -> Any:
    """The plan of the answer."""
    body = {"messages": [{"role": "user", "content": PROMPT}], "model": "m", "stream": stream, **case.options}
    incoming = Incoming("POST", "/v1/chat/completions", {}, json.dumps(body).encode())
    return server_of(case, faults=faults).answer(incoming, 0)[1]


async def exchange(case: Case) -> str:
    """Runs one case and compares with the oracle; returns what kind of case it was."""
    stream = case.mode != "whole"
    response = planned(case, stream=stream, faults=case.faults)
    expected = expect(response, stream=stream, choices=case.options.get("n", 1))
    truth = view(json.loads(planned(case, stream=False).body[0].data))
    async with server_of(case, faults=case.faults) as server:
        loop = asyncio.get_running_loop()
        limiter = RateLimiter(clock=loop.time)
        async with AsyncTogether(KEY, base_url=server.base_url, limits=limiter) as client:
            started = loop.time()
            try:
                got = await MODES[case.mode](client, case)
            except TogetherError as error:
                check_error(error, expected, truth, loop.time() - started)
                check_texts(error, client)
            else:
                if case.mode != "leave":
                    whole = case.mode == "whole" and expected.seen is not None
                    assert expected.error is None or whole, f"a completion, expected {expected}"
                    check_completion(got, expected, truth, case)
            if case.again and not expected.refusable:  # surplus bytes may disturb the next request on the connection
                server.faults = None
                limiter.resume()  # a 402
                again = await client.create(PROMPT, model="m", retry=Retry(), **case.options)  # may be in a pause
                assert view(again.to_dict())["choices"] == truth["choices"] or not case.dialect.finish_reasons
        await server.journal[0].wait_ended()
        assert (limiter.state.in_flight, limiter.state.queued) == (0, 0)
    return f"{case.mode}: {expected.error.__name__ if expected.error else 'complete'}"


async def read_chunks(client: AsyncTogether, case: Case) -> dict[str, Any]:
    stream = client.stream(PROMPT, model="m", **case.options)
    if case.entered:
        async with stream:
            chunks = [chunk async for chunk in stream]
    else:
        chunks = [chunk async for chunk in stream]
    assert all(chunk.to_dict() for chunk in chunks)
    return (await stream.completion()).to_dict()


async def read_text(client: AsyncTogether, case: Case) -> dict[str, Any]:
    stream = client.stream(PROMPT, model="m", **case.options)
    texts: list[str] = []
    try:
        if case.entered:
            async with stream:
                texts += [text async for text in stream.text()]
        else:
            async for text in stream.text():
                texts.append(text)
    except StreamError as error:
        first = view(error.partial.to_dict())["choices"].get(0, {"content": ""})
        assert "".join(texts) == first["content"] or case.entered
        raise
    body = (await stream.completion()).to_dict()
    assert "".join(texts) == view(body)["choices"].get(0, {"content": ""})["content"]
    return body


async def read_completion(client: AsyncTogether, case: Case) -> dict[str, Any]:
    return (await client.stream(PROMPT, model="m", **case.options).completion()).to_dict()


async def read_whole(client: AsyncTogether, case: Case) -> dict[str, Any]:
    return (await client.create(PROMPT, model="m", **case.options)).to_dict()


async def leave(client: AsyncTogether, case: Case) -> None:
    """Leaves the loop after the first chunk, if there is one."""
    async for _ in client.stream(PROMPT, model="m", **case.options):
        break


MODES = {"chunks": read_chunks, "text": read_text, "completion": read_completion, "whole": read_whole, "leave": leave}


def check_completion(body: dict[str, Any], expected: Expected, truth: dict[str, Any], case: Case) -> None:
    """The completion is the oracle's, and the script's."""
    seen = view(body)
    assert seen == expected.seen
    without_reasons = any(isinstance(fault, WithoutFinishReason) for fault in case.faults)
    for index, choice in truth["choices"].items():
        got = seen["choices"].get(index)
        if got is None:  # a choice without content, on a server that sends no chunk for it
            continue
        has_reasons = not without_reasons and case.dialect.finish_reasons
        assert got == {**choice, "finish_reason": choice["finish_reason"] if has_reasons else None}
    if seen["usage"] is not None:
        assert seen["usage"] == truth["usage"]


def check_error(error: TogetherError, expected: Expected, truth: dict[str, Any], elapsed: float) -> None:
    """The error has the right class, comes in time, and has exactly what was delivered."""
    if expected.refusable and type(error) is APIConnectionError:
        return
    assert type(error) is expected.error, f"{error!r}, expected {expected}"
    assert error.attempts == 1
    assert getattr(error, "phase", None) == expected.phase
    if expected.at is not None:
        assert expected.at - 0.01 <= elapsed <= expected.at + 1
    if isinstance(error, StreamError):
        seen = view(error.partial.to_dict())
        assert seen == expected.seen
        for index, choice in seen["choices"].items():
            whole = truth["choices"][index]
            assert whole["content"].startswith(choice["content"])
            assert whole["reasoning"].startswith(choice["reasoning"])
            for partial_call, call in zip(choice["calls"], whole["calls"], strict=False):
                assert partial_call[:2] == call[:2]
                assert call[2].startswith(partial_call[2])
    elif isinstance(error, APIStatusError):
        assert error.request_id


def check_texts(error: BaseException, client: AsyncTogether) -> None:
    """No key and no prompt is in anything that a log shows."""
    shown = "".join(traceback.format_exception(error)) + repr(error) + repr(client)
    for secret in (KEY, PROMPT, json.dumps(PROMPT)[1:-1], repr(PROMPT)[1:-1], " ".join(PROMPT.split())):
        assert secret not in shown
