"""Batches with a budget of tokens or US dollars, over several runs."""

from __future__ import annotations

from typing import Any

import pytest

from support.batches import Files, Service, answer, run
from support.servers import MODEL
from together_async import AsyncTogether


@pytest.mark.parametrize("limit", ["max_tokens_total", "max_cost"])
async def test_a_budget_is_kept_over_runs(service: Service, client: AsyncTogether, files: Files, limit: str) -> None:
    """The usage of earlier runs counts; with a higher budget the batch continues."""
    files.write(30)
    for most, done in ((100, 6), (100, 6), (200, 13), (10_000, 30)):
        summary = await run(client, files, concurrency=1, **{limit: most})
        assert summary.done == len(files.results) == done
        assert summary.prompt_tokens + summary.completion_tokens == 15 * done <= most
        assert (summary.stopped is None) == (done == 30)
        if summary.stopped:
            assert limit in summary.stopped
    assert service.requests == 30


@pytest.mark.parametrize("limit", ["max_tokens_total", "max_cost"])
@pytest.mark.parametrize(
    "changes", [{"model": "another/name"}, {"usage": ...}, {"usage": None}, {"model": ..., "usage": ...}], ids=str
)
async def test_a_budget_is_kept_whatever_the_server_reports(
    service: Service, client: AsyncTogether, files: Files, limit: str, changes: dict[str, Any]
) -> None:
    """Another model's name, or no usage: the expected usage counts, in this run and in the next."""
    files.write(60)
    service.reply = lambda prompt, times: answer("twenty letters, that", **changes)
    for _ in range(2):
        summary = await run(client, files, concurrency=3, **{limit: 100})
        assert summary.stopped is not None
        assert limit in summary.stopped
    assert 3 < service.requests < 20


@pytest.mark.parametrize("number", [-(10**6), 10**15])
async def test_a_budget_does_not_believe_what_is_impossible(
    service: Service, client: AsyncTogether, files: Files, number: int
) -> None:
    """Absurd counts neither use it up nor leave it unused: they are estimated, in this run and in the next."""
    files.write(60)
    usage = {"prompt_tokens": number, "completion_tokens": number, "total_tokens": number}
    service.reply = lambda prompt, times: answer("twenty letters, that", usage=usage)
    summary = await run(client, files, concurrency=3, max_tokens_total=100)
    assert summary.stopped is not None
    assert 3 < summary.done < 20
    assert 0 < summary.prompt_tokens + summary.completion_tokens <= 100
    summary = await run(client, files, concurrency=3, max_tokens_total=100_000)
    assert summary.done == 60


async def test_a_budget_is_exceeded_by_what_could_not_be_known_alone(
    service: Service, client: AsyncTogether, files: Files
) -> None:
    """Prompts with more tokens than estimated exceed it by the requests in flight; then the estimate has learned."""
    files.write(60)
    service.reply = lambda prompt, times: answer(prompt=100)
    summary = await run(client, files, concurrency=4, max_tokens_total=1_000)
    assert summary.prompt_tokens + summary.completion_tokens <= 1_000 + 4 * 105


@pytest.mark.parametrize("count", [1, 50])
async def test_the_cost_is_reported_on_request(
    service: Service, client: AsyncTogether, files: Files, count: int
) -> None:
    """Even for a short batch, and for one that was complete before."""
    files.write(count)
    for _ in range(2):
        summary = await run(client, files, prices=True)
        assert summary.cost == pytest.approx(15.0 * count)
    assert (await run(client, files)).cost is None


@pytest.mark.parametrize("models", [None, [], {"data": []}, [{"id": MODEL}]], ids=str)
async def test_a_cost_without_prices_can_not_be_kept(
    client: AsyncTogether, service: Service, files: Files, models: Any
) -> None:
    """Nothing is sent; without a limit the cost is just not reported."""
    service.models = models
    files.write(3)
    with pytest.raises(ValueError, match="max_cost: the service"):
        await run(client, files, max_cost=5)
    assert not service.requests
    summary = await run(client, files)
    assert (summary.cost, summary.ok) == (None, True)
