"""What an output holds when a batch begins: its results, and what is damaged. Pure.

After a crash the last line of an output may be torn. A line counts when it is whole, which a JSON object is only with
its closing brace, so a whole last line without its line feed counts too. Unreadable lines before readable ones are
another kind of damage: the batch moves them to another file and sends their requests again.
"""

from __future__ import annotations

from typing import Final

import attrs

from together_async.batch.record import RecordError, parse_line
from together_async.wire import codec

_START: Final = b'{"custom_id":'


@attrs.define
class Standing:
    """What an output holds, and what must be repaired before more is added.

    Attributes:
        results: By custom_id: hash of the request body, and whether the result is a completion.
        lines: Lines read.
        whole_size: Bytes up to the end of the last whole line; what follows is torn.
        ends_open: Whether that line lacks its line feed.
        set_aside: Numbers of the lines that do not count: damaged ones, and those whose custom_id came again later.
    """

    results: dict[str, tuple[str, bool]] = attrs.field(factory=dict)
    lines: int = 0
    whole_size: int = 0
    ends_open: bool = False
    set_aside: list[int] = attrs.field(factory=list)
    _tokens: dict[str, list[int]] = attrs.field(factory=dict)
    _line_numbers: dict[str, int] = attrs.field(factory=dict)
    _size: int = 0
    _unread: list[int] = attrs.field(factory=list)

    def add(self, line: bytes) -> None:
        """Reads the next line.

        Args:
            line: The line, with its line feed if it has one.

        Raises:
            RecordError: The first line is not a result: this is another kind of file, which must not be changed.
        """
        self.lines += 1
        self._size += len(line)
        try:
            parsed = parse_line(line)
        except RecordError as error:
            if _may_be_torn(line):
                self._unread.append(self.lines)  # the torn end, unless another line follows
                return
            if not self.results:
                raise RecordError(f"line {self.lines}: {error}") from None
            self._end_whole_line(line)
            self.set_aside.append(self.lines)
            return
        self._end_whole_line(line)
        ok = parsed.failure[0] is None
        custom_id = parsed.custom_id
        if custom_id in self.results:
            self.set_aside.append(self._line_numbers[custom_id])
        self.results[custom_id] = ("" if parsed.meta is None else parsed.meta.hash, ok)
        self._line_numbers[custom_id] = self.lines
        if ok:
            model, prompt, completion = parsed.model_and_tokens
            tokens = self._tokens.setdefault(model, [0, 0])
            tokens[0] += prompt
            tokens[1] += completion

    @property
    def tokens(self) -> dict[str, tuple[int, int]]:
        """Prompt tokens and completion tokens, by model."""
        return {model: (prompt, completion) for model, (prompt, completion) in self._tokens.items()}

    def _end_whole_line(self, line: bytes) -> None:
        """Notes the end of a whole line. Unreadable lines before it are damage, not a torn end."""
        if self._unread:
            self.set_aside += self._unread
            self._unread.clear()
        self.whole_size, self.ends_open = self._size, not line.endswith(b"\n")

    def line_number(self, custom_id: str) -> int:
        """Returns the number of the line that counts for a custom_id."""
        return self._line_numbers[custom_id]

    @property
    def torn_size(self) -> int:
        """Bytes after the last whole line."""
        return self._size - self.whole_size


def _may_be_torn(line: bytes) -> bool:
    """Returns whether an unreadable line is the start of a result, or blocks that a crash has left empty."""
    if b"\0" in line:
        return not line.strip(b"\0\n") or line.startswith(_START)
    if line.endswith(b"\n"):
        return False  # the line feed is written last
    try:
        codec.decode_json(line)
    except codec.JSONError:
        return line.startswith(_START) or _START.startswith(line)
    return False
