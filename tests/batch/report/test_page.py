"""The batch's report: the page is HTML that loads nothing, and what it says is what a simple count says."""

import json
import math
import random
import re
import sys
import tracemalloc
from collections import Counter
from html.parser import HTMLParser

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from together_async.batch.record import Record, decode_line
from together_async.batch.report import Sample, render
from together_async.batch.report.charts import compact, count, duration, share, steps
from together_async.batch.report.statistics import MOST_ID, MOST_MESSAGE, Distribution, Tally, shortened, tally
from together_async.batch.report.style import STYLE
from together_async.batch.report.timeline import Calendar

BEGAN = 1_795_447_200.0
"""15:20 on 23 November 2026, UTC."""
VOID = {"meta", "br"}


class Page(HTMLParser):
    """A page, read strictly: every element is closed where it belongs."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open, "only SVG has elements that close themselves"
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def said(self) -> str:
        """All texts that are shown."""
        return " ".join(data for tag, data in self.texts if tag != "style").replace("\u00a0", " ")


def page_of(records=(), samples=(), facts=None, title="a batch") -> str:
    return render(iter(records), samples, facts or {}, title=title)


def figures(page: str) -> dict[str, str]:
    """Names and values of the page, as text."""
    pairs = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page)
    return {name: re.sub(r"<.*?>", "", value).replace("\u00a0", " ") for name, value in pairs}


def rows(page: str, caption: str) -> list[list[str]]:
    """The cells of a table, as text."""
    found = re.search(rf"<caption>{caption}</caption>.*?<tbody>(.*?)</tbody>", page, re.DOTALL)
    assert found is not None
    lines = re.findall(r"<tr.*?>(.*?)</tr>", found[1])
    cells = [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", line) for line in lines]
    return [[re.sub(r"<.*?>", "", cell).replace("\u00a0", " ") for cell in line] for line in cells]


def answer(number: int = 0, *, sent_at: float | None = BEGAN, took: float = 1.0, **more) -> Record:
    queued = more.pop("queued_s", 0.0)
    return Record(f"request-{number}", sent_at=sent_at, queued_s=queued, total_s=(queued or 0.0) + took, **more)


def sample(at: float, *, paused: bool = False, rate_limited: int = 0, in_flight: int = 8, queued: int = 2) -> Sample:
    return Sample(at, 0, 0, in_flight, queued, paused, rate_limited)


def batch(many: int, seed: int = 1, *, apart_s: float = 0.1, gap_s: float = 0.0) -> list[Record]:
    """Results like real ones: long-tailed times, a few errors, a few retries, a gap in the middle."""
    chance, at, made = random.Random(seed), BEGAN, []
    for number in range(many):
        at += chance.expovariate(1 / apart_s) + (gap_s if number == many // 2 else 0.0)
        queued = chance.lognormvariate(-3, 1.5)
        first = queued + chance.lognormvariate(-1, 0.5)
        retries = (("429", 1.5),) * chance.choice((0, 0, 0, 0, 1, 2))
        one = Record(
            f"request-{number}",
            prompt_tokens=chance.randrange(1, 900),
            completion_tokens=chance.randrange(1, 300),
            sent_at=at,
            queued_s=queued,
            first_token_s=first,
            total_s=first + chance.lognormvariate(0, 1),
            attempts=1 + len(retries),
            retries=retries,
        )
        failed = {"prompt_tokens": 0, "completion_tokens": 0, "first_token_s": None, "message": f"error of {number}"}
        made.append(
            attrs.evolve(one, code=chance.choice(("400", "timeout_idle")), **failed) if number % 20 == 7 else one
        )
    return made


HOSTILE = "</title></td><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;"
OVERRIDES = "\u202egnp.exe\u2066\x00\x1b[31m\x85\u2028\ufeff\ud800\U000e0041"

CASES: dict[str, tuple[list[Record], list[Sample]]] = {
    "nothing": ([], []),
    "samples alone": ([], [sample(BEGAN + n, paused=n > 4, rate_limited=n) for n in range(9)]),
    "one": ([answer()], []),
    "one that took no time": ([answer(took=0.0)], []),
    "errors alone": ([answer(n, code="401", message="no") for n in range(50)], []),
    "no times": ([Record(f"b{n}", prompt_tokens=1) for n in range(20)], []),
    "no first token": ([answer(n, took=1 + n) for n in range(20)], []),
    "all in one second": ([answer(n, sent_at=BEGAN + n / 1e3, took=0.05) for n in range(400)], []),
    "three days": (
        [answer(n, sent_at=BEGAN + n * 259.2) for n in range(1_000)],
        [sample(BEGAN + n) for n in range(99)],
    ),
    "two runs": (batch(2_000, gap_s=40_000), []),
    "texts of others": (
        [
            Record(HOSTILE, code=HOSTILE, message=HOSTILE, retries=((HOSTILE, 1.0),)),
            Record(OVERRIDES, code=OVERRIDES, message=OVERRIDES, total_s=3.0),
            answer(1, retries=((OVERRIDES, 1.0),)),
            Record("", code=""),
            Record(" \n"),
        ],
        [],
    ),
    "numbers of nowhere": (
        [
            Record("a", sent_at=-5.0, queued_s=-1.0, total_s=math.nan, prompt_tokens=10**400, attempts=10**5_000),
            Record("b", sent_at=1e300, queued_s=1e308, total_s=math.inf, retries=(("429", math.inf),)),
            Record("c", sent_at=0.0, queued_s=5.0, total_s=1.0, first_token_s=2.0, completion_tokens=-7, attempts=-3),
            Record("d", sent_at=2.4e11, queued_s=0.0, total_s=9e8),
        ],
        [],
    ),
}


# ------------------------------------------------------------------------------------------------------------ the page


@pytest.mark.parametrize("case", CASES)
def test_page_is_whole_and_loads_nothing(case):
    """Every element is closed, nothing runs, and there is no address in it, whatever the file holds."""
    records, samples = CASES[case]
    page = page_of(records, samples, {"input": HOSTILE, HOSTILE: OVERRIDES}, title=HOSTILE + OVERRIDES)
    read = Page(page)
    assert page.startswith("<!DOCTYPE html>\n")
    assert (read.tags["html"], read.tags["title"] >= 1, read.tags["h1"], read.tags["main"]) == (1, True, 1, 1)
    assert {
        tag for tag in read.tags if tag in {"script", "link", "img", "iframe", "object", "use", "a", "base"}
    } == set()
    names = {name for _, name, _ in read.attributes}
    assert not {name for name in names if name.startswith("on") or name in {"src", "href", "xlink:href", "action"}}
    assert not re.search(r"https?:|url\(|@import|//\w", page)
    policy = next(value for tag, name, value in read.attributes if (tag, name) == ("meta", "content"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


@pytest.mark.parametrize("case", CASES)
def test_no_text_is_shown_as_something_else(case):
    """There are no controls, no overrides of the direction and no halves of characters in the page."""
    records, samples = CASES[case]
    page = page_of(records, samples, {"a": OVERRIDES}, title=OVERRIDES)
    page.encode()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]", page)
    assert not re.search(r"\b(?:inf|nan|None)\b", page)


def test_pictures_have_names_and_tables_have_heads():
    """Who doesn't see the charts is told what they are, and can read their figures in a table."""
    page = page_of(batch(300), [sample(BEGAN + n) for n in range(30)])
    read = Page(page)
    pictures = len(re.findall(r"<svg ", page))
    named = len(re.findall(r'<svg [^>]*(?:role="img" aria-label="[^"]+"|aria-hidden="true")', page))
    assert pictures == named > 10
    assert read.tags["table"] == read.tags["caption"] == read.tags["thead"] == 4
    assert page.count('scope="col"') == page.count("<th scope") - page.count('scope="row"') > 15
    answers = [int(row[1]) for row in rows(page, "Each .*?")]
    assert sum(answers) == 285


