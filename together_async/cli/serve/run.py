"""One event loop, one server, and a line for each request: what runs behind `together-async serve`."""

import asyncio
import contextlib
import errno
import importlib.util
import inspect
import json
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs
import click

from together_async.cli.serve.fault_spec import read_rule
from together_async.cli.serve.options import Address, Emulated, Recorded, Shown
from together_async.cli.terminal import EXIT_INTERRUPTED, Output, note
from together_async.testing import DIALECTS, MODELS, Account, EmulatorServer, Entry, Model, Rate, Recorder, Recording
from together_async.testing.exchange import RecordedExchange
from together_async.testing.script import Script

EXIT_TERMINATED = 143
EXIT_CODES = {"SIGINT": EXIT_INTERRUPTED, "SIGTERM": EXIT_TERMINATED}
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}  # noqa: S104 - what a person typed
COLOURS = {"complete": "green", "client left": "yellow", "broken off": "red", "refused": "red"}
LONGEST_NAME = 60
_AT_ONCE_S = 0.02


@attrs.frozen(kw_only=True)
class Line:
    """What is told of one request when it has ended: neither key nor prompt.

    Attributes:
        path: The request's, without the query.
        model: The model asked for; empty when there was none.
        stream: Whether a stream was asked for.
        status: The answer's HTTP status.
        outcome: How it ended.
        tokens_written: How many tokens were sent.
        tokens: How many the whole answer holds; None when that is not known.
        first_token_s: Seconds to the first token; None when none was sent.
        elapsed_s: Seconds to the end.
        tokens_per_s: Speed after the first token; None for an answer that came at once.
        faults: What went wrong on purpose.
    """

    path: str
    model: str
    stream: bool
    status: int
    outcome: str
    tokens_written: int
    tokens: int | None
    first_token_s: float | None
    elapsed_s: float
    tokens_per_s: float | None
    faults: tuple[str, ...] = ()

    @classmethod
    def of_entry(cls, entry: Entry) -> "Line":
        """Tell of a request to the emulator."""
        ended = time.monotonic() if entry.ended_at is None else entry.ended_at
        first = entry.received_at if entry.first_token_at is None else max(entry.received_at, entry.first_token_at)
        return cls(
            path=entry.path.partition("?")[0],
            model=entry.model,
            stream=entry.streamed,
            status=entry.status,
            outcome=entry.outcome,
            tokens_written=entry.tokens_written,
            tokens=entry.tokens,
            first_token_s=None if entry.first_token_at is None else first - entry.received_at,
            elapsed_s=ended - entry.received_at,
            tokens_per_s=_speed(entry.tokens_written, ended - first),
            faults=tuple(map(repr, entry.faults)),
        )

    @classmethod
    def of_exchange(cls, recorded: RecordedExchange) -> "Line":
        """Tell of a request to the recorder."""
        first = recorded.pieces[0][0] if recorded.pieces else None
        ended = recorded.ended_s or recorded.began_s
        return cls(
            path="/v1/chat/completions",
            model=recorded.model,
            stream=bool(recorded.request.get("stream")),
            status=recorded.status,
            outcome="broken off" if not recorded.complete else "refused" if recorded.status >= 300 else "complete",
            tokens_written=sum(recorded.tokens),
            tokens=None,
            first_token_s=first,
            elapsed_s=ended,
            tokens_per_s=_speed(sum(recorded.tokens[1:]), ended - (first or 0.0)),
        )

    def as_json(self) -> str:
        """Return it for a program."""
        speed = self.tokens_per_s
        times = {
            "first_token_s": None if self.first_token_s is None else round(self.first_token_s, 6),
            "elapsed_s": round(self.elapsed_s, 6),
            "tokens_per_s": None if speed is None else round(speed, 3),
        }
        return json.dumps({"ended_at": _now().isoformat(), **attrs.asdict(self), **times})

    def as_text(self) -> str:
        """Return it for a person."""
        failed = self.status >= 400
        colour = "red" if failed else COLOURS[self.outcome]
        parts = [
            click.style(f"{_now():%H:%M:%S}", dim=True),
            click.style(f"{self.status or '---'} {self.outcome:11}", fg=colour),
            f"{self._count():>12}",
            "" if self.first_token_s is None else f"first token {self.first_token_s:.2f} s",
            "" if self.tokens_per_s is None else f"{self.tokens_per_s:.1f} tokens/s",
            click.style(_printable(self.model or self.path), bold=True),
            click.style(" ".join(map(_printable, self.faults)), fg="magenta"),
        ]
        return "  ".join(part for part in parts if click.unstyle(part)).rstrip()

    def _count(self) -> str:
        if not self.tokens and not self.tokens_written:
            return ""
        total = "" if self.tokens is None else f"/{self.tokens}"
        return f"{self.tokens_written}{total} tokens"


