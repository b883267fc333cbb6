"""`Transport`: which redirects are followed, and what another origin never sees."""
# ruff: noqa: SIM117 - a server and its client, one inside the other, read better than a tuple of both

import aiohttp
import pytest

from support.clients import client_of
from support.scripts import redirects
from support.servers import KEY, MODEL, ScriptedServer, answers, response, whole
from support.survival import chain
from together_async import APIConnectionError, APIStatusError, TogetherError

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_inside_the_origin_keeps_the_key(status: int) -> None:
    """The same scheme, host and port may know the key; method and body stay."""
    scripts = (redirects(lambda: "/v2/chat/completions", status), answers(response(whole())))
    async with ScriptedServer(*scripts) as server, client_of(server, headers={"x-mine": "1"}) as client:
        await client.create("Hi", model=MODEL)
    first, second = server.calls
    assert second.target == "/v2/chat/completions"
    assert second.method == "POST"
    assert second.body == first.body
    assert second.headers["authorization"] == f"Bearer {KEY}"
    assert second.headers["x-mine"] == "1"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_to_another_origin_loses_key_and_headers(status: int) -> None:
    """Another port is another origin: it sees neither the key nor a header of the caller."""
    async with ScriptedServer(answers(response(whole()))) as other:
        async with ScriptedServer(redirects(lambda: f"{other.origin}/v1/x", status)) as server:
            async with client_of(server, headers={"X-Mine": "secret", "cookie": "a=b"}) as client:
                await client.create("Hi", model=MODEL, headers={"x-call": "secret"})
    (call,) = other.calls
    assert call.headers.keys() <= {"host", "accept", "accept-encoding", "content-type", "user-agent", "content-length"}
    assert KEY not in str(call.headers)


async def test_a_redirect_there_and_back_does_not_bring_the_key_back() -> None:
    """What was dropped stays dropped: another origin could choose where the key goes."""
    async with ScriptedServer(redirects(lambda: f"{server.base_url}/back")) as other:
        async with ScriptedServer(redirects(lambda: other.base_url), answers(response(whole()))) as server:
            async with client_of(server) as client:
                await client.create("Hi", model=MODEL)
    assert "authorization" not in server.calls[1].headers


async def test_a_redirect_of_a_callers_session_does_not_take_its_headers_along() -> None:
    """The session's own headers, credentials and cookies stay at the origin too."""
    async with ScriptedServer(answers(response(whole()))) as other:
        async with ScriptedServer(redirects(lambda: f"{other.origin}/v1/x")) as server:
            async with (
                aiohttp.ClientSession(headers={"x-tenant": "secret"}) as session,
                client_of(server, session=session) as client,
            ):
                with pytest.raises(APIStatusError, match="not followed"):
                    await client.create("Hi", model=MODEL)
    assert not other.calls


async def test_a_redirect_of_a_callers_session_without_headers_is_followed() -> None:
    """A session without headers, credentials and cookies follows redirects as the client's own does."""
    async with ScriptedServer(answers(response(whole()))) as other:
        async with ScriptedServer(redirects(lambda: f"{other.origin}/v1/x")) as server:
            async with aiohttp.ClientSession() as session, client_of(server, session=session) as client:
                await client.create("Hi", model=MODEL)
    assert "authorization" not in other.calls[0].headers


async def test_redirects_in_a_circle_end() -> None:
    """After five redirects it's an error, whose causes are not a circle."""
    async with ScriptedServer(redirects(lambda: "/again")) as server, client_of(server) as client:
        with pytest.raises(APIConnectionError, match="redirected more than 5") as caught:
            await client.create("Hi", model=MODEL)
        chain(caught.value)
        assert caught.value.attempts == len(server.calls) == 6


@pytest.mark.parametrize("status", [300, 303, 304, 307])
async def test_a_redirect_that_is_not_followed_is_a_status(status: int) -> None:
    """303 wants a GET, a 307 without a location wants nothing: the status is the answer."""
    extra = b"location: /x\r\n" if status != 307 else b""
    async with ScriptedServer(answers(response(b"", status=status, extra=extra))) as server:
        async with client_of(server) as client:
            with pytest.raises(APIStatusError) as caught:
                await client.create("Hi", model=MODEL)
            assert caught.value.status_code == status
        assert len(server.calls) == 1


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://", "http://[::1", "//", "http://a:b@127.0.0.1:1/x", ""],
)
async def test_a_redirect_to_nowhere_is_a_typed_error(location: str) -> None:
    """Whatever a location says, the error is ours."""
    async with ScriptedServer(redirects(lambda: location), answers(response(b"", status=500))) as server:
        async with client_of(server) as client:
            with pytest.raises(TogetherError) as caught:
                await client.create("Hi", model=MODEL)
            chain(caught.value)


async def test_credentials_in_a_location_are_not_sent() -> None:
    """A location cannot set the Authorization header."""
    async with ScriptedServer(answers(response(whole()))) as other:
        async with ScriptedServer(redirects(lambda: f"http://u:p@127.0.0.1:{other.port}/")) as server:
            async with client_of(server) as client:
                await client.create("Hi", model=MODEL)
    assert "authorization" not in other.calls[0].headers
