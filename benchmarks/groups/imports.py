"""CPU seconds of an import with the client object made, in fresh processes, alternated; `import aiohttp` as yardstick.

Measured: process time of the statements, with compiled modules on disk (a first round is thrown away). Also which
packages of the library's optional extras were loaded, which has to be none.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

from benchmarks.processes import ROOT, cores
from benchmarks.stats import Figure, Target, paired_ratio

if TYPE_CHECKING:
    from benchmarks.bench import Bench

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
    """Run it in a fresh interpreter on the clients' core; None if it fails."""
    command = [
        "taskset", "-c", str(min(cores()[1])), sys.executable, "-W", "ignore", "-c", PROGRAM.format(statement, OPTIONAL)
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        return None
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


def run(bench: Bench) -> None:
    bench.say("import")
    names = [name for name in STATEMENTS if name == "aiohttp" or name in bench.wanted(*STATEMENTS)]
    seconds: dict[str, list[float]] = {}
    loaded: dict[str, object] = {}
    for round_ in range(1 + (3 if bench.quick else max(ROUNDS, bench.rounds))):
        for name in list(names):
            result = once(STATEMENTS[name])
            if result is None:
                bench.say(f"  {name} left out: it cannot be imported")
                names.remove(name)
            elif round_:
                seconds.setdefault(name, []).append(float(str(result["seconds"])))
                loaded[name] = result["loaded"]
    for name, samples in seconds.items():
        value = sorted(samples)[len(samples) // 2] * 1e3
        bench.add(Figure("import", name, "client made", value, "ms", samples=tuple(samples)))
    if "ours" in seconds:
        ratio = paired_ratio(seconds["ours"], seconds["aiohttp"])
        note = f"optional packages loaded: {loaded['ours'] or 'none'}"
        bench.add(Figure("import", "ours : aiohttp", "", ratio, "x", Target(1.2, 0.45), note=note))
