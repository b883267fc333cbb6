"""The memory of a map, measured without a server."""

from benchmarks.fanout import memory


async def test_the_memory_of_a_map_is_looked_at_after_every_so_many_results() -> None:
    found = await memory.measure(700, every=200)
    assert found["answered"] == 700
    assert len(found["samples_mib"]) == 3
