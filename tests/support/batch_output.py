"""Results, their lines, and outputs that hold them, for tests of records, files and writers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.servers import whole
from together_async.batch.output import OutputFile
from together_async.batch.record import Record, completion_record, decode_line, encode_line
from together_async.batch.writer import OutputWriter
from together_async.ratelimit.estimator import Size
from together_async.wire import codec

UNKNOWN_SIZE = Size(0, None, 1)
"""The size of a request of which nothing is known."""
COMPLETION = codec.decode_completion(codec.encode(whole("Hällo")))


def answer(custom_id: str, body_hash: str = "1") -> tuple[bytes, Record]:
    record = completion_record(Record(custom_id, body_hash), COMPLETION, size=UNKNOWN_SIZE)
    return encode_line(record, COMPLETION), record


def failure(custom_id: str) -> tuple[bytes, Record]:
    record = Record(custom_id, code="500", message="busy")
    return encode_line(record), record


def completion_of(body: dict[str, Any] | bytes) -> Any:
    return codec.decode_completion(body if isinstance(body, bytes) else json.dumps(body).encode())


def answer_line(custom_id: str, text: str = "Hello", **meta: Any) -> bytes:
    """The line of a completion, as a batch writes it."""
    completion = completion_of(whole(text))
    return encode_line(completion_record(Record(custom_id, **meta), completion, size=UNKNOWN_SIZE), completion)


def failure_line(custom_id: str, code: str = "500", message: str = "busy", **meta: Any) -> bytes:
    return encode_line(Record(custom_id, code=code, message=message, **meta))


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


@contextlib.contextmanager
def opened(path: Path, reported: list[str] | None = None) -> Iterator[OutputWriter]:
    """The file of one run; the names of results that are on disk are added to the list."""
    note = None if reported is None else lambda records: reported.extend(record.custom_id for record in records)
    writer = OutputWriter(OutputFile(path), note)
    try:
        writer.file.open()
        yield writer
    finally:
        writer.close()


@contextlib.asynccontextmanager
async def writing(writer: OutputWriter) -> Any:
    """The writer's task, whose end is awaited."""
    task = asyncio.create_task(writer.run())
    try:
        yield task
        writer.finish()
        await task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await task
