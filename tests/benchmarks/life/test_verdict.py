"""The judgement of a long life: what is left, what grows."""

from collections import Counter
from typing import Any

from benchmarks.life import verdict
from benchmarks.life.samples import Sample


def sample(seconds: float, *, mib: float = 50.0, objects: dict[str, int] | None = None, **held: int) -> Sample:
    return Sample(seconds, int(seconds) * 10, {"sockets": 2, **held}, mib, Counter(objects or {}))


def life(values: list[int], **others: Any) -> list[Sample]:
    """A sample before and after, and one a minute with so many objects."""
    minutes = [sample(60 * (n + 1), objects={"some.Type": count}, **others) for n, count in enumerate(values)]
    return [sample(0), *minutes, sample(60 * len(values))]


def judged(samples: list[Sample], wrong: int = 0) -> list[str]:
    return verdict.verdict(samples, wrong, seconds=samples[-1].seconds)


def test_a_life_that_leaves_nothing_is_right() -> None:
    assert judged(life([100, 900, 1000, 1010, 990, 1005, 1000, 995])) == []


def test_whatever_is_left_is_named_with_its_time() -> None:
    samples = [sample(0), sample(60, **{"in flight": 3}), sample(120, sockets=4), sample(120)]
    assert judged(samples) == ["in flight: 3 left after 60 s", "sockets: 2 left after 120 s"]


def test_an_error_that_nobody_expects_is_enough() -> None:
    assert judged(life([1]), wrong=2) == ["2 errors that nobody expects"]


def test_objects_that_grow_and_grow_are_named() -> None:
    assert judged(life([0, 0, 100, 200, 300, 400, 500, 600])) == ["some.Type: +400 objects"]


def test_growth_in_the_first_quarter_and_chance_are_none() -> None:
    assert judged(life([0, 5000, 5020, 5100, 5000, 5040, 5150, 5090])) == []
    assert judged(life([0, 10, 2000, 10, 10, 2000, 10, 10])) == []


def test_too_few_samples_prove_no_growth() -> None:
    assert judged(life([100, 200, 300])) == []


def test_memory_that_grows_is_named() -> None:
    samples = [sample(0), *(sample(60 * n, mib=50.0 + 2 * n) for n in range(1, 9)), sample(480)]
    assert judged(samples) == ["8.0 MiB more"]


def test_a_row_shows_what_is_left() -> None:
    assert verdict.row(sample(0), sample(60)).endswith("left: nothing")
    assert verdict.row(sample(0), sample(60, tasks=2, sockets=3)).endswith("left: sockets 1, tasks 2")
