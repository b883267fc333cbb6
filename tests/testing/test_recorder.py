"""Recording through the proxy: every byte, every header, other paths, upstreams that are not there."""

# ruff: noqa: ASYNC240 - the files are a few kilobytes

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from support.recordings import (
    HEAD,
    RAINBOW,
    TEXT,
    TIMEOUT_S,
    asking,
    body_of,
    chunked_body,
    only,
    post,
    recorded_once,
    recording,
    replayed,
)
from support.servers import KEY
from together_async import AsyncTogether, RateLimitError
from together_async.testing import (
    Cut,
    EmulatorServer,
    Fault,
    Frame,
    Gzip,
    Headers,
    Raw,
    Recorder,
    Recording,
    Redirect,
    Split,
    Stall,
    Status,
)
from together_async.testing.exchange import RecordedExchange

pytestmark = pytest.mark.usefixtures("no_leaks")


class TestBytes:
    BODIES = (
        f"data: {RAINBOW}\n\ndata: [DONE]\n\n".encode(),
        b"\xff\xfe\x00 not UTF-8 \xf0\x9f",
        b'{"a": "\\ud83d\\ude00 \\u0000"}\r\n\r\r\n',
        bytes(range(256)) * 40,
        b"",
    )

    @pytest.mark.parametrize("body", BODIES)
    async def test_no_byte_is_changed(self, path: Path, body: bytes) -> None:
        """Through the proxy, in the file, and out of it: whatever the bytes are."""
        got = await recorded_once(path, faults=Raw(HEAD + chunked_body(*([body] if body else []))))
        assert (got.body, got.broken) == (body, False)
        assert body_of(only(path)) == body
        assert (await replayed(path)).body == body

    @pytest.mark.parametrize("split", [Split(every=1), Split(inside="utf-8"), Split(every=7)], ids=repr)
    async def test_pieces_end_anywhere(self, path: Path, split: Fault) -> None:
        """Also inside a character, where a piece is not text."""
        got = await recorded_once(path, RAINBOW, faults=split)
        exchange = only(path)
        assert body_of(exchange) == got.body
        assert exchange == RecordedExchange.from_line(exchange.to_line(), "")
        assert (await replayed(path, 100.0)).body == got.body

    async def test_an_answer_in_one_piece(self, path: Path) -> None:
        got = await recorded_once(path, TEXT, ask=asking(stream=False))
        assert json.loads(got.body)["choices"][0]["message"]["content"] == TEXT
        assert got.headers["content-length"] == str(len(got.body))
        assert (await replayed(path)).body == got.body

    @pytest.mark.parametrize("framing", ["length", "close", "chunked"])
    async def test_every_framing(self, path: Path, framing: Any) -> None:
        got = await recorded_once(path, TEXT, faults=Frame(framing))
        assert not got.broken
        assert body_of(only(path)) == got.body
        assert only(path).complete

    async def test_compressed_although_nobody_asked(self, path: Path) -> None:
        """It is passed on and recorded decompressed, or prompts would hide in it; plain bytes are requested."""
        async with recording(path, TEXT, faults=Gzip()) as (server, recorder):
            got = await post(recorder.base_url, asking())
        assert got.body.endswith(b"data: [DONE]\n\n")
        assert "content-encoding" not in got.headers
        assert body_of(only(path)) == got.body
        assert server.journal[0].headers["accept-encoding"] == "identity"

    async def test_a_raw_client(self, path: Path) -> None:
        """Bytes on a socket: a request with a minimum of headers gets no more on its way."""
        async with recording(path, TEXT) as (server, recorder):
            host, port = recorder.base_url.removeprefix("http://").removesuffix("/v1").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            body = json.dumps(asking()).encode()
            writer.write(
                b"POST /v1/chat/completions?a=%%2F&b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n"
                b"x-mine: 1\r\nx-hop: 1\r\nconnection: close, x-hop\r\n\r\n%b" % (len(body), body)
            )
            answer = await asyncio.wait_for(reader.read(), TIMEOUT_S)
            writer.close()
            await writer.wait_closed()
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        (entry,) = server.journal
        assert entry.path == "/v1/chat/completions?a=%2F&b"
        assert entry.headers.keys() == {"host", "content-length", "x-mine", "accept-encoding"}
        assert entry.body == asking()

    async def test_our_client(self, path: Path) -> None:
        async with (
            recording(path, TEXT) as (server, recorder),
            AsyncTogether(KEY, base_url=recorder.base_url) as client,
        ):
            completion = await client.stream("Why?", model="m").completion()
            whole = await client.create("Why?", model="m")
        assert completion.choices[0].message.content == whole.choices[0].message.content == TEXT
        assert recorder.recorded == 2
        assert {entry.headers["authorization"] for entry in server.journal} == {f"Bearer {KEY}"}
        async with (
            EmulatorServer(Recording.load(path)) as server,
            AsyncTogether(KEY, base_url=server.base_url) as client,
        ):
            assert await client.stream("Other", model="m").completion() == completion


