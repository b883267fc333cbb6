"""Results on their way to the disk: each is reported once it is there, and the event loop does not wait."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import resource
import signal
import threading
from pathlib import Path

import pytest

from support.batch_output import answer, descriptors, names_in, opened, writing
from together_async.batch import output as module
from together_async.batch.output import OutputError, OutputFile
from together_async.batch.writer import MOST_WAITING, OutputWriter


async def add_without_end(writer: OutputWriter) -> None:
    for number in itertools.count():
        await writer.room()
        writer.add(*answer(str(number)))
        await asyncio.sleep(0)


# -------------------------------------------------------------------------------------------------------------- writing


async def test_a_result_is_reported_when_it_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before fsync has returned: a reported result was in the file when fsync was called."""
    path, reported, synced = tmp_path / "out.jsonl", list[str](), list[list[str]]()
    real = os.fsync

    def fsync(fd: int) -> None:
        real(fd)
        synced.append(names_in(path))

    monkeypatch.setattr(module.os, "fsync", fsync)
    with opened(path, reported) as writer:
        async with writing(writer):
            for number in range(20):
                writer.add(*answer(str(number)))
                await asyncio.sleep(0.002)
                assert not reported or set(reported) <= set(synced[-1])
    assert reported == names_in(path) == [str(number) for number in range(20)]


async def test_many_results_share_one_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = list[int]()
    real = os.fsync
    with opened(tmp_path / "out.jsonl") as writer:
        monkeypatch.setattr(module.os, "fsync", lambda fd: (synced.append(fd), real(fd)))
        async with writing(writer):
            for number in range(500):
                writer.add(*answer(str(number)))
    assert len(synced) <= 3
    assert len(names_in(tmp_path / "out.jsonl")) == 500


async def test_the_loop_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """During a slow fsync the loop runs on, and results are queued until many wait."""
    gate = threading.Event()
    with opened(tmp_path / "out.jsonl") as writer:
        monkeypatch.setattr(module.os, "fsync", lambda fd: gate.wait(10))
        async with writing(writer):
            for number in range(MOST_WAITING):
                await writer.room()
                writer.add(*answer(str(number)))
            waiter = asyncio.create_task(writer.room())
            await asyncio.sleep(0.01)
            assert not waiter.done()
            gate.set()
            await waiter
    assert len(names_in(tmp_path / "out.jsonl")) == MOST_WAITING


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("way", ["pwrite", "short", "fsync", "fsync, and ftruncate too"])
async def test_a_disk_that_fails_loses_nothing_that_was_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, code: int
) -> None:
    """One error that names the file; the file is whole; no more results are queued; a later run continues."""
    path, reported = tmp_path / "out.jsonl", list[str]()
    _fail_on_disk(monkeypatch, path, way, code)
    writer = OutputWriter(OutputFile(path), lambda records: reported.extend(record.custom_id for record in records))
    writer.file.open()
    task = asyncio.create_task(writer.run())
    with pytest.raises(OutputError, match=r"out\.jsonl can't be written: .*") as caught:
        await add_without_end(writer)
    with pytest.raises(OutputError):
        await task
    with pytest.raises(OutputError):
        writer.add(*answer("late"))
    writer.close()
    monkeypatch.undo()
    assert caught.value.errno == code
    assert ("make room" in str(caught.value)) == (code == errno.ENOSPC)
    with opened(path) as again:
        assert set(reported) <= set(again.file.standing.results)
        again.add(*answer("more"))
    assert set(reported) < set(names_in(path))


