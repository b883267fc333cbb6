"""One module per client, with the loop its documentation shows.

Each module has

    connect(settings)                  async context manager of a client object, made as the documentation says
    consume(client, model, note)       one stream; `note(text)` for every token, and the loop ends when it returns true

for the fault cases, in those that are judged by them,

    ERRORS                             the base of the client's own tree of errors
    chunks(client, model, messages, options)   async iterator of the chunks of one stream

and, where the slow-consumer group needs it, `slowly(client, model, pause_s)`: one token, a pause, then the end.
All the same work is done per token everywhere: the delta's text is fetched and `note` is called with it.
"""

import importlib
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]
Note = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a client is made. `streams`: so many at once, so pools are sized for it. `read_bytes`: see `raw`.

    With `timeout_s` a client gives up after so many seconds without news, in whatever way its documentation says that,
    and does not try again.
    """

    base_url: str
    streams: int = 1
    read_bytes: int | None = None
    ca: str | None = None
    variant: str = ""
    timeout_s: float | None = None

    def tls(self) -> ssl.SSLContext | None:
        """A context that trusts the certificate of the benchmark's server, or None without TLS."""
        return ssl.create_default_context(cafile=self.ca) if self.ca else None


@dataclass(frozen=True, slots=True)
class Peer:
    """A row of the report: `module` with `variant`; `package` gives the version; `tokens` are enough for a blast."""

    name: str
    module: str
    package: str
    tokens: int
    variant: str = ""
    requirement: str = ""  # not None: lives in a side environment of its own

    def load(self) -> ModuleType:
        return importlib.import_module(f"benchmarks.clients.{self.module}")


PEERS = {
    peer.name: peer
    for peer in (
        Peer("ours", "ours", "together-async", 300_000),
        Peer("ours text()", "ours", "together-async", 300_000, "text"),
        Peer("raw loop", "raw", "aiohttp", 300_000),
        Peer("bytes only", "body", "aiohttp", 300_000),
        Peer("together<2", "together_sdk", "together", 60_000, requirement="together<2"),
        Peer("together", "together_sdk", "together", 10_000),
        Peer("together+aiohttp", "together_sdk", "together", 10_000, "aiohttp"),
        Peer("openai", "openai_sdk", "openai", 10_000),
        Peer("openai+aiohttp", "openai_sdk", "openai", 10_000, "aiohttp"),
        Peer("litellm", "litellm_sdk", "litellm", 6_000),
        Peer("httpx-sse", "httpx_sse_loop", "httpx-sse", 20_000),
    )
}
