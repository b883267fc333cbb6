"""`run_batch`: a file of requests in, a file of results out, resumable whatever happens in between."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import datetime as dt
import errno
import json
import math
import os
import threading
import types
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from support import virtual_time
from support.servers import KEY, MODEL, Call, ScriptedServer, response, whole
from together_async import AsyncTogether, Limits, Retry, Timeouts
from together_async.batch import outage
from together_async.batch import output as disk
from together_async.batch import runner as module
from together_async.batch.output import OutputError
from together_async.batch.record import Record, body_hash, decode_line
from together_async.batch.runner import Batch, BatchInputError, BatchOptions, BatchSummary
from together_async.testing import Cut, EmulatorServer, InTurn, Status

BUSY = response({"error": {"message": "busy"}}, status=503)
PRICES = [{"id": MODEL, "pricing": {"input": 1_000_000, "output": 1_000_000}}]
"""A dollar for each token."""


def answer(text: str = "Hello", *, prompt: int = 10, completion: int = 5, **changes: Any) -> bytes:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    body = {**whole(text), "usage": usage, **changes}
    return response({name: value for name, value in body.items() if value is not ...})


class Service(ScriptedServer):
    """Answers each prompt with what a function of the prompt and of how often it came says; None is silence."""

    def __init__(self, reply: Callable[[str, int], bytes | None] | None = None, models: Any = PRICES) -> None:
        super().__init__(self._answer)
        self.reply = reply or (lambda prompt, times: answer(f"answer to {prompt}"))
        self.models = models
        self.asked: collections.Counter[str] = collections.Counter()
        self.at_once = self.most_at_once = 0
        self.gate: asyncio.Event | None = None
        self._change = asyncio.Event()

    async def _answer(self, call: Call) -> None:
        if call.target.endswith("/models"):
            data = response(self.models) if self.models is not None else response({}, status=404)
            await call.send(data)
            return
        prompt = call.json["messages"][-1]["content"]
        self.asked[prompt] += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self._change.set()
        try:
            if self.gate is not None:
                await self.gate.wait()
            data = self.reply(prompt, self.asked[prompt])
            if data is None:
                await call.hang()
            elif data == b"":
                call.reset()
            else:
                await call.send(data)
        finally:
            self.at_once -= 1

    async def busy(self, count: int, *, ever: bool = False) -> None:
        """Waits until so many requests are under way, or have ever been."""
        while (self.requests if ever else self.at_once) < count:
            self._change.clear()
            await self._change.wait()

    @property
    def requests(self) -> int:
        """How many chat requests came."""
        return self.asked.total()


class Files:
    """An input, an output, and what is in them."""

    def __init__(self, folder: Path) -> None:
        self.input, self.output = folder / "in.jsonl", folder / "out.jsonl"

    def write(self, count: int, **fields: Any) -> None:
        self.write_lines(*(request(f"r{number}", **fields) for number in range(count)))

    def write_lines(self, *lines: str) -> None:
        self.input.write_text("".join(line + "\n" for line in lines))

    @property
    def results(self) -> dict[str, Any]:
        """The lines of the output by custom_id; each is whole, and none stands there twice."""
        data = self.output.read_bytes()
        assert not data or data.endswith(b"\n")
        lines = [json.loads(line) for line in data.splitlines()]
        found = {line["custom_id"]: line for line in lines}
        assert len(found) == len(lines), "a custom_id stands there twice"
        return found

    @property
    def superseded(self) -> list[dict[str, Any]]:
        path = self.output.with_name("out.jsonl.superseded")
        return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def request(custom_id: str, **fields: Any) -> str:
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"prompt of {custom_id}"}], "max_tokens": 5}
    return json.dumps({"custom_id": custom_id, "body": body | fields})


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def text_of(result: dict[str, Any]) -> str:
    return str(result["response"]["body"]["choices"][0]["message"]["content"])


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture
async def service(no_leaks: None) -> AsyncIterator[Service]:
    async with Service() as service:
        yield service


@pytest.fixture
async def client(service: Service) -> AsyncIterator[AsyncTogether]:
    async with connected(service) as client:
        yield client


def connected(server: Any, **options: Any) -> AsyncTogether:
    return AsyncTogether(KEY, base_url=server.base_url, **options)


async def run(client: AsyncTogether, files: Files, **options: Any) -> BatchSummary:
    """A run whose answers are not streamed, unless it says so."""
    return await client.run_batch(files.input, files.output, **{"stream": False, **options})


# ------------------------------------------------------------------------------------------------------- what comes out


async def test_everything_is_asked_and_written_once(service: Service, client: AsyncTogether, files: Files) -> None:
    files.write(30)
    records = list[Record]()
    summary = await run(client, files, on_result=records.append)
    results = files.results
    assert {name: text_of(result) for name, result in results.items()} == {
        f"r{number}": f"answer to prompt of r{number}" for number in range(30)
    }
    assert set(service.asked.values()) == {1}
    assert [record.custom_id for record in records] == list(results)
    assert records == [decode_line(line) for line in files.output.read_bytes().splitlines()]
    assert (summary.total, summary.done, summary.failed, summary.resumed, summary.remaining) == (30, 30, 0, 0, 0)
    assert (summary.prompt_tokens, summary.completion_tokens, summary.cost) == (300, 150, None)
    assert (summary.ok, summary.stopped, summary.edited, summary.strangers) == (True, None, 0, 0)
    line = json.loads(files.input.read_text().splitlines()[0])
    assert results["r0"]["meta"]["hash"] == body_hash(line["body"])


async def test_a_streamed_answer_is_written_as_a_whole_one(no_leaks: None, files: Files) -> None:
    """The same completion, with usage; and the line says when its first token came."""
    files.write(3)
    async with EmulatorServer("Hello there!") as server, connected(server) as client:
        await run(client, files)
        plain = files.results
        files.output.unlink()
        summary = await run(client, files, stream=True)
        assert server.journal[-1].body["stream_options"] == {"include_usage": True}
    streamed = files.results
    for name, result in plain.items():
        one, other = (dict(lines["response"]["body"]) for lines in (result, streamed[name]))
        assert one["choices"][0]["message"]["content"] == other["choices"][0]["message"]["content"] == "Hello there!"
        assert one["usage"] == other["usage"]
        assert one["object"] == other["object"] == "chat.completion"
    assert summary.completion_tokens > 0
    assert all("first_token_s" in result["meta"] for result in streamed.values())


async def test_a_text_and_a_csv_become_requests(service: Service, client: AsyncTogether, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("one\n\nthree\n")
    (tmp_path / "in.csv").write_text('id,custom_id,text\n1,x,"a\nb"\n2,y,c\n')
    await client.run_batch(tmp_path / "in.txt", tmp_path / "1", model=MODEL, stream=False, system="Be brief.")
    await client.run_batch(
        tmp_path / "in.csv", tmp_path / "2", model=MODEL, stream=False, template="Sum up {text}!", max_tokens=3
    )
    assert set(service.asked) == {"one", "three", "Sum up a\nb!", "Sum up c!"}
    assert {json.loads(line)["custom_id"] for line in (tmp_path / "1").read_bytes().splitlines()} == {
        "line-1",
        "line-3",
    }
    assert {json.loads(line)["custom_id"] for line in (tmp_path / "2").read_bytes().splitlines()} == {"x", "y"}


async def test_an_empty_input_makes_an_empty_output(service: Service, client: AsyncTogether, files: Files) -> None:
    files.write(0)
    summary = await run(client, files)
    assert (summary.total, summary.ok, summary.stopped) == (0, True, None)
    assert files.output.read_bytes() == b""
    assert not service.calls


async def test_as_many_are_under_way_as_asked_for(service: Service, client: AsyncTogether, files: Files) -> None:
    files.write(40)
    service.gate = asyncio.Event()
    task = asyncio.create_task(run(client, files, concurrency=7))
    await service.busy(7)
    service.gate.set()
    await task
    assert service.most_at_once == 7


async def test_a_report_is_written_beside(
    service: Service, client: AsyncTogether, files: Files, tmp_path: Path
) -> None:
    pytest.importorskip("together_async.batch.report")
    files.write(3)
    await run(client, files, report=tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert len(files.results) == 3
    assert names_in(tmp_path) == ["in.jsonl", "out.jsonl", "report.html"]


async def test_progress_tells_how_it_stands(service: Service, client: AsyncTogether, files: Files) -> None:
    files.write(10)
    batch = Batch(client, files.input, files.output, BatchOptions(stream=False, concurrency=4))
    assert batch.progress.total == 0
    service.gate = asyncio.Event()
    task = asyncio.create_task(batch.run())
    await service.busy(4)
    during = batch.progress
    assert (during.total, during.done, during.in_flight, during.queued) == (10, 0, 4, 0)
    service.gate.set()
    await task
    after = batch.progress
    assert (after.done, after.failed, after.in_flight, after.tokens, after.state) == (10, 0, 0, 150, "")
    assert "in.jsonl" in repr(batch)
    assert KEY not in repr(batch)


# ------------------------------------------------------------------------------------------------------------- going on


async def test_a_run_after_the_last_asks_nothing(service: Service, client: AsyncTogether, files: Files) -> None:
    files.write(5)
    await run(client, files)
    before = files.output.read_bytes()
    summary = await run(client, files)
    assert service.requests == 5
    assert files.output.read_bytes() == before
    assert (summary.done, summary.resumed, summary.ok) == (5, 5, True)
    assert (summary.prompt_tokens, summary.completion_tokens) == (50, 25)


async def test_an_edited_line_is_asked_again_and_its_old_answer_kept_aside(
    service: Service, client: AsyncTogether, files: Files
) -> None:
    files.write(3)
    await run(client, files)
    old = files.results["r1"]
    files.write_lines(request("r0"), request("r1", max_tokens=4), request("r2"), request("new"))
    summary = await run(client, files)
    assert service.asked == {f"prompt of {name}": 1 for name in ("r0", "r2", "new")} | {"prompt of r1": 2}
    assert set(files.results) == {"r0", "r1", "r2", "new"}
    assert files.superseded == [old]
    assert (summary.edited, summary.resumed, summary.done) == (1, 2, 4)


async def test_another_model_for_all_asks_those_without_one_again(
    service: Service, client: AsyncTogether, files: Files
) -> None:
    files.write_lines(request("own"), request("silent", model=None))
    await run(client, files, model="one")
    await run(client, files, model="one")
    assert service.requests == 2
    await run(client, files, model="two")
    assert service.asked == {"prompt of own": 1, "prompt of silent": 2}


async def test_an_output_of_the_batch_api_is_gone_on_with(
    service: Service, client: AsyncTogether, files: Files
) -> None:
    """Its lines are kept as they are."""
    files.write(4)
    theirs = [
        {"id": "1", "custom_id": "r0", "response": {"status_code": 200, "body": whole()}, "error": None},
        {"custom_id": "r2", "error": {"message": "x", "code": "429"}},
    ]
    files.output.write_text("".join(json.dumps(line) + "\n" for line in theirs))
    await run(client, files)
    assert set(service.asked) == {"prompt of r1", "prompt of r3"}
    assert [files.results[name] for name in ("r0", "r2")] == theirs
    summary = await run(client, files, retry_errors=True)
    assert service.asked["prompt of r2"] == 1
    assert (summary.done, summary.failed) == (4, 0)


async def test_results_that_no_line_asks_for_are_kept(client: AsyncTogether, files: Files) -> None:
    files.write(3)
    await run(client, files)
    old = files.results["r2"]
    files.write_lines(request("r0", max_tokens=1), request("other"))
    summary = await run(client, files)
    assert files.results["r2"] == old
    assert (summary.strangers, summary.total, summary.done) == (2, 2, 2)


async def test_errors_are_asked_again_on_request(service: Service, client: AsyncTogether, files: Files) -> None:
    files.write(4)
    service.reply = lambda prompt, times: answer() if times > 1 or "r1" not in prompt else _refused()
    summary = await run(client, files)
    assert (summary.done, summary.failed, summary.ok) == (3, 1, False)
    summary = await run(client, files)
    assert (summary.done, summary.failed, summary.resumed) == (3, 1, 4)
    summary = await run(client, files, retry_errors=True)
    assert (summary.done, summary.failed, service.requests) == (4, 0, 5)
    assert files.superseded == []
    assert "response" in files.results["r1"]


def _refused(message: str = "no such thing", status: int = 400) -> bytes:
    return response({"error": {"message": message, "type": "invalid_request_error"}}, status=status)


async def test_a_truncated_output_is_finished(
    service: Service, client: AsyncTogether, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every byte of its end and at many others: whole lines before the cut stay as they were, each name is once."""
    monkeypatch.setattr(disk.os, "fsync", lambda fd: None)
    files.write(6)
    service.reply = lambda prompt, times: _refused() if "r3" in prompt else answer("Hi")
    await run(client, files, concurrency=1)
    data = files.output.read_bytes()
    lines = data.splitlines(keepends=True)
    for size in {*range(0, len(data), 41), *range(len(data) - 60, len(data) + 1)}:
        files.output.write_bytes(data[:size])
        service.asked.clear()
        summary = await run(client, files)
        whole_lines = data[: size + 1].count(b"\n")
        assert files.output.read_bytes().startswith(b"".join(lines[:whole_lines]))
        assert files.results.keys() == {f"r{number}" for number in range(6)}
        assert service.requests == 6 - whole_lines
        assert (summary.done, summary.failed, summary.resumed) == (5, 1, whole_lines)


