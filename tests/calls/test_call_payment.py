"""`Call`: a spending limit (402) stops every call of the account."""

import asyncio
from typing import Any

import pytest

from support import virtual_time
from support.calls import (
    UNTIMED,
    check_attempts,
    clocked,
    counted,
    do_create,
    good,
    leaves_nothing,
    refusal,
    retrying_client,
)
from support.servers import DONE, ScriptedServer, answers, delta, response, say, sse
from support.survival import KINDS, MODEL, PROMPT, TEXT, ask
from together_async import InsufficientQuotaError, Limits, PaymentRequiredError


def test_one_402_stops_everybody_who_shares_the_account() -> None:
    """Waiting calls and later ones get a clear error without a request; streams under way go on."""
    running, pay = asyncio.Event(), asyncio.Event()

    async def stream(call: Any) -> None:
        await call.head()
        await call.chunk(sse(delta("first", role="assistant")))
        await running.wait()
        await call.chunk(say(" and last"))
        await call.send(b"0\r\n\r\n")

    async def refuse(call: Any) -> None:
        await pay.wait()
        await call.send(refusal(402))

    async def main() -> None:
        limiter = clocked(Limits(concurrency=2))
        async with (
            ScriptedServer(stream, refuse, good) as server,
            retrying_client(server, limits=limiter, timeouts=UNTIMED) as client,
            retrying_client(server, limits=limiter, timeouts=UNTIMED) as other,
        ):
            texts = client.stream(PROMPT, model=MODEL).text()
            assert await anext(texts) == "first"
            refused = asyncio.create_task(ask(client, "create", alone=False))
            await server.call(1)
            waiting = [asyncio.create_task(ask(c, kind, alone=False)) for c in (client, other) for kind in KINDS]
            await asyncio.sleep(1)
            assert counted(client) == counted(other) == (2, 10)
            pay.set()
            outcome = await refused
            assert isinstance(outcome.error, PaymentRequiredError)
            check_attempts(outcome, 1, "")
            later = [await ask(c, kind, alone=False) for c in (client, other) for kind in KINDS]
            for unsent in (*await asyncio.gather(*waiting), *later):
                assert isinstance(unsent.error, PaymentRequiredError)
                assert unsent.error.attempts == 0
                assert "this one was not sent" in str(unsent.error)
            assert len({str(unsent.error) for unsent in later}) == 1
            assert len({id(unsent.error) for unsent in later}) == 10  # each has a traceback of its own
            assert len(server.calls) == 2
            assert counted(other) == (1, 0)
            assert "402" in (other.limits.stopped or "")
            assert "stopped: 402" in repr(other.limits)
            running.set()
            assert [text async for text in texts] == [" and last"]

            # A minute later a call finds out whether the account has been topped up.
            await asyncio.sleep(61)
            assert (await ask(other, "create", alone=False)).text == TEXT
            assert (await ask(client, "create", alone=False)).text == TEXT
            assert client.limits.stopped is None

    virtual_time.run(main())


@leaves_nothing
async def test_an_answer_to_an_earlier_request_does_not_lift_the_stop() -> None:
    """A request that was sent before the 402 says nothing about the account as it is now."""
    answer = asyncio.Event()

    async def slow(call: Any) -> None:
        await answer.wait()
        await good(call)

    async with ScriptedServer(slow, answers(refusal(402)), good) as server, retrying_client(server) as client:
        client._limiter = clocked(Limits(concurrency=8))
        earlier = asyncio.create_task(do_create(client))
        await server.call(0)
        assert isinstance((await ask(client, "create", alone=False)).error, PaymentRequiredError)
        answer.set()
        assert await earlier == TEXT
        for kind in KINDS:
            assert (await ask(client, kind, alone=False)).error.attempts == 0
        assert len(server.calls) == 2


