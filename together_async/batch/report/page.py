"""The page: its sections, from top to bottom."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Final

from together_async.batch.record import Record
from together_async.batch.report.charts import (
    PERCENTILES,
    UNKNOWN,
    Panel,
    Series,
    clock,
    count,
    day,
    duration,
    histogram,
    panels,
    parts,
    quoted,
    share,
    text,
)
from together_async.batch.report.statistics import Distribution, Kind, Slow, Tally, shortened, tally
from together_async.batch.report.style import PAGE, STYLE
from together_async.batch.report.timeline import Course, Sample

_MOST_FACT: Final = 400
_MOST_TITLE: Final = 200

_PANELS: Final = (
    Panel(
        "Results per minute",
        (
            Series("answers", "answers", lambda one, width_s: one.answers * 60 / width_s),
            Series("errors", "errors", lambda one, width_s: one.errors * 60 / width_s),
        ),
        size="tall",
        always=True,
    ),
    Panel(
        "Tokens per minute",
        (Series("prompt and completion", "answers", lambda one, width_s: one.tokens * 60 / width_s),),
    ),
    Panel("429s", (Series("429s", "limited", lambda one, _: one.limited),), size="low", whole=True),
    Panel(
        "Requests under way",
        (
            Series("in flight", "answers", lambda one, _: one.in_flight_s / (one.sampled_s or 1)),
            Series("waiting for the limits", "queued", lambda one, _: one.queued_s / (one.sampled_s or 1)),
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
        records: All its results, of earlier runs too; they are walked once.
        samples: How it stood about every second of this run; may be empty.
        facts: What else is to be said of it, names and values, in order.
        title: Its heading.
    """
    counted = tally(records, samples)
    course = counted.calendar.course()
    title = text(shortened(title, _MOST_TITLE))
    sections = (
        _head(title, course, facts),
        _outcome(counted, course),
        _over_time(course) if counted.results or course is not None else "",
        _distributions(counted),
        _errors(counted),
        _again(counted),
        _slowest(counted.slowest()),
    )
    return PAGE.format(title=title, style=STYLE, body="\n".join(filter(None, sections)))


# ----------------------------------------------------------------------------------------------------------------- HTML


def _section(heading: str, body: str, note: str = "") -> str:
    said = f'<p class="note">{note}</p>' if note else ""
    return f"<section>\n<h2>{heading}</h2>{said}\n{body}\n</section>"


def _table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], under: Sequence[str] = ()) -> str:
    """Returns a table.

    Args:
        caption: Its name.
        heads: Of its columns; `#` before those of numbers.
        rows: Cells, as HTML. The first one heads its row.
        under: What stands below each row, over the whole width.
    """
    kinds = [' class="number"' if head.startswith("#") else "" for head in heads]
    top = "".join(f'<th scope="col"{kind}>{head.lstrip("#")}</th>' for head, kind in zip(heads, kinds, strict=True))
    body = ""
    for (first, *rest), below in itertools.zip_longest(rows, under):
        cells = "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(rest, kinds[1:], strict=True))
        body += f'<tr{" class=over" if below else ""}><th scope="row">{first}</th>{cells}</tr>\n'
        body += f'<tr><td colspan="{len(heads)}">{below}</td></tr>\n' if below else ""
    # What is too wide for the window is moved within it, with the keyboard too.
    return (
        f'<div class="table" role="region" tabindex="0" aria-label="{caption}"><table><caption>{caption}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>\n{body}</tbody></table></div>"
    )


def _pairs(pairs: Iterable[tuple[str, str]], kind: str) -> str:
    return f'<dl class="{kind}">' + "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in pairs) + "</dl>"


def _key(entries: Iterable[tuple[str, str]]) -> str:
    """Returns what the colours mean: class and name of each."""
    swatch = '<svg aria-hidden="true" viewBox="0 0 1 1"><rect class="{}" width="1" height="1"/></svg>'
    return '<p class="key">' + "".join(f"<span>{swatch.format(kind)}{name}</span>" for kind, name in entries) + "</p>"


def _figure(title: str, body: str, key: str = "", note: str = "") -> str:
    said = f'<p class="note">{note}</p>' if note else ""
    return f"<figure><figcaption><h3>{title}</h3>{key}{said}</figcaption>{body}</figure>"


