"""Texts for a person: durations, amounts of money, progress, the summary."""

import datetime as dt
import math

from together_async.batch import BatchProgress, BatchSummary


def duration(seconds: float) -> str:
    """Return a duration as text: `12 s`, `3:05 min`, `2:41:09`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    whole = dt.timedelta(seconds=round(seconds))
    return str(whole) if seconds >= 3600 else f"{int(seconds // 60)}:{int(seconds % 60):02} min"


def money(dollars: float) -> str:
    """Return an amount of US dollars, small amounts with two significant digits."""
    if 0 < dollars < 0.1:
        return f"${dollars:.{1 - math.floor(math.log10(dollars))}f}"
    return f"${dollars:,.2f}"


def plain_line(progress: BatchProgress) -> str:
    """Return the progress in one line."""
    finished = progress.done + progress.failed
    parts = [
        f"{finished:,} of {progress.total:,}" + (f" ({finished / progress.total:.0%})" if progress.total else ""),
        f"{progress.failed:,} failed" if progress.failed else "",
        f"{progress.retried:,} retried" if progress.retried else "",
        f"{progress.in_flight:,} in flight",
        f"{progress.queued:,} queued" if progress.queued else "",
        f"{progress.requests_per_minute:,.0f} requests/min",
        f"{progress.tokens_per_minute:,.0f} tokens/min",
        f"waited {duration(progress.limited_s)} for limits" if progress.limited_s >= 1 else "",
        money(progress.cost) if progress.cost is not None else "",
        f"ETA {duration(progress.eta_s)}" if progress.eta_s is not None else "",
        progress.state,
    ]
    return ", ".join(part for part in parts if part)


def closing_text(summary: BatchSummary) -> str:
    """Return the summary in a few lines."""
    run = summary.done + summary.failed - summary.resumed
    parts = [
        f"{summary.done:,} of {summary.total:,} answered",
        f"{summary.failed:,} failed" if summary.failed else "",
        f"{summary.remaining:,} to do" if summary.remaining else "",
        f"{summary.resumed:,} of them from earlier runs" if summary.resumed else "",
        f"{summary.edited:,} asked anew because edited" if summary.edited else "",
        f"{summary.retried:,} took more than one attempt" if summary.retried else "",
    ]
    lines = [", ".join(part for part in parts if part) + "."]
    speed = f", {run / summary.elapsed_s:,.1f} requests/s" if run and summary.elapsed_s > 0 else ""
    tokens = f"{summary.prompt_tokens:,} prompt + {summary.completion_tokens:,} answer tokens"
    cost = f", {money(summary.cost)}" if summary.cost is not None else ""
    lines.append(f"{duration(summary.elapsed_s)}{speed}; {tokens}{cost}.")
    if summary.limited_s >= 1:
        lines.append(f"Something waited for the limits for {duration(summary.limited_s)}.")
    if summary.stopped:
        lines.append(f"Stopped: {summary.stopped}.")
    return "\n".join(lines)
