"""What there is to do: the input against what the output holds."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from together_async.batch.plan import BatchInputError, Estimate, InputFile, Plan, make_plan
from together_async.batch.record import body_hash

MESSAGES = [{"role": "user", "content": "zanzibar-penguins"}]
Results = dict[str, tuple[str, bool]]


def line(custom_id: str, **fields: Any) -> str:
    return json.dumps({"custom_id": custom_id, "body": {"model": "m", "messages": MESSAGES} | fields}) + "\n"


def source(folder: Path, *lines: str, name: str = "in.jsonl", template: str | None = None, **fields: Any) -> InputFile:
    path = folder / name
    path.write_text("".join(lines))
    return InputFile.of(path, None, template, None, fields)


def done(*names: str, **fields: Any) -> Results:
    """Completions of exactly these bodies."""
    return {name: (body_hash({"model": "m", "messages": MESSAGES} | fields), True) for name in names}


def wanted(plan: Plan) -> list[int]:
    return [place for place, is_wanted in enumerate(plan.wanted) if is_wanted]


# -------------------------------------------------------------------------------------------------------- what is asked


def test_what_has_no_result_is_asked(tmp_path: Path) -> None:
    plan = make_plan(source(tmp_path, line("a"), line("b"), line("c")), done("b"))
    assert (plan.total, wanted(plan), plan.done, plan.failed, plan.to_do, plan.strangers) == (3, [0, 2], 1, 0, 2, 0)


def test_the_order_of_keys_does_not_matter(tmp_path: Path) -> None:
    shuffled = json.dumps({"body": {"messages": [{"content": MESSAGES[0]["content"], "role": "user"}], "model": "m"}})
    input_file = source(tmp_path, shuffled[:-1] + ', "custom_id": "a"}\n')
    assert wanted(make_plan(input_file, done("a"))) == []


def test_an_edited_line_is_asked_again(tmp_path: Path) -> None:
    plan = make_plan(source(tmp_path, line("a", max_tokens=5), line("b")), done("a", "b"))
    assert (wanted(plan), plan.edited, plan.done) == ([0], ["a"], 1)


def test_defaults_are_part_of_what_is_asked(tmp_path: Path) -> None:
    """With another model or parameter for all, requests that do not set it, or set it to null, are sent again."""
    lines = [line("own"), line("silent", model=None), line("too", model=None, temperature=0.5)]
    results = {
        **done("own"),
        "silent": (body_hash({"model": "n", "messages": MESSAGES}), True),
        "too": (body_hash({"model": "n", "messages": MESSAGES, "temperature": 0.5}), True),
    }
    assert wanted(make_plan(source(tmp_path, *lines, model="n"), results)) == []
    assert wanted(make_plan(source(tmp_path, *lines, model="other"), results)) == [1, 2]
    assert wanted(make_plan(source(tmp_path, *lines, model="n", temperature=0.5), results)) == [0, 1]
    assert wanted(make_plan(source(tmp_path, *lines, model="n", extra_body={"x": 1}), results)) == [0, 1, 2]


def test_a_file_of_the_batch_api_is_resumed(tmp_path: Path) -> None:
    """Its lines have no hash, so the name alone counts."""
    plan = make_plan(source(tmp_path, line("a"), line("b"), line("c")), {"a": ("", True), "b": ("", False)})
    assert (wanted(plan), plan.done, plan.failed) == ([2], 1, 1)


def test_errors_stay_unless_they_are_to_be_asked_again(tmp_path: Path) -> None:
    results = {**done("a"), "b": (done("b")["b"][0], False)}
    input_file = source(tmp_path, line("a"), line("b"))
    plan, again = make_plan(input_file, results), make_plan(input_file, results, retry_errors=True)
    assert (wanted(plan), plan.failed, plan.retried) == ([], 1, [])
    assert (wanted(again), again.failed, again.retried, again.done) == ([1], 0, ["b"], 1)


def test_the_error_of_an_edited_line_goes(tmp_path: Path) -> None:
    plan = make_plan(source(tmp_path, line("a", max_tokens=1)), {"a": (done("a")["a"][0], False)})
    assert (wanted(plan), plan.retried, plan.edited) == ([0], ["a"], [])


def test_results_that_no_line_asks_for_are_counted(tmp_path: Path) -> None:
    assert make_plan(source(tmp_path, line("a")), done("a", "x", "y")).strangers == 2


def test_an_empty_input_is_nothing_to_do(tmp_path: Path) -> None:
    for text in ("", "\n\n"):
        plan = make_plan(source(tmp_path, text), {})
        assert (plan.total, plan.to_do, plan.wrong) == (0, 0, 0)


def test_what_is_asked_is_estimated_by_model(tmp_path: Path) -> None:
    lines = [line("a", max_tokens=10, n=2), line("b", max_tokens=5), line("c", model="n"), line("d", max_tokens=7)]
    plan = make_plan(source(tmp_path, *lines), done("d", max_tokens=7))
    prompt = len(MESSAGES[0]["content"]) // 4 + 4
    assert plan.by_model == {"m": Estimate(2, 2 * prompt, 25), "n": Estimate(1, prompt, None)}


# -------------------------------------------------------------------------------------------------- what can't be asked


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"model": None}, "body.model: missing; put it into the line, or name one for all with model= (--model)"),
        ({"model": 5}, "body.model: got"),
        ({"messages": None}, "body.messages"),
        ({"messages": []}, "body.messages"),
        ({"messages": ["zanzibar-penguins"]}, "body.messages[0]: got"),
        ({"messages": [{"role": "user", "content": {"text": "zanzibar-penguins"}}]}, "body.messages[0].content: got"),
        ({"temperature": "zanzibar-penguins"}, "body.temperature: got a str"),
        ({"n": 0}, "body.n: got 0, expected"),
        ({"stop": 5}, "body.stop[0]: got 5"),
    ],
)
def test_a_field_that_is_wrong_is_named(tmp_path: Path, fields: dict[str, Any], text: str) -> None:
    plan = make_plan(source(tmp_path, line("a"), "\n", line("b", **fields)), {})
    (error,) = plan.errors
    assert str(error).startswith(f"line 3: {text}")
    assert "zanzibar" not in str(error)
    assert (plan.total, plan.wrong, wanted(plan)) == (2, 1, [0])


def test_two_lines_of_one_name_are_an_error(tmp_path: Path) -> None:
    plan = make_plan(source(tmp_path, line("a"), line("b"), line("a")), {})
    assert [str(error) for error in plan.errors] == ["line 3: custom_id: 'a' stands in line 1 too"]
    assert wanted(plan) == [0, 1]


def test_all_that_is_wrong_is_counted_and_a_thousand_are_kept(tmp_path: Path) -> None:
    plan = make_plan(source(tmp_path, "garbage\n" * 1_500), {})
    assert (plan.wrong, len(plan.errors), plan.total) == (1_500, 1_000, 1_500)
    error = BatchInputError("in.jsonl", plan.errors, plan.wrong, plan.total)
    assert "1500 of 1500 lines" in str(error).replace(",", "")
    assert "in.jsonl line 1: not JSON" in str(error)
    assert len(str(error)) < 2_000
    assert len(make_plan(source(tmp_path, "garbage\n" * 1_500), {}, keeps_all=True).errors) == 1_500


def test_a_refused_line_is_refused_once(tmp_path: Path) -> None:
    """Its error is in the output; once the line is corrected, its request is sent."""
    input_file = source(tmp_path, line("a", n=0), "garbage\n")
    first = make_plan(input_file, {}, keeps_all=True)
    results: Results = {error.name: (error.body_hash, False) for error in first.errors}
    again = make_plan(input_file, results, keeps_all=True)
    assert (again.wrong, again.failed, again.to_do, again.retried) == (0, 2, 0, [])
    mended = make_plan(source(tmp_path, line("a", n=1), line("b")), results)
    assert (mended.wrong, wanted(mended), mended.retried) == (0, [0, 1], ["a"])


NAMES = st.sampled_from(["a", "b", "line-2", "invalid-line-2", "row-3"])
LINES = st.one_of(
    st.builds(line, NAMES),
    st.builds(lambda name: line(name, n=0), NAMES),
    st.builds(lambda name: json.dumps({"custom_id": name, "body": 5}) + "\n", NAMES),
    st.sampled_from(["garbage\n", "\n", "[]\n", '{"custom_id": ""}\n']),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(LINES, max_size=8),
    known=st.dictionaries(NAMES, st.tuples(st.sampled_from(["", "x"]), st.booleans())),
)
def test_no_two_results_have_one_name(tmp_path: Path, lines: list[str], known: Results) -> None:
    """For any input, each line is sent, done, failed, or refused under a name of its own."""
    input_file = source(tmp_path, *lines)
    plan = make_plan(input_file, known, keeps_all=True)
    items = list(input_file.items())
    assert plan.total == len(plan.wanted) == len(items)
    assert plan.to_do + plan.done + plan.failed + plan.wrong == plan.total
    names = [items[place].custom_id for place in wanted(plan)] + [error.name for error in plan.errors]  # type: ignore[union-attr] # wanted lines are no errors
    assert len(names) == len(set(names))
    kept = known.keys() - set(plan.edited) - set(plan.retried)
    assert not kept & set(names), "two results would have one name"


# -------------------------------------------------------------------------------------------------- where it comes from


def test_giving_up_is_reported(tmp_path: Path) -> None:
    plan = make_plan(source(tmp_path, *(line(str(number)) for number in range(3_000))), {}, stopped=lambda: True)
    assert plan.cut
    assert plan.total == 1_000
    assert plan.strangers == 0


@pytest.mark.parametrize(
    ("name", "template", "fields", "text"),
    [
        ("in.what", None, {}, "format: the name 'in.what' does not tell it"),
        ("in.jsonl", "{a}", {}, "template: JSON lines hold whole requests"),
        ("in.txt", "{b}", {}, "template: got {b}"),
        ("in.csv", None, {}, "template: missing"),
        ("in.csv", "{a!r}", {}, "template: got {a"),
        ("in.jsonl", None, {"temperature": -1}, "temperature: got -1"),
        ("in.jsonl", None, {"model": 5}, "model: got"),
    ],
)
def test_what_is_wrong_for_all_lines_is_reported_at_once(
    tmp_path: Path, name: str, template: str | None, fields: dict[str, Any], text: str
) -> None:
    """Before the file is read: it need not even exist."""
    with pytest.raises(ValueError, match="^" + text.replace("{", r"\{")):
        InputFile.of(tmp_path / name, None, template, None, fields)


def test_a_csv_and_a_text_are_sources_too(tmp_path: Path) -> None:
    csv = source(tmp_path, "q,custom_id\n1,x\n2,y\n", name="in.csv", template="{q}?", model="m")
    tsv = source(tmp_path, "q\tr\n1,5\tx\n", name="in.tsv", template="{q}?", model="m")
    text = source(tmp_path, "one\ntwo\n", name="in.txt", model="m")
    assert [make_plan(input_file, {}).to_do for input_file in (csv, tsv, text)] == [2, 1, 2]
    assert make_plan(csv, {"x": ("", True)}).done == 1


def test_an_input_that_can_not_be_read_twice_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    for name in ("pipe.jsonl", "folder.jsonl", "nowhere.jsonl"):
        with pytest.raises(OSError, match=name):
            InputFile.of(tmp_path / name, None, None, None, {}).check_readable()
