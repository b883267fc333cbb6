"""What the emulator of `together-async serve` answers."""

import json
import time

from support.serving import Serving


class TestSays:
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
