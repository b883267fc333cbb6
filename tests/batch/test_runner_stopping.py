"""Batches that are stopped before their end: drained, cancelled, by a deadline, by an error of the caller."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from support import virtual_time
from support.batches import BUSY, Files, Service, answer, connected, run
from support.servers import response, whole
from together_async import AsyncTogether, Limits, Retry
from together_async.batch import Batch, BatchOptions, runner, writer
from together_async.batch.record import Record


async def _when(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - nothing signals this state
            await asyncio.sleep(0.001)


async def test_draining_before_it_runs_asks_nothing(service: Service, client: AsyncTogether, files: Files) -> None:
    files.write(5)
    batch = Batch(client, files.input, files.output, BatchOptions(stream=False))
    batch.drain("not today")
    summary = await batch.run()
    assert (summary.stopped, summary.total, summary.done, summary.remaining, summary.ok) == (
        "not today",
        5,
        0,
        5,
        False,
    )
    assert not service.requests


async def test_draining_while_the_input_is_read_ends_it(
    service: Service, client: AsyncTogether, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The requests read so far are not reported as all."""
    files.write(3_000)
    done = [
        json.dumps({"custom_id": f"r{number}", "response": {"status_code": 200, "body": whole()}}) + "\n"
        for number in range(3_000)
    ]
    files.output.write_text("".join(done[:2_500]))
    before = files.output.read_bytes()
    batch = Batch(client, files.input, files.output, BatchOptions(stream=False))
    real = runner.make_plan

    def make_plan(*args: Any, **options: Any) -> Any:
        batch.drain("while reading")
        return real(*args, **options)

    monkeypatch.setattr(runner, "make_plan", make_plan)
    summary = await batch.run()
    assert summary.stopped == "while reading"
    assert not summary.ok
    assert summary.strangers == 0
    assert not service.requests
    assert files.output.read_bytes() == before


async def test_draining_when_the_last_are_under_way_stops_nothing(
    service: Service, client: AsyncTogether, files: Files
) -> None:
    """All have an answer, so there is nothing to resume, and the summary does not say that it was stopped."""
    files.write(4)
    service.gate = asyncio.Event()
    batch = Batch(client, files.input, files.output, BatchOptions(stream=False, concurrency=4))
    task = asyncio.create_task(batch.run())
    await service.busy(4)
    batch.drain("enough")
    service.gate.set()
    summary = await task
    assert (summary.done, summary.remaining, summary.stopped, summary.ok) == (4, 0, None, True)


async def test_draining_lets_come_what_is_under_way(service: Service, client: AsyncTogether, files: Files) -> None:
    files.write(20)
    service.gate = asyncio.Event()
    batch = Batch(client, files.input, files.output, BatchOptions(stream=False, concurrency=4))
    task = asyncio.create_task(batch.run())
    await service.busy(4)
    batch.drain("enough")
    batch.drain("twice")
    await asyncio.sleep(0.01)
    assert not task.done()
    service.gate.set()
    summary = await task
    assert (summary.stopped, summary.done, summary.remaining) == ("enough", 4, 16)
    assert len(files.results) == 4
    assert (await run(client, files)).ok
    assert service.requests == 20


@pytest.mark.parametrize("turns", [*range(12), 20, 40, 80, 160, 320, 640])
async def test_draining_at_any_moment_ends_it(
    service: Service, client: AsyncTogether, files: Files, turns: int
) -> None:
    """Without an error; no result is lost, and no request is sent twice."""
    files.write(20)
    batch = Batch(client, files.input, files.output, BatchOptions(stream=False, concurrency=3))
    task = asyncio.create_task(batch.run())
    for _ in range(turns):
        await asyncio.sleep(0)
    batch.drain("now")
    summary = await task
    assert summary.done == len(files.results) == service.requests
    assert (await run(client, files)).ok
    assert service.requests == 20


async def test_draining_in_a_turn_of_the_map_ends_it(service: Service, client: AsyncTogether, files: Files) -> None:
    """At each of the first turns after the map has begun, when its tasks exist and have not begun."""
    files.write(20)
    for turns in range(8):
        files.output.unlink(missing_ok=True)
        service.asked.clear()
        batch = Batch(client, files.input, files.output, BatchOptions(stream=False, concurrency=3))
        task = asyncio.create_task(batch.run())
        while batch._results is None and not task.done():  # noqa: ASYNC110 - it must be seen in the same turn
            await asyncio.sleep(0)
        for _ in range(turns):
            await asyncio.sleep(0)
        batch.drain("now")
        summary = await task
        assert summary.done == len(files.results) == service.requests