def _fail_on_disk(monkeypatch: pytest.MonkeyPatch, path: Path, way: str, code: int) -> None:
    """Lets the disk be full after 3,000 bytes; the first part of a short write still fits."""
    pwrite, fsync = os.pwrite, os.fsync

    def full(fd: int, data: bytes, offset: int) -> int:
        if offset + len(data) > 3_000:
            if way == "short" and offset < 3_000:
                return pwrite(fd, data[: 3_000 - offset], offset)
            if not way.startswith("fsync"):
                raise OSError(code, os.strerror(code))
        return pwrite(fd, data, offset)

    def sync(fd: int) -> None:
        if way.startswith("fsync") and os.fstat(fd).st_size > 3_000:
            raise OSError(code, os.strerror(code))
        fsync(fd)

    def truncate(fd: int, size: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(module.os, "pwrite", full)
    monkeypatch.setattr(module.os, "fsync", sync)
    if way.endswith("too"):
        monkeypatch.setattr(module.os, "ftruncate", truncate)


async def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(module.os, "pwrite", lambda fd, data, offset: real(fd, data[:7], offset))
    with opened(tmp_path / "out.jsonl") as writer:
        async with writing(writer):
            for name in "abc":
                writer.add(*answer(name))
    assert names_in(tmp_path / "out.jsonl") == ["a", "b", "c"]


async def test_a_real_limit_of_the_system_is_one_error(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for a full disk: the write stops half-way, in the middle of a line."""
    path, reported = tmp_path / "out.jsonl", list[str]()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    writer = OutputWriter(OutputFile(path), lambda records: reported.extend(record.custom_id for record in records))
    writer.file.open()
    task = asyncio.create_task(writer.run())
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, old[1]))
        with pytest.raises(OutputError, match="can't be written: File too large"):
            await add_without_end(writer)
        with pytest.raises(OutputError):
            await task
        writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert set(reported) <= set(names_in(path))


# --------------------------------------------------------------------------------------------------------------- ending


async def test_closing_writes_what_waits(tmp_path: Path) -> None:
    reported = list[str]()
    with opened(tmp_path / "out.jsonl", reported) as writer:
        writer.add(*answer("a"))
        writer.add(*answer("b"))
    assert reported == names_in(tmp_path / "out.jsonl") == ["a", "b"]
    writer.close()


@pytest.mark.parametrize("times", [1, 2, 3])
async def test_a_writer_that_is_cancelled_while_it_writes_writes_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """Cancelled any number of times: each line is in the file once, and is reported once."""
    path, reported, inside, gate = tmp_path / "out.jsonl", list[str](), threading.Event(), threading.Event()
    real = os.fsync

    def fsync(fd: int) -> None:
        inside.set()
        gate.wait(10)
        real(fd)

    with opened(path, reported) as writer:
        monkeypatch.setattr(module.os, "fsync", fsync)
        task = asyncio.create_task(writer.run())
        writer.add(*answer("a"))
        await asyncio.to_thread(inside.wait, 10)
        writer.add(*answer("b"))
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert reported == names_in(path) == ["a", "b"]


async def test_a_writer_that_is_cancelled_when_the_disk_fails_says_one_thing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is whole, and closing it does not write what could not be written."""
    path, inside, gate = tmp_path / "out.jsonl", threading.Event(), threading.Event()

    def fsync(fd: int) -> None:
        inside.set()
        gate.wait(10)
        raise OSError(errno.ENOSPC, "full")

    writer = OutputWriter(OutputFile(path))
    writer.file.open()
    monkeypatch.setattr(module.os, "fsync", fsync)
    task = asyncio.create_task(writer.run())
    writer.add(*answer("a"))
    await asyncio.to_thread(inside.wait, 10)
    task.cancel()
    await asyncio.sleep(0)
    gate.set()
    with pytest.raises((asyncio.CancelledError, OutputError)):
        await task
    with contextlib.suppress(OutputError):
        writer.close()
    assert names_in(path) == []


async def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """No descriptor and no thread is left."""
    before, threads = descriptors(), threading.active_count()
    for _ in range(5):
        with opened(tmp_path / "out.jsonl") as writer:
            async with writing(writer):
                writer.add(*answer("a"))
    with pytest.raises(OutputError), opened(tmp_path):
        pass
    assert descriptors() == before
    assert threading.active_count() == threads
