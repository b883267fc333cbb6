"""`together-async serve`, run as a person runs it: a process, its pipes, a terminal, signals; and faults in words."""

import asyncio
import contextlib
import json
import re
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, Self

import aiohttp
import attrs
import pytest

from support.servers import KEY
from support.terminal import TIMEOUT_S, Terminal, environment, run, start
from together_async import AsyncTogether
from together_async.cli.serve.fault_spec import FAULTS, read_rule, table
from together_async.testing import (
    ByModel,
    Chance,
    CloseAfter,
    Cut,
    Drip,
    EmulatorServer,
    EndlessHeaders,
    ErrorInStream,
    Frame,
    Garbage,
    Gzip,
    Headers,
    HugeLine,
    Insert,
    InTurn,
    LineEndings,
    Raw,
    Recording,
    Redirect,
    Split,
    Stall,
    Status,
    WithoutDone,
    WithoutFinishReason,
    WrongLength,
)

click_testing = pytest.importorskip("click.testing", reason="needs the extra `cli`")


class Serving:
    """The command on a free port, with its output line by line."""

    def __init__(self, *arguments: str, banner: str = "out", **variables: str) -> None:
        self._arguments = ("serve", "--port", "0", *arguments)
        self._banner = banner
        self._env = environment(**variables)
        self.errors = ""

    async def __aenter__(self) -> Self:
        self.process = await start(*self._arguments, env=self._env)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.out, self.err = self.process.stdout, self.process.stderr
        shown = self.out if self._banner == "out" else self.err
        first = await self.line(shown)
        found = re.search(r"http://\S+/v1", first)
        assert found is not None, first + (await self.err.read()).decode()
        self.base_url = found[0]
        self.banner = first
        while not self.banner.endswith("'\n\n") and "-q" not in self._arguments:
            self.banner += await self.line(shown)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.communicate()

    async def line(self, stream: asyncio.StreamReader | None = None) -> str:
        return (await asyncio.wait_for((stream or self.out).readline(), TIMEOUT_S)).decode()

    async def stop(self, signal_number: signal.Signals = signal.SIGTERM) -> tuple[int | None, str, str]:
        self.process.send_signal(signal_number)
        out, err = await asyncio.wait_for(self.process.communicate(), TIMEOUT_S)
        return self.process.returncode, out.decode(), err.decode()

    async def ask(self, prompt: str = "Why?", *, key: str = KEY, **fields: Any) -> tuple[int, bytes]:
        body = {"model": "m", "messages": [{"role": "user", "content": prompt}], "stream": True, **fields}
        headers = {"authorization": f"Bearer {key}"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.base_url}/chat/completions", json=body, headers=headers) as response,
        ):
            try:
                return response.status, await response.read()
            except aiohttp.ClientError:
                return response.status, b"broken"


class TestStart:
    async def test_says_where_it_is_and_how_to_try_it(self) -> None:
        """The two lines to paste are a shell's: the second answers."""
        async with Serving("--say", "Hello there") as serving:
            first, _, variables, *curl = serving.banner.splitlines()
            assert first == f"Emulating at {serving.base_url} (Ctrl-C stops)"
            assert variables == f"  export TOGETHER_BASE_URL={serving.base_url} TOGETHER_API_KEY=none"
            assert curl[0].startswith(f"  curl -N {serving.base_url}/chat/completions ")
            if shutil.which("curl"):
                shell = await asyncio.create_subprocess_shell(
                    "\n".join(curl), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
                )
                answer, _ = await asyncio.wait_for(shell.communicate(), TIMEOUT_S)
                assert answer.endswith(b"data: [DONE]\n\n")
                assert re.fullmatch(
                    r"\d\d:\d\d:\d\d  200 complete       2/2 tokens  first token \d\.\d\d s"
                    r"  meta-llama/Llama-3\.3-70B-Instruct-Turbo\n",
                    await serving.line(),
                )

    async def test_quiet_is_the_address_alone(self) -> None:
        async with Serving("-q") as serving:
            assert serving.banner == serving.base_url + "\n"
            await serving.ask()
            assert await serving.stop() == (143, "", "")

    async def test_no_key_is_shown(self) -> None:
        async with Serving("--api-key", KEY) as serving:
            assert "TOGETHER_API_KEY=...\n" in serving.banner
            assert '-H "authorization: Bearer $TOGETHER_API_KEY"' in serving.banner
            assert [(await serving.ask(key=key))[0] for key in (KEY, "another")] == [200, 401]
            _, out, err = await serving.stop()
        assert KEY not in serving.banner + out + err
        assert "401 refused" in out


