"""Recording through the proxy, the file, and its replay: bytes, timing, breaks, and what must not be in the file."""

# ruff: noqa: ASYNC240 - the files are a few kilobytes

import asyncio
import itertools
import json
import math
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.servers import KEY, SOON
from together_async import AsyncTogether, RateLimitError, StreamError
from together_async.request import ChatCompletionRequest
from together_async.testing import (
    Cut,
    EmulatorServer,
    Fault,
    Frame,
    Gzip,
    Headers,
    HugeLine,
    InTurn,
    Raw,
    Recorder,
    Recording,
    Redirect,
    Reply,
    Split,
    Stall,
    Status,
    WithoutDone,
    WrongLength,
)
from together_async.testing.recording import RecordedExchange, replay, without_private
from together_async.testing.response import ResponsePlan

pytestmark = pytest.mark.usefixtures("no_leaks")
PATIENCE_S = 10.0
TEXT = "The sky is blue."
RAINBOW = "Grüße 🌈 größer"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "day.jsonl"


@attrs.frozen
class Got:
    """What a client without any knowledge of the protocol saw; `broken` when the body did not end in good order."""

    status: int
    headers: dict[str, str]
    body: bytes
    times: list[float]
    broken: bool


def asking(prompt: str = "Why?", **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": prompt}], "stream": True, **fields}


async def post(base_url: str, body: dict[str, Any], **headers: str) -> Got:
    pieces: list[bytes] = []
    times: list[float] = []
    broken = False
    headers = {"authorization": f"Bearer {KEY}", **headers}
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(PATIENCE_S)) as session,
        session.post(f"{base_url}/chat/completions", json=body, headers=headers, allow_redirects=False) as response,
    ):
        try:
            async for data in response.content.iter_any():
                pieces.append(data)
                times.append(time.monotonic())
        except aiohttp.ClientError:
            broken = True
        return Got(
            response.status, {k.lower(): v for k, v in response.headers.items()}, b"".join(pieces), times, broken
        )


@asynccontextmanager
async def recording(path: Path, *args: Any, keep_prompts: bool = False, **kwargs: Any) -> AsyncIterator[Any]:
    """An emulator and a recorder before it."""
    async with (
        EmulatorServer(*args, **kwargs) as server,
        Recorder(path, upstream=server.base_url, keep_prompts=keep_prompts) as recorder,
    ):
        yield server, recorder


async def recorded_once(path: Path, *args: Any, ask: dict[str, Any] | None = None, **kwargs: Any) -> Got:
    async with recording(path, *args, **kwargs) as (_, recorder):
        return await post(recorder.base_url, ask or asking())


def only(path: Path) -> RecordedExchange:
    (exchange,) = Recording.load(path).exchanges
    return exchange


def body_of(exchange: RecordedExchange) -> bytes:
    return b"".join(data for _, data in exchange.pieces)


async def replayed(source: Path | Recording, speed: float = math.inf, **kwargs: Any) -> Got:
    told = source if isinstance(source, Recording) else Recording.load(source)
    async with EmulatorServer(told, replay_speed=speed, **kwargs) as server:
        return await post(server.base_url, asking())


