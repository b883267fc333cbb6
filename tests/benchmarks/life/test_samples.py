"""What a process holds."""

from benchmarks.life import samples
from together_async import AsyncTogether, Limits, RateLimiter
from together_async.testing import EmulatorServer


async def test_an_open_stream_is_seen_and_one_that_was_left_is_not() -> None:
    limiter = RateLimiter(Limits(concurrency=2))
    async with (
        EmulatorServer("some words to say", tokens_per_second=5) as server,
        AsyncTogether("key", base_url=server.base_url, limits=limiter) as client,
    ):
        before = samples.held([limiter], [client], server.open_connections)
        stream = client.stream("hi", model="m")
        await anext(stream)
        held = samples.held([limiter], [client], server.open_connections)
        assert (held["in flight"], held["responses"], held["server's connections"]) == (1, 1, 1)
        await stream.aclose()
        left = samples.held([limiter], [client], 0)
        assert [left[what] - before[what] for what in ("in flight", "queued", "responses", "openings")] == [0] * 4
    assert {*before} == {*samples.HELD}


async def test_an_emptied_pool_holds_no_connection() -> None:
    async with (
        EmulatorServer("words") as server,
        AsyncTogether("key", base_url=server.base_url) as client,
    ):
        samples.empty_pool(client)  # not connected yet
        await client.create("hi", model="m")
        samples.empty_pool(client)
        await client.create("hi", model="m")
        assert server.connections == 2


def test_objects_are_counted_by_type() -> None:
    class Counted: ...

    kept = [Counted() for _ in range(3)]
    for each in kept:
        each.itself = each  # type: ignore[attr-defined]  # an object without references is not tracked
    assert samples.objects()[f"{__name__}.{Counted.__qualname__}"] == 3
    assert samples.memory_mib() > 1
