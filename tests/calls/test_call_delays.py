"""`Call`: how long a call waits before another attempt: the server's wait, backoff, and the deadline."""

import asyncio
import email.utils
import itertools
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from support import virtual_time
from support.calls import UNTIMED, check_attempts, do_create, good, notes, reasons, refusal, retrying_client
from support.servers import ScriptedServer, answers, delta, response, sse, whole
from support.survival import KINDS, MODEL, PROMPT, TEXT, ask, case
from together_async import APITimeoutError, Limits, RateLimitError, Retry, StreamTimeoutError, Timeouts, TogetherError


class Timed(ScriptedServer):
    """A scripted server that records when requests came, on the event loop's clock."""

    def __init__(self, *scripts: Any) -> None:
        self.at: list[float] = []
        super().__init__(*(self._noting(script) for script in scripts))

    def _noting(self, script: Any) -> Any:
        async def noting(call: Any) -> None:
            self.at.append(asyncio.get_running_loop().time())
            await script(call)

        return noting

    @property
    def gaps(self) -> list[float]:
        """Seconds between the requests."""
        return [after - before for before, after in itertools.pairwise(self.at)]


WAITS: dict[str, tuple[tuple[int, ...], Callable[[], str], float]] = {
    "seconds": ((429, 500, 503, 408), lambda: "retry-after: 20", 20),
    "fractions": ((429, 503), lambda: "retry-after: 7.25", 7.25),
    "milliseconds": ((429, 503), lambda: "retry-after-ms: 7250", 7.25),
    "date": ((429, 503), lambda: f"retry-after: {email.utils.formatdate(time.time() + 30, usegmt=True)}", 28.5),
    "reset": ((429,), lambda: "x-ratelimit-reset: 7.25", 7.25),
}


@pytest.mark.parametrize(("name", "status"), [(name, status) for name in WAITS for status in WAITS[name][0]])
def test_never_earlier_than_reported(name: str, status: int) -> None:
    """In whatever header the server reports it, and however the call is made; nor much later."""
    _, header, retry_after_s = WAITS[name]

    async def main() -> None:
        for kind in ("create", "text"):
            first = answers(refusal(status, header(), *(("x-ratelimit-limit: 1000",) if status == 429 else ())))
            async with (
                Timed(first, good) as server,
                retrying_client(server, timeouts=UNTIMED) as client,
            ):
                outcome = await ask(client, kind, within=100, alone=False)
                assert outcome.text == TEXT
                assert retry_after_s <= server.gaps[0] < retry_after_s + 2
                (retried,) = outcome.completion.retries
                assert retry_after_s <= retried.waited_s < retry_after_s + 2

    virtual_time.run(main())


@pytest.mark.parametrize("header", ["x-ratelimit-reset: 50", "retry-after: soon\r\nx-ratelimit-reset: 50"])
@pytest.mark.parametrize("status", [408, 500, 503])
def test_a_reset_of_another_status_delays_nothing(status: int, header: str) -> None:
    """Every response has `x-ratelimit-reset`; only on a 429 it is a time to wait."""

    async def main() -> None:
        async with (
            Timed(lambda call: call.send(refusal(status, header)), good) as server,
            retrying_client(server, timeouts=UNTIMED) as client,
        ):
            assert (await ask(client, "create", within=100, alone=False)).text == TEXT
            assert server.gaps[0] < 5

    virtual_time.run(main())


@pytest.mark.parametrize("kind", ["create", "text"])
@pytest.mark.parametrize("code", [429, 503])
def test_the_wait_reported_with_an_error_under_status_200_is_kept(code: int, kind: str) -> None:
    """The wait is in the head of the response that holds the error."""

    async def main() -> None:
        error = response({"error": {"message": "no", "code": code}}, extra=b"retry-after: 20\r\n")
        async with Timed(answers(error), good) as server, retrying_client(server, timeouts=UNTIMED) as client:
            assert (await ask(client, kind, within=100, alone=False)).text == TEXT
            assert 20 <= server.gaps[0] < 24

    virtual_time.run(main())


