"""A process that prepares itself once and then forks children, each of which runs a batch and may be killed.

Started by the tests, it takes a line of JSON for each command on its standard input and answers each with a line:

* `{"run": {...}}`: a child begins; the answer is its process id.
* `{"kill": true}` or `{"kill": false}`: SIGKILL for the child, or none; the answer is how it ended, as `waitpid` says.

A child is a process with an event loop, a pool of connections and file descriptors of its own. It writes down the name
and hash of each result that `run_batch` reports as done, with one `write` to a file, which outlives a SIGKILL.
"""

import asyncio
import gc
import json
import os
import signal
import sys
import traceback
from typing import Any

import together_async.batch.report
import together_async.batch.runner
import together_async.http.transport  # noqa: F401 - so that children need not import it
from together_async import AsyncTogether, Retry
from together_async.batch.record import Record


async def run(base_url: str, input: str, output: str, reported: str, number: int, options: dict[str, Any]) -> None:
    """Runs one batch."""
    fd = os.open(reported, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(record: Record) -> None:
        os.write(fd, f"{record.custom_id} {record.body_hash} {int(record.ok)}\n".encode())

    retry = Retry(attempts=2, base_delay=0.01)
    async with AsyncTogether("any-key", base_url=base_url, retry=retry, headers={"x-run": str(number)}) as client:
        await client.run_batch(input, output, on_result=note, **options)


def child(settings: dict[str, Any]) -> None:
    """Runs in the child, and never returns."""
    status = 70
    try:
        os.close(0)
        asyncio.run(run(**settings))
        status = 0
    except BaseException:  # noqa: BLE001 - pytest shows the traceback
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Runs commands until the input ends."""
    pid = 0
    gc.collect()
    gc.freeze()
    for line in sys.stdin.buffer:
        command = json.loads(line)
        if "run" in command:
            pid = os.fork()
            if pid == 0:
                child(command["run"])
            answer = pid
        else:
            if command["kill"]:
                os.kill(pid, signal.SIGKILL)  # not reaped yet, so it is that one in any case
            _, answer = os.waitpid(pid, 0)
        os.write(1, f"{answer}\n".encode())


if __name__ == "__main__":
    main()
