"""`together-async batch`, run as a person runs it: a process, its files, its pipes, a terminal, signals."""

import asyncio
import contextlib
import datetime as dt
import json
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import click
import pytest
import pytest_asyncio

from support.terminal import TIMEOUT_S, Terminal, environment, run, start
from together_async import ChatCompletionRequest
from together_async.batch import BatchOptions
from together_async.cli.batch.command import batch
from together_async.cli.batch.figures import duration, money
from together_async.cli.batch.options import Deadline
from together_async.cli.request_options import JSONType
from together_async.testing import EmulatorServer, Entry, Status

MODEL = "meta-llama/Llama-3.3-70B-Instruct-Turbo"


@pytest_asyncio.fixture
async def server() -> AsyncIterator[EmulatorServer]:
    async with EmulatorServer("The sky is blue.") as server:
        yield server


def write(path: Path, count: int, **fields: Any) -> Path:
    body = {"model": MODEL, "max_tokens": 20, **fields}
    lines = (
        {"custom_id": f"r{i}", "body": {**body, "messages": [{"role": "user", "content": f"Say {i}"}]}}
        for i in range(count)
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def results(path: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    by_name = {line["custom_id"]: line for line in lines}
    assert len(by_name) == len(lines), "a custom_id twice"
    return by_name


def env(server: EmulatorServer) -> dict[str, str]:
    return environment(TOGETHER_BASE_URL=server.base_url, TOGETHER_API_KEY="key")


def chats(server: EmulatorServer) -> list[Entry]:
    """What was asked, but for the prices."""
    return [entry for entry in server.journal if "chat" in entry.path]


async def ask(server: EmulatorServer, *arguments: object) -> tuple[int, str, str]:
    return await run("batch", *map(str, arguments), env=env(server))


class TestRun:
    async def test_all_done(self, server: EmulatorServer, tmp_path: Path) -> None:
        """Exit code 0, a line for each request, and a summary beside it; standard output stays empty."""
        given, out = write(tmp_path / "in.jsonl", 20), tmp_path / "out.jsonl"
        code, said, beside = await ask(server, given, "-o", out)
        assert (code, said) == (0, "")
        found = results(out)
        assert len(found) == 20
        assert found["r7"]["response"]["status_code"] == 200
        assert found["r7"]["response"]["body"]["choices"][0]["message"]["content"] == "The sky is blue."
        assert "20 of 20 answered." in beside
        assert re.search(r"\d+ prompt \+ 100 answer tokens, \$0\.\d+", beside)

    async def test_some_failed(self, server: EmulatorServer, tmp_path: Path) -> None:
        """Exit code 1; the errors are lines of the output, and what asks them again is said and works."""
        given, out = write(tmp_path / "in.jsonl", 4), tmp_path / "out.jsonl"
        server.faults = lambda request: (
            Status(400, message="No such thing") if "Say 2" in str(request.messages) else None
        )
        code, _, beside = await ask(server, given, "-o", out)
        assert code == 1
        assert "3 of 4 answered, 1 failed." in beside
        assert "--retry-errors" in beside
        error = results(out)["r2"]["error"]
        assert (error["code"], "No such thing" in error["message"]) == ("400", True)
        server.faults = None
        code, _, beside = await ask(server, given, "-o", out, "--retry-errors")
        assert (code, "4 of 4 answered" in beside) == (0, True)
        assert results(out)["r2"]["response"]["status_code"] == 200
        assert len(chats(server)) == 5

    async def test_text_csv_and_parameters(self, server: EmulatorServer, tmp_path: Path) -> None:
        """Every parameter of a request is an option, and prompts come out of lines and columns."""
        prompts = tmp_path / "prompts.txt"
        prompts.write_text("Why?\n\nHow?\n")
        options = (
            "--model",
            "m/m",
            "--max-tokens",
            "7",
            "--temperature",
            "0.5",
            "--stop",
            "END",
            "--stop",
            "X",
            "--echo",
        )
        objects = ("--response-format", '{"type": "json_object"}', "--system", "Be brief.")
        code, _, beside = await ask(server, prompts, "-o", tmp_path / "a.jsonl", *options, *objects)
        assert code == 0, beside
        sent = chats(server)[0].request
        assert sent is not None
        assert (sent.model, sent.max_tokens, sent.temperature, sent.echo) == ("m/m", 7, 0.5, True)
        assert (sent.stop, sent.response_format) == (("END", "X"), {"type": "json_object"})
        assert results(tmp_path / "a.jsonl").keys() == {"line-1", "line-3"}
        articles = tmp_path / "articles.csv"
        articles.write_text('custom_id,body\nx,"one, two"\ny,three\n')
        code, _, beside = await ask(
            server, articles, "-o", tmp_path / "b.jsonl", "--model", "m", "--template", "Sum: {body}!"
        )
        assert code == 0, beside
        assert results(tmp_path / "b.jsonl").keys() == {"x", "y"}

    async def test_a_report(self, server: EmulatorServer, tmp_path: Path) -> None:
        """`--report` writes a page, which needs nothing beside itself."""
        given, page = write(tmp_path / "in.jsonl", 5), tmp_path / "report.html"
        code, _, beside = await ask(server, given, "-o", tmp_path / "out.jsonl", "--report", page)
        assert code == 0, beside
        assert "<script" not in page.read_text()
        assert MODEL in page.read_text()
        (tmp_path / "mine.py").write_text("print()")
        code, _, beside = await ask(server, given, "-o", tmp_path / "out.jsonl", "--report", tmp_path / "mine.py")
        assert (code, "is no page" in beside) == (2, True)


class TestRefused:
    async def test_lines_that_cannot_be_asked(self, server: EmulatorServer, tmp_path: Path) -> None:
        """Exit code 2 before anything is sent; file, line and field are named. `--keep-going` makes errors of them."""
        given, out = write(tmp_path / "in.jsonl", 2), tmp_path / "out.jsonl"
        with given.open("a") as file:
            file.write('{"custom_id": "bad", "body": {"messages": [], "model": "m"}}\nnot JSON\n')
        code, _, beside = await ask(server, given, "-o", out)
        assert code == 2
        assert "in.jsonl line 3: body.messages: got an empty sequence" in beside
        assert "in.jsonl line 4: not JSON" in beside
        assert len(server.journal) == 0
        code, _, beside = await ask(server, given, "-o", out, "--keep-going")
        assert (code, "2 of 4 answered, 2 failed" in beside) == (1, True)
        assert results(out)["bad"]["error"]["code"] == "invalid_request"
        assert "invalid-line-4" in results(out)

    async def test_check(self, server: EmulatorServer, tmp_path: Path) -> None:
        """`--check` only looks: 0 when all can be asked, 2 when not; it needs no output and sends nothing."""
        given = write(tmp_path / "in.jsonl", 3)
        code, said, _ = await ask(server, given, "--check")
        assert (code, "3 requests" in said) == (0, True)
        given.write_text(given.read_text() + "{}\n")
        code, said, beside = await ask(server, given, "--check")
        assert (code, "1 that can't be asked" in said) == (2, True)
        assert "in.jsonl line 4: custom_id" in beside
        assert len(server.journal) == 0
        assert names(tmp_path) == ["in.jsonl"]

    async def test_dry_run(self, server: EmulatorServer, tmp_path: Path) -> None:
        """`--dry-run` tells tokens, cost and the least time, from the prices of the service."""
        given = write(tmp_path / "in.jsonl", 100)
        code, said, _ = await ask(server, given, "--dry-run", "--requests-per-minute", "50")
        assert code == 0
        assert re.search(
            r"100 requests, about \d+ tokens of prompts, at most 2,000 tokens of answers; at most \$0", said
        )
        assert "at least 2:00 min" in said
        assert [entry.path for entry in server.journal] == ["/v1/models"]
        code, said, _ = await ask(server, given, "--dry-run", "--json")
        plan = json.loads(said)
        assert (plan["to_do"], plan["models"][MODEL]["most_completion_tokens"]) == (100, 2_000)

    @pytest.mark.parametrize(
        ("arguments", "code", "said"),
        [
            (("in.jsonl",), 2, "no output"),
            (("in.jsonl", "-o", "in.jsonl"), 2, "is the input itself"),
            (("in.jsonl", "-o", "no/out.jsonl"), 1, "out.jsonl can't be opened: No such file or directory"),
            (("in.jsonl", "-o", "notes.txt"), 1, "is it another file? Nothing in it was changed"),
            (("in.jsonl", "-o", "out.jsonl", "--template", "{x}"), 2, "a template is for text and CSV"),
            (("notes.txt", "-o", "out.jsonl", "--template", "{x}"), 2, "a text has {line} alone"),
            (("notes.txt", "-o", "out.jsonl"), 2, "body.model: missing"),
            (("in.jsonl", "-o", "out.jsonl", "--temperature", "-1"), 2, "temperature: got -1"),
            (("in.jsonl", "-o", "out.jsonl", "--tools", "nonsense"), 2, "not JSON"),
            (("in.jsonl", "-o", "out.jsonl", "--deadline", "soon"), 2, "expected 90m"),
            (("in.jsonl", "-o", "out.jsonl", "--local", "--model", "m"), 2, "exclude each other"),
        ],
    )
    async def test_used_wrongly(
        self, server: EmulatorServer, tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
    ) -> None:
        """Each mistake has an error that says what to do, and nothing is sent or changed."""
        write(tmp_path / "in.jsonl", 1)
        (tmp_path / "notes.txt").write_text("mine\nand mine\n")
        files = [str(tmp_path / word) if "." in word and "{" not in word else word for word in arguments]
        got, _, beside = await ask(server, *files)
        assert (got, said in " ".join(beside.split())) == (code, True), beside
        assert (tmp_path / "notes.txt").read_text() == "mine\nand mine\n"
        assert chats(server) == []

    async def test_no_key(self, tmp_path: Path) -> None:
        """Without a key, and without `--base-url`, it says where keys come from."""
        given = write(tmp_path / "in.jsonl", 1)
        code, _, beside = await run("batch", str(given), "-o", str(tmp_path / "out.jsonl"), env=environment())
        assert (code, "together-async batch --local" in beside) == (2, True)

    async def test_a_wrong_key_stops_it(self, server: EmulatorServer, tmp_path: Path) -> None:
        """Exit code 3: nothing is marked as failed, and the same command goes on with a right one."""
        given, out = write(tmp_path / "in.jsonl", 50), tmp_path / "out.jsonl"
        server.faults = Status(401)
        code, _, beside = await ask(server, given, "-o", out, "--concurrency", 4)
        assert (code, out.read_text()) == (3, "")
        assert "401" in beside
        assert "To go on, the same again" in beside
        assert len(server.journal) < 15

    async def test_two_runs(self, server: EmulatorServer, tmp_path: Path) -> None:
        """The second run on one output is refused at once, the first goes on."""
        given, out = write(tmp_path / "in.jsonl", 2), tmp_path / "out.jsonl"
        server.first_token_s = 30
        first = await start("batch", str(given), "-o", str(out), env=env(server))
        await server.journal.wait(2, TIMEOUT_S)
        code, _, beside = await ask(server, given, "-o", out)
        assert (code, "in use by another run" in beside) == (1, True)
        first.kill()
        await first.communicate()


class TestStopping:
    @pytest.mark.parametrize(
        ("number", "code", "word"), [(signal.SIGINT, 130, "Interrupted"), (signal.SIGTERM, 143, "Terminated")]
    )
    async def test_a_signal_drains(
        self, server: EmulatorServer, tmp_path: Path, number: signal.Signals, code: int, word: str
    ) -> None:
        """What is under way comes, nothing more is asked, and the same command finishes without asking twice."""
        given, out = write(tmp_path / "in.jsonl", 40), tmp_path / "out.jsonl"
        server.first_token_s = 0.3
        process = await start("batch", str(given), "-o", str(out), "--concurrency", "4", env=env(server))
        await server.journal.wait(4, TIMEOUT_S)
        process.send_signal(number)
        _, beside = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
        assert process.returncode == code
        assert word.encode() in beside
        assert f"together-async batch {given} -o {out} --concurrency 4".encode() in beside
        done = len(results(out))
        assert done == len([entry for entry in chats(server) if entry.outcome == "complete"])
        assert 4 <= done < 40
        server.first_token_s = 0
        again, _, beside_again = await ask(server, given, "-o", out)
        assert (again, len(results(out))) == (0, 40), beside_again
        assert len(chats(server)) == 40

    async def test_twice_stops_at_once(self, server: EmulatorServer, tmp_path: Path) -> None:
        """The second Ctrl-C does not wait for what is under way."""
        given, out = write(tmp_path / "in.jsonl", 4), tmp_path / "out.jsonl"
        server.first_token_s = 600
        process = await start("batch", str(given), "-o", str(out), "--concurrency", "4", env=env(server))
        assert process.stderr is not None
        await server.journal.wait(5, TIMEOUT_S)  # the prices, and all four
        process.send_signal(signal.SIGINT)
        assert b"again to stop at once" in await asyncio.wait_for(process.stderr.readline(), TIMEOUT_S)
        process.send_signal(signal.SIGINT)
        _, beside = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
        assert (process.returncode, b"Stopped at once" in beside) == (130, True)

    @pytest.mark.parametrize(
        ("option", "value", "why"),
        [
            ("--max-tokens-total", "300", "max_tokens_total"),
            ("--max-cost", "0.0003", "max_cost"),
            ("--deadline", "1s", "deadline"),
        ],
    )
    async def test_budgets(self, server: EmulatorServer, tmp_path: Path, option: str, value: str, why: str) -> None:
        """Exit code 3; what was asked is there, the budget is kept, and without it the same command finishes."""
        given, out = write(tmp_path / "in.jsonl", 60), tmp_path / "out.jsonl"
        server.first_token_s = 0.1
        code, _, beside = await ask(server, given, "-o", out, option, value, "--concurrency", 2)
        assert (code, why in beside) == (3, True), beside
        found = results(out)
        used = sum(line["response"]["body"]["usage"]["total_tokens"] for line in found.values())
        assert 0 < len(found) < 60
        if option == "--max-tokens-total":
            assert 250 <= used <= 300
        if option == "--max-cost":
            assert 250 <= used <= 0.0003 / 0.88e-6
        server.first_token_s = 0
        code, _, beside = await ask(server, given, "-o", out)
        assert (code, len(results(out))) == (0, 60), beside


class TestShown:
    async def test_json(self, server: EmulatorServer, tmp_path: Path) -> None:
        """With `--json` standard output is lines of JSON, the last of them the summary; standard error is empty."""
        given = write(tmp_path / "in.jsonl", 3)
        server.first_token_s = 1.2
        code, said, beside = await ask(server, given, "-o", tmp_path / "out.jsonl", "--json")
        events = [json.loads(line) for line in said.splitlines()]
        assert (code, beside) == (0, "")
        assert {event["event"] for event in events[:-1]} == {"progress"}
        assert (events[0]["in_flight"], events[0]["total"]) == (3, 3)
        assert (events[-1]["event"], events[-1]["done"], events[-1]["ok"]) == ("summary", 3, True)

    async def test_quiet(self, server: EmulatorServer, tmp_path: Path) -> None:
        """`--quiet` says nothing."""
        given = write(tmp_path / "in.jsonl", 3)
        assert await ask(server, given, "-o", tmp_path / "out.jsonl", "-q") == (0, "", "")

    async def test_a_terminal_shows_a_panel(self, server: EmulatorServer, tmp_path: Path) -> None:
        """On a terminal there is a panel with counts and rates; Ctrl-C is a key there, and the summary stays."""
        given = write(tmp_path / "in.jsonl", 30)
        server.first_token_s = 0.5
        arguments = ("batch", str(given), "-o", str(tmp_path / "out.jsonl"), "--concurrency", "3")
        async with Terminal(*arguments, env=environment(TOGETHER_BASE_URL=server.base_url, COLUMNS="100")) as terminal:
            await terminal.expect(r"in\.jsonl -> out\.jsonl")
            await terminal.expect(r"[3-9] done")
            await terminal.expect(r"3 in flight")
            await terminal.expect(r"requests/min")
            terminal.press("\x03")
            await terminal.expect("again to stop at once")
            await terminal.expect(r"\d+ of 30 answered, \d+ to do")
            await terminal.expect("To go on, the same again")
            assert await terminal.ended() == 130

    def test_every_field_is_an_option(self) -> None:
        """A field that is added to requests, or an option to batches, is one of the command."""
        options = {name for parameter in batch.params for name in (parameter.name,)}
        fields = {field.name for field in attrs.fields(ChatCompletionRequest)} - {"messages"}
        settings = {field.name for field in attrs.fields(BatchOptions)} - {
            "on_result",
            "prices",
            "timeouts",
            "retry",
            "headers",
        }
        assert fields - options == set()
        assert settings - options == set()

    @pytest.mark.parametrize(
        ("seconds", "said"), [(0.4, "0 s"), (99, "99 s"), (185, "3:05 min"), (3_599, "59:59 min"), (9_669, "2:41:09")]
    )
    def test_durations(self, seconds: float, said: str) -> None:
        assert duration(seconds) == said

    @pytest.mark.parametrize(
        ("dollars", "said"),
        [(0, "$0.00"), (0.00012, "$0.00012"), (0.05, "$0.050"), (0.1, "$0.10"), (1234.5, "$1,234.50")],
    )
    def test_amounts(self, dollars: float, said: str) -> None:
        assert money(dollars) == said


class TestValues:
    def test_deadlines(self) -> None:
        """Spans, times of the day (the next one) and dates."""
        read = Deadline().convert
        assert read("1h30m", None, None) == dt.timedelta(minutes=90)
        assert read("2d", None, None) == dt.timedelta(days=2)
        now = dt.datetime.now().astimezone()
        soon = read(f"{now.hour:02}:{now.minute:02}", None, None)
        assert dt.timedelta(0) < soon - now <= dt.timedelta(days=1)
        assert read("2030-01-02T03:04", None, None).year == 2030
        for wrong in ("", "soon", "25:00", "3"):
            with pytest.raises(click.BadParameter):
                read(wrong, None, None)

    def test_json(self, tmp_path: Path) -> None:
        """JSON in place, or in a file."""
        (tmp_path / "x.json").write_text('{"a": 1}')
        read = JSONType().convert
        assert read('["a"]', None, None) == ["a"]
        assert read(f"@{tmp_path / 'x.json'}", None, None) == {"a": 1}
        for wrong in ("{", f"@{tmp_path / 'none.json'}"):
            with contextlib.suppress(click.BadParameter), pytest.raises(click.BadParameter):
                read(wrong, None, None)
