"""`deadlines`: the process is stopped for longer than every limit, as by a laptop's lid or a paused machine."""

import concurrent.futures
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import trustme

from support.late_loops import LOOPS, HeldServers, expected
from support.paths import TESTS
from support.tls import server_tls

LIMIT_S = 1.5
STOP_S = 2.0


def stopped(loop: str, authority: trustme.CA, certificate: Path) -> Any:
    """What becomes of the calls of a process that is stopped while their answers come."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(TESTS.parent), str(TESTS)))}
    with HeldServers(server_tls(authority)) as servers:
        arguments = (loop, *servers.urls, str(certificate), str(LIMIT_S))
        with subprocess.Popen(
            [sys.executable, "-m", "support.stopped_child", *arguments],
            stdout=subprocess.PIPE,
            env=environment,
        ) as child:
            try:
                servers.wait_for_calls(tls_too=True)
                child.send_signal(signal.SIGSTOP)
                os.waitpid(child.pid, os.WUNTRACED)
                servers.release()
                time.sleep(STOP_S)
                child.send_signal(signal.SIGCONT)
                output, _ = child.communicate(timeout=30)
            finally:
                child.kill()
    return json.loads(output)


def test_nothing_good_is_given_up(authority: trustme.CA, tmp_path: Path) -> None:
    """Each answer that came while the process stood still is read, and silence still ends, on every loop.

    A loop that goes on runs its timers before it looks at its sockets: the signal has interrupted its wait, which
    counts as a wait that brought nothing.
    """
    pytest.importorskip("uvloop")
    certificate = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(certificate)
    with concurrent.futures.ThreadPoolExecutor() as threads:
        run = functools.partial(stopped, authority=authority, certificate=certificate)
        assert list(threads.map(run, LOOPS)) == [expected(tls_too=True)] * len(LOOPS)