# ------------------------------------------------------------------------------------------------------ what is refused


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
    """As errors, once; and a line that is mended is asked."""
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


@pytest.mark.parametrize("kind", ["itself", "symlink", "hard link", "symlink to nothing"])
@pytest.mark.parametrize("which", ["output", "report"])
async def test_the_input_is_never_written_to(
    service: Service, client: AsyncTogether, files: Files, tmp_path: Path, kind: str, which: str
) -> None:
    files.write(2)
    name = tmp_path / "other.jsonl"
    if kind == "itself":
        name = tmp_path / "x" / ".." / "in.jsonl"
        (tmp_path / "x").mkdir()
    elif kind == "hard link":
        name.hardlink_to(files.input)
    elif kind == "symlink":
        name.symlink_to(files.input)
    else:
        name.symlink_to(files.output)
        files.output, name = name, files.output
    before = files.input.read_bytes()
    target = {"output": name} if which == "output" else {"output": files.output, "report": name}
    if kind == "symlink to nothing" and which == "output":
        target = {"output": files.output, "report": name}
    with pytest.raises(ValueError, match=r"output|report"):
        await client.run_batch(files.input, **target, stream=False)
    assert files.input.read_bytes() == before
    assert not service.calls


@pytest.mark.parametrize(
    "content",
    [request("a") + "\n" + request("b") + "\n", request("a"), "Dear diary,\n", '{"x": 1}\n', "id,text\n1,a\n"],
    ids=["an input", "one line", "a text", "JSON lines", "CSV"],
)
async def test_another_file_of_the_users_is_left_as_it_is(
    service: Service, client: AsyncTogether, files: Files, tmp_path: Path, content: str
) -> None:
    """The two files in the wrong order, a name that was taken: refused, and not a byte changed."""
    files.write(2)
    files.output.write_text(content)
    for options in ({}, {"retry_errors": True, "keep_going": True}):
        with pytest.raises(OutputError, match=r"out\.jsonl.*name another output"):
            await run(client, files, **options)
    assert files.output.read_text() == content
    assert names_in(tmp_path) == ["in.jsonl", "out.jsonl"]
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
    assert names_in(tmp_path) == []


