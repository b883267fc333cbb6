"""What is sent again after an error, and what the run does while the service is down."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import types

import pytest

from support import virtual_time
from support.batches import BUSY, Files, Service, answer, connected, refused, request, run, text_of
from support.servers import KEY, response
from together_async import AsyncTogether, RateLimiter, Timeouts
from together_async.batch import outage, rounds, runner
from together_async.testing import Cut, EmulatorServer, InTurn, Status


async def test_errors_that_pass_are_asked_again_after_the_others(
    service: Service, client: AsyncTogether, files: Files
) -> None:
    """Every kind of transient error: the request ends with its completion."""
    files.write(12)
    trouble = {"r0": BUSY, "r1": b"", "r2": response({}, status=529), "r3": response({}, status=500)}

    def reply(prompt: str, times: int) -> bytes:
        name = prompt.removeprefix("prompt of ")
        return trouble[name] if name in trouble and times <= 2 else answer()

    service.reply = reply
    order = list[str]()
    summary = await run(client, files, concurrency=1, on_result=lambda record: order.append(record.custom_id))
    assert summary.ok
    assert set(order[:8]) == {f"r{number}" for number in range(4, 12)}
    assert set(service.asked.values()) == {1, 3}


async def test_streams_that_break_are_asked_again(no_leaks: None, files: Files) -> None:
    files.write(6)
    faults = InTurn(Cut(after_token=1), None, Status(500), None, Cut(after_token=2))
    async with EmulatorServer("Hello there, you!", faults=faults) as server, connected(server) as client:
        summary = await run(client, files, stream=True)
    assert summary.ok
    assert {text_of(result) for result in files.results.values()} == {"Hello there, you!"}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (refused(f"bad prompt of r1, key {KEY}"), "400"),
        (refused(status=403), "403"),
        (refused(status=404), "404"),
        (refused(status=422), "422"),
        (response({"hello": "world", "choices": 5}), "response_validation"),
        (response(b"<html>prompt of r1</html>", media_type="text/html"), "response_validation"),
    ],
    ids=["400", "403", "404", "422", "no completion", "HTML"],
)
async def test_errors_that_stay_become_lines(
    service: Service, client: AsyncTogether, files: Files, data: bytes, code: str
) -> None:
    """With a code and a text that has neither key nor prompt; the request is sent once."""
    files.write(3)
    service.reply = lambda prompt, times: data if "r1" in prompt else answer()
    summary = await run(client, files)
    assert (summary.done, summary.failed, summary.ok, summary.stopped) == (2, 1, False, None)
    error = files.results["r1"]["error"]
    assert error["code"] == code
    assert error["message"]
    assert KEY not in json.dumps(error)
    assert "prompt of r1" not in json.dumps(error)
    assert service.requests == 3


async def test_what_fails_again_and_again_becomes_a_line(service: Service, client: AsyncTogether, files: Files) -> None:
    """While the service answers other requests: it has been sent five times then, each time after the others."""
    files.write(4)
    service.reply = lambda prompt, times: BUSY if "r1" in prompt else BUSY if times == 1 else answer()
    others = iter(range(100))

    def reply(prompt: str, times: int) -> bytes:
        if "r1" in prompt:
            return BUSY
        return answer() if times > int(prompt[-1]) or next(others) > 50 else BUSY

    service.reply = reply
    files.write_lines(*(request(name) for name in ("r1", "x0", "x1", "x2", "x3", "x4")))
    summary = await run(client, files, concurrency=1)
    assert (summary.done, summary.failed, summary.stopped) == (5, 1, None)
    assert files.results["r1"]["error"]["code"] == "503"
    assert service.asked["prompt of r1"] >= 5


@pytest.mark.parametrize("status", [401, 402])
async def test_a_key_or_an_account_that_does_not_do_stops_it_at_once(
    service: Service, client: AsyncTogether, files: Files, status: int
) -> None:
    """Nothing becomes an error; with another key the same call continues."""
    files.write(50)
    service.reply = lambda prompt, times: answer() if prompt[-1] in "012" else refused(status=status)
    summary = await run(client, files, concurrency=2)
    assert summary.stopped is not None
    assert summary.stopped.startswith(str(status))
    assert (summary.failed, summary.ok) == (0, False)
    assert service.requests < 12
    assert all("response" in result for result in files.results.values())
    assert summary.remaining == 50 - len(files.results)
    service.reply = lambda prompt, times: answer()
    async with AsyncTogether("another-key", base_url=service.base_url) as other:
        assert (await run(other, files)).ok


QUOTA = {"error": {"message": "You exceeded your current quota", "type": "t", "code": "insufficient_quota"}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("data", "stopped"),
    [
        (response(QUOTA, status=429), "429: You exceeded"),
        (response(QUOTA), ""),
        (response({"error": {"message": "pay", "code": 402}}), ""),
    ],
    ids=["429", "quota in a 200", "402 in a 200"],
)
async def test_an_account_without_credit_stops_it_at_once(
    service: Service, client: AsyncTogether, files: Files, stream: bool, data: bytes, stopped: str
) -> None:
    """In whatever response it is said; no line is lost, and another client goes on once it has been paid."""
    files.write(50)
    service.reply = lambda prompt, times: answer() if prompt[-1] in "012" else data
    summary = await run(client, files, concurrency=2, stream=stream)
    assert summary.stopped is not None
    assert summary.stopped.startswith(stopped)
    assert (summary.failed, summary.ok) == (0, False)
    assert service.requests < 12
    assert all("response" in result for result in files.results.values())
    service.reply = lambda prompt, times: answer()
    async with connected(service) as other:
        assert (await run(other, files)).ok


@pytest.mark.parametrize(("count", "stream"), [(2, True), (30, False)])
def test_what_the_service_still_refuses_is_left_for_the_next_run(
    files: Files, monkeypatch: pytest.MonkeyPatch, count: int, stream: bool
) -> None:
    """A pause of an hour, or of a model that is refused for good: no 429 becomes a result, and no answer is lost."""

    async def main() -> None:
        _follow_the_loop(monkeypatch)
        limited = response({"error": {"message": "slow down"}}, status=429, extra=b"retry-after: 3000\r\n")
        async with Service() as service:
            service.reply = lambda prompt, times: limited if "r1" in prompt else answer()
            limiter = RateLimiter(clock=asyncio.get_running_loop().time)
            async with connected(service, limits=limiter) as client:
                summary = await run(client, files, concurrency=1, stream=stream)
                assert summary.stopped is not None
                assert "slow down" in summary.stopped or "pause" in summary.stopped
                assert summary.failed == 0
                assert all("response" in result for result in files.results.values())
                service.reply = lambda prompt, times: answer()
                await asyncio.sleep(1_000)
                assert (await run(client, files)).ok

    files.write(count)
    virtual_time.run(main())


async def test_a_client_without_a_key_asks_nothing(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOGETHER_API_KEY", raising=False)
    monkeypatch.delenv("TOGETHER_BASE_URL", raising=False)
    files.write(5)
    async with AsyncTogether() as client:
        summary = await run(client, files)
    assert summary.stopped is not None
    assert summary.stopped.startswith("no API key: set TOGETHER_API_KEY")
    assert (summary.failed, summary.remaining) == (0, 5)


async def test_a_client_that_is_closed_meanwhile_ends_it(service: Service, files: Files) -> None:
    """Nothing becomes an error, and another client continues."""
    files.write(20)
    service.gate = asyncio.Event()
    client = connected(service)
    task = asyncio.create_task(run(client, files, concurrency=4))
    await service.busy(4)
    await client.aclose()
    summary = await task
    assert summary.stopped is not None
    assert "closed" in summary.stopped
    assert (summary.failed, files.results) == (0, {})
    service.gate.set()
    async with connected(service) as other:
        assert (await run(other, files)).ok


async def test_an_error_within_a_success_counts_as_what_it_is(
    service: Service, client: AsyncTogether, files: Files
) -> None:
    files.write(2)
    busy = response({"error": {"message": "overloaded", "code": 503}})
    service.reply = lambda prompt, times: busy if times == 1 and "r0" in prompt else answer()
    summary = await run(client, files)
    assert (summary.done, service.requests) == (2, 3)


# ------------------------------------------------------------------------------------------------ an input that changes


async def test_an_input_that_goes_away_is_one_error(service: Service, client: AsyncTogether, files: Files) -> None:
    """Between two rounds; the results so far are in the output."""
    files.write(5)

    def reply(prompt: str, times: int) -> bytes:
        files.input.unlink(missing_ok=True)
        return BUSY if "r0" in prompt else answer()

    service.reply = reply
    with pytest.raises(FileNotFoundError, match=r"in\.jsonl"):
        await run(client, files)
    assert files.results.keys() == {"r1", "r2", "r3", "r4"}


@pytest.mark.parametrize("keep_going", [False, True])
async def test_an_input_that_is_changed_meanwhile_makes_no_doubles(
    service: Service, client: AsyncTogether, files: Files, *, keep_going: bool
) -> None:
    """Lines that moved between two rounds: no name gets two results."""
    files.write(6)

    def reply(prompt: str, times: int) -> bytes:
        if service.requests == 1:
            files.write_lines(request("moved"), *(request(f"r{number}") for number in range(6)))
        return BUSY if prompt[-1] in "024" and times == 1 else answer()

    service.reply = reply
    with contextlib.suppress(OSError, ValueError):
        await run(client, files, keep_going=keep_going)
    assert files.results.keys() <= {"moved", *(f"r{number}" for number in range(6))}
    with contextlib.suppress(OSError, ValueError):
        await run(client, files)
    assert files.results.keys() == {"moved", *(f"r{number}" for number in range(6))}


async def test_an_input_that_is_changed_while_it_is_read_makes_no_doubles(
    service: Service, client: AsyncTogether, files: Files
) -> None:
    """The input is read as it is needed, so lines that were not read ahead have moved."""
    lines = [request(f"r{number}", user="x" * 8_000) for number in range(300)]
    files.write_lines(*lines)

    def reply(prompt: str, times: int) -> bytes:
        if service.requests == 10:
            files.write_lines(request("moved", user="x" * 8_000), *lines)
        return answer()

    service.reply = reply
    with pytest.raises(OSError, match="changed while"):
        await run(client, files, concurrency=2)
    assert files.results.keys() <= {f"r{number}" for number in range(300)}
    assert (await run(client, files)).ok
    assert max(service.asked.values()) == 1


# ------------------------------------------------------------------------------ a service that is down, in virtual time


def away_between(service: Service, begin: int, seconds: float, data: bytes | None = b"") -> None:
    """Takes the service down for some seconds after `begin` answers."""
    answered, until = 0, math.inf

    def reply(prompt: str, times: int) -> bytes | None:
        nonlocal answered, until
        now = asyncio.get_running_loop().time()
        if answered == begin and until == math.inf:
            until = now + seconds
        if answered >= begin and now < until:
            return data
        answered += 1
        return answer()

    service.reply = reply


@pytest.mark.parametrize(
    ("count", "begin", "seconds", "data"),
    [(60, 20, 300, b""), (13, 1, 600, BUSY), (3, 1, 90, b""), (2, 1, 200, BUSY)],
    ids=["60, reset", "13, 503", "3, reset", "2, 503"],
)
def test_a_service_that_comes_back_has_lost_nothing(
    files: Files, monkeypatch: pytest.MonkeyPatch, count: int, begin: int, seconds: float, data: bytes
) -> None:
    """Down for minutes: no result is an error; meanwhile one request at a time is tried, less and less often."""

    async def main() -> None:
        _follow_the_loop(monkeypatch)
        async with Service() as service, connected(service) as client:
            away_between(service, begin, seconds, data)
            summary = await run(client, files, concurrency=8)
            assert (summary.done, summary.failed, summary.stopped) == (count, 0, None)
            assert service.requests < count + 30 + 2 * seconds / 60 + count * (count < 10) * 12

    files.write(count)
    virtual_time.run(main())
    assert all("response" in result for result in files.results.values())


def _follow_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the modules' clocks with the loop's."""
    loop = asyncio.get_running_loop()
    clock = types.SimpleNamespace(monotonic=loop.time, time=lambda: 1.7e9 + loop.time())
    for module in (rounds, runner):
        monkeypatch.setattr(module, "time", clock)


