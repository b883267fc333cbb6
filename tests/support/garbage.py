"""Garbage in reference cycles, and collections that are forced where no test could wait for one."""

from __future__ import annotations

import contextlib
import gc
import random
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


def in_a_cycle(thing: object) -> None:
    """Drops a thing so that only the garbage collector can end it."""
    cycle: list[object] = [thing]
    cycle.append(cycle)


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """No collection but those that are asked for, which look only at what was made since."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
        gc.collect()


@contextlib.contextmanager
def collected_at_steps(part: str, *, share: float, rng: random.Random) -> Iterator[list[str]]:
    """Collects garbage before a share of all lines that this thread runs in a part of the code.

    Args:
        part: What the path of a module has to contain.
        share: Which share of the lines, from 0 to 1.
        rng: Chooses them.

    Yields:
        The functions in which garbage was collected.
    """
    places: list[str] = []

    def step(frame: FrameType, event: str, _: Any) -> Any:
        if part not in frame.f_code.co_filename:
            return None
        if event == "line" and rng.random() < share:
            places.append(frame.f_code.co_name)
            gc.collect()
        return step

    with no_collection():
        before = sys.gettrace()
        sys.settrace(step)
        try:
            yield places
        finally:
            sys.settrace(before)


@contextlib.contextmanager
def collected_in_a_thread(act: Callable[[], object] = gc.collect) -> Iterator[threading.Event]:
    """A thread that collects garbage all the time, and does so once more when the event is set."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(0.0005):
            act()
        act()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield ended
    finally:
        ended.set()
        thread.join(10)
