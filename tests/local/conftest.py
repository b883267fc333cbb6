"""Fixtures of the local server's tests: a scripted llama.cpp, and a model file."""

from pathlib import Path

import pytest

from support.llama import SCRIPTED_LLAMA


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory first on everybody's import path, with an `xllamacpp` whose faults are scripted."""
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "xllamacpp.py").write_text(SCRIPTED_LLAMA)
    monkeypatch.setenv("PYTHONPATH", str(packages))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(packages)
    return packages


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF and so on")
    return path
