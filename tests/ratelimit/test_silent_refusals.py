"""What 429s that report no limit are taken for."""

from __future__ import annotations

import pytest

from together_async.ratelimit.silent_refusals import COUNTED_S, RECENT_OF, STRAY_OF, Cause, Judgement, SilentRefusals


class Sent:
    """Requests that were sent, and the refusals of some of them."""

    def __init__(self) -> None:
        self.refusals = SilentRefusals()
        self.times: list[float] = []

    def send(self, count: int, start: float = 0.0, gap: float = 0.0) -> None:
        for number in range(count):
            self.times.append(start + number * gap)
            if self.times[-1] >= self.refusals.next_mark_at:
                self.refusals.mark(len(self.times), self.times[-1])

    def refuse(self, number: int, now: float, *, known: bool = False, finding: bool = False) -> Judgement:
        return self.refusals.judge(number, self.times[number - 1], len(self.times), now, known=known, finding=finding)


def test_first_of_many_is_a_stray_until_half_of_them_are_refused() -> None:
    """Each further refusal of the same event is judged together with those before it."""
    sent = Sent()
    sent.send(20)
    causes = [sent.refuse(number, 0.05).cause for number in range(11, 21)]
    assert causes == [Cause.STRAY] * 4 + [Cause.LIMIT] * 6
    assert "10" in repr(sent.refusals)


def test_few_requests_tell_no_stray_from_a_limit() -> None:
    sent = Sent()
    sent.send(STRAY_OF - 1)
    assert sent.refuse(1, 0.05).cause is Cause.LIMIT


def test_what_was_accepted_is_counted_over_a_second_at_least() -> None:
    """At the start a service has capacity saved up; later it is what the last seconds show."""
    sent = Sent()
    sent.send(20)
    for number in range(6, 20):
        sent.refuse(number, 0.05)
    first = sent.refuse(20, 0.05)
    assert (first.cause, first.again, first.accepted) == (Cause.LIMIT, True, pytest.approx(5.5))
    sent.send(200, start=10.0, gap=0.1)
    later = sent.refuse(220, 29.95)
    assert not later.again
    assert later.since_last_s == pytest.approx(29.9)
    assert later.accepted == pytest.approx(10, rel=0.05)
    assert COUNTED_S == 10


def test_nothing_accepted() -> None:
    sent = Sent()
    sent.send(1)
    assert sent.refuse(1, 0.05).cause is Cause.NOTHING_ACCEPTED
    sent.send(6, start=20)
    causes = [sent.refuse(number, 20.05).cause for number in range(2, 8)]
    assert causes[-1] is Cause.NOTHING_ACCEPTED


def test_capacity_that_is_used_up_shows_the_rate_at_once() -> None:
    """After refusals the service accepts what it gets per second, and nothing that it had saved."""
    sent = Sent()
    sent.send(4)
    sent.refuse(4, 0.0)
    sent.refusals.resume(4, 0.0)
    sent.send(10, start=0.05, gap=0.05)
    assert sent.refuse(14, 0.5, finding=True).accepted == pytest.approx(9.5 / 0.5, rel=0.02)


def test_refusals_of_a_known_account_are_strays_while_they_are_few() -> None:
    sent = Sent()
    sent.send(100, gap=0.1)
    causes = [sent.refuse(number, 10.0, known=True).cause for number in range(61, 101)]
    assert causes[:30] == [Cause.STRAY] * 30
    assert causes[-1] is Cause.LIMIT


def test_three_refusals_of_a_known_account_show_nothing() -> None:
    """Also not if nothing else was sent. The fourth does."""
    sent = Sent()
    sent.send(4)
    causes = [sent.refuse(number, 0.1, known=True).cause for number in range(1, 5)]
    assert causes == [Cause.STRAY] * 3 + [Cause.NOTHING_ACCEPTED]
    assert RECENT_OF > 4


def refuse_every_tenth(sent: Sent, rate: float, now: float) -> float:
    """Ten requests at a rate, of which the last is refused; returns when that is."""
    sent.send(10, start=now, gap=1 / rate)
    now += 10 / rate
    judgement = sent.refuse(len(sent.times), now, finding=True)
    if judgement.cause is Cause.LIMIT:
        sent.refusals.resume(len(sent.times), now)
    return now


def test_refusals_that_go_on_however_slowly_requests_go_are_by_chance() -> None:
    """A limit would not refuse what is far below it. If it was a limit after all, more is needed the next time."""
    sent = Sent()
    sent.send(20, gap=0.05)
    sent.refuse(20, 1.0)
    sent.refusals.resume(20, 1.0)
    now, rates = 1.05, [20.0, 12.0, 9.0, 7.0]
    for rate in rates:
        now = refuse_every_tenth(sent, rate, now)
    assert sent.refusals.by_chance
    assert sent.refusals.best == pytest.approx(19, rel=0.1)
    sent.send(20, start=now + 1)
    for number in range(len(sent.times) - 15, len(sent.times)):
        judgement = sent.refuse(number, now + 1.1, finding=True)
    assert judgement.cause is Cause.LIMIT
    assert sent.refusals.by_chance, "this much refuses no chance, but the rest may be its doing"
    sent.refusals.resume(len(sent.times), now + 1.1)
    sent.send(50, start=now + 1.2, gap=1 / judgement.accepted)
    sent.refuse(len(sent.times), sent.times[-1] + 0.1, finding=True)
    assert not sent.refusals.by_chance, "nothing was refused until the limit came again"


def test_limit_that_is_met_again_and_again_is_not_taken_for_chance() -> None:
    sent = Sent()
    sent.send(20, gap=0.05)
    sent.refuse(20, 1.0)
    sent.refusals.resume(20, 1.0)
    now = 1.05
    for _ in range(20):
        now = refuse_every_tenth(sent, 19.0, now)
    assert not sent.refusals.by_chance


def test_refusals_are_kept_only_as_long_as_they_count() -> None:
    """A service that refuses for hours costs no more with each refusal."""
    sent = Sent()
    for step in range(3_000):
        sent.send(1, start=step * 0.5)
        sent.refuse(len(sent.times), step * 0.5 + 0.01, finding=True)
    assert len(sent.refusals._refused) <= 2 * COUNTED_S + 1


def test_request_that_is_refused_late_is_counted_in_its_place() -> None:
    """Refusals overtake one another."""
    sent = Sent()
    sent.send(20)
    for number in (20, 12, 16, 11, 19, 13, 15, 14, 18, 17):
        judgement = sent.refuse(number, 0.05)
    assert (judgement.cause, judgement.accepted) == (Cause.LIMIT, pytest.approx(10.5))
