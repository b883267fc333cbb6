"""One event loop, one server, and a line for each request: what runs behind `together-async serve`."""

import asyncio
import contextlib
import errno
import signal

import click

from together_async.cli.serve.banner import banner
from together_async.cli.serve.options import Address, EmulatorOptions, OutputOptions, RecorderOptions
from together_async.cli.serve.printer import EXIT_CODES, Printer
from together_async.cli.serve.servers import emulator, recorder
from together_async.cli.terminal import note
from together_async.testing import EmulatorServer, Recorder


def run(task: EmulatorOptions | RecorderOptions, address: Address, output: OutputOptions) -> int:
    """Serve until a signal comes.

    Args:
        task: What to serve.
        address: Where to listen.
        output: What to print.

    Returns:
        The exit code.

    Raises:
        click.ClickException: The command can't listen, read or write.
        BrokenPipeError: The reader of the output left.
    """
    return asyncio.run(_run(task, address, output))


async def _run(task: EmulatorOptions | RecorderOptions, address: Address, output: OutputOptions) -> int:
    printer = Printer(output)
    server = emulator(task, address, printer) if isinstance(task, EmulatorOptions) else recorder(task, address, printer)
    loop = asyncio.get_running_loop()
    for name in EXIT_CODES:
        with contextlib.suppress(NotImplementedError):  # on Windows Ctrl-C cancels the task instead
            loop.add_signal_handler(getattr(signal, name), printer.stop_on_signal, name)
    try:
        await server.__aenter__()
    except OSError as error:
        raise click.ClickException(error_text(error, task, address)) from error
    try:
        click.echo(banner(server, task, address, quiet=output.quiet), err=output.as_json)
        await printer.stop.wait()
    finally:
        await _close(server)
    if printer.error is not None:
        raise printer.error
    if not output.quiet:
        note(f"Stopped after {_count(server)}.")
    return printer.exit_code


async def _close(server: EmulatorServer | Recorder) -> None:
    """End the server. An error that a script or rule of the emulator raised was shown when it happened."""
    try:
        await server.__aexit__(None, None, None)
    except OSError as error:
        if isinstance(server, Recorder):
            raise click.ClickException(f"the recording can't be written: {error.strerror}") from error
    except Exception:
        if isinstance(server, Recorder):
            raise


def error_text(error: OSError, task: EmulatorOptions | RecorderOptions, address: Address) -> str:
    """Say why the server could not be started."""
    if error.errno == errno.EADDRINUSE:
        return f"port {address.port} of {address.host} is in use: choose another with --port, or a free one with 0"
    if isinstance(task, RecorderOptions) and error.filename is not None:
        return f"{task.path} can't be written: {error.strerror}"
    return f"can't listen on {address.host}:{address.port}: {error.strerror or error}"


def _count(server: EmulatorServer | Recorder) -> str:
    number = server.recorded if isinstance(server, Recorder) else server.journal.total
    noun = "exchange" if isinstance(server, Recorder) else "request"
    return f"{number} {noun}{'' if number == 1 else 's'}"
