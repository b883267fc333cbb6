"""Recording when something breaks: an end, a client that leaves, a file that can't be written; and memory."""

# ruff: noqa: ASYNC240 - the files are a few kilobytes

import asyncio
import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from support.recordings import (
    TEXT,
    TIMEOUT_S,
    Got,
    asking,
    body_of,
    only,
    post,
    recorded_once,
    recording,
    replayed,
)
from support.servers import KEY, SOON
from together_async import AsyncTogether, StreamError
from together_async.testing import (
    Cut,
    EmulatorServer,
    Fault,
    HugeLine,
    Recorder,
    Recording,
    Stall,
    WithoutDone,
    WrongLength,
)

pytestmark = pytest.mark.usefixtures("no_leaks")


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
        """The proxy breaks off after the same bytes, and so does the replay."""
        faults = (
            Stall(after_token=1, seconds=0.02) + fault
        )  # so that some bytes have arrived before a RST discards the rest
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

    async def test_an_end_that_only_its_content_shows(self, path: Path) -> None:
        """A stream without [DONE] in valid HTTP is complete for the proxy, which does not know the protocol."""
        got = await recorded_once(path, TEXT, faults=WithoutDone())
        assert only(path).complete
        assert (await replayed(path)).body == got.body
        assert b"[DONE]" not in got.body

    async def test_a_client_that_leaves(self, path: Path) -> None:
        """The proxy leaves the upstream at once, and records the part that came as incomplete."""
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
            await asyncio.wait_for(recorded.wait(), TIMEOUT_S)
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
        """Both ends are closed at once, and the part that came is in the file."""
        async with EmulatorServer(TEXT, faults=Stall(after_token=1)) as server:
            async with Recorder(path, upstream=server.base_url) as recorder:
                tasks = [asyncio.create_task(post(recorder.base_url, asking())) for _ in range(3)]
                await server.journal.wait(3)
                while min(entry.tokens_written for entry in server.journal) < 1:  # noqa: ASYNC110 - of another task
                    await asyncio.sleep(0.001)
                started = time.monotonic()
            assert time.monotonic() - started < 1
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            for entry in server.journal:
                await entry.wait_left()
        assert all(not isinstance(answer, Got) or answer.broken for answer in answers)
        if path.stat().st_size:  # else the recorder was left before the first answer's head had come to it
            assert not any(exchange.complete for exchange in Recording.load(path).exchanges)


class TestFile:
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
        """The client has its answer; the next request is refused at no cost, and leaving raises the error."""
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
        """At the peak a few times the size of the recording, and nothing afterwards."""
        size = 4 * 1024 * 1024
        async with recording(path, TEXT, faults=HugeLine(size=size)) as (_, recorder):
            await post(recorder.base_url, asking())  # for one-time allocations
            path.unlink()
            tracemalloc.start()
            try:
                await self._read(recorder.base_url)
                while not path.exists():  # noqa: ASYNC110 - of another task
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
        """The bytes under way are bounded by the sockets' buffers, not by the size of the response."""
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
