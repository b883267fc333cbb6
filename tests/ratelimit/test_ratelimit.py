"""The pure parts under the limits: what headers tell, what is estimated, what a bucket holds, how a window changes."""

from __future__ import annotations

import itertools
import math
import pickle
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from together_async import Limits, LimitsState
from together_async.ratelimit import ModelState
from together_async.ratelimit.bucket import GUARD_S, Bucket
from together_async.ratelimit.congestion import INITIAL, LEAST, PAUSE_S, CongestionWindow, Latency
from together_async.ratelimit.estimator import OUTPUT_TOKENS, Estimator, Size, size_of
from together_async.ratelimit.headers import ReportedLimit, limited_kind, read_limits
from together_async.ratelimit.rate_control import FALL
from together_async.testing import Account, Dynamic, Rate

ROOM_S = 0.5
"""Seconds' worth that may go at once, beside one request: half of what a service is taken to hold, or less."""

# ----------------------------------------------------------------------------------------------------------------- told


def test_headers_without_limits_tell_nothing() -> None:
    assert read_limits({}) is None
    assert read_limits({"x-ratelimit-reset": "3", "x-ratelimit-remaining": "5", "content-type": "a/b"}) is None


def test_headers_of_a_fixed_rate() -> None:
    told = read_limits(
        {
            "x-ratelimit-limit": "10",
            "x-ratelimit-remaining": "4",
            "x-tokenlimit-limit": "1000.5",
            "x-tokenlimit-remaining": "700",
        }
    )
    assert told is not None
    assert (told.requests.limit, told.requests.remaining) == (10, 4)
    assert (told.tokens.limit, told.tokens.remaining) == (1000.5, 700)


def test_what_holds_now_is_preferred_to_what_it_may_rise_to() -> None:
    told = read_limits(
        {
            "x-ratelimit-limit": "100",
            "x-ratelimit-limit-dynamic": "7",
            "x-ratelimit-remaining": "93",
            "x-ratelimit-remaining-dynamic": "2",
        }
    )
    assert told is not None
    assert (told.requests.limit, told.requests.remaining) == (7, 2)
    assert (told.tokens.limit, told.tokens.remaining) == (None, None)


@pytest.mark.parametrize(
    "garbage",
    ["", " ", "x", "-1", "-0.1", "nan", "inf", "-inf", "1e999", "1e13", "10 per second", "5,000", "0x10"],
)
def test_garbage_in_one_header_spoils_no_other(garbage: str) -> None:
    told = read_limits(
        {
            "x-ratelimit-limit": garbage,
            "x-ratelimit-remaining": "4",
            "x-tokenlimit-limit": "1000",
            "x-tokenlimit-remaining": garbage,
        }
    )
    assert told is not None
    assert told.requests.limit is None
    assert (told.tokens.limit, told.tokens.remaining) == (1000, None)


@pytest.mark.parametrize("dynamic", ["", "nonsense", "0"])
def test_unusable_dynamic_limit_leaves_the_bare_one(dynamic: str) -> None:
    told = read_limits({"x-ratelimit-limit": "100", "x-ratelimit-limit-dynamic": dynamic})
    assert told is not None
    assert told.requests.limit == 100


def test_limit_of_nothing_tells_nothing() -> None:
    """One bad header would stop a model for ever. Nothing left is another thing, and passes."""
    told = read_limits({"x-ratelimit-limit": "0", "x-tokenlimit-limit": "5", "x-tokenlimit-remaining": "0"})
    assert told is not None
    assert told.requests.limit is None
    assert told.tokens.limit == 5
    assert told.tokens.remaining == 0


@given(
    st.dictionaries(
        st.sampled_from(
            [
                f"x-{kind}-{what}{ending}"
                for kind in ("ratelimit", "tokenlimit")
                for what in ("limit", "remaining", "reset")
                for ending in ("", "-dynamic")
            ]
        ),
        st.one_of(st.text(max_size=12), st.floats().map(str), st.integers().map(str)),
    )
)
def test_any_header_is_read_or_ignored(headers: dict[str, str]) -> None:
    """Limits above 0, what is left from minus an hour's worth on, and never a number that is none."""
    told = read_limits(headers)
    for capacity in told or ():
        assert capacity.limit is None or 0 < capacity.limit <= 1e12
        assert capacity.remaining is None or math.isfinite(capacity.remaining)