class TestRequests:
    async def test_chat_talks_to_it(self) -> None:
        """The other command, with nothing but the address."""
        async with Serving("--say", "Hello there!") as serving:
            code, out, err = await run("chat", "--base-url", serving.base_url, "Hi")
            assert (code, out) == (0, "Hello there!\n"), err
            assert "200 complete" in await serving.line()

    async def test_json_tells_each_request_in_a_line(self) -> None:
        """What the emulator's journal knows, for programs: no key and no prompt."""
        arguments = ("--json", "--say", "one two three four", "--fault", "model=broken cut:after_token=2,how=close")
        async with Serving(*arguments, banner="err") as serving:
            await serving.ask("a secret prompt")
            await serving.ask("a secret prompt", stream=False, model="bröken\x1b[2J")
            await serving.ask("a secret prompt", model="broken")
            await serving.ask("a secret prompt", temperature="hot")
            lines = [await serving.line() for _ in range(4)]
            code, out, _ = await serving.stop(signal.SIGINT)
        assert (code, out) == (130, "")
        told = [json.loads(line) for line in lines]
        whole = {"path": "/v1/chat/completions", "tokens": 4, "tokens_written": 4, "faults": []}
        assert [
            {key: value for key, value in line.items() if key[-2:] not in {"_s", "at"}} for line in told
        ] == [
            {**whole, "model": "m", "stream": True, "status": 200, "outcome": "complete"},
            {**whole, "model": "bröken\x1b[2J", "stream": False, "status": 200, "outcome": "complete"},
            {
                **whole, "model": "broken", "stream": True, "status": 200, "outcome": "broken off",
                "tokens_written": 2, "faults": ["Cut(after_token=2, how='close')"],
            },
            {**whole, "model": "m", "stream": True, "status": 400, "outcome": "refused", "tokens": 0,
             "tokens_written": 0},
        ]  # fmt: skip
        assert all(0 <= (line["first_token_s"] or 0) <= line["elapsed_s"] < TIMEOUT_S for line in told)
        assert "secret" not in "".join(lines)
        assert KEY not in "".join(lines)

    async def test_a_client_that_leaves_is_told(self) -> None:
        async with Serving("--fault", "stall:after_token=1", "--say", "one two three") as serving:
            async with AsyncTogether(KEY, base_url=serving.base_url) as client:
                async for _ in client.stream("Why?", model="m"):
                    break
            assert "200 client left    1/3 tokens" in await serving.line()

    async def test_the_clients_text_can_not_steer_the_terminal(self) -> None:
        async with Serving() as serving:
            await serving.ask(model="a\x1b]0;owned\x07\nb" + "x" * 100)
            line = await serving.line()
        assert "  a?]0;owned??bx" in line
        assert line.endswith("x…\n")

    async def test_on_a_terminal_there_is_colour(self) -> None:
        async with Terminal("serve", "--port", "0", "--fault", "first=1 status:503", env=environment()) as terminal:
            await terminal.expect("Emulating at \x1b\\[1m")
            await terminal.expect("export TOGETHER_BASE_URL=")
            terminal._seen = "=" + terminal._seen
            await terminal.expect("'\r\n")
            terminal.press("\x03")
            await terminal.expect("Stopped after 0 requests")
            assert await terminal.ended() == 130