# ------------------------------------------------------------------------------------------------------------- sections


def _head(title: str, course: Course | None, facts: Mapping[str, str]) -> str:
    pairs = [(text(shortened(name, _MOST_FACT)), quoted(shortened(value, _MOST_FACT))) for name, value in facts.items()]
    when = ""
    if course is not None:
        first, last = day(course.begin, year=True), day(course.end, year=True)
        begin, end = f"{first}, {clock(course.begin)}", f"{last}, {clock(course.end)}"
        until = "" if begin == end else f" to {clock(course.end) if first == last else end}"
        runs = f", {len(course.runs)} runs" if len(course.runs) > 1 else ""
        when = f'<p class="when">{begin}{until} UTC{runs}</p>'
    return f"<header>\n<h1><bdi>{title}</bdi></h1>{when}\n{_pairs(pairs, 'facts') if pairs else ''}</header>"


def _outcome(counted: Tally, course: Course | None) -> str:
    results = counted.results
    if not results:
        return _section("Outcome", '<p class="none">No results yet.</p>')
    tokens = counted.prompt_tokens + counted.completion_tokens
    figures = [
        ("Results", count(results)),
        ("Answers", f"{count(counted.answers)} <small>{share(counted.answers, results)}</small>"),
        ("Errors", f"{count(counted.errors)} <small>{share(counted.errors, results)}</small>"),
        ("Retried", f"{count(counted.retried)} <small>{share(counted.retried, results)}</small>"),
        ("Prompt tokens", count(counted.prompt_tokens)),
        ("Completion tokens", count(counted.completion_tokens)),
    ]
    if course is not None:
        minutes = course.working_s / 60
        figures += [
            ("At work", duration(course.working_s)),
            ("Results per minute", count(results / minutes)),
            ("Tokens per minute", count(tokens / minutes)),
        ]
    said = f"{count(counted.answers)} answers, {count(counted.errors)} errors"
    bar = parts([("answers", counted.answers), ("errors", counted.errors)], said)
    key = _key([("answers", "answers"), ("errors", "errors")])
    return _section("Outcome", bar + key + _pairs(figures, "figures"))


def _over_time(course: Course | None) -> str:
    if course is None:
        return _section("Over time", '<p class="none">The file does not say when its results came.</p>')
    paused_s, sampled_s = course.sum(lambda one: one.paused_s), course.sum(lambda one: one.sampled_s)
    note = f"Each step is {duration(course.width_s, brief=True)} long. Times are UTC."
    if paused_s:
        note += (
            f" Everything was held back for {duration(paused_s)}, {share(paused_s, sampled_s)} of the time observed."
        )
    if sampled_s and not course.runs[0].bins[0].sampled_s:
        note += " Pauses and requests under way are known of the last run alone."
    figures: list[str] = []
    for panel, drawing in panels(course, _PANELS):
        entries = [(series.kind, series.name) for series in panel.series] if len(panel.series) > 1 else []
        entries += [("paused", "held back by a 429 or 503")] if paused_s and not figures else []
        figures.append(_figure(panel.title, drawing, _key(entries) if entries else ""))
    return _section("Over time", "\n".join([*figures, _course_table(course)]), note)


def _course_table(course: Course) -> str:
    """Returns the figures of the charts over time."""
    rows = (
        (
            f"{day(number * course.width_s)}&nbsp;{clock(number * course.width_s, course.width_s)}",
            *map(count, (one.answers, one.errors, one.tokens, one.limited)),
            duration(one.paused_s) if one.sampled_s else "",
        )
        for run in course.runs
        for number, one in enumerate(run.bins, run.first)
        if one.answers or one.errors or one.limited or one.sampled_s
    )
    heads = ("From, UTC", "#Answers", "#Errors", "#Tokens", "#429s", "#Held back")
    table = _table(f"Each {duration(course.width_s, brief=True)}", heads, rows)
    return f"<details><summary>The figures of these charts</summary>{table}</details>"


