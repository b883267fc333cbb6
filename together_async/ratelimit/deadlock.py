"""Calls that would wait for ever for a place, because they keep the streams that hold the places from being read. Pure.

```python
async for chunk in client.stream(...):     # holds a place until the loop ends
    await client.create(...)               # waits for one: for ever, if there is no other
```

The same happens with more places, when as many loops wait like that at once; the last of these calls is refused. A call
is refused only if no place can become free: each is held by an open stream for whose bytes nobody waits, and the task
that read it last waits for a place itself. So a place that is held by a whole response, or by a stream that some other
task goes on reading, is waited for.

What is not seen, and waits: a call in another task that the body of a loop awaits (in `on_chunk` it is seen), and a
stream that is read through `buffered` or `Broadcast`, whose own task is its reader.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from together_async.errors import QueueFullError

if TYPE_CHECKING:
    from together_async.ratelimit.admission import Admission
    from together_async.ratelimit.queue import Reservation


class OpenStream(Protocol):
    """The response of a stream, which holds a place.

    Attributes:
        reader: The `id` of the task that read it last; 0 before the first read. None if nobody needs it: asking for the
            task costs each token a fiftieth.
    """

    reader: int | None

    @property
    def busy(self) -> bool:
        """Whether a task waits for its bytes."""
        ...


class HeldPlaces:
    """The streams that hold the places of one limiter, and the tasks that wait for a place.

    Attributes:
        streams: The open streams, by the reservation that each holds.
        waiting: The `id` of the task that waits, by its reservation.
    """

    __slots__ = ("streams", "waiting")

    def __init__(self) -> None:
        self.streams: dict[Reservation, OpenStream] = {}
        self.waiting: dict[Reservation, int] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self.streams)} streams, {len(self.waiting)} waiting>"

    def clear(self) -> None:
        """Forgets everything: it belongs to another event loop."""
        self.streams.clear()
        self.waiting.clear()

    def record_stream(self, reservation: Reservation, stream: OpenStream, admission: Admission) -> None:
        """Records an open stream that holds a place, if places are counted; no call waits for one otherwise.

        Args:
            reservation: Its call's.
            stream: The stream, of which nothing has been read.
            admission: It has the places.
        """
        lane = reservation.lane
        if admission.places is not None or lane.places is not None or lane.window is not None:
            stream.reader = 0
            self.streams[reservation] = stream

    def record_waiting(self, reservation: Reservation, task: int, admission: Admission, now: float) -> None:
        """Records that a call begins to wait.

        Args:
            reservation: The call's.
            task: The `id` of the task that waits.
            admission: It has the places.
            now: The time.

        Raises:
            QueueFullError: It would wait for a place for ever.
        """
        lane = reservation.lane
        if admission.lacks_place and self.is_deadlock(task, admission.in_flight, self.streams):
            raise deadlock_error(admission.in_flight)
        if lane.lacks_place(now) and self.is_deadlock(
            task, lane.in_flight, [other for other in self.streams if other.lane is lane]
        ):
            raise deadlock_error(lane.in_flight)
        self.waiting[reservation] = task

    def is_deadlock(self, task: int, places: int, held: Iterable[Reservation]) -> bool:
        """Returns whether a task that begins to wait for one of the places would never get it.

        Args:
            task: Its `id`.
            places: How many places there are; all are taken.
            held: Those of them that streams hold.
        """
        waiting = {task, *self.waiting.values()}
        stopped = own = 0
        for reservation in held:
            stream = self.streams[reservation]
            if stream.busy or stream.reader not in waiting:
                return False
            stopped += 1
            own += stream.reader == task
        return own > 0 and stopped >= places


def deadlock_error(places: int) -> QueueFullError:
    """Returns the error for a call that is refused."""
    held = "the only place is" if places == 1 else f"all {places} places are"
    return QueueFullError(
        f"{held} held by streams that are not read on before this call, or another like it, has got one: it would wait "
        "for ever; make the call after the stream has ended, or raise Limits.concurrency"
    )