def test_one_header_stops_a_model_neither_for_ever_nor_for_long() -> None:
    """No service means a pause of a day, or a rate of one request a day."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for header in ("retry-after: 86400", "retry-after: 23h"):
            async with (
                ScriptedServer(answers(refusal(429, header)), good) as server,
                retrying_client(server, timeouts=UNTIMED) as client,
            ):
                assert (await ask(client, "create", alone=False)).error.attempts == 1
                for kind in KINDS:
                    error = (await ask(client, kind, alone=False)).error
                    assert isinstance(error, RateLimitError)
                    assert error.attempts == 0
                assert "paused for" in repr(client.limits)
                assert len(server.calls) == 1
                await asyncio.sleep(1000)
                assert (await ask(client, "text", alone=False)).text == TEXT
        slow = answers(response(whole(TEXT), extra=b"x-ratelimit-limit: 0.00001\r\nx-ratelimit-remaining: 0\r\n"))
        async with ScriptedServer(slow) as server, retrying_client(server, timeouts=UNTIMED) as client:
            began = loop.time()
            assert [await do_create(client) for _ in range(3)] == [TEXT] * 3
            assert loop.time() - began < 30

    virtual_time.run(main())


@pytest.mark.parametrize("wait", ["1e300", "-5", "Fri, 31 Dec 9999 23:59:59 GMT", "Thu, 01 Jan 1970 00:00:00 GMT"])
@pytest.mark.parametrize("status", [429, 503])
def test_a_wait_without_sense_is_as_none(status: int, wait: str) -> None:
    """The client waits as long as it does of itself."""

    async def main() -> None:
        async with (
            Timed(answers(refusal(status, f"retry-after: {wait}")), good) as server,
            retrying_client(server, timeouts=UNTIMED) as client,
        ):
            assert (await ask(client, "create", within=100, alone=False)).text == TEXT
            assert server.gaps[0] < 5

    virtual_time.run(main())


@pytest.mark.parametrize("status", [429, 503])
def test_a_long_wait_is_waited_for_by_a_call_that_allows_it(status: int) -> None:
    """A call that allows a long wait keeps to the one that the server reported."""

    async def main() -> None:
        rules = Retry(base_delay=0.001, max_retry_after=5000)
        headers = ("retry-after: 4000", "x-ratelimit-limit: 1000")
        async with (
            Timed(answers(refusal(status, *headers)), good) as server,
            retrying_client(server, retry=rules, timeouts=UNTIMED) as client,
        ):
            assert (await ask(client, "create", within=9000, alone=False)).text == TEXT
            assert 4000 <= server.gaps[0] < 4005

    virtual_time.run(main())


@pytest.mark.parametrize("status", [429, 503])
def test_a_reported_wait_longer_than_the_cap_ends_the_call_at_once(status: int) -> None:
    """A call does not sleep for minutes unless it allows that; a wait as long as the cap is kept."""

    async def main() -> None:
        rules = Retry(base_delay=0.001, max_retry_after=40)
        for wait, requests in (("40", 2), ("40.01", 1), ("86400", 1)):
            for kind in KINDS:
                headers = (f"retry-after: {wait}", "x-ratelimit-limit: 1000")
                async with (
                    Timed(lambda call, headers=headers: call.send(refusal(status, *headers)), good) as server,
                    retrying_client(server, retry=rules, timeouts=UNTIMED) as client,
                ):
                    began = asyncio.get_running_loop().time()
                    outcome = await ask(client, kind, within=100, alone=False)
                    elapsed_s = asyncio.get_running_loop().time() - began
                    assert len(server.calls) == requests
                    if requests == 1:
                        assert outcome.error.retry_after == float(wait)
                        assert elapsed_s < 5
                        check_attempts(outcome, 1, "")
                    else:
                        assert elapsed_s >= 40

    virtual_time.run(main())


def test_delays_grow_to_their_cap(longest_delays: None) -> None:
    """Twice as long each time, from `base_delay` to `max_delay`; a wait that the server reports comes on top."""

    async def main() -> None:
        rules = Retry(attempts=6, base_delay=10, max_delay=35)
        async with (
            Timed(answers(refusal(503))) as server,
            retrying_client(server, retry=rules, timeouts=UNTIMED) as client,
        ):
            outcome = await ask(client, "create", within=500)
            assert outcome.error.attempts == 6
            assert server.gaps == pytest.approx([10, 20, 35, 35, 35], abs=0.5)
            assert [retried.waited_s for retried in outcome.error.retries] == pytest.approx(server.gaps, abs=0.5)
            (note,) = notes(outcome.error)
            assert re.sub(r"\.\d", "", note) == "6 attempts (503 x 5, waited 135 s); Retry.attempts allows no more"

    virtual_time.run(main())


def test_delays_are_anything_from_nothing_to_the_most() -> None:
    """Full jitter: a hundred calls that failed together do not come back together."""

    async def main() -> None:
        rules = Retry(attempts=2, budget=1, base_delay=1000, max_delay=1000)
        async with (
            ScriptedServer(answers(refusal(503))) as server,
            retrying_client(server, retry=rules, timeouts=UNTIMED, limits=Limits(concurrency=100)) as client,
        ):
            calls = (client.create(PROMPT, model=MODEL) for _ in range(100))
            errors = await asyncio.gather(*calls, return_exceptions=True)
        waited = [error.retries[0].waited_s for error in errors if isinstance(error, TogetherError)]
        assert len(waited) == 100
        assert all(0 <= seconds < 1005 for seconds in waited)
        assert min(waited) < 250 < 400 < sum(waited) / 100 < 600 < 750 < max(waited)

    virtual_time.run(main())


def test_the_deadline_over_all_attempts_ends_a_call_at_once(longest_delays: None) -> None:
    """No call sleeps past `Timeouts.total`: the call ends with the error of the last attempt."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        timeouts = Timeouts(connect=None, total=10)
        # Delays of 1, 2 and 4 s fit into 10 s, one of 8 s does not; nor does a reported wait.
        for status, extra, base_delay, ends_at, requests in (
            (503, "x: y", 1.0, 7.0, 4),
            (503, "retry-after: 12", 0.001, 0.0, 1),
            (429, "retry-after: 12", 0.001, 0.0, 1),
        ):
            for kind in KINDS:
                headers = (extra, "x-ratelimit-limit: 1000") if status == 429 else (extra,)
                rules = Retry(attempts=9, base_delay=base_delay)
                with case(status, extra, kind):
                    async with (
                        ScriptedServer(answers(refusal(status, *headers))) as server,
                        retrying_client(server, retry=rules, timeouts=timeouts) as client,
                    ):
                        began = loop.time()
                        outcome = await ask(client, kind, within=100, alone=False)
                        assert outcome.error.status_code == status
                        assert loop.time() - began == pytest.approx(ends_at, abs=0.5)
                        assert outcome.error.attempts == len(server.calls) == requests
                        said = [str(outcome.error)] if status == 429 else notes(outcome.error)
                        assert "Timeouts.total leaves no time for " in said[0]

    virtual_time.run(main())


