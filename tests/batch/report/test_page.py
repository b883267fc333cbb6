"""The page of the report: HTML that loads nothing and shows foreign texts as they are."""

import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.report import BEGAN, Page, answer, batch, figures, page_of, rows, sample
from together_async.batch.record import Record, decode_line
from together_async.batch.report import Sample
from together_async.batch.report.statistics import (
    MOST_ID,
    MOST_MESSAGE,
    shortened,
)

HOSTILE = "</title></td><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;"
OVERRIDES = "\u202egnp.exe\u2066\x00\x1b[31m\x85\u2028\ufeff\ud800\U000e0041"

CASES: dict[str, tuple[list[Record], list[Sample]]] = {
    "nothing": ([], []),
    "samples alone": ([], [sample(BEGAN + n, paused=n > 4, rate_limited=n) for n in range(9)]),
    "one": ([answer()], []),
    "one that took no time": ([answer(latency_s=0.0)], []),
    "errors alone": ([answer(n, code="401", message="no") for n in range(50)], []),
    "no times": ([Record(f"b{n}", prompt_tokens=1) for n in range(20)], []),
    "no first token": ([answer(n, latency_s=1 + n) for n in range(20)], []),
    "all in one second": ([answer(n, sent_at=BEGAN + n / 1e3, latency_s=0.05) for n in range(400)], []),
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
    """The page has no control characters, no direction overrides and no lone surrogates."""
    records, samples = CASES[case]
    page = page_of(records, samples, {"a": OVERRIDES}, title=OVERRIDES)
    page.encode()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]", page)
    assert not re.search(r"\b(?:inf|nan|None)\b", page)


def test_pictures_have_names_and_tables_have_heads():
    """Screen readers name the charts, and their values are in a table."""
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
    """A line of 10 MB does not make a page of 10 MB; only the beginning and the end of its texts are shown."""
    long = "a" * 5_000_000 + "z" * 5_000_000
    page = page_of([Record(long, code=long, message=long, total_s=1.0, retries=((long, 1.0),))], facts={long: long})
    assert len(page) < 25_000
    assert re.search("a{40,}…z{10,}", page)
    assert len(shortened(long, MOST_ID)) == MOST_ID
    assert shortened("x" * MOST_MESSAGE, MOST_MESSAGE) == "x" * MOST_MESSAGE


def test_no_answer_is_in_the_page():
    """The text of a completion is not in its record, so it can't reach the page."""
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
    """Any values of a damaged file make a well-formed page."""
    number = st.floats() | st.floats(0, 1e4) | st.floats(BEGAN, BEGAN + 1e6) | st.none()
    waits = st.lists(st.tuples(st.sampled_from(("429", "503")), st.floats()), max_size=3).map(tuple)
    record = st.builds(
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
    Page(page_of(data.draw(st.lists(record, max_size=8)), title=data.draw(st.text(max_size=9)) + "."))