def test_page_says_facts_in_their_order():
    page = page_of([answer()], facts={"input": "in.jsonl", "cost": "$1.20", "model": "m & n"})
    assert list(figures(page).items())[:3] == [("input", "in.jsonl"), ("cost", "$1.20"), ("model", "m &amp; n")]


def test_long_texts_are_shortened():
    """A line of 10 MB does not make a page of 10 MB; begin and end of its texts are shown."""
    long = "a" * 5_000_000 + "z" * 5_000_000
    page = page_of([Record(long, code=long, message=long, total_s=1.0, retries=((long, 1.0),))], facts={long: long})
    assert len(page) < 25_000
    assert re.search("a{40,}…z{10,}", page)
    assert len(shortened(long, MOST_ID)) == MOST_ID
    assert shortened("x" * MOST_MESSAGE, MOST_MESSAGE) == "x" * MOST_MESSAGE


def test_no_answer_is_in_the_page():
    """A line's own text goes nowhere: what a record holds is all there is."""
    message = {"index": 0, "message": {"role": "assistant", "content": "the-answer-itself"}}
    body = {"model": "m", "choices": [message], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}
    line = json.dumps({"custom_id": "a", "response": {"status_code": 200, "body": body}}).encode()
    assert "the-answer-itself" not in page_of([decode_line(line)])


