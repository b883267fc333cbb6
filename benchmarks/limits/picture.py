"""The picture: a small panel for each client and account, all with the same axes. Needs matplotlib.

Of several runs it shows the one with the median throughput.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.limits.results import LimitsRun, series_of
from benchmarks.limits.ways import OURS, WAYS
from benchmarks.limits.workload import DYNAMIC, FIXED, SETTINGS
from together_async.testing.ideal import ideal_seconds

OUR_COLOUR, OTHERS, LIMIT, REFUSED = "#0f6fff", "#e07a3f", "#344054", "#d92d20"
BINS = 130
TOP, STRIP = 15.0, 3.2
"""The most requests per second that a panel shows, and the height of the strip below zero for the 429s."""
TITLES = {
    FIXED: "Fixed: 600 requests and 60,000 tokens per minute",
    DYNAMIC: "Dynamic: begins at a tenth of that, falls on a 429",
}


def per_second(times: Iterable[float], width: float, end: float) -> tuple[list[float], list[float]]:
    """Returns the edges of bins from 0 to `end`, and the rate per second of the times in each."""
    count = Counter(int(time / width) for time in times)
    bins = int(end / width) + 1
    return [number * width for number in range(bins + 1)], [count[number] / width for number in range(bins)]


def live_limit(run: LimitsRun) -> tuple[list[float], list[float]]:
    """Returns when the account's limit changed and its values, in average-sized requests per second."""
    times: list[float] = []
    limits: list[float] = []
    for at, _, _, requests, tokens in run.verdicts:
        limit = min(requests, tokens / (run.tokens or 1))
        if not limits or abs(limit - limits[-1]) > 0.01:
            times.append(at - run.verdicts[0][0])
            limits.append(limit)
    return [*times, run.elapsed_s], [*limits, limits[-1]]


def typical(runs: Sequence[LimitsRun]) -> LimitsRun:
    """The run with the median throughput; the lower one of two."""
    return sorted(runs, key=lambda run: run.throughput)[(len(runs) - 1) // 2]


def caption(run: LimitsRun) -> str:
    """The words in a panel."""
    if not run.verdicts:
        return f"nothing sent in {run.elapsed_s:.0f} s"
    refused = run.count(429)
    share, refusals = f"{run.throughput:.1f} % of the ideal", f"{refused:,} x 429" if refused else "no 429"
    if not run.failed and not run.unfinished:
        return f"{share}, {refusals}"
    # A client that gives up most of its calls may be quick with the others.
    return f"{run.answered:,} of {run.calls:,} calls answered, {refusals}"


def draw(folder: Path, runs: Sequence[LimitsRun]) -> list[Path]:
    """Writes `limits.png` and `.svg`; nothing if there is nothing to show or matplotlib is missing."""
    shown = [typical(each.runs) for each in series_of(runs) if each.setting.name in TITLES and each.way.drawn]
    if not shown:
        return []
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        mpl.rcParams["svg.hashsalt"] = "limits"
        from matplotlib import pyplot as plt
    except ImportError:
        return []
    accounts = [account for account in TITLES if any(run.setting == account for run in shown)]
    names = [name for name in WAYS if any(run.way.name == name for run in shown)]
    end = max(run.limit_s for run in shown)
    figure, axes = plt.subplots(
        len(names),
        len(accounts),
        figsize=(2.6 + 5.2 * len(accounts), 1.15 * len(names) + 1.1),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for row, name in enumerate(names):
        for column, account in enumerate(accounts):
            ax = axes[row, column]
            _frame(ax, end)
            found = [run for run in shown if run.way.name == name and run.setting == account]
            if found:
                _panel(ax, found[0], end)
        client, _, how = name.partition(", ")
        axes[row, 0].set_ylabel(f"{client}\n{how}", rotation=0, ha="right", va="center", fontsize=9, labelpad=12)
    for column, account in enumerate(accounts):
        axes[0, column].set_title(TITLES[account], loc="left", fontsize=10.5, fontweight="bold", pad=10)
        axes[-1, column].set_xlabel("seconds of the account", fontsize=9)
    calls = max(run.calls for run in shown)
    figure.suptitle(f"{calls:,} calls at once: requests admitted per second", x=0.01, ha="left", fontsize=12)
    _legend(figure)
    figure.tight_layout(rect=(0, 0, 1, 0.985), h_pad=0.35)
    paths = [folder / f"limits.{kind}" for kind in ("png", "svg")]
    for path in paths:
        figure.savefig(path, dpi=130)
    plt.close(figure)
    return paths


def _frame(ax: Any, end: float) -> None:
    ax.set_xlim(-0.008 * end, end)
    ax.set_ylim(-STRIP, TOP)
    ax.set_yticks([0, 5, 10])
    ax.tick_params(labelsize=8, length=2)
    ax.axhline(0, color="#98a2b3", linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)


def _panel(ax: Any, run: LimitsRun, end: float) -> None:
    if run.verdicts:
        _traffic(ax, run, end)
    if run.elapsed_s < end:
        ax.axvspan(run.elapsed_s, end, color="#f2f4f7", linewidth=0, zorder=0)
    ax.text(
        0.99,
        0.97,
        caption(run),
        transform=ax.transAxes,
        ha="right",
        va="top",
        fontsize=8,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )


def _traffic(ax: Any, run: LimitsRun, end: float) -> None:
    start, width = run.verdicts[0][0], end / BINS
    admitted = (at - start for at, status, *_ in run.verdicts if status == 200)
    edges, heights = per_second(admitted, width, run.elapsed_s)
    colour = OUR_COLOUR if run.way.client == OURS else OTHERS
    ax.stairs([min(height, TOP) for height in heights], edges, fill=True, color=colour, alpha=0.75, linewidth=0)
    ax.plot(*live_limit(run), color=LIMIT, linewidth=0.9, drawstyle="steps-post")
    fine = width / 4  # the width of a drawn line; several in one place can't be told apart
    refused = sorted({round((at - start) / fine) for at, status, *_ in run.verdicts if status == 429})
    ax.vlines([at * fine for at in refused], -STRIP * 0.85, -STRIP * 0.15, color=REFUSED, linewidth=0.6)
    ax.axvline(
        ideal_seconds(SETTINGS[run.setting].rate, run.calls, run.tokens), color=LIMIT, linewidth=0.7, linestyle=":"
    )


def _legend(figure: Any) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Patch(color=OUR_COLOUR, alpha=0.75, label="together_async"),
        Patch(color=OTHERS, alpha=0.75, label="others"),
        Line2D([], [], color=LIMIT, linewidth=0.9, label="the live limit"),
        Line2D([], [], color=REFUSED, linewidth=2, label="429"),
        Line2D([], [], color=LIMIT, linewidth=0.8, linestyle=":", label="when an oracle is done"),
        Patch(color="#f2f4f7", label="after the run"),
    ]
    figure.legend(handles=handles, loc="upper right", ncols=6, fontsize=8, frameon=False)
