"""A child process that makes calls while it is stopped. It prints what became of them.

Run as a module with: the name of a loop, three base URLs (see `HeldServers.urls`), a file with the certificate
authority of the servers, and the seconds of each limit.
"""

import asyncio
import json
import ssl
import sys

from support.late_loops import LOOPS, outcomes

if __name__ == "__main__":
    _, loop, plain, on_tls, silent, authority, limit_s = sys.argv
    import together_async.http.transport  # noqa: F401 - loading it takes as long as a limit

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        tls = ssl.create_default_context(cafile=authority)
        print(json.dumps(runner.run(outcomes((plain, on_tls, silent), tls, float(limit_s), tls_too=True))))
