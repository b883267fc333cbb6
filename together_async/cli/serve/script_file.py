"""The function that `--script FILE.py:NAME` names."""

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from together_async.testing.script import Script


def load_script(place: str) -> Script:
    """Import a file and return the object with this name in it.

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
    return showing_errors(script, path) if inspect.isroutine(script) else script


def showing_errors(function: Callable[[Any], Any], path: Path) -> Callable[[Any], Any]:
    """Wrap a function so that an error in it is shown here; the client gets a 500."""

    def script(request: Any) -> Any:
        try:
            return function(request)
        except Exception as error:
            _show_traceback(error, path)
            raise

    return script


def _show_traceback(error: Exception, path: Path) -> None:
    """Print the part of the traceback that begins in the person's own file."""
    frames = traceback.extract_tb(error.__traceback__)
    first = next((at for at, frame in enumerate(frames) if frame.filename == str(path)), 0)
    lines = [*traceback.format_list(frames[first:]), *traceback.format_exception_only(error)]
    click.echo("".join(lines).rstrip(), err=True)
