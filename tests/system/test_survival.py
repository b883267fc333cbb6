"""What users meet, case by case: this file has the connection that breaks, at each stage of a call.

The others: test_survival_stalls (silence), _answers (statuses, redirects, bodies), _events (what stands in a stream),
_floods (too much), _pool (connections, hosts, loops, many at once), _leaving (consumers who go, cancellation).
Every case asserts the class of the error and its facts, that the partial is what was delivered and a
prefix of the truth, that no text shows the key or the prompt, that nothing is left, and that the client goes on.
"""

import asyncio
import socket
import ssl
import struct
from typing import Any

import pytest
import trustme

from support.survival import KEY, KINDS, STREAMED, TEXT, TOKENS, ask, case, events_of, listening, scene
from together_async import (
    APIConnectionError,
    APIResponseValidationError,
    AsyncTogether,
    IncompleteStreamError,
    StreamConnectionError,
    Timeouts,
    TogetherError,
)
from together_async.testing import DIALECTS, CloseAfter, Cut, EmulatorServer, Frame, Gzip, Model, Reply

pytestmark = pytest.mark.usefixtures("no_leaks")

HOWS = ("reset", "close", "chunk", "end")
FRAMES = {
    "chunked": Frame("chunked"),
    "length": Frame("length"),
    "close": Frame("close"),
    "gzip": Frame("chunked") + Gzip(),
    "gzip to the close": Frame("close") + Gzip(),
}


def error_of_cut(how: Any, frame: str) -> type[TogetherError]:
    """What a stream that has begun raises when it is cut."""
    # Where the connection's end is the body's, aiohttp takes even a reset for an end in good order.
    return IncompleteStreamError if how == "end" or "close" in frame else StreamConnectionError


# ------------------------------------------------------------------------------------------------- before the response


async def reset_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def close_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def reset_when_asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    await reset_at_once(reader, writer)


