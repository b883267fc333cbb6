"""Whatever Python reports is collected."""

import logging
import threading
import warnings

from benchmarks.harness import complaints


class Failing:
    """Its finalizer fails."""

    def __del__(self) -> None:
        raise ValueError("in a finalizer")


class Warns(Failing):
    """Its finalizer warns, as an error."""

    def __del__(self) -> None:
        raise ResourceWarning("unclosed client made at")


def test_warnings_logs_finalizers_and_threads_are_heard() -> None:
    noted: list[str] = []
    with complaints.collected(noted.append), warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning  # noqa: B018 - set by the block
        Failing()
        warnings.warn("careful", stacklevel=1)
        logging.getLogger("aiohttp").warning("odd")
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
    assert [note.partition(":")[0] for note in noted] == ["unraisable", "warning", "log", "thread"]


def test_what_is_part_of_the_work_is_not() -> None:
    noted: list[str] = []
    with (
        complaints.collected(noted.append, expected_logs=("relay",), expected_warnings=("unclosed client",)),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("always")
        Warns()
        warnings.warn("unclosed client made at line 1", ResourceWarning, stacklevel=1)
        logging.getLogger("relay").warning("a relay ended")
    assert noted == []
