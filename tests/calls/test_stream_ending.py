"""`ChatCompletionStream`: complete or an error, whatever a server sends and wherever it breaks off."""

import asyncio
import json
import pickle

import pytest

from support.clients import served
from support.scripts import sends
from support.servers import DONE, KEY, LAST_CHUNK, MODEL, Call, answers, chunked, delta, say, sse, whole
from together_async import (
    APIConnectionError,
    AsyncTogether,
    IncompleteStreamError,
    StreamAPIError,
    StreamError,
    StreamProtocolError,
    TogetherError,
)

pytestmark = pytest.mark.usefixtures("no_leaks")

PROMPT = "Hi"


async def read(client: AsyncTogether) -> tuple[list[str], TogetherError | None]:
    """Reads a stream chunk by chunk; returns what was delivered, and the error that ended it."""
    delivered: list[str] = []
    try:
        async for chunk in client.stream(PROMPT, model=MODEL):
            delivered += [choice.delta.content or "" for choice in chunk.choices if choice.delta and not choice.index]
    except TogetherError as error:
        return delivered, error
    return delivered, None


async def read_text(client: AsyncTogether) -> tuple[list[str], TogetherError | None]:
    """The same by `text()`."""
    delivered: list[str] = []
    try:
        async for text in client.stream(PROMPT, model=MODEL).text():
            delivered.append(text)  # noqa: PERF401 - those before an error count
    except TogetherError as error:
        return delivered, error
    return delivered, None


BODY = sse(delta("", role="assistant")) + sse(delta("Hé")) + sse(delta("llo")) + sse(delta(finish="stop")) + DONE
HEADS = {
    "chunked": b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
    "length": b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(BODY),
    "close": b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n",
}
BODIES = {"chunked": b"".join(map(chunked, BODY.splitlines(keepends=True))) + LAST_CHUNK, "length": BODY, "close": BODY}


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("framing", HEADS)
async def test_cut_at_every_byte(framing: str, reset: bool) -> None:  # noqa: C901 - one check for each way to end
    """Wherever the connection breaks: all of it, or one error whose `.partial` is what was delivered."""
    wire = HEADS[framing] + BODIES[framing]
    finished_at = wire.index(b'"finish_reason": "stop"')

    async def script(call: Call) -> None:
        size = int(call.json["seed"])
        await call.send(wire[:size])
        if reset:
            await asyncio.sleep(0.001)  # else the RST overtakes what was sent, mostly
            call.reset()
        else:
            call.close()

    async def check(client: AsyncTogether, size: int, *, by_text: bool) -> None:
        stream = client.stream(PROMPT, model=MODEL, seed=size)
        delivered: list[str] = []
        try:
            if by_text:
                async for text in stream.text():
                    delivered.append(text)  # noqa: PERF401 - those before an error count
            else:
                async for chunk in stream:
                    delivered += [choice.delta.content or "" for choice in chunk.choices if choice.delta]
        except StreamError as error:
            assert error.partial.text == "".join(delivered), size  # noqa: PT017 - raised at some sizes only
            assert "Héllo".startswith(error.partial.text), size  # noqa: PT017 - as above
            reasons = [choice.finish_reason for choice in error.partial.choices]
            assert reasons in ([], [None]), size
            assert size < finished_at + 60, f"{size} of {len(wire)} bytes had the finish reason"
            assert size >= len(HEADS[framing]) or "content-type" in stream.response_headers, size
        except APIConnectionError:
            assert not delivered, size
            assert size < len(HEADS[framing]) + 5 or reset, size
        else:
            assert "".join(delivered) == "Héllo", size
            assert size > finished_at, f"{size} bytes of {len(wire)} are no whole stream"
            completion = await stream.completion()
            assert completion.text == "Héllo"
            assert completion.choices[0].finish_reason == "stop"

    async with served(script) as (_, client):
        sizes = iter(range(len(wire) + 1))

        async def worker() -> None:
            for size in sizes:
                await check(client, size, by_text=bool(size % 2))

        await asyncio.gather(*(worker() for _ in range(20)))


@pytest.mark.parametrize("size", [1, 2, 3, 7])
async def test_pieces_of_any_size(size: int) -> None:
    """The pieces in which bytes arrive change nothing, even in a chunk for each byte."""

    async def script(call: Call) -> None:
        await call.head()
        for start in range(0, len(BODY), size):
            await call.chunk(BODY[start : start + size])
        await call.send(LAST_CHUNK)

    async with served(script) as (_, client):
        for how in (read, read_text):
            delivered, error = await how(client)
            assert ("".join(delivered), error) == ("Héllo", None)


