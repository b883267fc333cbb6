"""Python environments for clients that cannot be installed next to the others, made on demand and kept."""

import os
import subprocess
import sys
import venv
from pathlib import Path

INSTALL_TIMEOUT_S = 300


def folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "together-async-benchmarks"


def python_for(requirement: str) -> str:
    """Returns the interpreter of an environment that has `requirement` and uvloop.

    Raises:
        OSError, subprocess.SubprocessError: It could not be made; the caller leaves the client out.
    """
    name = "".join(letter if letter.isalnum() else "-" for letter in requirement)
    place = folder() / f"{name}-{sys.version_info.major}.{sys.version_info.minor}"
    python = place / "bin" / "python"
    finished = place / "finished"
    if not finished.exists():
        venv.create(place, with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "-q", requirement, "uvloop"]
        subprocess.run(install, check=True, capture_output=True, timeout=INSTALL_TIMEOUT_S)
        finished.touch()
    return str(python)