@pytest.mark.parametrize("dynamic", [None, Dynamic()])
def test_headers_of_the_emulators_account(dynamic: Dynamic | None) -> None:
    """They are the service's own, so both sides of this package mean the same."""
    account = Account(Rate(10, 500, dynamic=dynamic), clock=lambda: 0.0)
    verdict = account.admit("m", 20)
    told = read_limits(verdict.headers)
    state = account.state("m")
    assert told is not None
    assert state.requests is not None
    assert state.tokens is not None
    assert told.requests.limit == pytest.approx(state.requests.limit)
    assert told.tokens.limit == pytest.approx(state.tokens.limit)
    assert told.tokens.remaining == int(state.tokens.remaining)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"error": {"type": "dynamic_request_limited"}}, "requests"),
        ({"error": {"type": "dynamic_token_limited"}}, "tokens"),
        ({"error": {"error_type": "dynamic_token_limited", "type": "rate_limit"}}, "tokens"),
        ({"error_type": "dynamic_request_limited", "error": "slow down"}, "requests"),
        ({"type": "dynamic_token_limited"}, "tokens"),
        ({"error": {"type": "invalid_request_error"}}, None),  # is no limit
        ({"error": {"type": "invalid_token"}}, None),
        ({"error": {"type": 5}}, None),
        ({"error": "token limit"}, None),
        ({"error": None}, None),
        ("dynamic_token_limited", None),
        ([], None),
        (None, None),
    ],
)
def test_kind_of_a_429(body: Any, kind: str | None) -> None:
    assert limited_kind(body) == kind


# ------------------------------------------------------------------------------------------------------------- estimate


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        ([], 0),
        ([{"role": "user", "content": "x" * 400}], 104),
        ([{"role": "system", "content": "abc"}, {"role": "user", "content": "d"}], 9),
        ([{"role": "assistant", "content": None, "tool_calls": [{}]}], 4),
        ([{"role": "user"}], 4),
        (
            [{"role": "user", "content": [{"type": "text", "text": "x" * 40}, {"type": "image_url", "image_url": {}}]}],
            1_014,
        ),
        ([{"role": "user", "content": ({"type": "text", "text": "x" * 40},)}], 14),
        ([{"role": "user", "content": ["text", 5]}], 2_004),
    ],
)
def test_size_of_a_prompt(messages: list[dict[str, Any]], prompt: int) -> None:
    """A token for every four characters, four for each message, a thousand for a part that is no text."""
    assert size_of(messages, None, None) == Size(prompt, None, 1)


def test_first_estimate_is_the_rule_alone() -> None:
    estimator = Estimator()
    assert estimator.total(Size(100, 50, 1)) == 150
    assert estimator.total(Size(100, 50, 3)) == 250
    assert estimator.total(Size(100, None, 1)) == 100 + OUTPUT_TOKENS
    assert estimator.prompt(Size(100, 50, 3)) == 100


def test_estimate_follows_what_the_server_counts() -> None:
    """Prompts have 1.5 times the rule's tokens here, and a tenth of `max_tokens` is generated."""
    estimator = Estimator()
    for _ in range(200):
        estimator.learn(Size(100, 1_000, 2), 150, 200)
    assert estimator.total(Size(200, 500, 1)) == pytest.approx(300 + 50, abs=2)
    assert estimator.total(Size(200, None, 2)) == pytest.approx(300 + 200, abs=2)
    assert estimator.prompt(Size(10, 1, 1)) == 15


def test_first_samples_count_fully_and_later_ones_a_twentieth() -> None:
    """What the hour's work is like is known after one answer, and forgotten within some dozens."""
    estimator = Estimator()
    estimator.learn(Size(100, None, 1), 100, 10)
    assert 10 <= estimator.total(Size(0, None, 1)) <= 30
    for _ in range(200):
        estimator.learn(Size(100, None, 1), 100, 10)
    for _ in range(150):
        estimator.learn(Size(100, None, 1), 100, 1_000)
    assert estimator.total(Size(0, None, 1)) == pytest.approx(1_000, rel=0.05)


def test_estimate_is_rarely_exceeded_where_answers_differ() -> None:
    """A service that holds a request's worth refuses what costs more than was thought."""
    estimator, chance = Estimator(), random.Random(1)
    size = Size(30, 80, 1)
    for _ in range(300):
        estimator.learn(size, 30, chance.randint(40, 80))
    exceeded = sum(30 + chance.randint(40, 80) > estimator.total(size) for _ in range(1_000))
    assert exceeded < 350
    assert estimator.total(size) <= 110, "never more than `max_tokens`"


def test_estimate_learns_nothing_from_numbers_that_are_not_there() -> None:
    estimator = Estimator()
    estimator.learn(Size(0, 100, 1), 50, None)
    estimator.learn(Size(100, None, 1), 0, None)
    estimator.learn(Size(100, None, 1), None, None)
    assert estimator.total(Size(100, 100, 1)) == 200
    estimator.learn(Size(100, 100, 1), None, 0)  # an empty answer is an answer
    assert estimator.total(Size(100, 100, 1)) == 100


def test_more_than_max_tokens_is_not_expected_of_the_next() -> None:
    """Some servers count reasoning beyond it."""
    estimator = Estimator()
    estimator.learn(Size(10, 100, 1), 10, 5_000)
    assert estimator.total(Size(10, 100, 1)) == 110


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(1, 5_000))), st.integers(1, 4))
def test_estimate_is_a_number_whatever_is_counted(samples: list[tuple[int, int, int]], n: int) -> None:
    estimator = Estimator()
    for prompt, completion, most in samples:
        estimator.learn(Size(100, most, n), prompt, completion)
    assert 0 <= estimator.prompt(Size(50, 200, n)) <= estimator.total(Size(50, 200, n)) < 1e9
    assert estimator.total(Size(50, 200, n)) - estimator.prompt(Size(50, 200, n)) <= 200 * n


# --------------------------------------------------------------------------------------------------------------- bucket


def wait(bucket: Bucket, amount: float, now: float) -> float:
    """Books an amount, and lets it go as soon as it may; returns when that is."""
    cost = bucket.cost(amount)
    bucket.refill(now)
    bucket.book(cost, now)
    now += bucket.wait_s(cost)
    bucket.refill(now)
    assert bucket.wait_s(cost) == pytest.approx(0, abs=1e-9)
    bucket.record_sent()
    return now


def test_bucket_without_a_limit_lets_everything_go() -> None:
    bucket = Bucket("requests", None, 0.0)
    for _ in range(100):
        assert wait(bucket, 1.0, 0.0) == 0.0
    assert bucket.per_minute is None
    assert "inf" in repr(bucket)


def test_requests_are_spread() -> None:
    """One, and a few that make up for late timers; then each after its share of the time."""
    bucket = Bucket("requests", 10.0, 0.0)
    times, now = [], 0.0
    for _ in range(50):
        now = wait(bucket, 1.0, now)
        times.append(now)
    assert times[0] == 0
    assert sum(time == 0 for time in times) <= 1 + 10 * ROOM_S
    assert times[-1] == pytest.approx(4.9, abs=ROOM_S)


def test_slow_rate_leaves_room_for_a_networks_jitter() -> None:
    """At a request a second the service holds one, so the next must not arrive a millisecond early."""
    bucket = Bucket("requests", 1.0, 0.0)
    times, now = [], 0.0
    for _ in range(20):
        now = wait(bucket, 1.0, now)
        times.append(now)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert min(gaps) >= 1 + GUARD_S / 2
    assert max(gaps) <= 1.1


@pytest.mark.parametrize("rate", [0.2, 1.0, 10.0, 1_000.0])
@pytest.mark.parametrize("kind", ["requests", "tokens"])
def test_bucket_is_full_again_after_a_while_and_not_fuller(kind: str, rate: float) -> None:
    bucket = Bucket(kind, rate, 0.0)
    assert bucket.level == pytest.approx(bucket.size)
    now = wait(bucket, 1.0, 0.0)
    assert bucket.level < bucket.size
    bucket.refill(now + 3 / rate)
    assert bucket.level == pytest.approx(bucket.size)
    bucket.refill(now + 1_000)
    assert bucket.level == pytest.approx(bucket.size)


def test_bucket_does_not_fill_up_behind_one_that_is_booked() -> None:
    """It waits for something else, a pause or a place; what was taken for it isn't there for another one."""
    bucket = Bucket("requests", 1.0, 0.0)
    bucket.book(1.0, 0.0)
    bucket.refill(100.0)
    bucket.record_sent()
    assert wait(bucket, 1.0, 100.0) >= 101


def test_large_amount_goes_when_the_bucket_is_full_and_leaves_a_debt() -> None:
    bucket = Bucket("tokens", 100.0, 0.0)
    assert wait(bucket, 5_000, 0.0) == 0.0
    assert wait(bucket, 1, 0.0) == pytest.approx(50, abs=1.1 * ROOM_S)
    assert wait(bucket, 5_000, 60.0) == 60
    assert wait(bucket, 5_000, 60.0) == pytest.approx(110, abs=1.1 * ROOM_S)


def test_taken_back_is_as_if_never_taken() -> None:
    bucket = Bucket("tokens", 100.0, 0.0)
    wait(bucket, 5_000.0, 0.0)
    level, booked = bucket.level, bucket.booked
    bucket.book(5_000.0, 0.0)
    bucket.unbook(5_000.0)
    assert (bucket.level, bucket.booked) == (level, booked)


def test_time_that_goes_back_adds_nothing() -> None:
    bucket = Bucket("tokens", 100.0, 10.0)
    wait(bucket, 5_000.0, 10.0)
    level = bucket.level
    bucket.refill(9.0)
    assert bucket.level == level
    bucket.refill(11.0)
    assert bucket.level == pytest.approx(level + 100)


def learn(
    bucket: Bucket, limit: float | None, left: float | None = None, *, since: float = 0, elapsed_s: float = 0
) -> None:
    bucket.learn(ReportedLimit(limit, left), amount=1.0, since=since, elapsed_s=elapsed_s)


def test_lowest_of_what_is_configured_and_told_is_kept() -> None:
    bucket = Bucket("tokens", 100.0, 0.0)
    for limit, kept in ((50.0, 50.0), (500.0, 100.0), (None, 100.0), (20.0, 20.0), (99.0, 99.0)):
        learn(bucket, limit)
        assert bucket.rate == pytest.approx(kept)
    assert bucket.per_minute == pytest.approx(99 * 60)


def test_first_limit_that_is_told_counts_what_was_sent_since() -> None:
    """Nothing was counted before; what went after the request that brought the answer went on the same account."""
    bucket = Bucket("tokens", None, 0.0)
    for _ in range(10):
        wait(bucket, 100.0, 0.0)
    learn(bucket, 100.0, since=900.0)
    assert wait(bucket, 1.0, 0.0) == pytest.approx(9, abs=1.1 * ROOM_S)


def test_what_is_left_lowers_the_level_and_never_raises_it() -> None:
    bucket = Bucket("tokens", 1_000.0, 0.0)
    learn(bucket, None, 1e9)
    assert bucket.level == bucket.size
    learn(bucket, None, 20.0)
    assert bucket.level == pytest.approx(20, abs=GUARD_S * 1_000)
    learn(bucket, None, 1e9)
    assert bucket.level <= 20


