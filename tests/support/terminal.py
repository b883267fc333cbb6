"""The command as a process, with or without a terminal."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from typing import Self

import pytest

from support.paths import ROOT

pty = pytest.importorskip("pty", reason="needs Unix terminals and signals")

# A shell makes its background jobs ignore SIGINT, and children inherit that: Ctrl-C would not end the command, ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

COMMAND = [sys.executable, "-X", "dev", "-m", "together_async"]
TIMEOUT_S = 30.0


def environment(**variables: str) -> dict[str, str]:
    """The test's environment without the variables that the command reads, and with these."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TOGETHER_")}
    return {**inherited, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", "TERM": "xterm", **variables}


async def start(
    *arguments: str, env: dict[str, str] | None = None, stdin: int | None = None
) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        *COMMAND,
        *arguments,
        stdin=stdin if stdin is not None else pipe,
        stdout=pipe,
        stderr=pipe,
        env=env or environment(),
    )


async def run(*arguments: str, env: dict[str, str] | None = None, stdin: str = "") -> tuple[int, str, str]:
    """Runs the command to its end; returns the exit code and the text of both streams."""
    process = await start(*arguments, env=env)
    out, err = await asyncio.wait_for(process.communicate(stdin.encode()), TIMEOUT_S)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


class Terminal:
    """The command on its own terminal, so that Ctrl-C and Ctrl-D are keys."""

    # The child makes the terminal its controlling one: only then does the kernel turn the keys into signals.
    TAKE_TERMINAL = (
        "import fcntl, os, sys, termios\n"
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
    )

    def __init__(self, *arguments: str, env: dict[str, str]) -> None:
        self._arguments = arguments
        self._env = env
        self._seen = ""
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._master, slave = pty.openpty()
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            self.TAKE_TERMINAL,
            *COMMAND[1:],
            *self._arguments,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=self._env,
            start_new_session=True,
        )
        os.close(slave)
        asyncio.get_running_loop().add_reader(self._master, self._read)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        asyncio.get_running_loop().remove_reader(self._master)
        os.close(self._master)
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()

    def _read(self) -> None:
        try:
            self._seen += os.read(self._master, 65536).decode("utf-8", "replace")
        except OSError:  # on Linux: the other side is closed
            asyncio.get_running_loop().remove_reader(self._master)
        self._changed.set()

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    async def interrupt(self, pattern: str) -> None:
        """Presses Ctrl-C at the prompt until the pattern appears.

        CPython's readline checks for signals, then waits for keys: a signal in between is noticed only at the next key.
        """
        for _ in range(10):
            self.press("\x03")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    return await self._see(pattern)
        return pytest.fail(f"{pattern!r} never came; the screen: {self._seen!r}")

    async def expect(self, pattern: str) -> None:
        """Waits until the pattern is on the screen, then forgets everything up to its end."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await self._see(pattern)
        except TimeoutError:
            pytest.fail(f"{pattern!r} never came; the screen: {self._seen!r}")

    async def _see(self, pattern: str) -> None:
        while not (found := re.search(pattern, self._seen)):
            self._changed.clear()
            await self._changed.wait()
        self._seen = self._seen[found.end() :]

    async def ended(self) -> int:
        return await asyncio.wait_for(self.process.wait(), TIMEOUT_S)
