"""`together-async serve` used wrongly: exit code 2, one text, nothing served."""

import re
import socket
import sys
from pathlib import Path

import attrs
import pytest

from together_async.cli.serve.fault_spec import FAULTS

click_testing = pytest.importorskip("click.testing", reason="needs the extra `cli`")


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
    )
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