class TestProxy:
    async def test_an_error_with_its_headers(self, path: Path) -> None:
        """The status, the limits' headers and the body are the same for the first client and for the replay's."""
        faults = Status(429, headers={"retry-after": "7", "x-ratelimit-limit": "2"})
        got = await recorded_once(path, faults=faults)
        again = await replayed(path)
        for answer in (got, again):
            assert answer.status == 429
            assert (answer.headers["retry-after"], answer.headers["x-ratelimit-limit"]) == ("7", "2")
            assert json.loads(answer.body)["error"]["type"] == "dynamic_request_limited"
        assert again.body == got.body
        async with (
            EmulatorServer(Recording.load(path)) as server,
            AsyncTogether(KEY, base_url=server.base_url) as client,
        ):
            with pytest.raises(RateLimitError):
                await client.create("Why?", model="m")

    async def test_redirects_are_the_clients_business(self, path: Path) -> None:
        async with recording(path, faults=Redirect()) as (server, recorder):
            got = await post(recorder.base_url, asking())
        assert (got.status, got.headers["location"]) == (307, "/redirected/v1/chat/completions")
        assert len(server.journal) == 1

    async def test_no_cookies_are_kept(self, path: Path) -> None:
        """The client gets them, the file does not, and the next request through the same proxy has none."""
        async with recording(path, TEXT, faults=Headers({"set-cookie": "visitor=4711"})) as (server, recorder):
            got = await post(recorder.base_url, asking())
            await post(recorder.base_url, asking())
        assert got.headers["set-cookie"] == "visitor=4711"
        assert "cookie" not in server.journal[1].headers
        assert b"4711" not in path.read_bytes()

    async def test_credentials_of_the_machine_stay_there(
        self, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A .netrc is not read, neither in place of the client's key nor without one."""
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password hunter2\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        async with recording(path, TEXT) as (server, recorder), aiohttp.ClientSession() as session:
            await post(recorder.base_url, asking())
            async with session.post(f"{recorder.base_url}/chat/completions", json=asking()) as response:
                await response.read()
        assert [entry.headers.get("authorization") for entry in server.journal] == [f"Bearer {KEY}", None]

    async def test_the_environments_proxy_is_used(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async with EmulatorServer(TEXT) as proxy:
            monkeypatch.setenv("http_proxy", proxy.origin)
            async with Recorder(path, upstream="http://api.invalid/v1") as recorder:
                monkeypatch.delenv("http_proxy")
                got = await post(recorder.base_url, asking(), **{"proxy-authorization": "Basic eDp5"})
        assert got.status == 200
        assert proxy.journal[0].path == "http://api.invalid/v1/chat/completions"
        assert "proxy-authorization" not in proxy.journal[0].headers

    async def test_other_paths_are_passed_on_and_not_recorded(self, path: Path) -> None:
        async with recording(path) as (server, recorder), aiohttp.ClientSession() as session:
            models = await (await session.get(f"{recorder.base_url}/models")).json()
            assert (await session.get(f"{recorder.base_url}/chat/completions")).status == 405
        assert [model["id"] for model in models] == [model.id for model in server.models]
        assert (recorder.recorded, path.read_bytes()) == (0, b"")

    async def test_no_upstream(self, path: Path) -> None:
        async with EmulatorServer() as gone:
            pass
        async with Recorder(path, upstream=gone.base_url) as recorder:
            got = await post(recorder.base_url, asking())
        assert got.status == 502
        assert json.loads(got.body)["error"]["message"] == (
            "recorder: no connection to the upstream: ClientConnectorError"
        )
        assert path.read_bytes() == b""

    async def test_an_upstream_that_leaves_before_its_head(self, path: Path) -> None:
        """The proxy does the same, so that the client sees the same error; there is nothing to record."""
        async with recording(path, faults=Cut()) as (_, recorder):
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await post(recorder.base_url, asking())
        assert path.read_bytes() == b""

    async def test_twenty_at_once(self, path: Path) -> None:
        """None waits for another, none gets another's bytes, each is a line."""
        async with recording(
            path,
            lambda request: f"{request.messages[0]['content']} " * 20,
            faults=Stall(after_token=5),
            keep_prompts=True,
        ) as (server, recorder):  # fmt: skip - shorter than one argument a line
            tasks = [asyncio.create_task(post(recorder.base_url, asking(f"word{number}"))) for number in range(20)]
            await server.journal.wait(20)
            while min(entry.tokens_written for entry in server.journal) < 5:  # noqa: ASYNC110 - of another task
                await asyncio.sleep(0.001)
            server.release()
            await asyncio.gather(*tasks)
        by_prompt = {
            exchange.request["messages"][0]["content"]: exchange for exchange in Recording.load(path).exchanges
        }
        assert len(by_prompt) == 20
        for number, task in enumerate(tasks):
            assert body_of(by_prompt[f"word{number}"]) == task.result().body
            assert task.result().body.count(b"[DONE]") == 1

    @pytest.mark.parametrize("upstream", ["localhost:80/v1", "ftp://x/v1", "http:///v1", "http://x/v1?key=1", ""])
    def test_an_upstream_that_is_not_a_url(self, path: Path, upstream: str) -> None:
        with pytest.raises(ValueError, match=r"upstream: got .*, expected http://"):
            Recorder(path, upstream=upstream)

    async def test_repr_and_address(self, path: Path) -> None:
        """Where and how many; no credentials of the address."""
        recorder = Recorder(path, upstream="http://me:hunter2@127.0.0.1:9/v1")
        assert repr(recorder) == f"<Recorder of http://127.0.0.1:9/v1 to {path}, 0 exchanges>"
        with pytest.raises(RuntimeError, match="does not run"):
            _ = recorder.base_url
        async with recorder:
            assert recorder.base_url.startswith("http://127.0.0.1:")
            with pytest.raises(RuntimeError, match="runs already"):
                await recorder.__aenter__()
            with pytest.raises(OSError, match="in use"):
                await Recorder(
                    path, upstream="http://x/v1", port=int(recorder.base_url.split(":")[2][:-3])
                ).__aenter__()
