"""A search through random maps: inputs, faults, limits, paces and ends.

`CASES=10000 pytest tests/fanout/test_map_search.py` searches longer than the suite does.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest

from support.fanout import ONE, QUICK, Mine, check_idle, emulated, prompts, source_of, tidy
from support.servers import MODEL
from together_async import (
    ChatCompletionRequest,
    Limits,
    MapResult,
    Retry,
    TogetherError,
)
from together_async.testing import (
    Chance,
    CloseAfter,
    Cut,
    ErrorInStream,
    Garbage,
    OneOf,
    Stall,
    Status,
    WithoutDone,
)

CASES = int(os.environ.get("CASES", "60"))


# -------------------------------------------------------------------------------------------------------------- search

FAULTS = OneOf(
    None,
    None,
    None,
    Status(400),
    Status(500),
    Status(429, headers={"retry-after": "3"}),
    Cut(),
    Cut(after_token=1),
    Cut(after_token=0, how="close"),
    Stall(seconds=2),
    Stall(after_token=1, seconds=2),
    CloseAfter(),
    WithoutDone(),
    ErrorInStream(after_token=1),
    Garbage(after_token=1),
    Chance(0.5, Status(503)),
)


@attrs.frozen
class Case:
    """One map of a random search."""

    seed: int
    count: int
    concurrency: int | None
    kind: str
    ordered: bool
    stream: bool
    on_chunk: bool
    leaves_after: int | None
    raises_after: int | None
    pace_s: float
    limits: Limits
    retry: Retry

    @classmethod
    def random(cls, seed: int) -> Case:
        rng = random.Random(seed)
        stream = rng.random() < 0.5
        return cls(
            seed=seed,
            count=rng.choice([0, 1, 2, 10, 30]),
            concurrency=rng.choice([1, 2, 5, 40]),
            kind=rng.choice(["list", "generator", "async generator"]),
            ordered=rng.random() < 0.5,
            stream=stream,
            on_chunk=stream and rng.random() < 0.5,
            leaves_after=rng.choice([None, None, None, 1, 5]),
            raises_after=rng.choice([None, None, None, 0, 7]),
            pace_s=rng.choice([0, 0, 0.3]),
            limits=rng.choice([Limits(), Limits(concurrency=2), Limits(requests_per_minute=600, max_queued=0)]),
            retry=rng.choice([ONE, QUICK, Retry(attempts=2, base_delay=1)]),
        )

    def items(self) -> list[Any]:
        rng = random.Random(self.seed)
        kinds: list[Callable[[str], Any]] = [
            str,
            lambda text: [{"role": "user", "content": text}],
            lambda text: {"messages": text},
            lambda text: ChatCompletionRequest(messages=text, model=MODEL),
            lambda text: [text],
            lambda _: 5,
        ]
        weights = (10, 3, 3, 3, 1, 1)
        return [rng.choices(kinds, weights)[0](prompt) for prompt in prompts(self.count)]

    def source(self) -> Any:
        def items() -> Iterator[Any]:
            for place, item in enumerate(self.items()):
                if place == self.raises_after:
                    raise Mine
                yield item

        return source_of("generator" if self.kind == "list" else self.kind, items())


@pytest.mark.parametrize("part", range(4))
@tidy
async def test_any_map(part: int) -> None:
    """Random inputs, faults, limits, paces and ends: each index comes once, in order if asked for; each result has a
    correct completion or one of our errors; no foreign exception, and nothing left."""
    for seed in range(part, CASES, 4):
        case = Case.random(seed)
        try:
            await check_case(case)
        except BaseException as error:
            error.add_note(f"case: {case}")
            raise


async def check_case(case: Case) -> None:
    async with emulated(limits=case.limits, client={"retry": case.retry}, faults=FAULTS, seed=case.seed) as (
        server,
        client,
    ):
        results = client.map(
            case.source(),
            model=MODEL,
            concurrency=case.concurrency,
            ordered=case.ordered,
            stream=case.stream,
            on_chunk=(lambda *_: None) if case.on_chunk else None,
        )
        got: list[MapResult[Any]] = []
        raised = left = False
        try:
            async for result in results:
                got.append(result)
                await asyncio.sleep(case.pace_s)
                left = len(got) == case.leaves_after
                if left:
                    break
        except Mine:
            raised = True
        await asyncio.sleep(0.1)
        check_idle(client)
        expected = case.count if case.raises_after is None else min(case.count, case.raises_after)
        assert raised is (not left and case.raises_after is not None and case.raises_after < case.count)
        check_results(case, got, whole_input=not left, count=expected)
        assert server.peak <= (case.concurrency or 0)
        if not left:
            assert sum(result.attempts for result in got) == len(server.journal)


def check_results(case: Case, got: list[MapResult[Any]], *, whole_input: bool, count: int) -> None:
    items = case.items()
    indexes = [result.index for result in got]
    assert len(set(indexes)) == len(indexes)
    if case.ordered:
        assert indexes == list(range(len(got)))
    if whole_input:
        assert sorted(indexes) == list(range(count))
    for result in got:
        assert result.request == items[result.index]
        if result.completion is not None:
            assert result.error is None
            assert result.completion.text == f"You said: prompt {result.index}"
        else:
            assert isinstance(result.error, TogetherError) or type(result.error) is ValueError
            assert len(result.retries) == max(0, result.attempts - 1) or result.attempts == 0
        assert 0 <= result.timing.queued_s <= result.timing.total_s
