"""Every result is counted when it came, and silences separate runs."""

import random
from collections import Counter

import pytest

from support.report import BEGAN, Page, answer, batch, page_of, sample
from together_async.batch.record import Record
from together_async.batch.report.statistics import (
    count_results,
)
from together_async.batch.report.timeline import TimelineBuilder


def timeline_of(records, samples=()):
    timeline = count_results(records, samples).timeline.build()
    assert timeline is not None
    return timeline


SPANS = [(2_000, 0.0001), (2_000, 0.01), (6_000, 0.3), (2_000, 1.0), (2_000, 30.0), (2_000, 500.0), (2_000, 100_000.0)]


@pytest.mark.parametrize(("many", "apart_s"), SPANS)
def test_every_result_is_in_the_timeline(many, apart_s):
    """From a tenth of a second to seven years: every result is in the right bin, and there are never many bins."""
    records = batch(many, apart_s=apart_s)
    timeline = timeline_of(records)
    assert timeline.sum(lambda bin_: bin_.answers) == many * 0.95
    assert timeline.sum(lambda bin_: bin_.errors) == many * 0.05
    assert timeline.sum(lambda bin_: bin_.tokens) == sum(record.total_tokens for record in records)
    assert 12 <= sum(len(run.bins) for run in timeline.runs) <= 155
    came = Counter((record.sent_at + record.total_s - record.queued_s) // timeline.width_s for record in records)
    found = {run.first + n: bin_.answers + bin_.errors for run in timeline.runs for n, bin_ in enumerate(run.bins)}
    assert {number: many for number, many in found.items() if many} == came


def test_result_stands_when_it_came():
    """A result comes `latency_s` after its request was sent; the wait for the limits lies before that."""
    timeline = timeline_of([answer(n, sent_at=BEGAN + n, queued_s=500.0, latency_s=7.0) for n in range(100)])
    (run,) = timeline.runs
    assert (timeline.begin, timeline.end, timeline.width_s) == (BEGAN, BEGAN + 106, 5.0)
    came = Counter((BEGAN + n + 7) // 5 for n in range(100))
    assert {run.first + n: bin_.answers for n, bin_ in enumerate(run.bins) if bin_.answers} == came


def test_gap_between_runs_is_seen():
    """Two runs have separate bins, and the page shows the length of the gap."""
    records = batch(2_000, gap_s=40_000)
    timeline = timeline_of(records)
    assert len(timeline.runs) == 2
    assert timeline.runs[0].end < timeline.runs[1].first
    assert 150 < timeline.working_s < 400
    page = page_of(records)
    assert "2 runs" in page
    assert "11 h 06 min between two runs" in Page(page).shown()


def test_request_on_its_way_is_no_gap():
    """Requests that take an hour each, one after the other, are one run."""
    timeline = timeline_of([answer(n, sent_at=BEGAN + n * 3_601, latency_s=3_600.0) for n in range(5)])
    assert len(timeline.runs) == 1
    assert timeline.begin == BEGAN


def test_slow_pace_is_one_run():
    """A fast request about every two minutes does not make a hundred runs; a night in between separates two."""
    rng, at, paced = random.Random(5), BEGAN, []
    for n in range(100):
        at += rng.expovariate(1 / 120) + (40_000 if n == 70 else 0)
        paced.append(answer(n, sent_at=at, latency_s=0.1))
    assert [len(timeline_of(paced[:70]).runs), len(timeline_of(paced).runs)] == [1, 2]


@pytest.mark.parametrize(("silent_s", "runs"), [(55, 1), (200, 1), (300, 2)])
def test_silence_separates_runs_when_it_is_long_for_the_work(silent_s, runs):
    """A long silence is a quarter of the time at work, and at least a minute."""
    records = [answer(n, sent_at=BEGAN + n + (silent_s if n >= 500 else 0), latency_s=0.5) for n in range(1_000)]
    assert len(timeline_of(records).runs) == runs


def test_every_night_is_a_run():
    timeline = timeline_of([answer(n, sent_at=BEGAN + n // 60 * 86_400 + n % 60 * 10) for n in range(600)])
    assert len(timeline.runs) == 10


def test_429s_are_counted_once():
    """Samples give the moments of 429s in this run; for earlier runs records give them approximately."""
    earlier = [answer(n, sent_at=BEGAN + n, retries=(("429", 1.0), ("503", 1.0)), attempts=3) for n in range(10)]
    earlier += [answer(n, sent_at=BEGAN + n, code="429", retries=(("429", 1.0),)) for n in range(5)]
    later = BEGAN + 90_000
    this = [answer(n, sent_at=later + n, retries=(("429", 1.0),), attempts=2) for n in range(10)]
    samples = [sample(later - 0.5 + n, rate_limited=min(n, 17)) for n in range(30)]
    timeline = timeline_of([*earlier, *this], samples)
    assert [sum(bin_.limited for bin_ in run.bins) for run in timeline.runs] == [10 + 2 * 5, 17]


def test_429s_of_one_request_stand_apart():
    """The first came when the request was sent, the next ones after the waits; the last one is the error itself."""
    waits = (("429", 20.0), ("503", 20.0), ("429", 30.0))
    (run,) = timeline_of([answer(code="429", latency_s=100.0, retries=waits)]).runs
    assert [n * 5 for n, bin_ in enumerate(run.bins) if bin_.limited] == [0, 40, 100]


def test_429s_begin_anew_with_another_client():
    samples = [sample(BEGAN + n, rate_limited=many) for n, many in enumerate((0, 4, 9, 0, 1))]
    assert timeline_of([], samples).sum(lambda bin_: bin_.limited) == 10


def test_pauses_last_from_sample_to_sample():
    """Ten seconds of sixty. If the machine slept, the pause does not last an hour."""
    samples = [sample(BEGAN + n, paused=20 <= n < 30) for n in range(61)]
    timeline = timeline_of([], samples)
    assert timeline.sum(lambda bin_: bin_.paused_s) == pytest.approx(10)
    assert timeline.sum(lambda bin_: bin_.sampled_s) == pytest.approx(60)
    assert "held back for 10.0 s, 16.7 %" in Page(page_of([], samples)).shown()
    asleep = timeline_of([], [sample(BEGAN, paused=True), sample(BEGAN + 3_600)])
    assert asleep.sum(lambda bin_: bin_.paused_s) == pytest.approx(5)


def test_samples_fill_bins_that_are_shorter_than_they():
    """A run of two seconds has bins of a tenth of a second; a sample holds until the next one."""
    timeline = timeline_of(
        [answer(sent_at=BEGAN, latency_s=1.9)],
        [sample(BEGAN, in_flight=4), sample(BEGAN + 1, in_flight=6), sample(BEGAN + 2)],
    )
    levels = [bin_.in_flight_s / bin_.sampled_s for run in timeline.runs for bin_ in run.bins if bin_.sampled_s]
    assert {round(level, 3) for level in levels} == {4, 6}
    assert len(levels) > 10


def test_run_in_which_nothing_happened_is_not_shown():
    """A batch that was complete and is run again a day later has one run."""
    again = [sample(BEGAN + 90_000 + n, in_flight=0, queued=0) for n in range(3)]
    records = [answer(n, sent_at=BEGAN + n) for n in range(60)]
    assert page_of(records, again) == page_of(records)
    assert page_of([], again) == page_of([])


def test_samples_in_any_order():
    samples = [sample(BEGAN + n, rate_limited=n) for n in range(20)]
    assert page_of([], samples[::-1]) == page_of([], samples)


def test_no_moment_no_timeline():
    assert TimelineBuilder([]).build() is None
    assert "does not say when" in page_of([Record("a")])