def gaps(times: Iterable[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise(times)]


class TestTiming:
    @pytest.fixture
    async def slow(self, path: Path) -> tuple[Path, Got]:
        """A stream of 10 tokens, 20 ms apart, 50 ms to the first."""
        words = [f" {number}" for number in range(10)]
        return path, await recorded_once(path, Reply(words), tokens_per_second=50, first_token_s=0.05)

    async def test_a_recording_has_the_gaps_of_the_stream(self, slow: tuple[Path, Got]) -> None:
        """Each gap is the 20 ms the server waited, or more where the machine was late; none is lost or merged."""
        path, got = slow
        exchange = only(path)
        times = [at for at, _ in exchange.pieces]
        assert exchange.complete
        assert body_of(exchange) == got.body
        assert times[0] >= 0.05
        assert 0.17 <= times[9] - times[0] <= 1
        assert len(times) >= 10
        assert times == sorted(times)

    async def test_it_is_replayed_as_it_was(self, slow: tuple[Path, Got]) -> None:
        """Same bytes, and no gap in sum shorter than recorded."""
        path, got = slow
        times = [at for at, _ in only(path).pieces]
        started = time.monotonic()
        again = await replayed(path, 1.0)
        assert again.body == got.body
        assert again.times[0] - started >= times[0] - 0.001
        assert times[-1] - times[0] - 0.005 <= again.times[-1] - again.times[0] <= times[-1] - times[0] + 0.5
        assert max(gaps(again.times)) < 0.5

    @pytest.mark.parametrize(("speed", "least"), [(10.0, 0.1), (math.inf, 0.0)])
    async def test_it_is_replayed_faster(self, slow: tuple[Path, Got], speed: float, least: float) -> None:
        path, got = slow
        times = [at for at, _ in only(path).pieces]
        started = time.monotonic()
        again = await replayed(path, speed)
        assert again.body == got.body
        assert times[-1] * least - 0.005 <= time.monotonic() - started < times[-1] * 0.9

    async def test_the_wait_for_the_head_and_for_the_end_are_kept(self, path: Path) -> None:
        """A server which is late with the head, and one which is late with the end, are so again."""
        faults = Stall(seconds=0.1) + Stall(seconds=0.1, at_byte=0) + Cut(at_byte=1, how="close")
        await recorded_once(path, TEXT, faults=faults)
        exchange = attrs.evolve(only(path), ended_s=0.3)
        assert exchange.began_s >= 0.1
        assert exchange.began_s + 0.1 <= exchange.pieces[0][0] + 0.001
        response = ResponsePlan()
        replay(exchange, response, speed=2.0)
        (at, head), *others = response.head_pieces
        assert (at, head.wait_s, others) == (0, exchange.began_s / 2, [])
        assert sum(piece.wait_s for piece in response.body) == pytest.approx((0.3 - exchange.began_s) / 2)

    def test_a_complete_answer_ends_as_late_as_it_did(self) -> None:
        """Half a second after its last piece, at the speed asked for, and in good order."""
        exchange = RecordedExchange(200, {}, ((0.25, b"x"),), ended_s=0.75)
        response = ResponsePlan()
        replay(exchange, response, speed=2.0)
        assert [(piece.data, piece.wait_s, piece.end) for piece in response.body] == [
            (b"x", 0.125, None),
            (b"", 0.25, None),
        ]

    async def test_each_piece_is_passed_on_at_once(self, path: Path) -> None:
        """The head, then the first token, are here while the server holds back what follows."""
        faults = Stall(after_token=0) + Stall(after_token=1)
        async with (
            recording(path, TEXT, faults=faults) as (server, recorder),
            aiohttp.ClientSession() as session,
            session.post(f"{recorder.base_url}/chat/completions", json=asking()) as response,
        ):
            assert response.status == 200
            server.release()
            first = await asyncio.wait_for(response.content.readany(), PATIENCE_S)
            assert json.loads(first.removeprefix(b"data: "))["choices"][0]["delta"]["content"] == "The"
            assert server.journal[0].tokens_written == 1
            server.release()
            rest = await asyncio.wait_for(response.content.read(), PATIENCE_S)
        assert rest.endswith(b"data: [DONE]\n\n")


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces, b""))


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


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
        got = await recorded_once(path, faults=Raw(HEAD + chunked(*([body] if body else []))))
        assert (got.body, got.broken) == (body, False)
        assert body_of(only(path)) == body
        assert (await replayed(path)).body == body

    @pytest.mark.parametrize("split", [Split(every=1), Split(inside="utf-8"), Split(every=7)], ids=repr)
    async def test_pieces_end_anywhere(self, path: Path, split: Fault) -> None:
        """Also inside a character, where a piece is no text."""
        got = await recorded_once(path, RAINBOW, faults=split)
        exchange = only(path)
        assert body_of(exchange) == got.body
        assert exchange == RecordedExchange.from_line(exchange.to_line(), "")
        assert (await replayed(path, 100.0)).body == got.body

    @given(st.lists(st.tuples(st.floats(0, 1e6), st.binary(max_size=30))), st.booleans(), st.none() | st.floats(0, 1e6))
    def test_a_line_is_read_as_it_was_written(
        self, pieces: list[tuple[float, bytes]], complete: bool, ended: float | None
    ) -> None:
        rounded = tuple((round(at, 6), data) for at, data in pieces)
        exchange = RecordedExchange(
            200, {"x": "y"}, rounded, {"n": 2}, complete, 0.25, None if ended is None else round(ended, 6)
        )
        line = exchange.to_line()
        assert line.count(b"\n") == 1
        assert RecordedExchange.from_line(line, "") == exchange

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
        """Passed on and recorded as what it says, or prompts would hide in it; the server is asked for plain bytes."""
        async with recording(path, TEXT, faults=Gzip()) as (server, recorder):
            got = await post(recorder.base_url, asking())
        assert got.body.endswith(b"data: [DONE]\n\n")
        assert "content-encoding" not in got.headers
        assert body_of(only(path)) == got.body
        assert server.journal[0].headers["accept-encoding"] == "identity"

    async def test_a_raw_client(self, path: Path) -> None:
        """Bytes on a socket: a request with what HTTP needs and no more gets no more headers on its way."""
        async with recording(path, TEXT) as (server, recorder):
            host, port = recorder.base_url.removeprefix("http://").removesuffix("/v1").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            body = json.dumps(asking()).encode()
            writer.write(
                b"POST /v1/chat/completions?a=%%2F&b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n"
                b"x-mine: 1\r\nx-hop: 1\r\nconnection: close, x-hop\r\n\r\n%b" % (len(body), body)
            )
            answer = await asyncio.wait_for(reader.read(), PATIENCE_S)
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
        """A .netrc is not asked, neither in place of the client's key nor where there is none."""
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
        """The proxy does the same, so that the client learns what it would have learnt; there is nothing to record."""
        async with recording(path, faults=Cut()) as (_, recorder):
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await post(recorder.base_url, asking())
        assert path.read_bytes() == b""

    async def test_twenty_at_once(self, path: Path) -> None:
        """None waits for another, none gets another's bytes, each is a line."""
        async with recording(
            path, lambda request: f"{request.messages[0]['content']} " * 20, faults=Stall(after_token=5),
            keep_prompts=True,
        ) as (server, recorder):  # fmt: skip
            tasks = [asyncio.create_task(post(recorder.base_url, asking(f"word{number}"))) for number in range(20)]
            await server.journal.wait(20)
            while min(entry.tokens_written for entry in server.journal) < 5:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            server.release()
            await asyncio.gather(*tasks)
        told = {exchange.request["messages"][0]["content"]: exchange for exchange in Recording.load(path).exchanges}
        assert len(told) == 20
        for number, task in enumerate(tasks):
            assert body_of(told[f"word{number}"]) == task.result().body
            assert task.result().body.count(b"[DONE]") == 1

    @pytest.mark.parametrize("upstream", ["localhost:80/v1", "ftp://x/v1", "http:///v1", "http://x/v1?key=1", ""])
    def test_an_upstream_that_is_none(self, path: Path, upstream: str) -> None:
        with pytest.raises(ValueError, match=r"upstream: got .*, expected http://"):
            Recorder(path, upstream=upstream)

    async def test_what_it_says_of_itself(self, path: Path) -> None:
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


