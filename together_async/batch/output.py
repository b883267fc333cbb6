"""A batch's output on disk: locked, made of whole lines, and repaired after a crash. Blocking.

The file is locked as long as it is open, so that two runs can't share it. The lock is on the file itself and ends with
the process, however that ends. Lines that no longer count are taken out by writing a new file next to it, which then
replaces it in one step: a crash leaves either the old file or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Final

from together_async.batch.record import Record, RecordError, decode_line
from together_async.batch.standing import Standing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment] # the module is missing there

_MOST_TRIES: Final = 10


class OutputError(OSError):
    """The output can't be opened, read or written, or it is not a batch's output.

    The message names the file and the reason, and says what to do. What was in the file is still there, and the same
    batch can be run again. `errno` has the system's code.
    """


def output_error(path: Path, action: str, error: OSError) -> OutputError:
    """Returns the error for an action on the output that the system refused.

    Args:
        path: The output.
        action: What failed, such as "opened" or "written".
        error: The system's error.
    """
    hints = {
        errno.ENOSPC: "; make room and run the same command again: what is in it counts",
        errno.EDQUOT: "; raise the quota and run the same command again: what is in it counts",
    }
    reason = error.strerror or type(error).__name__
    return OutputError(error.errno, f"{path} can't be {action}: {reason}{hints.get(error.errno or 0, '')}")


class OutputFile:
    """The output of one run. Every method blocks: call them in a thread, one at a time.

    Args:
        path: The file, which is created if it does not exist.

    Attributes:
        path: The file; for a symbolic link, the file that it leads to, since that is what `compact` replaces.
        standing: What the file held when it was opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.realpath(path))
        self.standing = Standing()
        self._fd = -1
        self._size = 0  # everything up to here is on disk

    def __repr__(self) -> str:
        state = f"{self._size} bytes" if self.is_open else "closed"
        return f"<OutputFile {self.path.name} {state}>"

    @property
    def is_open(self) -> bool:
        """Whether the file is open and locked."""
        return self._fd >= 0

    def open(self) -> None:
        """Locks the file, reads what it holds and repairs its end.

        Raises:
            OutputError: The file can't be opened, is not a regular file, is in use by another run, or holds something
                other than results.
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
                self.close()
                raise
        except OutputError:
            raise
        except OSError as error:
            raise output_error(self.path, "opened", error) from error

    def _read(self) -> Standing:
        with os.fdopen(os.dup(self._fd), "rb", buffering=1 << 20) as file:
            file.seek(0)
            return _standing_of(file, self.path)

    def _repair(self) -> None:
        """Cuts off a torn last line, and ends one that only lacks its line feed."""
        standing = self.standing
        if standing.torn_size:
            os.ftruncate(self._fd, standing.whole_size)
        self._size = standing.whole_size
        if standing.ends_open:
            self.append(b"\n")
            standing.ends_open = False
        elif standing.torn_size or standing.lines:
            os.fsync(self._fd)  # a run that was killed may have written lines without syncing them

    def append(self, data: bytes) -> None:
        """Writes and syncs; a write that fails half-way is undone, so that the file stays whole.

        Raises:
            OSError: The data can't be written, or the file was removed or replaced meanwhile.
        """
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

    def records(self) -> Iterator[Record]:
        """Yields the results of all lines, including those appended since the file was opened."""
        for _, line in self._numbered_lines():
            with contextlib.suppress(RecordError):
                yield decode_line(line)

    def close(self) -> None:
        """Closes the file and releases its lock; a second time does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    # ------------------------------------------------------------------------------------------------------ compaction

    def compact(self, dropped: Collection[str] = (), *, kept_aside: Collection[str] = ()) -> None:
        """Removes the lines that don't count, and those of some requests.

        Args:
            dropped: custom_ids whose lines are removed, such as errors whose requests are sent again.
            kept_aside: custom_ids whose lines move to the file with `.superseded` appended to its name, such as
                completions of requests edited since. Unreadable lines move there too.

        Raises:
            OutputError: The system refused; the file is as it was.
        """
        aside = set(self.standing.set_aside) | {self.standing.line_number(name) for name in kept_aside}
        removed = aside | {self.standing.line_number(name) for name in dropped}
        if not removed:
            return
        new_path = self.path.with_name(f".{self.path.name}.new")
        try:
            with contextlib.suppress(FileNotFoundError):
                new_path.unlink()
            self._write_aside(aside)
            fd = _open_locked(new_path)
            try:
                size = self._copy_without(removed, fd)
                os.fsync(fd)
                # Not every file system keeps the mode of the file that a rename replaces.
                os.fchmod(fd, os.fstat(self._fd).st_mode & 0o7777)
                new_path.replace(self.path)
                _sync_folder(self.path.parent)
            except BaseException:
                os.close(fd)
                raise
        except OSError as error:
            with contextlib.suppress(OSError):
                new_path.unlink()
            raise output_error(self.path, "put in order", error) from error
        os.close(self._fd)
        self._fd, self._size = fd, size

    def _write_aside(self, numbers: Collection[int]) -> None:
        if not numbers:
            return
        with self.path.with_name(self.path.name + ".superseded").open("ab+") as file:
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.write(b"\n")  # its last line is torn, after a power cut
            for number, line in self._numbered_lines():
                if number in numbers:
                    file.write(line if line.endswith(b"\n") else line + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _copy_without(self, removed: Collection[int], fd: int) -> int:
        size = 0
        with os.fdopen(os.dup(fd), "wb", buffering=1 << 20) as file:
            for number, line in self._numbered_lines():
                if number not in removed:
                    file.write(line)
                    size += len(line)
        return size

    def _numbered_lines(self) -> Iterator[tuple[int, bytes]]:
        with os.fdopen(os.dup(self._fd), "rb", buffering=1 << 20) as file:
            file.seek(0)
            yield from enumerate(file, 1)


def read_standing(path: Path) -> Standing:
    """Returns what an output holds, without locking or changing it. Blocks.

    Raises:
        OutputError: The file can't be read, or holds something other than results.
    """
    try:
        with path.open("rb", buffering=1 << 20) as file:
            return _standing_of(file, path)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(error.errno, f"{path} can't be read: {error.strerror}") from error


def _standing_of(lines: Iterable[bytes], path: Path) -> Standing:
    standing = Standing()
    try:
        for line in lines:
            standing.add(line)
    except RecordError as error:
        raise OutputError(
            errno.EEXIST, f"{path}: {error}; is it another file? Nothing in it was changed; name another output"
        ) from None
    return standing


def _open_locked(path: Path) -> int:
    """Returns a descriptor of the file that has this name now, locked.

    Raises:
        OutputError: Another run has the file, or it is not a regular file.
    """
    for _ in range(_MOST_TRIES):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            if not path.is_file():  # a pipe or a device may have no end to read to
                raise OutputError(errno.EINVAL, f"{path} is no regular file; results are kept in one, name it")
            if fcntl is not None:  # `open` has made sure of it
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), path.stat()):
                    return fd
            os.close(fd)  # another run has replaced the file between opening and locking: try the new one
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
    """Makes a rename durable. Some file systems can't sync folders."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
