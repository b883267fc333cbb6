"""The options of a batch, and what each may be."""

from __future__ import annotations

import datetime as dt
import inspect
import math
from pathlib import Path
from typing import Any

import attrs
import pytest

from support.batches import Files, Service, run
from together_async import AsyncTogether
from together_async.batch.options import BatchOptions, check_files


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
    """One ValueError that names it; nothing is sent, and no file is created."""
    files.write(2)
    (name,) = options
    with pytest.raises(ValueError, match=name):
        await run(client, files, **options)
    assert not service.calls
    assert not files.output.exists()


async def test_an_unknown_option_is_a_type_error(client: AsyncTogether, files: Files) -> None:
    files.write(1)
    with pytest.raises(TypeError, match="nonsense"):
        await run(client, files, nonsense=1)


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


def test_run_batch_has_the_same_options_and_defaults() -> None:
    """`run_batch` names each option for its readers; this holds its signature and `BatchOptions` together."""
    parameters = inspect.signature(AsyncTogether.run_batch).parameters
    shown = {
        name: parameter.default for name, parameter in parameters.items() if parameter.kind == parameter.KEYWORD_ONLY
    }
    assert shown.pop("model") is None
    assert shown == {field.name: field.default for field in attrs.fields(BatchOptions)}


@pytest.mark.parametrize(
    ("deadline", "left_s"),
    [
        (None, None),
        (90, 80.0),
        (dt.timedelta(minutes=2), 110.0),
        (dt.timedelta(seconds=3), -7.0),
        (dt.datetime(2026, 1, 1, tzinfo=dt.UTC), 600.0),
    ],
)
def test_a_deadline_is_relative_or_a_moment(deadline: Any, left_s: float | None) -> None:
    """A duration counts what has passed since the start, a moment is a time of day."""
    assert BatchOptions(deadline=deadline).left_s(10.0, 1_767_225_000.0) == left_s


def test_an_empty_file_or_a_page_may_become_the_report(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    for content in ("", "<!DOCTYPE HTML>\n<html>"):
        report.write_text(content)
        check_files(tmp_path / "in", tmp_path / "out", report)
    report.write_text("Dear diary")
    with pytest.raises(ValueError, match=r"report: .*report\.html is there, and is no page"):
        check_files(tmp_path / "in", tmp_path / "out", report)


def test_the_superseded_file_is_the_outputs_own(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="superseded"):
        check_files(tmp_path / "out.superseded", tmp_path / "out", None)
