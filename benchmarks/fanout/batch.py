"""A durable batch without a server: what it costs compared with a plain `map`, and how long it takes to resume.

Each measurement runs in its own process. In place of the session is one that answers in the next turn of the event loop
(`memory`); the files are real, on the disk of the temporary folder.

`journal`: CPU of a request of `run_batch`, less that of the same request of `map`, plus its share of the seconds spent
in `fsync`; so it includes reading and planning the input.

`resume`: from the call of `run_batch` to its end, with an output that lacks the result of one request.
"""

import argparse
import asyncio
import functools
import gc
import itertools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, Self

from benchmarks.fanout.memory import AT_ONCE, Session
from benchmarks.fanout.workload import MODEL, WHOLE_TEXT, texts
from benchmarks.harness.figures import Figure, Target
from benchmarks.harness.processes import ChildError, Process, cores, module_command
from benchmarks.harness.this_process import version

RESULTS, QUICK_RESULTS = 20_000, 3_000
SIZES, QUICK_SIZES = (10_000, 30_000, 100_000), (1_000, 3_000, 10_000)
PEER_SIZES = 2
"""The other library gets only so many of the sizes: it takes minutes for more."""
JOURNAL = Target(60)
RESUME_S = Target(1.0)
LINEAR = Target(1.3)
"""How many times as much a line may cost in the longest output as in the shortest."""
TIMEOUT_S = 600.0


class FsyncTimer:
    """Counts calls of `os.fsync`, and the seconds spent in it, while entered."""

    def __enter__(self) -> Self:
        self.seconds, self.calls, self.fsync = 0.0, 0, os.fsync
        os.fsync = self
        return self

    def __call__(self, fd: Any) -> None:
        started = time.perf_counter()
        self.fsync(fd)
        self.seconds += time.perf_counter() - started
        self.calls += 1

    def __exit__(self, *_: object) -> None:
        os.fsync = self.fsync


def bodies(count: int) -> Iterator[dict[str, Any]]:
    for text in texts(count):
        yield {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 64}


def write_input(path: Path, count: int) -> None:
    with path.open("w") as file:
        for number, body in enumerate(bodies(count)):
            file.write(json.dumps({"custom_id": f"request-{number}", "body": body}) + "\n")


def head_of(path: Path, lines: int, to: Path) -> None:
    with path.open("rb") as file, to.open("wb") as copy:
        copy.writelines(itertools.islice(file, lines))


def client() -> Any:
    from together_async import AsyncTogether

    session: Any = Session()
    return AsyncTogether("key-of-the-benchmarks", base_url="http://nowhere.invalid/v1", session=session)


async def cost(run: Callable[[], Awaitable[Any]]) -> tuple[float, float]:
    """Runs it; returns CPU seconds and elapsed seconds."""
    gc.collect()
    cpu_s, started = time.process_time(), time.perf_counter()
    await run()
    return time.process_time() - cpu_s, time.perf_counter() - started


async def journal(folder: Path, results: int, rounds: int) -> dict[str, Any]:
    """Returns, for each round, the microseconds per result of map and batch, and a result's share of the fsyncs."""
    write_input(folder / "in.jsonl", results)
    found: dict[str, Any] = {"map": [], "batch": [], "fsync": [], "fsyncs": [], "results": results}
    async with client() as made:

        async def plain() -> None:
            async for result in made.map(bodies(results), concurrency=AT_ONCE):
                assert result.completion is not None, result.error

        async def batch() -> None:
            summary = await made.run_batch(folder / "in.jsonl", folder / "out.jsonl", concurrency=AT_ONCE, stream=False)
            assert summary.done == results, summary

        for _ in range(rounds):
            found["map"].append((await cost(plain))[0] / results * 1e6)
            with FsyncTimer() as fsyncs:
                found["batch"].append((await cost(batch))[0] / results * 1e6)
            found["fsync"].append(fsyncs.seconds / results * 1e6)
            found["fsyncs"].append(fsyncs.calls)
            (folder / "out.jsonl").unlink()
    return found


async def resume(folder: Path, sizes: Iterable[int], rounds: int) -> dict[str, Any]:
    """Returns the seconds of each round, by size."""
    most = max(sizes)
    write_input(folder / "all.jsonl", most + 1)
    head_of(folder / "all.jsonl", most, folder / "in.jsonl")
    found: dict[str, Any] = {}
    async with client() as made:
        await made.run_batch(folder / "in.jsonl", folder / "done.jsonl", concurrency=AT_ONCE, stream=False)
        for size in sizes:
            done = (folder / "done.jsonl").read_bytes().splitlines(keepends=True)
            # The output is in the order in which the results came; wanted are those of the input's first requests.
            wanted = {f"request-{number}" for number in range(size)}
            kept = [line for line in done if json.loads(line)["custom_id"] in wanted]
            head_of(folder / "all.jsonl", size + 1, folder / "in.jsonl")
            for _ in range(rounds):
                (folder / "out.jsonl").write_bytes(b"".join(kept))

                async def run_again(size: int = size) -> None:
                    summary = await made.run_batch(
                        folder / "in.jsonl", folder / "out.jsonl", concurrency=AT_ONCE, stream=False
                    )
                    assert (summary.resumed, summary.done) == (size, size + 1), summary

                found.setdefault(str(size), []).append((await cost(run_again))[1])
    return {"seconds": found}