@leaves_nothing
@pytest.mark.parametrize("kind", KINDS)
async def test_a_402_within_a_response_stops_as_well(kind: str) -> None:
    """Under status 200, as an error object."""
    body = {"error": {"message": "pay", "code": 402}}

    async def script(call: Any) -> None:
        if not call.json.get("stream"):
            await call.send(response(body))
            return
        await call.head()
        await call.chunk(sse(body), DONE)
        await call.send(b"0\r\n\r\n")

    async with ScriptedServer(script, good) as server, retrying_client(server) as client:
        assert (await ask(client, kind, alone=False)).error.status_code == 402
        outcome = await ask(client, kind, alone=False)
        assert isinstance(outcome.error, PaymentRequiredError)
        assert outcome.error.attempts == 0
        assert len(server.calls) == 1


QUOTA = {"error": {"message": "You exceeded your current quota", "type": "t", "code": "insufficient_quota"}}


@leaves_nothing
@pytest.mark.parametrize("status", [429, 200])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_429_that_waiting_does_not_mend_is_like_a_402(kind: str, status: int) -> None:
    """An account without credit: one request, no retry, and everybody is refused; also inside of a good response."""

    async def script(call: Any) -> None:
        if status == 429 or not call.json.get("stream"):
            await call.send(response(QUOTA, status=status, extra=b"retry-after: 1\r\n"))
            return
        await call.head()
        await call.chunk(sse(QUOTA), DONE)
        await call.send(b"0\r\n\r\n")

    async with ScriptedServer(script) as server, retrying_client(server) as client:
        error = (await ask(client, kind, alone=False)).error
        assert error.attempts == len(server.calls) == 1
        assert "You exceeded your current quota" in str(error)
        if status == 429:
            assert isinstance(error, InsufficientQuotaError)
        later = (await ask(client, kind, alone=False)).error
        assert isinstance(later, PaymentRequiredError)
        assert (later.attempts, len(server.calls)) == (0, 1)
        assert client.limits.rate_limited == 0
        assert client.limits.stopped is not None
        client.limiter.resume()
        server._scripts = (good,)
        assert (await ask(client, kind, alone=False)).text == TEXT


@leaves_nothing
@pytest.mark.parametrize(("code", "status"), [(400, 400), (412, 412), (None, 429)])
@pytest.mark.parametrize("kind", ["create", "text"])
async def test_the_stop_names_the_status_of_the_error_within_a_response(
    code: int | None, status: int, kind: str
) -> None:
    """Which is 429 if it has none."""
    body = {"error": {"message": "no", "type": "insufficient_quota", "code": code}}
    async with ScriptedServer(answers(response(body))) as server, retrying_client(server) as client:
        await ask(client, kind, alone=False)
        assert (client.limits.stopped or "").startswith(f"{status}: the account's credit is used up")
        later = (await ask(client, "create", alone=False)).error
        assert isinstance(later, InsufficientQuotaError)
        assert (later.status_code, len(server.calls)) == (status, 1)


def test_a_402_refuses_calls_that_wait_for_another_attempt(longest_delays: None) -> None:
    """A call in its backoff, or in the pause of a 429, is not sent again; the error has the attempts made so far."""

    async def script(call: Any) -> None:
        await call.send(refusal(int(call.json["model"]), "retry-after: 20", "x-ratelimit-limit: 1000"))

    async def main() -> None:
        async with ScriptedServer(script) as server, retrying_client(server, timeouts=UNTIMED) as client:
            waiting = [
                asyncio.create_task(ask(client, kind, model=model, within=100, alone=False))
                for kind in KINDS
                for model in ("503", "429")
            ]
            await asyncio.sleep(10)
            sent = len(server.calls)
            assert isinstance((await ask(client, "create", model="402", alone=False)).error, PaymentRequiredError)
            for task in waiting:
                error = (await task).error
                assert isinstance(error, PaymentRequiredError)
                assert error.attempts == len(error.retries) <= 1
                assert (error.__cause__ is None) is (error.attempts == 0)
                sent -= error.attempts
            assert sent == 0
            assert len(server.calls) == 11  # a 503 and a 429 for each way of calling, and the 402

    virtual_time.run(main())
