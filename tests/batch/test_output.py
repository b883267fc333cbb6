"""A batch's output on disk: locked, whole at every moment, and in order again after any crash."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import itertools
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.servers import whole
from together_async.batch import output as module
from together_async.batch.output import MOST_WAITING, OutputError, ResultsFile, read_standing
from together_async.batch.record import Record, answer_record, decode_line, encode_line
from together_async.wire import codec

HINT = "; make room and run the same command again: what is in it counts"
COMPLETION = codec.decode_completion(codec.encode(whole("Hällo")))


def answer(custom_id: str, body_hash: str = "1") -> tuple[bytes, Record]:
    record = answer_record(Record(custom_id, body_hash), COMPLETION)
    return encode_line(record, COMPLETION), record


def failure(custom_id: str) -> tuple[bytes, Record]:
    record = Record(custom_id, code="500", message="busy")
    return encode_line(record), record


def lines_of(*results: tuple[bytes, Record]) -> bytes:
    return b"".join(line for line, _ in results)


def names_in(path: Path) -> list[str]:
    """The custom_ids of a file; every line of it is whole."""
    data = path.read_bytes()
    assert not data or data.endswith(b"\n")
    return [decode_line(line).custom_id for line in data.splitlines()]


def descriptors() -> set[str]:
    gc.collect()
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


async def add_without_end(file: ResultsFile) -> None:
    for number in itertools.count():
        await file.room()
        file.add(*answer(str(number)))
        await asyncio.sleep(0)


@contextlib.contextmanager
def opened(path: Path, told: list[str] | None = None) -> Iterator[ResultsFile]:
    """The file of one run; what is on disk is told to the list."""
    note = None if told is None else lambda records: told.extend(record.custom_id for record in records)
    file = ResultsFile(path, note)
    try:
        file.open()
        yield file
    finally:
        file.close()


@contextlib.asynccontextmanager
async def writing(file: ResultsFile) -> Any:
    """The writer's task, whose end is awaited."""
    task = asyncio.create_task(file.write())
    try:
        yield task
        file.finish()
        await task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await task


# -------------------------------------------------------------------------------------------------------------- opening


