"""The requests in a batch's input: JSON lines, text, CSV; and the errors of invalid lines."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from together_async.batch.input import InputLine, LineError, format_of, read_lines

BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "zanzibar"}]}
GOOD = json.dumps({"custom_id": "a", "body": BODY}).encode()


def read(data: bytes, kind: Any = "jsonl", **options: Any) -> list[InputLine | LineError]:
    return list(read_lines(io.BytesIO(data), kind, **options))


def requests(data: bytes, kind: Any = "jsonl", **options: Any) -> list[tuple[int, str, Any]]:
    """Number, name and prompt of each line; no line is an error."""
    items = read(data, kind, **options)
    assert not [item for item in items if isinstance(item, LineError)]
    return [(item.number, item.custom_id, item.body["messages"][-1]["content"]) for item in items]  # type: ignore[union-attr] # a test that expects requests fails on an error


def error_of(data: bytes, kind: Any = "jsonl", **options: Any) -> LineError:
    """The single error of a file; it does not repeat the line."""
    (error,) = [item for item in read(data, kind, **options) if isinstance(item, LineError)]
    assert "zanzibar" not in str(error)
    return error


# -------------------------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jsonl", "jsonl"),
        ("A.JSONL", "jsonl"),
        ("a.ndjson", "jsonl"),
        ("a.txt", "text"),
        ("a.csv", "csv"),
        ("a.b.tsv", "csv"),
    ],
)
def test_the_suffix_tells_the_format(name: str, kind: str) -> None:
    assert format_of(name, None) == kind
    assert format_of(name, "text") == "text"


@pytest.mark.parametrize("name", ["prompts", "a.jsonl.gz", "a.xml", ".csvx", "-"])
def test_a_name_that_does_not_tell_it_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"format: .*one of jsonl, text, csv"):
        format_of(name, None)


@pytest.mark.parametrize("asked", ["", "json", "JSONL", "xml"])
def test_another_format_is_refused(asked: str) -> None:
    with pytest.raises(ValueError, match=f"format: got '{asked}', expected one of jsonl, text, csv"):
        format_of("a.csv", asked)


# ----------------------------------------------------------------------------------------------------------- JSON lines


def test_lines_of_both_batch_apis_are_read() -> None:
    """Together's, and OpenAI's with method and url; unknown keys are ignored."""
    data = {"custom_id": "b", "method": "POST", "url": "/v1/chat/completions", "body": BODY, "priority": 1}
    assert requests(GOOD + b"\n" + json.dumps(data).encode()) == [(1, "a", "zanzibar"), (2, "b", "zanzibar")]


@pytest.mark.parametrize(
    "data",
    [
        GOOD,
        GOOD + b"\n",
        GOOD + b"\r\n",
        b"\xef\xbb\xbf" + GOOD + b"\n",
        b"\n\n" + GOOD + b"\n \t\r\n\n",
        b"  " + GOOD + b"\t\n",
    ],
    ids=["no line feed", "LF", "CRLF", "BOM", "blank lines", "blanks"],
)
def test_how_a_line_ends_does_not_matter(data: bytes) -> None:
    ((_, name, prompt),) = requests(data)
    assert (name, prompt) == ("a", "zanzibar")


def test_numbers_count_blank_lines_too() -> None:
    """The numbers are those that an editor shows."""
    assert [item[0] for item in requests(b"\n" + GOOD + b"\n\n\n" + GOOD.replace(b'"a"', b'"b"'))] == [2, 5]


def line(**changes: Any) -> bytes:
    value = {"custom_id": "a", "body": BODY} | changes
    return json.dumps({name: item for name, item in value.items() if item is not ...}).encode()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"zanzibar", "not JSON"),
        (GOOD[:-5], "not JSON"),
        (GOOD + GOOD, "not JSON"),
        (GOOD.replace(b"m", b"\xff", 1), "not JSON"),
        (b"\0" * 10, "not JSON"),
        (b"\xff\xfe" + GOOD, "not JSON"),
        (b'{"custom_id": "a", "body": ' + b"[" * 100_000, "not JSON"),
        (b"[1]", "got a list, expected an object with 'custom_id' and 'body'"),
        (b'"zanzibar"', "got a text"),
        (b"null", "got nothing"),
        (b"7", "got a number"),
        (b"true", "got true or false"),
        (line(custom_id=...), "custom_id: got nothing"),
        (line(custom_id=""), "custom_id: got an empty text"),
        (line(custom_id=5), "custom_id: got a number"),
        (line(body=...), "body: got nothing"),
        (line(body="zanzibar"), "body: got a text"),
        (line(body=None, response={}), "is this a file of results?"),
        (line(body=..., error={}), "is this a file of results?"),
        (line(url="/v1/embeddings"), "url: got '/v1/embeddings', expected /v1/chat/completions"),
    ],
    ids=lambda value: repr(value[:40]),
)
def test_a_wrong_line_is_named_by_line_and_field(data: bytes, text: str) -> None:
    """The lines around it are still read."""
    other = GOOD.replace(b'"a"', b'"b"')
    items = read(other + b"\n" + data + b"\n" + other.replace(b'"b"', b'"c"'))
    assert [getattr(item, "custom_id", "") for item in (items[0], items[2])] == ["b", "c"]
    error = error_of(b"\n" + data)
    assert error.line == 2
    assert str(error).startswith("line 2: ")
    assert text in str(error)


def test_a_line_of_50_mb_is_a_line() -> None:
    """The error of an invalid one is short."""
    huge = line(body={"model": "m", "messages": [{"role": "user", "content": "x" * 50_000_000}]})
    assert len(requests(huge + b"\n" + GOOD)[0][2]) == 50_000_000
    assert len(str(error_of(huge[:-1]))) < 200


def test_templates_are_not_for_json_lines() -> None:
    for options in ({"template": "{a}"}, {"system": "x"}):
        with pytest.raises(ValueError, match="is for text and CSV"):
            read(GOOD, **options)


@given(st.binary(max_size=60), st.sampled_from(["jsonl", "text", "csv"]))
def test_nothing_but_errors_comes_of_any_bytes(data: bytes, kind: str) -> None:
    """No bytes raise another exception, and each error has the number of a line in the file."""
    try:
        items = read(data, kind, template=None if kind == "jsonl" else "{line}")
    except LineError as error:
        items = [error]
    for item in items:
        assert 1 <= (item.line if isinstance(item, LineError) else item.number) <= data.count(b"\n") + 1


# ----------------------------------------------------------------------------------------------------------------- text


def test_each_line_of_a_text_is_a_prompt() -> None:
    data = "\ufeffWhy is the sky blue?\r\n\n  \t\nWas ist Grün? {braces} stay\n".encode()
    assert requests(data, "text") == [
        (1, "line-1", "Why is the sky blue?"),
        (4, "line-4", "Was ist Grün? {braces} stay"),
    ]


def test_a_template_and_a_system_message_go_around_it() -> None:
    (item,) = read(b"zebra", "text", template="{{{line}}} in {{one}} word: {line}", system="Be {brief}.")
    assert isinstance(item, InputLine)
    assert item.body == {
        "messages": [
            {"role": "system", "content": "Be {brief}."},
            {"role": "user", "content": "{zebra} in {one} word: zebra"},
        ]
    }


def test_a_line_of_a_text_that_is_no_utf_8_is_named() -> None:
    error = error_of(b"good\nzanz\xffibar\n", "text")
    assert (error.line, "not UTF-8 (byte 4)" in str(error)) == (2, True)


# ------------------------------------------------------------------------------------------------------------ templates


@pytest.mark.parametrize(
    "template",
    ["{", "}", "{a", "a}b", "{}", "{0}", "{a.b}", "{a[0]}", "{a!r}", "{a:>10}", "{a:{b}}", "{a!}", "{a.__class__}"],
)
@pytest.mark.parametrize("kind", ["text", "csv"])
def test_a_template_knows_names_in_braces_and_nothing_else(template: str, kind: str) -> None:
    """Attributes, indexes, conversions and formats are refused."""
    with pytest.raises(ValueError, match="template: ") as caught:
        read(b"a,b\n1,2\n", kind, template=template)
    assert not isinstance(caught.value, LineError)


def test_a_text_has_one_column() -> None:
    with pytest.raises(ValueError, match=r"template: got \{body\}, and a text has \{line\} alone"):
        read(b"x", "text", template="{body}")


def test_braces_in_the_file_stay_what_they_are() -> None:
    assert requests(b"a\n{a} {0} {{\n", "csv", template="<{a}>")[0][2] == "<{a} {0} {{>"


def test_a_template_without_names_is_the_same_prompt_for_all() -> None:
    assert [item[2] for item in requests(b"1\n2\n", "text", template="Tell a joke.")] == ["Tell a joke."] * 2


# ------------------------------------------------------------------------------------------------------------------ CSV


def test_each_row_of_a_csv_is_a_request() -> None:
    """Quoted line feeds and commas, quotes, CRLF, a BOM, blank lines; each is named by its first line."""
    data = '\ufeffname,my text\r\nx,"one,\r\n""two"""\r\n\r\ny,Grün\r\n'.encode()
    assert requests(data, "csv", template="{name}: {my text}") == [
        (2, "row-2", 'x: one,\r\n"two"'),
        (5, "row-5", "y: Grün"),
    ]


