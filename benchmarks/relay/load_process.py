"""The process of `load`: each line on standard input is a job, a function below; its result is the line in response.

The backend's CPU is that of its process's own clock, user and system; its memory is the kernel's figure.
"""

import json
import sys
import time
from typing import Any

from benchmarks.harness import event_server
from benchmarks.harness.figures import percentile
from benchmarks.harness.this_process import raise_descriptor_limit
from benchmarks.relay.load import QUIET_S, Load
from benchmarks.relay.measured_process import Meter, cpu_s, forget_peak, memory_mib

GATHERED_S = 0.5
"""How long `event_server.paced` waits once all streams are open."""
WARM_UP_S = 0.7
SETTLED_S = 1.0


def blast(load: Load, job: dict[str, Any]) -> dict[str, Any]:
    """CPU of a token when tokens come as fast as the backend accepts them."""
    streams, tokens, pid = job["streams"], job["tokens"], job["pid"]
    browsers = load.open_all(job["port"], f"bench.blast.{tokens}.{streams}", streams)
    load.serve_for(QUIET_S)
    meter = Meter(pid)
    load.until(lambda: load.ended + len(load.failures) >= streams, 120)
    result = meter.read()
    least = min(browser.events for browser in browsers)
    complete = load.ended
    load.disconnect_all(pid)
    if complete < streams or (least < 0.999 * (tokens - 2) and not job["merges"]):
        raise RuntimeError(f"{complete} of {streams} complete, {least} of {tokens} tokens; {load.failures[:3]}")
    return {**result, "us": result["cpu_s"] / streams / tokens * 1e6}


def paced(load: Load, job: dict[str, Any]) -> dict[str, Any]:
    """CPU of a token, and its delay, when each comes by itself."""
    streams, rate, pid = job["streams"], job["rate"], job["pid"]
    load.open_all(job["port"], f"bench.paced.{rate}.{streams}", streams)
    load.delays, meter = [], Meter(pid)
    load.serve_for(GATHERED_S + WARM_UP_S)
    late = percentile(load.delays[-streams:] or [job["hopeless_s"]], 50)
    if late >= job["hopeless_s"]:
        load.disconnect_all(pid)
        return {**meter.read(), "p50_ms": late * 1e3, "p99_ms": late * 1e3, "share": 0.0}
    load.delays.clear()
    events, meter = load.events, Meter(pid)
    load.serve_for(job["window_s"])
    result, events, delays, failures = meter.read(), load.events - events, load.delays, load.failures
    load.delays = None
    load.disconnect_all(pid)
    if failures or not delays:
        raise RuntimeError(f"{events} tokens, {len(delays)} that say when; {failures[:3]}")
    return {
        **result,
        "us": result["cpu_s"] / events * 1e6,
        "p50_ms": percentile(delays, 50) * 1e3,
        "p99_ms": percentile(delays, 99) * 1e3,
        "share": events / (result["took_s"] * rate * streams),
    }


def memory(load: Load, job: dict[str, Any]) -> dict[str, Any]:
    """The backend's memory when `readers` browsers stop reading, each after its first event."""
    readers, tokens, pid = job["readers"], job["tokens"], job["pid"]
    load.calm(pid, 10)
    forget_peak(pid)
    before = memory_mib(pid)[0]
    sent, cpu = load.sent_bytes, cpu_s(pid)
    load.stops = True
    try:
        load.open_all(job["port"], f"bench.blast.{tokens}.{readers}", readers)
        load.serve_for(2 * QUIET_S + event_server.GATHER_DELAY_S + readers * event_server.GATHER_DELAY_PER_STREAM_S)
        settled = load.calm(pid, job["timeout_s"], SETTLED_S)
        after, peak = memory_mib(pid)
        result = {
            "before_mib": before,
            "after_mib": after,
            "peak_mib": peak,
            "settled": settled,
            "taken_bytes": (load.sent_bytes - sent) / readers,
            "cpu_s": cpu_s(pid) - cpu,
            "failures": load.failures[:3],
        }
        load.disconnect_all(pid)
        result["left_mib"] = memory_mib(pid)[0]
    finally:
        load.stops = False
    return result


def leave(load: Load, job: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds from a browser's leaving to the API's seeing it; None if longer than `max_pause_s`."""
    return {"silent": left(load, job, job["silent"], 3), "flowing": left(load, job, job["flowing"], 0)}


def left(load: Load, job: dict[str, Any], count: int, tokens: int) -> list[float | None]:
    load.closed_s.clear()
    browsers = load.open_all(job["port"], f"bench.leaving.{job['rate']}.{tokens}.{{}}", count)
    load.serve_for(0.5)
    left_s = {}
    for browser in browsers:
        load.disconnect(browser)
        left_s[browser.number] = time.monotonic()
        load.serve_for(job["between_s"])
    load.until(lambda: len(load.closed_s) >= count, job["max_pause_s"])
    longest = {number: load.closed_s.get(number, float("inf")) - at for number, at in left_s.items()}
    load.disconnect_all(job["pid"])
    return [took * 1e3 if took < job["max_pause_s"] else None for took in longest.values()]


JOBS = {"blast": blast, "paced": paced, "memory": memory, "leave": leave}


def main() -> None:
    raise_descriptor_limit()
    load = Load()
    print(json.dumps({"port": load.port}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = JOBS[job["do"]](load, job)
        except (RuntimeError, OSError) as error:
            load.disconnect_all(0)
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
