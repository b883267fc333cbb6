"""What `together-async batch` shows: a panel, lines, JSON, the summary."""

import json
from pathlib import Path

import attrs
import pytest

from support.cli_batch import ask, write
from support.terminal import Terminal, environment
from together_async import ChatCompletionRequest
from together_async.batch import BatchOptions
from together_async.cli.batch.command import batch
from together_async.cli.batch.figures import duration, money
from together_async.testing import EmulatorServer


class TestShown:
    async def test_json(self, server: EmulatorServer, tmp_path: Path) -> None:
        """With `--json` standard output is lines of JSON, the last of them the summary; standard error is empty."""
        given = write(tmp_path / "in.jsonl", 3)
        server.first_token_s = 1.2
        code, output, errors = await ask(server, given, "-o", tmp_path / "out.jsonl", "--json")
        events = [json.loads(line) for line in output.splitlines()]
        assert (code, errors) == (0, "")
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
        ("seconds", "output"), [(0.4, "0 s"), (99, "99 s"), (185, "3:05 min"), (3_599, "59:59 min"), (9_669, "2:41:09")]
    )
    def test_durations(self, seconds: float, output: str) -> None:
        assert duration(seconds) == output

    @pytest.mark.parametrize(
        ("dollars", "output"),
        [(0, "$0.00"), (0.00012, "$0.00012"), (0.05, "$0.050"), (0.1, "$0.10"), (1234.5, "$1,234.50")],
    )
    def test_amounts(self, dollars: float, output: str) -> None:
        assert money(dollars) == output