class TestBreaks:
    @pytest.mark.parametrize(
        "fault",
        [
            Cut(after_token=2, how="reset"),
            Cut(after_token=2, how="close"),
            Cut(after_token=2, how="chunk"),
            Cut(at_byte=100, how="close"),
        ],
        ids=repr,
    )
    async def test_an_upstream_that_breaks_off(self, path: Path, fault: Fault) -> None:
        """So does the proxy, after the same bytes; so does the replay."""
        faults = Stall(after_token=1, seconds=0.02) + fault  # so that something is out before a RST takes it away
        async with (
            recording(path, TEXT, faults=faults) as (_, recorder),
            AsyncTogether(KEY, base_url=recorder.base_url) as client,
        ):
            with pytest.raises(StreamError) as first:
                await client.stream("Why?", model="m").completion()
        exchange = only(path)
        assert not exchange.complete
        assert "broken off" in repr(exchange)
        async with (
            EmulatorServer(Recording.load(path)) as server,
            AsyncTogether(KEY, base_url=server.base_url) as client,
        ):
            with pytest.raises(StreamError) as second:
                await client.stream("Why?", model="m").completion()
            assert server.journal[0].outcome == "broken off"
        assert second.value.partial == first.value.partial

    async def test_a_length_that_is_not_kept(self, path: Path) -> None:
        """All events came, and fewer bytes than promised: that is for the client to judge, now and later."""
        got = await recorded_once(path, TEXT, faults=WrongLength(40))
        again = await replayed(path)
        assert (got.broken, again.broken, only(path).complete) == (True, True, False)
        assert again.body == got.body

    async def test_an_end_that_only_its_content_tells(self, path: Path) -> None:
        """A stream without [DONE] in good HTTP is complete for the proxy: it knows nothing of the protocol."""
        got = await recorded_once(path, TEXT, faults=WithoutDone())
        assert only(path).complete
        assert (await replayed(path)).body == got.body
        assert b"[DONE]" not in got.body

    async def test_a_client_that_leaves(self, path: Path) -> None:
        """The upstream is left within 100 ms, and what came is recorded as incomplete."""
        recorded = asyncio.Event()
        async with (
            EmulatorServer(TEXT, faults=Stall(after_token=2)) as server,
            Recorder(path, upstream=server.base_url, on_end=lambda _: recorded.set()) as recorder,
            AsyncTogether(KEY, base_url=recorder.base_url) as client,
        ):
            seen = 0
            async for _ in client.stream("Why?", model="m"):
                seen += 1
                if seen == 2:
                    break
            left = time.monotonic()
            assert await server.journal[0].wait_left() - left < 2 * SOON
            await asyncio.wait_for(recorded.wait(), PATIENCE_S)
        exchange = only(path)
        assert not exchange.complete
        assert body_of(exchange).count(b'"delta"') == 2
        assert sum(exchange.tokens) == 2

    async def test_a_client_that_leaves_before_the_head(self, path: Path) -> None:
        async with recording(path, faults=Stall()) as (server, recorder):
            task = asyncio.create_task(post(recorder.base_url, asking()))
            await server.journal.wait(1)
            task.cancel()
            await server.journal[0].wait_left()
            await asyncio.gather(task, return_exceptions=True)
        assert path.read_bytes() == b""

    async def test_stopping_does_not_wait_for_streams(self, path: Path) -> None:
        """Both ends are let go at once, and what came is in the file."""
        async with EmulatorServer(TEXT, faults=Stall(after_token=1)) as server:
            async with Recorder(path, upstream=server.base_url) as recorder:
                tasks = [asyncio.create_task(post(recorder.base_url, asking())) for _ in range(3)]
                await server.journal.wait(3)
                while min(entry.tokens_written for entry in server.journal) < 1:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                started = time.monotonic()
            assert time.monotonic() - started < 1
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            for entry in server.journal:
                await entry.wait_left()
        assert all(not isinstance(answer, Got) or answer.broken for answer in answers)
        if path.stat().st_size:  # else the recorder was left before the first answer's head had come to it
            assert not any(exchange.complete for exchange in Recording.load(path).exchanges)


