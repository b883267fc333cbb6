"""A batch's output on disk: locked, whole at every moment, and repaired after any crash."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.batch_output import answer, failure, lines_of, names_in, opened
from together_async.batch import output as module
from together_async.batch.output import OutputError, OutputFile, read_standing
from together_async.batch.record import decode_line
from together_async.batch.writer import OutputWriter

HINT = "; make room and run the same command again: what is in it counts"


# -------------------------------------------------------------------------------------------------------------- opening


def test_a_file_that_is_not_there_is_made(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with opened(path) as writer:
        assert writer.file.standing.results == {}
    assert path.read_bytes() == b""


def test_a_new_file_is_in_its_folder_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder is synced too."""
    synced = list[int]()
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        real(fd)

    monkeypatch.setattr(module.os, "fsync", fsync)
    with opened(tmp_path / "out.jsonl"):
        assert tmp_path.stat().st_ino in synced


def test_every_cut_reopens_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every byte of a finished output: all whole lines before the cut are kept, and the others can be added."""
    monkeypatch.setattr(module.os, "fsync", lambda fd: None)  # 1,600 times; the order of calls is not what is tested
    path, results = (
        tmp_path / "out.jsonl",
        [answer("a"), failure("b"), failure("c"), answer("d"), failure("e"), failure("f")],
    )
    data = lines_of(*results)
    ends = [data.index(line) + len(line) for line, _ in results]
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        with opened(path) as writer:
            kept = [record.custom_id for (_, record), end in zip(results, ends, strict=True) if end - 1 <= size]
            assert list(writer.file.standing.results) == kept
            writer.file.compact()
            for line, record in results:
                if record.custom_id not in writer.file.standing.results:
                    writer.add(line, record)
        assert path.read_bytes() == data


def test_a_file_that_ends_whole_without_its_line_feed_gets_one(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(lines_of(answer("a"))[:-1])
    with opened(path) as writer:
        writer.add(*answer("b"))
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
    """One clear error, and not a byte is changed."""
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
    """With the system's own reason. Root may write everywhere, so the refusal is simulated."""

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
    """In the same process, under another name of the file too; and the lock is free afterwards."""
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
from together_async.batch.output import OutputError, OutputFile
file = OutputFile(Path(sys.argv[1]))
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
    """A run that opened the old file just before it was replaced finds the new one, locked."""
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

    with opened(path) as writer:
        threads = [threading.Thread(target=others) for _ in range(3)]
        for thread in threads:
            thread.start()
        for number in range(30):
            writer.file.compact(["b"] if number == 0 else [])
            writer.file.standing = read_standing(path)
            writer.file.standing.set_aside = []
            writer.add(*failure("b"))
            writer.file.append(lines_of(*[(line, record) for line, record in writer._waiting]))
            writer._waiting.clear()
            writer.file.standing = read_standing(path)
            writer.file.compact(["b"])
            writer.file.standing = read_standing(path)
        stop.set()
        for thread in threads:
            thread.join()
    assert outcomes
    assert all("is in use by another run" in outcome for outcome in outcomes), set(outcomes)
    assert names_in(path) == ["a"]


# ----------------------------------------------------------------------------------------------------------- compaction


def test_lines_that_do_not_count_go(tmp_path: Path) -> None:
    """Errors that are sent again go; superseded answers, doubles and damage move to the superseded file."""
    path = tmp_path / "out.jsonl"
    first, old, damage = answer("a", "1"), answer("b", "old"), b"\0\0garbage\n"
    path.write_bytes(lines_of(first, failure("c"), old) + damage + lines_of(answer("a", "2"), failure("d")))
    path.chmod(0o640)
    with opened(path) as writer:
        writer.file.compact(["c"], kept_aside=["b"])
        writer.add(*answer("e"))
    assert names_in(path) == ["a", "d", "e"]
    assert decode_line(path.read_bytes().splitlines()[0]).body_hash == "2"
    assert path.with_name("out.jsonl.superseded").read_bytes() == first[0] + old[0] + damage
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.superseded"]


