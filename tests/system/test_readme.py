"""Every Python block of the README runs, as it stands."""

from __future__ import annotations

import asyncio
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from support.paths import ROOT
from support.servers import KEY, MODEL, Call, ScriptedServer, response, say, sse, threaded, whole
from together_async import AsyncTogether, ChatCompletion

pytest_plugins = ["pytester"]

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
pytestmark = pytest.mark.usefixtures("no_leaks")


async def answer(call: Call) -> None:
    """A stream or a whole completion, as asked; the list of models is empty."""
    if not call.body:
        await call.send(response([]))
    elif call.json.get("stream"):
        await call.head()
        await call.chunk(say("6 ", "7 ", "8 "))
        await call.send(b"0\r\n\r\n")
    else:
        await call.send(response(whole("Blue")))


def block(containing: str) -> dict[str, Any]:
    """Runs the one block with this text, returns the names it made."""
    (source,) = [source for source in BLOCKS if containing in source]
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(source, "README.md", "exec"), names)  # noqa: S102 - our own README
    return names


def test_no_block_is_left_out() -> None:
    """Each block is run by one of the tests below."""
    covered = (
        "class Invoice",
        "asyncio.run(main())",
        "def example",
        "def until",
        "def careful",
        "def sdk_code",
        "def on_this_machine",
        "def answer_all",
        "def many",
        "def overnight",
        "def test_a_broken_answer",
        "app = FastAPI",
        "hub = Hub()",
    )
    assert all(any(name in source for name in covered) for source in BLOCKS)
    assert len(BLOCKS) == len(covered)


