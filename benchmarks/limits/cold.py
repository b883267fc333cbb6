"""What the limiter's care costs a first call: a new client's calls, all at once, next to a client without limits.

The server answers every request whole after the same time, and tells nothing about limits. *Cold* is a new client as it
comes. *No limits* is the same client with a limiter that has been told of limits which are never reached, so that it
does the same work and waits for nothing. *By hand* is aiohttp and a decoder. Each has new connections every time. The
three take turns, in an order that changes, and the figure is the median of the ratios within a round.

Real clocks: what the client itself needs for a thousand calls is part of what is compared.
"""

from __future__ import annotations

import asyncio
import gc
import ssl
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

from benchmarks.harness.certificate import certificate
from benchmarks.harness.figures import Figure, Target, paired_ratio
from benchmarks.harness.processes import ChildError, ClientProcess, Process, cores, module_command
from benchmarks.limits.account_runs import Distance
from benchmarks.limits.without_server import unlimited
from together_async import AsyncTogether

MODEL = "limits/model"
TEXT = "Why is the sky blue?"
GATHER, MAP, STREAMS = "gather", "map", "streams"
COLD, UNLIMITED, BY_HAND = "ours, cold", "ours, no limits", "by hand"
SIZES, QUICK_SIZES = (2, 5, 20, 64, 200, 1_000), (2, 64, 200)
ANSWER_S, QUICK_ANSWER_S = (1.0, 5.0), (1.0,)
TARGETS = {200: Target(1.12, 1.05), 1_000: Target(1.25, 1.15)}
FEW = Target(1.05, 1.02)
"""Of all sizes that `TARGETS` does not name."""
FAR = {20: Target(1.12), 50: Target(1.2), 100: Target(1.3)}
"""By the round trip in milliseconds, for 64 calls over TLS."""
HEADS_S, HEADS = 0.5, Target(1.5, 1.0)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is compared: a way to make so many calls, to a server at a distance.

    Attributes:
        work: `gather`, `map` or `streams`.
        answer_s: How long the server takes.
        round_trip_ms: Above 0, over TLS.
    """

    work: str
    calls: int
    answer_s: float
    round_trip_ms: int = 0

    @property
    def ways(self) -> tuple[str, ...]:
        return (COLD, UNLIMITED, BY_HAND) if self.work == GATHER else (COLD, UNLIMITED)

    @property
    def title(self) -> str:
        far = f", TLS, {self.round_trip_ms} ms away" if self.round_trip_ms else ""
        return f"{self.work} of {self.calls:,}, answers after {self.answer_s:g} s{far}"

    @property
    def target(self) -> Target:
        """Of the ratio to a client without limits."""
        return FAR[self.round_trip_ms] if self.round_trip_ms else TARGETS.get(self.calls, FEW)


def comparisons(quick: bool) -> list[Comparison]:
    """Returns what is compared."""
    sizes, answers = (QUICK_SIZES, QUICK_ANSWER_S) if quick else (SIZES, ANSWER_S)
    found = [Comparison(work, calls, each) for each in answers for work in (GATHER, MAP) for calls in sizes]
    found += [Comparison(GATHER, 64, 1.0, round_trip_ms) for round_trip_ms in ((50,) if quick else FAR)]
    return [*found, Comparison(STREAMS, 200 if quick else 1_000, HEADS_S)]


# ------------------------------------------------------------------------------------------- in the client's process


async def measure(_module: ModuleType, job: dict[str, Any]) -> dict[str, Any]:
    """Returns how many seconds the calls of one client took, from the first to the end of the last."""
    tls = ssl.create_default_context(cafile=job["ca"]) if job["ca"] else None
    gc.collect()
    if job["way"] == BY_HAND:
        return {"took_s": await by_hand(job["base_url"], job["calls"], tls)}
    options: dict[str, Any] = {"ssl": tls} if tls else {}
    if job["way"] == UNLIMITED:
        options["limits"] = await unlimited(MODEL)
    work: dict[str, Callable[[AsyncTogether, int], Awaitable[float]]] = {GATHER: whole, MAP: mapped, STREAMS: heads}
    async with AsyncTogether("key-of-the-benchmarks", base_url=job["base_url"], **options) as client:
        started = time.perf_counter()
        return {"took_s": await work[job["work"]](client, job["calls"]) - started}


async def whole(client: AsyncTogether, calls: int) -> float:
    """Returns when the last call had its answer."""
    await asyncio.gather(*(client.create(TEXT, model=MODEL) for _ in range(calls)))
    return time.perf_counter()


async def mapped(client: AsyncTogether, calls: int) -> float:
    """Returns when the last call had its answer."""
    async for result in client.map([TEXT] * calls, model=MODEL, on_error="raise"):
        assert result.completion is not None
    return time.perf_counter()


async def heads(client: AsyncTogether, calls: int) -> float:
    """Returns when the last stream had its first chunk. Until then all are held; leaving them does not count."""
    opened, all_opened = 0, asyncio.Event()
    last = 0.0

    async def first_chunk() -> None:
        nonlocal opened, last
        async with client.stream(TEXT, model=MODEL) as stream:
            await anext(stream)
            opened, last = opened + 1, time.perf_counter()
            if opened == calls:
                all_opened.set()
            await all_opened.wait()

    await asyncio.gather(*(first_chunk() for _ in range(calls)))
    return last


async def by_hand(base_url: str, calls: int, tls: ssl.SSLContext | None) -> float:
    """The shortest loop that makes the same calls and decodes them into this package's classes. It checks nothing."""
    import aiohttp
    import msgspec

    from together_async.models import ChatCompletion

    decode = msgspec.json.Decoder(ChatCompletion).decode
    body = {"model": MODEL, "messages": [{"role": "user", "content": TEXT}]}
    connector = aiohttp.TCPConnector(limit=0, ssl=tls if tls is not None else True)
    async with aiohttp.ClientSession(connector=connector, headers={"Authorization": "Bearer x"}) as session:

        async def call() -> None:
            async with session.post(f"{base_url}/chat/completions", json=body) as response:
                decode(await response.read())

        started = time.perf_counter()
        await asyncio.gather(*(call() for _ in range(calls)))
        return time.perf_counter() - started


