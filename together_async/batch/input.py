"""A batch's input: turns the lines of a file into requests. Pure.

There are three formats: the Batch API's JSON lines, `{"custom_id": ..., "body": {...}}` (OpenAI's `method` and `url`
are accepted and ignored); plain text with a prompt in each line; and CSV, with a template for the prompt. In text and
CSV a request is named by its line, `line-17` or `row-17`, unless the CSV has a column `custom_id`.
"""

from __future__ import annotations

import csv
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Literal, TypeAlias, get_args

import attrs

from together_async.wire import codec

Format: TypeAlias = Literal["jsonl", "text", "csv"]
FORMATS: Final = get_args(Format)
SUFFIXES: Final[Mapping[str, Format]] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".txt": "text",
    ".text": "text",
    ".csv": "csv",
    ".tsv": "csv",
}
_URL: Final = "/chat/completions"
_MOST_FIELD: Final = 1 << 30
_BOM: Final = b"\xef\xbb\xbf"


class LineError(ValueError):
    """An invalid line of the input.

    Attributes:
        line: Its number, from 1.
        text: What is wrong, without the line's number.
        custom_id: Its custom_id; None if it has no valid one.
        body_hash: Hash of its body, so that an edit is noticed; "none" if it has no valid body.
    """

    def __init__(self, line: int, text: str, custom_id: str | None = None, body_hash: str = "none") -> None:
        super().__init__(f"line {line}: {text}")
        self.body_hash = body_hash
        self.line = line
        self.text = text
        self.custom_id = custom_id

    @property
    def name(self) -> str:
        """Its name in the output."""
        return self.custom_id or f"invalid-line-{self.line}"


@attrs.frozen
class InputLine:
    """A request of the input.

    Attributes:
        number: Number of its line, from 1.
        custom_id: Its name.
        body: The request as it stands in the file, without the batch's defaults.
    """

    number: int
    custom_id: str
    body: dict[str, Any] = attrs.field(repr=False)


def format_of(name: str, asked: str | None) -> Format:
    """Returns the format of a file.

    Args:
        name: The file's name.
        asked: The format that the caller asked for; None goes by the suffix of the name.

    Raises:
        ValueError: The format or the suffix is unknown.
    """
    if asked is not None:
        if asked not in FORMATS:
            raise ValueError(f"format: got {asked!r}, expected one of {', '.join(FORMATS)}")
        return asked  # type: ignore[return-value] # mypy does not narrow a str by `in`
    for suffix, found in SUFFIXES.items():
        if name.lower().endswith(suffix):
            return found
    raise ValueError(f"format: the name {name!r} does not tell it; say format= (--format), one of {', '.join(FORMATS)}")


def read_lines(
    lines: Iterable[bytes],
    kind: Format,
    *,
    template: str | None = None,
    system: str | None = None,
    delimiter: str = ",",
    wanted: bytearray | None = None,
) -> Iterator[InputLine | LineError | None]:
    """Yields the requests of a file, and an error in place of each invalid line. Empty lines are skipped.

    Args:
        lines: The file's lines.
        kind: Its format.
        template: For text and CSV: the prompt with column names in braces, such as "Summarise: {body}"; a text has the
            single column `line`. None uses a line of text as it is; a CSV needs a template.
        system: For text and CSV: the system message before each prompt; None sends no system message.
        delimiter: The separator of a CSV's columns.
        wanted: By place, 1 for lines to read. Other JSON lines and lines of text are not parsed: None stands in for
            them. None reads all lines.

    Raises:
        LineError: The CSV has no header, or lacks a column that the template names.
        ValueError: The template is malformed.
    """
    if kind == "jsonl":
        for name, value in (("template", template), ("system", system)):
            if value is not None:
                raise ValueError(f"{name}: JSON lines hold whole requests; a {name} is for text and CSV")
        yield from _read_each(_read_json, lines, wanted)
    elif kind == "text":
        yield from _read_each(_TextLineReader(template, system), lines, wanted)
    else:
        if template is None:
            raise ValueError('template: missing; a CSV needs one to make prompts of, as "Summarise: {body}"')
        yield from _read_csv(lines, _Template(template, system), delimiter)


def _read_each(
    read: Callable[[tuple[int, bytes]], InputLine | LineError], lines: Iterable[bytes], wanted: bytearray | None
) -> Iterator[InputLine | LineError | None]:
    if wanted is None:
        yield from map(read, _numbered(lines))
        return
    for place, numbered in enumerate(_numbered(lines)):
        yield read(numbered) if place < len(wanted) and wanted[place] else None


