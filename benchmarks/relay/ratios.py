"""Two backends, compared round by round. Pure."""

from collections.abc import Sequence

from benchmarks.harness.figures import Figure, Ratio, paired_ratio


def ratios(part: str, what: str, values: dict[str, list[float]], wanted: Sequence[Ratio]) -> list[Figure]:
    """The ratios of which both sides were measured, over the rounds that both have."""
    found = []
    for ratio in wanted:
        if ratio.who in values and ratio.by in values:
            count = min(len(values[ratio.who]), len(values[ratio.by]))
            above, below = values[ratio.who][:count], values[ratio.by][:count]
            each = [value / other for value, other in zip(above, below, strict=True)]
            note = f"rounds: {min(each):.2f} to {max(each):.2f}" if count > 1 else ""
            who = f"{ratio.who} : {ratio.by}"
            found.append(Figure(part, who, what, paired_ratio(above, below), "x", ratio.target, tuple(each), note))
    return found