def test_nothing_to_do_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(lines_of(answer("a"), failure("b")))
    before = path.stat().st_ino
    with opened(path) as writer:
        writer.file.compact()
    assert path.stat().st_ino == before


@pytest.mark.parametrize("torn", [b"", b"whole\n", b'{"custom_id":"x","resp'])
def test_what_is_put_aside_begins_a_line(tmp_path: Path, torn: bytes) -> None:
    """A line that a power cut has torn in the superseded file does not run into the next one."""
    path, superseded = tmp_path / "out.jsonl", tmp_path / "out.jsonl.superseded"
    superseded.write_bytes(torn)
    line, _ = answer("a")
    path.write_bytes(line)
    writer = OutputWriter(OutputFile(path))
    writer.file.open()
    writer.file.compact(kept_aside=["a"])
    writer.close()
    assert superseded.read_bytes() == torn + (b"\n" if torn and not torn.endswith(b"\n") else b"") + line


def test_the_folder_is_synced_after_the_new_file_took_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First its content, then its name: a power cut does not leave an empty file with that name."""
    path, order = tmp_path / "out.jsonl", list[str]()
    path.write_bytes(lines_of(answer("a"), failure("b")))
    fsync, replace = os.fsync, type(path).replace

    def note_fsync(fd: int) -> None:
        order.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    def note_replace(self: Path, target: Path) -> Path:
        order.append("replace")
        return replace(self, target)

    with opened(path) as writer:
        monkeypatch.setattr(module.os, "fsync", note_fsync)
        monkeypatch.setattr(type(path), "replace", note_replace)
        writer.file.compact(["b"])
    assert order == ["file", "replace", "folder"]


def test_a_link_stays_one(tmp_path: Path) -> None:
    """The file that it leads to is put in order."""
    (tmp_path / "disk").mkdir()
    real, link = tmp_path / "disk" / "real.jsonl", tmp_path / "out.jsonl"
    real.write_bytes(lines_of(answer("a"), failure("b")))
    link.symlink_to(real)
    with opened(link) as writer:
        writer.file.compact(["b"])
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
        file = module.OutputFile(folder / "out.jsonl")
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
    """The output is the old one or the new one, and the next run finishes the work. Returns the names that it held."""
    data = path.read_bytes()
    names = [decode_line(line).custom_id for line in data.splitlines() if not line.endswith(b"torn")]
    assert names in (["a", "b", "c", "a"], ["a"])
    superseded = path.with_name("out.jsonl.superseded")
    if names == ["a"]:
        assert names_in(superseded) == ["a", "c"]
    with opened(path) as writer:
        writer.file.compact(
            [name for name in writer.file.standing.results if name == "b"],
            kept_aside=[name for name in writer.file.standing.results if name == "c"],
        )
        writer.add(*answer("c", "new"))
        writer.add(*answer("d"))
    assert names_in(path) == WANTED
    assert {("a", "1"), ("c", "old")} <= {
        (record.custom_id, record.body_hash) for record in map(decode_line, superseded.read_bytes().splitlines())
    }
    assert not path.with_name(".out.jsonl.new").exists()
    return names


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("when", ["before", "after"])
def test_putting_in_order_may_crash_between_any_two_calls_to_the_system(tmp_path: Path, when: str) -> None:
    """Once at each call, in a process of its own."""
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
    """One error that names the file, which is as it was; the new file is gone."""
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

    with opened(path) as writer:
        monkeypatch.setattr(owner, attribute, call)
        try:
            writer.file.compact(["b"], kept_aside=["c"])
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


# -------------------------------------------------------------------------------------------------------------- reading


def test_records_are_read_as_they_are_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(lines_of(answer("a"), failure("b")))
    with opened(path) as writer:
        assert [(record.custom_id, record.ok) for record in writer.file.records()] == [("a", True), ("b", False)]
        assert "out.jsonl" in repr(writer)
    assert "closed" in repr(writer)