async def close_when_asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("ends", [reset_at_once, close_at_once, reset_when_asked, close_when_asked])
async def test_a_connection_that_ends_before_anything_came(ends: Any, scheme: str, kind: str) -> None:
    """Accepted and dropped, over TCP or in the TLS handshake: nothing came back, after one request."""
    if scheme == "https" and ends is close_when_asked:
        pytest.skip("a TLS hello has no empty line")
    async with listening(ends) as port, AsyncTogether(KEY, base_url=f"{scheme}://127.0.0.1:{port}/v1") as client:
        for _ in range(2):
            outcome = await ask(client, kind)
            assert type(outcome.error) is APIConnectionError
            assert outcome.error.attempts == 1
            assert outcome.error.request_id is None
            assert outcome.delivered == ()
            assert f"127.0.0.1:{port}" in str(outcome.error)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_refused_connection(kind: str) -> None:
    """Nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with AsyncTogether(KEY, base_url=f"http://127.0.0.1:{taken.getsockname()[1]}/v1") as client:
            outcome = await ask(client, kind)
    assert type(outcome.error) is APIConnectionError
    assert outcome.error.attempts == 1
    assert isinstance(outcome.error.__cause__, OSError)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_host_without_an_address(kind: str) -> None:
    """A name that no server knows."""
    async with AsyncTogether(KEY, base_url="http://nobody.invalid/v1") as client:
        outcome = await ask(client, kind)
    assert type(outcome.error) is APIConnectionError
    assert outcome.error.attempts == 1
    assert "nobody.invalid" in str(outcome.error)


async def plain_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
    await writer.drain()
    await reader.read()


@pytest.mark.parametrize("kind", KINDS)
async def test_tls_spoken_to_a_server_without_it(kind: str) -> None:
    """https:// where http:// is spoken."""
    async with listening(plain_http) as port, AsyncTogether(KEY, base_url=f"https://127.0.0.1:{port}/v1") as client:
        outcome = await ask(client, kind)
    assert type(outcome.error) is APIConnectionError
    assert "SSL" in str(outcome.error)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_certificate_that_nobody_signed(kind: str) -> None:
    """The handshake is refused by us; nothing of the request was sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with (
        EmulatorServer(TEXT, ssl=context) as server,
        AsyncTogether(KEY, base_url=server.base_url) as client,
    ):
        outcome = await ask(client, kind)
        assert server.journal.total == 0
    assert type(outcome.error) is APIConnectionError
    assert "certificate" in str(outcome.error)


# ------------------------------------------------------------------------------------------------------- in the head


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("at", [0, 1, 5, 9, 12, 15, 17, 30, 60, 90, 120])
async def test_cut_in_the_head(at: int, how: Any) -> None:
    """Wherever in the head: nothing came back, after one request."""
    async with EmulatorServer(TEXT) as server:
        for number, kind in enumerate(KINDS, 1):
            # A client each: on a pooled connection this may be a stale one, and is tried again (see _pool).
            server.faults = Cut(in_head=at, how=how)
            async with AsyncTogether(KEY, base_url=server.base_url) as client:
                with case(kind):
                    outcome = await ask(client, kind)
                    assert type(outcome.error) is APIConnectionError
                    assert outcome.error.attempts == 1
                    assert outcome.error.request_id is None
                    assert server.journal.total == 2 * number - 1
                    server.faults = None
                    assert (await ask(client, kind)).text == TEXT


# ---------------------------------------------------------------------------------------------------------- in a stream


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("tokens", range(len(TOKENS) + 1))
async def test_a_stream_cut_after_each_token(tokens: int, frame: str) -> None:
    """Right after the head (0), after each token, before the finish reason (the last): what came, and why no more."""
    async with scene() as s:
        for how in HOWS:
            s.server.faults = FRAMES[frame] + Cut(after_token=tokens, how=how)
            for kind in STREAMED:
                with case(how, kind):
                    outcome = await s.ask(kind)
                    entry = s.server.journal[-1]
                    assert type(outcome.error) is error_of_cut(how, frame)
                    assert outcome.partial == "".join(TOKENS[:tokens])
                    assert outcome.error.attempts == 1
                    assert outcome.error.request_id == f"em0-{entry.number:06x}"
                    assert entry.tokens_written == tokens
                    assert [choice.finish_reason for choice in outcome.choices] == [None] * bool(tokens)


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize(
    ("place", "complete"),
    [
        ("inside the second event", False),
        ("inside a character of two bytes", False),
        ("inside the event with the finish reason", False),
        ("before the blank line after the finish reason", False),
        ("between finish reason and [DONE]", True),
        ("inside [DONE]", True),
        ("before the blank line after [DONE]", True),
        ("after [DONE]", True),
    ],
)
async def test_a_stream_cut_at_a_byte(place: str, complete: bool, frame: str) -> None:
    """Whole once every choice has its finish reason, broken before; half an event is no event."""
    async with scene() as s:
        events = await events_of(s.server)
        assert len(events) == len(TOKENS) + 2
        until_finish, size = len(b"".join(events[:-1])), len(b"".join(events))
        at, delivered = {
            "inside the second event": (len(events[0]) + 20, 1),
            "inside a character of two bytes": (b"".join(events).index("é".encode()) + 1, 2),
            "inside the event with the finish reason": (until_finish - 30, 4),
            "before the blank line after the finish reason": (until_finish - 1, 4),
            "between finish reason and [DONE]": (until_finish, 4),
            "inside [DONE]": (until_finish + 9, 4),
            "before the blank line after [DONE]": (size - 1, 4),
            "after [DONE]": (size, 4),
        }[place]
        for how in HOWS:
            s.server.faults = FRAMES[frame] + Cut(at_byte=at, how=how)
            for kind in STREAMED:
                with case(how, kind):
                    outcome = await s.ask(kind)
                    if complete:
                        assert outcome.error is None
                        assert outcome.text == s.truth
                        assert outcome.completion is not None
                        assert outcome.completion.choices[0].finish_reason == "stop"
                        assert outcome.completion.usage is not None
                    else:
                        assert type(outcome.error) is error_of_cut(how, frame)
                        assert outcome.partial == "".join(TOKENS[:delivered])


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("name", DIALECTS)
async def test_every_dialect_cut_after_each_token(name: str, how: Any) -> None:
    """The rule is the same whatever the server's habits; a delta may hold several tokens, and reasoning is kept."""
    model = Model("m", DIALECTS[name])
    reply = Reply(TOKENS, reasoning=("Hm", " hm"))
    size = DIALECTS[name].tokens_per_chunk
    async with (
        EmulatorServer(reply, models=[model]) as server,
        AsyncTogether(KEY, base_url=server.base_url) as client,
    ):
        for tokens in range(6):
            if size > 1 and tokens not in (0, 2, 5):
                continue
            server.faults = Cut(after_token=tokens, how=how)
            with case(tokens):
                outcome = await ask(client, "text", model="m")
                assert type(outcome.error) is error_of_cut(how, "chunked")
                assert outcome.partial == "".join(TOKENS[: max(0, tokens - 2)])
                choices = outcome.choices
                if tokens:
                    message = choices[0].message
                    assert (message.reasoning or message.reasoning_content) == "Hm hm"[: 2 if tokens == 1 else 5]
        server.faults = None
        assert (await ask(client, "text", model="m")).text == TEXT


