"""The numbers of the report are those of a simple count."""

import math
import random
import sys
import tracemalloc

import pytest

from support.report import BEGAN, answer, batch, figures, page_of, rows
from together_async.batch.record import Record
from together_async.batch.report.statistics import (
    Distribution,
    count_results,
)


def test_counts_are_those_of_a_simple_count():
    """Results, answers, errors, retried and tokens equal the sums over a list."""
    records = batch(1_000)
    good = [record for record in records if record.ok]
    shown = figures(page_of(records))
    assert shown["Results"] == "1,000"
    assert shown["Answers"] == f"{len(good)} 95.0 %"
    assert shown["Errors"] == "50 5.0 %"
    retried = sum(record.attempts > 1 for record in records)
    assert shown["Retried"] == f"{retried} {retried / 10:.1f} %"
    assert shown["Prompt tokens"] == f"{sum(record.prompt_tokens for record in good):,}"
    assert shown["Completion tokens"] == f"{sum(record.completion_tokens for record in good):,}"


def test_rates_are_those_of_the_time_at_work():
    """The night between two runs does not count: 120 results in two minutes are 60 a minute."""
    records = [answer(n, sent_at=BEGAN + n + (50_000 if n >= 60 else 0), prompt_tokens=10) for n in range(120)]
    shown = figures(page_of(records))
    assert (shown["At work"], shown["Results per minute"], shown["Tokens per minute"]) == ("2 min 00 s", "60", "600")


def nearest_rank(values: list[float], percent: float) -> float:
    return sorted(values)[max(1, math.ceil(len(values) * percent / 100)) - 1]


@pytest.mark.parametrize("many", [1, 2, 3, 10, 99, 100, 5_000])
@pytest.mark.parametrize("percent", [0, 1, 50, 90, 99, 100])
def test_percentiles_are_half_a_percent_off_at_most(many, percent):
    """Also for two or three values, where a percentile is one of the values."""
    rng = random.Random(many)
    values = [rng.lognormvariate(0, 2) + 0.001 for _ in range(many)]
    taken = Distribution()
    for value in values:
        taken.add(value)
    assert taken.percentile(percent) == pytest.approx(nearest_rank(values, percent), rel=0.005)
    assert (taken.count, taken.most_s) == (many, max(values))
    assert taken.mean_s == pytest.approx(sum(values) / many)


def test_durations_are_counted_from_the_first_attempt_on():
    """Latency and first token do not include the wait for the limits, and do not count errors."""
    records = [answer(n, latency_s=2.0, queued_s=float(n), first_token_s=n + 0.5) for n in range(11)]
    counted = count_results([*records, answer(latency_s=600.0, code="500")], [])
    assert (counted.latency.count, counted.latency.most_s) == (11, pytest.approx(2.0))
    assert counted.first_token.percentile(50) == pytest.approx(0.5)
    assert (counted.waited.count, counted.waited.percentile(100)) == (12, 10.0)


def test_errors_by_kind():
    """The most frequent kind comes first, with share, time, the first message and five custom_ids."""
    records = [answer(n, code="429", message=f"told {n}", latency_s=3.0) for n in range(30)]
    records += [answer(n, code="incomplete_stream", latency_s=5.0) for n in range(100, 110)]
    records += [answer(n) for n in range(200, 360)]
    shown = rows(page_of(records), "Errors by kind")
    ids = ", ".join(f"request-{n}" for n in range(5))
    assert shown[0] == ["429 Too Many Requests", "30", "15.0 %", "3.00 s"]
    assert shown[1] == [f"told 0{ids} and 25 more"]
    assert shown[2] == ["incomplete_stream", "10", "5.0 %", "5.00 s"]
    assert shown[3][0].endswith("request-104 and 5 more")


def test_kinds_are_bounded():
    """A thousand kinds of errors are shown as fifty and the others; every error is counted."""
    counted = count_results([Record(f"r{n}", code=f"kind-{n}", retries=((f"why-{n}", 1.0),)) for n in range(1_000)], [])
    assert [len(counted.error_kinds()), len(counted.retry_reasons())] == [51, 51]
    assert (counted.error_kinds()[-1].code, counted.error_kinds()[-1].count) == ("other kinds", 950)
    assert sum(again.count for again in counted.retry_reasons()) == 1_000


def test_retries_by_reason():
    records = [answer(n, attempts=3, retries=(("429", 1.0), ("429", 2.0))) for n in range(10)]
    records += [answer(n, attempts=2, retries=(("connection lost", 0.5),)) for n in range(4)]
    shown = rows(page_of(records), "Retries by reason")
    assert shown == [["429", "20", "30.0 s"], ["connection lost", "4", "2.00 s"]]


def test_slowest_requests_are_the_slowest():
    """The same twenty as by sorting all; the first ones among equal latencies."""
    records = batch(3_000)
    expected = sorted(records, key=lambda record: record.total_s - record.queued_s, reverse=True)[:20]
    assert [request.custom_id for request in count_results(records, []).slowest()] == [
        record.custom_id for record in expected
    ]
    slowest = rows(
        page_of([answer(1, latency_s=3.0, queued_s=7.0, first_token_s=8.0, attempts=2), answer(2)]), "Slowest .*?"
    )
    assert slowest[0] == ["request-1", "3.00 s", "", "1.00 s", "7.00 s", "2", "answer", "23 Nov&nbsp;15:20:00"]
    equal = count_results([answer(n) for n in range(100)], []).slowest()
    assert [request.custom_id for request in equal] == [f"request-{n}" for n in range(20)]


def test_results_are_walked_once_and_not_kept():
    """Memory does not grow with their number."""

    def made(many):
        for n in range(many):
            code = "500" if n % 3 == 0 else None
            yield answer(n, sent_at=BEGAN + n, latency_s=n % 100 + 1.0, code=code, message="m" * 3_000)

    def peak(many):
        tracemalloc.start()
        try:
            page_of(made(many))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(100)
    assert peak(20_000) < peak(4_000) + 500_000


def test_work_is_linear():
    """Eight times the results are at most eight times the calls."""

    def calls(many):
        records, made = batch(many, gap_s=5_000), 0

        def count_call(frame, event, arg):
            nonlocal made
            made += event in {"call", "c_call"}

        before = sys.getprofile()
        sys.setprofile(count_call)
        try:
            page_of(records)
        finally:
            sys.setprofile(before)
        return made

    assert calls(8_000) < 8 * calls(1_000)
