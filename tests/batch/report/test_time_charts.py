"""What the charts over time show."""

import re

from support.report import BEGAN, answer, page_of, sample, tooltips


def test_charts_show_their_values():
    """Rates are per minute; requests in flight are a mean over time."""
    records = [answer(n, sent_at=BEGAN + n // 10, latency_s=0.0, prompt_tokens=3) for n in range(1_200)]
    records += [answer(n, sent_at=BEGAN + n, latency_s=0.0, code="500") for n in range(120)]
    samples = [sample(BEGAN + n, in_flight=n % 2 * 8, queued=3, paused=n == 60) for n in range(121)]
    contents = tooltips(page_of(records, samples))
    assert contents[0] == "23 Nov, 15:20:00 to 15:20:02: answers 600, errors 60"
    assert "23 Nov, 15:20:00 to 15:20:02: prompt and completion 1,800" in contents
    assert "23 Nov, 15:20:00 to 15:20:02: in flight 4, waiting for the limits 3" in contents


def test_day_is_named_where_it_begins():
    """On the time axis: under the first label, and under the first one after midnight."""
    page = page_of([answer(n, sent_at=BEGAN + n * 60) for n in range(1_200)])
    axis = re.search(r'<div class="below" aria-hidden="true">(.*?)</div>', page)[1].replace("\u00a0", " ")
    labels = [re.sub("<br>", " ", label) for label in re.findall(r"<span.*?>(.*?)</span>", axis)]
    assert sorted(labels) == ["00:00 24 Nov", "03:00", "06:00", "09:00", "15:00 23 Nov", "18:00", "21:00"]


def test_bars_are_stacked():
    """Errors are stacked on answers: ten of each in a tenth of a second, on an axis up to 15,000 a minute."""
    page = page_of([answer(n, latency_s=0.0, code="500" if n % 2 else None) for n in range(20)])
    tops = [float(top) for kind in ("answers", "errors") for top in re.findall(rf'"{kind}" d="M0 ([\d.]+)V', page)]
    assert tops[:2] == [100.0, 100 - 100 * 6_000 / 15_000]
