"""The server that the options describe: the emulator or the recorder."""

import contextlib
from collections.abc import Iterator

import click

from together_async.cli.serve.fault_spec import read_rule
from together_async.cli.serve.options import Address, EmulatorOptions, RecorderOptions
from together_async.cli.serve.printer import Printer
from together_async.cli.serve.request_line import RequestLine
from together_async.cli.serve.script_file import load_script
from together_async.testing import DIALECTS, MODELS, Account, EmulatorServer, Model, Rate, Recorder, Recording
from together_async.testing.script import Script


def recorder(task: RecorderOptions, address: Address, printer: Printer) -> Recorder:
    """Make the recorder that the options describe."""
    with usage_errors("--upstream"):
        return Recorder(
            task.path,
            upstream=task.upstream,
            keep_prompts=task.keep_prompts,
            host=address.host,
            port=address.port,
            on_end=lambda recorded: printer.print_line(RequestLine.from_exchange(recorded)),
        )


def emulator(task: EmulatorOptions, address: Address, printer: Printer) -> EmulatorServer:
    """Make the emulator that the options describe."""
    faults = []
    for spec in task.faults:
        with usage_errors(f"--fault {spec!r}"):
            faults.append(read_rule(spec))
    with usage_errors("--requests-per-minute, --tokens-per-minute"):
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
        on_end=lambda entry: printer.print_line(RequestLine.from_entry(entry)),
    )


@contextlib.contextmanager
def usage_errors(option: str) -> Iterator[None]:
    """Turn a refused value of an option into a usage error that names the option."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise click.UsageError(f"{option}: {error}") from error


def _models(task: EmulatorOptions) -> list[Model]:
    if task.dialect is None:
        known = {model.id: model for model in MODELS}
        return [known.get(name, Model(name)) for name in task.models]
    if task.dialect not in DIALECTS:
        raise click.UsageError(f"--dialect: got {task.dialect!r}, expected one of {', '.join(DIALECTS)}")
    return [Model(name, DIALECTS[task.dialect]) for name in task.models]


def _script(task: EmulatorOptions) -> Script | Recording:
    if task.replay is not None:
        try:
            return Recording.load(task.replay)
        except ValueError as error:
            raise click.UsageError(f"--replay: {error}") from error
        except OSError as error:
            raise click.ClickException(f"{task.replay} can't be read: {error.strerror}") from error
    if task.script is not None:
        return load_script(task.script)
    return task.say
