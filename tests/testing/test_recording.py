"""Recordings: their timing, which exchange answers a request, loading and saving."""

# ruff: noqa: ASYNC240 - the files are a few kilobytes

import asyncio
import json
import math
import time
from pathlib import Path

import aiohttp
import attrs
import pytest

from support.recordings import (
    RAINBOW,
    TEXT,
    TIMEOUT_S,
    Got,
    asking,
    body_of,
    gaps,
    only,
    post,
    recorded_once,
    recording,
    replayed,
)
from support.servers import KEY
from together_async import AsyncTogether, StreamError
from together_async.request import ChatCompletionRequest
from together_async.testing import (
    Cut,
    EmulatorServer,
    InTurn,
    Recording,
    Reply,
    Split,
    Stall,
)
from together_async.testing.exchange import RecordedExchange
from together_async.testing.recording import replay
from together_async.testing.response import ResponsePlan

pytestmark = pytest.mark.usefixtures("no_leaks")


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
        """A late head and a late end are replayed late."""
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
        """Half a second after its last piece, scaled by the speed, and in good order."""
        exchange = RecordedExchange(200, {}, ((0.25, b"x"),), ended_s=0.75)
        response = ResponsePlan()
        replay(exchange, response, speed=2.0)
        assert [(piece.data, piece.wait_s, piece.end) for piece in response.body] == [
            (b"x", 0.125, None),
            (b"", 0.25, None),
        ]

    async def test_each_piece_is_passed_on_at_once(self, path: Path) -> None:
        """The head, and then the first token, arrive while the server holds back the rest."""
        faults = Stall(after_token=0) + Stall(after_token=1)
        async with (
            recording(path, TEXT, faults=faults) as (server, recorder),
            aiohttp.ClientSession() as session,
            session.post(f"{recorder.base_url}/chat/completions", json=asking()) as response,
        ):
            assert response.status == 200
            server.release()
            first = await asyncio.wait_for(response.content.readany(), TIMEOUT_S)
            assert json.loads(first.removeprefix(b"data: "))["choices"][0]["delta"]["content"] == "The"
            assert server.journal[0].tokens_written == 1
            server.release()
            remaining = await asyncio.wait_for(response.content.read(), TIMEOUT_S)
        assert remaining.endswith(b"data: [DONE]\n\n")


class TestReplay:
    async def test_several_come_in_their_order(self, path: Path) -> None:
        """And from the start again after the last."""
        async with recording(path, InTurn("one", "two", "three")) as (_, recorder):
            for _ in range(3):
                await post(recorder.base_url, asking(stream=False))
        async with EmulatorServer(Recording.load(path)) as server:
            answers = [await post(server.base_url, asking("new", stream=False)) for _ in range(4)]
        contents = [json.loads(answer.body)["choices"][0]["message"]["content"] for answer in answers]
        assert contents == ["one", "two", "three", "one"]

    async def test_prompts_that_were_kept_find_their_answers(self, path: Path) -> None:
        """In whatever order they come; a prompt that is new gets the next in turn."""
        async with recording(
            path, lambda request: f"answer to {request.messages[0]['content']}", keep_prompts=True
        ) as (_, recorder):  # fmt: skip - shorter than one argument a line
            for prompt in ("one", "two", "three"):
                await post(recorder.base_url, asking(prompt, temperature=0.5))
        async with (
            EmulatorServer(Recording.load(path)) as server,
            AsyncTogether(KEY, base_url=server.base_url) as client,
        ):
            contents = [
                (await client.stream(prompt, model="m", temperature=0.5).completion()).choices[0].message.content
                for prompt in ("three", "one", "two", "three")
            ]
            assert contents == [f"answer to {prompt}" for prompt in ("three", "one", "two", "three")]

    def test_the_same_prompt_twice_is_answered_in_turn(self) -> None:
        first, second = (RecordedExchange(200, {}, ((0.0, data),), asking(stream=False)) for data in (b"1", b"2"))
        other = RecordedExchange(200, {}, (), asking("other"))
        loaded = Recording((other, first, second))
        request = ChatCompletionRequest(messages="Why?", model="m")
        assert [loaded.choose(request, turn) for turn in range(3)] == [first, second, first]

    def test_asking_for_usage_is_the_same_question(self) -> None:
        """A request with `include_usage` finds the exchange recorded without it."""
        other = RecordedExchange(200, {}, (), asking("other"))
        asked = RecordedExchange(200, {}, (), asking(stream_options={"include_usage": True}))
        request = ChatCompletionRequest(messages="Why?", model="m")
        assert Recording((other, asked)).choose(request, 0) is asked

    def test_the_kind_of_answer_is_heeded_when_it_is_known(self) -> None:
        """A request for a stream gets a recorded stream, if there is one."""
        whole, stream = (RecordedExchange(200, {"x": str(on)}, (), asking("other", stream=on)) for on in (False, True))
        loaded = Recording((whole, stream))
        request = ChatCompletionRequest(messages="Why?", model="m")
        assert [loaded.choose(request, turn, streamed=True) for turn in range(2)] == [stream, stream]
        assert [loaded.choose(request, turn, streamed=False) for turn in range(2)] == [whole, whole]
        assert [loaded.choose(request, turn) for turn in range(2)] == [whole, stream]
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
        loaded = Recording.load(path)
        loaded.save(tmp_path / "copy")
        assert Recording.load(tmp_path / "copy") == loaded
        assert (tmp_path / "copy").read_bytes() == path.read_bytes()
        assert repr(loaded) == "<Recording of 1 exchanges>"


class TestFile:
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
