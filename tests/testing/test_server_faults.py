"""Faults on the wire."""

from __future__ import annotations

import asyncio

import pytest

from support.raw_client import TEXT, Answer, Client, ask, plain, post, raw, same
from together_async.testing import (
    CloseAfter,
    Cut,
    EmulatorServer,
    ErrorInStream,
    Frame,
    Garbage,
    Headers,
    Insert,
    InTurn,
    Raw,
    Redirect,
    Stall,
    Status,
    WithoutDone,
    WithoutFinishReason,
)

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.mark.parametrize("tokens", range(5))
@pytest.mark.parametrize(("how", "end"), [("reset", "reset"), ("close", "eof"), ("chunk", "eof")])
async def test_a_cut_after_a_token_of_a_stream(how, end, tokens):
    """The events before it, correctly framed; then RST, FIN, or FIN inside an announced chunk."""
    _, events = await plain(stream=True)
    async with EmulatorServer(TEXT, faults=Cut(after_token=tokens, how=how)) as server:
        got, ended = await raw(server, post(stream=True))
        entry = await server.journal.wait()
    head, _, body = got.partition(b"\r\n\r\n")
    sent = b"".join(events[:tokens])
    framed = b"%x\r\n%b\r\n" % (len(sent), sent) if sent else b""
    assert b"transfer-encoding: chunked" in head
    assert same(body) == same(framed + (b"7f\r\n" if how == "chunk" else b""))
    assert ended == end
    assert (entry.outcome, entry.tokens_written, entry.tokens) == ("broken off", tokens, 4)
    assert not entry.client_left


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
@pytest.mark.parametrize("where", ["first", "middle", "last"])
@pytest.mark.parametrize("how", ["reset", "close"])
async def test_a_cut_at_a_byte_in_each_framing(framing, where, how):
    """Exactly so many bytes of the body come, in each framing."""
    body, _ = await plain(stream=True)
    at = {"first": 0, "middle": len(body) // 2, "last": len(body)}[where]
    async with EmulatorServer(TEXT, faults=Frame(framing) + Cut(at_byte=at, how=how)) as server:
        got, ended = await raw(server, post(stream=True))
    head, _, data = got.partition(b"\r\n\r\n")
    if framing == "length":
        assert f"content-length: {len(body)}".encode() in head
    sent = b"%x\r\n%b\r\n" % (at, body[:at]) if framing == "chunked" and at else body[:at]
    assert same(data) == same(sent)
    assert ended == ("reset" if how == "reset" else "eof")


@pytest.mark.parametrize("at", [0, 1, 9, 40, 10_000])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_cut_in_the_head(at, stream):
    """That many bytes of the head, at most all, and nothing of the body."""
    async with EmulatorServer(TEXT) as server:
        full, _, _ = (await raw(server, post(stream=stream, headers="") + b"junk\r\n\r\n"))[0].partition(b"\r\n\r\n")
        server.journal.clear()
        server.faults = Cut(in_head=at)
        got, ended = await raw(server, post(stream=stream))
    assert got == (full + b"\r\n\r\n")[:at]
    assert ended == "reset"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_cut_before_the_first_byte(stream):
    """Nothing but the reset."""
    async with EmulatorServer(TEXT, faults=Cut()) as server:
        assert await raw(server, post(stream=stream)) == (b"", "reset")
        assert server.journal[0].bytes_written == 0


@pytest.mark.parametrize("at", [0, 1, 100])
@pytest.mark.parametrize(("how", "end"), [("reset", "reset"), ("close", "eof"), ("chunk", "eof")])
async def test_a_cut_of_a_whole_response(how, end, at):
    """The length announces the whole body, so it is too short, however it ends."""
    body, _ = await plain(stream=False)
    async with EmulatorServer(TEXT, faults=Cut(at_byte=at, how=how)) as server:
        got, ended = await raw(server, post())
    head, _, data = got.partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head
    assert (same(data), ended) == (same(body[:at]), end)


async def test_an_end_in_good_order_keeps_the_connection():
    """`Cut(how="end")` is a response that is whole for HTTP, and too short for its content."""
    _, events = await plain(stream=True)
    async with EmulatorServer(TEXT, faults=Cut(after_token=2, how="end")) as server, await Client.to(server) as client:
        for _ in range(2):
            answer = await client.ask(post(stream=True))
            assert same(answer.body) == same(b"".join(events[:2])).replace(b"em0-000000", answer_id(answer))
        assert [entry.outcome for entry in server.journal] == ["complete", "complete"]


def answer_id(answer: Answer) -> bytes:
    return answer.headers["x-request-id"].encode()


async def test_a_cut_beyond_the_end_is_no_fault():
    """The response is whole, and the journal lists no fault."""
    async with EmulatorServer(TEXT, faults=Cut(after_token=5) + Stall(at_byte=10**6)) as server:
        assert (await ask(server, post(stream=True))).text == TEXT
        assert server.journal[0].faults == ()


SHAPES = ["object", "text", "flat", "detail", "named", "named_text", "beside"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("done", [False, True])
async def test_an_error_in_a_stream(shape, done):
    """It comes after the tokens, as one event; the HTTP body ends in good order."""
    _, events = await plain(stream=True)
    fault = ErrorInStream(after_token=2, shape=shape, message="broke off", code=503, done=done)
    async with EmulatorServer(TEXT, faults=fault) as server:
        answer = await ask(server, post(stream=True))
    sent = same(b"".join(events[:2]))
    assert same(answer.body).startswith(sent)
    remaining = same(answer.body)[len(sent) :]
    assert remaining.count(b"\n\n") == 1 + done
    assert remaining.endswith(b"data: [DONE]\n\n") is done
    assert b"broke off" in remaining
    assert remaining.startswith(b"event: error\ndata: ") is shape.startswith("named")


async def test_garbage_inserts_and_missing_ends():
    """Each in its place, all in one sum."""
    _, events = await plain(stream=True)
    fault = (
        WithoutDone() + WithoutFinishReason() + Garbage(after_token=1, data=b"?") + Insert(at_byte=0, data=b":x\n\n")
    )
    async with EmulatorServer(TEXT, faults=fault) as server:
        body = (await ask(server, post(stream=True))).body
        assert server.journal[0].faults == (
            WithoutDone(),
            WithoutFinishReason(),
            Garbage(after_token=1, data=b"?"),
            Insert(at_byte=0, data=b":x\n\n"),
        )
    got = same(body).split(b"\n\n")
    assert (got[0], got[2]) == (b":x", b"data: ?")
    assert b"[DONE]" not in body
    assert b'"stop"' not in body
    assert len(got) == len(events) - 1 + 2 + 1


async def test_statuses_headers_redirects_and_raw_bytes():
    """As they are written."""
    rules = InTurn(
        Status(429, headers={"retry-after": "2"}),
        Status(503, "<html>busy</html>"),
        Status(500, b""),
        Headers({"x-new": "1", "cf-ray": None, "content-type": "text/html"}),
        Redirect("http://127.0.0.1:9/", code=308),
    )
    async with EmulatorServer(TEXT, faults=rules) as server, await Client.to(server) as client:
        first = await client.ask(post(stream=True))
        assert (first.status, first.headers["retry-after"]) == (429, "2")
        assert first.json["error"]["type"] == "dynamic_request_limited"
        second = await client.ask(post(stream=True))
        assert (second.line, second.headers["content-type"]) == ("HTTP/1.1 503 Service Unavailable", "text/html")
        assert second.body == b"<html>busy</html>"
        assert (await client.ask(post())).headers["content-length"] == "0"
        fourth = await client.ask(post(stream=True))
        assert (fourth.headers["x-new"], "cf-ray" in fourth.headers) == ("1", False)
        assert fourth.headers["content-type"] == "text/html"
        fifth = await client.ask(post())
        assert (fifth.status, fifth.headers["location"], fifth.body) == (308, "http://127.0.0.1:9/", b"")
        outcomes = [entry.outcome for entry in server.journal]
        assert outcomes == ["refused", "refused", "refused", "complete", "refused"]
        server.faults = Raw(b"not HTTP at all")
        client.writer.write(post())
        assert await client.read_to_end() == (b"not HTTP at all", "eof")


async def test_where_a_redirect_leads_there_is_an_answer():
    """Without the fault."""
    async with EmulatorServer(TEXT, faults=Redirect()) as server, await Client.to(server) as client:
        location = (await client.ask(post())).headers["location"]
        answer = await client.ask(post(location))
        assert answer.json["choices"][0]["message"]["content"] == TEXT


async def test_the_follow_up_of_a_redirect_takes_no_turn():
    """The second fault is for the second request that anyone made."""
    async with (
        EmulatorServer(TEXT, faults=InTurn(Redirect(), Status(429))) as server,
        await Client.to(server) as client,
    ):
        location = (await client.ask(post())).headers["location"]
        assert (await client.ask(post(location))).status == 200
        assert (await client.ask(post())).status == 429


async def test_close_after_a_response_without_a_word():
    """The response is whole and promises nothing; then comes the FIN."""
    async with EmulatorServer(TEXT, faults=CloseAfter()) as server, await Client.to(server) as client:
        answer = await client.ask(post())
        assert "connection" not in answer.headers
        assert await client.read_to_end() == (b"", "eof")
        assert server.journal[0].outcome == "complete"
        server.faults = CloseAfter(announce=True)
        assert (await ask(server, post(stream=True))).headers["connection"] == "close"


async def test_close_after_closes_also_when_another_request_comes():
    """The connection goes after its time, whatever is asked on it."""
    async with (
        EmulatorServer(TEXT, faults=InTurn(CloseAfter(0.1), Stall(after_token=1))) as server,
        await Client.to(server) as client,
    ):
        await client.ask(post())
        client.writer.write(post(stream=True))
        try:
            await client.read_to_end()
        finally:  # the task that is left would be reported of the next test
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                if "_carry_out" in repr(task):
                    task.cancel()