class TestReplay:
    async def test_several_come_in_their_order(self, path: Path) -> None:
        """And from the start again after the last."""
        async with recording(path, InTurn("one", "two", "three")) as (_, recorder):
            for _ in range(3):
                await post(recorder.base_url, asking(stream=False))
        async with EmulatorServer(Recording.load(path)) as server:
            answers = [await post(server.base_url, asking("new", stream=False)) for _ in range(4)]
        said = [json.loads(answer.body)["choices"][0]["message"]["content"] for answer in answers]
        assert said == ["one", "two", "three", "one"]

    async def test_prompts_that_were_kept_find_their_answers(self, path: Path) -> None:
        """In whatever order they come; a prompt that is new gets the next in turn."""
        async with recording(
            path, lambda request: f"answer to {request.messages[0]['content']}", keep_prompts=True
        ) as (_, recorder):  # fmt: skip
            for prompt in ("one", "two", "three"):
                await post(recorder.base_url, asking(prompt, temperature=0.5))
        async with (
            EmulatorServer(Recording.load(path)) as server,
            AsyncTogether(KEY, base_url=server.base_url) as client,
        ):
            said = [
                (await client.stream(prompt, model="m", temperature=0.5).completion()).choices[0].message.content
                for prompt in ("three", "one", "two", "three")
            ]
            assert said == [f"answer to {prompt}" for prompt in ("three", "one", "two", "three")]

    def test_the_same_prompt_twice_is_answered_in_turn(self) -> None:
        one, two = (RecordedExchange(200, {}, ((0.0, data),), asking(stream=False)) for data in (b"1", b"2"))
        other = RecordedExchange(200, {}, (), asking("other"))
        told = Recording((other, one, two))
        request = ChatCompletionRequest(messages="Why?", model="m")
        assert [told.choose(request, turn) for turn in range(3)] == [one, two, one]

    def test_asking_for_usage_is_the_same_question(self) -> None:
        """A client that asks for it finds what another recorded without."""
        other = RecordedExchange(200, {}, (), asking("other"))
        asked = RecordedExchange(200, {}, (), asking(stream_options={"include_usage": True}))
        request = ChatCompletionRequest(messages="Why?", model="m")
        assert Recording((other, asked)).choose(request, 0) is asked

    def test_the_kind_of_answer_is_heeded_when_it_is_known(self) -> None:
        """Who asks for a stream gets one, if there is one."""
        whole, stream = (RecordedExchange(200, {"x": str(on)}, (), asking("other", stream=on)) for on in (False, True))
        told = Recording((whole, stream))
        request = ChatCompletionRequest(messages="Why?", model="m")
        assert [told.choose(request, turn, streamed=True) for turn in range(2)] == [stream, stream]
        assert [told.choose(request, turn, streamed=False) for turn in range(2)] == [whole, whole]
        assert [told.choose(request, turn) for turn in range(2)] == [whole, stream]
        assert Recording((whole,)).choose(request, 5, streamed=True) is whole

    async def test_faults_find_the_tokens_of_a_recording(self, path: Path) -> None:
        await recorded_once(path, TEXT, faults=Split(every=10))
        exchange = only(path)
        assert sum(exchange.tokens) == 5  # The, sky, is, blue and the full stop
        async with (
            EmulatorServer(Recording.load(path), faults=Cut(after_token=2)) as server,
            AsyncTogether(KEY, base_url=server.base_url) as client,
        ):
            with pytest.raises(StreamError) as caught:
                await client.stream("Why?", model="m").completion()
            assert (server.journal[0].tokens, server.journal[0].outcome) == (5, "broken off")
        assert caught.value.partial.choices[0].message.content == "The sky"

    async def test_saving_and_loading(self, path: Path, tmp_path: Path) -> None:
        await recorded_once(path, RAINBOW)
        told = Recording.load(path)
        told.save(tmp_path / "copy")
        assert Recording.load(tmp_path / "copy") == told
        assert (tmp_path / "copy").read_bytes() == path.read_bytes()
        assert repr(told) == "<Recording of 1 exchanges>"


