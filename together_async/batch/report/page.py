"""The page of the report: its sections, from top to bottom."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Final

from together_async.batch.record import Record
from together_async.batch.report.charts import PERCENTILES, histogram, parts
from together_async.batch.report.formats import UNKNOWN, clock, count, day, duration, quoted, share, text
from together_async.batch.report.statistics import (
    Distribution,
    ErrorKind,
    SlowRequest,
    Statistics,
    count_results,
    shortened,
)
from together_async.batch.report.style import PAGE, STYLE
from together_async.batch.report.time_charts import Panel, Series, draw_panels
from together_async.batch.report.timeline import Sample, Timeline

_MOST_FACT: Final = 400
_MOST_TITLE: Final = 200

_PANELS: Final = (
    Panel(
        "Results per minute",
        (
            Series("answers", "answers", lambda bin_, width_s: bin_.answers * 60 / width_s),
            Series("errors", "errors", lambda bin_, width_s: bin_.errors * 60 / width_s),
        ),
        size="tall",
        always=True,
    ),
    Panel(
        "Tokens per minute",
        (Series("prompt and completion", "answers", lambda bin_, width_s: bin_.tokens * 60 / width_s),),
    ),
    Panel("429s", (Series("429s", "limited", lambda bin_, _: bin_.limited),), size="low", whole=True),
    Panel(
        "Requests under way",
        (
            Series("in flight", "answers", lambda bin_, _: bin_.in_flight_s / (bin_.sampled_s or 1)),
            Series("waiting for the limits", "queued", lambda bin_, _: bin_.queued_s / (bin_.sampled_s or 1)),
        ),
    ),
)

_DISTRIBUTIONS: Final = (
    ("Latency", "latency", "Answers: from the first attempt's start to the end, retries included."),
    ("Time to first token", "first_token", "Streams: from the first attempt's start to the first token."),
    ("Wait for the limits", "waited", "All requests: until the first attempt was sent."),
)


def render(records: Iterable[Record], samples: Sequence[Sample], facts: Mapping[str, str], *, title: str) -> str:
    """Returns the report of a batch, a page of HTML.

    Args:
        records: All its results, those of earlier runs included; they are read once.
        samples: The state of this run about every second; may be empty.
        facts: Names and values to show at the top, in this order.
        title: Its heading.
    """
    statistics = count_results(records, samples)
    timeline = statistics.timeline.build()
    title = text(shortened(title, _MOST_TITLE))
    sections = (
        _head(title, timeline, facts),
        _outcome(statistics, timeline),
        _over_time(timeline) if statistics.results or timeline is not None else "",
        _distributions(statistics),
        _errors(statistics),
        _retries(statistics),
        _slowest(statistics.slowest()),
    )
    return PAGE.format(title=title, style=STYLE, body="\n".join(filter(None, sections)))


# ----------------------------------------------------------------------------------------------------------------- HTML


def _section(heading: str, body: str, note: str = "") -> str:
    note = f'<p class="note">{note}</p>' if note else ""
    return f"<section>\n<h2>{heading}</h2>{note}\n{body}\n</section>"


def _table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], under: Sequence[str] = ()) -> str:
    """Returns a table.

    Args:
        caption: Its name.
        heads: The heads of its columns, those of numbers with `#` in front.
        rows: The cells, as HTML. The first cell is the head of its row.
        under: HTML below each row, over the whole width.
    """
    kinds = [' class="number"' if head.startswith("#") else "" for head in heads]
    top = "".join(f'<th scope="col"{kind}>{head.lstrip("#")}</th>' for head, kind in zip(heads, kinds, strict=True))
    body = ""
    for (first, *others), below in itertools.zip_longest(rows, under):
        cells = "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(others, kinds[1:], strict=True))
        body += f'<tr{" class=over" if below else ""}><th scope="row">{first}</th>{cells}</tr>\n'
        body += f'<tr><td colspan="{len(heads)}">{below}</td></tr>\n' if below else ""
    # A table that is too wide for the window scrolls, with the keyboard too.
    return (
        f'<div class="table" role="region" tabindex="0" aria-label="{caption}"><table><caption>{caption}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>\n{body}</tbody></table></div>"
    )


def _pairs(pairs: Iterable[tuple[str, str]], kind: str) -> str:
    return f'<dl class="{kind}">' + "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in pairs) + "</dl>"


def _key(entries: Iterable[tuple[str, str]]) -> str:
    """Returns the legend: class and name of each colour."""
    swatch = '<svg aria-hidden="true" viewBox="0 0 1 1"><rect class="{}" width="1" height="1"/></svg>'
    return '<p class="key">' + "".join(f"<span>{swatch.format(kind)}{name}</span>" for kind, name in entries) + "</p>"


def _figure(title: str, body: str, key: str = "", note: str = "") -> str:
    note = f'<p class="note">{note}</p>' if note else ""
    return f"<figure><figcaption><h3>{title}</h3>{key}{note}</figcaption>{body}</figure>"


# ------------------------------------------------------------------------------------------------------------- sections


def _head(title: str, timeline: Timeline | None, facts: Mapping[str, str]) -> str:
    pairs = [(text(shortened(name, _MOST_FACT)), quoted(shortened(value, _MOST_FACT))) for name, value in facts.items()]
    when = ""
    if timeline is not None:
        first, last = day(timeline.begin, year=True), day(timeline.end, year=True)
        begin, end = f"{first}, {clock(timeline.begin)}", f"{last}, {clock(timeline.end)}"
        until = "" if begin == end else f" to {clock(timeline.end) if first == last else end}"
        runs = f", {len(timeline.runs)} runs" if len(timeline.runs) > 1 else ""
        when = f'<p class="when">{begin}{until} UTC{runs}</p>'
    return f"<header>\n<h1><bdi>{title}</bdi></h1>{when}\n{_pairs(pairs, 'facts') if pairs else ''}</header>"


def _outcome(statistics: Statistics, timeline: Timeline | None) -> str:
    results = statistics.results
    if not results:
        return _section("Outcome", '<p class="none">No results yet.</p>')
    tokens = statistics.prompt_tokens + statistics.completion_tokens
    figures = [
        ("Results", count(results)),
        ("Answers", f"{count(statistics.answers)} <small>{share(statistics.answers, results)}</small>"),
        ("Errors", f"{count(statistics.errors)} <small>{share(statistics.errors, results)}</small>"),
        ("Retried", f"{count(statistics.retried)} <small>{share(statistics.retried, results)}</small>"),
        ("Prompt tokens", count(statistics.prompt_tokens)),
        ("Completion tokens", count(statistics.completion_tokens)),
    ]
    if timeline is not None:
        minutes = timeline.working_s / 60
        figures += [
            ("At work", duration(timeline.working_s)),
            ("Results per minute", count(results / minutes)),
            ("Tokens per minute", count(tokens / minutes)),
        ]
    name = f"{count(statistics.answers)} answers, {count(statistics.errors)} errors"
    bar = parts([("answers", statistics.answers), ("errors", statistics.errors)], name)
    key = _key([("answers", "answers"), ("errors", "errors")])
    return _section("Outcome", bar + key + _pairs(figures, "figures"))


def _over_time(timeline: Timeline | None) -> str:
    if timeline is None:
        return _section("Over time", '<p class="none">The file does not say when its results came.</p>')
    paused_s, sampled_s = timeline.sum(lambda bin_: bin_.paused_s), timeline.sum(lambda bin_: bin_.sampled_s)
    note = f"Each step is {duration(timeline.width_s, brief=True)} long. Times are UTC."
    if paused_s:
        note += (
            f" Everything was held back for {duration(paused_s)}, {share(paused_s, sampled_s)} of the time observed."
        )
    if sampled_s and not timeline.runs[0].bins[0].sampled_s:
        note += " Pauses and requests under way are known of the last run alone."
    figures: list[str] = []
    for panel, drawing in draw_panels(timeline, _PANELS):
        entries = [(series.kind, series.name) for series in panel.series] if len(panel.series) > 1 else []
        entries += [("paused", "held back by a 429 or 503")] if paused_s and not figures else []
        figures.append(_figure(panel.title, drawing, _key(entries) if entries else ""))
    return _section("Over time", "\n".join([*figures, _timeline_table(timeline)]), note)


def _timeline_table(timeline: Timeline) -> str:
    """Returns the values of the charts over time."""
    rows = (
        (
            f"{day(number * timeline.width_s)}&nbsp;{clock(number * timeline.width_s, timeline.width_s)}",
            *map(count, (bin_.answers, bin_.errors, bin_.tokens, bin_.limited)),
            duration(bin_.paused_s) if bin_.sampled_s else "",
        )
        for run in timeline.runs
        for number, bin_ in enumerate(run.bins, run.first)
        if bin_.answers or bin_.errors or bin_.limited or bin_.sampled_s
    )
    heads = ("From, UTC", "#Answers", "#Errors", "#Tokens", "#429s", "#Held back")
    table = _table(f"Each {duration(timeline.width_s, brief=True)}", heads, rows)
    return f"<details><summary>The figures of these charts</summary>{table}</details>"


def _distributions(statistics: Statistics) -> str:
    figures = [
        _figure(title, _distribution(distribution, title), note=f"{note} {count(distribution.count)} in all.")
        for title, name, note in _DISTRIBUTIONS
        if (distribution := getattr(statistics, name)).count
    ]
    nothing = '<p class="none">The file does not say how long requests took.</p>'
    return _section("How long it took", "\n".join(figures) or nothing) if statistics.results else ""


def _distribution(distribution: Distribution, title: str) -> str:
    if distribution.most_s < Distribution.LEAST_S:
        return f'<p class="none">Less than {duration(Distribution.LEAST_S)} each.</p>'
    return f'<div class="beside">{histogram(distribution, title)}{_figures_of(distribution)}</div>'


def _figures_of(distribution: Distribution) -> str:
    figures = [(f"p{percent}", duration(distribution.percentile(percent))) for percent in PERCENTILES]
    return _pairs(
        [*figures, ("max", duration(distribution.most_s)), ("mean", duration(distribution.mean_s))], "percentiles"
    )


def _errors(statistics: Statistics) -> str:
    if not statistics.errors:
        return _section("Errors", '<p class="none">No errors.</p>') if statistics.results else ""
    rows = [
        (
            _code(kind.code),
            count(kind.count),
            share(kind.count, statistics.results),
            duration(kind.latency.percentile(50) if kind.latency.count else None),
        )
        for kind in statistics.error_kinds()
    ]
    heads = ("Kind", "#Errors", "#Share", "#Latency, p50")
    return _section("Errors", _table("Errors by kind", heads, rows, [*map(_examples, statistics.error_kinds())]))


def _code(code: str) -> str:
    """Returns a kind of error, with the name of an HTTP status."""
    name = HTTPStatus(int(code)).phrase if code in _STATUSES else ""
    return f"{quoted(code)} <small>{name}</small>" if name else quoted(code)


_STATUSES: Final = {str(status.value) for status in HTTPStatus}


def _examples(kind: ErrorKind) -> str:
    more = kind.count - len(kind.custom_ids)
    ids = ", ".join(f"<code>{quoted(custom_id)}</code>" for custom_id in kind.custom_ids)
    message = f'<p class="message">{quoted(kind.message)}</p>' if kind.message else ""
    return f'{message}<p class="ids">{ids}{f" and {count(more)} more" if more else ""}</p>'


def _retries(statistics: Statistics) -> str:
    rows = [
        (quoted(retries.reason), count(retries.count), duration(retries.waited_s))
        for retries in statistics.retry_reasons()
    ]
    if not rows:
        return ""
    table = _table("Retries by reason", ("Reason", "#Retries", "#Waited, in sum"), rows)
    note = f"{count(statistics.attempts)} attempts were made for {count(statistics.results)} results."
    return _section("Retries", table, note)


def _slowest(slowest: Sequence[SlowRequest]) -> str:
    rows = [
        (
            f"<code>{quoted(request.custom_id)}</code>",
            duration(request.latency_s),
            _parts(request, slowest[0].latency_s),
            duration(request.first_token_s),
            duration(request.waited_s),
            count(request.attempts),
            "answer" if request.code is None else quoted(request.code),
            UNKNOWN if request.sent_at is None else f"{day(request.sent_at)}&nbsp;{clock(request.sent_at)}",
        )
        for request in slowest
    ]
    heads = ("Request", "#Latency", "Parts", "#First token", "#Waited", "#Attempts", "Outcome", "Sent, UTC")
    key = _key((kind, name) for kind, name, is_used in _SLOW_KEY if any(map(is_used, slowest)))
    return _section("Slowest requests", key + _table("Slowest requests", heads, rows), _SLOWEST) if rows else ""


def _parts(request: SlowRequest, longest_s: float) -> str:
    first = min(request.first_token_s or 0.0, request.latency_s)
    end = "answers" if request.code is None else "errors"
    return parts([("first", first), (end, request.latency_s - first), ("rest", longest_s - request.latency_s)], "")


_SLOWEST: Final = (
    "By latency: first token and latency are counted from the first attempt's start, after the wait for the limits."
)
_SLOW_KEY: Final[tuple[tuple[str, str, Callable[[SlowRequest], object]], ...]] = (
    ("first", "to the first token", lambda request: request.first_token_s),
    ("answers", "to the answer's end", lambda request: request.code is None),
    ("errors", "to the error", lambda request: request.code is not None),
)