class TestSays:
    async def test_a_function_of_the_request(self, tmp_path: Path) -> None:
        """It may import what lies beside it; where it fails, its author sees where, and the client a 500."""
        (tmp_path / "words.py").write_text("GREETING = 'Good day, '\n")
        script = tmp_path / "replies.py"
        script.write_text(
            "from words import GREETING\n"
            "def answer(request):\n"
            "    if request.n: raise KeyError('no such name')\n"
            "    return GREETING + request.messages[0]['content']\n"
        )
        async with Serving("--script", f"{script}:answer") as serving:
            status, body = await serving.ask("Ann", stream=False)
            assert (status, json.loads(body)["choices"][0]["message"]["content"]) == (200, "Good day, Ann")
            status, body = await serving.ask("Ann", n=2)
            assert status == 500
            code, out, err = await serving.stop()
        assert code == 143
        assert "500 refused" in out
        assert re.match(r'  File ".*replies\.py", line 3, in answer\n(.|\n)*KeyError: .no such name.\n', err), err
        assert "Traceback" not in err

    async def test_the_pace_is_as_told(self) -> None:
        """0.2 s to the first of 3 tokens, 0.1 s from one to the next."""
        arguments = ("--first-token", "0.2", "--tokens-per-second", "10", "--say", "one two three", "--jitter", "0")
        async with Serving(*arguments) as serving:
            started = time.monotonic()
            await serving.ask()
            assert 0.4 <= time.monotonic() - started < 2

    async def test_only_the_models_named(self) -> None:
        async with Serving("--model", "a/b", "--model", "c", "--dialect", "vllm", "-q") as serving:
            assert [(await serving.ask(model=name))[0] for name in ("a/b", "c", "d")] == [200, 200, 404]
            _, body = await serving.ask(model="c", stream=False)
            assert "prompt" not in json.loads(body)  # which the native shape has

    async def test_the_seed_changes_what_is_generated(self) -> None:
        said = []
        for seed in ("1", "2"):
            async with Serving("--seed", seed, "-q") as serving:
                for _ in range(2):
                    _, body = await serving.ask(stream=False, max_tokens=20)
                    said.append(json.loads(body)["choices"][0]["message"]["content"])
        assert said[0] == said[1] != said[2] == said[3]

    async def test_limits_and_faults_meet(self) -> None:
        """The first two requests fail as told; of those after, one a minute is let through."""
        arguments = ("--fault", "first=2 status:503,headers.retry-after=1", "--requests-per-minute", "3", "-q")
        async with Serving(*arguments, "--tokens-per-minute", "1e6") as serving:
            assert [(await serving.ask())[0] for _ in range(2)] == [503, 429]


class TestRecord:
    async def test_recorded_and_replayed(self, tmp_path: Path) -> None:
        """One command is the proxy, the other answers from its file, without key and prompt in it."""
        path = tmp_path / "day.jsonl"
        async with (
            EmulatorServer("A fine answer.", tokens_per_second=100) as upstream,
            Serving("--record", str(path), "--upstream", upstream.base_url) as serving,
        ):
            assert serving.banner.startswith(
                f"Recording at {serving.base_url}, what {upstream.base_url} answers, to {path} (Ctrl-C stops)\n"
            )
            assert f"  export TOGETHER_BASE_URL={serving.base_url}\n" in serving.banner
            status, first = await serving.ask("a secret prompt")
            assert status == 200
            assert upstream.journal[0].headers["authorization"] == f"Bearer {KEY}"
            assert re.search(
                r"200 complete +4 tokens  first token 0\.\d\d s  [\d.]+ tokens/s  m\n", await serving.line()
            )
            code, _, err = await serving.stop()
        assert (code, err) == (143, "Stopped after 1 exchange.\n")
        assert b"secret" not in path.read_bytes()
        assert KEY.encode() not in path.read_bytes()
        elapsed = Recording.load(path).exchanges[0].pieces[-1][0]
        for speed, least, most in (((), elapsed, 5.0), (("--replay-speed", "inf"), 0.0, elapsed)):
            async with Serving("--replay", str(path), *speed) as serving:
                started = time.monotonic()
                assert await serving.ask("another") == (200, first)
                assert least - 0.005 <= time.monotonic() - started < most + 0.1

    async def test_prompts_on_demand(self, tmp_path: Path) -> None:
        path = tmp_path / "day.jsonl"
        async with (
            EmulatorServer("Fine.") as upstream,
            Serving("--record", str(path), "--upstream", upstream.base_url, "--keep-prompts", "-q") as serving,
        ):
            await serving.ask("a public prompt")
            assert (await serving.stop())[0] == 143
        assert b"a public prompt" in path.read_bytes()

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    async def test_a_full_disk(self) -> None:
        async with (
            EmulatorServer("Fine.") as upstream,
            Serving("--record", "/dev/full", "--upstream", upstream.base_url) as serving,
        ):
            assert [(await serving.ask())[0] for _ in range(2)] == [200, 500]
            code, _, err = await serving.stop()
        assert (code, err) == (1, "Error: the recording can't be written: No space left on device\n")