@pytest.mark.parametrize("how", HOWS)
async def test_two_choices_of_which_one_is_whole(how: Any) -> None:
    """Complete means every choice: with one finish reason of two the stream is broken."""
    async with scene([Reply(("a",)), Reply(("b", "c", "d"))], usable=False) as s:
        events = await events_of(s.server, n=2)
        position = next(i for i, event in enumerate(events) if b'"finish_reason":"stop"' in event)
        s.server.faults = Cut(at_byte=len(b"".join(events[: position + 1])), how=how)
        outcome = await ask(s.client, "chunks", n=2)
        assert type(outcome.error) is error_of_cut(how, "chunked")
        choices = outcome.choices
        assert choices[0].finish_reason == "stop"
        assert choices[1].finish_reason is None
        assert "bcd".startswith(choices[1].message.content or "")


# ------------------------------------------------------------------------------------------------- in a whole response


@pytest.mark.parametrize("frame", FRAMES)
async def test_a_whole_response_cut_at_several_bytes(frame: str) -> None:
    """A part of a whole response is nothing: lost, or, where HTTP saw a good end, no completion."""
    async with scene() as s:
        for how in HOWS:
            for at in (0, 1, 2, 60, 200, 300):
                s.server.faults = FRAMES[frame] + Cut(at_byte=at, how=how)
                with case(how, at):
                    outcome = await s.ask("create")
                    ended = error_of_cut(how, frame) is IncompleteStreamError
                    assert type(outcome.error) is (APIResponseValidationError if ended else APIConnectionError)
                    assert outcome.error.attempts == 1
                    assert outcome.error.request_id == f"em0-{s.server.journal[-1].number:06x}"
                    if isinstance(outcome.error, APIResponseValidationError):
                        assert outcome.error.path == "$"


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("frame", FRAMES)
async def test_a_whole_response_cut_after_its_last_byte(frame: str, how: Any) -> None:
    """All the JSON is there. Where HTTP's own end is missing it could be the start of more; else it is the answer."""
    async with scene() as s:
        s.server.faults = FRAMES[frame] + Cut(after_token=len(TOKENS), how=how)
        outcome = await s.ask("create")
        if frame == "length" or "close" in frame:
            assert outcome.text == s.truth
        else:
            assert type(outcome.error) is APIConnectionError


# -------------------------------------------------------------------------------------------------------------- on TLS


@pytest.mark.parametrize(("frame", "how"), [("chunked", "reset"), ("length", "close"), ("close", "end")])
async def test_a_stream_over_tls_cut_after_each_token(frame: str, how: Any) -> None:
    """The same over TLS, where a cut may come without TLS's own farewell."""
    authority = trustme.CA()
    context, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(trusting)
    async with (
        EmulatorServer(TEXT, ssl=context) as server,
        AsyncTogether(KEY, base_url=server.base_url, ssl=trusting) as client,
    ):
        for tokens in range(len(TOKENS) + 1):
            server.faults = FRAMES[frame] + Cut(after_token=tokens, how=how)
            with case(tokens):
                outcome = await ask(client, "text", timeouts=Timeouts(idle=0.5))
                assert type(outcome.error) is error_of_cut(how, frame)
                assert TEXT.startswith(outcome.partial or "")
                if how != "reset":
                    assert outcome.partial == "".join(TOKENS[:tokens])
        server.faults = None
        assert (await ask(client, "text")).text == TEXT
        assert (await ask(client, "create")).text == TEXT


async def test_a_server_that_closes_after_every_stream() -> None:
    """Promised keep-alive, closed all the same: no call is lost to it."""
    async with scene(faults=CloseAfter()) as s:
        for _ in range(10):
            for kind in KINDS:
                assert (await s.ask(kind)).text == s.truth
