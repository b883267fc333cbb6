"""Writes results to the output from the event loop, without waiting for the disk.

Results that come while the disk is busy are written together, with one write and one fsync, so that each costs a share
of them. A result counts as done when the fsync has returned.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from together_async.batch.output import OutputError, OutputFile, output_error
from together_async.batch.record import Record

T = TypeVar("T")

PACE_S: Final = 0.02
"""Least seconds between the starts of two writes: results that come in between share the next one."""
MOST_WAITING: Final = 1_000
"""Results that may wait for the disk before `room` waits as well."""


async def uncancelled(work: asyncio.Future[T]) -> T:
    """Waits for work that can't be stopped, such as a thread's. A cancellation takes effect when the work has ended."""
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        work.exception()  # retrieved, so that asyncio does not log it
        raise cancelled
    return work.result()


class OutputWriter:
    """Queues results for an output, and writes them in batches.

    Args:
        file: The output, open. The writer closes it.
        on_written: Called in the event loop with the records that have just reached the disk. None calls nothing.
    """

    def __init__(self, file: OutputFile, on_written: Callable[[list[Record]], None] | None = None) -> None:
        self.file = file
        self._on_written = on_written
        self._waiting: list[tuple[bytes, Record]] = []
        self._wanted = asyncio.Event()
        self._room = asyncio.Event()
        self._finishing = False
        self._failure: OutputError | None = None
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="together_async-disk")

    def __repr__(self) -> str:
        return f"<OutputWriter {self.file!r}, {len(self._waiting)} lines wait>"

    @property
    def waiting(self) -> int:
        """Lines that are not on disk yet."""
        return len(self._waiting)

    def add(self, line: bytes, record: Record) -> None:
        """Queues a result. It is on disk when `on_written` is called with its record.

        Args:
            line: The line of the output, with its line feed.
            record: The same result, for `on_written`.

        Raises:
            OutputError: An earlier write has failed.
        """
        if self._failure is not None:
            raise self._failure
        self._waiting.append((line, record))
        self._wanted.set()

    async def room(self) -> None:
        """Waits until fewer than `MOST_WAITING` results wait for the disk.

        Raises:
            OutputError: A write has failed.
        """
        while len(self._waiting) >= MOST_WAITING and self._failure is None:
            self._room.clear()
            await self._room.wait()
        if self._failure is not None:
            raise self._failure

    async def run(self) -> None:
        """Writes queued results until `finish` has been called and all are on disk. Run it as a task.

        Raises:
            OutputError: A write has failed. The file is whole, and `on_written` was called for everything in it.
        """
        loop = asyncio.get_running_loop()
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            began = loop.time()
            lines = tuple(self._waiting)
            if lines:
                await self._write(loop, lines)
            if self._finishing:
                if not self._waiting:
                    return
                self._wanted.set()
            else:
                pause_s = began + PACE_S - loop.time()
                if pause_s > 0:
                    await asyncio.sleep(pause_s)

    async def _write(self, loop: asyncio.AbstractEventLoop, lines: tuple[tuple[bytes, Record], ...]) -> None:
        writing = loop.run_in_executor(self._disk, self.file.append, _joined(lines))
        try:
            await uncancelled(writing)
        except OSError as error:
            self._failure = output_error(self.file.path, "written", error)
            self._room.set()
            raise self._failure from error
        except asyncio.CancelledError:
            if writing.exception() is None:
                self._note_written(lines)
            raise
        self._note_written(lines)

    def _note_written(self, lines: tuple[tuple[bytes, Record], ...]) -> None:
        del self._waiting[: len(lines)]
        self._room.set()
        if self._on_written is not None:
            self._on_written([record for _, record in lines])

    def finish(self) -> None:
        """Lets `run` return once everything is on disk; no more results may be added."""
        self._finishing = True
        self._wanted.set()

    def close(self) -> None:
        """Writes what still waits and closes the file, after `run` has ended. Blocks; a second time does nothing.

        Raises:
            OutputError: What still waits can't be written.
        """
        self._disk.shutdown(wait=True)
        try:
            lines = tuple(self._waiting)
            if lines and self._failure is None and self.file.is_open:
                try:
                    self.file.append(_joined(lines))
                except OSError as error:
                    self._failure = output_error(self.file.path, "written", error)
                    raise self._failure from error
                self._note_written(lines)
        finally:
            self.file.close()


def _joined(lines: tuple[tuple[bytes, Record], ...]) -> bytes:
    return b"".join(line for line, _ in lines)