PROMPT = 'My "secret" plän 🌈 is/was: C:\\new\\temp\nthen <rest>'
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks up the classified ledger",
        "parameters": {"type": "object", "properties": {"hidden_field": {"type": "string", "enum": ["classified1"]}}},
    },
}


def spellings(secret: str) -> set[bytes]:
    """A text as it is, and as JSON within JSON within JSON, with and without ASCII only."""
    found = {secret}
    for ascii_only in (True, False):
        once = json.dumps(secret, ensure_ascii=ascii_only)[1:-1]
        twice = json.dumps(once, ensure_ascii=ascii_only)[1:-1]
        found |= {once, twice, json.dumps(twice, ensure_ascii=ascii_only)[1:-1]}
    return {text.encode("utf-8", "surrogatepass") for text in found}


def assert_nowhere(path: Path, *secrets: str) -> None:
    data = path.read_bytes()
    for secret in secrets:
        for spelling in spellings(secret):
            assert spelling not in data, spelling
    for exchange in Recording.load(path).exchanges:
        whole = body_of(exchange)
        for secret in secrets:
            for spelling in spellings(secret):
                assert spelling not in whole, spelling


def error(text: str, *, ascii_only: bool = True) -> bytes:
    body = json.dumps({"error": {"message": f"bad: {text}"}}, ensure_ascii=ascii_only).encode()
    return b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


