"""Batches that can't be run: invalid input, an unusable output, a full disk."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from support.batches import Files, Service, files_in, request, run
from together_async import AsyncTogether
from together_async.batch import Batch, BatchInputError, BatchOptions, OutputError, writer
from together_async.batch import output as output_module


async def test_what_can_not_be_asked_is_named_before_anything_is_sent(
    service: Service, client: AsyncTogether, files: Files
) -> None:
    files.write_lines(request("a"), "garbage", request("b", n=0), request("a"), request("c", model=None))
    with pytest.raises(BatchInputError) as caught:
        await run(client, files)
    assert [error.line for error in caught.value.errors] == [2, 3, 4, 5]
    assert caught.value.count == 4
    assert "in.jsonl line 3: body.n: got 0" in str(caught.value)
    assert not service.calls
    assert not files.output.exists() or files.output.read_bytes() == b""


async def test_going_on_puts_them_into_the_output(service: Service, client: AsyncTogether, files: Files) -> None:
    """As errors, once; a corrected line is sent."""
    files.write_lines(request("a"), "garbage", request("b", n=0), request("a"), request("c"))
    for _ in range(2):
        summary = await run(client, files, keep_going=True)
        assert (summary.total, summary.done, summary.failed) == (5, 2, 3)
    errors = {name: result["error"] for name, result in files.results.items() if "error" in result}
    assert len(errors) == 3
    assert {error["code"] for error in errors.values()} == {"invalid_request"}
    assert errors["b"]["message"].startswith("line 3: body.n: got 0")
    assert service.requests == 2
    files.write_lines(request("a"), request("new"), request("b"), request("c"))
    summary = await run(client, files, keep_going=True)
    assert (summary.done, summary.failed, service.requests) == (4, 0, 4)
    assert "response" in files.results["b"]


@pytest.mark.parametrize(
    "content",
    [request("a") + "\n" + request("b") + "\n", request("a"), "Dear diary,\n", '{"x": 1}\n', "id,text\n1,a\n"],
    ids=["an input", "one line", "a text", "JSON lines", "CSV"],
)
async def test_another_file_of_the_users_is_left_as_it_is(
    service: Service, client: AsyncTogether, files: Files, tmp_path: Path, content: str
) -> None:
    """The two files in the wrong order, or a name already in use: refused, and not a byte is changed."""
    files.write(2)
    files.output.write_text(content)
    for options in ({}, {"retry_errors": True, "keep_going": True}):
        with pytest.raises(OutputError, match=r"out\.jsonl.*name another output"):
            await run(client, files, **options)
    assert files.output.read_text() == content
    assert files_in(tmp_path) == ["in.jsonl", "out.jsonl"]
    assert not service.calls


@pytest.mark.parametrize("output", ["nowhere/out.jsonl", ".", "/dev/full", "/dev/null"])
async def test_what_can_not_be_an_output_is_one_clear_error(client: AsyncTogether, files: Files, output: str) -> None:
    files.write(2)
    with pytest.raises((OutputError, ValueError), match=r"nowhere|folder|director|regular|name of a file"):
        await client.run_batch(files.input, files.input.parent / output, stream=False)


async def test_an_input_that_is_not_there_leaves_nothing_behind(
    client: AsyncTogether, files: Files, tmp_path: Path
) -> None:
    for output in (files.output, files.input):
        with pytest.raises((FileNotFoundError, ValueError), match=r"in\.jsonl"):
            await client.run_batch(files.input, output)
    assert files_in(tmp_path) == []


async def test_a_pipe_is_no_input(client: AsyncTogether, files: Files) -> None:
    """It can be read only once; the batch does not wait for it."""
    os.mkfifo(files.input)
    with pytest.raises(OSError, match="regular file"):
        await run(client, files)


async def test_an_output_in_use_is_one_clear_error(service: Service, client: AsyncTogether, files: Files) -> None:
    """At once, while the first run continues."""
    files.write(3)
    service.gate = asyncio.Event()
    first = asyncio.create_task(run(client, files))
    await service.busy(1)
    with pytest.raises(OutputError, match="is in use by another run"):
        await run(client, files)
    service.gate.set()
    assert (await first).ok
    assert service.requests == 3


async def test_a_batch_is_run_once(client: AsyncTogether, files: Files) -> None:
    files.write(1)
    batch = Batch(client, files.input, files.output, BatchOptions(stream=False))
    await batch.run()
    with pytest.raises(RuntimeError, match="run once"):
        await batch.run()


# ------------------------------------------------------------------------------------------------------------- the disk


@pytest.mark.parametrize("way", ["pwrite", "fsync"])
async def test_a_full_disk_is_one_error_and_loses_nothing(
    service: Service, client: AsyncTogether, files: Files, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """What was reported is in the file, which is whole; with room again the same call finishes the batch."""
    files.write(60)
    reported, real = list[str](), getattr(os, way)

    def call(fd: int, *args: Any) -> Any:
        if os.fstat(fd).st_size > 2_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, *args)

    with monkeypatch.context() as patched:
        patched.setattr(writer, "PACE_S", 0)
        patched.setattr(output_module.os, way, call)
        with pytest.raises(OutputError, match=r"out\.jsonl can't be written: No space left on device; make room"):
            await run(client, files, concurrency=1, on_result=lambda record: reported.append(record.custom_id))
    assert set(reported) <= files.results.keys()
    assert len(files.results) < 60
    summary = await run(client, files)
    assert summary.ok
    assert set(reported) <= files.results.keys()
    assert all(service.asked[f"prompt of {name}"] == 1 for name in reported)


async def test_a_slow_disk_slows_the_requests(
    service: Service, client: AsyncTogether, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results that wait for the disk are bounded: no more requests are sent until there is room."""
    files.write(60)
    gate = threading.Event()
    with monkeypatch.context() as patched:
        patched.setattr(writer, "MOST_WAITING", 5)
        patched.setattr(output_module.os, "fsync", lambda fd: gate.wait(10))
        files.output.touch()
        task = asyncio.create_task(run(client, files, concurrency=4))
        await service.busy(9, ever=True)
        await asyncio.sleep(0.05)
        assert service.requests <= 5 + 2 * 4
        gate.set()
        assert (await task).ok


async def test_a_disk_that_is_full_when_the_output_is_put_in_order_changes_nothing(
    service: Service, client: AsyncTogether, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write(3)
    await run(client, files)
    before = files.output.read_bytes()
    files.write(3, max_tokens=4)

    def fsync(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    real = output_module.OutputFile.compact

    def compact(*args: Any, **options: Any) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(output_module.os, "fsync", fsync)
            real(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(output_module.OutputFile, "compact", compact)
        with pytest.raises(OutputError, match="can't be put in order: No space left"):
            await run(client, files)
    assert files.output.read_bytes() == before
    assert service.requests == 3
    assert (await run(client, files)).ok
