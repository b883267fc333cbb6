"""What a batch has to do: its input, compared with the results in its output, before anything is sent."""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from together_async.batch.input import Format, InputLine, LineError, format_of, read_lines
from together_async.batch.record import body_hash
from together_async.fanout.defaults import Defaults
from together_async.ratelimit.estimator import Size, size_of
from together_async.request import ChatCompletionRequest

_MOST_SHOWN: Final = 5
_MOST_KEPT: Final = 1_000


class BatchInputError(ValueError):
    """The input has invalid lines, and nothing was sent.

    Correct the lines, or run the batch with `keep_going`, which makes them errors in the output.

    Attributes:
        errors: One error for each invalid line, in order; the first thousand.
        count: How many lines are invalid.
    """

    def __init__(self, name: str, errors: list[LineError], count: int, total: int) -> None:
        more = f"\n... and {count - _MOST_SHOWN} more" if count > _MOST_SHOWN else ""
        shown = "\n".join(f"{name} {error}" for error in errors[:_MOST_SHOWN])
        super().__init__(
            f"{count} of {total} lines can't be asked; nothing was sent. Mend them, or let them become errors in the "
            f"output with keep_going (--keep-going)\n{shown}{more}"
        )
        self.errors = tuple(errors)
        self.count = count


# --------------------------------------------------------------------------------------------------------------- input


@attrs.frozen
class InputFile:
    """The file of requests, and how its lines become requests.

    Args:
        path: The file.
        kind: Its format.
        template: The prompt of a line of text or CSV, with column names in braces; None for JSON lines and plain text.
        system: The system message before such a prompt; None sends no system message.
        defaults: Fields for requests that lack them.
    """

    path: Path
    kind: Format
    template: str | None
    system: str | None
    defaults: Defaults

    @classmethod
    def of(
        cls, path: Path, kind: str | None, template: str | None, system: str | None, fields: Mapping[str, Any]
    ) -> InputFile:
        """Returns the input with these options, checked. The file itself is not opened.

        Args:
            path: The file.
            kind: Its format; None goes by the suffix of its name.
            template: As above.
            system: As above.
            fields: Fields of `ChatCompletionRequest` for requests that lack them.

        Raises:
            ValueError: The format is unknown, the template is malformed, or a field is out of range.
        """
        source = cls(path, format_of(path.name, kind), template, system, Defaults(fields))
        # Checked with a model and a message that are surely valid, so that only the fields can be wrong.
        checked = {**{name: value for name, value in fields.items() if value is not None}, "messages": "x"}
        ChatCompletionRequest(**{"model": "x", **checked})
        try:
            body_hash(fields)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(
                f"a default has no JSON form ({type(error).__name__}); expected plain JSON values"
            ) from None
        next(read_lines([], source.kind, template=template, system=system), None)
        return source

    def check_readable(self) -> None:
        """Checks that the file can be read more than once, which a pipe can't.

        Raises:
            OSError: The file can't be read, or is not a regular file.
        """
        if self.path.exists() and not self.path.is_file():
            kind = (
                "a folder" if self.path.is_dir() else "no regular file, and it is read more than once; save it to one"
            )
            raise OSError(errno.EINVAL, f"it is {kind}", str(self.path))
        self.path.open("rb").close()

    def items(self, wanted: bytearray | None = None) -> Generator[InputLine | LineError | None]:
        """Yields the requests of the file in order, and an error in place of each invalid line.

        Args:
            wanted: By place, 1 for requests to yield; None stands in for the others. None yields all requests.

        Raises:
            OSError: The file can't be read.
            LineError: The file as a whole is invalid, such as a CSV without the template's columns.
        """
        with self.path.open("rb", buffering=1 << 20) as file:
            yield from read_lines(
                file,
                self.kind,
                template=self.template,
                system=self.system,
                delimiter="\t" if self.path.suffix.lower() == ".tsv" else ",",
                wanted=wanted,
            )

    def fingerprint(self) -> tuple[int, ...]:
        """Returns a value that changes when the file is edited or replaced.

        Raises:
            OSError: The file is gone.
        """
        found = self.path.stat()
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def body(self, line: InputLine) -> dict[str, Any]:
        """Returns the body of a request, defaults included."""
        return self.defaults.body(line.body)


# ---------------------------------------------------------------------------------------------------------------- plan


@attrs.define
class Estimate:
    """The expected usage of requests, estimated from the length of their prompts.

    Attributes:
        requests: Number of requests.
        prompt_tokens: Tokens of all prompts.
        most_completion_tokens: The sum of `max_tokens`, for every choice; None if a request does not set it.
    """

    requests: int = 0
    prompt_tokens: int = 0
    most_completion_tokens: int | None = 0

    def add(self, size: Size) -> None:
        """Adds a request."""
        self.requests += 1
        self.prompt_tokens += size.prompt
        if size.max_tokens is None or self.most_completion_tokens is None:
            self.most_completion_tokens = None
        else:
            self.most_completion_tokens += size.max_tokens * size.n


