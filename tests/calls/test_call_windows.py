"""`Call`: services that report when their window ends, in seconds or as a date, on good answers and on 429s."""

from __future__ import annotations

import asyncio
import time

import pytest

from support import virtual_time
from support.calls import retrying_client
from support.servers import MODEL, Call, Script, ScriptedServer, answers, response, whole
from support.survival import ask
from together_async import RateLimitError, Retry

DEFAULT = Retry()


def answer(**headers: str) -> Script:
    """A good whole answer with headers."""
    return answers(response(whole(), extra=_lines(headers)))


def refusal(**headers: str) -> Script:
    return answers(response({"error": {"message": "slow down"}}, status=429, extra=_lines(headers)))


def _lines(headers: dict[str, str]) -> bytes:
    return "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()).encode()


def written(seconds: float, form: str) -> str:
    """A time so many seconds ahead, as gateways write it."""
    match form:
        case "seconds":
            return f"{seconds:g}"
        case "unix seconds":
            return f"{time.time() + seconds:.3f}"
        case "unix milliseconds":
            return f"{(time.time() + seconds) * 1000:.0f}"
        case _:
            return f"{seconds * 1000:.0f}ms"


FORMS = ["seconds", "unix seconds", "unix milliseconds", "duration"]


async def timed(client: object) -> float:
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert (await ask(client, "create", within=2_000, alone=False)).text == "Hello"  # type: ignore[arg-type]  # a client
    return loop.time() - began


@pytest.mark.parametrize("form", FORMS)
def test_window_that_is_used_up_is_waited_for(form: str) -> None:
    """Nothing remains for 20 s, says a good answer: the next call waits so long, which the limits show."""

    async def main() -> None:
        used_up = answer(x_ratelimit_limit="100", x_ratelimit_remaining="0", x_ratelimit_reset=written(20, form))
        async with ScriptedServer(used_up, answer()) as server, retrying_client(server, retry=DEFAULT) as client:
            assert await timed(client) < 1
            waiting = asyncio.create_task(timed(client))
            await asyncio.sleep(0.01)
            assert 18 < client.limits.models[MODEL].paused_for_s <= 20
            assert client.limits.queued == 1
            assert 18 < await waiting < 22

    virtual_time.run(main())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["retry_after", "x_ratelimit_reset"])
def test_429_with_a_date_is_waited_for(form: str, name: str) -> None:
    """The service is free after a second: the call waits a second, and no other call of the client for longer."""

    async def main() -> None:
        refused = refusal(**{name: written(1, form)})
        async with ScriptedServer(refused, answer()) as server, retrying_client(server, retry=DEFAULT) as client:
            assert 0.5 < await timed(client) < 3

    virtual_time.run(main())


@pytest.mark.parametrize("form", ["seconds", "unix seconds", "unix milliseconds"])
@pytest.mark.parametrize("good", [True, False])
def test_pause_that_is_too_long_fails_at_once_and_says_until_when(form: str, good: bool) -> None:
    """Also the calls that come later, without asking the service again; a patient call waits 15 minutes at most."""

    async def main() -> None:
        headers = {"x_ratelimit_limit": "10", "x_ratelimit_remaining": "0", "x_ratelimit_reset": written(40_000, form)}
        first = answer(**headers) if good else refusal(**headers)
        async with ScriptedServer(first, answer()) as server, retrying_client(server, retry=DEFAULT) as client:
            if good:
                await timed(client)
            for attempts in (0 if good else 1, 0):
                outcome = await ask(client, "create", within=1, alone=False)
                assert isinstance(outcome.error, RateLimitError)
                assert outcome.error.attempts == attempts
                assert "UTC" in str(outcome.error) or any("UTC" in note for note in outcome.error.__notes__)
            assert client.limits.paused_until is not None
            loop = asyncio.get_running_loop()
            began = loop.time()
            patient = [result async for result in client.map(["hi"], model=MODEL)]
            assert patient[0].error is None
            assert loop.time() - began == pytest.approx(900, rel=0.02)

    virtual_time.run(main())


@pytest.mark.parametrize("value", ["-1e9", "nan", "soon", "1e300", "1000000000"])
def test_reset_without_sense_is_no_reset(value: str) -> None:
    """The last is a date long ago. A 429 with it is waited for as with none, and a good answer pauses nothing."""

    async def main() -> None:
        headers = {"x_ratelimit_limit": "100", "x_ratelimit_remaining": "0", "x_ratelimit_reset": value}
        scripts = (refusal(retry_after=value, x_ratelimit_reset=value), answer(**headers), answer())
        async with ScriptedServer(*scripts) as server, retrying_client(server, retry=DEFAULT) as client:
            assert await timed(client) < 3
            assert client.limits.paused_until is None
            assert await timed(client) < 3

    virtual_time.run(main())


def test_rest_of_a_window_is_kept_by_calls_that_are_under_way() -> None:
    """Two remain for 30 s: of ten calls, two go, and the others after it; none is refused."""
    served = 0

    async def script(call: Call) -> None:
        nonlocal served
        served += 1
        left = max(0, 3 - served)
        reset = written(30, "unix seconds")
        headers = {"x_ratelimit_limit": "3", "x_ratelimit_remaining": str(left), "x_ratelimit_reset": reset}
        await answer(**headers if served <= 3 else {})(call)

    async def main() -> None:
        async with ScriptedServer(script) as server, retrying_client(server, retry=DEFAULT) as client:
            await timed(client)
            began = asyncio.get_running_loop().time()
            calls = [asyncio.create_task(timed(client)) for _ in range(10)]
            took_s = sorted(await asyncio.gather(*calls))
            assert took_s[1] < 1
            assert took_s[2] > 25
            assert asyncio.get_running_loop().time() - began < 40
            assert client.limits.rate_limited == 0

    virtual_time.run(main())
