"""`Reading`: its states are those of its table, and the quick paths of its readers are the full one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.any_chunks import any_document, encoded, focused, plain
from together_async import IncompleteStreamError, TogetherError
from together_async.calls.readers import Reader
from together_async.calls.reading import Reading, State
from together_async.calls.stream import ChatCompletionStream
from together_async.errors import APIConnectionError
from together_async.models import ChatCompletion

EVENTS = 'data: {"choices": [{"index": 0, "delta": {"content": "a"}}]}\n\n'
END = "data: [DONE]\n\n"


class Response:
    """A response whose reads bring what the test says: data, or an exception."""

    status = 200
    media_type = "text/event-stream"
    raw_headers: dict[str, str] = {"X-Request-ID": "r"}  # noqa: RUF012 - nobody changes it

    def __init__(self, reads: list[bytes | BaseException]) -> None:
        self.reads = reads
        self.arrived = 1.0
        self.busy = self.closed = False
        self.on_close: Any = None

    def start_read(self, progressed: bool, caller_ran: bool) -> Any:
        return self._next()

    async def _next(self) -> bytes:
        read = self.reads.pop(0) if self.reads else b""
        if isinstance(read, BaseException):
            raise read
        return read

    def note_read(self, data: bytes) -> bytes:
        return data

    def salvage_buffered(self, error: BaseException) -> bytes:
        raise error

    def release_soon(self) -> None:
        self.close()

    def close(self) -> None:
        self.closed = True
        on_close, self.on_close = self.on_close, None
        if on_close is not None:
            on_close()


class FakeCall:
    """A call that gives these responses, or errors, one for each attempt."""

    tokens, estimated, attempts, retries, loop = None, False, 1, (), None

    def __init__(self, *answers: Response | BaseException) -> None:
        self.answers = list(answers)
        self.aborted: BaseException | None = None
        self.settled = 0

    async def open(self) -> Response:
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def again(self, error: TogetherError) -> Response:
        if not self.answers:
            raise error
        return await self.open()

    def abort(self, failure: APIConnectionError) -> None:
        self.aborted = failure

    def secrets(self) -> list[str]:
        return []

    def settle(self, usage: Any, seen: int = 0) -> None:
        self.settled += 1

    def record_error_in_body(self, status: int | None, body: Any, headers: Any) -> None: ...


def stream_of(*answers: Response | BaseException) -> ChatCompletionStream:
    return ChatCompletionStream(FakeCall(*answers), time=lambda: 0.0, max_event_size=1 << 20)  # type: ignore[arg-type]  # a fake


def check_legal(reading: Reading) -> None:
    """What the table at the head of `calls.reading` says of each state."""
    assert (reading.response is not None) == (reading.state is State.OPEN)
    assert reading.error is None or reading.state in (State.ENDED, State.LEAVING)
    assert not reading.payloads or reading.state is State.OPEN
    assert reading.decoder is not None or reading.state is not State.OPEN
    assert reading.over == (reading.state in (State.ENDED, State.LEAVING))


READS = st.lists(
    st.sampled_from(
        [
            EVENTS.encode(),
            EVENTS.encode() * 3,
            b": ping\n\n",
            EVENTS[:20].encode(),
            END.encode(),
            (EVENTS + END).encode(),
            b"data: {{{\n\n",
            b'data: {"error": {"message": "no", "code": 503}}\n\n',
            b"<html>",
            b'{"choices": [{"message": {"content": "whole"}}]}',
            "lost",
            "cancelled",
        ]
    ),
    max_size=5,
)
STEPS = st.lists(
    st.sampled_from(["chunk", "text", "batch", "raw", "enter", "leave", "open", "completion", "so far", "stats"]),
    max_size=8,
)


class LeftError(BaseException):
    """Stands for a cancellation, which would end the test."""


def failure(read: Any) -> Any:
    if read == "lost":
        return APIConnectionError("lost")
    return LeftError() if read == "cancelled" else read


@settings(max_examples=200)
@given(st.lists(READS, min_size=1, max_size=3), STEPS)
async def test_every_step_ends_in_a_legal_state(attempts: list[Any], steps: list[str]) -> None:
    """Whatever the server sends and the caller does; the place is given back once, and not before the end."""
    responses = [Response([failure(read) for read in reads]) for reads in attempts]
    stream = stream_of(*responses, APIConnectionError("nobody there"))
    reading, call = stream._reading, stream._call
    loops = {"chunk": stream, "text": stream.text(), "batch": stream.batches()}
    for step in steps:
        with contextlib.suppress(TogetherError, RuntimeError, StopAsyncIteration, LeftError):
            match step:
                case "enter":
                    await stream.__aenter__()
                case "leave":
                    stream.leave()
                case "open":
                    await stream.open()
                case "completion":
                    await stream.completion()
                case "so far":
                    assert isinstance(stream.so_far(), ChatCompletion)
                case "stats":
                    assert stream.stats.chunks == reading.accumulator.generated
                case "raw":
                    loops["raw"] = stream.raw()
                    await anext(loops["raw"])
                case _:
                    await anext(loops[step])
        check_legal(reading)
        assert repr(stream).startswith("<ChatCompletionStream ")
    error = reading.error
    stream.leave()
    check_legal(reading)
    assert reading.state is State.ENDED
    assert reading.error is error
    opened = [response for response in responses if response.closed]
    assert call.settled <= len(responses)  # type: ignore[attr-defined]  # a fake
    assert all(response.on_close is None for response in opened)
    if not reading.complete:
        with pytest.raises(TogetherError):
            await stream.completion()


async def test_a_stream_that_is_left_while_it_opens_is_leaving() -> None:
    """The task that opens it finds out, and ends it."""
    response = Response([])
    stream = stream_of()
    reading = stream._reading

    async def opens() -> Response:
        assert reading.state is State.OPENING
        stream.leave()
        check_legal(reading)
        assert reading.state is State.LEAVING
        with pytest.raises(IncompleteStreamError):  # another reader
            await anext(stream)
        with pytest.raises(RuntimeError, match="two tasks"):
            await reading.open()
        check_legal(reading)
        return response

    stream._call.open = opens  # type: ignore[method-assign]  # a fake
    with pytest.raises(IncompleteStreamError, match="closed while its request"):
        await stream.open()
    check_legal(reading)
    assert reading.state is State.ENDED
    assert response.closed


# ------------------------------------------------------------------------------------------------------- quick and full

CALLS = [{"index": 0, "id": "call", "function": {"name": "f", "arguments": "{}"}}]
EXTRAS = [
    {"delta": {"content": "b", **extra}}
    for extra in (
        {"tool_calls": CALLS},
        {"reasoning": "hm"},
        {"reasoning_content": "hm"},
        {"refusal": "no"},
        {"function_call": {"name": "f", "arguments": "{}"}},
        {"annotations": ["unknown"]},
        {"role": "tool"},
    )
] + [
    {"delta": {"content": "b"}, **extra}
    for extra in ({"index": 1}, {"finish_reason": "stop"}, {"logprobs": -0.5}, {"seed": 7})
]
NEARLY_PLAIN = [{"choices": [{"index": 0, **extra}]} for extra in EXTRAS] + [
    {"choices": [{"index": 0, "delta": {"content": "b"}}], **extra}
    for extra in (
        {"usage": {"total_tokens": 3}},
        {"error": {"message": "no"}},
        {"warnings": ["beware"]},
        {"prompt": [{"text": "Hi"}]},
    )
]
"""A plain chunk and one thing that makes it another: each must leave the quick path."""
LATE_ROLE = [
    {"choices": [{"index": 1}]},
    {"choices": [{"index": 1, "delta": {"content": "b", "role": "tool"}}]},
    {"choices": [{"index": 1, "delta": {"content": "c"}}]},
]
"""Another choice than the one that is read begins without its role."""
MIDDLES = st.lists(st.one_of(st.sampled_from(NEARLY_PLAIN), plain, any_document, *focused), max_size=6)


FACTS = {
    "id": "c",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "m",
    "system_fingerprint": "fp",
    "service_tier": "default",
    "prompt": [{"text": "Hi"}],
    "x_gateway": 1,
}
FIRST = {**FACTS, "choices": [{"index": 0, "delta": {"role": "assistant", "content": "a", "refusal": None}}]}
"""Its facts are those of the whole answer: readers on their quick path ignore what a later plain chunk says of it."""
BARE_FIRST = {
    **{name: value for name, value in FACTS.items() if name != "prompt"},
    "choices": [{"index": 0, "delta": {"content": "a"}}],
}
"""The role and the prompt may come later."""


async def results(body: bytes, way: str) -> tuple[Any, ...]:
    """What a reader gives, how it ended, what adds up, and how many chunks were counted."""
    stream = stream_of(Response([body]))
    loops: dict[str, AsyncIterator[Any]] = {"chunks": aiter(stream), "text": stream.text(), "batches": stream.batches()}
    read: list[Any] = []
    error = None
    try:
        async for item in loops[way]:
            read += item if way == "batches" else [item]
    except TogetherError as caught:
        error = (type(caught), str(caught))
    shown = "".join(read) if way == "text" else json.dumps([chunk.to_dict() for chunk in read])
    return shown, error, stream.so_far().to_dict(), stream.stats.chunks


def each_nearly_plain(test: Any) -> Any:
    """Tries each of `NEARLY_PLAIN` in any case, whatever else is generated."""
    for document in NEARLY_PLAIN:
        test = example([document])(test)
    return example(LATE_ROLE)(test)


@pytest.mark.parametrize("first", [FIRST, BARE_FIRST], ids=["all facts first", "role and prompt late"])
@pytest.mark.parametrize("way", ["chunks", "text", "batches"])
@settings(max_examples=60)
@each_nearly_plain
@given(MIDDLES)
async def test_the_quick_paths_are_the_full_one(
    way: str, first: dict[str, Any], documents: list[dict[str, Any]]
) -> None:
    """Readers give the same, and the same adds up, with their quick path and without it."""
    body = b"".join(b"data: " + encoded(document) + b"\n\n" for document in [first, *documents])
    quick = await results(body + END.encode(), way)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reader, "_begin", lambda self: None)
        full = await results(body + END.encode(), way)
    assert quick == full