@pytest.mark.parametrize(
    ("options", "data"),
    [
        ({"limits": Limits(requests_per_minute=6)}, answer()),
        ({"retry": Retry()}, response({}, status=429, extra=b"retry-after: 600\r\n")),
        ({"retry": Retry(max_retry_after=900)}, response({}, status=500, extra=b"retry-after: 600\r\n")),
        ({}, BUSY),
    ],
    ids=["limits", "retry-after of a 429", "retry-after of a 500", "away"],
)
def test_draining_does_not_wait_for_what_waits(
    files: Files, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], data: bytes
) -> None:
    """With requests that wait for limits, a retry or the service, the run ends at once, and nothing has failed."""

    async def main() -> None:
        async with Service(lambda prompt, times: data) as service, connected(service, **options) as client:
            batch = Batch(client, files.input, files.output, BatchOptions(stream=False, concurrency=20))
            task = asyncio.create_task(batch.run())
            loop = asyncio.get_running_loop()
            await service.busy(1, ever=True)
            await asyncio.sleep(5)
            began, asked = loop.time(), service.requests
            batch.drain("now")
            summary = await task
            assert service.requests == asked, "a call that waited was sent after all"
            assert loop.time() - began < 20  # threads take real time, in which this clock may jump
            assert summary.stopped == "now"
            assert summary.failed == 0
            assert summary.done == len(files.results)

    files.write(30)
    virtual_time.run(main())


async def test_a_cancelled_run_leaves_a_whole_file_and_no_lock(
    service: Service, client: AsyncTogether, files: Files
) -> None:
    """After any number of turns, once or twice: what was reported is there; no lock and no task is left."""
    turns = [*range(10), *(round(1.25**power) for power in range(11, 40))]
    finished = 0
    for number, count in enumerate(turns):
        files.write(12)
        files.output.unlink(missing_ok=True)
        reported = list[str]()
        task = asyncio.create_task(
            run(client, files, concurrency=3, on_result=lambda record: reported.append(record.custom_id))  # noqa: B023 - awaited in this iteration
        )
        for _ in range(count):
            await asyncio.sleep(0)
        task.cancel()
        if number % 2:
            await asyncio.sleep(0)
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
            finished += 1
        if files.output.exists():
            assert set(reported) == files.results.keys()
        assert len(asyncio.all_tasks()) == 1 + sum(not each.done() for each in service._tasks)
        assert (await run(client, files)).ok
    assert finished < len(turns)


async def test_what_came_before_a_cancellation_is_in_the_file(
    service: Service, client: AsyncTogether, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also results that still wait for the disk."""
    monkeypatch.setattr(writer, "PACE_S", 3_600)
    files.write(10)
    service.reply = lambda prompt, times: None if "r9" in prompt else answer()
    batch = Batch(client, files.input, files.output, BatchOptions(stream=False, concurrency=10))
    task = asyncio.create_task(batch.run())
    await _when(lambda: batch.progress.tokens == 9 * 15)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(files.results) == 9


async def test_an_error_of_the_callers_comes_out_alone(service: Service, client: AsyncTogether, files: Files) -> None:
    """Once the requests in flight have ended; their results are on disk, and a later run continues."""
    files.write(10)

    def on_result(record: Record) -> None:
        raise KeyError("mine")

    for concurrency in (1, 10):
        files.output.unlink(missing_ok=True)
        service.asked.clear()
        with pytest.raises(KeyError, match="mine"):
            await run(client, files, concurrency=concurrency, on_result=on_result)
        assert (await run(client, files)).ok
        assert service.requests == 10


async def test_a_deadline_ends_it(service: Service, client: AsyncTogether, files: Files) -> None:
    """Nothing begins after it, and the request in flight ends normally: the first one, for which others wait."""
    files.write(500)
    service.gate = asyncio.Event()
    asyncio.get_running_loop().call_later(1.5, service.gate.set)  # long after it, on a busy machine too
    summary = await run(client, files, concurrency=2, deadline=0.05)
    assert (summary.stopped, summary.done, service.requests) == ("the deadline is reached", 1, 1)


@pytest.mark.parametrize("deadline", [1_000.0, dt.timedelta(minutes=30)], ids=str)
async def test_a_clock_that_is_set_ends_no_duration(
    service: Service, client: AsyncTogether, files: Files, monkeypatch: pytest.MonkeyPatch, deadline: Any
) -> None:
    """A deadline in seconds takes no notice of a time of day that leaps by an hour, again and again."""
    files.write(3)
    leaps = itertools.count(1)
    monkeypatch.setattr(time, "time", lambda: 1_767_225_600.0 + 3_600.0 * next(leaps))
    assert (await run(client, files, deadline=deadline)).ok
    assert next(leaps) > 2


@pytest.mark.parametrize(
    "deadline",
    [dt.datetime(2001, 1, 1, tzinfo=dt.UTC), dt.datetime(1970, 1, 2), dt.timedelta(microseconds=1)],  # noqa: DTZ001 - a naive time is allowed
    ids=str,
)
async def test_a_deadline_that_has_passed_asks_next_to_nothing(
    service: Service, client: AsyncTogether, files: Files, deadline: Any
) -> None:
    files.write(20)
    summary = await run(client, files, concurrency=2, deadline=deadline)
    assert summary.stopped == "the deadline is reached"
    assert service.requests == summary.done == len(files.results) <= 2
    summary = await run(client, files, deadline=dt.timedelta(days=1))
    assert summary.ok
