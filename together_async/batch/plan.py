"""What a batch has to do: its input, compared with what its output already holds, before anything is sent."""

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

_SHOWN: Final = 5
_KEPT: Final = 1_000


class BatchInputError(ValueError):
    """The input holds what can't be asked. Nothing was sent.

    Attributes:
        errors: What is wrong, line by line; the first thousand.
        count: How many lines are wrong.
    """

    def __init__(self, name: str, errors: list[LineError], count: int, total: int) -> None:
        more = f"\n... and {count - _SHOWN} more" if count > _SHOWN else ""
        shown = "\n".join(f"{name} {error}" for error in errors[:_SHOWN])
        super().__init__(
            f"{count} of {total} lines can't be asked; nothing was sent. Mend them, or let them become errors in the "
            f"output with keep_going (--keep-going)\n{shown}{more}"
        )
        self.errors = tuple(errors)
        self.count = count


@attrs.frozen
class Source:
    """Where the requests of a batch come from.

    Args:
        path: The file.
        kind: Its format.
        template: What makes a prompt of a line of text or CSV.
        system: A system message before such a prompt.
        defaults: What holds for requests that do not say it themselves.
    """

    path: Path
    kind: Format
    template: str | None
    system: str | None
    defaults: Defaults

    @classmethod
    def of(
        cls, path: Path, kind: str | None, template: str | None, system: str | None, fields: Mapping[str, Any]
    ) -> Source:
        """Returns the source of a file.

        Raises:
            ValueError: Its format is not told, the template can't be read, or a default is out of range.
        """
        source = cls(path, format_of(path.name, kind), template, system, Defaults(fields))
        # With a model and a message that are surely right, so that it is the fields that are looked at.
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
        """Raises unless the file can be read, and read again: a pipe can't be.

        Raises:
            OSError: It can't.
        """
        if self.path.exists() and not self.path.is_file():
            kind = (
                "a folder" if self.path.is_dir() else "no regular file, and it is read more than once; save it to one"
            )
            raise OSError(errno.EINVAL, f"it is {kind}", str(self.path))
        self.path.open("rb").close()

    def items(self, wanted: bytearray | None = None) -> Generator[InputLine | LineError | None]:
        """Yields what stands in the file, from its begin; None for lines that are not wanted.

        Raises:
            OSError: It can't be read.
            LineError: All of it is wrong.
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
        """Returns what changes when somebody changes the file.

        Raises:
            OSError: It is gone.
        """
        found = self.path.stat()
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def body(self, line: InputLine) -> dict[str, Any]:
        """Returns a request as it is asked."""
        return self.defaults.body(line.body)


@attrs.define
class Estimate:
    """What requests are expected to use, by the rule alone.

    Attributes:
        requests: How many they are.
        prompt_tokens: Of all of them together.
        most_completion_tokens: The sum of their `max_tokens`; None when one of them does not say.
    """

    requests: int = 0
    prompt_tokens: int = 0
    most_completion_tokens: int | None = 0

    def add(self, size: Size) -> None:
        """Takes one more."""
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
        total: Requests in the input, those that can't be asked included.
        wanted: For each of them in its order: 1 when it is to be asked.
        done: How many have an answer already.
        failed: How many have an error already, which stays.
        edited: custom_ids with an answer to another body, which is asked anew.
        retried: custom_ids with an error that is asked anew.
        errors: Lines that can't be asked; the first thousand, unless all are kept.
        wrong: How many there are, without those that stand in the output as errors already.
        keeps_all: Whether all of them are kept.
        by_model: What the requests to be asked are expected to use.
        strangers: Results in the output that no line of the input asks for.
        cut: Whether it was given up before the end of the input.
        fingerprint: The input's.
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
        """How many are to be asked."""
        return self.wanted.count(1)

    def refuse(self, error: LineError, result: tuple[str, bool] | None = None) -> None:
        """Takes a line that can't be asked, and what the output holds under its name."""
        if result is not None and not result[1]:
            if result[0] == error.body_hash:
                self.failed += 1  # an earlier run has said so
                return
            self.retried.append(error.name)
        elif result is not None:
            self.edited.append(error.name)
        self.wrong += 1
        if self.keeps_all or len(self.errors) < _KEPT:
            self.errors.append(error)


def make_plan(
    source: Source,
    results: Mapping[str, tuple[str, bool]],
    *,
    retry_errors: bool = False,
    keeps_all: bool = False,
    stopped: Callable[[], bool] = lambda: False,
) -> Plan:
    """Compares the input with what is there. It reads all of it: call it in a thread.

    Args:
        source: The input.
        results: What the output holds, by custom_id: hash of the body, and whether there is an answer.
        retry_errors: Whether errors are asked anew.
        keeps_all: Whether all lines that can't be asked are kept, not just the first thousand.
        stopped: Whether to give up; what comes back then is of no use.

    Raises:
        OSError: The input can't be read.
    """
    plan = Plan(keeps_all=keeps_all)
    seen: dict[str, int] = {}
    try:
        plan.fingerprint = source.fingerprint()
        for item in source.items():
            if item is None:
                continue  # all are wanted
            plan.total += 1
            plan.wanted.append(0)
            line = _judge(item, seen)
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


def _judge(item: InputLine | LineError, seen: dict[str, int]) -> InputLine | LineError:
    """Returns the line, or what is wrong with it at first sight; no two have one name."""
    if isinstance(item, LineError):
        return _renamed(item, seen)
    first = seen.setdefault(item.custom_id, item.number)
    if first != item.number:
        error = LineError(item.number, f"custom_id: {item.custom_id[:80]!r} stands in line {first} too")
        return _renamed(error, seen)
    return item


def _renamed(error: LineError, seen: Mapping[str, int]) -> LineError:
    """Returns the error under a name that is free."""
    name = error.name if error.custom_id not in seen else f"invalid-line-{error.line}"
    while name in seen:
        name += "-2"
    return LineError(error.line, error.text, name, error.body_hash)


def _plan_line(
    plan: Plan, source: Source, line: InputLine, result: tuple[str, bool] | None, *, retry_errors: bool
) -> None:
    body = source.body(line)
    if result is not None:
        old_hash, ok = result
        edited = old_hash not in ("", body_hash(body))  # files of the Batch API have none
        if not edited and (ok or not retry_errors):
            plan.done += ok
            plan.failed += not ok
            return
    try:
        request = ChatCompletionRequest.from_dict(body)
    except ValueError as error:
        plan.refuse(LineError(line.number, _named(str(error)), line.custom_id, body_hash(body)), result)
        return
    if result is not None:
        (plan.edited if result[1] else plan.retried).append(line.custom_id)
    plan.wanted[-1] = 1
    plan.by_model.setdefault(request.model, Estimate()).add(size_of(request.messages, request.max_tokens, request.n))


def _named(text: str) -> str:
    """Says what to do where the model is missing, and where the field stands."""
    if text.startswith("model: missing"):
        return "body.model: missing; put it into the line, or name one for all with model= (--model)"
    return f"body.{text}"
