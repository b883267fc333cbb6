"""`together-async batch`, run as a person runs it: a process, its files, its pipes, signals."""

import asyncio
import re
import signal
from pathlib import Path

import pytest

from support.cli_batch import MODEL, ask, chats, env, results, write
from support.terminal import TIMEOUT_S, start
from together_async.testing import EmulatorServer, Status


class TestRun:
    async def test_all_done(self, server: EmulatorServer, tmp_path: Path) -> None:
        """Exit code 0, a line for each request, and a summary beside it; standard output stays empty."""
        given, out = write(tmp_path / "in.jsonl", 20), tmp_path / "out.jsonl"
        code, output, errors = await ask(server, given, "-o", out)
        assert (code, output) == (0, "")
        found = results(out)
        assert len(found) == 20
        assert found["r7"]["response"]["status_code"] == 200
        assert found["r7"]["response"]["body"]["choices"][0]["message"]["content"] == "The sky is blue."
        assert "20 of 20 answered." in errors
        assert re.search(r"\d+ prompt \+ 100 answer tokens, \$0\.\d+", errors)

    async def test_some_failed(self, server: EmulatorServer, tmp_path: Path) -> None:
        """Exit code 1; the errors are lines of the output, and what asks them again is said and works."""
        given, out = write(tmp_path / "in.jsonl", 4), tmp_path / "out.jsonl"
        server.faults = lambda request: (
            Status(400, message="No such thing") if "Say 2" in str(request.messages) else None
        )
        code, _, errors = await ask(server, given, "-o", out)
        assert code == 1
        assert "3 of 4 answered, 1 failed." in errors
        assert "--retry-errors" in errors
        error = results(out)["r2"]["error"]
        assert (error["code"], "No such thing" in error["message"]) == ("400", True)
        server.faults = None
        code, _, errors = await ask(server, given, "-o", out, "--retry-errors")
        assert (code, "4 of 4 answered" in errors) == (0, True)
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
        code, _, errors = await ask(server, prompts, "-o", tmp_path / "a.jsonl", *options, *objects)
        assert code == 0, errors
        sent = chats(server)[0].request
        assert sent is not None
        assert (sent.model, sent.max_tokens, sent.temperature, sent.echo) == ("m/m", 7, 0.5, True)
        assert (sent.stop, sent.response_format) == (("END", "X"), {"type": "json_object"})
        assert results(tmp_path / "a.jsonl").keys() == {"line-1", "line-3"}
        articles = tmp_path / "articles.csv"
        articles.write_text('custom_id,body\nx,"one, two"\ny,three\n')
        code, _, errors = await ask(
            server, articles, "-o", tmp_path / "b.jsonl", "--model", "m", "--template", "Sum: {body}!"
        )
        assert code == 0, errors
        assert results(tmp_path / "b.jsonl").keys() == {"x", "y"}

    async def test_a_report(self, server: EmulatorServer, tmp_path: Path) -> None:
        """`--report` writes a page, which needs nothing beside itself."""
        given, page = write(tmp_path / "in.jsonl", 5), tmp_path / "report.html"
        code, _, errors = await ask(server, given, "-o", tmp_path / "out.jsonl", "--report", page)
        assert code == 0, errors
        assert "<script" not in page.read_text()
        assert MODEL in page.read_text()
        (tmp_path / "mine.py").write_text("print()")
        code, _, errors = await ask(server, given, "-o", tmp_path / "out.jsonl", "--report", tmp_path / "mine.py")
        assert (code, "is no page" in errors) == (2, True)


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
        await server.journal.wait(5, TIMEOUT_S)  # the prices, and four requests
        process.send_signal(number)
        _, errors = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
        assert process.returncode == code
        assert word.encode() in errors
        assert f"together-async batch {given} -o {out} --concurrency 4".encode() in errors
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
        _, errors = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
        assert (process.returncode, b"Stopped at once" in errors) == (130, True)

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
        code, _, errors = await ask(server, given, "-o", out, option, value, "--concurrency", 2)
        assert (code, why in errors) == (3, True), errors
        found = results(out)
        used = sum(line["response"]["body"]["usage"]["total_tokens"] for line in found.values())
        assert 0 < len(found) < 60
        if option == "--max-tokens-total":
            assert 250 <= used <= 300
        if option == "--max-cost":
            assert 250 <= used <= 0.0003 / 0.88e-6
        server.first_token_s = 0
        code, _, errors = await ask(server, given, "-o", out)
        assert (code, len(results(out))) == (0, 60), errors
