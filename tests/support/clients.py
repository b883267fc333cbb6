"""Clients of scripted servers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from support.servers import KEY, Script, ScriptedServer
from together_async import AsyncTogether


@contextlib.asynccontextmanager
async def served(*scripts: Script, **options: Any) -> AsyncIterator[tuple[ScriptedServer, AsyncTogether]]:
    """A server that follows the scripts, one a call, and a client of it."""
    async with ScriptedServer(*scripts) as server, AsyncTogether(KEY, base_url=server.base_url, **options) as client:
        yield server, client
