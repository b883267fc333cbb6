"""A scripted `xllamacpp`, and checks that nothing is left of a stopped server."""

import contextlib
import gc
import os
from pathlib import Path

import pytest

SCRIPTED_LLAMA = """
import os, signal, socket, sys, time, types

class CommonParams(types.SimpleNamespace):
    def __init__(self):
        super().__init__(
            model=types.SimpleNamespace(), cpuparams=types.SimpleNamespace(), cpuparams_batch=types.SimpleNamespace()
        )

class Server:
    def __init__(self, params):
        print("noise on standard output", flush=True)
        fault = os.environ.get("LLAMA_FAULT", "")
        if fault == "raise":
            os.write(2, b"E gguf: tensor 7 is not within the file bounds\\n")
            raise RuntimeError("Failed to init server")
        if fault == "abort":
            os.kill(os.getpid(), signal.SIGABRT)
        if fault == "hang":
            time.sleep(1000)
        if fault == "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.socket = socket.create_server(("127.0.0.1", params.port))
        self.listening_address = "http://127.0.0.1:%d" % self.socket.getsockname()[1]
"""


def open_descriptors() -> set[tuple[int, int]]:
    """This process's open descriptors, each with its inode; that of the listing itself is closed by then."""
    gc.collect()
    found: set[tuple[int, int]] = set()
    for entry in Path("/dev/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add((int(entry.name), os.fstat(int(entry.name)).st_ino))
    return found


def assert_gone(pid: int) -> None:
    """The process neither runs nor is left as a zombie, which would still take a signal."""
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
