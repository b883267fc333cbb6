"""The panel on a terminal."""

from pathlib import Path

from support.cli_batch import write
from support.terminal import Terminal, environment
from together_async.testing import EmulatorServer


class TestShown:
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
