"""A connection: pipelined requests, large ones, and plans that can't be carried out."""

from __future__ import annotations

import asyncio
import http.client
import json
import math

import pytest

from support.raw_client import BODY, CHAT, TEXT, Answer, Client, ask, get, narrow, post, raw, same
from support.virtual_time import virtual
from together_async.testing import (
    Cut,
    EmulatorServer,
    Entry,
    Frame,
    Insert,
    Raw,
    Reply,
    Split,
    Stall,
    connection,
)

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.mark.parametrize(
    "request_", [post(stream=True), post(), post(n=0), get("/v1/none")], ids=["s", "w", "400", "404"]
)
async def test_quick_and_full(monkeypatch, request_):
    """A response that is written in one piece is the one that a task writes, and its entry the same."""

    async def answered() -> tuple[Answer, Entry]:
        async with EmulatorServer(TEXT) as server, await Client.to(server) as client:
            answer = await client.ask(request_)
            return answer, server.journal[0]

    quick, quick_entry = await answered()
    with monkeypatch.context() as patch:
        patch.setattr(connection, "_is_simple", lambda _: False)
        full, full_entry = await answered()
    assert (quick.line, quick.headers, same(quick.body)) == (full.line, full.headers, same(full.body))
    facts = [
        (entry.status, entry.outcome, entry.tokens, entry.tokens_written, entry.bytes_written)
        for entry in (quick_entry, full_entry)
    ]
    assert facts[0] == facts[1]


async def test_pipelined_requests_are_answered_in_order():
    """Streams, whole responses and refusals in one write, each after the one before has ended."""
    requests = [post(stream=True), get("/v1/models"), post(n=0), post(), post(stream=True)]
    async with EmulatorServer(TEXT, faults=Split(every=50)) as server, await Client.to(server) as client:
        client.writer.write(b"".join(requests))
        assert (await client.answer()).text == TEXT
        assert isinstance((await client.answer()).json, list)
        assert (await client.answer()).status == 400
        assert (await client.answer()).json["choices"][0]["message"]["content"] == TEXT
        assert (await client.answer()).text == TEXT
        assert [entry.number for entry in server.journal] == [0, 1, 2, 3, 4]
        assert server.connections == 1


async def test_a_large_request_and_a_large_response():
    """One MiB each way."""
    content = "word " * 200_000
    async with EmulatorServer(lambda request: request.messages[0]["content"]) as server:
        answer = await ask(server, post(messages=[{"role": "user", "content": content}], max_tokens=None))
        assert answer.status == 403  # above the context
        server.script = Reply([content])
        assert (await ask(server, post())).json["choices"][0]["message"]["content"] == content


async def test_a_standard_library_client_understands_it():
    """http.client, in another thread: a whole response, a stream, on one connection."""

    def talk(port: int) -> list[bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        got = []
        for stream in (False, True):
            connection.request("POST", CHAT, json.dumps({**BODY, "stream": stream}))
            got.append(connection.getresponse().read())
        connection.close()
        return got

    async with EmulatorServer(TEXT) as server:
        whole, stream = await asyncio.to_thread(talk, server.port)
        assert json.loads(whole)["choices"][0]["message"]["content"] == TEXT
        assert stream.endswith(b"data: [DONE]\n\n")
        assert server.connections == 1


async def test_pipelined_requests_pause_when_nobody_reads():
    """Requests that come in are not answered while the answers before are not taken; later they are."""
    async with EmulatorServer("x" * 9_000) as server, await Client.to(server, sock=narrow()) as client:
        client.writer.write(post() * 2_000)
        await server.journal.wait()
        answered = -1
        while answered != server.journal.total:
            answered = server.journal.total
            await asyncio.sleep(0.05)
        assert answered < 1_000
        while server.journal.total < 2_000:
            assert await client.reader.read(1 << 20)


async def test_a_plan_that_cannot_be_carried_out_is_a_500_and_raised_at_the_end():
    """A body without an end has no content-length: the client gets a 500, and the author the error."""

    async def talk() -> None:
        faults = Insert(after_token=0, data=b"x", times=math.inf) + Frame("length")
        async with EmulatorServer(TEXT, faults=faults) as server:
            assert (await ask(server, post())).status == 500
            assert server.journal[0].outcome == "refused"

    with pytest.raises(ValueError, match="without an end"):
        await talk()


async def test_a_pipelined_request_after_a_cut_was_never_seen():
    """The cut ended the connection with all that waited on it."""
    async with EmulatorServer(TEXT, faults=Cut(after_token=1, how="close")) as server:
        await raw(server, post(stream=True) + post(stream=True))
        assert len(server.journal) == 1


@virtual
async def test_a_stall_before_raw_bytes():
    """A listed fault happens."""
    async with EmulatorServer(TEXT, faults=Stall() + Raw(b"x")) as server, await Client.to(server) as client:
        client.writer.write(post())
        assert await client.silence() == b""
