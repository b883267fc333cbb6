"""What was wrong, put together by what it is."""

import asyncio

from benchmarks.life.found import Found, awaited, described


def failing(text: str) -> Exception:
    try:
        raise ValueError(text)
    except ValueError as error:
        return error


def test_what_is_alike_is_counted_together() -> None:
    found = Found()
    for address in ("0x7f00", "0x7f01"):
        found.note(f"unraisable in <Thing at {address}>", address)
    assert found.total() == 2
    assert found.wrong == {"unraisable in <Thing>": 2}
    assert found.examples == {"unraisable in <Thing>": "0x7f00"}


def test_an_error_is_named_with_the_place_that_raised_it() -> None:
    assert described(failing("broken")).startswith("ValueError: broken at test_found.py:")
    found = Found()
    found.note_error(failing("broken"), "a call")
    assert found.total() == 1
    assert "raise ValueError(text)" in next(iter(found.examples.values()))


async def test_a_suspended_task_is_described_from_the_outside_in() -> None:
    async def inner() -> None:
        await asyncio.get_running_loop().create_future()

    async def outer() -> None:
        await inner()

    task = asyncio.create_task(outer())
    await asyncio.sleep(0)
    places = awaited(task.get_coro())
    task.cancel()
    assert [place.partition(":")[0].rpartition(".")[2] for place in places.split(" > ")][:2] == ["outer", "inner"]