@attrs.define
class Plan:
    """What there is to do.

    Attributes:
        total: Requests in the input, invalid lines included.
        wanted: For each of them in order: 1 if it is to be sent, else 0.
        done: Requests that have a completion already.
        failed: Requests that have an error already, which stays.
        edited: custom_ids whose completion belongs to an older body; they are sent again.
        retried: custom_ids whose error is replaced: they are sent again.
        errors: Invalid lines; the first thousand, or all if `keeps_all`.
        wrong: How many lines are invalid, without those that are errors in the output already.
        keeps_all: Whether `errors` has all invalid lines.
        by_model: The expected usage of the requests to be sent, by model.
        strangers: Results in the output whose custom_id is not in the input.
        cut: Whether planning was stopped before the end of the input.
        fingerprint: The input's fingerprint when it was read.
    """

    total: int = 0
    wanted: bytearray = attrs.field(factory=bytearray, repr=False)
    done: int = 0
    failed: int = 0
    edited: list[str] = attrs.field(factory=list, repr=False)
    retried: list[str] = attrs.field(factory=list, repr=False)
    errors: list[LineError] = attrs.field(factory=list)
    wrong: int = 0
    keeps_all: bool = False
    by_model: dict[str, Estimate] = attrs.field(factory=dict)
    strangers: int = 0
    cut: bool = False
    fingerprint: tuple[int, ...] = ()

    @property
    def to_do(self) -> int:
        """How many requests are to be sent."""
        return self.wanted.count(1)

    def refuse(self, error: LineError, result: tuple[str, bool] | None = None) -> None:
        """Adds an invalid line.

        Args:
            error: The line and its error.
            result: What the output holds under its name: hash of the body, and whether it is a completion. None if it
                holds nothing.
        """
        if result is not None and not result[1]:
            if result[0] == error.body_hash:
                self.failed += 1  # an earlier run has written this error
                return
            self.retried.append(error.name)
        elif result is not None:
            self.edited.append(error.name)
        self.wrong += 1
        if self.keeps_all or len(self.errors) < _MOST_KEPT:
            self.errors.append(error)


def make_plan(
    source: InputFile,
    results: Mapping[str, tuple[str, bool]],
    *,
    retry_errors: bool = False,
    keeps_all: bool = False,
    stopped: Callable[[], bool] = lambda: False,
) -> Plan:
    """Compares the input with the results of earlier runs. Reads the whole input: call it in a thread.

    Args:
        source: The input.
        results: What the output holds, by custom_id: hash of the body, and whether the result is a completion.
        retry_errors: Whether requests that failed are sent again.
        keeps_all: Whether the plan keeps all invalid lines, not just the first thousand.
        stopped: Called now and then; once it returns True, planning stops with an incomplete plan.

    Raises:
        OSError: The input can't be read.
    """
    plan = Plan(keeps_all=keeps_all)
    seen: dict[str, int] = {}
    try:
        plan.fingerprint = source.fingerprint()
        for item in source.items():
            if item is None:
                continue  # never, as all lines are wanted
            plan.total += 1
            plan.wanted.append(0)
            line = _unique(item, seen)
            if isinstance(line, LineError):
                seen.setdefault(line.name, line.line)
                plan.refuse(line, results.get(line.name))
            else:
                _plan_line(plan, source, line, results.get(line.custom_id), retry_errors=retry_errors)
            if plan.total % 1_000 == 0 and stopped():
                plan.cut = True
                return plan
    except LineError as error:
        plan.refuse(error)
    plan.strangers = len(results.keys() - seen.keys()) if results else 0
    return plan


def _unique(item: InputLine | LineError, seen: dict[str, int]) -> InputLine | LineError:
    """Returns the line, or an error if it is invalid or its custom_id is not unique. Errors get unique names."""
    if isinstance(item, LineError):
        return _renamed(item, seen)
    first = seen.setdefault(item.custom_id, item.number)
    if first != item.number:
        error = LineError(item.number, f"custom_id: {item.custom_id[:80]!r} stands in line {first} too")
        return _renamed(error, seen)
    return item


def _renamed(error: LineError, seen: Mapping[str, int]) -> LineError:
    """Returns the error under a name that no other line has."""
    name = error.name if error.custom_id not in seen else f"invalid-line-{error.line}"
    while name in seen:
        name += "-2"
    return LineError(error.line, error.text, name, error.body_hash)


def _plan_line(
    plan: Plan, source: InputFile, line: InputLine, result: tuple[str, bool] | None, *, retry_errors: bool
) -> None:
    body = source.body(line)
    if result is not None:
        old_hash, ok = result
        edited = old_hash not in ("", body_hash(body))  # files of the Batch API have no hash
        if not edited and (ok or not retry_errors):
            plan.done += ok
            plan.failed += not ok
            return
    try:
        request = ChatCompletionRequest.from_dict(body)
    except ValueError as error:
        plan.refuse(LineError(line.number, _located(str(error)), line.custom_id, body_hash(body)), result)
        return
    if result is not None:
        (plan.edited if result[1] else plan.retried).append(line.custom_id)
    plan.wanted[-1] = 1
    plan.by_model.setdefault(request.model, Estimate()).add(size_of(request.messages, request.max_tokens, request.n))


def _located(text: str) -> str:
    """Returns the text of a field's error, with the field's place in the line, and a remedy for a missing model."""
    if text.startswith("model: missing"):
        return "body.model: missing; put it into the line, or name one for all with model= (--model)"
    return f"body.{text}"