def _distributions(counted: Tally) -> str:
    figures = [
        _figure(title, _distribution(taken, title), note=f"{note} {count(taken.count)} in all.")
        for title, name, note in _DISTRIBUTIONS
        if (taken := getattr(counted, name)).count
    ]
    nothing = '<p class="none">The file does not say how long requests took.</p>'
    return _section("How long it took", "\n".join(figures) or nothing) if counted.results else ""


def _distribution(taken: Distribution, title: str) -> str:
    if taken.most_s < Distribution.LEAST_S:
        return f'<p class="none">Less than {duration(Distribution.LEAST_S)} each.</p>'
    return f'<div class="beside">{histogram(taken, title)}{_figures_of(taken)}</div>'


def _figures_of(taken: Distribution) -> str:
    figures = [(f"p{percent}", duration(taken.percentile(percent))) for percent in PERCENTILES]
    return _pairs([*figures, ("max", duration(taken.most_s)), ("mean", duration(taken.mean_s))], "percentiles")


def _errors(counted: Tally) -> str:
    if not counted.errors:
        return _section("Errors", '<p class="none">No errors.</p>') if counted.results else ""
    rows = [
        (
            _code(kind.code),
            count(kind.count),
            share(kind.count, counted.results),
            duration(kind.took.percentile(50) if kind.took.count else None),
        )
        for kind in counted.kinds()
    ]
    heads = ("Kind", "#Errors", "#Share", "#Latency, p50")
    return _section("Errors", _table("Errors by kind", heads, rows, [*map(_examples, counted.kinds())]))


def _code(code: str) -> str:
    """Returns a kind of error, an HTTP status with its name."""
    name = HTTPStatus(int(code)).phrase if code in _STATUSES else ""
    return f"{quoted(code)} <small>{name}</small>" if name else quoted(code)


_STATUSES: Final = {str(status.value) for status in HTTPStatus}


def _examples(kind: Kind) -> str:
    more = kind.count - len(kind.custom_ids)
    ids = ", ".join(f"<code>{quoted(one)}</code>" for one in kind.custom_ids)
    message = f'<p class="message">{quoted(kind.message)}</p>' if kind.message else ""
    return f'{message}<p class="ids">{ids}{f" and {count(more)} more" if more else ""}</p>'


def _again(counted: Tally) -> str:
    rows = [(quoted(one.reason), count(one.count), duration(one.waited_s)) for one in counted.again()]
    if not rows:
        return ""
    table = _table("Retries by reason", ("Reason", "#Retries", "#Waited, in sum"), rows)
    note = f"{count(counted.attempts)} attempts were made for {count(counted.results)} results."
    return _section("Retries", table, note)


def _slowest(slowest: Sequence[Slow]) -> str:
    rows = [
        (
            f"<code>{quoted(one.custom_id)}</code>",
            duration(one.latency_s),
            _parts(one, slowest[0].latency_s),
            duration(one.first_token_s),
            duration(one.waited_s),
            count(one.attempts),
            "answer" if one.code is None else quoted(one.code),
            UNKNOWN if one.sent_at is None else f"{day(one.sent_at)}&nbsp;{clock(one.sent_at)}",
        )
        for one in slowest
    ]
    heads = ("Request", "#Latency", "Parts", "#First token", "#Waited", "#Attempts", "Outcome", "Sent, UTC")
    key = _key((kind, says) for kind, says, there in _SLOW_KEY if any(map(there, slowest)))
    return _section("Slowest requests", key + _table("Slowest requests", heads, rows), _SLOWEST) if rows else ""


def _parts(one: Slow, longest_s: float) -> str:
    first = min(one.first_token_s or 0.0, one.latency_s)
    end = "answers" if one.code is None else "errors"
    return parts([("first", first), (end, one.latency_s - first), ("rest", longest_s - one.latency_s)], "")


_SLOWEST: Final = (
    "By latency: first token and latency are counted from the first attempt's start, after the wait for the limits."
)
_SLOW_KEY: Final[tuple[tuple[str, str, Callable[[Slow], object]], ...]] = (
    ("first", "to the first token", lambda one: one.first_token_s),
    ("answers", "to the answer's end", lambda one: one.code is None),
    ("errors", "to the error", lambda one: one.code is not None),
)
