"""Silence at each stage of a call, with and without pings: which limit runs out, when, and what the error keeps."""

import asyncio
from typing import Any

import pytest

from support.survival import KEY, KINDS, LIMIT, STREAMED, TOKENS, Outcome, Scene, ask, case, events_of, listening, scene
from together_async import APITimeoutError, AsyncTogether, StreamTimeoutError, Timeouts
from together_async.http import response as response_module
from together_async.testing import ByModel, Drip, Fault, Frame, Gzip, Stall

pytestmark = pytest.mark.usefixtures("no_leaks")

SLOW: dict[str, dict[str, Any]] = {
    "silence": {},
    "pings": {"ping_every": 0.01},
    "pings as JSON": {"ping_every": 0.01, "ping": b'data: {"type":"ping"}\n\n'},
    "empty chunks": {"ping_every": 0.01, "ping": b'data: {"choices":[{"index":0,"delta":{"role":"assistant"}}]}\n\n'},
    "line ends": {"ping_every": 0.01, "ping": b"\n"},
    "a comment without an end": {"ping_every": 0.01, "ping": b": a"},
    "an event without an end": {"ping_every": 0.01, "ping": b"d"},
}
FAST: dict[str, dict[str, Any]] = {"pings as fast as can be": {"ping_every": 0.0}}
PINGS = {**SLOW, **FAST}
NONE = dict.fromkeys(("connect", "first_token", "idle", "total"))


def limits(**given: float) -> Timeouts:
    """These limits and no others."""
    return Timeouts(**{**NONE, **given})  # type: ignore[arg-type] # mypy takes the keys for any


def limit_of(phase: str) -> float:
    """The limit for a stream whose tokens have to come first; `total` counts from the start, also on a busy machine."""
    return 5 * LIMIT if phase == "total" else LIMIT


def check_late(outcome: Outcome, phase: str, tokens: int | None, *, limit: float = LIMIT) -> None:
    """A timeout of that phase, in its time; with a partial if tokens had come."""
    error = outcome.error
    assert isinstance(error, TimeoutError)
    assert type(error) is (StreamTimeoutError if tokens else APITimeoutError)
    assert error.phase == phase
    assert error.seconds == limit
    assert error.attempts == 1
    assert limit - 0.01 <= outcome.seconds < limit + 1
    assert f"{phase} took longer than {limit:g} s" in str(error)
    assert outcome.partial == ("".join(TOKENS[:tokens]) if tokens else None)


async def ask_all(s: Scene, kinds: tuple[str, ...] = STREAMED, **options: Any) -> list[Outcome]:
    """Asks in all ways at once, because each has to wait."""
    return await asyncio.gather(*(s.ask(kind, **options) for kind in kinds))


async def ask_models(s: Scene, faults: dict[str, Any], kinds: tuple[str, ...], **options: Any) -> list[Outcome]:
    """Asks in all ways for each of these models, all at once; each model has its own fault."""
    s.server.faults = ByModel(faults)
    asked = [(model, kind) for model in faults for kind in kinds]

    async def ask_model(model: str, kind: str) -> Outcome:
        with case(model, kind):
            return await s.ask(kind, model=model, **options)

    return await asyncio.gather(*(ask_model(model, kind) for model, kind in asked))


@pytest.mark.parametrize("phase", ["first_token", "total"])
async def test_silence_in_the_head(phase: str) -> None:
    """Before the first byte and in the head: the first token is late, or the whole."""
    async with scene() as s:
        places = {f"after {at} bytes": Stall(in_head=at) for at in (0, 5, 15, 17, 60)}
        for outcome in await ask_models(s, places, KINDS, timeouts=limits(**{phase: LIMIT})):
            check_late(outcome, phase, None)
            assert outcome.error is not None
            assert outcome.error.request_id is None
        for entry in s.server.journal:
            await entry.wait_left(1)


@pytest.mark.parametrize("phase", ["first_token", "total"])
@pytest.mark.parametrize("pings", [SLOW, FAST], ids=["slow", "fast"])
async def test_silence_after_the_head(pings: dict[str, Any], phase: str) -> None:
    """No ping is a token."""
    async with scene() as s:
        faults = {name: Stall(after_token=0, **ping) for name, ping in pings.items()}
        for outcome in await ask_models(s, faults, STREAMED, timeouts=limits(**{phase: LIMIT})):
            check_late(outcome, phase, 0)
            assert outcome.error is not None
            assert outcome.error.request_id is not None
        for entry in s.server.journal:
            await entry.wait_left(1)


@pytest.mark.parametrize("phase", ["idle", "total"])
@pytest.mark.parametrize("pings", [SLOW, FAST], ids=["slow", "fast"])
@pytest.mark.parametrize("tokens", [1, 3])
async def test_silence_after_tokens(tokens: int, pings: dict[str, Any], phase: str) -> None:
    """No ping ends the silence between tokens."""
    async with scene() as s:
        faults = {name: Stall(after_token=tokens, **ping) for name, ping in pings.items()}
        for outcome in await ask_models(s, faults, STREAMED, timeouts=limits(**{phase: limit_of(phase)})):
            check_late(outcome, phase, tokens, limit=limit_of(phase))
        for entry in s.server.journal:
            await entry.wait_left(1)
            assert entry.tokens_written == tokens