@pytest.mark.parametrize("kind", ["requests", "tokens"])
def test_429_lowers_the_rate_which_comes_back_in_five_seconds(kind: str) -> None:
    bucket = Bucket(kind, 100.0, 0.0)
    bucket.refill(10.0)
    bucket.record_rate_limit(9.9, 10.0)
    assert 60 < bucket.rate <= 100 * FALL
    bucket.record_rate_limit(9.9, 10.2)
    assert bucket.rate > 60, "one that was sent before the fall is part of it"
    for step in range(60):
        bucket.refill(10 + step / 10)
    assert bucket.rate > 90
    for step in range(1_000):
        bucket.refill(16 + step)
    assert bucket.rate == pytest.approx(100)


def test_429_without_any_known_limit_finds_one() -> None:
    """Less than what was sent, and rising while it is used."""
    bucket = Bucket("requests", None, 0.0)
    for step in range(200):
        wait(bucket, 1.0, step / 20)
    bucket.record_rate_limit(9.9, 10.0)
    assert 8 < bucket.rate < 20
    found, now = bucket.rate, 10.0
    while now < 100:
        now = wait(bucket, 1.0, now)
    assert bucket.rate > 1.5 * found


def test_found_rate_that_is_not_used_does_not_rise() -> None:
    """A night without traffic says nothing about what the service would have allowed."""
    bucket = Bucket("requests", None, 0.0)
    for step in range(200):
        wait(bucket, 1.0, step / 20)
    bucket.record_rate_limit(9.9, 10.0)
    found = bucket.rate
    bucket.refill(10.01)
    bucket.refill(40_000.0)
    assert bucket.rate < 1.1 * found


def test_learned_rate_is_approached_from_its_half_after_a_pause() -> None:
    """It may have changed; a configured one has not."""
    configured, told = Bucket("requests", 10.0, 0.0), Bucket("requests", None, 0.0)
    learn(told, 10.0)
    for bucket in (configured, told):
        wait(bucket, 1.0, 0.0)
        wait(bucket, 1.0, 100.0)
    assert configured.rate == 10
    assert told.rate == pytest.approx(5, rel=0.1)
    for step in range(120):
        told.refill(100 + step / 10)
    assert told.rate == 10


amounts = st.floats(0, 1e6, allow_nan=False)


@given(
    st.sampled_from(["requests", "tokens"]),
    st.one_of(st.none(), st.floats(0.01, 1e6)),
    st.lists(
        st.tuples(st.sampled_from(["take", "learn", "fall", "wait", "settle"]), amounts, st.one_of(st.none(), amounts)),
        max_size=30,
    ),
)
def test_bucket_stays_sane_whatever_happens(
    kind: str, configured: float | None, events: list[tuple[str, float, float | None]]
) -> None:
    """The level is a number and no more than the size, the rate above 0 and no more than what is configured."""
    bucket, now = Bucket(kind, configured, 0.0), 0.0
    for name, amount, other in events:
        now += 0.001 + amount % 7
        bucket.refill(now)
        assert bucket.level <= bucket.size * (1 + 1e-9) + 1e-9
        if name == "take":
            bucket.book(amount, now)
            bucket.record_sent()
        elif name == "learn":
            learn(bucket, amount or None, other, since=amount / 3, elapsed_s=amount % 3)
        elif name == "fall":
            bucket.record_rate_limit(now - 0.1, now)
        elif name == "settle":
            bucket.settle(amount, other or 0.0, last=amount > 5)
        assert bucket.rate > 0
        assert configured is None or bucket.rate <= configured * (1 + 1e-9)
        assert not math.isnan(bucket.level)
        assert 0 <= bucket.wait_s(1.0) < math.inf


# --------------------------------------------------------------------------------------------------------------- window


def fill(window: CongestionWindow, rounds: int, now: float = 0.0, latency: float = 1.0) -> float:
    """Full windows of good answers, one after another."""
    for _ in range(rounds):
        now += latency
        size = window.places
        for _ in range(size):
            window.record_sent(size - 1, now)
        for _ in range(size):
            window.latencies[0].add(latency, window.size)
            window.record_response(window.places, now)
    return now


