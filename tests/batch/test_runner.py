"""`run_batch`: a file of requests in, a file of results out."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from support.batches import Files, Service, answer, connected, files_in, refused, request, run, text_of
from support.servers import MODEL, response, whole
from together_async import AsyncTogether, Retry, Timeouts
from together_async.batch import Batch, BatchOptions
from together_async.batch import output as output_module
from together_async.batch.record import Record, body_hash, decode_line
from together_async.testing import EmulatorServer


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
        plain_body, streamed_body = (dict(lines["response"]["body"]) for lines in (result, streamed[name]))
        assert (
            plain_body["choices"][0]["message"]["content"]
            == streamed_body["choices"][0]["message"]["content"]
            == "Hello there!"
        )
        assert plain_body["usage"] == streamed_body["usage"]
        assert plain_body["object"] == streamed_body["object"] == "chat.completion"
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
    assert files_in(tmp_path) == ["in.jsonl", "out.jsonl", "report.html"]


async def test_calls_have_the_retries_timeouts_and_headers_of_the_batch(service: Service, files: Files) -> None:
    """Instead of the client's; a retry within a call is not one of the batch's rounds."""
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


# ------------------------------------------------------------------------------------------------------------- resuming


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


async def test_an_output_of_the_batch_api_is_continued(service: Service, client: AsyncTogether, files: Files) -> None:
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
    service.reply = lambda prompt, times: answer() if times > 1 or "r1" not in prompt else refused()
    summary = await run(client, files)
    assert (summary.done, summary.failed, summary.ok) == (3, 1, False)
    summary = await run(client, files)
    assert (summary.done, summary.failed, summary.resumed) == (3, 1, 4)
    summary = await run(client, files, retry_errors=True)
    assert (summary.done, summary.failed, service.requests) == (4, 0, 5)
    assert files.superseded == []
    assert "response" in files.results["r1"]


async def test_a_truncated_output_is_finished(
    service: Service, client: AsyncTogether, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every byte of its end and at many others: whole lines before the cut stay as they were, each name is once."""
    monkeypatch.setattr(output_module.os, "fsync", lambda fd: None)
    files.write(6)
    service.reply = lambda prompt, times: refused() if "r3" in prompt else answer("Hi")
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
