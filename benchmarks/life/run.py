"""`python -m benchmarks life`: a long life of a client, with everything that users do, and what is left of it.

About 150 streams are in flight in one process, against the emulator in another: read and left in every way, with
faults, timeouts and 429s; two clients share a limiter, guests come and are closed, or dropped, in the middle of their
work; garbage is collected as usual, in another thread, or at any moment of the event loop's thread. Each minute no call
is started until all have ended, and what the process holds then is compared with what it held before the first call.

The run fails on anything that is left over, on errors that nobody expects (whoever gets them, or reports them), on
texts that are silently wrong, on what does not return, and on objects or memory that grow after a quarter of the time.
The seed decides what each call does; the timing, and so the interleaving, is the machine's.
"""

import asyncio
import collections
import contextlib
import faulthandler
import gc
import random
import sys
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any

from benchmarks.harness import complaints
from benchmarks.harness.processes import EmulatorProcess
from benchmarks.harness.this_process import loop_factory
from benchmarks.life import samples, verdict
from benchmarks.life.collecting import Collector
from benchmarks.life.found import Found, awaited
from benchmarks.life.leavings import CLOSING_S, LEAVINGS, LOST, WrongError, within
from benchmarks.life.plan import Plan, plan
from benchmarks.life.readings import READINGS, Tools
from together_async import AsyncTogether, Limits, RateLimiter, TogetherError
from together_async.ratelimit.admission import MAX_LANES
from together_async.relay import Hub

KEY = "key-of-a-long-life"
CALL_S = 40.0
"""Seconds that one call may take, its turn and its way of leaving included."""
SETTLE_S = 12.0
"""Seconds after the last call within which nothing may be left: a stream may drain for one, the hub keeps some."""
GUEST_EVERY_S = 0.7
GUEST_CALLS = 6
DROPPED = "/dropped"
"""In the URL of guests that are dropped without being closed."""
UNCLOSED = "unclosed AsyncTogether"
"""The beginning of the warning about them."""
UNCLOSED_SESSION = ("Unclosed client session", "Unclosed connector")
"""What aiohttp says about them, if the collector came to its objects first; also in debug mode `Unclosed response`."""


