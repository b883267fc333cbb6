"""`proxies`: the proxy of an argument or of the environment, with and without TLS."""
# ruff: noqa: SIM117 - a server and its client, one inside the other, read better than a tuple of both

import asyncio
import base64
import traceback

import pytest
import trustme

from support.clients import client_of, text_of
from support.servers import KEY, MODEL, Call, Script, ScriptedServer, answers, hangs, response, streams, whole
from support.survival import chain
from support.tls import client_tls, server_tls
from together_async import APIConnectionError, AsyncTogether

pytestmark = pytest.mark.usefixtures("no_leaks")


def proxying(target: ScriptedServer, *, credentials: str | None = None) -> Script:
    """A proxy for plain HTTP and for CONNECT, which asks for credentials if given."""

    async def script(call: Call) -> None:
        wanted = credentials and "Basic " + base64.b64encode(credentials.encode()).decode()
        if wanted and call.headers.get("proxy-authorization") != wanted:
            await call.send(response(b"who are you", status=407, media_type="text/plain"))
            return
        if call.method != "CONNECT":
            await call.send(response(whole(f"by proxy to {call.target}")))
            return
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        await call.send(b"HTTP/1.1 200 go\r\n\r\n")

        async def upstream() -> None:
            connection = call.connection
            while not connection.left.is_set():
                if connection._buffer:
                    writer.write(bytes(connection._buffer))
                    connection._buffer.clear()
                await connection._fill()

        pumping = asyncio.create_task(upstream())
        try:
            while data := await reader.read(65_536):
                await call.send(data)
        finally:
            pumping.cancel()
            writer.close()
            call.close()

    return script


@pytest.mark.parametrize("credentials", [None, "user:p%40ss"])
@pytest.mark.parametrize("how", ["argument", "HTTP_PROXY", "http_proxy", "ALL_PROXY"])
async def test_plain_http_by_proxy(monkeypatch: pytest.MonkeyPatch, how: str, credentials: str | None) -> None:
    """The proxy gets the whole URL, and its credentials in their own header."""
    async with ScriptedServer(hangs) as target:
        async with ScriptedServer(proxying(target, credentials=credentials and "user:p@ss")) as proxy:
            url = f"http://{credentials + '@' if credentials else ''}127.0.0.1:{proxy.port}"
            options = {"proxy": url} if how == "argument" else {}
            if how != "argument":
                monkeypatch.setenv(how, url)
            async with AsyncTogether(KEY, base_url="http://api.invalid/v1", **options) as client:
                completion = await client.create("Hi", model=MODEL)
    assert completion.text == "by proxy to http://api.invalid/v1/chat/completions"
    assert proxy.calls[0].headers["authorization"] == f"Bearer {KEY}"


async def test_https_by_proxy(authority: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> None:
    """CONNECT: the proxy sees host and port, never the key."""
    async with ScriptedServer(streams("a", "b"), ssl_context=server_tls(authority)) as target:
        async with ScriptedServer(proxying(target, credentials="user:pass")) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"http://user:pass@127.0.0.1:{proxy.port}")
            async with client_of(target, ssl=client_tls(authority)) as client:
                assert await text_of(client) == "ab"
            (call,) = proxy.calls
            assert call.target == f"127.0.0.1:{target.port}"
            assert KEY not in str(call.headers)
            assert "proxy-authorization" not in target.calls[0].headers


async def test_a_proxy_that_refuses(authority: trustme.CA) -> None:
    """A refused CONNECT is a typed error in which neither the proxy's password nor the key shows."""
    async with ScriptedServer(hangs, ssl_context=server_tls(authority)) as target:
        async with ScriptedServer(proxying(target, credentials="user:other")) as proxy:
            url = f"http://user:hunter22@127.0.0.1:{proxy.port}"
            async with client_of(target, ssl=client_tls(authority), proxy=url) as client:
                with pytest.raises(APIConnectionError, match="407") as caught:
                    await client.create("Hi", model=MODEL)
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert "hunter22" not in str(caught.value)
    assert base64.b64encode(b"user:hunter22").decode() not in shown
    assert KEY not in shown


@pytest.mark.parametrize("bypass", ["127.0.0.1", "*", "localhost,127.0.0.1"])
async def test_no_proxy(monkeypatch: pytest.MonkeyPatch, bypass: str) -> None:
    """Hosts of NO_PROXY are asked directly."""
    async with ScriptedServer(answers(response(whole()))) as server:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        monkeypatch.setenv("NO_PROXY", bypass)
        async with client_of(server) as client:
            await client.create("Hi", model=MODEL)


async def test_an_empty_proxy_argument_uses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """`proxy=""` switches the environment's off."""
    async with ScriptedServer(answers(response(whole()))) as server:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        async with client_of(server, proxy="") as client:
            await client.create("Hi", model=MODEL)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "http://u:hunter22@h:port", "http://", "x y"])
async def test_a_bad_proxy_is_a_typed_error(proxy: str) -> None:
    """An invalid proxy is a typed error that does not repeat its password."""
    async with ScriptedServer(hangs) as server, client_of(server, proxy=proxy) as client:
        with pytest.raises(APIConnectionError) as caught:
            await client.create("Hi", model=MODEL)
        assert all("hunter22" not in str(error) for error in chain(caught.value))
