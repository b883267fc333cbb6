"""`together-async batch`: what it refuses and what it checks."""

from pathlib import Path

import pytest

from support.cli_batch import ask, chats, env, results, write
from support.terminal import TIMEOUT_S, environment, run, start
from together_async.testing import EmulatorServer, Status


class TestRefused:
    async def test_lines_that_cannot_be_asked(self, server: EmulatorServer, tmp_path: Path) -> None:
        """Exit code 2 before anything is sent; file, line and field are named. `--keep-going` makes errors of them."""
        given, out = write(tmp_path / "in.jsonl", 2), tmp_path / "out.jsonl"
        with given.open("a") as file:
            file.write('{"custom_id": "bad", "body": {"messages": [], "model": "m"}}\nnot JSON\n')
        code, _, errors = await ask(server, given, "-o", out)
        assert code == 2
        assert "in.jsonl line 3: body.messages: got an empty sequence" in errors
        assert "in.jsonl line 4: not JSON" in errors
        assert len(server.journal) == 0
        code, _, errors = await ask(server, given, "-o", out, "--keep-going")
        assert (code, "2 of 4 answered, 2 failed" in errors) == (1, True)
        assert results(out)["bad"]["error"]["code"] == "invalid_request"
        assert "invalid-line-4" in results(out)

    @pytest.mark.parametrize(
        ("arguments", "code", "output"),
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
        self, server: EmulatorServer, tmp_path: Path, arguments: tuple[str, ...], code: int, output: str
    ) -> None:
        """Each mistake has an error that says what to do, and nothing is sent or changed."""
        write(tmp_path / "in.jsonl", 1)
        (tmp_path / "notes.txt").write_text("mine\nand mine\n")
        files = [str(tmp_path / word) if "." in word and "{" not in word else word for word in arguments]
        got, _, errors = await ask(server, *files)
        assert (got, output in " ".join(errors.split())) == (code, True), errors
        assert (tmp_path / "notes.txt").read_text() == "mine\nand mine\n"
        assert chats(server) == []

    async def test_no_key(self, tmp_path: Path) -> None:
        """Without a key, and without `--base-url`, it says where keys come from."""
        given = write(tmp_path / "in.jsonl", 1)
        code, _, errors = await run("batch", str(given), "-o", str(tmp_path / "out.jsonl"), env=environment())
        assert (code, "together-async batch --local" in errors) == (2, True)

    async def test_a_wrong_key_stops_it(self, server: EmulatorServer, tmp_path: Path) -> None:
        """Exit code 3: nothing is marked as failed, and the same command goes on with a right one."""
        given, out = write(tmp_path / "in.jsonl", 50), tmp_path / "out.jsonl"
        server.faults = Status(401)
        code, _, errors = await ask(server, given, "-o", out, "--concurrency", 4)
        assert (code, out.read_text()) == (3, "")
        assert "401" in errors
        assert "To go on, the same again" in errors
        assert len(server.journal) < 15

    async def test_two_runs(self, server: EmulatorServer, tmp_path: Path) -> None:
        """The second run on one output is refused at once, the first goes on."""
        given, out = write(tmp_path / "in.jsonl", 2), tmp_path / "out.jsonl"
        server.first_token_s = 30
        first = await start("batch", str(given), "-o", str(out), env=env(server))
        await server.journal.wait(2, TIMEOUT_S)
        code, _, errors = await ask(server, given, "-o", out)
        assert (code, "in use by another run" in errors) == (1, True)
        first.kill()
        await first.communicate()
