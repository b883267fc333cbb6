"""A thread that collects garbage, and drops what it is given."""

import gc
import threading
import weakref

from benchmarks.life.collecting import Collector


class Thing:
    """Something that can be dropped."""


def test_what_it_takes_is_dropped_in_its_thread() -> None:
    places: list[str] = []
    thing = Thing()
    weakref.finalize(thing, lambda: places.append(threading.current_thread().name))
    things, thing = [thing], None  # type: ignore[assignment]  # no other reference
    dropped = threading.Event()
    weakref.finalize(things[0], dropped.set)
    with Collector(seed=1) as collector:
        collector.take(things)
        assert dropped.wait(10)
    assert places == ["collector"]


def test_collection_is_as_usual_afterwards() -> None:
    before = gc.get_threshold()
    with Collector(seed=1):
        pass
    assert gc.get_threshold() == before
    assert gc.isenabled()