def test_a_column_custom_id_names_the_rows() -> None:
    data = b"custom_id,q\nfirst,1\nsecond,2\n"
    assert [item[1] for item in requests(data, "csv", template="{q}")] == ["first", "second"]
    assert "custom_id: got an empty text" in str(error_of(b"custom_id,q\n,1\n", "csv", template="{q}"))


def test_tabs_may_separate() -> None:
    assert requests(b"a\tb\n1,5\t2\n", "csv", template="{a}-{b}", delimiter="\t")[0][2] == "1,5-2"


def test_a_document_fits_in_a_field() -> None:
    """Fields longer than the module's own limit of 131,072 characters are read."""
    assert len(requests(b"doc\n" + b"x" * 1_000_000 + b"\n", "csv", template="{doc}")[0][2]) == 1_000_000


@pytest.mark.parametrize("row", [b"1", b"1,2,3", b"1,", b'"1,2"'])
def test_a_row_with_other_columns_is_named(row: bytes) -> None:
    data = b"a,b,\n1,2,3\n" + row + b"\n4,5,6\n"
    if row == b"1,2,3":
        data = data.replace(b"a,b,\n1,2,3", b"a,b\n1,2").replace(b"4,5,6", b"4,5")
    items = read(data, "csv", template="{a}")
    assert isinstance(items[1], LineError)
    assert str(items[1]).startswith("line 3: got ")
    assert isinstance(items[2], InputLine)


