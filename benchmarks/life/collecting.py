"""Garbage collections anywhere: in another thread, and at any point of the event loop's thread."""

import gc
import queue
import random
import threading
from typing import Any, Self

PHASE_S = 3.0
PHASES = ("usual", "thread", "eager")
"""How garbage is collected: as usual; in the thread alone; in the loop's thread, at every few objects."""


class Collector(threading.Thread):
    """A thread that drops what it is given, and collects garbage; it also sets how often the other threads do.

    Args:
        seed: Decides the thread's pauses.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(name="collector")
        self._rng = random.Random(f"{seed}/collector")
        self._given: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._thresholds = gc.get_threshold()

    def take(self, things: list[Any]) -> None:
        """Takes over the references of a list, and drops them in the thread."""
        given, things[:] = things[:], []
        self._given.put(given)

    def run(self) -> None:
        waited_s = 0.0
        while not self._stopped.is_set():
            phase = PHASES[int(waited_s / PHASE_S) % len(PHASES)]
            self._set_pace(phase)
            pause_s = self._rng.uniform(0.005, 0.1)
            waited_s += pause_s
            self._stopped.wait(pause_s)
            while not self._given.empty():
                self._given.get().clear()
            if phase != "eager":
                gc.collect(self._rng.choice((0, 1, 2)) if phase == "thread" else 0)

    def _set_pace(self, phase: str) -> None:
        if phase == "thread":
            gc.disable()
            return
        gc.set_threshold(*(self._thresholds if phase == "usual" else (self._rng.randrange(5, 200), 3, 3)))
        gc.enable()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.join()
        gc.set_threshold(*self._thresholds)
        gc.enable()
