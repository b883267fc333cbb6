"""`Connections`: the key, the base URL and the session's settings are checked when a client is made."""
# ruff: noqa: SIM117 - a server and its client, one inside the other, read better than a tuple of both

import traceback
from typing import Any

import pytest

from support.servers import KEY, MODEL, ScriptedServer, answers, response, whole
from together_async import AsyncTogether, AuthenticationError

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.mark.parametrize(
    "key",
    [
        KEY + "\n" + KEY,
        KEY + "\x00",
        "\x7f" + KEY,
        KEY[:5] + " " + KEY[5:],
        KEY + "é",
        KEY + "\u200b",
        KEY + "\t" + KEY,
    ],
)
def test_an_invalid_key(key: str) -> None:
    """Control characters, blanks inside, not ASCII: ValueError at once, and no trace of the key in it."""
    with pytest.raises(ValueError, match="api_key") as caught:
        AsyncTogether(key)
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    inside = "".join(
        line
        for frame, text in zip(shown.stack, shown.stack.format(), strict=True)
        for line in [text]
        if frame.filename != __file__
    )
    assert KEY not in str(caught.value)
    assert KEY[:8] not in inside
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("key", [7, b"bytes", object()])
def test_a_key_of_another_type(key: Any) -> None:
    """Only a str is a key."""
    with pytest.raises(ValueError, match="api_key"):
        AsyncTogether(key)


@pytest.mark.parametrize("key", [f"  {KEY}\n", f"\t{KEY}\r\n"])
@pytest.mark.parametrize("how", ["argument", "environment"])
async def test_blanks_around_a_key_are_dropped(monkeypatch: pytest.MonkeyPatch, key: str, how: str) -> None:
    """What a shell or an editor left at the key's ends does no harm."""
    if how == "environment":
        monkeypatch.setenv("TOGETHER_API_KEY", key)
    async with ScriptedServer(answers(response(whole()))) as server:
        async with AsyncTogether(None if how == "environment" else key, base_url=server.base_url) as client:
            await client.create("Hi", model=MODEL)
    assert server.calls[0].headers["authorization"] == f"Bearer {KEY}"


async def test_no_key_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Together needs a key, and nothing is sent without it; another server may not."""
    async with AsyncTogether() as client:
        with pytest.raises(AuthenticationError, match="TOGETHER_API_KEY") as caught:
            await client.create("Hi", model=MODEL)
        assert caught.value.attempts == 0
    async with ScriptedServer(answers(response(whole()))) as server:
        monkeypatch.setenv("TOGETHER_BASE_URL", server.base_url + "/")
        async with AsyncTogether() as client:
            await client.create("Hi", model=MODEL)
    assert "authorization" not in server.calls[0].headers


@pytest.mark.parametrize(
    "url",
    ["", "api.together.xyz", "ftp://x/v1", "http://", "http://u:hunter22@h/v1", "http://h:99999/v1", "http://[::1", 7],
)
def test_an_invalid_base_url(url: Any) -> None:
    """Reported when the client is made, without repeating credentials."""
    if url == "":
        assert "api.together.xyz" in repr(AsyncTogether(KEY, base_url=url))
        return
    with pytest.raises(ValueError, match=r"base_url|IPv6") as caught:
        AsyncTogether(KEY, base_url=url)
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize(("suffix", "target"), [("/v1/", "/v1"), ("", ""), ("/a/b?x=1", "/a/b"), ("/v1#top", "/v1")])
async def test_base_urls(suffix: str, target: str) -> None:
    """Slashes, deeper paths and queries of a base URL end where they should."""
    async with ScriptedServer(answers(response(whole()))) as server:
        async with AsyncTogether(KEY, base_url=server.origin + suffix) as client:
            await client.create("Hi", model=MODEL)
    query = "?x=1" if "?" in suffix else ""
    assert server.calls[0].target == f"{target}/chat/completions{query}"