def test_window_doubles_in_the_time_of_an_answer_until_the_first_429() -> None:
    window = CongestionWindow(0.0)
    fill(window, 2)
    assert window.places == 4 * INITIAL


def test_window_that_is_not_full_does_not_grow() -> None:
    """Ten at once say nothing about a thousand."""
    window = CongestionWindow(0.0)
    for _ in range(1_000):
        window.record_response(10, 1.0)
    assert window.places == INITIAL


def test_429_takes_three_tenths_of_what_waits_for_an_answer_once() -> None:
    window = CongestionWindow(0.0)
    now = fill(window, 2)
    window.record_rate_limit(400, 400, now - 0.5, now)
    assert window.places == pytest.approx(400 * FALL, abs=1)
    for _ in range(50):
        window.record_rate_limit(350, 350, now - 0.5, now + 0.1)
    assert window.places == pytest.approx(400 * FALL, abs=1), "those sent before the fall are part of it"
    window.record_rate_limit(280, 280, now + 0.2, now + 0.5)
    assert window.places == pytest.approx(400 * FALL**2, abs=1)


def test_streams_that_go_well_keep_their_places_in_a_429() -> None:
    """They are answered; what is taken away, is taken from those that wait for a head."""
    window = CongestionWindow(0.0)
    window.record_rate_limit(100, 10, 0.5, 1.0)
    assert window.places == 90 + 7


def test_window_never_closes() -> None:
    window = CongestionWindow(0.0)
    for step in range(100):
        window.record_rate_limit(window.places, window.places, step, step + 0.5)
    assert window.places == LEAST


def test_above_the_size_of_a_429_growth_is_slow() -> None:
    """One place for each full window of good answers."""
    window = CongestionWindow(0.0)
    now = fill(window, 3)
    window.record_rate_limit(800, 800, now - 0.1, now)
    size = window.places
    fill(window, 5, now)
    assert size + 3 <= window.places <= size + 7


def test_window_of_slow_answers_keeps_its_size() -> None:
    """Four times the usual latency: the server queues, before it refuses."""
    window = CongestionWindow(0.0)
    now = fill(window, 1) + 4
    size = window.places
    for _ in range(size):
        window.latencies[0].add(4.0, window.size)
        window.record_response(window.places, now)
    assert window.places - size <= 5


@pytest.mark.parametrize("seed", range(5))
def test_answers_whose_times_differ_widely_do_not_stop_growth(seed: int) -> None:
    """Prompts of all lengths: most answers are quick, some take ten times the mean, and nothing is wrong."""
    window, chance = CongestionWindow(0.0), random.Random(seed)
    for step in range(1_000):
        window.latencies[0].add(chance.expovariate(1), window.size)
        window.record_response(window.places, step / 100)
    assert window.places > INITIAL + 300


def test_window_full_of_streams_that_go_well_grows_with_time() -> None:
    """Nobody waits for an answer, so no answer will come that could let the next one go."""
    window = CongestionWindow(0.0)
    for _ in range(10):
        window.latencies[0].add(0.2, window.size)
    assert window.wait_s(INITIAL - 1, 0, 5.0) == 0
    assert window.wait_s(INITIAL, 1, 5.0) == math.inf
    assert window.wait_s(INITIAL, 0, 5.0) == 0
    window.record_sent(INITIAL, 5.0)
    assert window.places == INITIAL + 1
    assert 0.05 <= window.wait_s(INITIAL + 1, 0, 5.0) <= 1


def test_window_starts_anew_after_a_pause() -> None:
    window = CongestionWindow(0.0)
    now = fill(window, 2)
    window.record_sent(0, now + PAUSE_S / 2)
    assert window.places == 4 * INITIAL
    window.record_sent(5, now + 3 * PAUSE_S)
    assert window.places == 4 * INITIAL, "others are under way: no pause"
    window.record_sent(0, now + 5 * PAUSE_S)
    assert window.places == INITIAL


def test_latency_is_good_until_it_doubles() -> None:
    latency = Latency()
    assert latency.good
    for seconds, count, good in ((1.0, 100, True), (1.5, 5, True), (5.0, 10, False), (1.0, 500, True)):
        for _ in range(count):
            latency.add(seconds, 10)
        assert latency.good is good