def test_a_file_that_is_not_there_is_made(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with opened(path) as file:
        assert file.standing.results == {}
    assert path.read_bytes() == b""


def test_a_new_file_is_in_its_folder_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only the file is synced but the folder that names it."""
    synced = list[int]()
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        real(fd)

    monkeypatch.setattr(module.os, "fsync", fsync)
    with opened(tmp_path / "out.jsonl"):
        assert tmp_path.stat().st_ino in synced


def test_every_cut_reopens_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every byte of a finished output: all whole lines before the cut are kept, and the rest can be added."""
    monkeypatch.setattr(module.os, "fsync", lambda fd: None)  # 1,600 times; the order of calls is not what is tested
    path, results = (
        tmp_path / "out.jsonl",
        [answer("a"), failure("b"), failure("c"), answer("d"), failure("e"), failure("f")],
    )
    data = lines_of(*results)
    ends = [data.index(line) + len(line) for line, _ in results]
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        with opened(path) as file:
            kept = [record.custom_id for (_, record), end in zip(results, ends, strict=True) if end - 1 <= size]
            assert list(file.standing.results) == kept
            file.compact()
            for line, record in results:
                if record.custom_id not in file.standing.results:
                    file.add(line, record)
        assert path.read_bytes() == data


def test_a_file_that_ends_whole_without_its_line_feed_gets_one(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(lines_of(answer("a"))[:-1])
    with opened(path) as file:
        file.add(*answer("b"))
    assert names_in(path) == ["a", "b"]


@pytest.mark.parametrize(
    "content",
    [
        b'{"custom_id": "a", "body": {"model": "m", "messages": []}}\n{"custom_id": "b", "body": {}}\n',
        b"Dear diary,\n",
        b'{"name": "x"}\n{"name": "y"}\n',
        b"id,text\n1,a\n",
        bytes(range(256)) * 20,
        b"Dear diary, " * 200_000,
    ],
    ids=["an input", "a text", "JSON lines", "CSV", "bytes", "one long line"],
)
def test_somebody_elses_file_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    """One clear error, and not a byte of it changed."""
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content)
    before = path.stat()
    with pytest.raises(OutputError, match=r"line 1.*another file\? Nothing in it was changed"), opened(path):
        pass
    assert path.read_bytes() == content
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert list(tmp_path.iterdir()) == [path]
    with path.open("ab"), opened(tmp_path / "other.jsonl"):
        pass  # and its lock is free


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out.jsonl"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path = Path("/dev/full")
    with pytest.raises(OutputError, match=re.escape(str(path))), opened(path):
        pass


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "out.jsonl"
    with (
        pytest.raises(OutputError, match=r"nowhere/out\.jsonl can't be opened: No such file or directory"),
        opened(path),
    ):
        pass


def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the system says it, which for root it never does."""

    def refused(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(module.os, "open", refused)
    with (
        pytest.raises(OutputError, match=r"out\.jsonl can't be opened: Permission denied"),
        opened(tmp_path / "out.jsonl"),
    ):
        pass


def test_reading_a_standing_neither_locks_nor_changes(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(lines_of(answer("a"), answer("b"))[:-10])
    with opened(tmp_path / "other.jsonl"):
        pass
    before = path.read_bytes()
    assert list(read_standing(path).results) == ["a"]
    assert path.read_bytes() == before


# ------------------------------------------------------------------------------------------------------------- the lock


def test_a_second_run_is_one_clear_error_at_once(tmp_path: Path) -> None:
    """In the same process, under another name of the same file too; and it is free afterwards."""
    path = tmp_path / "out.jsonl"
    with opened(path):
        (tmp_path / "link").symlink_to(path)
        (tmp_path / "hard").hardlink_to(path)
        for name in ("out.jsonl", "link", "hard"):
            with pytest.raises(OutputError, match="is in use by another run"), opened(tmp_path / name):
                pass
    with opened(path):
        pass


OTHER = """
import sys
from pathlib import Path
from together_async.batch.output import OutputError, ResultsFile
file = ResultsFile(Path(sys.argv[1]))
try:
    file.open()
except OutputError as error:
    print("in use" if "is in use by another run" in str(error) else error, flush=True)
else:
    print("open", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def other_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        yield process
        process.kill()


def test_another_process_is_kept_out_until_this_one_ends_however_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(lines_of(answer("a")))
    with opened(path), other_process(path) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in use\n"
    with other_process(path) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(OutputError, match="in use"), opened(path):
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
        with opened(path):
            pass


def test_putting_in_order_does_not_let_another_run_in(tmp_path: Path) -> None:
    """A run that opened the file just before another took its place finds the new one, and that it is locked."""
    path = tmp_path / "out.jsonl"
    path.write_bytes(lines_of(answer("a"), failure("b"), answer("a")))
    outcomes, stop = list[str](), threading.Event()

    def others() -> None:
        while not stop.is_set():
            try:
                with opened(path):
                    outcomes.append("open")
            except OutputError as error:
                outcomes.append(str(error))

    with opened(path) as file:
        threads = [threading.Thread(target=others) for _ in range(3)]
        for thread in threads:
            thread.start()
        for number in range(30):
            file.compact(["b"] if number == 0 else [])
            file.standing = read_standing(path)
            file.standing.set_aside = []
            file.add(*failure("b"))
            file._put(lines_of(*[(line, record) for line, record in file._waiting]))
            file._waiting.clear()
            file.standing = read_standing(path)
            file.compact(["b"])
            file.standing = read_standing(path)
        stop.set()
        for thread in threads:
            thread.join()
    assert outcomes
    assert all("is in use by another run" in outcome for outcome in outcomes), set(outcomes)
    assert names_in(path) == ["a"]


# ----------------------------------------------------------------------------------------------------------- compaction


def test_lines_that_do_not_count_go(tmp_path: Path) -> None:
    """Errors that are asked again go; superseded answers, doubles and damage go to the file beside, as they were."""
    path = tmp_path / "out.jsonl"
    first, old, damage = answer("a", "1"), answer("b", "old"), b"\0\0garbage\n"
    path.write_bytes(lines_of(first, failure("c"), old) + damage + lines_of(answer("a", "2"), failure("d")))
    path.chmod(0o640)
    with opened(path) as file:
        file.compact(["c"], kept_aside=["b"])
        file.add(*answer("e"))
    assert names_in(path) == ["a", "d", "e"]
    assert decode_line(path.read_bytes().splitlines()[0]).body_hash == "2"
    assert path.with_name("out.jsonl.superseded").read_bytes() == first[0] + old[0] + damage
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.superseded"]


def test_nothing_to_do_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(lines_of(answer("a"), failure("b")))
    before = path.stat().st_ino
    with opened(path) as file:
        file.compact()
    assert path.stat().st_ino == before


@pytest.mark.parametrize("torn", [b"", b"whole\n", b'{"custom_id":"x","resp'])
def test_what_is_put_aside_begins_a_line(tmp_path: Path, torn: bytes) -> None:
    """What a power cut has torn in the file beside does not run into what comes next."""
    path, beside = tmp_path / "out.jsonl", tmp_path / "out.jsonl.superseded"
    beside.write_bytes(torn)
    line, _ = answer("a")
    path.write_bytes(line)
    file = ResultsFile(path)
    file.open()
    file.compact(kept_aside=["a"])
    file.close()
    assert beside.read_bytes() == torn + (b"\n" if torn and not torn.endswith(b"\n") else b"") + line


def test_the_folder_is_synced_after_the_new_file_took_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First what the file holds, then its name: no power cut leaves an empty file of that name."""
    path, order = tmp_path / "out.jsonl", list[str]()
    path.write_bytes(lines_of(answer("a"), failure("b")))
    fsync, replace = os.fsync, type(path).replace

    def note_fsync(fd: int) -> None:
        order.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    def note_replace(self: Path, target: Path) -> Path:
        order.append("replace")
        return replace(self, target)

    with opened(path) as file:
        monkeypatch.setattr(module.os, "fsync", note_fsync)
        monkeypatch.setattr(type(path), "replace", note_replace)
        file.compact(["b"])
    assert order == ["file", "replace", "folder"]


def test_a_link_stays_one(tmp_path: Path) -> None:
    """What is put in order is the file that it leads to."""
    (tmp_path / "disk").mkdir()
    real, link = tmp_path / "disk" / "real.jsonl", tmp_path / "out.jsonl"
    real.write_bytes(lines_of(answer("a"), failure("b")))
    link.symlink_to(real)
    with opened(link) as file:
        file.compact(["b"])
    assert link.is_symlink()
    assert names_in(real) == ["a"]


OLD, WANTED = [answer("a"), failure("b"), answer("c", "old"), answer("a", "2")], ["a", "c", "d"]

CRASHING = """
import os, pathlib, sys
from together_async.batch import output as module

def wrap(owner, name):
    real = getattr(owner, name)

    def call(*args, **options):
        global count
        count += 1
        if count == at and not after:
            os._exit(1)
        answer = real(*args, **options)
        if count == at:
            os._exit(1)
        return answer

    setattr(owner, name, call)

after = sys.argv[2] == "after"
for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    at, count = int(folder.name), 0
    pid = os.fork()
    if pid == 0:
        file = module.ResultsFile(folder / "out.jsonl")
        for name in ("open", "pwrite", "fsync", "fchmod", "fdopen", "ftruncate", "dup", "close"):
            wrap(os, name)
        for name in ("replace", "unlink", "open", "stat"):
            wrap(pathlib.Path, name)
        file.open()
        file.compact(["b"], kept_aside=["c"])
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def _check_order(path: Path) -> list[str]:
    """The output is the old one or the new one, and the next run ends what was begun; returns what it held."""
    data = path.read_bytes()
    names = [decode_line(line).custom_id for line in data.splitlines() if not line.endswith(b"torn")]
    assert names in (["a", "b", "c", "a"], ["a"])
    superseded = path.with_name("out.jsonl.superseded")
    if names == ["a"]:
        assert names_in(superseded) == ["a", "c"]
    with opened(path) as file:
        file.compact(
            [name for name in file.standing.results if name == "b"],
            kept_aside=[name for name in file.standing.results if name == "c"],
        )
        file.add(*answer("c", "new"))
        file.add(*answer("d"))
    assert names_in(path) == WANTED
    assert {("a", "1"), ("c", "old")} <= {
        (record.custom_id, record.body_hash) for record in map(decode_line, superseded.read_bytes().splitlines())
    }
    assert not path.with_name(".out.jsonl.new").exists()
    return names


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("when", ["before", "after"])
def test_putting_in_order_may_crash_between_any_two_calls_to_the_system(tmp_path: Path, when: str) -> None:
    """A process that ends there, at each of them."""
    paths = [tmp_path / str(at) / "out.jsonl" for at in range(10, 60)]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(lines_of(*OLD) + b'{"custom_id":"torn')
    command = [sys.executable, "-c", CRASHING.replace("int(folder.name)", "int(folder.name) - 9"), str(tmp_path), when]
    statuses = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert statuses.count("1") > 20
    assert "0" in statuses
    assert {len(_check_order(path)) for path in paths} == {1, 4}


@pytest.mark.parametrize("name", ["os.open", "os.fsync", "os.fchmod", "Path.replace", "Path.unlink", "Path.open"])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_putting_in_order_may_fail_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, at: int
) -> None:
    """One error that names the file, which is as it was; what was begun beside it is gone."""
    path = tmp_path / "out.jsonl"
    path.write_bytes(lines_of(*OLD))
    owner = module.os if name.startswith("os.") else type(path)
    attribute = name.partition(".")[2]
    real, count = getattr(owner, attribute), 0

    def call(*args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **options)

    with opened(path) as file:
        monkeypatch.setattr(owner, attribute, call)
        try:
            file.compact(["b"], kept_aside=["c"])
            failed = ""
        except OutputError as error:
            failed = str(error)
        monkeypatch.undo()
        if failed:
            assert failed.endswith("out.jsonl can't be put in order: No space left on device" + HINT)
            assert names_in(path) == ["a", "b", "c", "a"]
        else:
            assert count < at or name in ("os.fsync", "os.open")  # of the folder, which not every system can
        assert not path.with_name(".out.jsonl.new").exists()
    _check_order(path)


# -------------------------------------------------------------------------------------------------------------- writing


async def test_a_result_is_told_when_it_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before the fsync has returned: what is told is in the file, and fsync saw it there."""
    path, told, synced = tmp_path / "out.jsonl", list[str](), list[list[str]]()
    real = os.fsync

    def fsync(fd: int) -> None:
        real(fd)
        synced.append(names_in(path))

    monkeypatch.setattr(module.os, "fsync", fsync)
    with opened(path, told) as file:
        async with writing(file):
            for number in range(20):
                file.add(*answer(str(number)))
                await asyncio.sleep(0.002)
                assert not told or set(told) <= set(synced[-1])
    assert told == names_in(path) == [str(number) for number in range(20)]


async def test_many_results_share_one_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = list[int]()
    real = os.fsync
    with opened(tmp_path / "out.jsonl") as file:
        monkeypatch.setattr(module.os, "fsync", lambda fd: (synced.append(fd), real(fd)))
        async with writing(file):
            for number in range(500):
                file.add(*answer(str(number)))
    assert len(synced) <= 3
    assert len(names_in(tmp_path / "out.jsonl")) == 500


async def test_the_loop_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While an fsync takes its time the loop turns, and results are taken until many wait."""
    gate = threading.Event()
    with opened(tmp_path / "out.jsonl") as file:
        monkeypatch.setattr(module.os, "fsync", lambda fd: gate.wait(10))
        async with writing(file):
            for number in range(MOST_WAITING):
                await file.room()
                file.add(*answer(str(number)))
            waiter = asyncio.create_task(file.room())
            await asyncio.sleep(0.01)
            assert not waiter.done()
            gate.set()
            await waiter
    assert len(names_in(tmp_path / "out.jsonl")) == MOST_WAITING


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("way", ["pwrite", "short", "fsync", "fsync, and ftruncate too"])
async def test_a_disk_that_fails_loses_nothing_that_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, code: int
) -> None:
    """One error that names the file; the file is whole; nothing more is taken; a later run goes on."""
    path, told = tmp_path / "out.jsonl", list[str]()
    _fail_on_disk(monkeypatch, path, way, code)
    file = ResultsFile(path, lambda records: told.extend(record.custom_id for record in records))
    file.open()
    task = asyncio.create_task(file.write())
    with pytest.raises(OutputError, match=r"out\.jsonl can't be written: .*") as caught:
        await add_without_end(file)
    with pytest.raises(OutputError):
        await task
    with pytest.raises(OutputError):
        file.add(*answer("late"))
    file.close()
    monkeypatch.undo()
    assert caught.value.errno == code
    assert ("make room" in str(caught.value)) == (code == errno.ENOSPC)
    with opened(path) as again:
        assert set(told) <= set(again.standing.results)
        again.add(*answer("more"))
    assert set(told) < set(names_in(path))


