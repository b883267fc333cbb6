"""The backends, and the measurements in which each takes part."""

import importlib.util
from dataclasses import dataclass

UVLOOP, ASYNCIO = "uvloop", "asyncio"
"""uvicorn uses the first when it is installed with its usual extras."""
LOOPS = (UVLOOP, ASYNCIO) if importlib.util.find_spec("uvloop") else (ASYNCIO,)


@dataclass(frozen=True, slots=True)
class Backend:
    """A backend: a function of `apps`, and where it takes part.

    Attributes:
        slow: It gets fewer tokens, as it would take minutes otherwise.
        reads_everything: It reads all that the API offers and sends fewer events, so it is offered one long completion.
        first_attempt: With how many streams the search begins.
        cpu, streams, memory, leaving: The event loops on which it takes part in each measurement.
    """

    name: str
    app: str
    package: str = "together-async"
    slow: bool = False
    reads_everything: bool = False
    first_attempt: int = 0
    cpu: tuple[str, ...] = ()
    streams: tuple[str, ...] = ()
    memory: tuple[str, ...] = ()
    leaving: tuple[str, ...] = LOOPS[:1]


ONE, BOTH = LOOPS[:1], LOOPS
SSE, OPENAI = "sse-starlette", "openai"
OURS, PASSTHROUGH, PEER = "ours", "ours passthrough", "openai+sse-starlette"
SOCKETS, BY_HAND = "sockets alone", "by hand"
BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(SOCKETS, "sockets", "aiohttp", cpu=BOTH, leaving=()),
        Backend(BY_HAND, "by_hand", "aiohttp", first_attempt=500, cpu=BOTH, streams=ONE, memory=ONE),
        Backend(OURS, "ours_chunks", first_attempt=400, cpu=BOTH, streams=BOTH, memory=BOTH),
        Backend("ours text", "ours_text", cpu=ONE, memory=ONE),
        Backend(PASSTHROUGH, "ours_passthrough", first_attempt=450, cpu=BOTH, streams=ONE, memory=BOTH),
        Backend("ours coalesce", "ours_coalesce", reads_everything=True, memory=ONE),
        Backend("ours aiohttp.web", "ours_aiohttp", cpu=BOTH, memory=ONE),
        Backend(PEER, "sse_starlette_chunks", SSE, slow=True, first_attempt=80, cpu=BOTH, streams=BOTH, memory=BOTH),
        Backend(f"{PEER} text", "sse_starlette_text", SSE, slow=True, cpu=ONE, leaving=()),
        Backend(f"{PEER} break", "sse_starlette_break", SSE, slow=True),
        Backend("openai+StreamingResponse", "streaming_response", OPENAI, slow=True, cpu=ONE),
        Backend("openai+fastapi.sse", "fastapi_sse", "fastapi", slow=True, cpu=ONE),
        Backend("openai+aiohttp.web", "openai_aiohttp_web", OPENAI, slow=True),
    )
}


MAIN = (SOCKETS, BY_HAND, OURS, PASSTHROUGH, PEER)
"""The backends of the ratios: they take part in every round, the others in two."""
OTHERS_ROUNDS = 2
"""The rounds of the others, and of all backends on the loop that uvicorn does not prefer."""
CPU, STREAMS_PART, MEMORY, LEAVING = "cpu", "streams", "memory", "leaving"
