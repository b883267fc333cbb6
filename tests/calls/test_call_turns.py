"""`Call`: the client, or the stream, is closed in any one turn of the event loop, and nothing waits any more."""

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from support import virtual_time
from support.calls import UNTIMED, clocked, counted, refusal
from support.descriptors import no_descriptor_left
from support.servers import KEY, MODEL, Call, Script, ScriptedServer, answers, delta, response, sse, streams, whole
from support.survival import PROMPT, TEXT, case
from support.virtual_time import SOON_S
from together_async import AsyncTogether, Limits, RateLimiter, Retry, TogetherError
from together_async.ratelimit.queue import Reservation

QUEUED_S = 30.0
"""Virtual seconds for which the only place is taken; a call that goes on after its closing waits for as long."""
RULES = Retry(attempts=3, base_delay=1.0, max_retry_after=2_000.0)


class TurnsLoop(virtual_time.VirtualTimeLoop):
    """A loop that runs a coroutine before everything else in one of its turns, in a task.

    Attributes:
        act: Makes the coroutine; None for no more.
        turns_left: How many turns pass before that one.
        acting: The task; None before the turn has come.
        acted_at: How far the clock had jumped when it came.
    """

    def __init__(self) -> None:
        super().__init__()
        self.act: Callable[[], Coroutine[Any, Any, None]] | None = None
        self.turns_left = 0
        self.acting: asyncio.Task[None] | None = None
        self.acted_at = 0.0

    def plan(self, act: Callable[[], Coroutine[Any, Any, None]], turns: int) -> None:
        """Runs `act` after so many turns."""
        self.act, self.turns_left, self.acting = act, turns, None

    def _run_once(self) -> None:
        if self.act is not None:
            if self.turns_left == 0:
                self.acting, self.acted_at, self.act = self.create_task(self.act()), self.jumped_s, None
                # asyncio has no public way to run anything before what is ready.
                self._ready.appendleft(self._ready.pop())  # type: ignore[attr-defined]  # see above
            self.turns_left -= 1
        super()._run_once()

    @property
    def jumped_s(self) -> float:
        """The seconds that were waited for nothing but timers."""
        return self._jumping.jumped_s


async def good(call: Call) -> None:
    await (streams(TEXT) if call.json.get("stream") else answers(response(whole(TEXT))))(call)


async def slow_head(call: Call) -> None:
    await asyncio.sleep(5)
    await good(call)


async def slow_error(call: Call) -> None:
    await call.send(refusal(503)[:-10])
    await asyncio.sleep(3)
    await call.send(refusal(503)[-10:])


async def closed_unanswered(call: Call) -> None:
    call.reset()


async def head_then_reset(call: Call) -> None:
    """A response that breaks before the caller has seen anything of it."""
    if call.json.get("stream"):
        await call.head()
        await call.chunk(sse(delta("", role="assistant")))
    else:
        await call.send(response(whole())[:-10])
    await asyncio.sleep(0.01)
    call.reset()


SCRIPTS: dict[str, tuple[Script, ...]] = {
    "in the queue": (good,),
    "in the backoff": (answers(refusal(503)), good),
    "in the queue after the backoff": (answers(refusal(503)), good),
    "in the pause of a 429": (answers(refusal(429, "retry-after: 2")), good),
    "in a long pause of a 429": (answers(refusal(429, "retry-after: 1000")), good),
    "before the head": (slow_head,),
    "in an error": (slow_error, good),
    "on a stale connection": (good, closed_unanswered, slow_head),
    "after a response that broke": (head_then_reset, good),
    "without a descriptor": (good,),
}


@contextlib.contextmanager
def hindered(place: str, limiter: RateLimiter) -> Iterator[list[Reservation]]:
    """What keeps a call waiting, apart from the server; yields the other calls that are under way."""
    loop, others = asyncio.get_running_loop(), list[Reservation]()
    timers = list[asyncio.TimerHandle]()

    def take_place() -> None:
        held = limiter.driver.admission.ask(MODEL, 0, loop.time(), at_once=True)
        assert held.granted
        others.append(held)
        timers.append(loop.call_later(QUEUED_S, free_place))

    def free_place() -> None:
        limiter.driver.release(others.pop())

    if place == "in the queue":
        take_place()
    elif place in ("in the queue after the backoff", "after a response that broke"):
        timers.append(loop.call_later(0.3, take_place))  # while the call backs off for a second
    with contextlib.ExitStack() as shortage:
        if place == "without a descriptor":
            shortage.enter_context(no_descriptor_left())
            timers.append(loop.call_later(3, shortage.close))
        yield others
    for timer in timers:
        timer.cancel()
    if others:
        free_place()


async def outcome_of(client: AsyncTogether, stream: Any) -> str | TogetherError:
    try:
        if stream is None:
            return (await client.create(PROMPT, model=MODEL)).text
        return "".join([text async for text in stream.text()])
    except TogetherError as error:
        return error


def check_closed(outcome: str | TogetherError) -> None:
    """An answer, or a break, that came in that very turn is given out; everything else is an error that says so."""
    if isinstance(outcome, TogetherError):
        assert "closed" in str(outcome) or "broke" in str(outcome)
    else:
        assert outcome == TEXT


async def closed_in_turn(loop: TurnsLoop, who: str, place: str, turn: int, *, streamed: bool) -> bool:
    """Closes client or stream in a turn after a call began; returns whether the call was still going on then."""
    limiter = clocked(Limits(concurrency=1))
    async with ScriptedServer(*SCRIPTS[place]) as server:
        client = AsyncTogether(KEY, base_url=server.base_url, limits=limiter, retry=RULES, timeouts=UNTIMED)
        if place == "on a stale connection":
            await client.create(PROMPT, model=MODEL)
        stream = client.stream(PROMPT, model=MODEL) if streamed else None
        with hindered(place, limiter) as others:
            task = asyncio.create_task(outcome_of(client, stream))
            loop.plan(client.aclose if stream is None or who == "client" else stream.aclose, turn)
            await asyncio.wait([task])
            loop.act, closing = None, loop.acting
            if closing is None:
                assert task.result() == TEXT
            else:
                check_closed(task.result())
                assert loop.jumped_s - loop.acted_at < SOON_S, "the call went on waiting"
                await closing
                assert limiter.driver.admission.in_flight == len(others)
                assert limiter.driver.admission.queued == 0
        await client.aclose()
        assert counted(client) == (0, 0)
        assert limiter.driver.timer is None
    return closing is not None


@pytest.mark.parametrize(("who", "streamed"), [("client", False), ("client", True), ("stream", True)])
@pytest.mark.parametrize("place", SCRIPTS)
def test_closed_in_every_turn(place: str, who: str, streamed: bool, longest_delays: None) -> None:
    """The call ends at once, whatever it waited for, and whatever came in the very turn; the limiter counts 0."""
    loop = TurnsLoop()

    async def main() -> None:
        for turn in itertools.count():
            with case(f"turn {turn}"):
                if not await closed_in_turn(loop, who, place, turn, streamed=streamed):
                    break
        assert turn > 5

    virtual_time.run(main(), loop)