def test_same_results_same_page():
    records, samples = batch(500, gap_s=9_000), [sample(BEGAN + n, paused=n % 7 == 0) for n in range(60)]
    facts = {"a": "b"}
    assert page_of(records, samples, facts) == page_of(list(records), tuple(samples), facts)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_numbers_make_a_page(data):
    """Whatever a damaged file claims, there is a page."""
    number = st.floats() | st.floats(0, 1e4) | st.floats(BEGAN, BEGAN + 1e6) | st.none()
    waits = st.lists(st.tuples(st.sampled_from(("429", "503")), st.floats()), max_size=3).map(tuple)
    one = st.builds(
        Record,
        custom_id=st.text(max_size=5),
        code=st.none() | st.text(max_size=3) | st.just("429"),
        message=st.text(max_size=9),
        prompt_tokens=st.integers(),
        completion_tokens=st.integers(),
        sent_at=number,
        queued_s=number,
        first_token_s=number,
        total_s=number,
        attempts=st.integers(),
        retries=waits,
    )
    Page(page_of(data.draw(st.lists(one, max_size=8)), title=data.draw(st.text(max_size=9)) + "."))


# -------------------------------------------------------------------------------------------------------------- counts


def test_counts_are_those_of_a_simple_count():
    """Results, answers, errors, retried, tokens: as a list would say it."""
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
    """The night between two runs counts for nothing: 120 results in two minutes are 60 a minute."""
    records = [answer(n, sent_at=BEGAN + n + (50_000 if n >= 60 else 0), prompt_tokens=10) for n in range(120)]
    shown = figures(page_of(records))
    assert (shown["At work"], shown["Results per minute"], shown["Tokens per minute"]) == ("2 min 00 s", "60", "600")


def nearest_rank(values: list[float], percent: float) -> float:
    return sorted(values)[max(1, math.ceil(len(values) * percent / 100)) - 1]


@pytest.mark.parametrize("many", [1, 2, 3, 10, 99, 100, 5_000])
@pytest.mark.parametrize("percent", [0, 1, 50, 90, 99, 100])
def test_percentiles_are_half_a_percent_off_at_most(many, percent):
    """Also of two or three values, where a percentile is one of them."""
    chance = random.Random(many)
    values = [chance.lognormvariate(0, 2) + 0.001 for _ in range(many)]
    taken = Distribution()
    for value in values:
        taken.add(value)
    assert taken.percentile(percent) == pytest.approx(nearest_rank(values, percent), rel=0.005)
    assert (taken.count, taken.most_s) == (many, max(values))
    assert taken.mean_s == pytest.approx(sum(values) / many)


