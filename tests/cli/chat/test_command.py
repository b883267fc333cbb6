"""`together-async chat` used wrongly: exit code 2, and a text that says what to do."""

import asyncio
import re
import sys

import pytest

from support.terminal import environment, run


class TestUsedWrongly:
    """Exit code 2, one text, nothing sent."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["hi"], r"TOGETHER_API_KEY is not set(.|\n)*--local"),
            (["hi", "--base-url", "https://api.together.xyz/v1/"], "TOGETHER_API_KEY is not set"),
            (["hi", "--base-url", "localhost:8000"], r"--base-url: got 'localhost:8000', expected http://"),
            (["hi", "--temperature", "3"], "temperature"),
            (["hi", "--max-tokens", "0"], "max-tokens"),
            (["hi", "--local", "--model", "x"], "--model and --local exclude each other"),
            (["hi", "--local", "--base-url", "http://x/v1"], "--base-url and --local exclude each other"),
            (["hi", "--local-model", "/nonexistent.gguf"], "does not exist"),
            (["--base-url", "http://127.0.0.1:9/v1", "  "], "the prompt is empty"),
            (["--base-url", "http://127.0.0.1:9/v1"], "the prompt is empty"),
        ],
    )
    async def test_says_what_to_do(self, arguments: list[str], message: str) -> None:
        code, out, err = await run("chat", *arguments)
        assert (code, out) == (2, "")
        assert re.search(message, err), err
        assert "Traceback" not in err

    async def test_a_value_the_client_refuses(self) -> None:
        """A key with a line break, as a careless copy gives; it is not shown."""
        env = environment(TOGETHER_API_KEY="hunter2\nhunter2")
        code, out, err = await run("chat", "hi", env=env)
        assert (code, out) == (2, "")
        assert "hunter2" not in err
        assert "Traceback" not in err

    async def test_help_documents_the_exit_codes(self) -> None:
        code, out, _ = await run("chat", "--help")
        assert code == 0
        assert re.search(r"0 +done(.|\n)*1 +the API(.|\n)*2 +used wrongly(.|\n)*130 +interrupted", out)

    @pytest.mark.parametrize("name", ["click"])
    async def test_a_missing_package_is_named_with_its_remedy(self, name: str) -> None:
        script = f"import sys; sys.modules[{name!r}] = None; from together_async.cli import main; sys.exit(main())"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, env=environment(), stderr=asyncio.subprocess.PIPE
        )
        _, err = await process.communicate()
        assert process.returncode == 2
        assert err.decode() == (
            f"together-async: the command needs the package {name}: pip install 'together-async[cli]'\n"
        )
