"""Figures as a table, and everything as JSON."""

import json
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.harness.figures import Figure, Target

HEADINGS = ("what", "who", "figure", "target", "", "")


def number(value: float) -> str:
    """At most three significant digits."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def target_text(target: Target | None) -> str:
    if target is None:
        return ""
    sign = ">=" if target.more else "<="
    return f"{sign} {target.reach:g}" + (f", go for {target.go:g}" if target.go is not None else "")


def rows(figures: Iterable[Figure]) -> list[tuple[str, ...]]:
    """One row per figure; a first cell like that of the row above stays empty."""
    table = []
    last = ""
    for figure in figures:
        what = f"{figure.group}: {figure.what}" if figure.what else figure.group
        shown = "" if what == last else what
        last = what
        value = f"{number(figure.value)} {figure.unit}"
        table.append((shown, figure.who, value, target_text(figure.target), figure.state, figure.note))
    return table


def plain(table: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in (HEADINGS, *table)) for column in range(len(HEADINGS))]
    lines = (zip(row, widths, strict=True) for row in (HEADINGS, *table))
    return "\n".join("  ".join(cell.ljust(width) for cell, width in line).rstrip() for line in lines)


def show(figures: Sequence[Figure]) -> None:
    """Prints the table, with rich if it is installed and the output is a terminal."""
    table = rows(figures)
    if sys.stdout.isatty():
        try:
            from rich.console import Console
            from rich.table import Table
        except ImportError:
            pass
        else:
            rich = Table(*HEADINGS)
            styles = {"missed": "red", "reached": "green", "go": "bold green"}
            for row in table:
                rich.add_row(*row, style=styles.get(row[4]))
            Console().print(rich)
            return
    print(plain(table))


def machine() -> dict[str, Any]:
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": os.getloadavg(),
    }


def write(folder: Path, figures: Sequence[Figure], *, file: str = "benchmarks.json", **facts: Any) -> Path:
    """Writes `file`: figures with their samples, versions, machine and parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file
    content = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        **facts,
        "figures": [figure.to_dict() for figure in figures],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )
