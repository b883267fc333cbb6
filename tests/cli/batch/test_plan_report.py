"""What `--check` and `--dry-run` print."""

import json
import re
from pathlib import Path

from support.cli_batch import MODEL, ask, names, write
from together_async.testing import EmulatorServer


class TestRefused:
    async def test_check(self, server: EmulatorServer, tmp_path: Path) -> None:
        """`--check` only looks: 0 when all can be asked, 2 when not; it needs no output and sends nothing."""
        given = write(tmp_path / "in.jsonl", 3)
        code, output, _ = await ask(server, given, "--check")
        assert (code, "3 requests" in output) == (0, True)
        given.write_text(given.read_text() + "{}\n")
        code, output, errors = await ask(server, given, "--check")
        assert (code, "1 that can't be asked" in output) == (2, True)
        assert "in.jsonl line 4: custom_id" in errors
        assert len(server.journal) == 0
        assert names(tmp_path) == ["in.jsonl"]

    async def test_dry_run(self, server: EmulatorServer, tmp_path: Path) -> None:
        """`--dry-run` tells tokens, cost and the least time, from the prices of the service."""
        given = write(tmp_path / "in.jsonl", 100)
        code, output, _ = await ask(server, given, "--dry-run", "--requests-per-minute", "50")
        assert code == 0
        assert re.search(
            r"100 requests, about \d+ tokens of prompts, at most 2,000 tokens of answers; at most \$0", output
        )
        assert "at least 2:00 min" in output
        assert [entry.path for entry in server.journal] == ["/v1/models"]
        code, output, _ = await ask(server, given, "--dry-run", "--json")
        plan = json.loads(output)
        assert (plan["to_do"], plan["models"][MODEL]["most_completion_tokens"]) == (100, 2_000)