class Life:
    """One long life: its clients, its calls under way, and what was found.

    Args:
        emulator: The server.
        seed: Decides what each call does.
        streams: How many are in flight at once.
        readings: The ways of reading.
        leavings: The ways of leaving.

    Attributes:
        found: What was wrong.
        samples: What the process held, from before the first call.
    """

    def __init__(
        self, emulator: EmulatorProcess, *, seed: int, streams: int, readings: Sequence[str], leavings: Sequence[str]
    ) -> None:
        self.found = Found()
        self.samples: list[samples.Sample] = []
        self._emulator = emulator
        self._seed = seed
        self._streams = streams
        self._readings, self._leavings = readings, leavings
        self._limiter = RateLimiter(Limits(concurrency=streams))
        self._clients: list[AsyncTogether] = []
        self._collector = Collector(seed)
        self._tools = Tools(_hub())
        self._under_way: dict[asyncio.Task[None], tuple[float, Plan]] = {}
        self._generators: collections.deque[AsyncGenerator[Any, Any]] = collections.deque()
        self._closings: set[asyncio.Task[None]] = set()
        self._calls = 0
        self._started = time.monotonic()
        self._settled_s = 0.0

    # ------------------------------------------------------------------------------------------------------- the whole

    async def live(self, seconds: float, every_s: float) -> None:
        """Lives for so many seconds, and samples every so many."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._note_report)
        loop.slow_callback_duration = 10.0  # collections on a busy machine are no news
        if type(loop).__module__.startswith("uvloop") and loop.get_debug():
            # Its own finalizer crashes the interpreter there: https://github.com/MagicStack/uvloop/issues/611
            sys.set_asyncgen_hooks(finalizer=self._generators.append)
        await self._warm_up()
        with self._collector:
            self._sample()
            self._clients = [self._client(self._limiter) for _ in range(2)]
            self._started = time.monotonic()
            end = self._started + seconds
            while time.monotonic() < end:
                await self._work(min(end, time.monotonic() + every_s))
                await self._settle()
                self._sample()
                print(verdict.row(self.samples[0], self.samples[-1]), flush=True)
            await self._close()
            self._sample()
            print(verdict.row(self.samples[0], self.samples[-1]), "(closed)", flush=True)

    async def _warm_up(self) -> None:
        """Makes a call, so that whatever is imported or opened on first use is there before the first sample."""
        async with self._client(Limits()) as client:
            planned = plan(self._seed, 0, ["create"], ["end"])
            with contextlib.suppress(TogetherError):
                await client.create(planned.message, model=planned.model)
        await asyncio.sleep(0.1)
        _collect()
        gc.freeze()  # so that the objects of the modules are neither counted nor looked at
        for number in range(MAX_LANES):  # it remembers as many models as that, and forgets others for new ones
            self._limiter.driver.estimator(f"known-{number}")

    async def _work(self, until: float) -> None:
        """Starts calls until that moment, and waits until all have ended."""
        guests = asyncio.create_task(self._invite_guests(until))
        while time.monotonic() < until:
            # A third more than may be in flight: some calls always wait for their turn.
            while len(self._under_way) < self._streams * 4 // 3:
                self._start(self._clients[self._calls % 2])
            await asyncio.sleep(0.02)
            self._close_generators()
            self._end_late_calls()
        await guests
        while self._under_way:
            await asyncio.sleep(0.05)
            self._close_generators()
            self._end_late_calls()

    def _close_generators(self) -> None:
        """Closes the generators that were dropped half way, where the event loop does not."""
        while self._generators:
            task = asyncio.create_task(self._generators.popleft().aclose())  # type: ignore[arg-type]  # asyncio does so
            self._closings.add(task)
            task.add_done_callback(self._closings.discard)

    async def _close(self) -> None:
        for client in self._clients:
            await self._closed(client.aclose(), "client.aclose() at the end")
        await asyncio.sleep(0.1)
        _collect()

    async def _closed(self, closing: Coroutine[Any, Any, None], what: str) -> None:
        """Waits for a closing, but not for ever."""
        try:
            await within(closing, what)
        except WrongError as error:
            self.found.note(error.what, error.details)

    # ----------------------------------------------------------------------------------------------------------- calls

    def _start(self, client: AsyncTogether) -> None:
        self._calls += 1
        planned = plan(self._seed, self._calls, self._readings, self._leavings)
        task = asyncio.create_task(self._call(client, planned))
        self._under_way[task] = time.monotonic(), planned
        task.add_done_callback(lambda task: self._under_way.pop(task, None))

    async def _call(self, client: AsyncTogether, planned: Plan) -> None:
        """Reads and leaves one call; whatever it raises is judged here."""
        leave = LEAVINGS[planned.leaving]
        what = f"{planned.reading}, left by {planned.leaving}, fault {planned.fault}"
        try:
            # No variable holds what is read: the way of leaving decides who does.
            await leave(await READINGS[planned.reading](client, planned, self._tools), planned, self._collector)
        except WrongError as error:
            self.found.note(f"{planned.reading}: {error.what}", f"{what}: {error.details}\n{planned}")
        except TogetherError as error:
            self.found.ended[type(error).__name__] += 1
        except asyncio.CancelledError:
            if not _cancelled_here():
                self.found.note(f"a cancellation that nobody asked for: {what}", f"{planned}")
        except GeneratorExit:  # a call that could not be cancelled, and was given up
            raise
        except BaseException as error:
            self.found.note_error(error, f"{what}\n{planned}")
        else:
            self.found.ended["right"] += 1

    def _end_late_calls(self) -> None:
        now = time.monotonic()
        for task, (started, planned) in tuple(self._under_way.items()):
            if started < now - CALL_S - CLOSING_S:
                self.found.note(f"{planned.reading}: a call that can't be cancelled", f"{planned}")
                del self._under_way[task]
            elif started < now - CALL_S and not task.cancelling():
                self.found.note(f"{planned.reading}: a call that never ends", f"{planned}\n{awaited(task.get_coro())}")
                task.cancel()

    # ---------------------------------------------------------------------------------------------------------- guests

    def _client(self, limits: Limits | RateLimiter, path: str = "") -> AsyncTogether:
        return AsyncTogether(KEY, base_url=self._emulator.base_url.replace("/v1", f"{path}/v1"), limits=limits)

    async def _invite_guests(self, until: float) -> None:
        """Clients that come, work, and are closed in the middle of it; some are dropped instead."""
        rng = random.Random(f"{self._seed}/guests")
        while time.monotonic() < until:
            dropped = rng.random() < 0.2
            limits = self._limiter if rng.random() < 0.7 else Limits(concurrency=20)
            guest: AsyncTogether | None = self._client(limits, DROPPED if dropped else "")
            for _ in range(GUEST_CALLS):
                self._start(guest)
            await asyncio.sleep(rng.uniform(0, 1.0))
            if dropped:
                self._collector.take([guest])
            else:
                await self._closed(guest.aclose(), "client.aclose() in the middle of its work")
            guest = None
            await asyncio.sleep(GUEST_EVERY_S)

    # --------------------------------------------------------------------------------------------------------- samples

    async def _settle(self) -> None:
        """Waits until nothing is left, but no longer than `SETTLE_S`."""
        hub, self._tools.hub = self._tools.hub, _hub()
        await self._closed(hub.aclose(), "hub.aclose()")
        began = time.monotonic()
        while True:
            await asyncio.sleep(0.1)
            _collect()
            self._close_generators()
            for client in self._clients:
                samples.empty_pool(client)
            self._settled_s = time.monotonic() - began
            if self._settled_s > SETTLE_S or not verdict.left_over(self.samples[0], self._measured(objects=False)):
                break

    def _measured(self, *, objects: bool = True) -> samples.Sample:
        held = samples.held([self._limiter], self._clients, self._emulator.state()["open"])
        return samples.Sample(
            time.monotonic() - self._started,
            self._calls,
            held,
            samples.memory_mib(),
            samples.objects() if objects else samples.Counter(),
            self.found.total(),
            self._settled_s,
        )

    def _sample(self) -> None:
        self.samples.append(self._measured())

    def _note_report(self, _: asyncio.AbstractEventLoop, facts: dict[str, object]) -> None:
        """What asyncio reports; it may come from a garbage collection."""
        message, task, error = str(facts.get("message")), facts.get("task"), facts.get("exception")
        if isinstance(task, asyncio.Task) and task.get_name() == LOST and message.startswith("Task was destroyed"):
            return
        if message in UNCLOSED_SESSION or f"{DROPPED}/v1" in repr(facts.get("client_response")):
            return
        if isinstance(error, BaseException):
            self.found.note_error(error, f"asyncio: {message}")
        else:
            self.found.note(f"asyncio: {message}", repr(facts)[:1000])


def _hub() -> Hub:
    return Hub(max_streams=60, keep=0.5, abandon=0.5)


def _collect() -> None:
    for _ in range(3):
        gc.collect()


def _cancelled_here() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


# ---------------------------------------------------------------------------------------------------------- the command


def run(
    seconds: float,
    *,
    loop: str,
    debug: bool,
    streams: int,
    every_s: float,
    seed: int,
    readings: Sequence[str],
    leavings: Sequence[str],
) -> int:
    """Runs it and prints what it finds; returns the exit status: 1 when something is wrong."""
    # A loop that is blocked, or does not close, ends here, with the stacks of all threads.
    faulthandler.dump_traceback_later(1.5 * seconds + 300, exit=True)
    with EmulatorProcess(seed, module="benchmarks.life.emulator") as emulator:
        life = Life(emulator, seed=seed, streams=streams, readings=readings, leavings=leavings)
        expected = {"expected_logs": ("together_async.relay",), "expected_warnings": (UNCLOSED,)}
        with complaints.collected(life.found.note, **expected):
            try:
                with asyncio.Runner(loop_factory=loop_factory(loop), debug=debug) as runner:
                    runner.run(life.live(seconds, every_s))
            finally:
                gc.unfreeze()
    faulthandler.cancel_dump_traceback_later()
    wrong = verdict.verdict(life.samples, life.found.total(), seconds=seconds)
    print(text(life.found, wrong, f"{loop}{', debug mode' if debug else ''}, seed {seed}"))
    return 1 if wrong else 0


def text(found: Found, wrong: Sequence[str], how: str) -> str:
    """The report."""
    lines = [f"{how}, Python {sys.version.split()[0]}{', dev mode' if sys.flags.dev_mode else ''}", "how calls ended:"]
    lines += [f"{count:8,}  {name}" for name, count in found.ended.most_common()]
    for what, count in found.wrong.most_common(30):
        lines += [f"wrong, {count} times: {what}", *(f"    {line}" for line in found.examples[what].splitlines())]
    lines += [f"verdict: {complaint}" for complaint in wrong]
    return "\n".join([*lines, "NOT everything is right" if wrong else "everything is right"])
