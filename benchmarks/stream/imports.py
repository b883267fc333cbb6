"""CPU seconds of the import and of making a client, in fresh processes, in turn; `import aiohttp` is the yardstick.

Measured: process time of the statements, with compiled modules on disk (the first round is thrown away); and which
packages of the library's optional extras were loaded: there should be none.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

from benchmarks.harness.figures import Figure, Target, paired_ratio
from benchmarks.harness.processes import ROOT, cores

if TYPE_CHECKING:
    from benchmarks.stream.benchmark import StreamBenchmark

STATEMENTS = {
    "aiohttp": "import aiohttp",
    "ours": "import together_async; together_async.AsyncTogether(api_key='x')",
    "openai": "import openai; openai.AsyncOpenAI(api_key='x')",
    "together": "import together; together.AsyncTogether(api_key='x')",
    "litellm": "import os; os.environ['LITELLM_LOCAL_MODEL_COST_MAP'] = 'True'; import litellm",
}
OPTIONAL = ("click", "rich", "redis", "pydantic", "starlette", "opentelemetry", "prometheus_client", "httpx", "pytest")
PROGRAM = """
import json, sys, time
started = time.process_time()
{}
seconds = time.process_time() - started
print(json.dumps({{"seconds": seconds, "loaded": [name for name in {!r} if name in sys.modules]}}))
"""
ROUNDS = 9
TIMEOUT_S = 60


def once(statement: str) -> dict[str, object] | None:
    """Runs the statement in a fresh interpreter on the clients' core; None if it fails."""
    command = [
        "taskset",
        "-c",
        str(min(cores()[1])),
        sys.executable,
        "-W",
        "ignore",
        "-c",
        PROGRAM.format(statement, OPTIONAL),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        return None
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


def run(benchmark: StreamBenchmark) -> None:
    benchmark.say("import")
    names = [name for name in STATEMENTS if name == "aiohttp" or name in benchmark.wanted(*STATEMENTS)]
    seconds: dict[str, list[float]] = {}
    loaded: dict[str, object] = {}
    for round_ in range(1 + (3 if benchmark.quick else max(ROUNDS, benchmark.rounds))):
        for name in list(names):
            result = once(STATEMENTS[name])
            if result is None:
                benchmark.say(f"  {name} left out: it cannot be imported")
                names.remove(name)
            elif round_:
                seconds.setdefault(name, []).append(float(str(result["seconds"])))
                loaded[name] = result["loaded"]
    for name, samples in seconds.items():
        value = sorted(samples)[len(samples) // 2] * 1e3
        benchmark.add(Figure("import", name, "client made", value, "ms", samples=tuple(samples)))
    if "ours" in seconds:
        ratio = paired_ratio(seconds["ours"], seconds["aiohttp"])
        note = f"optional packages loaded: {loaded['ours'] or 'none'}"
        benchmark.add(Figure("import", "ours : aiohttp", "", ratio, "x", Target(1.2, 0.45), note=note))