def test_durations_are_counted_from_the_first_attempt_on():
    """The wait for the limits is no part of latency and first token; errors have no part in either."""
    records = [answer(n, took=2.0, queued_s=float(n), first_token_s=n + 0.5) for n in range(11)]
    counted = tally([*records, answer(took=600.0, code="500")], [])
    assert (counted.latency.count, counted.latency.most_s) == (11, pytest.approx(2.0))
    assert counted.first_token.percentile(50) == pytest.approx(0.5)
    assert (counted.waited.count, counted.waited.percentile(100)) == (12, 10.0)


def test_errors_by_kind():
    """The most frequent kind comes first, with share, time, the first message and five custom_ids."""
    records = [answer(n, code="429", message=f"told {n}", took=3.0) for n in range(30)]
    records += [answer(n, code="incomplete_stream", took=5.0) for n in range(100, 110)]
    records += [answer(n) for n in range(200, 360)]
    shown = rows(page_of(records), "Errors by kind")
    ids = ", ".join(f"request-{n}" for n in range(5))
    assert shown[0] == ["429 Too Many Requests", "30", "15.0 %", "3.00 s"]
    assert shown[1] == [f"told 0{ids} and 25 more"]
    assert shown[2] == ["incomplete_stream", "10", "5.0 %", "5.00 s"]
    assert shown[3][0].endswith("request-104 and 5 more")


def test_kinds_are_bounded():
    """A thousand kinds of errors are fifty and the others; none is lost."""
    counted = tally([Record(f"r{n}", code=f"kind-{n}", retries=((f"why-{n}", 1.0),)) for n in range(1_000)], [])
    assert [len(counted.kinds()), len(counted.again())] == [51, 51]
    assert (counted.kinds()[-1].code, counted.kinds()[-1].count) == ("other kinds", 950)
    assert sum(again.count for again in counted.again()) == 1_000


def test_retries_by_reason():
    records = [answer(n, attempts=3, retries=(("429", 1.0), ("429", 2.0))) for n in range(10)]
    records += [answer(n, attempts=2, retries=(("connection lost", 0.5),)) for n in range(4)]
    shown = rows(page_of(records), "Retries by reason")
    assert shown == [["429", "20", "30.0 s"], ["connection lost", "4", "2.00 s"]]


def test_slowest_requests_are_the_slowest():
    """The same twenty as by sorting all; of those that took equally long the first ones."""
    records = batch(3_000)
    expected = sorted(records, key=lambda one: one.total_s - one.queued_s, reverse=True)[:20]
    assert [one.custom_id for one in tally(records, []).slowest()] == [one.custom_id for one in expected]
    slowest = rows(
        page_of([answer(1, took=3.0, queued_s=7.0, first_token_s=8.0, attempts=2), answer(2)]), "Slowest .*?"
    )
    assert slowest[0] == ["request-1", "3.00 s", "", "1.00 s", "7.00 s", "2", "answer", "23 Nov&nbsp;15:20:00"]
    equal = tally([answer(n) for n in range(100)], []).slowest()
    assert [one.custom_id for one in equal] == [f"request-{n}" for n in range(20)]


def test_results_are_walked_once_and_not_kept():
    """Memory does not grow with their number."""

    def made(many):
        for n in range(many):
            code = "500" if n % 3 == 0 else None
            yield answer(n, sent_at=BEGAN + n, took=n % 100 + 1.0, code=code, message="m" * 3_000)

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


# ----------------------------------------------------------------------------------------------------------- over time


def course_of(records, samples=()):
    counted = Tally(samples)
    for record in records:
        counted.add(record)
    course = counted.calendar.course()
    assert course is not None
    return course


SPANS = [(2_000, 0.0001), (2_000, 0.01), (6_000, 0.3), (2_000, 1.0), (2_000, 30.0), (2_000, 500.0), (2_000, 100_000.0)]