@pytest.mark.parametrize(
    ("body", "media_type", "error", "text"),
    [
        (b"<html><title>Bad gateway</title></html>", "text/html", StreamProtocolError, ""),
        (b"  <!doctype html>\n<p>Hello</p>", "text/event-stream", StreamProtocolError, ""),
        (b'{"error": {"message": "no", "code": 500}}', "application/json", StreamAPIError, ""),
        (b'{"error": "no"}', "application/json", StreamAPIError, ""),
        (b'{"detail": "no"}', "application/json", StreamAPIError, ""),
        (b'{\n  "error": {\n    "message": "no"\n  }\n}', "text/event-stream", StreamAPIError, ""),
        (b"", "text/event-stream", IncompleteStreamError, ""),
        (b"", "application/json", TogetherError, ""),
        (b"upstream connect error", "text/plain", TogetherError, ""),
        (b"[]", "application/json", TogetherError, ""),
        (b"null", "application/json", TogetherError, ""),
        (b'"text"', "application/json", TogetherError, ""),
        (b"{}", "application/json", TogetherError, ""),
        (json.dumps(whole()).encode()[:-3], "application/json", StreamProtocolError, ""),
        (b"\n\n: only comments\n\n", "text/event-stream", IncompleteStreamError, ""),
        (DONE, "text/event-stream", None, ""),
        (sse(delta("a")) + b"data: {broken\n\n" + DONE, "text/event-stream", StreamProtocolError, "a"),
        (sse(delta("a")) + b'data: "text"\n\n' + DONE, "text/event-stream", StreamProtocolError, "a"),
        (sse(delta("a")) + b"data: \xff\xfe\n\n" + DONE, "text/event-stream", StreamProtocolError, "a"),
        (
            sse(delta("a")) + b'data: {"choices":[{"index":0,"delta":{"content":"\xff"}}]}\n\n' + DONE,
            "text/event-stream",
            StreamProtocolError,
            "a",
        ),
        (sse(delta("a")) + sse({"choices": "wrong"}) + DONE, "text/event-stream", StreamProtocolError, "a"),
        (
            sse(delta("a")) + sse({"choices": [{"delta": {"content": 7}}]}) + DONE,
            "text/event-stream",
            StreamProtocolError,
            "a",
        ),
        (sse(delta("a")) + b"data: " + b"[" * 100_000 + b"\n\n" + DONE, "text/event-stream", StreamProtocolError, "a"),
        (sse(delta("a")), "text/event-stream", IncompleteStreamError, "a"),
        (sse(delta("a", finish="")), "text/event-stream", IncompleteStreamError, "a"),
        (sse(delta("a")) + b"data: [DONE]", "text/event-stream", IncompleteStreamError, "a"),
        (sse(delta("a")) + sse(delta(finish="stop")), "text/event-stream", None, "a"),
        (sse(delta("a")) + sse(delta("b", index=1, finish="stop")), "text/event-stream", IncompleteStreamError, "a"),
        (sse(delta("a")) + DONE, "text/event-stream", None, "a"),
        (sse(delta("a")) + b"data:[DONE]\n\n", "text/event-stream", None, "a"),
        (say("a") + sse(delta("never")) + b"data: {broken\n\n", "text/event-stream", None, "a"),
        (say("a").replace(b"\n", b"\r\n"), "text/event-stream", None, "a"),
        (say("a").replace(b"\n", b"\r"), "text/event-stream", None, "a"),
        (b"\xef\xbb\xbf" + say("a"), "text/event-stream", None, "a"),
        (say("a"), "application/octet-stream", None, "a"),
        (say("a"), "text/plain", None, "a"),
        (json.dumps(whole("a")).encode(), "application/json", None, "a"),
        (json.dumps(whole("a"), indent=2).encode(), "application/json", None, "a"),
        (b"data: " + json.dumps(whole("a")).encode() + b"\n\n" + DONE, "text/event-stream", None, "a"),
    ],
)
async def test_what_a_200_may_be(body: bytes, media_type: str, error: type[TogetherError] | None, text: str) -> None:
    """Every body under status 200 has one outcome, the same by chunks and by text."""
    async with served(sends(body, media_type=media_type)) as (_, client):
        for how in (read, read_text):
            delivered, caught = await how(client)
            assert "".join(delivered) == text
            if error is None:
                assert caught is None
            else:
                assert isinstance(caught, error)
                if isinstance(caught, StreamError):
                    assert caught.partial.text == text
                    assert all(not choice.finish_reason for choice in caught.partial.choices if choice.index == 0)


@pytest.mark.parametrize("status", [204, 205])
async def test_no_content_is_an_error(status: int) -> None:
    """A success without a body is not a stream."""
    head = b"HTTP/1.1 %d No Content\r\n%s\r\n" % (status, b"content-length: 0\r\n" if status == 205 else b"")
    async with served(answers(head)) as (_, client):
        delivered, error = await read(client)
        assert not delivered
        assert isinstance(error, StreamProtocolError)


