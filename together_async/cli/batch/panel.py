"""The panel that a terminal shows while a batch runs. It needs rich."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from together_async.batch import BatchProgress
from together_async.cli.batch.figures import duration, money
from together_async.ratelimit import ModelState

MOST_MODELS = 4
_BAR_WIDTH = 40


def panel(progress: BatchProgress, title: str, notes: Sequence[str]) -> RenderableType:
    """Return the panel's content.

    Args:
        progress: The batch's progress.
        title: The batch's title.
        notes: Messages so far; the last is shown.
    """
    lines: list[RenderableType] = [_head(progress, title), _counts(progress), _rates(progress)]
    models = sorted(progress.limits.models.values(), key=lambda model: -model.in_flight - model.queued)
    lines += [_model(model) for model in models[:MOST_MODELS]]
    if progress.state:
        lines.append(Text(progress.state, style="yellow"))
    if notes:
        lines.append(Text(notes[-1], style="bold yellow"))
    return Group(*lines)


def _head(progress: BatchProgress, title: str) -> RenderableType:
    finished = progress.done + progress.failed
    row = Table.grid(padding=(0, 2, 0, 0))
    share = finished / progress.total if progress.total else 0.0
    eta = f"ETA {duration(progress.eta_s)}" if progress.eta_s is not None else ""
    row.add_row(
        Text(title, style="bold"),
        ProgressBar(total=max(progress.total, 1), completed=finished, width=_BAR_WIDTH),
        f"{share:4.0%}",
        duration(progress.elapsed_s),
        Text(eta, style="cyan"),
    )
    return row


def _counts(progress: BatchProgress) -> RenderableType:
    text = Text()
    text.append(f"{progress.done:,} done", style="green")
    text.append(f"  of {progress.total:,}")
    if progress.resumed:
        text.append(f" ({progress.resumed:,} before)", style="dim")
    text.append("   ")
    text.append(f"{progress.failed:,} failed", style="bold red" if progress.failed else "dim")
    text.append(f"   {progress.retried:,} retried", style="" if progress.retried else "dim")
    text.append(f"   {progress.in_flight:,} in flight   {progress.queued:,} queued")
    return text


def _rates(progress: BatchProgress) -> RenderableType:
    text = Text(f"{progress.requests_per_minute:,.0f} requests/min   {progress.tokens_per_minute:,.0f} tokens/min")
    text.append(f"   {progress.tokens:,} tokens")
    if progress.cost is not None:
        text.append(f"   {money(progress.cost)}", style="magenta")
    waited = progress.limited_s >= 1
    text.append(f"   waited {duration(progress.limited_s)} for limits", style="yellow" if waited else "dim")
    return text


def _model(model: ModelState) -> RenderableType:
    """The known limits of one model."""
    text = Text(f"  {model.model}: ", style="dim")
    text.append(
        _limit(model.requests_per_minute, "requests/min") + ", " + _limit(model.tokens_per_minute, "tokens/min")
    )
    if model.rate_limited or model.overloaded:
        text.append(f", {model.rate_limited} x 429, {model.overloaded} x 503", style="yellow")
    if model.paused_for_s:
        text.append(f", paused for {duration(model.paused_for_s)}", style="bold yellow")
    return text


def _limit(rate: float | None, unit: str) -> str:
    return f"no limit of {unit} known" if rate is None else f"at most {rate:,.0f} {unit}"
