"""A batch's output on disk: one writer, whole lines, nothing told as done before it is there.

What comes while the disk is busy waits, and is written with one write and one fsync: a result costs its share of them,
and the event loop never waits for a disk. A line counts as done when the fsync has returned.

The file is locked as long as it is open, so that two runs can't share it. The lock is on the file itself and ends with
the process, however that ends. Lines that no longer count are taken out by writing a new file beside it, which takes
its place in one step; no crash leaves half of either.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from together_async.batch.record import JournalError, Record, Standing, decode_line

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")

PACE_S: Final = 0.02
"""Least seconds from the begin of one write to that of the next: what comes in between shares it."""
MOST_WAITING: Final = 1_000
"""Results that wait for the disk; whoever brings more has to wait as well."""
_TRIES: Final = 10


class OutputError(OSError):
    """The output can't be opened, read or written; the text says which, why, and what to do."""


async def finished(work: asyncio.Future[T]) -> T:
    """Waits for what can't be stopped, a thread's work; a cancellation is passed on when it has ended."""
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        work.exception()  # seen
        raise cancelled
    return work.result()


class ResultsFile:
    """The output of one run.

    Args:
        path: Where it is. It is made if it is not there.
        on_written: Called with the records of lines that are on disk now, in the event loop.

    Attributes:
        standing: What it held when it was opened.
    """

    def __init__(self, path: Path, on_written: Callable[[list[Record]], None] | None = None) -> None:
        # Of a link the file itself, which is what is replaced when it is put in order.
        self.path = Path(os.path.realpath(path))
        self.standing = Standing()
        self._on_written = on_written
        self._fd = -1
        self._size = 0  # up to where everything is on disk
        self._waiting: list[tuple[bytes, Record]] = []
        self._wanted = asyncio.Event()
        self._room = asyncio.Event()
        self._closing = False
        self._failure: OutputError | None = None
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="together_async-disk")

    def __repr__(self) -> str:
        state = "closed" if self._fd < 0 else f"{self._size} bytes, {len(self._waiting)} lines wait"
        return f"<ResultsFile {self.path.name} {state}>"

    # --------------------------------------------------------------------------------------------------------- opening

    def open(self) -> Standing:
        """Locks the file and reads what it holds. It blocks: call it in a thread.

        Raises:
            OutputError: It can't be opened or is no regular file; another run has it; it holds something else.
        """
        if fcntl is None:
            raise OutputError(errno.ENOSYS, "batches need a system with POSIX file locks, as Linux and macOS have them")
        try:
            is_new = not self.path.exists()
            self._fd = _open_locked(self.path)
            try:
                if is_new:
                    _sync_folder(self.path.parent)
                self.standing = self._read()
                self._repair()
            except BaseException:
                self._close()
                raise
        except OutputError:
            raise
        except OSError as error:
            raise self._trouble("opened", error) from error
        return self.standing

    def _read(self) -> Standing:
        with os.fdopen(os.dup(self._fd), "rb", buffering=1 << 20) as file:
            file.seek(0)
            return _standing_of(file, self.path)

    def _repair(self) -> None:
        """Takes off a torn last line, and ends one that only lacks its line feed."""
        standing = self.standing
        if standing.torn_size:
            os.ftruncate(self._fd, standing.whole_size)
        self._size = standing.whole_size
        if standing.ends_open:
            self._put(b"\n")
            standing.ends_open = False
        elif standing.torn_size or standing.lines:
            os.fsync(self._fd)  # a run that was killed may have written what it did not sync

    def compact(self, dropped: Collection[str] = (), *, kept_aside: Collection[str] = ()) -> None:
        """Takes lines out: those that don't count, and those of some names. It blocks: call it in a thread.

        Args:
            dropped: The custom_ids whose lines go, as errors that are asked again.
            kept_aside: Those whose lines go to a file beside this one, its name with `.superseded`, as answers to
                requests that were edited since. What could not be read goes there too.

        Raises:
            OutputError: It can't be done; the file is as it was.
        """
        aside = set(self.standing.set_aside) | {self.standing.place(name) for name in kept_aside}
        out = aside | {self.standing.place(name) for name in dropped}
        if not out:
            return
        beside = self.path.with_name(f".{self.path.name}.new")
        try:
            with contextlib.suppress(FileNotFoundError):
                beside.unlink()
            self._write_aside(aside)
            fd = _open_locked(beside)
            try:
                size = self._copy(fd, out)
                os.fsync(fd)
                # On some file systems a rename does not keep the mode of what it replaces.
                os.fchmod(fd, os.fstat(self._fd).st_mode & 0o7777)
                beside.replace(self.path)
                _sync_folder(self.path.parent)
            except BaseException:
                os.close(fd)
                raise
        except OSError as error:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise self._trouble("put in order", error) from error
        os.close(self._fd)
        self._fd, self._size = fd, size

    def _write_aside(self, numbers: Collection[int]) -> None:
        if not numbers:
            return
        with self.path.with_name(self.path.name + ".superseded").open("ab+") as file:
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.write(b"\n")  # a power cut has torn its last line
            for number, line in self._numbered():
                if number in numbers:
                    file.write(line if line.endswith(b"\n") else line + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _copy(self, fd: int, out: Collection[int]) -> int:
        size = 0
        with os.fdopen(os.dup(fd), "wb", buffering=1 << 20) as file:
            for number, line in self._numbered():
                if number not in out:
                    file.write(line)
                    size += len(line)
        return size

    def _numbered(self) -> Iterator[tuple[int, bytes]]:
        with os.fdopen(os.dup(self._fd), "rb", buffering=1 << 20) as file:
            file.seek(0)
            yield from enumerate(file, 1)

    def records(self) -> Iterator[Record]:
        """Yields what all lines say, those written since it was opened included. It blocks."""
        for _, line in self._numbered():
            with contextlib.suppress(JournalError):
                yield decode_line(line)

    # --------------------------------------------------------------------------------------------------------- writing

    def add(self, line: bytes, record: Record) -> None:
        """Takes a line, with its line feed. It is on disk when `on_written` is called with its record.

        Raises:
            OutputError: Writing has failed before.
        """
        if self._failure is not None:
            raise self._failure
        self._waiting.append((line, record))
        self._wanted.set()

    @property
    def waiting(self) -> int:
        """Lines that are not on disk yet."""
        return len(self._waiting)

    async def room(self) -> None:
        """Waits until fewer than `MOST_WAITING` lines wait.

        Raises:
            OutputError: Writing has failed.
        """
        while len(self._waiting) >= MOST_WAITING and self._failure is None:
            self._room.clear()
            await self._room.wait()
        if self._failure is not None:
            raise self._failure

    async def write(self) -> None:
        """Writes what comes, until `finish` has been called and all of it is on disk: the task of the writer.

        Raises:
            OutputError: Writing failed. What is on disk is whole, and `on_written` has told of it.
        """
        loop = asyncio.get_running_loop()
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            began = loop.time()
            lines = tuple(self._waiting)
            if lines:
                writing = loop.run_in_executor(self._disk, self._put, b"".join(line for line, _ in lines))
                try:
                    await finished(writing)
                except OSError as error:
                    self._failure = self._trouble("written", error)
                    self._room.set()
                    raise self._failure from error
                except asyncio.CancelledError:
                    if writing.exception() is None:
                        self._written(lines)
                    raise
                self._written(lines)
            if self._closing:
                if not self._waiting:
                    return
                self._wanted.set()
            else:
                await self._pause(began + PACE_S - loop.time())

    async def _pause(self, seconds: float) -> None:
        if seconds > 0:
            await asyncio.sleep(seconds)

    def _written(self, lines: tuple[tuple[bytes, Record], ...]) -> None:
        del self._waiting[: len(lines)]
        self._room.set()
        if self._on_written is not None:
            self._on_written([record for _, record in lines])

    def _put(self, data: bytes) -> None:
        """Writes and syncs; a write that fails half-way is taken back, so that the file stays whole."""
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self._fd, data[written:], self._size + written)
            os.fsync(self._fd)
            if os.fstat(self._fd).st_nlink == 0:
                raise OSError(errno.ESTALE, "it was removed or replaced by something else while it was in use")
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            raise
        self._size += len(data)

    def finish(self) -> None:
        """Says that nothing more comes: `write` returns when all is on disk."""
        self._closing = True
        self._wanted.set()

    def close(self) -> None:
        """Writes what still waits, closes the file and frees its lock. It blocks for a moment; twice is fine.

        Raises:
            OutputError: What waits can't be written.
        """
        self._disk.shutdown(wait=True)
        try:
            lines = tuple(self._waiting)
            if lines and self._failure is None and self._fd >= 0:
                try:
                    self._put(b"".join(line for line, _ in lines))
                except OSError as error:
                    self._failure = self._trouble("written", error)
                    raise self._failure from error
                self._written(lines)
        finally:
            self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _trouble(self, what: str, error: OSError) -> OutputError:
        hints = {
            errno.ENOSPC: "; make room and run the same command again: what is in it counts",
            errno.EDQUOT: "; raise the quota and run the same command again: what is in it counts",
        }
        reason = error.strerror or type(error).__name__
        return OutputError(error.errno, f"{self.path} can't be {what}: {reason}{hints.get(error.errno or 0, '')}")


def _standing_of(lines: Iterable[bytes], path: Path) -> Standing:
    standing = Standing()
    try:
        for line in lines:
            standing.add(line)
    except JournalError as error:
        raise OutputError(
            errno.EEXIST, f"{path}: {error}; is it another file? Nothing in it was changed; name another output"
        ) from None
    return standing


def read_standing(path: Path) -> Standing:
    """Returns what an output holds. It is neither locked nor changed. It blocks.

    Raises:
        OutputError: It can't be read, or holds something else.
    """
    try:
        with path.open("rb", buffering=1 << 20) as file:
            return _standing_of(file, path)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(error.errno, f"{path} can't be read: {error.strerror}") from error


def _open_locked(path: Path) -> int:
    """Returns a descriptor of the file that stands under this name now, locked.

    Raises:
        OutputError: Another run has it, or it is no regular file.
    """
    for _ in range(_TRIES):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            if not os.path.isfile(path):  # noqa: PTH113 - a pipe or a device, which may not be read to its end
                raise OutputError(errno.EINVAL, f"{path} is no regular file; results are kept in one, name it")
            if fcntl is not None:  # as `open` has made sure
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), path.stat()):
                    return fd
            os.close(fd)  # put in order by another run between opening and locking: what stands there now counts
        except BlockingIOError:
            os.close(fd)
            raise OutputError(
                errno.EWOULDBLOCK, f"{path} is in use by another run; wait for it, or name another output"
            ) from None
        except BaseException:
            os.close(fd)
            raise
    raise OutputError(errno.EBUSY, f"{path} is replaced all the time; name another output")


def _sync_folder(folder: Path) -> None:
    """Makes a rename last. Not everywhere can folders be synced."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