# ------------------------------------------------------------------------------------------------ in this process


class LateServer(Process):
    """The server of `fanout`, on the servers' core: whole answers after the same time."""

    def __init__(self, answer_s: float, cert: str | None = None) -> None:
        options = ["--delay-s", str(answer_s), *(["--cert", cert] if cert else [])]
        super().__init__(module_command("benchmarks.fanout.server", *options), cores()[0])


def figures(quick: bool, rounds: int) -> list[Figure]:
    """Measures everything."""
    made: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder, ClientProcess("ours") as client:
        cert, ca = certificate(Path(folder))
        for comparison in comparisons(quick):
            print(f"cold: {comparison.title}", file=sys.stderr, flush=True)
            try:
                made += compare(comparison, client, rounds, cert, ca)
            except ChildError as error:
                print(f"  left out: {error}", file=sys.stderr, flush=True)
                break
    return made


def compare(comparison: Comparison, client: ClientProcess, rounds: int, cert: str, ca: str) -> list[Figure]:
    """Measures one comparison, each way once before it counts."""
    took: dict[str, list[float]] = {way: [] for way in comparison.ways}
    with ExitStack() as stack:
        tls = comparison.round_trip_ms > 0
        server = stack.enter_context(LateServer(comparison.answer_s, cert if tls else None))
        port = server.hello["port"]
        if tls:
            port = stack.enter_context(Distance(port, comparison.round_trip_ms / 1000)).hello["port"]
        base_url = f"{'https' if tls else 'http'}://127.0.0.1:{port}/v1"
        job: dict[str, Any] = {"work": comparison.work, "calls": comparison.calls, "ca": ca if tls else None}
        for number in range(rounds):
            for way in comparison.ways if number % 2 else reversed(comparison.ways):
                took[way].append(client.run("limits.cold", base_url, way=way, **job)["took_s"])
    return figures_of(comparison, {way: tuple(samples) for way, samples in took.items()})


def figures_of(comparison: Comparison, took: dict[str, tuple[float, ...]]) -> list[Figure]:
    """What one comparison came to: the times, and the cold client's as multiples of the others'."""
    group, cold = f"cold: {comparison.title}", took[COLD]
    target = HEADS if comparison.work == STREAMS else None
    note = f"{min(cold):.3f} to {max(cold):.3f} s"
    made = [Figure(group, COLD, "", median(cold), "s", target, cold, note)]
    for way, samples in took.items():
        if way == COLD:
            continue
        made.append(Figure(group, way, "", median(samples), "s", None, samples))
        ratios = tuple(mine / other for mine, other in zip(cold, samples, strict=True))
        target = comparison.target if way == UNLIMITED and comparison.work != STREAMS else None
        note = f"{min(ratios):.3f} to {max(ratios):.3f}"
        made.append(Figure(group, f"{COLD} : {way}", "", paired_ratio(cold, samples), "times", target, ratios, note))
    return made