async def test_a_pipe_is_no_input(client: AsyncTogether, files: Files) -> None:
    """It could be read once only; and nobody waits for it."""
    os.mkfifo(files.input)
    with pytest.raises(OSError, match="regular file"):
        await run(client, files)


async def test_an_output_in_use_is_one_clear_error(service: Service, client: AsyncTogether, files: Files) -> None:
    """At once, while the first goes on."""
    files.write(3)
    service.gate = asyncio.Event()
    first = asyncio.create_task(run(client, files))
    await service.busy(1)
    with pytest.raises(OutputError, match="is in use by another run"):
        await run(client, files)
    service.gate.set()
    assert (await first).ok
    assert service.requests == 3


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0},
        {"concurrency": 1.5},
        {"max_cost": 0},
        {"max_cost": math.nan},
        {"max_tokens_total": -1},
        {"max_tokens_total": True},
        {"deadline": 0},
        {"deadline": math.inf},
        {"deadline": "tomorrow"},
        {"format": "xml"},
        {"template": "{a}"},
        {"retry": 5},
        {"timeouts": 5},
        {"headers": {"a": 1}},
        {"on_result": 5},
        {"report": ""},
        {"report": "/nowhere/at/all/report.html"},
        {"temperature": -1},
        {"model": ""},
    ],
    ids=str,
)
async def test_an_option_out_of_range_is_found_at_once(
    service: Service, client: AsyncTogether, files: Files, options: dict[str, Any]
) -> None:
    """One ValueError that names it, and nothing is made."""
    files.write(2)
    (name,) = options
    with pytest.raises(ValueError, match=name):
        await run(client, files, **options)
    assert not service.calls
    assert not files.output.exists()