@pytest.mark.parametrize(("many", "apart_s"), SPANS)
def test_every_result_is_in_the_course(many, apart_s):
    """From a tenth of a second to seven years: none is lost, each is where it came, and there are never many bins."""
    records = batch(many, apart_s=apart_s)
    course = course_of(records)
    assert course.sum(lambda one: one.answers) == many * 0.95
    assert course.sum(lambda one: one.errors) == many * 0.05
    assert course.sum(lambda one: one.tokens) == sum(record.total_tokens for record in records)
    assert 12 <= sum(len(run.bins) for run in course.runs) <= 155
    came = Counter((one.sent_at + one.total_s - one.queued_s) // course.width_s for one in records)
    found = {run.first + n: one.answers + one.errors for run in course.runs for n, one in enumerate(run.bins)}
    assert {number: many for number, many in found.items() if many} == came


def test_result_stands_when_it_came():
    """That is when it was sent, and the time from then to its end; what it waited before is over by then."""
    course = course_of([answer(n, sent_at=BEGAN + n, queued_s=500.0, took=7.0) for n in range(100)])
    (run,) = course.runs
    assert (course.begin, course.end, course.width_s) == (BEGAN, BEGAN + 106, 5.0)
    came = Counter((BEGAN + n + 7) // 5 for n in range(100))
    assert {run.first + n: one.answers for n, one in enumerate(run.bins) if one.answers} == came


def test_gap_between_runs_is_seen():
    """Two runs are two, each with its own bins, and the page says how long the gap is."""
    records = batch(2_000, gap_s=40_000)
    course = course_of(records)
    assert len(course.runs) == 2
    assert course.runs[0].end < course.runs[1].first
    assert 150 < course.working_s < 400
    page = page_of(records)
    assert "2 runs" in page
    assert "11 h 06 min between two runs" in Page(page).said()


def test_request_on_its_way_is_no_gap():
    """One after the other, each an hour long: that is one run."""
    course = course_of([answer(n, sent_at=BEGAN + n * 3_601, took=3_600.0) for n in range(5)])
    assert len(course.runs) == 1
    assert course.begin == BEGAN


def test_slow_pace_is_one_run():
    """A request about every two minutes, each done at once, makes no hundred runs; the night among them parts two."""
    chance, at, paced = random.Random(5), BEGAN, []
    for n in range(100):
        at += chance.expovariate(1 / 120) + (40_000 if n == 70 else 0)
        paced.append(answer(n, sent_at=at, took=0.1))
    assert [len(course_of(paced[:70]).runs), len(course_of(paced).runs)] == [1, 2]


@pytest.mark.parametrize(("silent_s", "runs"), [(55, 1), (200, 1), (300, 2)])
def test_silence_parts_runs_when_it_is_long_beside_the_work(silent_s, runs):
    """A quarter of the time at work, and a minute at least."""
    records = [answer(n, sent_at=BEGAN + n + (silent_s if n >= 500 else 0), took=0.5) for n in range(1_000)]
    assert len(course_of(records).runs) == runs


def test_every_night_is_a_run():
    course = course_of([answer(n, sent_at=BEGAN + n // 60 * 86_400 + n % 60 * 10) for n in range(600)])
    assert len(course.runs) == 10


def test_429s_are_counted_once():
    """While there are samples they tell when a 429 came; of earlier runs the records do, as near as they can."""
    earlier = [answer(n, sent_at=BEGAN + n, retries=(("429", 1.0), ("503", 1.0)), attempts=3) for n in range(10)]
    earlier += [answer(n, sent_at=BEGAN + n, code="429", retries=(("429", 1.0),)) for n in range(5)]
    later = BEGAN + 90_000
    this = [answer(n, sent_at=later + n, retries=(("429", 1.0),), attempts=2) for n in range(10)]
    samples = [sample(later - 0.5 + n, rate_limited=min(n, 17)) for n in range(30)]
    course = course_of([*earlier, *this], samples)
    assert [sum(one.limited for one in run.bins) for run in course.runs] == [10 + 2 * 5, 17]


def test_429s_of_one_request_stand_apart():
    """The first came when it was sent, the next ones after the waits between; the last one is the error itself."""
    waits = (("429", 20.0), ("503", 20.0), ("429", 30.0))
    (run,) = course_of([answer(code="429", took=100.0, retries=waits)]).runs
    assert [n * 5 for n, one in enumerate(run.bins) if one.limited] == [0, 40, 100]


def test_429s_begin_anew_with_another_client():
    samples = [sample(BEGAN + n, rate_limited=many) for n, many in enumerate((0, 4, 9, 0, 1))]
    assert course_of([], samples).sum(lambda one: one.limited) == 10


def test_pauses_last_from_sample_to_sample():
    """Ten seconds of sixty; a machine that slept does not make a pause of an hour."""
    samples = [sample(BEGAN + n, paused=20 <= n < 30) for n in range(61)]
    course = course_of([], samples)
    assert course.sum(lambda one: one.paused_s) == pytest.approx(10)
    assert course.sum(lambda one: one.sampled_s) == pytest.approx(60)
    assert "held back for 10.0 s, 16.7 %" in Page(page_of([], samples)).said()
    asleep = course_of([], [sample(BEGAN, paused=True), sample(BEGAN + 3_600)])
    assert asleep.sum(lambda one: one.paused_s) == pytest.approx(5)


def test_samples_fill_bins_that_are_shorter_than_they():
    """A run of two seconds has bins of a tenth; a sample holds until the next one."""
    course = course_of(
        [answer(sent_at=BEGAN, took=1.9)],
        [sample(BEGAN, in_flight=4), sample(BEGAN + 1, in_flight=6), sample(BEGAN + 2)],
    )
    levels = [one.in_flight_s / one.sampled_s for run in course.runs for one in run.bins if one.sampled_s]
    assert {round(level, 3) for level in levels} == {4, 6}
    assert len(levels) > 10


def test_run_in_which_nothing_happened_is_none():
    """A batch that was all done before, and is looked at again a day later, had one run."""
    again = [sample(BEGAN + 90_000 + n, in_flight=0, queued=0) for n in range(3)]
    records = [answer(n, sent_at=BEGAN + n) for n in range(60)]
    assert page_of(records, again) == page_of(records)
    assert page_of([], again) == page_of([])


def test_samples_in_any_order():
    samples = [sample(BEGAN + n, rate_limited=n) for n in range(20)]
    assert page_of([], samples[::-1]) == page_of([], samples)


def pointed(page: str) -> list[str]:
    """What the charts say to a pointer."""
    return [said.replace("\u00a0", " ") for said in re.findall(r"<rect[^>]*><title>(.*?)</title>", page)]


def test_charts_say_their_values():
    """Rates are per minute; what is under way is the mean of its time."""
    records = [answer(n, sent_at=BEGAN + n // 10, took=0.0, prompt_tokens=3) for n in range(1_200)]
    records += [answer(n, sent_at=BEGAN + n, took=0.0, code="500") for n in range(120)]
    samples = [sample(BEGAN + n, in_flight=n % 2 * 8, queued=3, paused=n == 60) for n in range(121)]
    said = pointed(page_of(records, samples))
    assert said[0] == "23 Nov, 15:20:00 to 15:20:02: answers 600, errors 60"
    assert "23 Nov, 15:20:00 to 15:20:02: prompt and completion 1,800" in said
    assert "23 Nov, 15:20:00 to 15:20:02: in flight 4, waiting for the limits 3" in said


def test_day_is_named_where_it_begins():
    """On the time axis: under the first label, and under the first one after midnight."""
    page = page_of([answer(n, sent_at=BEGAN + n * 60) for n in range(1_200)])
    axis = re.search(r'<div class="below" aria-hidden="true">(.*?)</div>', page)[1].replace("\u00a0", " ")
    labels = [re.sub("<br>", " ", label) for label in re.findall(r"<span.*?>(.*?)</span>", axis)]
    assert sorted(labels) == ["00:00 24 Nov", "03:00", "06:00", "09:00", "15:00 23 Nov", "18:00", "21:00"]


def test_bars_stand_upon_each_other():
    """Errors begin where answers end: ten of each in a tenth of a second, on an axis up to 15,000 a minute."""
    page = page_of([answer(n, took=0.0, code="500" if n % 2 else None) for n in range(20)])
    tops = [float(top) for kind in ("answers", "errors") for top in re.findall(rf'"{kind}" d="M0 ([\d.]+)V', page)]
    assert tops[:2] == [100.0, 100 - 100 * 6_000 / 15_000]


def test_histogram_shows_every_request():
    said = pointed(page_of([answer(n, sent_at=None, took=1 + n % 50, queued_s=None) for n in range(700)]))
    assert sum(int(re.search(r": (\d+) \(", one)[1]) for one in said) == 700


def test_no_moment_no_course():
    assert Calendar([]).course() is None
    assert "does not say when" in page_of([Record("a")])


# -------------------------------------------------------------------------------------------------------- how it looks


@pytest.mark.parametrize(
    ("seconds", "shown", "brief"),
    [
        (0, "0 ms", "0 ms"),
        (0.00234, "2.3 ms", "2.34 ms"),
        (0.0481, "48.1 ms", "48.1 ms"),
        (0.5, "500 ms", "500 ms"),
        (0.9996, "1.00 s", "0.9996 s"),
        (2, "2.00 s", "2 s"),
        (59.99, "60.0 s", "59.99 s"),
        (99.96, "1 min 40 s", "1 min 40 s"),
        (120, "2 min 00 s", "2 min"),
        (3_599.4, "59 min 59 s", "59 min 59 s"),
        (3_599.6, "1 h 00 min", "1 h"),
        (86_369, "23 h 59 min", "23 h 59 min"),
        (86_371, "1 d 00 h", "1 d"),
        (1e9, "11,574 d 02 h", "11,574 d 02 h"),
        (None, "\u2013", "\u2013"),
    ],
)
def test_durations_are_written_for_people(seconds, shown, brief):
    assert duration(seconds).replace("\u00a0", " ") == shown
    assert duration(seconds, brief=True).replace("\u00a0", " ") == brief


def test_only_all_is_all():
    """One error in a million is not 0 %, and the other results are not 100 %."""
    written = [share(part, whole).replace("\u00a0", "") for part, whole in ((0, 9), (9, 9), (1, 3), (1, 10**6))]
    assert written == ["0%", "100%", "33.3%", "0.0001%"]
    assert share(10**6 - 1, 10**6) == "99.9999\u00a0%"
    assert share(0, 0) == "0\u00a0%"


def test_numbers_are_written_for_people():
    assert [count(number) for number in (0, 7, 0.254, 99.94, 1_234_567.8)] == ["0", "7", "0.254", "99.9", "1,234,568"]
    assert [compact(number) for number in (0.5, 9_999, 25_000, 1.5e6, 2e9)] == ["0.5", "9,999", "25k", "1.5M", "2G"]


@pytest.mark.parametrize("top", [0, 0.003, 1, 3, 7, 9.99, 10, 64, 1_001, 3e9])
@pytest.mark.parametrize("whole", [True, False])
def test_axes_reach_their_highest_value_in_round_steps(top, whole):
    ticks = steps(top, whole=whole)
    assert ticks[0] == 0
    assert ticks[-1] >= top
    assert 2 <= len(ticks) <= 6
    assert not whole or all(tick == int(tick) for tick in ticks)


def luminance(colour: str) -> float:
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(part * weight for part, weight in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))


def test_colours_are_told_apart_in_light_and_dark():
    """By WCAG 2.2: text stands out 4.5 to 1 from what is behind it (1.4.3), what is drawn 3 to 1 (1.4.11)."""
    light, dark = STYLE.split("@media screen and (prefers-color-scheme: dark)")
    for style in (light, dark):
        colour = {name: luminance(value) for name, value in re.findall(r"--(\w+): (#[0-9a-f]{6});", style)}
        for names, least in ((("text", "quiet"), 4.5), (("answers", "errors", "limited", "queued"), 3.0)):
            for name in names:
                for behind in ("page", "card") if least > 4 else ("card",):
                    low, high = sorted((colour[name], colour[behind]))
                    assert (high + 0.05) / (low + 0.05) >= least, (name, behind)