@pytest.mark.parametrize("tokens", range(1, len(TOKENS) + 1))
async def test_silence_after_each_token_in_every_framing(tokens: int) -> None:
    """After the last token too, before the finish reason."""
    frames: dict[str, Fault] = {"length": Frame("length"), "close": Frame("close"), "gzip": Gzip()}
    async with scene() as s:
        faults = {name: frame + Stall(after_token=tokens) for name, frame in frames.items()}
        for outcome in await ask_models(s, faults, STREAMED, timeouts=limits(idle=LIMIT)):
            check_late(outcome, "idle", tokens)


@pytest.mark.parametrize("phase", ["idle", "total"])
@pytest.mark.parametrize("ping", ["silence", "pings"])
async def test_silence_between_the_finish_reason_and_done(ping: str, phase: str) -> None:
    """Everything has come but [DONE]: a timeout, whose partial is complete."""
    async with scene() as s:
        size = len(b"".join((await events_of(s.server))[:-1]))
        s.server.faults = Stall(at_byte=size, **PINGS[ping])
        limit = limit_of(phase)
        for outcome in await ask_all(s, timeouts=limits(**{phase: limit})):
            assert outcome.error is None
            assert outcome.text == s.truth
            assert limit - 0.01 <= outcome.seconds < limit + 1


@pytest.mark.parametrize("ping", ["silence", "pings", "pings as fast as can be"])
async def test_silence_after_done(ping: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes after [DONE] are not waited for."""
    monkeypatch.setattr(response_module, "DRAIN_SECONDS", 0.1)
    async with scene() as s:
        s.server.faults = Stall(at_byte=len(b"".join(await events_of(s.server))), **PINGS[ping])
        for outcome in await ask_all(s, timeouts=limits(idle=30)):
            assert outcome.text == s.truth
            assert outcome.seconds < 1
        for entry in s.server.journal:
            await entry.wait_left(3)


@pytest.mark.parametrize("at", [7, 100])
async def test_silence_inside_an_event(at: int) -> None:
    """Half an event is not a token."""
    async with scene(faults=Stall(at_byte=at)) as s:
        for outcome in await ask_all(s, timeouts=limits(first_token=LIMIT)):
            check_late(outcome, "first_token", 0)


async def test_one_byte_at_a_time() -> None:
    """Dripping bytes are not tokens; a quick enough drip is a stream like any other."""
    async with scene(faults=Drip(every_s=0.02)) as s:
        for outcome in await ask_all(s, timeouts=limits(first_token=LIMIT)):
            check_late(outcome, "first_token", 0)
        s.server.faults = Drip(size=7, every_s=0.0001)
        for outcome in await ask_all(s, timeouts=limits(first_token=5, idle=5)):
            assert outcome.text == s.truth


@pytest.mark.parametrize(
    ("at", "phase"), [(0, "first_token"), (0, "total"), (50, "idle"), (50, "total"), (200, "idle"), (200, "total")]
)
async def test_silence_in_a_whole_response(at: int, phase: str) -> None:
    """Its first byte takes as long as all of its generation; then its bytes must come one after the other."""
    async with scene(faults=Stall(at_byte=at)) as s:
        (outcome,) = await ask_all(s, ("create",), timeouts=limits(**{phase: LIMIT}))
        check_late(outcome, phase, None)
        assert outcome.error is not None
        assert outcome.error.request_id is not None


async def test_a_whole_response_that_drips_for_ever() -> None:
    """Only the limit of the whole call ends a stream that always goes on."""
    async with scene(faults=Drip(every_s=0.02)) as s:
        (outcome,) = await ask_all(s, ("create",), timeouts=limits(idle=5, first_token=5, total=LIMIT))
        check_late(outcome, "total", None)


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x03\x00"], ids=["nothing", "half a hello"])
@pytest.mark.parametrize("kind", ["create", "text"])
async def test_a_tls_handshake_that_is_not_answered(kind: str, sent: bytes) -> None:
    """Accepted, and then nothing: connecting is late."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await reader.read()
        await asyncio.Event().wait()

    async with (
        listening(silent) as port,
        AsyncTogether(KEY, base_url=f"https://127.0.0.1:{port}/v1", timeouts=limits(connect=LIMIT)) as client,
    ):
        check_late(await ask(client, kind), "connect", None)


@pytest.mark.parametrize("kind", ["create", "text"])
async def test_the_shortest_limit_runs_out_first(kind: str) -> None:
    """Connecting has no more time than the whole call."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with listening(silent) as port, AsyncTogether(KEY, base_url=f"https://127.0.0.1:{port}/v1") as client:
        for phase in ("first_token", "total"):
            outcome = await ask(client, kind, timeouts=Timeouts(**{"connect": 5, phase: LIMIT}))  # type: ignore[arg-type] # as above
            check_late(outcome, phase, None)


async def test_a_silence_that_ends_in_time() -> None:
    """A stream that stalls and goes on is delivered whole."""
    async with scene(faults=Stall(after_token=2)) as s:
        with case("released"):
            tasks = [asyncio.create_task(s.ask(kind, timeouts=limits(idle=5))) for kind in STREAMED]
            await s.server.journal.wait(len(tasks))
            while any(entry.tokens_written < 2 for entry in s.server.journal):  # noqa: ASYNC110 - no event for it
                await asyncio.sleep(0)
            s.server.release()
            for task in tasks:
                assert (await task).text == s.truth
