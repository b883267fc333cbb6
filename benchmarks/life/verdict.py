"""What the samples of a long life say. Pure."""

from collections.abc import Callable, Sequence

from benchmarks.life.samples import Sample

SETTLED = 0.25
"""The share of the time in which memory and objects may grow: caches fill, pools find their size."""
FEWEST_SAMPLES = 4
"""Settled samples that it takes to tell growth from chance."""
OBJECTS = 60
"""Objects of a type that may come and go."""
OBJECTS_SHARE = 0.15
"""The same as a share of what was there. The limiter forgets its models an eighth at once."""
GROWTH_MIB = 4.0
"""Resident memory that may come and go."""


def verdict(samples: Sequence[Sample], wrong: int, *, seconds: float) -> list[str]:
    """What is not as it has to be.

    Args:
        samples: In the order of time; the first was taken before any call.
        wrong: How many errors and reports nobody expects.
        seconds: How long the life was to take.
    """
    complaints = [
        f"{what}: {count} left after {sample.seconds:.0f} s"
        for sample in samples[1:]
        for what, count in left_over(samples[0], sample).items()
    ]
    if wrong:
        complaints.append(f"{wrong} errors that nobody expects")
    settled = [sample for sample in samples[1:-1] if sample.seconds >= SETTLED * seconds]
    if len(settled) >= FEWEST_SAMPLES:
        complaints += [f"{kind}: {growth:+} objects" for kind, growth in growing(settled).items()]
        growth_mib = growth(settled, lambda sample: sample.rss_mib)
        if growth_mib > GROWTH_MIB:
            complaints.append(f"{growth_mib:.1f} MiB more")
    return complaints


def left_over(first: Sample, sample: Sample) -> dict[str, int]:
    """What a sample holds and the first did not."""
    over = {what: count - first.held.get(what, 0) for what, count in sample.held.items()}
    return {what: count for what, count in over.items() if count > 0}


def growing(samples: Sequence[Sample]) -> dict[str, int]:
    """The types of which there are ever more objects, with by how many."""
    kinds = {kind for sample in samples for kind in sample.objects}
    found = {}
    for kind in sorted(kinds):
        more = growth(samples, lambda sample: sample.objects[kind])  # noqa: B023 - called before the next kind
        if more > max(OBJECTS, OBJECTS_SHARE * samples[0].objects[kind]):
            found[kind] = int(more)
    return found


def growth(samples: Sequence[Sample], value: Callable[[Sample], float]) -> float:
    """By how much each of the last third of the samples exceeds each of the first third; 0 if not all of them do."""
    third = max(1, len(samples) // 3)
    return max(0, min(map(value, samples[-third:])) - max(map(value, samples[:third])))


def row(first: Sample, sample: Sample) -> str:
    """A sample in one line."""
    left = ", ".join(f"{what} {count}" for what, count in left_over(first, sample).items()) or "nothing"
    return (
        f"{sample.seconds:6.0f} s  {sample.calls:8,} calls  {sample.rss_mib:7.1f} MiB  "
        f"{sample.objects.total():8,} objects  {sample.wrong:4} wrong  "
        f"idle after {sample.settled_s:4.1f} s  left: {left}"
    )