class TestPrivacy:
    ASKED = (
        asking(PROMPT),
        asking("x", messages=[{"role": "user", "content": [{"type": "text", "text": PROMPT}]}]),
        asking("x", messages=[{"role": "system", "content": PROMPT}, {"role": "user", "content": "x"}]),
        asking("x", tools=[{**TOOL, "function": {**TOOL["function"], "description": PROMPT}}]),  # type: ignore[dict-item]
        asking("x", safety_model=PROMPT, stop=[PROMPT], whatever={"deep": [PROMPT]}),
        {PROMPT: 1, **asking("x"), "logit_bias": {PROMPT: 1}},
        asking("x", model=[PROMPT]),
    )

    @pytest.mark.parametrize("asked", ASKED, ids=range(len(ASKED)))
    @pytest.mark.parametrize("repeats", ["nothing", "text", "json", "unicode", "json in json", "plain", "pieces"])
    async def test_no_prompt_is_in_the_file(self, path: Path, asked: dict[str, Any], repeats: str) -> None:
        """Wherever it stood in the request, and however an error repeats it."""
        faults: dict[str, Fault] = {
            "nothing": Status(400, message="no"),
            "text": Raw(error(PROMPT)),
            "json": Raw(error(json.dumps(asked))),
            "unicode": Raw(error(PROMPT, ascii_only=False)),
            "json in json": Raw(error(json.dumps(json.dumps(asked)))),
            "plain": Status(400, body=f"what is {PROMPT}?"),
            "pieces": Status(400, message=PROMPT) + Split(every=1),
        }
        await recorded_once(path, faults=faults[repeats] if "model" in asked else None, ask=asked)
        assert_nowhere(path, PROMPT)
        exchange = only(path)
        assert exchange.status in {400, 422}
        assert exchange.request.get("model", "m") == "m"
        if repeats not in {"nothing", "plain"}:
            json.loads(body_of(exchange))  # what was taken out left JSON behind

    @pytest.mark.parametrize("stream", [True, False])
    @pytest.mark.parametrize("prompt", [PROMPT, "short"])
    @pytest.mark.parametrize("split", [None, Split(every=3)])
    async def test_echo_is_taken_out(self, path: Path, stream: bool, prompt: str, split: Fault | None) -> None:
        """The client gets it; the recording has an empty one, whatever its length, and the answer as it was."""
        ask = asking(prompt, stream=stream, echo=True)
        got = await recorded_once(path, TEXT, faults=split, ask=ask)
        assert json.dumps(prompt).encode() in got.body or json.dumps(prompt, ensure_ascii=False).encode() in got.body
        assert_nowhere(path, prompt)
        body = body_of(only(path))
        assert body.count(b'"prompt":[]') == 1
        assert got.body.count(b'"choices"') == body.count(b'"choices"')

    async def test_an_echo_in_tokens_or_their_numbers(self, path: Path) -> None:
        chunk = {"prompt_token_ids": [17, 4], "prompt": [{"logprobs": {"tokens": ["to", "ken"]}}], "choices": []}
        await recorded_once(path, faults=Raw(HEAD + chunked(b"data: " + json.dumps(chunk).encode() + b"\n\n")))
        assert body_of(only(path)) == b'data: {"prompt_token_ids": [], "prompt": [], "choices": []}\n\n'

    async def test_an_echo_that_breaks_off(self, path: Path) -> None:
        data = b'data: {"choices": [], "prompt": [{"text": "Why on ear'
        await recorded_once(path, faults=Raw(HEAD + b"%x\r\n%b" % (len(data), data)))
        assert body_of(only(path)) == b'data: {"choices": [], "prompt": []'

    async def test_the_definitions_of_tools_are_not_in_an_error(self, path: Path) -> None:
        """A server that checks requests likes to repeat all of one: names, properties and values too."""
        asked = asking("x", tools=[TOOL])
        await recorded_once(path, faults=Raw(error(json.dumps(asked))), ask=asked)
        assert_nowhere(path, "look_up", "classified ledger", "hidden_field", "classified1")

    async def test_an_answer_that_calls_a_tool_stays_whole(self, path: Path) -> None:
        """Roles, types and the tool's name are in every such request, and in the answer."""
        asked = asking(
            "What is there?",
            messages=[{"role": "user", "content": PROMPT}, {"role": "assistant", "content": "Well, well"}],
            tools=[TOOL],
        )
        got = await recorded_once(path, None, ask=asked)
        assert b"look_up" in got.body
        assert body_of(only(path)) == got.body

    def test_what_an_answer_has_to_repeat_stays(self) -> None:
        """A long name of a tool and a value it allows: no answer could call it without."""
        parameters = {"type": "object", "properties": {"unit": {"type": "string", "enum": ["fahrenheit"]}}}
        tool = {"type": "function", "function": {"name": "look_up_weather", "parameters": parameters}}
        answer = b'{"name": "look_up_weather", "arguments": "{\\"unit\\": \\"fahrenheit\\"}"}'
        recorded = RecordedExchange(200, {}, ((0.0, answer),), asking("x", tools=[tool]))
        assert body_of(without_private(recorded, [], keep_prompts=False)) == answer

    def test_an_escape_is_not_cut_in_two(self) -> None:
        """The text begins with what is half an escape in the answer: a line feed, and "ice"."""
        answer = json.dumps({"a": "so\nice weather", "b": 1}).encode()
        kept = without_private(
            RecordedExchange(200, {}, ((0.0, answer),), asking("nice weather")), [], keep_prompts=False
        )
        assert json.loads(body_of(kept)) == {"a": "so[removed]", "b": 1}

    @pytest.mark.parametrize("keep_prompts", [True, False])
    @pytest.mark.parametrize("split", [None, Split(every=1)])
    async def test_the_key_is_never_in_the_file(self, path: Path, keep_prompts: bool, split: Fault | None) -> None:
        """Not even when the server repeats it, in a header or in the text, in one piece or in many."""
        faults = Status(401, message=f"Incorrect key: {KEY}", headers={"x-key": KEY, "x-auth": f"Bearer {KEY}"})
        got = await recorded_once(path, faults=faults + split if split else faults, keep_prompts=keep_prompts)
        assert KEY.encode() in got.body
        assert_nowhere(path, KEY, "Bearer")
        assert only(path).headers["x-key"] == "[removed]"
        assert json.loads(body_of(only(path)))["error"]["message"] == "Incorrect key: [removed]"

    @pytest.mark.parametrize("header", ["x-api-key", "api-key", "cookie"])
    async def test_keys_in_other_headers(self, path: Path, header: str) -> None:
        async with recording(path, "Your hunter2hunter2 is fine.") as (_, recorder):
            await post(recorder.base_url, asking(stream=False), **{header: "hunter2hunter2"})
        assert_nowhere(path, "hunter2hunter2")

    async def test_what_stays_of_a_request(self, path: Path) -> None:
        await recorded_once(path, TEXT, ask=asking(PROMPT, max_tokens=50, temperature=0.5, user_mail="a@b.example"))
        assert only(path).request == {"model": "m", "stream": True, "max_tokens": 50, "temperature": 0.5}

    async def test_prompts_are_kept_on_demand(self, path: Path) -> None:
        ask = asking(PROMPT, echo=True)
        got = await recorded_once(path, TEXT, ask=ask, keep_prompts=True)
        assert only(path).request == ask
        assert body_of(only(path)) == got.body

    async def test_an_answer_is_not_shredded(self, path: Path) -> None:
        """Short words of the prompt, and placeholders for a key, are words."""
        async with recording(path, "none of the sky is none") as (_, recorder):
            got = await post(recorder.base_url, asking("sky none"[:3]), authorization="Bearer none")
        assert body_of(only(path)) == got.body

    @given(
        st.text(min_size=8, max_size=30),
        st.integers(0, 2),
        st.booleans(),
        st.lists(st.integers(0, 400), max_size=6),
        st.text(max_size=5),
        st.text(max_size=5),
    )
    def test_whatever_the_text_and_the_split(
        self, secret: str, depth: int, ascii_only: bool, cuts: list[int], before: str, after: str
    ) -> None:
        """However often it is escaped, in whichever pieces it comes: it is gone, the JSON is JSON, the times are as
        they were."""
        text = before + secret + after
        for _ in range(depth):
            text = json.dumps(text, ensure_ascii=ascii_only)
        whole = json.dumps({"detail": text}, ensure_ascii=ascii_only).encode()
        edges = [0, *sorted(cut for cut in set(cuts) if cut < len(whole)), len(whole)]
        pieces = tuple((float(a), whole[a:b]) for a, b in itertools.pairwise(edges))
        recorded = RecordedExchange(200, {}, pieces, asking(secret))
        kept = without_private(recorded, [], keep_prompts=False)
        told = json.loads(body_of(kept))["detail"]
        for _ in range(depth):
            assert secret not in told
            try:
                told = json.loads(told)
            except ValueError:  # the inner JSON may suffer where the prompt's edge was half an escape
                break
        assert secret not in told
        assert [at for at, _ in kept.pieces] == [at for at, _ in pieces]