class TestStopping:
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    async def test_with_a_stream_under_way(self, number: signal.Signals, code: int) -> None:
        """At once, with a line for the stream, and without a traceback."""
        async with (
            Serving("--fault", "stall:after_token=1", "--say", "one two") as serving,
            AsyncTogether(KEY, base_url=serving.base_url) as client,
            client.stream("Why?", model="m") as stream,
        ):
            await anext(aiter(stream))
            ended, out, err = await serving.stop(number)
        assert ended == code
        assert "200 broken off     1/2 tokens" in out
        assert err == "Stopped after 1 request.\n"

    async def test_a_reader_that_leaves_ends_it_silently(self) -> None:
        """`| head`: the next line finds nobody."""
        async with Serving() as serving:
            serving.process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
            await serving.ask()
            err = await asyncio.wait_for(serving.err.read(), TIMEOUT_S)
            assert (await serving.process.wait(), err) == (0, b"")


@attrs.frozen
class Result:
    code: int
    out: str
    err: str


def used(*arguments: str) -> Result:
    """The command in this process, which has to end before it serves."""
    from together_async.cli.app import app

    result = click_testing.CliRunner().invoke(app, ["serve", "--host", "203.0.113.1", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return Result(result.exit_code, result.stdout, result.stderr)


class TestUsedWrongly:
    """Exit code 2, one text, nothing served."""

    @pytest.fixture
    def files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [*sys.path])
        Path("replies.py").write_text("VALUE = 'text'\ndef one(request): ...\nasync def two(request): ...\n")
        Path("broken.py").write_text("import nothing_like_this\n")
        Path("bad.jsonl").write_text('{"custom_id": 1}\n')
        Path("empty.jsonl").write_text("")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ("--say x --script replies.py:one", "--say and --script exclude each other"),
            ("--say x --replay bad.jsonl", "--say and --replay exclude each other"),
            ("--record x --say y", "--record and --say exclude each other"),
            ("--record x --fault gzip", "--record and --fault exclude each other"),
            ("--record x --seed 0", "--record and --seed exclude each other"),
            ("--replay-speed 2", "--replay-speed needs --replay"),
            ("--dialect vllm", "--dialect needs --model"),
            ("--model m --dialect nope", "--dialect: got 'nope', expected one of together, gpt-oss"),
            ("--keep-prompts", "--keep-prompts needs --record"),
            ("--upstream http://x/v1", "--upstream needs --record"),
            ("--record x --upstream x", "--upstream: upstream: got 'x', expected http://"),
            ("--port 70000", "70000 is not in the range"),
            ("--jitter 2", "2.0 is not in the range"),
            ("--tokens-per-second 0", "0.0 is not in the range"),
            ("--requests-per-minute 1e99", "--requests-per-minute, --tokens-per-minute: Rate"),
            ("--fault nope", "--fault 'nope': unknown fault 'nope', expected one of status, headers"),
            ("--fault cut:x=1", "--fault 'cut:x=1': cut: no argument 'x', expected in_head=N, after_token=N"),
            ("--script replies.py", "--script: got 'replies.py', expected FILE.py:NAME"),
            ("--script none.py:x", "--script: there is no Python file 'none.py'"),
            ("--script replies.py:three", "replies.py has no 'three'; it has the functions: one, two"),
            ("--script replies.py:two", "--script: two is async, expected a plain function"),
            ("--replay bad.jsonl", "--replay: bad.jsonl:1: not a line of a recording"),
            ("--replay empty.jsonl", "--replay: empty.jsonl: an empty recording"),
            ("--replay none.jsonl", "does not exist"),
        ],
    )  # fmt: skip
    @pytest.mark.usefixtures("files")
    def test_says_what_to_do(self, arguments: str, message: str) -> None:
        result = used(*arguments.split())
        assert (result.code, result.out) == (2, "")
        assert message in " ".join(result.err.split())
        assert "Traceback" not in result.err

    @pytest.mark.usefixtures("files")
    def test_a_script_that_can_not_be_imported(self) -> None:
        """Exit code 1: its author sees which line, and no line of ours."""
        result = used("--script", "broken.py:x")
        assert result.code == 1
        assert re.match(r'  File ".*broken\.py", line 1, in <module>\n(.|\n)*No module named', result.err)
        assert result.err.endswith("Error: broken.py can't be imported\n")
        assert "serving.py" not in result.err

    def test_a_port_in_use_is_one_line(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            result = used("--host", "127.0.0.1", "--port", str(port))
        assert (result.code, result.out) == (1, "")
        assert result.err == (
            f"Error: port {port} of 127.0.0.1 is in use: choose another with --port, or a free one with 0\n"
        )

    def test_an_address_of_somebody_else(self) -> None:
        result = used()
        assert result.code == 1
        assert result.err.startswith("Error: can't listen on 203.0.113.1:8123: ")
        assert result.err.count("\n") == 1

    def test_a_recording_that_can_not_be_written(self) -> None:
        result = used("--record", "/nonexistent/x")
        assert (result.code, result.err) == (1, "Error: /nonexistent/x can't be written: No such file or directory\n")

    def test_help_documents_the_exit_codes(self) -> None:
        result = used("-h")
        assert result.code == 0
        assert re.search(r"0 +the reader(.|\n)*1 +it could not(.|\n)*2 +used wrongly(.|\n)*130 (.|\n)*143 ", result.out)

    def test_the_faults_are_listed(self) -> None:
        result = used("--list-faults")
        assert result.code == 0
        assert re.findall(r"^  ([a-z-]+)(?:  |$)", result.out, re.MULTILINE) == [*FAULTS]
        assert "how=reset|close|chunk|end" in result.out
        assert "`Place`" not in result.out


class TestFaults:
    """The words of --fault, and the values they stand for."""

    @pytest.mark.parametrize(
        ("spec", "rule"),
        [
            ("status:429", Status(429)),
            ("Status:code=429", Status(429)),
            ("status:503,message='Later, please'", Status(503, message="Later, please")),
            ('status:503,message="it\'s late"', Status(503, message="it's late")),
            ("status:429,headers.retry-after=2,headers.x=y", Status(429, headers={"retry-after": "2", "x": "y"})),
            ("status:500,body=oops", Status(500, body="oops")),
            ("""status:500,body='{"error": "a, b"}'""", Status(500, body={"error": "a, b"})),
            ("headers:x-a=b,content-type=", Headers({"x-a": "b", "content-type": None})),
            ("redirect", Redirect()),
            ("redirect:http://x/?a=b,302", Redirect("http://x/?a=b", 302)),
            (r"raw:'HTTP/1.1 200 OK\r\n\r\n\xff\\'", Raw(b"HTTP/1.1 200 OK\r\n\r\n\xff\\")),
            ("stall", Stall()),
            ("stall:after_token=2,ping_every=0.5", Stall(after_token=2, ping_every=0.5)),
            ("stall:after-token=2,seconds=inf", Stall(after_token=2)),
            ("drip:5,0.5", Drip(5, 0.5)),
            ("endless-headers:10", EndlessHeaders(10)),
            ("split:every=1", Split(every=1)),
            ("split:at=3/5/9", Split(at=(3, 5, 9))),
            ("split:inside=utf-8", Split(inside="utf-8")),
            (r"line-endings:\r", LineEndings("\r")),
            ("frame:close", Frame("close")),
            ("gzip", Gzip()),
            ("wrong-length:-3", WrongLength(-3)),
            ("cut:at_byte=0,how=chunk", Cut(at_byte=0, how="chunk")),
            ("close-after:announce=true", CloseAfter(announce=True)),
            ("without-done", WithoutDone()),
            ("without_finish_reason", WithoutFinishReason()),
            ("ErrorInStream:code=503,done=yes,shape=named", ErrorInStream(code=503, done=True, shape="named")),
            ("error-in-stream:code=busy", ErrorInStream(code="busy")),
            ("garbage:data='x y'", Garbage(data=b"x y")),
            ("insert:data=x,times=3,at_byte=1", Insert(data=b"x", times=3.0, at_byte=1)),
            ("huge-line:size=10", HugeLine(size=10)),
            ("cut:after_token=3 + split:every=1", Cut(after_token=3) + Split(every=1)),
            ("10% status:429", Chance(0.1, Status(429))),
            ("0.5% gzip", Chance(0.005, Gzip())),
            ("model=a/b:c drip", ByModel({"a/b:c": Drip()})),
            ("first=2 gzip", InTurn(Gzip(), Gzip())),
            ("model=m first=1 50% gzip + drip", ByModel({"m": InTurn(Chance(0.5, Gzip() + Drip()))})),
        ],
    )
    def test_what_it_says(self, spec: str, rule: Any) -> None:
        assert read_rule(spec) == rule

    def test_every_fault_has_its_words(self) -> None:
        """The table is made of the classes: one that is added is there."""
        import together_async.testing as testing
        from together_async.testing import Fault

        public = [getattr(testing, name) for name in testing.__all__]
        faults = {one for one in public if isinstance(one, type) and issubclass(one, Fault)} - {Fault}
        assert set(FAULTS.values()) == faults
        assert [name for name, _, _ in table()] == [*FAULTS]
        assert all(text.endswith(".") for _, _, text in table())

    @pytest.mark.parametrize(
        ("spec", "reason"),
        [
            ("", "no fault, expected one of status, headers, redirect"),
            ("10%", "no fault, expected one of"),
            ("nope:1", "unknown fault 'nope', expected one of status"),
            ("status", "status: needs code"),
            ("status:abc", "status: code: got 'abc', expected a whole number"),
            ("status:999", "status: code: got 999, expected an HTTP status, 200 to 599"),
            ("status:429,500,x=1,2,3", "status: "),
            ("status:429,body={x", "status: body: got '{x', expected a JSON object, or any other text"),
            ("cut:3", "cut: expected arguments by name: in_head=N, after_token=N, at_byte=N, how=reset"),
            ("cut:bar=1", "cut: no argument 'bar', expected in_head=N"),
            ("cut:how=x", "cut: how: got 'x', expected reset or close or chunk or end"),
            ("cut:after_token=1,at_byte=2", "cut: got after_token and at_byte, expected at most one of them"),
            ("gzip:1", "gzip: expected arguments by name: it has none"),
            ("gzip:x=1", "gzip: no argument 'x', expected none"),
            ("stall:seconds=-1", "stall: seconds: got -1.0, expected seconds, at least 0"),
            ("stall:ping_every=x", "stall: ping_every: got 'x', expected a number"),
            ("split:every=0", "every"),
            ("split:at=1/x", "split: at: got '1/x', expected"),
            ("close-after:announce=maybe", "close-after: announce: got 'maybe', expected true or false"),
            (r"line-endings:\n\r", r"line-endings: ending: got '\\n\\r', expected \r\n or \r or \n"),
            ("101% gzip", "101%: expected 0% to 100%"),
            ("first=0 gzip", "first=0: expected a number of requests, 1 to 100000"),
            ("first=x gzip", "first=x: expected a number of requests"),
            ("gzip drip", "expected conditions (10%, model=NAME, first=N), then a fault"),
            ("gzip +", "expected conditions"),
            ("status:429,message='x", "a quote without its other half"),
        ],
    )
    def test_what_it_can_not_say(self, spec: str, reason: str) -> None:
        """The text says what there is instead."""
        with pytest.raises(ValueError, match=re.escape(reason)):
            read_rule(spec)