def test_the_deadline_holds_in_the_queue_and_in_the_stream(longest_delays: None) -> None:
    """`Timeouts.total` runs from the call on: the stream has only what the queue and the attempts left of it."""

    async def slow(call: Any) -> None:
        await call.head()
        for _ in range(100):
            await call.chunk(sse(delta("tick ")))
            await asyncio.sleep(1)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        timeouts = Timeouts(connect=None, first_token=None, idle=None, total=20)
        for status in (503, 429):
            refused = answers(refusal(status, "retry-after: 6", "x-ratelimit-limit: 1000"))
            async with (
                ScriptedServer(refused, slow) as server,
                retrying_client(server, limits=Limits(concurrency=1)) as client,
            ):
                place = await client._limiter.acquire(MODEL)
                loop.call_later(5, client._limiter.driver.release, place)
                began = loop.time()
                outcome = await ask(client, "text", within=100, alone=False, timeouts=timeouts)
                assert loop.time() - began == pytest.approx(20, abs=0.5)
                assert isinstance(outcome.error, StreamTimeoutError)
                assert outcome.error.phase == "total"
                assert 8 <= len(outcome.delivered) <= 10
                assert (outcome.error.attempts, reasons(outcome.error)) == (2, (str(status),))

                place = await client._limiter.acquire(MODEL)
                began = loop.time()
                outcome = await ask(client, "create", within=100, alone=False, timeouts=timeouts)
                client._limiter.driver.release(place)
                assert loop.time() - began == pytest.approx(20, abs=0.5)
                assert isinstance(outcome.error, APITimeoutError)
                assert (outcome.error.phase, outcome.error.attempts) == ("total", 0)

    virtual_time.run(main())
