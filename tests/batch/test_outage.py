"""When a service counts as down, and how long the pauses are before it is tried again."""

from __future__ import annotations

from together_async.batch.outage import FIRST_TRIES, IN_A_ROW, MOST_DOWN_S, OutageDetector


def test_failures_in_a_row_make_an_outage_likely() -> None:
    """An answer in between restarts the count."""
    detector = OutageDetector()
    for now in range(IN_A_ROW - 1):
        detector.record_failure(now)
    assert not detector.likely
    detector.record_answer()
    for now in range(IN_A_ROW):
        assert not detector.likely
        detector.record_failure(now)
    assert detector.likely
    assert detector.answers == 1


def test_pauses_double_up_to_a_minute() -> None:
    detector = OutageDetector()
    detector.record_answer()
    detector.record_failure(100.0)
    assert [detector.pause_s(100.0) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert detector.tries == 8
    detector.record_answer()
    assert (detector.tries, detector.pause_s(100.0)) == (0, 1)


def test_a_service_that_has_answered_is_waited_for_by_time() -> None:
    """The time counts from the first failure after its last answer."""
    detector = OutageDetector()
    detector.record_answer()
    assert detector.down_s(5.0) == 0.0
    detector.record_failure(10.0)
    detector.record_failure(20.0)
    assert detector.down_s(25.0) == 15.0
    assert detector.pause_s(10.0 + MOST_DOWN_S) is not None
    assert detector.pause_s(10.5 + MOST_DOWN_S) is None


def test_a_service_that_has_never_answered_is_tried_a_few_times() -> None:
    detector = OutageDetector()
    detector.record_failure(0.0)
    assert all(detector.pause_s(0.0) is not None for _ in range(FIRST_TRIES))
    assert detector.pause_s(0.0) is None