async def peer_resume(folder: Path, sizes: Iterable[int], rounds: int) -> dict[str, Any]:
    """The same with `async-batch-llm`, its store of JSON lines and a strategy that answers at once."""
    from async_batch_llm import (
        JsonlArtifactStore,
        LLMCallStrategy,
        ProcessorConfig,
        ResumePolicy,
        process_stream,
    )

    class Memory(LLMCallStrategy[str]):
        async def execute(self, *_: Any, **__: Any) -> Any:
            await asyncio.sleep(0)
            return WHOLE_TEXT, {"input_tokens": 41, "output_tokens": 36, "total_tokens": 77}, None

    async def process(path: Path, count: int) -> None:
        store, succeeded = JsonlArtifactStore(path), 0
        prompts = [(f"request-{number}", text) for number, text in enumerate(texts(count))]
        async for result in process_stream(
            Memory(),
            prompts,
            config=ProcessorConfig(concurrency=AT_ONCE),
            artifact_store=store,
            resume=ResumePolicy.REUSE_SUCCESSES,
        ):
            succeeded += result.success
        await store.close()
        assert succeeded == count, (succeeded, count)

    found: dict[str, Any] = {}
    for size in sizes:
        done, out = folder / "done.peer", folder / "out.peer"
        done.unlink(missing_ok=True)
        await process(done, size)
        for _ in range(rounds):
            shutil.copy(done, out)
            run_again = functools.partial(process, out, size + 1)
            found.setdefault(str(size), []).append((await cost(run_again))[1])
    return {"seconds": found, "version": version("async-batch-llm")}


WHAT: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
    "journal": journal,
    "resume": resume,
    "peer_resume": peer_resume,
}


def measured(what: str, *numbers: int, rounds: int) -> dict[str, Any]:
    """Measures in its own process.

    Raises:
        ChildError: The process died.
    """
    command = module_command("benchmarks.fanout.batch", what, *map(str, numbers), "--rounds", str(rounds))
    with Process(command, cores()[1], TIMEOUT_S) as process:
        return process.hello


def journal_figures(*, quick: bool, rounds: int) -> list[Figure]:
    found = measured("journal", QUICK_RESULTS if quick else RESULTS, rounds=rounds)
    what = f"of a result, {found['results']:,} results"
    overhead = [
        batch - plain + fsync for batch, plain, fsync in zip(found["batch"], found["map"], found["fsync"], strict=True)
    ]
    note = f"fsync {median(found['fsync']):.1f} us, {median(found['fsyncs']):.0f} of them"
    return [
        Figure("journal", "ours", f"overhead {what}", median(overhead), "us", JOURNAL, tuple(overhead), note),
        Figure(
            "journal", "ours, run_batch", f"CPU {what}", median(found["batch"]), "us", samples=tuple(found["batch"])
        ),
        Figure("journal", "ours, map", f"CPU {what}", median(found["map"]), "us", samples=tuple(found["map"])),
    ]


def resume_figures(*, quick: bool, rounds: int, peers: bool) -> tuple[list[Figure], dict[str, str]]:
    """Returns the figures, and why a client was left out."""
    sizes = QUICK_SIZES if quick else SIZES
    figures = resumed("ours", measured("resume", *sizes, rounds=rounds)["seconds"], full=not quick)
    if not peers:
        return figures, {}
    try:
        found = measured("peer_resume", *sizes[:PEER_SIZES], rounds=1)
    except ChildError as error:
        return figures, {"async-batch-llm, resume": str(error)}
    return figures + resumed("async-batch-llm", found["seconds"], full=False), {}


def resumed(who: str, seconds: dict[str, list[float]], *, full: bool) -> list[Figure]:
    figures = [
        Figure(
            "resume",
            who,
            f"of {int(size):,} lines",
            median(samples),
            "s",
            RESUME_S if full and int(size) == max(SIZES) else None,
            tuple(samples),
            f"{median(samples) / int(size) * 1e6:.1f} us a line",
        )
        for size, samples in seconds.items()
    ]
    first, last = (median(seconds[size]) / int(size) for size in (min(seconds, key=int), max(seconds, key=int)))
    return [
        *figures,
        Figure("resume", who, "a line of the longest : of the shortest", last / first, "x", LINEAR if full else None),
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=list(WHAT))
    parser.add_argument("numbers", type=int, nargs="+")
    parser.add_argument("--rounds", type=int, required=True)
    args = parser.parse_args()
    given: Any = args.numbers[0] if args.what == "journal" else args.numbers
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(WHAT[args.what](Path(folder), given, args.rounds))), flush=True)


if __name__ == "__main__":
    main()