class TestFile:
    GOOD = RecordedExchange(200, {}, ((0.5, b"x"),)).to_line().decode()

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda line: line[:-8], "EOF|truncated"),
            (lambda _: "[1]", 'the key "recording"'),
            (lambda _: '"x"', 'the key "recording"'),
            (lambda _: "not JSON", "malformed"),
            (lambda _: '{"custom_id": "1"}', 'the key "recording"'),
            (lambda line: line.replace('"recording":1', '"recording":7'), "got version 7, expected 1"),
            (lambda line: line.replace('"status":200', '"status":"ok"'), "status: unexpected str 'ok'"),
            (lambda line: line.replace('"status":200', '"status":7'), "status: unexpected int '7'"),
            (lambda line: line.replace('"status":200', '"status":true'), "status: unexpected bool"),
            (lambda line: line.replace('"status":200,', ""), "'status' is missing"),
            (lambda line: line.replace('"headers":{}', '"headers":{"a":1}'), "a: unexpected int"),
            (lambda line: line.replace("0.5", '"soon"'), "got 'soon', expected seconds"),
            (lambda line: line.replace("0.5", "-1"), "got '-1', expected seconds"),
            (lambda line: line.replace('"x"', '{"base64":"%%"}'), "base64"),
            (lambda line: line.replace('"x"', "7"), "got int among the data"),
            (lambda line: line.replace('[0.5,"x"]', "[0.5]"), "not enough values"),
            (lambda line: line.replace('"complete":true', '"complete":1'), "complete: unexpected int"),
        ],
    )
    def test_a_bad_line_is_named(self, path: Path, change: Any, reason: str) -> None:
        """File, number of the line, and what is wrong with it."""
        path.write_text(self.GOOD + "\n" + change(self.GOOD) + "\n", "utf-8")
        with pytest.raises(ValueError, match=reason) as caught:
            Recording.load(path)
        assert str(caught.value).startswith(f"{path}:3: not a line of a recording: ")

    @pytest.mark.parametrize("text", ["", "\n\n"])
    def test_an_empty_file(self, path: Path, text: str) -> None:
        path.write_text(text)
        with pytest.raises(ValueError, match="an empty recording, expected at least one exchange") as caught:
            Recording.load(path)
        assert str(path) in str(caught.value)
        with pytest.raises(ValueError, match="an empty recording"):
            Recording(())

    def test_no_file(self, path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            Recording.load(path)

    async def test_a_place_that_can_not_be_written(self, tmp_path: Path) -> None:
        """Known before a request is paid for."""
        with pytest.raises(FileNotFoundError):
            await Recorder(tmp_path / "no" / "x", upstream="http://x/v1").__aenter__()

    async def test_exchanges_are_added(self, path: Path) -> None:
        for text in ("one", "two"):
            await recorded_once(path, text)
        assert len(Recording.load(path).exchanges) == 2

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    async def test_a_full_disk(self) -> None:
        """The client has its answer; the next is refused before it costs anything, and the end says why."""
        async with EmulatorServer(TEXT) as server:
            recorder = await Recorder("/dev/full", upstream=server.base_url).__aenter__()
            first = await post(recorder.base_url, asking())
            second = await post(recorder.base_url, asking())
            with pytest.raises(OSError, match="No space left"):
                await recorder.__aexit__(None, None, None)
        assert (first.status, first.broken) == (200, False)
        assert second.status == 500
        assert json.loads(second.body)["error"]["message"] == (
            "recorder: the recording can't be written: No space left on device"
        )
        assert (len(server.journal), recorder.recorded) == (1, 0)

    async def test_half_a_line_is_not_left(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A write that fails in the middle leaves the file as it was."""
        await recorded_once(path, "one")
        before = path.read_bytes()
        real = Path.open

        class Failing:
            def __init__(self, file: Any) -> None:
                self.file = file

            def __enter__(self) -> Any:
                self.file.__enter__()
                return self

            def __exit__(self, *info: object) -> None:
                self.file.__exit__(*info)

            def write(self, data: bytes) -> None:
                self.file.write(data[:10])
                self.file.flush()
                raise OSError(28, "No space left on device")

            def __getattr__(self, name: str) -> Any:
                return getattr(self.file, name)

        async with EmulatorServer("two") as server:
            recorder = await Recorder(path, upstream=server.base_url).__aenter__()
            with monkeypatch.context() as patch:
                patch.setattr(Path, "open", lambda *args, **kwargs: Failing(real(*args, **kwargs)))
                await post(recorder.base_url, asking())
            with pytest.raises(OSError, match="No space"):
                await recorder.__aexit__(None, None, None)
        assert path.read_bytes() == before


class TestMemory:
    async def test_a_long_stream_costs_its_recording(self, path: Path) -> None:
        """At the peak a few times what is written, and nothing afterwards."""
        size = 4 * 1024 * 1024
        async with recording(path, TEXT, faults=HugeLine(size=size)) as (_, recorder):
            await post(recorder.base_url, asking())  # what is allocated once
            path.unlink()
            tracemalloc.start()
            try:
                await self._read(recorder.base_url)
                while not path.exists():  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                left, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
        assert path.stat().st_size > size
        assert peak < 8 * size
        assert left < 1024 * 1024

    @staticmethod
    async def _read(base_url: str) -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{base_url}/chat/completions", json=asking()) as response,
        ):
            async for _ in response.content.iter_any():
                pass

    async def test_a_client_that_does_not_read_stops_the_upstream(self, path: Path) -> None:
        """What is under way is bounded by sockets' buffers, not by what the server has to say."""
        size = 64 * 1024 * 1024
        async with recording(path, TEXT, faults=HugeLine(size=size)) as (server, recorder):
            host, port = recorder.base_url.removeprefix("http://").removesuffix("/v1").split(":")
            _, writer = await asyncio.open_connection(host, int(port), limit=1024)
            body = json.dumps(asking()).encode()
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body))
            writer.write(body)
            entry = await server.journal.wait(1)
            written = -1
            while entry.bytes_written > written:
                written = entry.bytes_written
                await asyncio.sleep(0.1)
            writer.close()
            await entry.wait_left()
        assert 0 < written < size / 2


def test_long_streams_are_searched_in_linear_time() -> None:
    """20,000 pieces that are full of the prompt: merged and cut in one walk."""
    prompt = "secretive"
    piece = json.dumps({"t": f"\u00e9 {prompt} \n"}).encode()
    pieces = tuple((float(at), piece) for at in range(20_000))
    started = time.process_time()
    kept = without_private(RecordedExchange(200, {}, pieces, asking(prompt)), [], keep_prompts=False)
    assert time.process_time() - started < 3
    assert body_of(kept).count(b"[removed]") == 20_000
