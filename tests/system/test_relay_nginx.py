"""The relay behind a real nginx: tokens arrive one by one, and a client that leaves nginx leaves the model."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from support.nginx import NGINX, running_nginx
from support.relay_apps import (
    SOON,
    TOKEN_MARK,
    Process,
    Upstream,
    Visitor,
    leaving,
    nothing_left,
    running,
    until,
)

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

BUFFERS = "proxy_ignore_headers X-Accel-Buffering;"
HTTP_1_1 = 'proxy_http_version 1.1; proxy_set_header Connection "";'


@pytest.fixture(scope="module")
def behind(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Process]]:
    """The servers behind nginx."""
    directory = tmp_path_factory.mktemp("servers")
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(running(name, upstream.emulator.base_url, directory))
            for name in ("uvicorn-asyncio-h11", "aiohttp")
        }


@pytest.fixture(scope="module")
def ports(behind: dict[str, Process], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], int]]:
    """The ports of one nginx, three for each server: nginx's defaults, buffering, and kept connections."""
    locations = {
        (name, kind): f"proxy_pass http://127.0.0.1:{process.port}; {more}"
        for name, process in behind.items()
        for kind, more in (("default", ""), ("buffers", BUFFERS), ("keeps", HTTP_1_1))
    }
    with running_nginx(tmp_path_factory.mktemp("nginx"), *locations.values()) as found:
        yield dict(zip(locations, found, strict=True))


@pytest_asyncio.fixture
async def nginx(
    request: pytest.FixtureRequest, behind: dict[str, Process], ports: dict[tuple[str, str], int]
) -> AsyncIterator[tuple[Process, int]]:
    """A server and the port of an nginx in front of it; in the end no relay has left anything in the server."""
    name, kind = request.param
    process, port = behind[name], ports[name, kind]
    await process.ready()
    async with nothing_left(process):
        yield process, port


def _id(value: tuple[str, str] | str) -> str:
    return value if isinstance(value, str) else "-".join(value)


EVERY = [("uvicorn-asyncio-h11", kind) for kind in ("default", "buffers", "keeps")] + [("aiohttp", "default")]
AS_IT_IS = [(name, kind) for name, kind in EVERY if kind != "buffers"]


@pytest.mark.parametrize("nginx", AS_IT_IS, indirect=True, ids=_id)
async def test_tokens_come_one_by_one_through_nginx_as_it_is(nginx: tuple[Process, int], upstream: Upstream) -> None:
    """By default nginx collects 4 kB before it sends; here three tokens come while the model is silent."""
    _, port = nginx
    with Visitor(port) as visitor:
        await visitor.ask("/chat", model="silence", prompt=upstream.prompt(), heartbeat=60)
        got = await visitor.until(TOKEN_MARK, 3)
    assert got.startswith(b"HTTP/1.1 200 ")
    assert got.count(TOKEN_MARK) == 3


@pytest.mark.parametrize("nginx", [("uvicorn-asyncio-h11", "buffers")], indirect=True, ids=_id)
async def test_an_nginx_that_is_told_to_ignore_it_collects(nginx: tuple[Process, int], upstream: Upstream) -> None:
    """Proof that the buffering nginx of the tests below does buffer: three tokens don't come through."""
    _, port = nginx
    prompt = upstream.prompt()
    with Visitor(port) as visitor:
        await visitor.ask("/chat", model="silence", prompt=prompt)
        entry = await upstream.entry(prompt)
        await until(lambda: entry.tokens_written == 3, "three tokens")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(visitor.read(), 0.1)


# A buffering nginx takes the 16 MB of `bulk` itself.
CASES = [(server, stage) for server in EVERY for stage in ("head", "first", "silence", "tokens", "bulk")]
CASES = [(server, stage) for server, stage in CASES if (server[1], stage) != ("buffers", "bulk")]


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize(("nginx", "stage"), CASES, indirect=["nginx"], ids=_id)
async def test_leaving_nginx_leaves_the_model(
    nginx: tuple[Process, int], upstream: Upstream, stage: str, how: str
) -> None:
    """At every stage, within 100 ms, whether nginx buffers or not."""
    _, port = nginx
    assert await leaving(port, upstream, stage, how) < SOON