@pytest.mark.parametrize(
    ("event", "status"),
    [
        (sse({"error": {"message": "overloaded", "code": 503}}), 503),
        (sse({"error": {"message": "overloaded", "type": "x", "code": "503"}}), 503),
        (sse({"error": "overloaded"}), None),
        (sse({"object": "error", "message": "overloaded", "code": 503}), 503),
        (sse({"detail": "overloaded"}), None),
        (sse({**delta("never"), "error": {"message": "overloaded"}}), None),
        (b"event: error\n" + sse({"message": "overloaded"}), None),
        (b"event: error\ndata: overloaded\n\n", None),
        (b"event: error\n" + sse({"error": {"message": "overloaded", "status": 503}}), 503),
    ],
)
async def test_an_error_in_the_stream(event: bytes, status: int | None) -> None:
    """Each shape of an error object ends the stream with the server's words, also when [DONE] follows."""
    for after in (b"", DONE, sse(delta("never")) + DONE):
        async with served(sends(sse(delta("a")) + event + after)) as (_, client):
            for how in (read, read_text):
                delivered, error = await how(client)
                assert delivered == ["a"]
                assert isinstance(error, StreamAPIError)
                assert "overloaded" in str(error)
                assert error.status_code == status
                assert error.partial.text == "a"


async def test_an_error_in_the_stream_does_not_repeat_key_or_prompt() -> None:
    """What a server echoes inside the stream is redacted, as in any error's text."""
    prompt = "the secret plans of the company"
    event = sse({"error": {"message": f"bad key {KEY} for {prompt!r}"}})
    async with served(sends(sse(delta("a")) + event)) as (_, client):
        with pytest.raises(StreamAPIError) as caught:
            await client.stream(prompt, model=MODEL).completion()
        assert KEY not in str(caught.value)
        assert prompt not in str(caught.value)


async def test_the_error_is_raised_again_by_every_later_read() -> None:
    """A broken stream stays broken: no later loop ends without an error."""
    async with served(sends(sse(delta("a")))) as (_, client):
        stream = client.stream(PROMPT, model=MODEL)
        with pytest.raises(IncompleteStreamError) as first:
            async for _ in stream:
                pass
        for again in (anext(stream), stream.completion(), anext(stream.text())):
            with pytest.raises(IncompleteStreamError) as caught:
                await again
            assert caught.value is first.value


async def test_two_choices() -> None:
    """n = 2 with index 1 first; text() tells them apart, and both have to be finished."""
    body = sse(delta("x", index=1)) + sse(delta("a", index=0)) + sse(delta("y", index=1, finish="stop"))
    async with served(sends(body), sends(body + sse(delta("b", index=0, finish="length")))) as (_, client):
        with pytest.raises(IncompleteStreamError) as caught:
            await client.stream(PROMPT, model=MODEL, n=2).completion()
        assert [choice.finish_reason for choice in caught.value.partial.choices] == [None, "stop"]
        async with client.stream(PROMPT, model=MODEL, n=2) as stream:
            assert "".join([text async for text in stream.text(choice=1)]) == "xy"
            completion = await stream.completion()
        assert [choice.message.content for choice in completion.choices if choice.message] == ["ab", "xy"]


async def test_fewer_choices_than_asked_for_are_not_complete() -> None:
    """n=2, and the body ends after the first choice's finish reason without `[DONE]`."""
    async with served(sends(sse(delta("a", finish="stop")))) as (_, client):
        with pytest.raises(IncompleteStreamError):
            await client.stream(PROMPT, model=MODEL, n=2).completion()
        assert (await client.stream(PROMPT, model=MODEL).completion()).text == "a"


@pytest.mark.parametrize("value", [b'"\xff"', b"1e999"])
async def test_what_cannot_be_read_in_a_value_nobody_reads(value: bytes) -> None:
    """Broken text or a huge number under an unknown key does no harm, not even in `to_dict`."""
    first = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}],"x":' + value + b"}\n\n"
    async with served(sends(first + sse(delta("b", finish="stop")) + DONE)) as (_, client):
        chunks = [chunk async for chunk in client.stream(PROMPT, model=MODEL)]
        assert [chunk.to_dict()["choices"][0]["delta"]["content"] for chunk in chunks] == ["a", "b"]
        assert [text async for text in client.stream(PROMPT, model=MODEL).text()] == ["a", "b"]


async def test_a_partial_of_a_stream_error_is_picklable() -> None:
    """Errors of a stream can be sent to another process, with what was delivered."""

    async def script(call: Call) -> None:
        await call.head()
        await call.chunk(sse(delta("a", role="assistant")))
        call.close()

    async with served(script) as (_, client):
        with pytest.raises(StreamError) as caught:
            await client.stream(PROMPT, model=MODEL).completion()
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own
    assert (type(again), again.partial, again.attempts) == (type(caught.value), caught.value.partial, 1)
