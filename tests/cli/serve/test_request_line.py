"""The line that `together-async serve` prints for each request."""

import json
import signal

from support.servers import KEY
from support.serving import Serving
from support.terminal import TIMEOUT_S, Terminal, environment, run
from together_async import AsyncTogether


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
        reports = [json.loads(line) for line in lines]
        whole = {"path": "/v1/chat/completions", "tokens": 4, "tokens_written": 4, "faults": []}
        assert [
            {key: value for key, value in report.items() if key[-2:] not in {"_s", "at"}} for report in reports
        ] == [
            {**whole, "model": "m", "stream": True, "status": 200, "outcome": "complete"},
            {**whole, "model": "bröken\x1b[2J", "stream": False, "status": 200, "outcome": "complete"},
            {
                **whole,
                "model": "broken",
                "stream": True,
                "status": 200,
                "outcome": "broken off",
                "tokens_written": 2,
                "faults": ["Cut(after_token=2, how='close')"],
            },
            {
                **whole,
                "model": "m",
                "stream": True,
                "status": 400,
                "outcome": "refused",
                "tokens": 0,
                "tokens_written": 0,
            },
        ]
        assert all(0 <= (report["first_token_s"] or 0) <= report["elapsed_s"] < TIMEOUT_S for report in reports)
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