async def test_an_option_that_is_none_is_a_type_error(client: AsyncTogether, files: Files) -> None:
    files.write(1)
    with pytest.raises(TypeError, match="nonsense"):
        await run(client, files, nonsense=1)


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
    """What was told is in the file, which is whole; with room again the same call ends it."""
    files.write(60)
    told, real = list[str](), getattr(os, way)

    def call(fd: int, *args: Any) -> Any:
        if os.fstat(fd).st_size > 2_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, *args)

    with monkeypatch.context() as patched:
        patched.setattr(disk, "PACE_S", 0)
        patched.setattr(disk.os, way, call)
        with pytest.raises(OutputError, match=r"out\.jsonl can't be written: No space left on device; make room"):
            await run(client, files, concurrency=1, on_result=lambda record: told.append(record.custom_id))
    assert set(told) <= files.results.keys()
    assert len(files.results) < 60
    summary = await run(client, files)
    assert summary.ok
    assert set(told) <= files.results.keys()
    assert all(service.asked[f"prompt of {name}"] == 1 for name in told)


async def test_a_slow_disk_slows_the_requests(
    service: Service, client: AsyncTogether, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for it is bounded: more is not asked until it has room."""
    files.write(60)
    gate = threading.Event()
    with monkeypatch.context() as patched:
        patched.setattr(disk, "MOST_WAITING", 5)
        patched.setattr(disk.os, "fsync", lambda fd: gate.wait(10))
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

    real = disk.ResultsFile.compact

    def compact(*args: Any, **options: Any) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(disk.os, "fsync", fsync)
            real(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(disk.ResultsFile, "compact", compact)
        with pytest.raises(OutputError, match="can't be put in order: No space left"):
            await run(client, files)
    assert files.output.read_bytes() == before
    assert service.requests == 3
    assert (await run(client, files)).ok


# --------------------------------------------------------------------------------------------------------------- errors


async def test_errors_that_pass_are_asked_again_after_the_others(
    service: Service, client: AsyncTogether, files: Files
) -> None:
    """Whatever they are; the request is not to blame, and its result is the answer."""
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
        (_refused(f"bad prompt of r1, key {KEY}"), "400"),
        (_refused(status=403), "403"),
        (_refused(status=404), "404"),
        (_refused(status=422), "422"),
        (response({"hello": "world", "choices": 5}), "response_validation"),
        (response(b"<html>prompt of r1</html>", media_type="text/html"), "response_validation"),
    ],
    ids=["400", "403", "404", "422", "no completion", "HTML"],
)
async def test_errors_that_stay_become_lines(
    service: Service, client: AsyncTogether, files: Files, data: bytes, code: str
) -> None:
    """With a code and a text, in which there is neither key nor prompt; asked once."""
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
    """While the service answers to others: it has been asked five times then, each time after the others."""
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
    """Nothing becomes an error; with another key the same call goes on."""
    files.write(50)
    service.reply = lambda prompt, times: answer() if prompt[-1] in "012" else _refused(status=status)
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
    """Nothing becomes an error, and another client goes on."""
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


# ------------------------------------------------------------------------------ a service that is away, in virtual time


def away_between(service: Service, begin: int, seconds: float, data: bytes | None = b"") -> None:
    """After so many answers it is away for a while."""
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
    """Away for minutes: no error lines, and while it is away one request at a time, less and less often."""

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
    """Lets the module's clocks go with the loop's."""
    loop = asyncio.get_running_loop()
    clock = types.SimpleNamespace(monotonic=loop.time, time=lambda: 1.7e9 + loop.time())
    monkeypatch.setattr(module, "time", clock)


@pytest.mark.parametrize("data", [b"", None, BUSY], ids=["reset", "silence", "503"])
@pytest.mark.parametrize("count", [1, 3, 30])
def test_a_service_that_never_answers_ends_it(
    files: Files, monkeypatch: pytest.MonkeyPatch, data: bytes | None, count: int
) -> None:
    """Saying so; nothing is marked as failed, and a later run asks all."""

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
    """After an hour (here: ten minutes), saying so; what was answered stays, and nothing is marked as failed."""
    monkeypatch.setattr(outage, "PATIENCE_S", 600)

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
    """A service that refused fifty requests and is away then has answered."""

    async def main() -> None:
        _follow_the_loop(monkeypatch)
        async with Service() as service, connected(service) as client:
            until = asyncio.get_running_loop().time() + 600

            def reply(prompt: str, times: int) -> bytes:
                if service.requests <= 50:
                    return _refused()
                return answer() if asyncio.get_running_loop().time() > until else BUSY

            service.reply = reply
            summary = await run(client, files, concurrency=4)
            assert (summary.done + summary.failed, summary.failed, summary.stopped) == (80, 50, None)

    files.write(80)
    virtual_time.run(main())


# -------------------------------------------------------------------------------------------------------------- leaving


async def _when(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - inner state, of which nobody tells
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
    """What was read so far is not all, and is not passed off as all."""
    files.write(3_000)
    done = [
        json.dumps({"custom_id": f"r{number}", "response": {"status_code": 200, "body": whole()}}) + "\n"
        for number in range(3_000)
    ]
    files.output.write_text("".join(done[:2_500]))
    before = files.output.read_bytes()
    batch = Batch(client, files.input, files.output, BatchOptions(stream=False))
    real = module.make_plan

    def make_plan(*args: Any, **options: Any) -> Any:
        batch.drain("while reading")
        return real(*args, **options)

    monkeypatch.setattr(module, "make_plan", make_plan)
    summary = await batch.run()
    assert summary.stopped == "while reading"
    assert not summary.ok
    assert summary.strangers == 0
    assert not service.requests
    assert files.output.read_bytes() == before


async def test_draining_when_the_last_are_under_way_stops_nothing(
    service: Service, client: AsyncTogether, files: Files
) -> None:
    """All have an answer, so nobody has to go on, and nothing is said to have been stopped."""
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
    """Without an error; nothing that was asked is lost, and nothing is asked twice."""
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
        while batch._results is None and not task.done():  # noqa: ASYNC110 - not a turn later
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
    ids=["limits", "told by a 429", "told by a 500", "away"],
)
def test_draining_does_not_wait_for_what_waits(
    files: Files, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], data: bytes
) -> None:
    """For the limits, for another attempt, for a service that is away: it ends at once, and nothing has failed."""

    async def main() -> None:
        async with Service(lambda prompt, times: data) as service, connected(service, **options) as client:
            batch = Batch(client, files.input, files.output, BatchOptions(stream=False, concurrency=20))
            task = asyncio.create_task(batch.run())
            loop = asyncio.get_running_loop()
            await service.busy(1, ever=True)
            await asyncio.sleep(5)
            began = loop.time()
            batch.drain("now")
            summary = await task
            assert loop.time() - began < 2
            assert summary.stopped == "now"
            assert summary.failed == 0
            assert summary.done == len(files.results)

    files.write(30)
    virtual_time.run(main())


async def test_a_cancelled_run_leaves_a_whole_file_and_no_lock(
    service: Service, client: AsyncTogether, files: Files
) -> None:
    """After any number of turns, once or twice: what was told is there, nobody holds the file, and no task is left."""
    turns = [*range(10), *(round(1.25**power) for power in range(11, 40))]
    finished = 0
    for number, count in enumerate(turns):
        files.write(12)
        files.output.unlink(missing_ok=True)
        told = list[str]()
        task = asyncio.create_task(
            run(client, files, concurrency=3, on_result=lambda record: told.append(record.custom_id))  # noqa: B023
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
            assert set(told) == files.results.keys()
        assert len(asyncio.all_tasks()) == 1 + sum(not each.done() for each in service._tasks)
        assert (await run(client, files)).ok
    assert finished < len(turns)


async def test_what_came_before_a_cancellation_is_in_the_file(
    service: Service, client: AsyncTogether, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what waits for the disk."""
    monkeypatch.setattr(disk, "PACE_S", 3_600)
    files.write(10)
    service.reply = lambda prompt, times: None if "r9" in prompt else answer()
    batch = Batch(client, files.input, files.output, BatchOptions(stream=False, concurrency=10))
    task = asyncio.create_task(batch.run())
    await _when(lambda: len(batch._asked) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(files.results) == 9


async def test_an_error_of_the_callers_comes_out_alone(service: Service, client: AsyncTogether, files: Files) -> None:
    """When what is under way has come; the results are on disk, and a later run goes on."""
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


async def test_an_input_that_goes_away_is_one_error(service: Service, client: AsyncTogether, files: Files) -> None:
    """Between two rounds; what has come is in the output."""
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
    """It is read as it is needed: what is not read ahead has moved."""
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


# ----------------------------------------------------------------------------------------------------- what it may cost


@pytest.mark.parametrize("limit", ["max_tokens_total", "max_cost"])
async def test_a_budget_is_kept_over_runs(service: Service, client: AsyncTogether, files: Files, limit: str) -> None:
    """What earlier runs have used counts; a higher one goes on."""
    files.write(30)
    for most, done in ((100, 6), (100, 6), (200, 13), (10_000, 30)):
        summary = await run(client, files, concurrency=5, **{limit: most})
        assert summary.done == len(files.results) == done
        assert summary.prompt_tokens + summary.completion_tokens == 15 * done <= most
        assert (summary.stopped is None) == (done == 30)
        if summary.stopped:
            assert limit in summary.stopped
    assert service.requests == 30


@pytest.mark.parametrize("limit", ["max_tokens_total", "max_cost"])
@pytest.mark.parametrize(
    "changes", [{"model": "another/name"}, {"usage": ...}, {"usage": None}, {"model": ..., "usage": ...}], ids=str
)
async def test_a_budget_is_kept_whatever_the_server_tells(
    service: Service, client: AsyncTogether, files: Files, limit: str, changes: dict[str, Any]
) -> None:
    """Another model's name, no usage: then what was expected counts, in this run and in the next."""
    files.write(60)
    service.reply = lambda prompt, times: answer("twenty letters, that", **changes)
    for _ in range(2):
        summary = await run(client, files, concurrency=3, **{limit: 100})
        assert summary.stopped is not None
        assert limit in summary.stopped
    assert 3 < service.requests < 20


async def test_a_budget_is_exceeded_by_what_could_not_be_known_alone(
    service: Service, client: AsyncTogether, files: Files
) -> None:
    """Prompts that hold more tokens than any rule can tell: those that were under way, and then it has learned."""
    files.write(60)
    service.reply = lambda prompt, times: answer(prompt=100)
    summary = await run(client, files, concurrency=4, max_tokens_total=1_000)
    assert summary.prompt_tokens + summary.completion_tokens <= 1_000 + 4 * 105


@pytest.mark.parametrize("count", [1, 50])
async def test_the_cost_is_told_on_request(service: Service, client: AsyncTogether, files: Files, count: int) -> None:
    """However short the batch is, and when all has been done before."""
    files.write(count)
    for _ in range(2):
        summary = await run(client, files, prices=True)
        assert summary.cost == pytest.approx(15.0 * count)
    assert (await run(client, files)).cost is None


@pytest.mark.parametrize("models", [None, [], {"data": []}, [{"id": MODEL}]], ids=str)
async def test_a_cost_without_prices_can_not_be_kept(
    client: AsyncTogether, service: Service, files: Files, models: Any
) -> None:
    """So nothing is asked; without a limit the cost is just not told."""
    service.models = models
    files.write(3)
    with pytest.raises(ValueError, match="max_cost: the service"):
        await run(client, files, max_cost=5)
    assert not service.requests
    summary = await run(client, files)
    assert (summary.cost, summary.ok) == (None, True)


async def test_a_deadline_ends_it(service: Service, client: AsyncTogether, files: Files) -> None:
    """Nothing begins after it, and what is under way comes."""
    files.write(500)
    service.gate = asyncio.Event()
    asyncio.get_running_loop().call_later(0.1, service.gate.set)
    summary = await run(client, files, concurrency=2, deadline=0.05)
    assert (summary.stopped, summary.done, service.requests) == ("the deadline is reached", 2, 2)


@pytest.mark.parametrize(
    "deadline",
    [dt.datetime(2001, 1, 1, tzinfo=dt.UTC), dt.datetime(1970, 1, 2), dt.timedelta(microseconds=1)],  # noqa: DTZ001
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


async def test_a_check_sends_nothing_and_changes_nothing(service: Service, client: AsyncTogether, files: Files) -> None:
    files.write_lines(request("a"), "garbage", request("b"))
    plan = await Batch(client, files.input, files.output).check()
    assert (plan.total, plan.to_do, plan.wrong) == (3, 2, 1)
    assert not files.output.exists()
    files.output.write_text('{"custom_id":"a","error":{"code":"500","message":"x"}}\n{"custom_id":"to')
    before = files.output.read_bytes()
    plan = await Batch(client, files.input, files.output, BatchOptions(retry_errors=True)).check()
    assert (plan.to_do, plan.retried) == (2, ["a"])
    assert files.output.read_bytes() == before
    assert not service.calls


async def test_calls_have_the_retries_timeouts_and_headers_of_the_batch(service: Service, files: Files) -> None:
    """In place of the client's; a retry within a call is none of the batch's rounds."""
    files.write(1)
    service.reply = lambda prompt, times: answer() if times > 1 else response({}, status=503)
    async with connected(service, retry=Retry(attempts=1)) as client:
        summary = await run(
            client,
            files,
            retry=Retry(attempts=2, base_delay=0),
            headers={"x-team": "blue"},
            timeouts=Timeouts(total=5),
        )
    assert (summary.done, summary.retried, summary.failed) == (1, 1, 0)
    assert files.results["r0"]["meta"]["attempts"] == 2
    assert files.results["r0"]["meta"]["retries"][0][0] == "503"
    assert {call.headers["x-team"] for call in service.calls} == {"blue"}