def _speed(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if tokens and seconds > _AT_ONCE_S else None


def _now() -> datetime:
    return datetime.now().astimezone()


def _printable(text: str) -> str:
    """Whoever asks chooses the model's name; it must not steer the terminal."""
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 1] + "…"


# -------------------------------------------------------------------------------------------------------------- running


class Printer:
    """Prints a line for each request, until the reader has left."""

    def __init__(self, shown: Shown) -> None:
        self._shown = shown
        self._output = Output(machine=shown.as_json)
        self.stop = asyncio.Event()
        self.error: Exception | None = None
        self.exit_code = 0

    def tell(self, line: Line) -> None:
        """Print what is told of a request; never raises."""
        try:
            if self._shown.as_json:
                self._output.write(line.as_json() + "\n")
            elif not self._shown.quiet:
                click.echo(line.as_text())
        except (OSError, click.ClickException) as error:
            self.error = error
            self.stop.set()

    def end(self, name: str) -> None:
        """Stop because of a signal."""
        self.exit_code = EXIT_CODES[name]
        self.stop.set()


def run(task: Emulated | Recorded, address: Address, shown: Shown) -> int:
    """Serve until a signal comes.

    Args:
        task: What to serve.
        address: Where.
        shown: What to print.

    Returns:
        The exit code.

    Raises:
        click.ClickException: It can't listen, read or write.
        BrokenPipeError: The reader of the output left.
    """
    return asyncio.run(_run(task, address, shown))


async def _run(task: Emulated | Recorded, address: Address, shown: Shown) -> int:
    printer = Printer(shown)
    server = emulator(task, address, printer) if isinstance(task, Emulated) else recorder(task, address, printer)
    loop = asyncio.get_running_loop()
    for name in EXIT_CODES:
        with contextlib.suppress(NotImplementedError):  # Windows, where Ctrl-C cancels this
            loop.add_signal_handler(getattr(signal, name), printer.end, name)
    try:
        await server.__aenter__()
    except OSError as error:
        raise click.ClickException(_why_not(error, task, address)) from error
    try:
        click.echo(banner(server, task, address, quiet=shown.quiet), err=shown.as_json)
        await printer.stop.wait()
    finally:
        await _close(server)
    if printer.error is not None:
        raise printer.error
    if not shown.quiet:
        note(f"Stopped after {_count(server)}.")
    return printer.exit_code


async def _close(server: EmulatorServer | Recorder) -> None:
    """End the server; what a script or rule of the emulator raised was told when it happened."""
    try:
        await server.__aexit__(None, None, None)
    except OSError as error:
        if isinstance(server, Recorder):
            raise click.ClickException(f"the recording can't be written: {error.strerror}") from error
    except Exception:
        if isinstance(server, Recorder):
            raise


def _why_not(error: OSError, task: Emulated | Recorded, address: Address) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {address.port} of {address.host} is in use: choose another with --port, or a free one with 0"
    if isinstance(task, Recorded) and error.filename is not None:
        return f"{task.path} can't be written: {error.strerror}"
    return f"can't listen on {address.host}:{address.port}: {error.strerror or error}"


def _count(server: EmulatorServer | Recorder) -> str:
    number = server.recorded if isinstance(server, Recorder) else server.journal.total
    noun = "exchange" if isinstance(server, Recorder) else "request"
    return f"{number} {noun}{'' if number == 1 else 's'}"


def banner(server: EmulatorServer | Recorder, task: Emulated | Recorded, address: Address, *, quiet: bool) -> str:
    """Return what is said at the start: where it is, and how to try it."""
    base_url = server.base_url
    if address.host in EVERYWHERE:
        base_url = f"http://{EVERYWHERE[address.host]}:{base_url.rpartition(':')[2]}"
    if quiet:
        return base_url
    if isinstance(task, Recorded):
        what, more = "Recording", f", what {task.upstream} answers, to {task.path}"
        key, model = "", MODELS[0].id
    else:
        what, more = "Emulating", ""
        key = " TOGETHER_API_KEY=..." if task.api_key else " TOGETHER_API_KEY=none"
        model = task.models[0] if task.models else MODELS[0].id
    has_key = isinstance(task, Recorded) or task.api_key
    credentials = '-H "authorization: Bearer $TOGETHER_API_KEY" ' if has_key else ""
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
    return (
        f"{what} at {click.style(base_url, bold=True)}{more} (Ctrl-C stops)\n\n"
        f"  export TOGETHER_BASE_URL={base_url}{key}\n"
        f"  curl -N {base_url}/chat/completions {credentials}-H 'content-type: application/json' \\\n"
        f"    -d {shlex.quote(json.dumps(body))}\n"
    )