def _numbered(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(lines, 1):
        text = (line.removeprefix(_BOM) if number == 1 else line).strip()
        if text:
            yield number, text


# ----------------------------------------------------------------------------------------------------------- JSON lines


def _read_json(numbered: tuple[int, bytes]) -> InputLine | LineError:
    number, text = numbered
    try:
        value = codec.decode_json(text)
    except codec.JSONError as error:
        return LineError(number, f"not JSON ({error})")
    if not isinstance(value, dict):
        return LineError(number, f"got {_kind(value)}, expected an object with 'custom_id' and 'body'")
    custom_id = value.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        return LineError(number, f"custom_id: got {_kind(custom_id)}, expected a text that no other line has")
    url = value.get("url")
    if isinstance(url, str) and not url.rstrip("/").endswith(_URL):
        return LineError(number, f"url: got {url[:80]!r}, expected /v1/chat/completions, the only one here", custom_id)
    body = value.get("body")
    if not isinstance(body, dict):
        hint = "; is this a file of results?" if "response" in value or "error" in value else ""
        return LineError(number, f"body: got {_kind(body)}, expected the request as an object{hint}", custom_id)
    return InputLine(number, custom_id, body)


def _kind(value: object) -> str:
    names = {type(None): "nothing", str: "a text", dict: "an object", list: "a list", bool: "true or false"}
    return "an empty text" if value == "" else names.get(type(value), "a number")


# --------------------------------------------------------------------------------------------------------- text and CSV


class _Template:
    """A prompt with column names in braces. A doubled brace stands for itself; other format syntax is refused."""

    def __init__(self, text: str, system: str | None) -> None:
        self._before = [] if system is None else [{"role": "system", "content": system}]
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"template: {error}; a brace for itself is doubled, as {{{{") from None
        for _, name, spec, conversion in parts:
            if name is not None and (not name or spec or conversion or not name.replace(" ", "_").isidentifier()):
                raise ValueError(f"template: got {{{name}}}, expected the name of a column, as {{body}}")
        self._parts = [(literal, name) for literal, name, _, _ in parts]
        self.names = [name for _, name in self._parts if name is not None]

    def fill(self, fields: Mapping[str, str]) -> dict[str, Any]:
        """Returns the body of a request with this prompt."""
        prompt = "".join(literal + (fields[name] if name is not None else "") for literal, name in self._parts)
        return {"messages": [*self._before, {"role": "user", "content": prompt}]}


class _TextLineReader:
    """Makes a request of each line of a text."""

    def __init__(self, template: str | None, system: str | None) -> None:
        self._template = _Template("{line}" if template is None else template, system)
        if unknown := set(self._template.names) - {"line"}:
            raise ValueError(f"template: got {{{unknown.pop()}}}, and a text has {{line}} alone")

    def __call__(self, numbered: tuple[int, bytes]) -> InputLine | LineError:
        number, text = numbered
        try:
            prompt = text.decode()
        except UnicodeDecodeError as error:
            return LineError(number, f"not UTF-8 (byte {error.start})", f"line-{number}")
        return InputLine(number, f"line-{number}", self._template.fill({"line": prompt}))


def _read_csv(lines: Iterable[bytes], template: _Template, delimiter: str) -> Iterator[InputLine | LineError]:
    # A field may hold a document longer than the default 131,072 characters. The limit is the whole process's.
    csv.field_size_limit(max(csv.field_size_limit(), _MOST_FIELD))
    rows = csv.reader(_decoded(lines), delimiter=delimiter, strict=True)
    try:
        head = [name.strip() for name in next(row for row in rows if any(row))]
    except StopIteration:
        return  # an empty file
    except (csv.Error, UnicodeDecodeError) as error:
        raise LineError(1, f"no head of a CSV: {_csv_text(error)}") from None
    if missing := [name for name in template.names if name not in head]:
        raise LineError(1, f"no column {missing[0]!r}, which the template names; there are {', '.join(head) or 'none'}")
    while True:
        number = rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except (csv.Error, UnicodeDecodeError) as error:
            # The end of this row can't be found, so the rest of the file can't be read.
            yield LineError(number, f"no row of a CSV: {_csv_text(error)}; what follows it was not read")
            return
        if row:
            yield _read_row(number, head, row, template)


def _read_row(number: int, head: list[str], row: list[str], template: _Template) -> InputLine | LineError:
    if len(row) != len(head):
        return LineError(number, f"got {len(row)} columns, expected {len(head)} as in the first line")
    fields = dict(zip(head, row, strict=True))
    custom_id = fields.get("custom_id", f"row-{number}")
    if not custom_id:
        return LineError(number, "custom_id: got an empty text, expected one that no other row has")
    return InputLine(number, custom_id, template.fill(fields))


def _decoded(lines: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield (line.removeprefix(_BOM) if number == 0 else line).decode()


def _csv_text(error: csv.Error | UnicodeDecodeError) -> str:
    return f"not UTF-8 (byte {error.start})" if isinstance(error, UnicodeDecodeError) else str(error)
