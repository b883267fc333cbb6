"""The congestion window: how many requests may be under way at once."""

from __future__ import annotations

import math
import random

import pytest

from together_async.ratelimit.congestion import INITIAL, LEAST, PAUSE_S, CongestionWindow, Latency
from together_async.ratelimit.rate_control import FALL


def fill(window: CongestionWindow, rounds: int, now: float = 0.0, latency: float = 1.0) -> float:
    """Passes full windows of good responses, one after another."""
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
    """Ten requests at once don't show whether a thousand are too many."""
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
    """They are answered already; a 429 takes places from the requests that wait for a head."""
    window = CongestionWindow(0.0)
    window.record_rate_limit(100, 10, 0.5, 1.0)
    assert window.places == 90 + 7


def test_window_never_closes() -> None:
    window = CongestionWindow(0.0)
    for step in range(100):
        window.record_rate_limit(window.places, window.places, step, step + 0.5)
    assert window.places == LEAST


def test_above_the_size_of_a_429_growth_is_slow() -> None:
    """One place for each full window of good responses."""
    window = CongestionWindow(0.0)
    now = fill(window, 3)
    window.record_rate_limit(800, 800, now - 0.1, now)
    size = window.places
    fill(window, 5, now)
    assert size + 3 <= window.places <= size + 7


def test_window_of_slow_answers_keeps_its_size() -> None:
    """Four times the usual latency: the server queues before it refuses."""
    window = CongestionWindow(0.0)
    now = fill(window, 1) + 4
    size = window.places
    for _ in range(size):
        window.latencies[0].add(4.0, window.size)
        window.record_response(window.places, now)
    assert window.places - size <= 5


@pytest.mark.parametrize("seed", range(5))
def test_answers_whose_times_differ_widely_do_not_stop_growth(seed: int) -> None:
    """Prompts of all lengths: most responses are quick, some take ten times the mean, and nothing is wrong."""
    window, rng = CongestionWindow(0.0), random.Random(seed)
    for step in range(1_000):
        window.latencies[0].add(rng.expovariate(1), window.size)
        window.record_response(window.places, step / 100)
    assert window.places > INITIAL + 300


def test_window_full_of_streams_that_go_well_grows_with_time() -> None:
    """No request waits for a response, so none will come that could let the next one go."""
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
