"""One module per client, each with the loop that its documentation shows.

Each module has

    connect(settings)                  async context manager of a client made as the documentation says
    consume(client, model, note)       one stream; `note(text)` for every token, and the loop ends when it returns true

in clients that the fault cases judge,

    ERRORS                             the base of the client's own tree of errors
    chunks(client, model, messages, options)   async iterator of the chunks of one stream

and, for the group `slow`, `slowly(client, model, pause)`: one token, a pause, then the end. Every client does the same
work per token: it fetches the delta's text and calls `note` with it.
"""

import importlib
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Self

MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]
Note = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Settings:
    """How to make a client. `streams`: how many at once, so that pools have that size. `read_bytes`: see `raw`.

    With `timeout_s` a client gives up after so many seconds without data, set as its documentation shows, and does not
    retry.
    """

    base_url: str
    streams: int = 1
    read_bytes: int | None = None
    ca: str | None = None
    variant: str = ""
    timeout_s: float | None = None

    @classmethod
    def for_job(cls, job: dict[str, Any], **more: Any) -> Self:
        """Takes the settings from a job; `more` takes precedence."""
        keys = ("streams", "read_bytes", "ca", "variant")
        return cls(job["base_url"], **{key: job[key] for key in keys if key in job} | more)

    def tls(self) -> ssl.SSLContext | None:
        """A context that trusts the certificate of the benchmark's server, or None without TLS."""
        return ssl.create_default_context(cafile=self.ca) if self.ca else None


@dataclass(frozen=True, slots=True)
class Peer:
    """A row of the report: `module` with `variant`; `package` has the version; `tokens` suffice for `blast`."""

    name: str
    module: str
    package: str
    tokens: int
    variant: str = ""
    requirement: str = ""  # not empty: it needs its own Python environment

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
