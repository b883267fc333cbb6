"""What `together-async batch` shows: a panel, lines, JSON, the summary."""

import json
from pathlib import Path

import attrs

from support.cli_batch import ask, write
from together_async import ChatCompletionRequest
from together_async.batch import BatchOptions
from together_async.cli.batch.command import batch
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