# -------------------------------------------------------------------------------------------------------------- servers


def recorder(task: Recorded, address: Address, printer: Printer) -> Recorder:
    """Make the recorder that the options describe."""
    with _usage_errors("--upstream"):
        return Recorder(
            task.path,
            upstream=task.upstream,
            keep_prompts=task.keep_prompts,
            host=address.host,
            port=address.port,
            on_end=lambda recorded: printer.tell(Line.of_exchange(recorded)),
        )


def emulator(task: Emulated, address: Address, printer: Printer) -> EmulatorServer:
    """Make the emulator that the options describe."""
    faults = []
    for spec in task.faults:
        with _usage_errors(f"--fault {spec!r}"):
            faults.append(read_rule(spec))
    with _usage_errors("--requests-per-minute, --tokens-per-minute"):
        rate = Rate.per_minute(task.requests_per_minute, task.tokens_per_minute)
    return EmulatorServer(
        _script(task),
        faults=faults,
        account=None if rate == Rate() else Account(rate, seed=task.seed),
        tokens_per_second=task.tokens_per_second,
        first_token_s=task.first_token,
        jitter=task.jitter,
        seed=task.seed,
        models=_models(task) or None,
        api_key=task.api_key,
        replay_speed=task.replay_speed or 1.0,
        host=address.host,
        port=address.port,
        on_end=lambda entry: printer.tell(Line.of_entry(entry)),
    )


@contextlib.contextmanager
def _usage_errors(option: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        raise click.UsageError(f"{option}: {error}") from error


def _models(task: Emulated) -> list[Model]:
    if task.dialect is None:
        known = {model.id: model for model in MODELS}
        return [known.get(name, Model(name)) for name in task.models]
    if task.dialect not in DIALECTS:
        raise click.UsageError(f"--dialect: got {task.dialect!r}, expected one of {', '.join(DIALECTS)}")
    return [Model(name, DIALECTS[task.dialect]) for name in task.models]


def _script(task: Emulated) -> Script | Recording:
    if task.replay is not None:
        try:
            return Recording.load(task.replay)
        except ValueError as error:
            raise click.UsageError(f"--replay: {error}") from error
        except OSError as error:
            raise click.ClickException(f"{task.replay} can't be read: {error.strerror}") from error
    if task.script is not None:
        return _load_script(task.script)
    return task.say


def _load_script(place: str) -> Script:
    """Import a file and return what has the name in it.

    Raises:
        click.ClickException: There is no such file or name, or the file raises.
    """
    file, colon, name = place.rpartition(":")
    if not colon or not name.isidentifier():
        raise click.UsageError(f"--script: got {place!r}, expected FILE.py:NAME, the name of a function in it")
    path = Path(file).resolve()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise click.UsageError(f"--script: there is no Python file {file!r}")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # as when the file is run
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        _show_traceback(error, path)
        raise click.ClickException(f"{file} can't be imported") from error
    script: Any = getattr(module, name, None)
    if script is None:
        there = ", ".join(known for known, value in vars(module).items() if inspect.isfunction(value))
        raise click.UsageError(f"--script: {file} has no {name!r}; it has the functions: {there or 'none'}")
    if inspect.iscoroutinefunction(script):
        raise click.UsageError(f"--script: {name} is async, expected a plain function")
    return _telling(script, path) if inspect.isroutine(script) else script


def _telling(function: Callable[[Any], Any], path: Path) -> Callable[[Any], Any]:
    """The function, which shows where it failed; the client gets a 500 that says so too."""

    def script(request: Any) -> Any:
        try:
            return function(request)
        except Exception as error:
            _show_traceback(error, path)
            raise

    return script


def _show_traceback(error: Exception, path: Path) -> None:
    """Print the part of the traceback which is in the person's own file, or below."""
    frames = traceback.extract_tb(error.__traceback__)
    first = next((at for at, frame in enumerate(frames) if frame.filename == str(path)), 0)
    lines = [*traceback.format_list(frames[first:]), *traceback.format_exception_only(error)]
    click.echo("".join(lines).rstrip(), err=True)
