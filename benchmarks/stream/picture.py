"""The picture: CPU per token of every client, both regimes, on a logarithmic scale. Needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness.figures import Figure

COLOURS = {"ours": "#0f6fff", "ours text()": "#0f6fff", "raw loop": "#7a869a", "bytes only": "#c1c7d0"}
OTHERS = "#e07a3f"
LABELS = {"ours": "together_async", "ours text()": "together_async text()", "raw loop": "aiohttp + msgspec, by hand"}
REGIMES = {
    "blast": "Blast: many tokens per read",
    "paced": "Paced: one token per wake-up, 64 streams of 50 tokens/s",
}


def values(figures: Sequence[Figure], group: str) -> dict[str, float]:
    """Microseconds per token by client: the median over event loops and numbers of streams."""
    found: dict[str, list[float]] = {}
    for figure in figures:
        if figure.group == group and figure.unit == "us/token":
            found.setdefault(figure.who, []).append(figure.value)
    return {who: median(several) for who, several in sorted(found.items(), key=lambda item: median(item[1]))}


def draw(folder: Path, figures: Sequence[Figure]) -> list[Path]:
    """Writes `cpu-per-token.png` and `.svg`; nothing if neither regime was measured or matplotlib is missing."""
    panels = [(title, found) for group, title in REGIMES.items() if (found := values(figures, group))]
    if not panels:
        return []
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError:
        return []
    height = sum(0.36 * len(found) + 0.9 for _, found in panels)
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(8.5, height), squeeze=False, height_ratios=[len(found) + 1 for _, found in panels]
    )
    for ax, (title, found) in zip(axes[:, 0], panels, strict=True):
        _panel(ax, title, found)
    axes[-1, 0].set_xlabel("CPU microseconds per token in the client, logarithmic; less is better")
    figure.tight_layout()
    paths = [folder / f"cpu-per-token.{kind}" for kind in ("png", "svg")]
    for path in paths:
        figure.savefig(path, dpi=150)
    plt.close(figure)
    return paths


def _panel(ax: Any, title: str, found: dict[str, float]) -> None:
    names = list(found)[::-1]
    lengths = [found[name] for name in names]
    bars = ax.barh([LABELS.get(name, name) for name in names], lengths, color=[COLOURS.get(n, OTHERS) for n in names])
    ax.bar_label(bars, labels=[f"{length:.3g}" for length in lengths], padding=4, fontsize=9)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("")
    ax.set_xlim(min(lengths) / 2, max(lengths) * 2.2)
    ax.set_title(title, loc="left", fontsize=11, fontweight="bold")
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