@pytest.mark.parametrize("data", [b"", None, BUSY], ids=["reset", "silence", "503"])
@pytest.mark.parametrize("count", [1, 3, 30])
def test_a_service_that_never_answers_ends_it(
    files: Files, monkeypatch: pytest.MonkeyPatch, data: bytes | None, count: int
) -> None:
    """The summary says why; nothing has failed, and a later run sends all requests."""

    async def main() -> None:
        _follow_the_loop(monkeypatch)
        async with Service(lambda prompt, times: data) as service, connected(service) as client:
            summary = await run(client, files, concurrency=8, timeouts=Timeouts(first_token=20))
            assert summary.stopped is not None
            assert "has not answered once" in summary.stopped
            assert (summary.done, summary.failed, summary.remaining) == (0, 0, count)
            assert service.requests <= count * 6 + 10
            service.reply = lambda prompt, times: answer()
            assert (await run(client, files)).ok

    files.write(count)
    virtual_time.run(main())


def test_a_service_that_stays_away_ends_it(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an hour (here ten minutes) the summary says why; completions stay, and nothing has failed."""
    monkeypatch.setattr(outage, "MOST_DOWN_S", 600)

    async def main() -> None:
        _follow_the_loop(monkeypatch)
        async with Service() as service, connected(service) as client:
            away_between(service, 5, 1e9)
            began = asyncio.get_running_loop().time()
            summary = await run(client, files, concurrency=4)
            assert summary.stopped is not None
            assert "has not answered for 1" in summary.stopped
            assert (summary.done, summary.failed, summary.remaining) == (5, 0, 35)
            assert 600 < asyncio.get_running_loop().time() - began < 680
            assert service.requests < 100

    files.write(40)
    virtual_time.run(main())


def test_refusals_are_answers_of_the_service(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that refused fifty requests and is down then has answered."""

    async def main() -> None:
        _follow_the_loop(monkeypatch)
        async with Service() as service, connected(service) as client:
            until = asyncio.get_running_loop().time() + 600

            def reply(prompt: str, times: int) -> bytes:
                if service.requests <= 50:
                    return refused()
                return answer() if asyncio.get_running_loop().time() > until else BUSY

            service.reply = reply
            summary = await run(client, files, concurrency=4)
            assert (summary.done + summary.failed, summary.failed, summary.stopped) == (80, 50, None)

    files.write(80)
    virtual_time.run(main())
