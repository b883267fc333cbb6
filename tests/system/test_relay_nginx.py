"""The relay behind a real nginx: tokens arrive one by one, and a client that leaves nginx leaves the model."""

import asyncio
import contextlib
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from support.relay_apps import (
    SOON,
    TOKEN_MARK,
    Process,
    Upstream,
    Visitor,
    free_port,
    leaving,
    nothing_left,
    running,
    until,
)

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

# The default of a distribution, apart from the places of files: `proxy_pass` and nothing else.
CONFIGURATION = """
daemon off; master_process off; pid {directory}/nginx.pid; error_log {directory}/error.log;
events {{ }}
http {{
  access_log off;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  {servers}
}}
"""
SERVER = "server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{behind}; {more} }} }}"
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
    directory = tmp_path_factory.mktemp("nginx")
    found, servers = {}, []
    for name, process in behind.items():
        for kind, more in (("default", ""), ("buffers", BUFFERS), ("keeps", HTTP_1_1)):
            found[name, kind] = free_port()
            servers.append(SERVER.format(port=found[name, kind], behind=process.port, more=more))
    configuration = directory / "nginx.conf"
    configuration.write_text(CONFIGURATION.format(directory=directory, servers="\n".join(servers)))
    assert NGINX is not None
    with subprocess.Popen(
        [NGINX, "-p", str(directory), "-c", str(configuration), "-e", str(directory / "error.log")]
    ) as popen:
        try:
            yield found
        finally:
            popen.kill()


@pytest_asyncio.fixture
async def nginx(
    request: pytest.FixtureRequest, behind: dict[str, Process], ports: dict[tuple[str, str], int]
) -> AsyncIterator[tuple[Process, int]]:
    """A server and the port of an nginx in front of it; in the end no relay has left anything in the server."""
    name, kind = request.param
    process, port = behind[name], ports[name, kind]
    await process.ready()
    await _listens(port)
    async with nothing_left(process):
        yield process, port


async def _listens(port: int) -> None:
    for _ in range(500):
        with contextlib.suppress(ConnectionError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.02)
    raise AssertionError("nginx does not listen")


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