def test_the_error_of_a_broken_row_says_what_was_not_read() -> None:
    """The end of the row is not known."""
    for data in (b'a\n1\n"unclosed\n2\n', b'a\n1\n"x"y\n2\n', b"a\n1\n\xff\n2\n"):
        items = read(data, "csv", template="{a}")
        assert isinstance(items[-1], LineError)
        assert "what follows it was not read" in str(items[-1])
        assert items[-1].line == 3


@pytest.mark.parametrize("data", [b"", b"\n\n", b"a\n", b"\n\na\n\n"])
def test_an_empty_csv_has_no_rows(data: bytes) -> None:
    assert read(data, "csv", template="{a}") == []


def test_blank_lines_before_the_head_do_not_count() -> None:
    assert requests(b"\xef\xbb\xbf\n\na,b\n1,2\n", "csv", template="{a} {b}") == [(4, "row-4", "1 2")]


@pytest.mark.parametrize("data", [b"a\n1\n", b"a;b\n1;2\n"])
def test_a_column_that_is_not_there_is_named(data: bytes) -> None:
    with pytest.raises(LineError, match=r"line 1: no column '[ab]', which the template names; there are"):
        read(data, "csv", template="{a} {b}")


def test_an_invalid_header_is_named() -> None:
    with pytest.raises(LineError, match="line 1: no head of a CSV: not UTF-8"):
        read(b"a,\xff\n1,2\n", "csv", template="{a}")


def test_a_csv_needs_a_template() -> None:
    with pytest.raises(ValueError, match="template: missing"):
        read(b"a\n1\n", "csv")


@given(st.lists(st.tuples(st.text(), st.text(min_size=1)), max_size=5))
def test_every_csv_of_the_standard_module_is_read(rows: list[tuple[str, str]]) -> None:
    import csv

    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerows([("left", "right"), *rows])
    found = requests(text.getvalue().encode("utf-8", "ignore"), "csv", template="{left}|{right}")
    assert [prompt for _, _, prompt in found] == [f"{left}|{right}" for left, right in rows]