def test_the_first_block_prints_tokens(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As a program, with key and URL from the environment."""
    with threaded(answer) as server:
        monkeypatch.setenv("TOGETHER_API_KEY", KEY)
        monkeypatch.setenv("TOGETHER_BASE_URL", server.base_url)
        block("asyncio.run(main())")
    assert capsys.readouterr().out == "6 7 8 "


async def test_chunks_and_the_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """Streaming, what the chunks add up to, and a whole completion."""
    async with ScriptedServer(answer) as server, AsyncTogether(KEY, base_url=server.base_url) as client:
        await block("def example")["example"](client, MODEL)
    out = capsys.readouterr().out
    assert out.startswith("6 7 8 ")
    assert out.endswith("Blue\n")


async def test_leaving_is_seen_at_once() -> None:
    """The server sees the break although it has more to say."""

    async def endless(call: Call) -> None:
        await call.head()
        await call.chunk(sse({"choices": [{"index": 0, "delta": {"content": "7"}, "finish_reason": None}]}) * 2)
        await call.hang()

    async with ScriptedServer(endless) as server, AsyncTogether(KEY, base_url=server.base_url) as client:
        await block("def until")["until"](client, MODEL)
        async with asyncio.timeout(1):
            await server.calls[0].left.wait()


async def test_errors_carry_the_partial_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """A cut gives what had come; a status is printed with its request id."""

    async def cut(call: Call) -> None:
        await call.head()
        await call.chunk(sse({"choices": [{"index": 0, "delta": {"content": "so far"}, "finish_reason": None}]}))
        await call.send(b"0\r\n\r\n")

    async def refuse(call: Call) -> None:
        await call.send(response({"error": {"message": "slow down"}}, status=429, extra=b"x-request-id: r-1\r\n"))

    careful = block("def careful")["careful"]
    async with ScriptedServer(cut, refuse) as server, AsyncTogether(KEY, base_url=server.base_url) as client:
        partial = await careful(client, MODEL)
        assert isinstance(partial, ChatCompletion)
        assert partial.text == "so far"
        await careful(client, MODEL)
    assert capsys.readouterr().out == "429 r-1 429: slow down\n"


async def test_an_answer_as_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    """The class's schema is sent, the value comes back."""

    async def invoice(call: Call) -> None:
        assert call.json["response_format"]["json_schema"]["name"] == "Invoice"
        await call.send(response(whole('{"number": 7, "total": 12.5}')))

    async with ScriptedServer(invoice) as server, AsyncTogether(KEY, base_url=server.base_url) as client:
        await block("class Invoice")["structured"](client, MODEL)
    assert capsys.readouterr().out == "12.5\n"


async def test_code_for_the_sdks(capsys: pytest.CaptureFixture[str]) -> None:
    """Only the import line differs from theirs."""
    async with ScriptedServer(answer) as server, AsyncTogether(KEY, base_url=server.base_url) as client:
        await block("def sdk_code")["sdk_code"](client, MODEL)
    assert capsys.readouterr().out == "6 7 8 "


async def test_many_prompts(capsys: pytest.CaptureFixture[str]) -> None:
    """Results as they come, and streams of several models side by side."""
    names = block("def many")
    async with ScriptedServer(answer) as server, AsyncTogether(KEY, base_url=server.base_url) as client:
        await names["many"](client, ["Why?"] * 3, MODEL)
        assert sorted(line[:6] for line in capsys.readouterr().out.splitlines()) == ["0 Blue", "1 Blue", "2 Blue"]
        await names["compare"](client, "Why?", ["a", "b"])
    assert sorted(capsys.readouterr().out.splitlines()) == [f"{model} {n} " for model in "ab" for n in "678"]


def test_a_batch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file in, a file out."""
    monkeypatch.chdir(tmp_path)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Why?"}]}
    Path("in.jsonl").write_text(json.dumps({"custom_id": "a", "body": body}))

    async def main(base_url: str) -> None:
        async with AsyncTogether(KEY, base_url=base_url) as client:
            await block("def overnight")["overnight"](client)

    with threaded(answer) as server:
        asyncio.run(main(server.base_url))
    assert capsys.readouterr().out.startswith("1 0 0 ")
    assert json.loads(Path("out.jsonl").read_text())["custom_id"] == "a"


def test_the_commands_are_the_commands() -> None:
    """Every option that the README shows is one of the command's."""
    from together_async.cli.batch.command import batch

    options = {option for parameter in batch.params for option in parameter.opts}
    section = README[README.index("## Many prompts") : README.index("## Limits and retries")]
    shown = set(re.findall(r"(?<![\w-])(--?[a-z][a-z-]*)", section))
    assert shown
    assert shown <= options


async def test_a_web_app(monkeypatch: pytest.MonkeyPatch) -> None:
    """The app answers with the API's chunks, and its end closes the client."""
    from httpx2 import ASGITransport, AsyncClient

    async with ScriptedServer(answer) as server:
        monkeypatch.setenv("TOGETHER_API_KEY", KEY)
        monkeypatch.setenv("TOGETHER_BASE_URL", server.base_url)
        app = block("app = FastAPI")["app"]
        async with app.router.lifespan_context(app), AsyncClient(transport=ASGITransport(app)) as browser:
            response = await browser.post("http://app/chat", json={"text": "Count!"})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.text.count("data: {") == 5
    assert response.text.endswith("data: [DONE]\n\n")


async def test_readers_of_all_kinds() -> None:
    """A slow reader, two readers of a stream, a reader who comes back, and a proxy."""
    names = block("hub = Hub()")

    async def body(response: Any) -> bytes:
        sent = []

        async def send(message: Any) -> None:
            sent.append(message.get("body", b""))

        await response({"type": "http", "method": "GET", "headers": []}, asyncio.Event().wait, send)
        return b"".join(sent)

    async with ScriptedServer(answer) as server, AsyncTogether(KEY, base_url=server.base_url) as client, names["hub"]:
        assert (await body(await names["slow"](client, "Why?", MODEL))).count(b"data: {") == 5
        first, second = await names["two"](client, "Why?", MODEL)
        assert [text async for text in first.text()] == [text async for text in second.text()] == ["6 ", "7 ", "8 "]
        started = await names["start"](client, "Why?", MODEL)
        for _ in range(2):
            assert (await body(await names["follow"](started["id"]))).count(b'"stop"') == 1
        assert (await body(await names["proxy"](client, "Why?", MODEL))).endswith(b"data: [DONE]\n\n")


async def test_limits(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Many prompts under the given limits, and two clients of one account."""
    names = block("def answer_all")
    async with ScriptedServer(answer) as server:
        monkeypatch.setenv("TOGETHER_API_KEY", KEY)
        monkeypatch.setenv("TOGETHER_BASE_URL", server.base_url)
        assert [completion.text for completion in await names["answer_all"](["Why?"] * 3, MODEL)] == ["Blue"] * 3
        assert [completion.text for completion in await names["one_account"]("Why?", MODEL)] == ["Blue"] * 2
    assert "0 of 200 in flight, 0 queued" in capsys.readouterr().out


@pytest.mark.real_model
async def test_a_real_model_on_this_machine() -> None:
    """The server starts, answers and is gone."""
    completion = await block("def on_this_machine")["on_this_machine"]()
    assert completion.usage.completion_tokens == 8


def test_a_test_of_an_app(pytester: pytest.Pytester) -> None:
    """As a file that pytest runs: both faults, and five lines for the test itself."""
    (source,) = [source for source in BLOCKS if "def test_a_broken_answer" in source]
    assert len(source[source.index("@pytest") :].splitlines()) == 5
    pytester.makepyfile(source)
    options = ("-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function", "-W", "error")
    pytester.runpytest_inprocess("-p", "no:cacheprovider", *options).assert_outcomes(passed=2)


def test_the_names_in_the_section_on_tests_exist() -> None:
    """Its list names faults, fixtures and classes, and the expressions in it can be evaluated."""
    from together_async import pytest_plugin, testing

    section = README[README.index("## Test your app") : README.index("## What it does not do")]
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", section.partition("\n```\n")[2])]
    fixtures = {span for span in spans if span.startswith("together_")}
    assert fixtures >= {"together_env", "together_timeouts", "together_aioresponses", "together_aioresponses_patch"}
    assert all(hasattr(pytest_plugin, name) for name in fixtures)
    assert {"Reply", "Recorder", "Recording"} <= {span for span in spans if hasattr(testing, span)}
    assert {"script", "faults", "account", "journal"} <= {*dir(testing.EmulatorServer())} & {
        span.partition(" =")[0] for span in spans
    }
    for span in spans:
        if re.match(r"(account = )?[A-Z]\w+\(.*[^.]\)$", span):
            eval(span.removeprefix("account = "), {**vars(testing)})  # noqa: S307 - our own README


def test_the_two_commands_name_extras_that_exist() -> None:
    """What the README opens with is what pyproject.toml offers."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"pip install '\.\[([^]]+)\]'", README)) <= set(extras)
    assert README.index("pip install '.[local]' && together-async chat --local") < README.index("## What it is")
    assert README.index("pip install '.[test]' && pytest") < README.index("## What it is")
