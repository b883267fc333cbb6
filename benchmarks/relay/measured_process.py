"""CPU and memory of another process, read from outside."""

import re
import time
from pathlib import Path


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, user and system, by its own clock (what `clock_getcpuclockid` gives)."""
    return time.clock_gettime((~pid << 3) | 2)


def waited_s(pid: int) -> float:
    """Seconds for which a process and this one have waited for a core that others used."""
    return sum(int(Path(f"/proc/{process}/schedstat").read_text().split()[1]) for process in (pid, "self")) / 1e9


class Meter:
    """What a window of time cost the backend and this process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.began = self._now()

    def _now(self) -> tuple[float, float, float, float]:
        return cpu_s(self.pid), time.process_time(), waited_s(self.pid), time.monotonic()

    def read(self) -> dict[str, float]:
        """CPU seconds of the backend, elapsed seconds, and the shares of them in which each was busy or had to wait."""
        cpu, own, waited, took = (now - then for now, then in zip(self._now(), self.began, strict=True))
        return {"cpu_s": cpu, "took_s": took, "busy": cpu / took, "load": own / took, "waited": waited / took}


def memory_mib(pid: int) -> tuple[float, float]:
    """Resident memory of a process: now, and its peak since `forget_peak`."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = dict(re.findall(r"^(VmRSS|VmHWM):\s*(\d+) kB", status, re.MULTILINE))
    return int(found["VmRSS"]) / 1024, int(found["VmHWM"]) / 1024


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")