def _fail_on_disk(monkeypatch: pytest.MonkeyPatch, path: Path, way: str, code: int) -> None:
    """After 3,000 bytes nothing fits; of a short write the begin does."""
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


async def test_short_writes_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(module.os, "pwrite", lambda fd, data, offset: real(fd, data[:7], offset))
    with opened(tmp_path / "out.jsonl") as file:
        async with writing(file):
            for name in "abc":
                file.add(*answer(name))
    assert names_in(tmp_path / "out.jsonl") == ["a", "b", "c"]


async def test_a_real_limit_of_the_system_is_one_error(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for a full disk: the write stops half-way, in the middle of a line."""
    path, told = tmp_path / "out.jsonl", list[str]()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    file = ResultsFile(path, lambda records: told.extend(record.custom_id for record in records))
    file.open()
    task = asyncio.create_task(file.write())
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, old[1]))
        with pytest.raises(OutputError, match="can't be written: File too large"):
            await add_without_end(file)
        with pytest.raises(OutputError):
            await task
        file.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert set(told) <= set(names_in(path))


# --------------------------------------------------------------------------------------------------------------- ending


async def test_closing_writes_what_waits(tmp_path: Path) -> None:
    told = list[str]()
    with opened(tmp_path / "out.jsonl", told) as file:
        file.add(*answer("a"))
        file.add(*answer("b"))
    assert told == names_in(tmp_path / "out.jsonl") == ["a", "b"]
    file.close()


@pytest.mark.parametrize("times", [1, 2, 3])
async def test_a_writer_that_is_cancelled_while_it_writes_writes_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """However often: each line is in the file once, and is told once."""
    path, told, inside, gate = tmp_path / "out.jsonl", list[str](), threading.Event(), threading.Event()
    real = os.fsync

    def fsync(fd: int) -> None:
        inside.set()
        gate.wait(10)
        real(fd)

    with opened(path, told) as file:
        monkeypatch.setattr(module.os, "fsync", fsync)
        task = asyncio.create_task(file.write())
        file.add(*answer("a"))
        await asyncio.to_thread(inside.wait, 10)
        file.add(*answer("b"))
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert told == names_in(path) == ["a", "b"]


async def test_a_writer_that_is_cancelled_when_the_disk_fails_says_one_thing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is whole, and closing it does not write what could not be written."""
    path, inside, gate = tmp_path / "out.jsonl", threading.Event(), threading.Event()

    def fsync(fd: int) -> None:
        inside.set()
        gate.wait(10)
        raise OSError(errno.ENOSPC, "full")

    file = ResultsFile(path)
    file.open()
    monkeypatch.setattr(module.os, "fsync", fsync)
    task = asyncio.create_task(file.write())
    file.add(*answer("a"))
    await asyncio.to_thread(inside.wait, 10)
    task.cancel()
    await asyncio.sleep(0)
    gate.set()
    with pytest.raises((asyncio.CancelledError, OutputError)):
        await task
    with contextlib.suppress(OutputError):
        file.close()
    assert names_in(path) == []


async def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """No descriptor and no thread."""
    before, threads = descriptors(), threading.active_count()
    for _ in range(5):
        with opened(tmp_path / "out.jsonl") as file:
            async with writing(file):
                file.add(*answer("a"))
    with pytest.raises(OutputError), opened(tmp_path):
        pass
    assert descriptors() == before
    assert threading.active_count() == threads


def test_records_are_read_as_they_are_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(lines_of(answer("a"), failure("b")))
    with opened(path) as file:
        assert [(record.custom_id, record.ok) for record in file.records()] == [("a", True), ("b", False)]
        assert "out.jsonl" in repr(file)
    assert "closed" in repr(file)
