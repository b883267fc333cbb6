"""Records and samples for tests of the report, and its page, read again."""

import random
import re
from collections import Counter
from html.parser import HTMLParser

import attrs

from together_async.batch.record import Record
from together_async.batch.report import Sample, render

BEGAN = 1_795_447_200.0
"""15:20 on 23 November 2026, UTC."""
VOID = {"meta", "br"}


class Page(HTMLParser):
    """A page, parsed strictly: every element is closed where it belongs."""

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

    def shown(self) -> str:
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


def answer(number: int = 0, *, sent_at: float | None = BEGAN, latency_s: float = 1.0, **more) -> Record:
    queued = more.pop("queued_s", 0.0)
    return Record(f"request-{number}", sent_at=sent_at, queued_s=queued, total_s=(queued or 0.0) + latency_s, **more)


def sample(at: float, *, paused: bool = False, rate_limited: int = 0, in_flight: int = 8, queued: int = 2) -> Sample:
    return Sample(at, 0, 0, in_flight, queued, paused, rate_limited)


def batch(many: int, seed: int = 1, *, apart_s: float = 0.1, gap_s: float = 0.0) -> list[Record]:
    """Results like real ones: long-tailed times, a few errors, a few retries, a gap in the middle."""
    rng, at, made = random.Random(seed), BEGAN, []
    for number in range(many):
        at += rng.expovariate(1 / apart_s) + (gap_s if number == many // 2 else 0.0)
        queued = rng.lognormvariate(-3, 1.5)
        first = queued + rng.lognormvariate(-1, 0.5)
        retries = (("429", 1.5),) * rng.choice((0, 0, 0, 0, 1, 2))
        record = Record(
            f"request-{number}",
            prompt_tokens=rng.randrange(1, 900),
            completion_tokens=rng.randrange(1, 300),
            sent_at=at,
            queued_s=queued,
            first_token_s=first,
            total_s=first + rng.lognormvariate(0, 1),
            attempts=1 + len(retries),
            retries=retries,
        )
        failed = {"prompt_tokens": 0, "completion_tokens": 0, "first_token_s": None, "message": f"error of {number}"}
        made.append(
            attrs.evolve(record, code=rng.choice(("400", "timeout_idle")), **failed) if number % 20 == 7 else record
        )
    return made


def tooltips(page: str) -> list[str]:
    """The texts of all tooltips."""
    return [content.replace("\u00a0", " ") for content in re.findall(r"<rect[^>]*><title>(.*?)</title>", page)]
