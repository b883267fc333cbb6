"""What the emulator of `together-async serve` answers."""

import json
import re
import time
from pathlib import Path

from support.serving import Serving


class TestSays:
    async def test_a_function_of_the_request(self, tmp_path: Path) -> None:
        """It may import what lies beside it; where it fails, its author sees where, and the client a 500."""
        (tmp_path / "words.py").write_text("GREETING = 'Good day, '\n")
        script = tmp_path / "replies.py"
        script.write_text(
            "from words import GREETING\n"
            "def answer(request):\n"
            "    if request.n: raise KeyError('no such name')\n"
            "    return GREETING + request.messages[0]['content']\n"
        )
        async with Serving("--script", f"{script}:answer") as serving:
            status, body = await serving.ask("Ann", stream=False)
            assert (status, json.loads(body)["choices"][0]["message"]["content"]) == (200, "Good day, Ann")
            status, body = await serving.ask("Ann", n=2)
            assert status == 500
            code, out, err = await serving.stop()
        assert code == 143
        assert "500 refused" in out
        assert re.match(r'  File ".*replies\.py", line 3, in answer\n(.|\n)*KeyError: .no such name.\n', err), err
        assert "Traceback" not in err

    async def test_the_pace_is_as_told(self) -> None:
        """0.2 s to the first of 3 tokens, 0.1 s from one to the next."""
        arguments = ("--first-token", "0.2", "--tokens-per-second", "10", "--say", "one two three", "--jitter", "0")
        async with Serving(*arguments) as serving:
            started = time.monotonic()
            await serving.ask()
            assert 0.4 <= time.monotonic() - started < 2

    async def test_only_the_models_named(self) -> None:
        async with Serving("--model", "a/b", "--model", "c", "--dialect", "vllm", "-q") as serving:
            assert [(await serving.ask(model=name))[0] for name in ("a/b", "c", "d")] == [200, 200, 404]
            _, body = await serving.ask(model="c", stream=False)
            assert "prompt" not in json.loads(body)  # which the native shape has

    async def test_the_seed_changes_what_is_generated(self) -> None:
        answers = []
        for seed in ("1", "2"):
            async with Serving("--seed", seed, "-q") as serving:
                for _ in range(2):
                    _, body = await serving.ask(stream=False, max_tokens=20)
                    answers.append(json.loads(body)["choices"][0]["message"]["content"])
        assert answers[0] == answers[1] != answers[2] == answers[3]

    async def test_limits_and_faults_meet(self) -> None:
        """The first two requests fail as told; of those after, one a minute is let through."""
        arguments = ("--fault", "first=2 status:503,headers.retry-after=1", "--requests-per-minute", "3", "-q")
        async with Serving(*arguments, "--tokens-per-minute", "1e6") as serving:
            assert [(await serving.ask())[0] for _ in range(2)] == [503, 429]
