"""`headers`: the headers of a request, and who may replace them."""

from pathlib import Path

import pytest

from support.clients import client_of, served
from support.servers import KEY, MODEL, ScriptedServer, answers, response, whole

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_netrc_does_not_replace_the_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A .netrc entry for the host is not sent in place of the key."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    async with ScriptedServer(answers(response(whole()))) as server, client_of(server) as client:
        await client.create("Hi", model=MODEL)
    assert server.calls[0].headers["authorization"] == f"Bearer {KEY}"


async def test_headers_replace_ours() -> None:
    """A caller's header takes the place of ours, whatever its case."""
    async with served(answers(response(whole())), headers={"AUTHORIZATION": "Basic x", "user-agent": "me"}) as (
        server,
        client,
    ):
        await client.create("Hi", model=MODEL, headers={"User-Agent": "call"})
    (call,) = server.calls
    assert call.headers["authorization"] == "Basic x"
    assert call.headers["user-agent"] == "call"
