"""Answers of `together-async chat`, run as a person runs it: a process, its pipes, a terminal, signals."""

import asyncio
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from support.chat_server import ChatServer, Exchange, ask, hello
from support.terminal import COMMAND, TIMEOUT_S, environment, run, start

pty = pytest.importorskip("pty", reason="terminals and signals as Unix has them")


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

        async with ChatServer(script) as server:
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
        async with ChatServer(hello) as server:
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


class TestFailing:
    """Exit code 1, what came so far, and a text a person can act on."""

    async def test_a_refused_connection_names_the_address(self) -> None:
        async with ChatServer(hello) as server:
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
    @pytest.mark.parametrize("unbuffered", ["", "1"])
    async def test_a_full_disk_is_an_error(self, unbuffered: str) -> None:
        async with ChatServer(hello) as server:
            full = os.open("/dev/full", os.O_WRONLY)
            process = await asyncio.create_subprocess_exec(
                *COMMAND,
                "chat",
                "--base-url",
                server.base_url,
                "hi",
                stdout=full,
                stderr=asyncio.subprocess.PIPE,
                env=environment(PYTHONUNBUFFERED=unbuffered),
            )
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

        async with ChatServer(script) as server:
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

        async with ChatServer(script) as server:
            process = await start("chat", "--base-url", server.base_url, "hi")
            await asyncio.wait_for(asked.wait(), TIMEOUT_S)
            process.send_signal(signal.SIGINT)
            out, err = await process.communicate()
        assert (process.returncode, out, err) == (130, b"", b"Interrupted: nothing had come yet.\n")

    @pytest.mark.parametrize("arguments", [[], ["--json"]])
    async def test_a_reader_that_leaves_ends_it_silently(self, arguments: list[str]) -> None:
        """`| head -c 5`: no traceback, no "Exception ignored", and the server stops being read too."""
        async with ChatServer(self.endless) as server:
            process = await start("chat", "--base-url", server.base_url, "hi", *arguments)
            assert process.stdout is not None
            await asyncio.wait_for(process.stdout.readexactly(5), TIMEOUT_S)
            process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]  # asyncio's own pipe
            assert process.stderr is not None
            err = await asyncio.wait_for(process.stderr.read(), TIMEOUT_S)
            assert (await process.wait(), err) == (0, b"")