# --------------------------------------------------------------------------------------------------------------- limits


def test_limits_are_values() -> None:
    """Equal, hashable, picklable, frozen, with everything optional."""
    assert Limits() == Limits(None, None, None)
    limits = Limits(5, 600, 60_000.5, max_queued=0)
    assert (limits.concurrency, limits.requests_per_minute, limits.tokens_per_minute) == (5, 600, 60_000.5)
    assert hash(limits) == hash(Limits(5, 600, 60_000.5, max_queued=0))
    assert pickle.loads(pickle.dumps(limits)) == limits  # noqa: S301 - made here
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        limits.concurrency = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("concurrency", 0),
        ("concurrency", -1),
        ("concurrency", 1.5),
        ("concurrency", True),
        ("concurrency", "many"),
        ("concurrency", 10**400),
        ("requests_per_minute", 0),
        ("requests_per_minute", -1),
        ("requests_per_minute", math.nan),
        ("requests_per_minute", math.inf),
        ("requests_per_minute", "600"),
        ("requests_per_minute", True),
        ("requests_per_minute", 10**400),
        ("tokens_per_minute", 0),
        ("tokens_per_minute", 1e13),
        ("tokens_per_minute", [1]),
        ("max_queued", -1),
        ("max_queued", 0.5),
        ("max_queued", False),
        ("shared", "redis://localhost"),
    ],
)
def test_limits_out_of_range(field: str, value: Any) -> None:
    """The text names field, value and range."""
    with pytest.raises(ValueError, match=rf"^Limits\.{field}: got .+, expected .+") as caught:
        Limits(**{field: value})
    assert len(str(caught.value)) < 300


def test_limits_by_model() -> None:
    own = Limits(requests_per_minute=60)
    limits = Limits.per_model({"a": own}, requests_per_minute=600, concurrency=9)
    assert limits.of("a") is own
    assert limits.of("b") is limits
    assert limits.requests_per_minute == 600
    assert limits != Limits(requests_per_minute=600, concurrency=9)
    assert pickle.loads(pickle.dumps(limits)) == limits  # noqa: S301 - made here


@pytest.mark.parametrize(
    "models", [{"a": 5}, {5: Limits()}, {"a": {"requests_per_minute": 5}}, {"a": Limits.per_model({"b": Limits()})}]
)
def test_limits_by_model_that_are_none(models: Any) -> None:
    with pytest.raises(ValueError, match=r"^Limits\.per_model: "):
        Limits.per_model(models)


def test_state_adds_up_its_models() -> None:
    later = datetime(2026, 1, 1, tzinfo=UTC)
    models = {
        "a": ModelState("a", sent=5, rate_limited=2, overloaded=1, paused_for_s=3.0, paused_until=later),
        "b": ModelState("b", sent=1, rate_limited=1, paused_for_s=1.0, paused_until=later - timedelta(seconds=2)),
        "c": ModelState("c"),
    }
    state = LimitsState(in_flight=3, queued=7, models=models)
    assert (state.sent, state.rate_limited, state.overloaded, state.paused_until) == (6, 3, 1, later)
    assert LimitsState().paused_until is None
    assert LimitsState() == LimitsState()


def test_state_can_be_read() -> None:
    """One line for all, one for each model."""
    state = LimitsState(
        in_flight=3,
        queued=7,
        concurrency=5,
        models={
            "a": ModelState("a", in_flight=3, queued=7, requests_per_minute=600.0, paused_for_s=2.0, rate_limited=4)
        },
    )
    first, second = repr(state).splitlines()
    assert first == "<LimitsState 3 of 5 in flight, 7 queued"
    assert "a: 3 of - in flight, 7 queued, paused for 2.0 s, 600 requests/min, - tokens/min" in second
    assert "4 x 429, 0 x 503" in second
    assert "stopped: no money" in repr(LimitsState(stopped="no money"))
